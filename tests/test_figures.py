"""The pictures of the README show what the code computes."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data import Example, read_lines
from extras import compare, figures, sound


def test_mma_opens_the_columns_of_the_question_in_the_rows_of_image_tokens():
    picture = figures.draw_masks()
    for q, k in np.ndindex(13, 13):
        x, y = 167 + 34 * k, 213 + 34 * q  # the middle of a pair under the causal mask
        causal = figures.SEEN if k <= q else figures.HIDDEN
        opened = 1 <= q <= 4 and 5 <= k <= 10
        assert picture.getpixel((x, y)) == causal
        assert picture.getpixel((x + 492, y)) == (figures.OPENED if opened else causal)


def test_scenes_with_wrong_answers_are_chosen_and_the_wrong_answers_are_red(monkeypatch):
    examples = [Example(i, "Is it?", "yes", "exist") for i in range(9) for _ in range(4)]
    causal, mma = ["yes"] * 36, ["yes"] * 36
    mma[4 * 5 + 3] = causal[4 * 8] = "no"  # of scenes 5 and 8
    given = [list(zip(examples, texts)) for texts in (causal, mma)]
    chosen = [(i, [right for right, *_ in questions]) for i, questions in figures.choose(given)]
    good, bad = [True, True, True], [False, True, True]
    assert chosen == [(0, good), (1, good), (2, good), (5, bad), (8, bad)]
    monkeypatch.setattr(figures, "ask", lambda run, *_: given.pop(0))
    model = SimpleNamespace(attention="mma", config=SimpleNamespace(image_size=16))
    red = (np.array(figures.draw_answers((model,), (model,))) == figures.RED).all(-1)
    assert red[46:109, 634:].any() and red[244:307, 634:].any()  # the first questions there
    assert not red[:, :634].any()


def test_a_circle_is_drawn_per_run_at_its_accuracy(monkeypatch):
    runs = [("causal", 0.05, 0.6), ("causal", 0.05, 0.75), ("causal", 0.05, 0.8),
            ("causal", 0.02, 0.9),  # not the first rate of this row
            ("mma", 0.02, 1.0)]
    lines = [(None, dict(zip(("row", "rate", "accuracy"), run))) for run in runs]
    monkeypatch.setattr(figures, "read_lines", {"results/default.jsonl": lines}.get)
    monkeypatch.setattr(figures, "SETTINGS", {"default": figures.SETTINGS["default"]})
    strip = np.array(figures.draw_strips())[:63, 300:]
    columns = (strip == figures.COLORS[0]).all(-1).any(0).nonzero()[0] + 300
    assert {*columns} == {*range(455, 466), *range(695, 706), *range(775, 786)}  # 16 per percent


def test_the_first_rate_of_a_row_in_results_is_its_best():
    results = Path(figures.__file__).parent.parent / "results"
    for name, (_, *rows) in figures.SETTINGS.items():
        best = (sound if name == "sound" else compare).ROWS
        lines = [line for _, line in read_lines(results / f"{name}.jsonl")]
        for row in rows:
            assert next(line["rate"] for line in lines if line["row"] == row) == best[row].rate
