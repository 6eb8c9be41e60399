"""What do image tokens know of the question? A linear probe on them, layer by layer.

    python -m extras.probe runs/compare-causal-* runs/compare-mma-*

"Is there a fish in the image?" is asked where there is one fish. A linear map, fitted on training
scenes with the answers known, gives each image token a score for how much of the fish is in its
patch. Found: how often, on validation scenes, the token with the highest score is one that shows
some of the fish. A model that reads the picture without the question can't do better than the
chance that is printed above, or than guessing where such things lie. Layer 0 is the input.
exist_color is the accuracy of "Is there a red fish in the image?" in the run's last validation.
"""
import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch

from data import FIRST_SEED, Dataset, Example, draw, exist_question, make_scene
from extras.tables import percents, table
from mma import IMAGE
from model import PATCH
from train import load


def overlap(o, side):
    """Share of an object that is in each patch of the picture: (side * side,)."""
    def along(center):
        low, start = center - o.size // 2, PATCH * np.arange(side)
        return np.clip(np.minimum(low + o.size, start + PATCH) - np.maximum(low, start), 0, None)
    return (np.outer(along(o.y), along(o.x)) / o.size ** 2).reshape(-1)


def asked(part, n):
    """Questions about the only object of its name -> (images, examples, overlaps (N, n))."""
    images, examples, overlaps = [], [], []
    for i in range(n):
        scene, rng = make_scene(FIRST_SEED[part] + i), Random(i)
        names = [o.name for o in scene.objects]
        images.append(draw(scene))
        for o in rng.sample(scene.objects, len(scene.objects)):
            if names.count(o.name) == 1:
                examples.append(Example(i, exist_question(o.name), "yes", "exist"))
                overlaps.append(overlap(o, 64 // PATCH))
                break
    return np.stack(images), examples, np.stack(overlaps)


@torch.inference_mode()
def image_tokens(run, images, examples):
    """Image tokens before the decoder and after each of its layers: list of (N, n, D + 1)."""
    model, tokenizer, checkpoint = run
    data = Dataset(examples, images, tokenizer, model.config, checkpoint["options"]["order"])
    seen = []
    hooks = [block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
             for block in model.blocks]
    batch = data.batch(range(len(examples)), prompts_only=True)
    model(**batch)
    for hook in hooks:
        hook.remove()
    layers = [seen[0][0], *(output for _, output in seen)]
    n = model.config.image_tokens
    tokens = [layer[batch["modality"] == IMAGE].unflatten(0, (-1, n)) for layer in layers]
    return [torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in tokens]


def probe(run, train, test):
    """How often the highest score is on the object, for each layer. train, test: of `asked`."""
    fitted, found = image_tokens(run, *train[:2]), image_tokens(run, *test[:2])
    wanted = torch.from_numpy(train[2]).float().reshape(-1, 1)
    on_object = torch.from_numpy(test[2]) > 0
    shares = []
    for x, held_out in zip(fitted, found):
        weights = torch.linalg.lstsq(x.flatten(0, 1), wanted).solution
        best = (held_out @ weights).argmax(1)  # (N, 1)
        shares.append(on_object.gather(1, best).double().mean().item())
    return shares


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="finished runs about the picture world")
    options = parser.parse_args()
    train, test = asked("train", 3000), asked("val", 500)
    rows = []
    for path in options.runs:
        run = load(path)
        row = {"run": Path(path).name}
        for layer, share in enumerate(probe(run, train, test)):
            row[f"layer {layer}"] = percents([share])
        row["exist_color"] = percents([run[2]["log"][-1]["accuracy"]["exist_color"]])
        rows.append(row)
    print(f"chance: {percents([(test[2] > 0).mean()])} %\n\n{table(rows)}")


if __name__ == "__main__":
    main()
