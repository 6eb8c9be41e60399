"""The charts of the comparison show the figures that are in its lines."""
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from extras import charts, compare
from extras.figures import COLORS, PAPER



def line(row, seed, **changes):
    high = 0.9 if row == "mma" else 0.8
    return {"row": row, "seed": seed, "learning_rate": 0.02, "steps": 700, "mix": "default",
            "data": "world", "split": "test", "options": {}, "random": high, "popular": high,
            "adversarial": high, "take_off": 100, "false_yes": {"0": 0.1, "4": 1 - high},
            "by_objects": {"5": high, "9": high - 0.1},
            "curves": {kind: [[50, 0.5], [700, high]] for kind in ("exist", "exist_color")},
            **changes}


def test_values_stand_where_the_axes_say():
    picture = Image.new("RGB", (charts.WIDTH, charts.HEIGHT), PAPER)
    ticks = charts.percent_ticks(0, 100, 50)
    panel = charts.Panel(ImageDraw.Draw(picture), "left", "", "", ticks, ticks)
    panel.dots(25, [80, 80], COLORS[0], shift=0)
    colored = np.argwhere((np.array(picture) == COLORS[0]).all(-1))
    y, x = (colored.min(0) + colored.max(0)) / 2
    assert x == pytest.approx(panel.left + 0.25 * (panel.right - panel.left), abs=1)
    assert y == pytest.approx(panel.bottom - 0.8 * (panel.bottom - panel.top), abs=1)


def test_every_chart_shows_both_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    lines = [line(row, seed) for row in charts.COLOR_OF for seed in (0, 1)]
    lines += [line(row, 0, steps=350) for row in charts.COLOR_OF]
    lines += [line(row, 100, split="search", learning_rate=rate, take_off=None,
                   random=0.99 if rate == 0.02 else 0.8)
              for row in charts.COLOR_OF for rate in (0.01, 0.02, 0.03)]
    compare.RUNS.write_text("".join(json.dumps(one) + "\n" for one in lines))
    monkeypatch.setattr("sys.argv", ["charts"])
    charts.main()
    for name in ("rates", "curves", "hallucination"):
        below = np.array(Image.open(f"results/{name}.png").convert("RGB"))[50:].astype(int)
        for color in charts.COLOR_OF.values():  # not only in the legend
            assert (abs(below - color).max(-1) < 60).sum() > 100, name
