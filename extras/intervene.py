"""Where MMA works: change the mask of a trained model layer by layer, and see what it answers.

    python -m extras.intervene runs/mma-*    asks these runs, and ends with the table of all
    python -m extras.intervene --table       the table of all runs that were asked

The answers' shares go to results/interventions.jsonl, the picture of them to results/layers.png.

Nothing is trained; validation scenes are asked about. There are two interventions on the edges
image -> question, each in some of the layers:

closed   The image tokens do not see the question there, as under causal attention. For runs with
         the question before the picture, too.
swapped  There are two questions A and B about a picture. The text sees B alone, and so do the image
         tokens, but in these layers they see A instead. Whose answer is given?
"""
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from data import (FIRST_SEED, NO_YES, OBJECTS, Dataset, Example, draw, exist_question, make_scene,
                  read_lines, unambiguous)
from eval_pope import ask
from extras.figures import COLORS, INK, PAPER, font, write
from extras.tables import percents, table
from extras.variants import Intervened, TwoQuestions
from train import accuracy_by_kind, load

LINES = Path("results/interventions.jsonl")
KINDS = {  # of the questions, with an example
    "exist": "Is there a fish?", "exist_color": "Is there a red fish?",
    "color": "What color is the fish?", "where": "Where is the fish?",
    "where_color": "Where is the red fish?", "what": "What is at top-left?"}
SCENES = 500
NEITHER = (215, 215, 215)


def pairs_of_questions(scenes):
    """Yields (A, B): Examples of one kind, about one scene, with different answers."""
    rng = Random(0)
    for i, scene in enumerate(scenes):
        names = [o.name for o in scene.objects]
        exist = [(exist_question(name), NO_YES[name in names]) for name in OBJECTS]
        for kind, asked in {"exist": exist, **unambiguous(scene)}.items():
            examples = [Example(i, *pair, kind) for pair in asked]
            wanted = rng.choice(sorted({e.answer for e in examples} or [""]))
            own = [e for e in examples if e.answer == wanted]
            others = [e for e in examples if e.answer != wanted]
            if own and others:
                yield rng.choice(own), rng.choice(others)


def ask_run(path):
    """Yields the lines of a trained run; kinds: the shares of A's answer and of B's answer."""
    run = model, _, checkpoint = load(path, model_class=Intervened)
    options = checkpoint["options"]
    row = options["attention"] if options["order"] == "image-first" else options["order"]
    scenes = [make_scene(FIRST_SEED["val"] + i) for i in range(SCENES)]
    images = np.stack([draw(scene, model.config.image_size) for scene in scenes])
    pairs = list(pairs_of_questions(scenes))
    changes = ("closed", "swapped") if row == "mma" else ("closed",)
    all_layers = list(range(model.config.layers))
    some = [*([layer] for layer in all_layers), all_layers[1:], all_layers]
    for change, layers in [("closed", []), *product(changes, some)]:
        model.closed = model.swapped = []
        setattr(model, change, layers)
        examples, dataset_class = [b for _, b in pairs], Dataset
        if change == "swapped":
            examples = [b._replace(prompt=a.prompt + b.prompt) for a, b in pairs]
            dataset_class = TwoQuestions
        answers = ask(run, images, examples, dataset_class)
        of_a, of_b = (accuracy_by_kind(asked, answers) for asked in zip(*pairs))
        kinds = {kind: [round(of_a[kind], 4), round(of_b[kind], 4)] for kind in KINDS}
        yield {"run": Path(path).name, "row": row, "seed": options["seed"], "change": change,
               "layers": layers, "kinds": kinds}


def layer_table(lines):
    """Markdown: shares of the answers in percent, every run. Layers count from 1."""
    groups, rows = {}, []
    for line in lines:
        layers = " ".join(str(layer + 1) for layer in line["layers"]) or "none"
        groups.setdefault((line["row"], line["change"], layers), []).append(line)
    for (name, change, layers), runs in groups.items():
        answers = {"right": 1} if change == "closed" else {"A": 0, "B": 1}
        for whose, i in answers.items():
            row = {"row": name, "change": change, "in layers": layers, "answer": whose}
            rows.append(row | {k: percents(run["kinds"][k][i] for run in runs) for k in KINDS})
    return table(rows)


def draw_layers(lines):
    """Runs of four layers, swapped in layer 1 and in all others: whose question is answered?"""
    picture = Image.new("RGB", (1120, 720), PAPER)
    pen = ImageDraw.Draw(picture)
    title = "The text sees question B, image tokens A in some layers. Whose question is answered?"
    pen.text((20, 16), title, INK, font(24))
    swapped = [line for line in lines if line["change"] == "swapped"]
    for left, layers, title in ((260, [0], "A in layer 1 alone"),
                                (700, [1, 2, 3], "A in layers 2 3 4")):
        runs = [line for line in swapped if line["layers"] == layers]
        pen.text((left, 66), title, INK, font(20))
        for y, (kind, example) in zip(range(104, 644, 90), KINDS.items()):
            pen.text((246, y + 36), example, INK, font(18), anchor="rm")
            for i, run in enumerate(runs):  # a bar each
                top = y + 72 * i / len(runs)
                bottom = y + 72 * (i + 1) / len(runs) - 2
                a, b = run["kinds"][kind]
                for share, color in ((1, NEITHER), (a + b, COLORS[1]), (a, COLORS[0])):
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
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="runs of --attention mma or --order text-first")
    parser.add_argument("--table", action="store_true", help="ask nothing")
    options = parser.parse_args()
    lines = [line for _, line in read_lines(LINES)] if LINES.exists() else []
    for path in [] if options.table else options.runs:
        lines = [line for line in lines if line["run"] != Path(path).name]  # asked anew
        lines += ask_run(path)
        lines.sort(key=lambda line: line["seed"])
        LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(layer_table(lines))
    write(draw_layers(lines), "results/layers.png")


if __name__ == "__main__":
    main()
