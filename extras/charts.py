"""Charts of what `compare.py` found. Read after `figures.py`.

    python -m extras.charts

rates.png          accuracy and take-off at each learning rate of the search, one dot a seed
curves.png         accuracy over the steps of fine-tuning
hallucination.png  false "yes" by how plausible the object is, and accuracy by how full the scene is

All go to results/. In color-blind-safe colors of Okabe and Ito; bold lines are medians.
"""
import argparse
from statistics import mean, median

from PIL import Image, ImageDraw

from data import read_lines
from eval_pope import SPLITS
from extras.compare import RUNS
from extras.figures import COLORS, INK, PAPER, font, write
from extras.tables import DEFAULTS, reported
from train import parse

WIDTH, HEIGHT = 2000, 880  # of a picture with two panels, shrunk to half of it at the end
GRID = (225, 225, 225)
COLOR_OF = {"causal": COLORS[0], "mma": COLORS[1]}
NEVER = 800  # where a run stands in the chart of take-offs that never took off


class Panel:
    """Axes in the left or right half of a picture."""

    def __init__(self, pen, side, title, x_label, x_ticks, y_ticks):
        """Ticks: value -> text, from the lowest to the highest value."""
        self.pen, self.xs, self.ys = pen, list(x_ticks), list(y_ticks)
        self.left, self.right = (110, 900) if side == "left" else (1090, 1880)
        self.top, self.bottom = 110, HEIGHT - 130
        pen.text((self.left, 30), title, INK, font(36))
        middle = (self.left + self.right) / 2
        pen.text((middle, HEIGHT - 16), x_label, INK, font(32), anchor="md")
        for y, text in y_ticks.items():
            pen.line((*self.at(self.xs[0], y), *self.at(self.xs[-1], y)), GRID, 2)
            pen.text((self.left - 14, self.at(0, y)[1]), text, INK, font(30), anchor="rm")
        for x, text in x_ticks.items():
            pen.text((self.at(x, 0)[0], self.bottom + 16), text, INK, font(30), anchor="ma")

    def at(self, x, y):
        """Values -> pixels."""
        x_share = (x - self.xs[0]) / (self.xs[-1] - self.xs[0])
        y_share = (y - self.ys[0]) / (self.ys[-1] - self.ys[0])
        return (self.left + x_share * (self.right - self.left),
                self.bottom - y_share * (self.bottom - self.top))

    def curves(self, curves, color):
        """A pale line for each seed, and a bold one for their median. curves: lists of (x, y)."""
        pale = tuple((255 + part) // 2 for part in color)
        for curve in curves:
            self.pen.line([self.at(x, y) for x, y in curve], pale, 3, joint="curve")
        middle = [(points[0][0], median(y for _, y in points)) for points in zip(*curves)]
        self.pen.line([self.at(x, y) for x, y in middle], color, 9, joint="curve")

    def dots(self, x, values, color, shift):
        """A dot for each seed, and a bar at their median; shift: pixels to the right."""
        for y in values:
            px, py = self.at(x, y)
            self.pen.ellipse((px + shift - 9, py - 9, px + shift + 9, py + 9), None, color, 4)
        px, py = self.at(x, median(values))
        self.pen.line((px + shift - 26, py, px + shift + 26, py), color, 8)


def legend(pen, top):
    """The names of the masks in their colors, at the upper right."""
    for x, name in ((1560, "causal"), (1730, "mma")):
        pen.rectangle((x, top + 8, x + 26, top + 34), COLOR_OF[name])
        pen.text((x + 38, top + 21), name, INK, font(34), anchor="lm")


def percent_ticks(low, high, step):
    """Ticks from low to high percent."""
    return {y: str(y) for y in range(low, high + 1, step)}


def of_mask(runs, name):
    """The runs of a mask."""
    return [run for run in runs if run["row"] == name]


def rates(pen, lines):
    """The search: accuracy and take-off at each learning rate."""
    wanted = {"split": "search", **DEFAULTS}
    runs = [run for run in lines if wanted.items() <= run.items() and run["row"] in COLOR_OF]
    tried = sorted({run["learning_rate"] for run in runs})
    step = tried[1] - tried[0]
    x_ticks = {tried[0] - step / 2: "", **{rate: f"{rate:g}" for rate in tried},
               tried[-1] + step / 2: ""}
    low = 10 * int(10 * min(run[split] for run in runs for split in SPLITS))
    label = "learning rate (circle: a seed, bar: median)"
    accuracy = Panel(pen, "left", "POPE, mean of the three splits, %", label, x_ticks,
                     percent_ticks(low, 100, 10))
    steps = Panel(pen, "right", "take-off, step", label, x_ticks,
                  {0: "0", 200: "200", 400: "400", 600: "600", NEVER: "never"})
    for shift, (name, color) in zip((-30, 30), COLOR_OF.items()):
        for rate in tried:
            found = [run for run in of_mask(runs, name) if run["learning_rate"] == rate]
            if found:
                means = [100 * mean(run[split] for split in SPLITS) for run in found]
                accuracy.dots(rate, means, color, shift)
                steps.dots(rate, [run["take_off"] or NEVER for run in found], color, shift)


def curves(pen, lines):
    """Learning curves of the reported runs."""
    last = parse([]).sft_steps
    runs = reported(lines, last)
    x_ticks = {x: str(x) for x in range(0, last + 1, 100)}
    for side, kind, title in (("left", "exist", '"Is there a fish?", % right'),
                              ("right", "exist_color", '"Is there a red fish?", % right')):
        label = "steps of fine-tuning (thin: a seed, bold: median)"
        panel = Panel(pen, side, title, label, x_ticks, percent_ticks(40, 100, 10))
        for name, color in COLOR_OF.items():
            found = [run["curves"][kind] for run in of_mask(runs, name)]
            panel.curves([[(step, max(40, 100 * share)) for step, share in curve]
                          for curve in found], color)


def hallucination(pen, lines):
    """False "yes" by plausibility, and accuracy by the number of objects."""
    runs = [run for run in reported(lines, parse([]).sft_steps) if run["row"] in COLOR_OF]
    highest = max(share for run in runs for share in run["false_yes"].values())
    shares = Panel(pen, "left", 'false "yes", %',
                   "how often it is on such pictures, % (bold: median)", percent_ticks(0, 100, 20),
                   percent_ticks(0, min(100, 10 * int(10 * highest + 1)), 10))
    by_objects = Panel(pen, "right", "is it there? % right", "objects in the picture",
                       {n: str(n) for n in range(5, 10)}, percent_ticks(60, 100, 10))
    for name, color in COLOR_OF.items():
        found = of_mask(runs, name)
        shares.curves([[(10 * int(tenths), 100 * share) for tenths, share
                        in run["false_yes"].items()] for run in found], color)
        by_objects.curves([[(int(n), max(60, 100 * accuracy)) for n, accuracy
                            in run["by_objects"].items()] for run in found], color)


def main():
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter
                            ).parse_args()
    lines = [line for _, line in read_lines(RUNS)]
    for chart in (rates, curves, hallucination):
        picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        pen = ImageDraw.Draw(picture)
        chart(pen, lines)
        legend(pen, 30)
        picture = picture.resize((WIDTH // 2, HEIGHT // 2), Image.LANCZOS)
        write(picture, f"results/{chart.__name__}.png")


if __name__ == "__main__":
    main()
