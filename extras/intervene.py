"""Where MMA works: change the mask of a trained model layer by layer, and see what it answers.

    python -m extras.intervene runs/mma-*    asks these runs, and ends with the table of all
    python -m extras.intervene --table       the table of all runs that were asked

The answers' shares go to results/interventions.jsonl, the picture of them to results/layers.png.

Nothing is trained. Two interventions on the edges image -> question, each in some of the layers:

closed   The image tokens do not see the question there, as under causal attention. For runs with
         the question before the picture, too.
swapped  There are two questions A and B about a picture. The text sees B alone, and so do the image
         tokens, but in these layers they see A instead. Whose answer is given?

Asks validation scenes.
"""
import argparse
import json
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from data import (FIRST_SEED, NO_YES, OBJECTS, Dataset, Example, draw, exist_question, make_scene,
                  read_lines, unambiguous)
from extras.tables import percents, table
from extras.figures import COLORS, INK, PAPER, font, write
from extras.variants import Intervened, TwoQuestions
from model import answer
from train import load

LINES = Path("results/interventions.jsonl")
KINDS = {  # of the questions, with an example
    "exist": "Is there a fish?", "exist_color": "Is there a red fish?",
    "color": "What color is the fish?", "where": "Where is the fish?",
    "where_color": "Where is the red fish?", "what": "What is at top-left?"}
SCENES = 500
CHANGES = {"mma": ("closed", "swapped"), "text-first": ("closed",)}  # of a row of compare.py
NEITHER = (215, 215, 215)


def pairs_of_questions(scenes, seed=0):
    """Yields (index of the scene, kind, (question A, answer A), (question B, answer B)).

    Both are of one kind and about one scene, and their answers differ.
    """
    rng = Random(seed)
    for i, scene in enumerate(scenes):
        names = [o.name for o in scene.objects]
        exist = [(exist_question(name), NO_YES[name in names]) for name in OBJECTS]
        for kind, asked in {"exist": exist, **unambiguous(scene)}.items():
            wanted = rng.choice(sorted({text for _, text in asked} or [""]))
            own = [pair for pair in asked if pair[1] == wanted]
            others = [pair for pair in asked if pair[1] != wanted]
            if own and others:
                yield i, kind, rng.choice(own), rng.choice(others)


def interventions(layers, changes):
    """All that is tried in a decoder of so many layers: yields (name, layers)."""
    yield "closed", []
    for name in changes:
        yield from ((name, [layer]) for layer in range(layers))
        yield name, list(range(1, layers))
        yield name, list(range(layers))


def ask_run(path):
    """Yields the lines of a trained run; kinds: the shares of A's answer and of B's answer."""
    model, tokenizer, checkpoint = load(path, model_class=Intervened)
    options = checkpoint["options"]
    row = options["attention"] if options["order"] == "image-first" else options["order"]
    if row not in CHANGES:
        raise SystemExit(f"{path}: --attention mma or --order text-first is wanted")
    scenes = [make_scene(FIRST_SEED["val"] + i) for i in range(SCENES)]
    images = np.stack([draw(scene, model.config.image_size) for scene in scenes])
    asked = list(pairs_of_questions(scenes))
    for name, layers in interventions(model.config.layers, CHANGES[row]):
        model.closed, model.swapped = (layers, []) if name == "closed" else ([], layers)
        examples, maker = [], Dataset if name == "closed" else TwoQuestions
        for i, kind, a, b in asked:
            prompt = b[0] if name == "closed" else a[0] + b[0]
            examples.append(Example(i, prompt, b[1], kind))
        dataset = maker(examples, images, tokenizer, model.config, options["order"])
        given = answer(model, dataset)
        found = {kind: [] for kind in KINDS}
        for (_, kind, a, b), text in zip(asked, given):
            found[kind].append([text == a[1], text == b[1]])
        shares = {kind: np.mean(both, axis=0).round(4).tolist() for kind, both in found.items()}
        yield {"run": Path(path).name, "row": row, "seed": options["seed"], "change": name,
               "layers": layers, "kinds": shares}


def grouped(lines):
    """(row, change, layers from 1) -> the lines of all runs, by seed."""
    groups = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        layers = " ".join(str(layer + 1) for layer in line["layers"]) or "none"
        groups.setdefault((line["row"], line["change"], layers), []).append(line)
    return groups


def layer_table(lines):
    """Markdown: shares of the answers in percent, every run."""
    rows = []
    for (name, change, layers), runs in grouped(lines).items():
        for i, whose in ((1, "right"),) if change == "closed" else ((0, "A"), (1, "B")):
            row = {"row": name, "change": change, "in layers": layers, "answer": whose}
            rows.append(row | {k: percents(run["kinds"][k][i] for run in runs) for k in KINDS})
    return table(rows)


def draw_layers(lines):
    """The picture of a swap in layer 1 and of one in all others: whose question is answered."""
    picture = Image.new("RGB", (1120, 720), PAPER)
    pen = ImageDraw.Draw(picture)
    title = "The text sees question B, image tokens A in some layers. Whose question is answered?"
    pen.text((20, 16), title, INK, font(24))
    groups = grouped(lines)
    later = max((layers for *_, layers in groups if layers.startswith("2")), key=len)
    for left, layers, title in ((260, "1", "A in layer 1 alone"),
                                (700, later, f"A in layers {later}")):
        runs = groups["mma", "swapped", layers]
        pen.text((left, 66), title, INK, font(20))
        for y, (kind, example) in zip(range(104, 644, 90), KINDS.items()):
            pen.text((246, y + 36), example, INK, font(18), anchor="rm")
            for i, run in enumerate(runs):  # a bar each
                top, bottom = y + 72 * i / len(runs), y + 72 * (i + 1) / len(runs) - 2
                a, both = np.cumsum(run["kinds"][kind])
                for share, color in ((1, NEITHER), (both, COLORS[1]), (a, COLORS[0])):
                    if share > 0:
                        pen.rectangle((left, top, left + 400 * share, bottom), color)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    pen.text((1100, 677), f"a bar each, from the top: seeds {seeds}", INK, font(20), anchor="rm")
    for x, color, text in ((260, COLORS[0], "A"), (330, COLORS[1], "B"), (400, NEITHER, "neither")):
        pen.rectangle((x, 668, x + 18, 686), color)
        pen.text((x + 28, 677), text, INK, font(20), anchor="lm")
    return picture


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="runs of --attention mma or --order text-first")
    parser.add_argument("--table", action="store_true", help="ask nothing")
    options = parser.parse_args()
    lines = [line for _, line in read_lines(LINES)] if LINES.exists() else []
    for path in [] if options.table else options.runs:
        lines = [line for line in lines if line["run"] != Path(path).name]  # asked anew
        lines += ask_run(path)
        LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not lines:
        parser.error("no run was asked yet: name one")
    print(layer_table(lines))
    write(draw_layers(lines), "results/layers.png")


if __name__ == "__main__":
    main()
