"""The pictures of the README show what the code computes."""
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from data import Example
from driving import write_lines
from extras import figures
from extras.variants import look_alikes
from train import load

ROOT = Path(figures.__file__).parent.parent


def test_the_sheet_in_results_is_what_the_models_in_results_answer():
    runs = [load(ROOT / f"results/{name}.pt") for name in ("causal", "mma")]
    sheet, words = figures.draw_sheet(*runs)
    shown = Image.open(ROOT / "results/answers.png")
    assert sheet.size == shown.size, "draw it anew: python -m extras.figures CAUSAL MMA --ship"
    # Another processor rounds otherwise, and another Pillow may draw letters otherwise.
    assert np.abs(np.float32(sheet) - np.float32(shown)).mean() < 1


def test_of_six_photographs_as_many_are_answered_wrongly_as_of_all_and_all_kinds_are_shown():
    examples = [Example(i, f"{kind} {i}", answer, kind) for i in range(60)
                for kind, answer in (("exist", "yes"), ("exist", "no"), ("color", "red"))]
    for n, shown in ((0, 0), (1, 1), (60, 2), (179, 5), (180, 6)):
        texts = {e: "?" if i < n else e.answer for i, e in enumerate(examples)}
        chosen = figures.choose_six([texts, texts])
        assert sum(texts[e] != e.answer for e in chosen) == shown
        assert len({e.picture for e in chosen}) == 6 and len({e.answer for e in chosen}) == 3


def test_a_sheet_of_your_own_pictures_lies_beside_the_run(tiny, folder, monkeypatch, capsys):
    lines = [{"image": f"{i}.png", "objects": [["cat"], ["cup"]][i % 2]} for i in range(200, 220)]
    write_lines(folder / "train.jsonl", lines)
    write_lines(folder / "test.jsonl", lines[:12])
    tiny("--data", folder, "--name", "one", "--image-size", 32).train()
    tiny("--data", folder, "--name", "two", "--seed", 1).train()
    monkeypatch.setattr("sys.argv", ["figures", "runs/one", "runs/two/model.pt"])
    figures.main()
    assert "wrote runs/one/answers.png: 6 pictures" in capsys.readouterr().out
    sheet = Image.open("runs/one/answers.png")
    assert sheet.getpixel((140, 260))[0] in range(200, 212) and not Path("results").exists()


@pytest.fixture
def results(monkeypatch):
    """A function that puts lines in place of those of results/default.jsonl."""
    def replace(*lines):
        monkeypatch.setattr(figures, "read_lines",
                            {"results/default.jsonl": [(None, line) for line in lines]}.get)
    return replace


def heights(picture, color):
    """The mean height of a color at the left and at the right end of its lines, in pixels."""
    there = (np.array(picture) == color).all(-1)
    columns = there.any(0).nonzero()[0]
    return [there[:, x].nonzero()[0].mean() for x in (columns[1], columns[-2])]


def test_diagrams_show_the_medians_of_seeds_that_have_all_rows(results):
    made_up = [("causal", 0, 0.9), ("causal", 1, 0.8), ("causal", 2, 0.75), ("mma", 0, 1.0),
               ("mma", 1, 1.0), ("mma", 2, 1.0), ("causal-one-way", 0, 0.5),
               ("causal-300", 0, 0.4), ("causal-300", 1, 0.7), ("mma-300", 0, 0.9),
               ("mma-300", 1, 0.9), ("causal-400", 0, 0.8), ("causal-400", 1, 0.8),
               ("mma-400", 0, 0.9), ("mma-400", 1, 0.9), ("mma-400", 2, 0.5)]
    results(*({"row": row, "seed": seed, "accuracy": share,
               "fish": {"exist": [1] * 6, "exist_color": [1, *[share] * 5]}}
              for row, seed, share in made_up))
    look_alikes = figures.draw_look_alikes().crop((350, 70, 710, 400))  # without legend, control
    steps = figures.draw_steps().crop((0, 70, 460, 400))  # of seeds 0 and 1 alone
    assert heights(look_alikes, figures.COLORS[0]) == pytest.approx([20, 140], abs=4)  # 100, 80 %
    assert heights(look_alikes, figures.COLORS[1]) == pytest.approx([20, 20], abs=4)
    assert heights(steps, figures.COLORS[0]) == pytest.approx([290, 110], abs=4)  # 55 %, 85 %
    assert heights(steps, figures.COLORS[1]) == pytest.approx([80, 20], abs=4)  # 90, 100 %


def test_the_example_of_the_diagram_shows_a_red_fish():
    scene, *thing = look_alikes(5, True, Random(figures.EXAMPLE))
    assert thing == ["fish", "red"]
