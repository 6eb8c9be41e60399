"""The project's pictures: masks, scenes, answers, learning curves.

    python -m extras.figures masks           the four masks of a short example, also as text
    python -m extras.figures scenes          scenes of the picture world with their captions
    python -m extras.figures answers [RUN]   test scenes with questions and the answers of a run
    python -m extras.figures curves          what `extras.compare` found, over the steps

Each writes results/NAME.png, or the file given with --out. `chart` draws line charts.
"""
import argparse
import json
import sys
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import eval_pope
from data import FIRST_SEED, Example, caption, draw, make_scene, questions_about
from extras.compare import default_runs
from mma import IMAGE, KINDS, TEXT, attention_mask
from model import pick_device
from train import load

INK, PAPER = (30, 30, 30), (255, 255, 255)
GREEN, RED = (20, 120, 60), (200, 30, 30)


def font(size):
    """Pillow's own font, in pixels."""
    return ImageFont.load_default(size)


def printable(text):
    """Text from a stranger, harmless on a terminal: control characters and the like as \\x1b."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def newest_run():
    """The folder of the run that was saved last."""
    checkpoints = sorted(Path("runs").glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise SystemExit("no trained model under runs/; `python train.py` makes one")
    return checkpoints[-1].parent


def write(picture, path):
    """Write a Pillow picture as a PNG file, and say so."""
    if Path(path).suffix.lower() != ".png":
        raise SystemExit(f"--out {printable(path)}: the name must end in .png")
    try:
        picture.save(path, optimize=True)
    except OSError as error:
        raise SystemExit(f"--out {printable(path)}: cannot be written ({error.strerror})")
    print(f"wrote {printable(path)}")


# Masks.

EXAMPLE = "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
CELL, LEFT, TOP = 22, 118, 150  # pixels of a pair; of the names beside and above the masks
MEANINGS = (((235, 237, 240), "·", "hidden"),
            ((240, 140, 20), "▒", "opened by this kind of attention"),
            ((70, 92, 130), "█", "seen under the causal mask too"))


def example_masks():
    """Kind of attention -> T lists of T indices into MEANINGS, for the tokens of EXAMPLE."""
    modality = torch.tensor([[IMAGE if name == "img" else TEXT for name in EXAMPLE]])
    generated = torch.arange(len(EXAMPLE))[None] > EXAMPLE.index("<assistant>")
    masks = {kind: attention_mask(modality, generated, kind)[0, 0].long() for kind in KINDS}
    return {kind: (mask + masks["causal"] * mask).tolist() for kind, mask in masks.items()}


def masks_as_text():
    """The masks of the example side by side, 80 columns wide."""
    lines = [" " * 12 + "".join(f" {kind:<15}" for kind in KINDS).rstrip()]
    masks = example_masks()
    for q, name in enumerate(EXAMPLE):
        rows = ["".join(MEANINGS[pair][1] for pair in masks[kind][q]) for kind in KINDS]
        lines.append(f"{name:>11}  " + "   ".join(rows))
    legend = "   ".join(f"{sign} {meaning}" for _, sign, meaning in MEANINGS)
    lines += ["", "row: the token that looks   column: the token looked at", legend]
    return "\n".join(lines)


def draw_masks():
    """The masks of the example side by side, as a picture."""
    side, masks = CELL * len(EXAMPLE), example_masks()
    picture = Image.new("RGB", (LEFT + len(KINDS) * (side + 34), TOP + side + 62), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, kind in enumerate(KINDS):
        left = LEFT + i * (side + 34)
        pen.text((left + side / 2, 22), kind, INK, font(24), anchor="mm")
        for t, name in enumerate(EXAMPLE):
            color = (20, 120, 90) if name == "img" else INK
            if i == 0:
                pen.text((LEFT - 10, TOP + (t + 0.5) * CELL), name, color, font(15), anchor="rm")
            label = Image.new("RGB", (110, CELL), PAPER)
            ImageDraw.Draw(label).text((0, CELL / 2), name, color, font(15), anchor="lm")
            picture.paste(label.rotate(90, expand=True), (left + t * CELL, TOP - 114))
        for q, row in enumerate(masks[kind]):
            for k, pair in enumerate(row):
                x, y = left + k * CELL, TOP + q * CELL
                pen.rectangle((x, y, x + CELL - 2, y + CELL - 2), MEANINGS[pair][0])
    x, y = LEFT, TOP + side + 33
    for color, _, meaning in reversed(MEANINGS):
        pen.rectangle((x, y - 8, x + 16, y + 8), color)
        pen.text((x + 26, y), meaning, INK, font(16), anchor="lm")
        x += 60 + pen.textlength(meaning, font(16))
    text = "row: the token that looks; column: the token looked at"
    pen.text((x, y), text, INK, font(16), anchor="lm")
    return picture


# Scenes.

def sheet(scenes, lines, columns=4, side=256, pitch=292):
    """A picture of scenes, each above its lines of text: a list of (text, color) for each scene."""
    height = side + 22 * max(map(len, lines)) + 28
    rows = -(-len(scenes) // columns)
    picture = Image.new("RGB", (pitch * columns, height * rows + 14), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, scene in enumerate(scenes):
        x, y = 14 + i % columns * pitch, 14 + i // columns * height
        picture.paste(Image.fromarray(draw(scene, side)), (x, y))
        for j, (text, color) in enumerate(lines[i]):
            pen.text((x, y + side + 6 + 22 * j), text, color, font(15))
    return picture


def draw_answers(run, scenes):
    """Scenes with three questions each and a run's answers, wrong ones in red."""
    size, examples = run[0].config.image_size, []
    for i, asked in enumerate(questions_about(scenes, seed=0)):
        exist, others = asked[:3], asked[3:]
        chosen = exist[i % 3], others[2 * i % len(others)], others[(2 * i + 1) % len(others)]
        examples += [Example(i, *question) for question in chosen]
    answers = eval_pope.ask(run, np.stack([draw(scene, size) for scene in scenes]), examples)
    lines = [[] for _ in scenes]
    for example, answer in zip(examples, answers):
        right = answer == example.answer
        note = "" if right else f"   (right: {example.answer})"
        lines[example.picture] += [(example.prompt, INK),
                                   (f"    {printable(answer)}{note}", GREEN if right else RED)]
    return sheet(scenes, lines)


# Line charts. All lengths are twice those of the file: shrunk at the end, lines become smooth.

WIDTH, HEIGHT = 2000, 1120
MARGINS = 128, 152, 420, 140  # left, above, right, below
# Of Okabe and Ito: readers who are color-blind can tell them apart.
COLORS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0),
          (86, 180, 233), (90, 90, 90))


def chart(lines, path, title, x_label, y_label, y_range):
    """Draw lines in percent: a thin one for each seed, a bold one for their median.

    lines: name -> list of curves, one a seed; a curve is a list of (x, y), at the same x for all.
    y_range: (lowest, highest), multiples of 10. A line's name stands at its end.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(picture)
    x_max = max(x for curves in lines.values() for curve in curves for x, _ in curve)
    at = draw_axes(pen, x_max, y_range)
    pen.text((MARGINS[0], 24), title, INK, font(38))
    pen.text((MARGINS[0], 80), y_label, INK, font(32))
    pen.text((at(x_max / 2, 0)[0], HEIGHT - 16), x_label, INK, font(32), anchor="md")
    for curves, color in zip(lines.values(), cycle(COLORS)):
        for curve in curves:
            pale = tuple((255 + part) // 2 for part in color)
            pen.line([at(x, y) for x, y in curve], pale, 2, joint="curve")
    ends = []
    for (name, curves), color in zip(lines.items(), cycle(COLORS)):
        points = [at(seeds[0][0], median(y for _, y in seeds)) for seeds in zip(*curves)]
        pen.line(points, color, 7, joint="curve")
        ends.append((points[-1], name, color))
    last = 0
    for (x, y), name, color in sorted(ends, key=lambda end: end[0][1]):
        last = max(y, last + 42)  # below the name before
        pen.line((x, y, WIDTH - MARGINS[2] + 36, last), color, 2)
        pen.text((WIDTH - MARGINS[2] + 44, last), name, color, font(38), anchor="lm")
    write(picture.resize((WIDTH // 2, HEIGHT // 2), Image.LANCZOS), path)


def draw_curves(path, kind="exist_color"):
    """The accuracy of a question kind in the runs of the comparison about the picture world."""
    lines = {}
    for run in default_runs(json.loads(line) for line in open("results/runs.jsonl")):
        curve = [(step, 100 * accuracy) for step, accuracy in run["curves"][kind]]
        lines.setdefault(run["row"], []).append(curve)
    seeds = max(map(len, lines.values()))
    title = f'"Is there a red fish in the image?"  (bold: the median of {seeds} seeds)'
    chart(lines, path, title, "steps of fine-tuning", "accuracy on held-out pictures, %", (40, 100))


def draw_axes(pen, x_max, y_range):
    """Draw the grid and its numbers; returns the function (x, y) -> pixel."""
    (low, high), (left, above, right, below) = y_range, MARGINS

    def at(x, y):
        y = min(max(y, low), high)
        return (left + (WIDTH - left - right) * x / x_max,
                HEIGHT - below - (HEIGHT - above - below) * (y - low) / (high - low))

    for y in range(low, high + 1, 10):
        pen.line((at(0, y), at(x_max, y)), (225, 225, 225), 2)
        pen.text((left - 16, at(0, y)[1]), str(y), INK, font(32), anchor="rm")
    for quarter in range(5):
        x, y = at(x_max * quarter / 4, low)
        pen.line((x, y, x, y + 12), INK, 2)
        pen.text((x, y + 20), f"{x_max * quarter / 4:.0f}", INK, font(32), anchor="ma")
    pen.line((at(0, low), at(x_max, low)), INK, 2)
    return at


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("figure", choices=("masks", "scenes", "answers", "curves"))
    add("run", nargs="?", help="run folder, for answers (default: the newest run)")
    add("--out", metavar="FILE", help="what to write (default: results/FIGURE.png)")
    options = parser.parse_args()
    if options.run and options.figure != "answers":
        parser.error(f"{options.figure} takes no run")
    sys.stdout.reconfigure(errors="replace")  # not every terminal has every character
    scenes = [make_scene(FIRST_SEED["test"] + i) for i in range(12)]
    out = options.out or f"results/{options.figure}.png"
    if options.figure == "curves":
        return draw_curves(out)
    if options.figure == "masks":
        print(masks_as_text() + "\n")
        picture = draw_masks()
    elif options.figure == "scenes":
        captions = [[(text, INK) for text in caption(scene).split(", ")] for scene in scenes]
        picture = sheet(scenes, captions)
    else:
        picture = draw_answers(load(options.run or newest_run(), pick_device()), scenes)
    write(picture, out)


if __name__ == "__main__":
    main()
