"""The project's pictures: masks, scenes, answers.

    python -m extras.figures masks           the four masks of a short example
    python -m extras.figures scenes          scenes of the picture world with their captions
    python -m extras.figures answers [RUN]   test scenes with questions and the answers of a run

Each writes results/NAME.png, or the file given with --out.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import eval_pope
from data import FIRST_SEED, Example, caption, draw, make_scene, questions_about
from mma import IMAGE, KINDS, TEXT, attention_mask
from model import pick_device
from train import load

INK, PAPER = (30, 30, 30), (255, 255, 255)
GREEN, RED = (20, 120, 60), (200, 30, 30)
# Of Okabe and Ito: readers who are color-blind can tell them apart.
COLORS = ((213, 94, 0), (0, 114, 178))


def font(size):
    """Pillow's own font, in pixels."""
    return ImageFont.load_default(size)


def newest_run():
    """The folder of the run that was saved last."""
    checkpoints = sorted(Path("runs").glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise SystemExit("no trained model under runs/; `python train.py` makes one")
    return checkpoints[-1].parent


def write(picture, path):
    """Write a Pillow picture to a file, and say so."""
    try:
        picture.save(path, optimize=True)
    except (OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
        raise SystemExit(f"{path}: cannot be written ({error})")
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


# Scenes.

def sheet(scenes, lines):
    """A picture of scenes, each above its lines of text: a list of (text, color) for each scene."""
    side, width, columns = 256, 292, 4  # width and height: of a scene with its margin and text
    height = side + 22 * max(map(len, lines)) + 28
    rows = -(-len(scenes) // columns)
    picture = Image.new("RGB", (width * columns, height * rows + 14), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, scene in enumerate(scenes):
        row, column = divmod(i, columns)
        x, y = 14 + column * width, 14 + row * height
        picture.paste(Image.fromarray(draw(scene, side)), (x, y))
        for j, (text, color) in enumerate(lines[i]):
            pen.text((x, y + side + 6 + 22 * j), text, color, font(15))
    return picture


def draw_answers(run, scenes):
    """Scenes with three questions each and a run's answers, wrong ones in red."""
    size = run[0].config.image_size
    examples = []
    for i, asked in enumerate(questions_about(scenes, seed=0)):
        exist, others = asked[:2], asked[2:]
        chosen = exist[i % 2], others[2 * i % len(others)], others[(2 * i + 1) % len(others)]
        examples += [Example(i, *question) for question in chosen]
    answers = eval_pope.ask(run, np.stack([draw(scene, size) for scene in scenes]), examples)
    lines = [[] for _ in scenes]
    for example, answer in zip(examples, answers):
        text, color = f"    {answer}", GREEN
        if answer != example.answer:
            text, color = f"{text}   (right: {example.answer})", RED
        lines[example.picture] += [(example.prompt, INK), (text, color)]
    return sheet(scenes, lines)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("figure", choices=("masks", "scenes", "answers"))
    add("run", nargs="?", help="run folder, for answers (default: the newest run)")
    add("--out", metavar="FILE", help="what to write (default: results/FIGURE.png)")
    options = parser.parse_args()
    scenes = [make_scene(FIRST_SEED["test"] + i) for i in range(12)]
    out = options.out or f"results/{options.figure}.png"
    if options.figure == "masks":
        picture = draw_masks()
    elif options.figure == "scenes":
        captions = [[(text, INK) for text in caption(scene).split(", ")] for scene in scenes]
        picture = sheet(scenes, captions)
    else:
        picture = draw_answers(load(options.run or newest_run(), pick_device()), scenes)
    write(picture, out)


if __name__ == "__main__":
    main()
