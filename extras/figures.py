"""The project's pictures: masks, scenes, answers.

    python -m extras.figures masks           the four masks of a short example
    python -m extras.figures scenes          scenes of the picture world with their captions
    python -m extras.figures answers [RUN]   test scenes with questions and the answers of a run

Each writes results/NAME.png.
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from os.path import getmtime
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import eval_pope
from data import make_world
from mma import IMAGE, KINDS, TEXT, attention_mask
from model import pick_device
from train import load

INK, PAPER = (30, 30, 30), (255, 255, 255)
GREEN, RED = (20, 120, 60), (200, 30, 30)
# Of Okabe and Ito: readers who are color-blind can tell them apart.
COLORS = ((213, 94, 0), (0, 114, 178))
font = ImageFont.load_default  # takes the size in pixels


def newest_run():
    """The folder of the run that was saved last, or runs/, which `train.load` finds empty."""
    checkpoints = Path("runs").glob("*/model.pt")
    return max(checkpoints, key=getmtime, default=Path("runs/model.pt")).parent


def write(picture, path):
    """Write a Pillow picture to a file, and say so."""
    picture.save(path, optimize=True)
    print(f"wrote {path}")


# Masks.

EXAMPLE = "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
CELL, LEFT, TOP = 22, 118, 150  # pixels of a pair; of the names beside and above the masks
HIDDEN, OPENED, SEEN = (235, 237, 240), (240, 140, 20), (70, 92, 130)
LEGEND = ((SEEN, "seen under the causal mask too"), (OPENED, "opened by this kind of attention"),
          (HIDDEN, "hidden"))


def draw_masks():
    """The masks of the example side by side. Row: the token that looks."""
    modality = torch.tensor([[IMAGE if name == "img" else TEXT for name in EXAMPLE]])
    generated = torch.arange(len(EXAMPLE))[None] > EXAMPLE.index("<assistant>")
    causal = attention_mask(modality, generated, "causal")[0, 0]
    side = CELL * len(EXAMPLE)
    picture = Image.new("RGB", (LEFT + len(KINDS) * (side + 34), TOP + side + 62), PAPER)
    pen = ImageDraw.Draw(picture)
    names = Image.new("RGB", (110, side), PAPER)  # to be turned and put above each mask
    for t, name in enumerate(EXAMPLE):
        y, color = (t + 0.5) * CELL, (20, 120, 90) if name == "img" else INK
        pen.text((LEFT - 10, TOP + y), name, color, font(15), anchor="rm")
        ImageDraw.Draw(names).text((0, y), name, color, font(15), anchor="lm")
    for i, kind in enumerate(KINDS):
        left = LEFT + i * (side + 34)
        pen.text((left + side / 2, 22), kind, INK, font(24), anchor="mm")
        picture.paste(names.rotate(90, expand=True), (left, TOP - 114))
        mask = attention_mask(modality, generated, kind)[0, 0]
        for q, k in np.ndindex(*mask.shape):
            color = HIDDEN
            if mask[q, k]:
                color = SEEN if causal[q, k] else OPENED
            x, y = left + k * CELL, TOP + q * CELL
            pen.rectangle((x, y, x + CELL - 2, y + CELL - 2), color)
    x, y = LEFT, TOP + side + 33
    for color, meaning in LEGEND:
        pen.rectangle((x, y - 8, x + 16, y + 8), color)
        pen.text((x + 26, y), meaning, INK, font(16), anchor="lm")
        x += 60 + pen.textlength(meaning, font(16))
    text = "row: the token that looks; column: the token looked at"
    pen.text((x, y), text, INK, font(16), anchor="lm")
    return picture


# Pictures of scenes.

SIDE = 256  # of a picture, in pixels


def sheet(pictures, lines):
    """Square pictures, each above its lines of text: a list of (text, color) for each picture."""
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = 292, SIDE + 28 + 22 * max(map(len, lines))  # with margin and text
    whole = Image.new("RGB", (width * columns, height * rows + 14), PAPER)
    pen = ImageDraw.Draw(whole)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        x, y = 14 + column * width, 14 + row * height
        whole.paste(Image.fromarray(picture).resize((SIDE, SIDE)), (x, y))
        y += SIDE + 6
        for text, color in lines[i]:
            pen.text((x, y), text, color, font(15))
            y += 22
    return whole


def answer_lines(run, questions):
    """Three questions about each of twelve test scenes, and a run's answers, wrong ones in red."""
    examples = []
    for i in range(12):
        asked = [example for example in questions if example.picture == i]
        exist, others = asked[:2], asked[2:]
        n = len(others)
        examples += [exist[i % 2], others[2 * i % n], others[(2 * i + 1) % n]]
    images = make_world("test", 12, size=run[0].config.image_size).images
    lines = [[] for _ in images]
    for example, answer in zip(examples, eval_pope.ask(run, images, examples)):
        text, color = f"    {answer}", GREEN
        if answer != example.answer:
            text, color = f"{text}   (right: {example.answer})", RED
        lines[example.picture] += [(example.prompt, INK), (text, color)]
    return lines


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=("masks", "scenes", "answers"))
    parser.add_argument("run", nargs="?", help="of the answers (default: the newest run)")
    options = parser.parse_args()
    world = make_world("test", 12, size=SIDE)
    if options.figure == "masks":
        picture = draw_masks()
    elif options.figure == "scenes":
        texts = [example.answer.split(", ") for example in world.captions]
        picture = sheet(world.images, [[(text, INK) for text in lines] for lines in texts])
    else:
        run = load(options.run or newest_run(), pick_device())
        picture = sheet(world.images, answer_lines(run, world.questions))
    write(picture, f"results/{options.figure}.png")


if __name__ == "__main__":
    main()
