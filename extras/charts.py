"""Charts of what `compare.py` found. Read after `figures.py`.

    python -m extras.charts

rates.png          accuracy and take-off at each learning rate of the search, one dot a seed
curves.png         accuracy over the steps of fine-tuning
hallucination.png  false "yes" by how plausible the object is, and accuracy by how full the scene is

All go to results/. In color-blind-safe colors of Okabe and Ito; bold lines are medians.
"""
import argparse
from statistics import mean, median

import numpy as np
from PIL import Image, ImageDraw

from data import read_lines
from eval_pope import SPLITS
from extras.compare import RUNS
from extras.figures import COLORS, INK, PAPER, font, write
from extras.tables import DEFAULTS, best_rate, by_row
from train import parse

WIDTH, HEIGHT = 2000, 880  # of a picture with two panels, shrunk to half of it at the end
LEFT, RIGHT = (110, 900), (1090, 1880)  # where the axes of the two begin and end
TOP, BOTTOM = 110, HEIGHT - 130
GRID = (225, 225, 225)
COLOR_OF = {"causal": COLORS[0], "mma": COLORS[1]}
SHIFT = {"causal": -30, "mma": 30}  # of the dots of a mask, in pixels
NEVER = 800  # where a run stands in the chart of take-offs that never took off


def ticks(values):
    """Numbers that stand beside an axis: value -> text."""
    return {value: f"{value:g}" for value in values}


def axes(pen, side, title, x_label, x_ticks, y_ticks):
    """Draw axes in half of a picture. Ticks: value -> text, from the lowest to the highest value.

    -> the function of values to pixels. What lies beyond the axes comes to their ends.
    """
    xs, ys = list(x_ticks), list(y_ticks)

    def at(x, y):
        return [np.interp(x, (xs[0], xs[-1]), side), np.interp(y, (ys[0], ys[-1]), (BOTTOM, TOP))]

    left, right = side
    pen.text((left, 30), title, INK, font(36))
    pen.text(((left + right) / 2, HEIGHT - 16), x_label, INK, font(32), anchor="md")
    for value, text in y_ticks.items():
        _, y = at(xs[0], value)
        pen.line((left, y, right, y), GRID, 2)
        pen.text((left - 14, y), text, INK, font(30), anchor="rm")
    for value, text in x_ticks.items():
        x, _ = at(value, ys[0])
        pen.text((x, BOTTOM + 16), text, INK, font(30), anchor="ma")
    return at


def draw_dots(pen, at, name, rate, values):
    """A dot for each seed of a mask at a rate, and a bar at their median."""
    for value in values:
        x, y = at(rate, value)
        pen.circle((x + SHIFT[name], y), 9, None, COLOR_OF[name], 4)
    x, y = at(rate, median(values))
    x += SHIFT[name]
    pen.line((x - 26, y, x + 26, y), COLOR_OF[name], 8)


def rates(pen, lines):
    """The search: accuracy and take-off at each learning rate."""
    found = by_row(lines, split="search", **DEFAULTS)
    tried = sorted({rate for _, rate in found})
    margin = (tried[1] - tried[0]) / 2
    x_ticks = {tried[0] - margin: "", **ticks(tried), tried[-1] + margin: ""}
    lowest = min(run[split] for runs in found.values() for run in runs.values() for split in SPLITS)
    label = "learning rate (circle: a seed, bar: median)"
    accuracy = axes(pen, LEFT, "POPE, mean of the three splits, %", label, x_ticks,
                    ticks(range(10 * int(10 * lowest), 101, 10)))
    step = axes(pen, RIGHT, "take-off, step", label, x_ticks,
                ticks(range(0, 601, 200)) | {NEVER: "never"})
    for (name, rate), runs in found.items():
        means = [100 * mean(run[split] for split in SPLITS) for run in runs.values()]
        draw_dots(pen, accuracy, name, rate, means)
        draw_dots(pen, step, name, rate, [run["take_off"] or NEVER for run in runs.values()])


def draw_curves(pen, at, lines, points):
    """Runs on test scenes, each mask at its best rate: a pale line each, and a bold median.

    points: run -> a list of (value, share).
    """
    steps = parse([]).sft_steps
    found = by_row(lines, split="test", steps=steps, **DEFAULTS)
    for name, color in COLOR_OF.items():
        runs = found[name, best_rate(name, lines, steps)].values()
        curves = [np.array(points(run), float) * (1, 100) for run in runs]
        middle = np.median(curves, axis=0)
        pale = tuple((255 + part) // 2 for part in color)
        for curve in [*curves, middle]:
            style = (color, 9) if curve is middle else (pale, 3)
            pen.line(list(zip(*at(*curve.T))), *style, joint="curve")


def curves(pen, lines):
    """Learning curves."""
    label = "steps of fine-tuning (thin: a seed, bold: median)"
    x_ticks = ticks(range(0, parse([]).sft_steps + 1, 100))
    for side, kind, title in ((LEFT, "exist", '"Is there a fish?", % right'),
                              (RIGHT, "exist_color", '"Is there a red fish?", % right')):
        at = axes(pen, side, title, label, x_ticks, ticks(range(40, 101, 10)))
        draw_curves(pen, at, lines, lambda run: run["curves"][kind])


def hallucination(pen, lines):
    """False "yes" by plausibility, and accuracy by the number of objects."""
    label = "how often it is on such pictures, % (bold: median)"
    x_ticks = {tenths: f"{10 * tenths}" for tenths in range(0, 11, 2)}
    at = axes(pen, LEFT, 'false "yes", %', label, x_ticks, ticks(range(0, 101, 10)))
    draw_curves(pen, at, lines, lambda run: list(run["false_yes"].items()))
    at = axes(pen, RIGHT, "is it there? % right", "objects in the picture", ticks(range(5, 10)),
              ticks(range(60, 101, 10)))
    draw_curves(pen, at, lines, lambda run: list(run["by_objects"].items()))


def main():
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter
                            ).parse_args()
    lines = [line for _, line in read_lines(RUNS) if line["row"] in COLOR_OF]
    for chart in (rates, curves, hallucination):
        picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        pen = ImageDraw.Draw(picture)
        chart(pen, lines)
        for x, (name, color) in zip((1560, 1730), COLOR_OF.items()):  # the legend
            pen.rectangle((x, 38, x + 26, 64), color)
            pen.text((x + 38, 51), name, INK, font(34), anchor="lm")
        picture = picture.resize((WIDTH // 2, HEIGHT // 2), Image.LANCZOS)
        write(picture, f"results/{chart.__name__}.png")


if __name__ == "__main__":
    main()
