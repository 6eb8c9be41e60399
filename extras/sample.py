"""Ask a trained model about a picture, and see where it looks.

    python -m extras.sample                                    the newest run and a test scene
    python -m extras.sample --image photo.jpg --question "Is there a boat in the image?"

The picture is written to sample.png. With an answer it is shown twice: in the second one, the
brighter an image token, the more the answer looks at it.
"""
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from functools import partial
from os.path import getmtime
from pathlib import Path
from random import randrange

import numpy as np
from PIL import Image

from data import FIRST_SEED, draw, load_picture, make_scene
from extras.figures import look, spotlight, write
from train import load, pick_device


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
    questions = [options.question] if options.question else iter(partial(input, ask), "")
    too_long = () if options.question else SystemExit  # Dataset prints what is too long
    with suppress(EOFError, KeyboardInterrupt):
        for question in questions:
            with suppress(too_long):
                text, weights = look(run, picture, question)
                print(f"{model.attention}: {text}")
                print(f"up to {weights.max():.0%} of its attention goes to one image token")
                show(options.out, picture, spotlight(picture, weights))


if __name__ == "__main__":
    main()
