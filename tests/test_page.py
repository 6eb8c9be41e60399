"""The page results/masks.html says what the code says."""
import json
import re
import subprocess
from pathlib import Path
from random import Random
from shutil import which

import numpy as np
import pytest
import torch

from driving import refused
from extras import page
from mma import KINDS, attention_mask
from test_mma import read_rows

PAGE = Path(page.__file__).parent.parent / page.PAGE
HTML = PAGE.read_text()
KINDS_THERE, RULE, SCENES = map(json.loads, re.findall(r"(?m)^const [A-Z]+ = (.+);$", HTML)[:3])
BROWSER = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_page_loads_nothing_and_its_table_is_what_the_mask_says():
    assert len(HTML) < 1_500_000 and not re.search(r'(src|href)="[^#]|https?:|import |url\(', HTML)
    assert KINDS_THERE == list(KINDS)
    assert RULE == page.rule(), "write it anew: python -m extras.page"


def drawn(attention, layers, layout, square):
    """# known after some layers, ! known before it is predicted. In a layout, u is to be predicted,
    but not generated; else it is as in test_mma. square: the one that is clicked."""
    _, *about = read_rows(layout.replace("u", "t"))
    mask = attention_mask(*about, attention)[0, 0]
    mask.view(-1)[square] ^= True
    known = torch.linalg.matrix_power(mask.double(), layers) > 0
    return "/".join("".join("!" if seen and q < k and layout[k] in "uT" else ".#"[seen]
                            for k, seen in enumerate(row)) for q, row in enumerate(known.tolist()))


@pytest.mark.skipif(not BROWSER, reason="no Chromium here: the page was not opened")
def test_the_page_draws_300_random_rows_as_the_mask_and_its_powers(tmp_path):
    rng, cases = Random(0), []
    for _ in range(300):
        layout = "".join(rng.choices("..ttttTTiiii222uu", k=rng.randint(1, 16)))
        square = rng.randrange(len(layout) ** 2)
        cases.append((rng.choice(KINDS), rng.randint(1, 8), layout, square))
    address = f"{PAGE.as_uri()}#test,{','.join('-'.join(map(str, case)) for case in cases)}"
    words = [BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}", "--dump-dom"]
    out = subprocess.run([*words, address], capture_output=True, text=True, timeout=60).stdout
    [found] = re.findall("(?s)<pre>(.*)</pre>", out)
    assert "!" in found and found.split("\n") == [drawn(*case) for case in cases]


def test_what_the_page_says_is_what_the_shipped_models_say(monkeypatch):
    monkeypatch.chdir(PAGE.parent.parent)
    _, questions, pairs = SCENES[0]
    asked = page.answers([page.load(path) for path in page.RUNS], page.SCENES[0])
    for (*there, causal, mma), (*now, causal_now, mma_now) in zip(questions[:6], asked):
        assert (there, causal[0], mma[0]) == (now, causal_now[0], mma_now[0])
        assert np.allclose(causal[1:] + mma[1:], causal_now[1:] + mma_now[1:], atol=3)
    mma = page.load(page.RUNS[1], model_class=page.Intervened)
    assert page.swaps(mma, page.SCENES[:1]) == [pairs]
    for *_, without, _, later, _ in (pair for scene in SCENES for pair in scene[2]):
        assert without == later, "but the page says: A in layers 2 to 4 changes nothing"


def test_without_the_models_it_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["page"])
    refused("results/causal.pt: no such checkpoint", page.main)
