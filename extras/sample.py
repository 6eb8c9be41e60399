"""Ask models about a picture, and see where their answers look.

    python -m extras.sample                                    your newest finished run
    python -m extras.sample runs/causal-seed0 runs/mma-seed0   several, side by side
    python -m extras.sample --image photo.jpg --question "Is there a boat in the image?"

If there is no finished run it asks the two models of results/. The picture is in sample.png; after
each answer it also shows where the model looked: the brighter an image token, the more of the
attention of the answer it gets.
"""
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from functools import partial
from os.path import getmtime
from pathlib import Path
from random import Random, randrange

import numpy as np
from PIL import Image

from data import (COLORS, FIRST_SEED, NO_YES, OBJECTS, draw, exist_question, load_picture,
                  make_scene)
from extras.figures import INK, blank, entries_of_test, look, put, spotlight
from extras.intervene import all_questions
from train import load, pick_device

SHIPPED = ["results/causal.pt", "results/mma.pt"]


def held_out(checkpoint, number):
    """A picture that a run was not trained on: (function of its size -> picture, right, to_try).

    right: a dict of all questions that have one right answer -> that answer, as far as is known.
    to_try: at most six of them.
    """
    rng = Random(number)
    folder = checkpoint["options"]["data"]
    if not folder:
        scene = make_scene(FIRST_SEED["test"] + number)
        things = {f"{o.color} {o.name}" for o in scene.objects}
        asked = [f"{color} {name}" for color in COLORS for name in OBJECTS]
        right = {exist_question(thing): NO_YES[thing in things] for thing in asked}
        pairs_of = all_questions(scene)
        for pairs in pairs_of.values():
            right |= dict(pairs)
        return partial(draw, scene), right, [rng.choice(x)[0] for x in pairs_of.values() if x]
    known = {*checkpoint["trained_on"]}
    entries = [e for e in entries_of_test(folder) if e["hash"] not in known]
    file = entries[number % len(entries)]["file"]
    entries = [e for e in entries if e["file"] == file]
    right = {exist_question(thing): "yes" for e in entries for thing in e["objects"]}
    right |= {e["question"]: e["answer"] for e in entries if "question" in e}
    return partial(load_picture, file), right, rng.sample([*right], min(6, len(right)))


def complete(question):
    """As it was asked in training: "Is there a cup" -> "Is there a cup in the image?"."""
    question = question.strip().rstrip("?").rstrip()
    if question.startswith("Is there") and not question.endswith("in the image"):
        question += " in the image"
    return question + "?"


def doubts(question, tokenizer, checkpoint):
    """Yields what speaks against the answer of a run."""
    if not checkpoint["finished"] or checkpoint["stage"] == "pretrain":
        yield f"it has not learned to answer yet ({checkpoint['stage']} step {checkpoint['step']})"
    unknown = [x.strip() for x in tokenizer.PIECE.findall(question) if x not in tokenizer.id_of]
    if any(map(str.isalnum, unknown)):
        yield f"it has never read {', '.join(filter(str.isalnum, unknown))}"
    elif question not in checkpoint.get("usual", {"answers": [question]})["answers"]:
        yield "it was never asked this in training"


def introduce(run):
    """Print what a run can know."""
    options, shown = run[2]["options"], run[2].get("usual", {}).get("shown", {})
    things = [re.sub("^Is there an? | in the image.$", "", question) for question in shown]
    things.sort(key=lambda thing: -shown[exist_question(thing)])
    more = f" and {len(things) - 20} more" if len(things) > 20 else ""
    print(f"It knows {'photographs' if options['data'] else 'drawn pictures'}, and has been asked "
          f"for these things: {', '.join(things[:20])}{more}.")


def in_terminal(picture):
    """Print a picture, two pixels in each character."""
    rows = np.array(Image.fromarray(picture).resize((64, 64)))
    for pair in zip(rows[::2], rows[1::2]):
        colors = ["{};{};{}".format(*color) for row in zip(*pair) for color in row]
        cells = [f"\033[38;2;{top};48;2;{bottom}m\u2580"
                 for top, bottom in zip(colors[::2], colors[1::2])]
        print("".join(cells) + "\033[0m")


def show(path, pictures, texts):
    """Write pictures side by side, a text below each."""
    sheet, pen = blank(266 * len(pictures) - 10, 306)
    for n, (picture, text) in enumerate(zip(pictures, texts)):
        sheet.paste(Image.fromarray(picture).resize((256, 256)), (266 * n, 0))
        put(pen, 266 * n + 2, 260, text, 18, INK, "la", 28)
    sheet.save(path)


def main():
    """The command line."""
    sys.stdout.reconfigure(errors="backslashreplace")  # no name of a file ends a run
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="*", help="run folders or checkpoints (default: the newest finished)")
    add("--image", metavar="FILE", type=Path, help="a picture of yours (default: a test picture)")
    add("--scene", metavar="N", type=int, default=randrange(1000), help="test picture (any)")
    add("--question", metavar="TEXT", help="ask this and end (default: ask again and again)")
    add("--out", metavar="FILE", default="sample.png", help="what to draw (default: sample.png)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    if options.scene < 0:
        parser.error("--scene must be 0 or more")
    saved = sorted(Path("runs").glob("*/model.pt"), key=getmtime, reverse=True)
    paths = options.runs or [next((x for x in saved if load(x)[2]["finished"]), None)]
    if paths == [None]:
        print("No finished run of yours in runs/: here are the two models of results/.")
        paths = [Path(__file__).parent.parent / name for name in SHIPPED]
    runs = [load(path, pick_device(options.device)) for path in paths]
    picture_of, right, to_try = held_out(runs[0][2], options.scene)
    if options.image:
        picture_of, right = partial(load_picture, options.image), {}
        if not runs[0][2]["options"]["data"]:
            print("It has only seen drawn pictures: in a photograph it will see drawn things.")
    else:
        print(f"This is test picture {options.scene} (--scene {options.scene} shows it again).")
    if picture_of(64) is None:  # load_picture has said why
        raise SystemExit(1)
    pictures = [picture_of(model.config.image_size) for model, *_ in runs]
    if sys.stdout.isatty():
        in_terminal(pictures[0])
    try:
        show(options.out, pictures[:1], [""])
    except (OSError, ValueError) as error:  # ValueError: no picture format has this ending
        raise SystemExit(f"--out {options.out}: cannot be written ({error})")
    print(f"The picture is in {options.out}; after an answer it shows where the model looked, too.")
    if not options.question:
        introduce(runs[0])
        print("Try:", *to_try, sep="\n  ")
    ask = "Ask about the picture (an empty line ends): "
    questions = [options.question] if options.question else iter(partial(input, ask), "")
    too_long = () if options.question else SystemExit  # Dataset prints what is too long
    with suppress(EOFError, KeyboardInterrupt):
        for question in map(complete, questions):
            with suppress(too_long):
                found = [look(run, picture, question) for run, picture in zip(runs, pictures)]
                texts = [f"{run[0].attention}: {text}" for run, (text, _) in zip(runs, found)]
                truth = f"   (right: {right[question]})" if question in right else ""
                print("   ".join(texts) + truth)
                but = [*doubts(question, *runs[0][1:])]
                drawn = right and not runs[0][2]["options"]["data"]  # there all answers are known
                if drawn and not but and question not in right:
                    but = ["what it asks for is not there, or more than once"]
                for doubt in but:
                    print(f"  but {doubt}")
                lit = [spotlight(p, weights) for p, (_, weights) in zip(pictures, found)]
                show(options.out, [pictures[0], *lit], [question, *texts])


if __name__ == "__main__":
    main()
