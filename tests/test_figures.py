"""The pictures of the README show what the code computes."""
from types import SimpleNamespace

import numpy as np

from data import Example
from driving import write_lines
from extras import figures


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


def test_a_circle_is_drawn_per_run_at_its_accuracy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    lines = [{"row": "causal", "rate": 0.05, "accuracy": share} for share in (0.6, 0.75, 0.8)]
    lines += [{"row": "causal", "rate": 0.02, "accuracy": 0.9},  # not the rate of this row
              {"row": "mma", "rate": 0.02, "accuracy": 1.0}]
    write_lines(tmp_path / "results/default.jsonl", lines)
    monkeypatch.setattr(figures, "SETTINGS", figures.SETTINGS[:1])
    strip = np.array(figures.draw_strips())[:63, 300:]
    columns = (strip == figures.COLORS[0]).all(-1).any(0).nonzero()[0] + 300
    assert {*columns} == {*range(455, 466), *range(695, 706), *range(775, 786)}  # 16 per percent


def test_the_columns_of_a_table_line_up():
    rows = [{"row": "mma", "n": "1"}, {"row": "causal", "n": "10"}]
    assert figures.table(rows) == """\
| row    | n  |
| ---    | -  |
| mma    | 1  |
| causal | 10 |"""
