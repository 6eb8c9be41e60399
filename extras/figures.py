"""The pictures in results/, and what other extras draw and print with.

    python -m extras.figures              masks.png, and strips.png from results/*.jsonl
    python -m extras.figures CAUSAL MMA   also answers.png: what two runs answer about test scenes
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from random import Random
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data import FIRST_SEED, draw, make_scene, make_world, read_lines
from eval_pope import ask
from mma import IMAGE, TEXT, attention_mask
from train import load, pick_device

INK, PAPER = (30, 30, 30), (255, 255, 255)
GREEN, RED = (20, 120, 60), (200, 30, 30)
COLORS = ((213, 94, 0), (0, 114, 178))  # the color-blind can tell them apart (Okabe and Ito)


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    lines = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def blank(width, height):
    """An empty picture, and a pen to draw on it. Here all sizes and places are in pixels."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def put(pen, x, y, text, size=18, color=INK, anchor="lm"):
    """Write a text whose left end, or what `anchor` says, is at (x, y)."""
    pen.text((x, y), text, color, ImageFont.load_default(size), anchor)


def write(picture, path):
    """Write a picture to a file, and say so."""
    picture.save(path, optimize=True)
    print(f"wrote {path}")


# Masks of a short example.
EXAMPLE = "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
CELL, LEFT, TOP = 34, 150, 196  # side of a pair; room for the names beside and above the masks
HIDDEN, OPENED, SEEN = (235, 237, 240), (240, 140, 20), (70, 92, 130)
LEGEND = ((150, SEEN, "seen"), (246, OPENED, "opened by mma"), (446, HIDDEN, "hidden"),
          (614, PAPER, "row: the token that looks; column: the token looked at"))


def draw_masks():
    """The causal mask of the example beside that of mma."""
    modality = torch.tensor([[IMAGE if name == "img" else TEXT for name in EXAMPLE]])
    generated = torch.arange(len(EXAMPLE))[None] > EXAMPLE.index("<assistant>")
    causal = attention_mask(modality, generated, "causal")[0, 0]
    side = CELL * len(EXAMPLE)
    picture, pen = blank(LEFT + 2 * side + 100, TOP + side + 62)
    names, pen_of_names = blank(110, side)  # to be turned and put above each mask
    for t, name in enumerate(EXAMPLE):
        y = (t + 0.5) * CELL
        color = COLORS[1] if name == "img" else INK
        put(pen, LEFT - 10, TOP + y, name, 20, color, "rm")
        put(pen_of_names, 0, y, name, 20, color)
    for left, kind, does in ((LEFT, "causal", "never"), (LEFT + side + 50, "mma", "also")):
        put(pen, left, 26, kind, 34)
        put(pen, left, 62, f"image tokens {does} see the question", 21)
        picture.paste(names.rotate(90, expand=True), (left, TOP - 114))
        mask = attention_mask(modality, generated, kind)[0, 0]
        for q, k in np.ndindex(mask.shape):
            x, y = left + k * CELL, TOP + q * CELL
            color = SEEN if causal[q, k] else OPENED if mask[q, k] else HIDDEN
            pen.rectangle((x + 1, y + 1, x + CELL - 1, y + CELL - 1), color)
    y = TOP + side + 33
    for x, color, meaning in LEGEND:
        pen.rectangle((x, y - 9, x + 18, y + 9), color)
        put(pen, x + 28, y, meaning, 20)
    return picture


def choose(given):
    """Yields six test scenes: the first three, and the next three with a wrong answer.

    given: for each run a list of (Example, answer), in the same order. A scene comes as (its index,
    three questions), and a question as (whether all runs are right, Example, their answers).
    """
    scenes = defaultdict(list)
    for pairs in zip(*given):
        example = pairs[0][0]
        texts = [text for _, text in pairs]
        scenes[example.picture].append(({*texts} == {example.answer}, example, texts))
    wrong = [i for i in scenes if i > 2 and not all(right for right, *_ in scenes[i])]
    for i in [0, 1, 2, *wrong[:3]]:
        Random(i).shuffle(scenes[i])
        yield i, sorted(scenes[i], key=lambda question: question[0])[:3]  # wrong ones first


def draw_answers(*runs):
    """What runs, as `train.load` returns them, answer about the scenes that `choose` yields."""
    given = [ask(run, make_world("test", 200, 0, run[0].config.image_size)) for run in runs]
    picture, pen = blank(1240, 640)
    put(pen, 14, 22, "The first three test scenes", 22)
    put(pen, 634, 22, "The next three with a wrong answer", 22)
    for n, (i, questions) in enumerate(choose(given)):
        x = 14 + n // 3 * 620
        y = 46 + n % 3 * 198
        scene = make_scene(FIRST_SEED["test"] + i)
        picture.paste(Image.fromarray(draw(scene, 188)), (x, y))
        for right, example, texts in questions:
            truth = "" if right else f"   (right: {example.answer})"
            put(pen, x + 202, y + 12, example.prompt + truth)
            for left, run, text in zip((222, 412), runs, texts):
                color = GREEN if text == example.answer else RED
                put(pen, x + left, y + 37, f"{run[0].attention}: {text:.20}", 18, color)
            y += 63
    return picture


SETTINGS = {  # name of the experiment -> (title, two rows)
    "default": ("default captions", "causal", "mma"),
    "one-way": ("one-way captions", "causal-one-way", "mma-one-way"),
    "sound": ("sound", "causal", "mma"),
}


def draw_strips():
    """A circle per run, for the rows of SETTINGS. Their best rates come first in results/."""
    picture, pen = blank(1160, 460)
    for percent in range(50, 101, 10):
        x = 16 * percent - 500
        pen.line((x, 10, x, 400), HIDDEN, 2)
        put(pen, x, 416, str(percent), anchor="mm")
    text = "accuracy of all questions, %   (circle: a seed; bar: the median; at the best rates)"
    put(pen, 300, 444, text)
    y = 38
    for name, (title, *rows) in SETTINGS.items():
        put(pen, 14, y + 27, title, 22)
        lines = [line for _, line in read_lines(f"results/{name}.jsonl")]
        for row, color in zip(rows, COLORS):
            put(pen, 288, y, row.split("-")[0], 22, color, "rm")
            of_row = [line for line in lines if line["row"] == row]
            best = [line["accuracy"] for line in of_row if line["rate"] == of_row[0]["rate"]]
            places = sorted(1600 * share - 500 for share in best)
            middle = median(places)
            pen.line((middle, y - 22, middle, y + 22), color, 5)
            for n, x in enumerate(places):
                top = y - 14 + 9 * (n % 3)  # three heights, to tell the circles apart
                pen.ellipse((x - 5, top, x + 5, top + 10), outline=color, width=2)
            y += 54
        y += 22
    return picture


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="two runs of the picture world")
    runs = [load(path, pick_device()) for path in parser.parse_args().runs]
    write(draw_masks(), "results/masks.png")
    write(draw_strips(), "results/strips.png")
    if runs:
        write(draw_answers(*runs), "results/answers.png")


if __name__ == "__main__":
    main()
