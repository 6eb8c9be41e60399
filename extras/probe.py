"""What do image tokens know of the question? A linear probe on them, layer by layer.

    python -m extras.probe runs/compare-causal-* runs/compare-mma-*

"Is there a fish in the image?" is asked where there is one fish. A linear map, fitted on training
scenes with the answers known, gives each image token a score for how much of the fish is in its
patch. Found: how often, on validation scenes, the token with the highest score is one that shows
some of the fish. A model that reads the picture without the question can't do better than the
chance that is printed above, or than guessing where such things lie. Layer 0 is the input.
exist_color is the accuracy of "Is there a red fish in the image?" in the run's last validation.
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F

from data import FIRST_SEED, SIZE, Dataset, Example, draw, exist_question, make_scene
from extras.tables import percents, table
from mma import IMAGE
from model import PATCH
from train import load


def overlap(o):
    """Share of an object that is in each patch of its picture: (n,)."""
    shown = np.zeros((SIZE, SIZE))
    left = o.x - o.size // 2
    top = o.y - o.size // 2
    shown[top:top + o.size, left:left + o.size] = 1
    patches = shown.reshape(SIZE // PATCH, PATCH, SIZE // PATCH, PATCH)
    return patches.sum((1, 3)).flatten() / o.size ** 2


def asked(part, n):
    """Questions about the only object of its name -> (images, examples, overlaps (N, n))."""
    images, examples, overlaps = [], [], []
    for i in range(n):
        scene = make_scene(FIRST_SEED[part] + i)
        names = [o.name for o in scene.objects]
        images.append(draw(scene))
        for o in Random(i).sample(scene.objects, len(scene.objects)):
            if names.count(o.name) == 1:
                examples.append(Example(i, exist_question(o.name), "yes", "exist"))
                overlaps.append(overlap(o))
                break
    return np.stack(images), examples, torch.tensor(np.stack(overlaps))


@torch.inference_mode()
def image_tokens(run, images, examples):
    """Image tokens before the decoder and after each of its layers: list of (N, n, D + 1)."""
    model, tokenizer, checkpoint = run
    data = Dataset(examples, images, tokenizer, model.config, checkpoint["options"]["order"])
    batch = data.batch(range(len(examples)), prompts_only=True)
    modality = batch["modality"]
    x = model.embed(batch["images"], batch["ids"], modality, batch["image_index"])
    x = x + model.position(model.positions(modality))
    seen = [x]
    for layer, block in enumerate(model.blocks):
        x = block(x, model.mask(modality, batch["generated"], layer))
        seen.append(x)
    tokens = [x[modality == IMAGE].unflatten(0, (len(examples), -1)) for x in seen]
    # A 1 for the bias; in float32 `lstsq` drops directions that count.
    return [F.pad(x.double(), (0, 1), value=1) for x in tokens]


def probe(run, train, test):
    """How often the highest score is on the object, for each layer. train, test: of `asked`."""
    wanted = train[2].double().reshape(-1, 1)
    shares = []
    for known, x in zip(image_tokens(run, *train[:2]), image_tokens(run, *test[:2])):
        weights = torch.linalg.lstsq(known.flatten(0, 1), wanted).solution
        best = (x @ weights).argmax(1)  # (N, 1)
        found = test[2].gather(1, best) > 0
        shares.append(found.double().mean().item())
    return shares


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="finished runs about the picture world")
    options = parser.parse_args()
    train, test = asked("train", 3000), asked("val", 500)
    rows = []
    for path in options.runs:
        run = load(path)
        shares = probe(run, train, test)
        layers = {f"layer {i}": percents([share]) for i, share in enumerate(shares)}
        accuracy = run[2]["log"][-1]["accuracy"]["exist_color"]
        rows.append({"run": Path(path).name, **layers, "exist_color": percents([accuracy])})
    chance = (test[2] > 0).double().mean()
    print(f"chance: {percents([chance])} %\n\n{table(rows)}")


if __name__ == "__main__":
    main()
