"""The charts of the comparison show the figures that are in its lines."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from extras import charts, compare
from extras.figures import PAPER
from test_compare import ROOT, record


def test_values_stand_where_the_axes_say():
    lines = [record(row, 100, accuracy, split="search", learning_rate=rate, take_off=take_off)
             for row, rate, accuracy, take_off in (("mma", 0.01, 0.85, None),
                                                   ("causal", 0.02, 0.8, 200))]
    picture = Image.new("RGB", (charts.WIDTH, charts.HEIGHT), PAPER)
    charts.rates(ImageDraw.Draw(picture), lines)
    height = charts.BOTTOM - charts.TOP
    for row, x_share, *tops in (("mma", 0.25, 0.75, 0), ("causal", 0.75, 1, 0.75)):
        colored = (np.array(picture) == charts.COLOR_OF[row]).all(-1)
        for (left, right), top in zip((charts.LEFT, charts.RIGHT), tops):
            ys, xs = np.nonzero(colored[:, left:right])
            x = x_share * (right - left) + charts.SHIFT[row]
            assert (xs.min() + xs.max()) / 2 == pytest.approx(x, abs=1)
            assert (ys.min() + ys.max()) / 2 == pytest.approx(charts.TOP + top * height, abs=1)


def test_the_charts_in_the_results_are_what_the_command_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    shutil.copy(ROOT / compare.RUNS, compare.RUNS)
    monkeypatch.setattr("sys.argv", ["charts"])
    charts.main()
    for name in ("rates", "curves", "hallucination"):
        drawn, shown = (
            np.array(Image.open(folder / "results" / f"{name}.png").convert("RGB"), int)[50:]
            for folder in (tmp_path, ROOT))  # without the legend
        for color in charts.COLOR_OF.values():
            found, wanted = (abs(pixels - color).max(-1) < 60 for pixels in (drawn, shown))
            assert (found & wanted).sum() > 0.9 * (found | wanted).sum() > 90, name
