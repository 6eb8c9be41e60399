"""Ask a trained model about a picture, and see where it looks.

    python -m extras.sample                                    the newest run and a test scene
    python -m extras.sample --image photo.jpg --question "Is there a boat in the image?"

The picture is written to sample.png. With an answer it is shown twice: in the second one, the
brighter an image token, the more the answer looks at it.
"""
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from os.path import getmtime
from pathlib import Path
from random import randrange

import numpy as np
import torch
from PIL import Image

from data import FIRST_SEED, IMAGE_ID, Dataset, Example, draw, load_picture, make_scene
from extras.figures import write
from model import PATCH
from train import answer, load, pick_device


@torch.inference_mode()
def look(run, picture, question):
    """Ask a run, as `train.load` returns it. picture: (image_size, image_size, 3) uint8.

    Returns the answer, and how strongly it looks at each image token: (n,), the mean over layers
    and heads. SystemExit if the question is too long.
    """
    model, tokenizer, checkpoint = run
    example = Example(0, question, "?" * 16, "")  # leaves room for an answer of 16 tokens
    order = checkpoint["options"]["order"]
    dataset = Dataset([example], picture[None], tokenizer, model.config, order)
    [text] = answer(model, dataset)
    batch = dataset.batch([0], model.token.weight.device, prompts_only=True)
    x = model.embed(batch["images"], batch["ids"], batch["modality"])
    x = x + model.position(model.positions(batch["modality"]))  # (1, T, D)
    mask = model.mask(batch["modality"], batch["generated"])
    weights = []
    for block in model.blocks:
        q, k, _ = block.attention.queries_keys_values(block.norm1(x))
        # The last token of the prompt predicts the answer.
        weights.append(block.attention.weights(q, k, mask)[0, :, -1].mean(0))  # (T,)
        x = block(x, mask)
    return text, torch.stack(weights).mean(0)[batch["ids"][0] == IMAGE_ID].cpu().numpy()


def spotlight(picture, weights):
    """The picture, its image tokens as bright as their weights (n,): 0 is dark."""
    side = len(picture) // PATCH
    light = (weights / weights.max()).reshape(side, side, 1)
    light = light.repeat(PATCH, 0).repeat(PATCH, 1)  # (image_size, image_size, 1)
    return np.uint8(picture * (0.12 + 0.88 * light))


def show(path, *pictures):
    """Write pictures side by side."""
    picture = Image.fromarray(np.hstack(pictures))
    write(picture.resize((256 * len(pictures), 256)), path)


def main():
    """The command line."""
    sys.stdout.reconfigure(errors="backslashreplace")  # no name of a file ends a run
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", nargs="?", help="run folder or checkpoint (default: the newest run)")
    add("--image", metavar="FILE", type=Path, help="a picture of yours (default: a test scene)")
    add("--scene", metavar="N", type=int, default=randrange(1000), help="test scene (default: any)")
    add("--question", metavar="TEXT", help="ask this and end (default: ask again and again)")
    add("--out", metavar="FILE", default="sample.png", help="what to draw (default: sample.png)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    newest = max(Path("runs").glob("*/model.pt"), key=getmtime, default="runs")
    run = model, *_ = load(options.run or newest, pick_device(options.device))
    if options.image:
        picture = load_picture(options.image, model.config.image_size)
        if picture is None:  # load_picture has said why
            raise SystemExit(1)
    else:
        print(f"test scene {options.scene} (--scene {options.scene} shows it again)")
        picture = draw(make_scene(FIRST_SEED["test"] + options.scene), model.config.image_size)
    try:
        show(options.out, picture)
    except (OSError, ValueError) as error:  # ValueError: no picture format has this ending
        raise SystemExit(f"--out {options.out}: cannot be written ({error})")
    ask = "Ask about the picture (an empty line ends): "
    with suppress(EOFError, KeyboardInterrupt):
        while question := options.question or input(ask):
            try:
                text, weights = look(run, picture, question)
            except SystemExit as error:  # the question is too long
                if options.question:
                    raise
                print(error)
                continue
            print(f"{model.attention}: {text}")
            print(f"up to {weights.max():.0%} of its attention goes to one image token")
            show(options.out, picture, spotlight(picture, weights))
            if options.question:
                break


if __name__ == "__main__":
    main()
