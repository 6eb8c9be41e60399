"""The charts of the comparison show the figures that are in its lines."""
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from extras import charts, compare
from extras.figures import COLORS, PAPER


def line(row, seed, **changes):
    return {"row": row, "seed": seed, "learning_rate": 0.02, "steps": 700, "mix": "default",
            "data": "world", "split": "test", "options": {}, "random": 0.9, "popular": 0.8,
            "adversarial": 0.7, "take_off": 100, "false_yes": {"0": 0.1, "4": 0.2, "9": 0.5},
            "by_objects": {"5": 0.9, "9": 0.8},
            "curves": {"exist": [[50, 0.5], [700, 0.9]], "exist_color": [[50, 0.5], [700, 0.6]]},
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
    lines += [line(row, 100, split="search", learning_rate=rate, take_off=None)
              for row in charts.COLOR_OF for rate in (0.01, 0.02, 0.03)]
    compare.RUNS.write_text("".join(json.dumps(one) + "\n" for one in lines))
    charts.main()
    for name in ("rates", "curves", "hallucination"):
        pixels = np.array(Image.open(f"results/{name}.png").convert("RGB"))
        for color in charts.COLOR_OF.values():
            assert (pixels == color).all(-1).sum() > 200 * (name != "rates"), name
