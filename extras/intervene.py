"""Where MMA works: in some layers, show the image tokens of a trained model another question.

    python -m extras.intervene runs/mma-*

There are two questions A and B about a picture, such as "What color is the cup?" and "What color
is the fish?". The text sees B alone. Image tokens see B as well, but A in its place in some layers.
Which question is answered? It prints one table for all runs, and draws an example of the last run
in results/swap.png.
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from random import Random

import numpy as np
import torch
from PIL import Image

from data import (FIRST_SEED, NO_YES, OBJECTS, Dataset, Example, draw, exist_question, make_scene,
                  make_world, unambiguous)
from eval_pope import ask
from extras.figures import BLUE, INK, ORANGE, blank, put, table, write
from mma import IMAGE, PAD, TEXT, attention_mask
from model import MultimodalGPT
from train import load, pick_device

OTHER = 2  # the modality of the tokens of question A
KINDS = "exist", "color", "where", "what", "exist_color", "where_color"  # columns of the table
SCENES = 500  # of validation


class Intervened(MultimodalGPT):
    """A model whose image tokens see question A in some layers, and question B in all others."""
    swapped = ()  # the layers in which they see A; the first is 0

    def mask(self, modality, generated):
        """A mask for each layer, (layers, B, 1, T, T) bool; the tokens of A are OTHER."""
        a = modality == OTHER
        b = (modality == TEXT) & (a.cumsum(1) > 0)  # all text from question B on
        seen = attention_mask(modality.where(~a, TEXT), generated, self.attention)
        seen &= ~(b[:, :, None] & a[:, None, :])[:, None]  # the text never sees A
        image = (modality == IMAGE)[:, None, :, None]
        hidden = [b if layer in self.swapped else a for layer in range(len(self.blocks))]
        return torch.stack([seen & ~(image & h[:, None, None, :]) for h in hidden])

    def decode(self, x, mask, caches=None):
        for i, block in enumerate(self.blocks):
            x = block(x, mask[i], None if caches is None else caches[i])
        return x

    def positions(self, modality):
        """(B, T): A and B begin at the same position, as if each stood alone."""
        a = modality == OTHER
        alone = super().positions(modality.where(~a, PAD))
        return super().positions(modality).where(a, alone)


class TwoQuestions(Dataset):
    """Examples with a pair (A, B) as prompt and as answer. A stands before B, as OTHER."""

    def layout(self, example):
        both = "".join(example.prompt)
        return super().layout(example._replace(prompt=both, answer=example.answer[1]))

    def batch(self, indices, device="cpu", prompts_only=False):
        batch = super().batch(indices, device, prompts_only)
        for row, i in zip(batch["modality"], indices):
            start = row.tolist().index(IMAGE) + self.config.image_tokens
            length = len(self.tokenizer.encode(self.examples[i].prompt[0]))
            row[start:start + length] = OTHER
        return batch


def all_questions(scene):
    """Question kind -> all (question, answer) about a Scene, existence included."""
    names = [o.name for o in scene.objects]
    exist = [(exist_question(name), NO_YES[name in names]) for name in OBJECTS]
    return {"exist": exist, **unambiguous(scene)}


def pairs_of_questions(scenes):
    """Yields pairs of questions of one kind about a scene, with different answers, as Examples."""
    rng = Random(0)
    for i, scene in enumerate(scenes):
        for kind, asked in all_questions(scene).items():
            answer = rng.choice(sorted({answer for _, answer in asked} or [""]))
            own = [pair for pair in asked if pair[1] == answer]
            others = [pair for pair in asked if pair[1] != answer]
            if own and others:
                yield Example(i, *zip(rng.choice(own), rng.choice(others)), kind)


def ask_run(path):
    """A run -> (found, example).

    found: which layers see A -> dict: kind -> share of answers to A. example: a pair of questions
    about a color and the answer when layer 1 saw A; one answered for A, if there is any.
    """
    run = model, _, checkpoint = load(path, pick_device(), Intervened)
    options = checkpoint["options"]
    if options["data"] or (model.attention, options["order"]) != ("mma", "image-first"):
        raise SystemExit(f"{path}: not fine-tuned in the picture world under mma, picture first")
    scenes = [make_scene(FIRST_SEED["val"] + i) for i in range(SCENES)]
    part = make_world("val", SCENES, 0, model.config.image_size)
    part = part._replace(questions=list(pairs_of_questions(scenes)))
    layers = [*range(model.config.layers)]
    swapped = {"no layer": [], "layer 1": layers[:1], "layers 2 and on": layers[1:],
               "all layers": layers}
    found = {}
    for name, layers_of_a in swapped.items():
        model.swapped = layers_of_a
        right = defaultdict(list)  # kind -> for each pair, whether it is answered for A
        given = ask(run, part, TwoQuestions)
        if name == "layer 1":
            example = max((x for x in given if x[0].kind == "color"),
                          key=lambda x: x[1] == x[0].answer[0])
        for pair, text in given:
            right[pair.kind].append(text == pair.answer[0])
        found[name] = {kind: np.mean(right[kind]) for kind in KINDS}
    return found, example


def draw_example(found, example):
    """A picture, two questions about it, and the answer. found, example: see `ask_run`."""
    picture, pen = blank(1000, 290)
    pair, text = example
    scene = make_scene(FIRST_SEED["val"] + pair.picture)
    picture.paste(Image.fromarray(draw(scene, 250)), (20, 20))
    (a, b), (right_a, right_b) = pair.prompt, pair.answer
    share = found["layer 1"]["color"]
    lines = [("The text asks", b, f"(right: {right_b})", BLUE),
             ("In layer 1 the image tokens see", a, f"(right: {right_a})", ORANGE),
             ("The model says", text, "", {right_a: ORANGE, right_b: BLUE}.get(text, INK))]
    for n, (who, says, right, color) in enumerate(lines):
        put(pen, 300, 36 + 78 * n, who, 20)
        put(pen, 300, 68 + 78 * n, f"{says}  {right}", 26, color)
    about = f"In {share:.0%} of such questions about colors it answers what the image tokens see."
    put(pen, 300, 262, about, 20)
    return picture


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs of --attention mma in the picture world")
    runs = [ask_run(path) for path in parser.parse_args().runs]
    rows = []
    for layers in runs[0][0]:
        rows.append({"A in": layers})
        for kind in KINDS:
            shares = sorted(round(100 * found[layers][kind]) for found, _ in runs)
            rows[-1][kind] = " to ".join(map(str, dict.fromkeys((shares[0], shares[-1]))))
    print(f"Answers to A, in % (lowest to highest run, of {len(runs)})\n\n{table(rows)}")
    write(draw_example(*runs[-1]), "results/swap.png")


if __name__ == "__main__":
    main()
