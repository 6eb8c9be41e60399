"""The pictures in results/, and what other extras draw and print with.

    python -m extras.figures masks                 causal beside mma, on a short example
    python -m extras.figures answers CAUSAL MMA    what two runs answer about the same test scenes
    python -m extras.figures strips                the accuracy of the runs in results/*.jsonl
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from os.path import getmtime
from pathlib import Path
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
font = ImageFont.load_default  # takes the size in pixels


def newest_run():
    """The folder of the run that was saved last, or runs/, which `train.load` finds empty."""
    checkpoints = Path("runs").glob("*/model.pt")
    return max(checkpoints, key=getmtime, default=Path("runs/model.pt")).parent


def write(picture, path):
    """Write a Pillow picture to a file, and say so."""
    picture.save(path, optimize=True)
    print(f"wrote {path}")


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    lines = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def sheet(pictures, lines):
    """Square pictures, each above its lines of text: a list of (text, color) for each picture."""
    columns = min(4, len(pictures))
    width, height = 292, 284 + 22 * max(map(len, lines))  # of a picture with its margin and text
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (width * columns, height * rows + 14), PAPER)
    pen = ImageDraw.Draw(whole)
    for i, picture in enumerate(pictures):
        x, y = 14 + i % columns * width, 14 + i // columns * height
        whole.paste(Image.fromarray(picture).resize((256, 256)), (x, y))
        for j, (text, color) in enumerate(lines[i]):
            put(pen, x, y + 271 + 22 * j, text, 15, color)
    return whole


def put(pen, x, y, text, size=18, color=INK, anchor="lm"):
    """Write a text whose left end, or what `anchor` says, is at (x, y)."""
    pen.text((x, y), text, color, font(size), anchor)


# Masks of a short example.
EXAMPLE = "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
CELL, LEFT, TOP = 34, 150, 196  # pixels of a pair; of the names beside and above the masks
HIDDEN, OPENED, SEEN = (235, 237, 240), (240, 140, 20), (70, 92, 130)
LEGEND = ((150, SEEN, "seen"), (246, OPENED, "opened by mma"), (446, HIDDEN, "hidden"),
          (614, PAPER, "row: the token that looks; column: the token looked at"))


def draw_masks():
    """The causal mask of the example beside that of mma. Row: the token that looks."""
    modality = torch.tensor([[IMAGE if name == "img" else TEXT for name in EXAMPLE]])
    generated = torch.arange(len(EXAMPLE))[None] > EXAMPLE.index("<assistant>")
    causal = attention_mask(modality, generated, "causal")[0, 0]
    side = CELL * len(EXAMPLE)
    picture = Image.new("RGB", (LEFT + 2 * side + 100, TOP + side + 62), PAPER)
    pen = ImageDraw.Draw(picture)
    names = Image.new("RGB", (110, side), PAPER)  # to be turned and put above each mask
    for t, name in enumerate(EXAMPLE):
        y, color = (t + 0.5) * CELL, COLORS[1] if name == "img" else INK
        put(pen, LEFT - 10, TOP + y, name, 20, color, "rm")
        put(ImageDraw.Draw(names), 0, y, name, 20, color)
    for left, kind, does in ((LEFT, "causal", "never"), (LEFT + side + 50, "mma", "also")):
        put(pen, left, 26, kind, 34)
        put(pen, left, 62, f"image tokens {does} see the question", 21)
        picture.paste(names.rotate(90, expand=True), (left, TOP - 114))
        mask = attention_mask(modality, generated, kind)[0, 0]
        shades = mask.int() + (mask & ~causal)  # 0 hidden, 1 seen, 2 opened
        cells = np.uint8((HIDDEN, SEEN, OPENED))[shades].repeat(CELL, 0).repeat(CELL, 1)
        cells[::CELL] = cells[:, ::CELL] = 255  # white lines between them
        picture.paste(Image.fromarray(cells), (left, TOP))
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
        example, texts = pairs[0][0], [text for _, text in pairs]
        scenes[example.picture].append(({*texts} == {example.answer}, example, texts))
    wrong = [i for i in scenes if i > 2 and not all(right for right, *_ in scenes[i])]
    for i in [0, 1, 2, *wrong[:3]]:
        Random(i).shuffle(scenes[i])
        yield i, sorted(scenes[i], key=lambda question: question[0])[:3]  # wrong ones first


def draw_answers(*runs):
    """What runs, as `train.load` returns them, answer about the scenes that `choose` yields."""
    parts = [make_world("test", 200, 0, run[0].config.image_size) for run in runs]
    given = [ask(run, part) for run, part in zip(runs, parts)]
    picture = Image.new("RGB", (1240, 640), PAPER)
    pen = ImageDraw.Draw(picture)
    put(pen, 14, 22, "The first three test scenes", 22)
    put(pen, 634, 22, "The next three with a wrong answer", 22)
    for number, (i, questions) in enumerate(choose(given)):
        x, y = 14 + number // 3 * 620, 46 + number % 3 * 198
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


SETTINGS = (("default captions", "default", "causal", "mma"),
            ("one-way captions", "one-way", "causal-one-way", "mma-one-way"),
            ("sound", "sound", "causal", "mma"))


def draw_strips():
    """A circle per run that was trained at the rate of its row, for the rows of SETTINGS."""
    from extras import compare, sound  # not above, because they import this file

    picture = Image.new("RGB", (1160, 460), PAPER)
    pen = ImageDraw.Draw(picture)
    for percent in range(50, 101, 10):
        x = 16 * percent - 500
        pen.line((x, 10, x, 400), HIDDEN, 2)
        put(pen, x, 416, str(percent), anchor="mm")
    text = "accuracy of all questions, %   (circle: a seed; bar: the median; at the best rates)"
    put(pen, 300, 444, text)
    for i, (title, name, *rows) in enumerate(SETTINGS):
        put(pen, 14, 65 + 130 * i, title, 22)
        lines = [line for _, line in read_lines(f"results/{name}.jsonl")]
        for row, color, y in zip(rows, COLORS, (130 * i + 38, 130 * i + 92)):
            rate = (sound if name == "sound" else compare).ROWS[row].rate
            mine = [line for line in lines if line["row"] == row and line["rate"] == rate]
            places = sorted(1600 * line["accuracy"] - 500 for line in mine)
            put(pen, 288, y, row.split("-")[0], 22, color, "rm")
            middle = median(places)
            pen.line((middle, y - 22, middle, y + 22), color, 5)
            for n, x in enumerate(places):  # at three heights, to be told apart
                top = y + 9 * (n % 3 - 1) - 5
                pen.ellipse((x - 5, top, x + 5, top + 10), outline=color, width=2)
    return picture


def main():
    """The command line."""
    pictures = {"masks": draw_masks, "answers": draw_answers, "strips": draw_strips}
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=pictures)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="two runs, for answers")
    options = parser.parse_args()
    if len(options.runs) != 2 * (options.figure == "answers"):
        parser.error("answers takes two runs, the others none")
    runs = [load(path, pick_device()) for path in options.runs]
    write(pictures[options.figure](*runs), f"results/{options.figure}.png")


if __name__ == "__main__":
    main()
