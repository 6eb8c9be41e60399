"""The pictures in results/, and what other extras draw and print with.

    python -m extras.figures              look-alikes.png and steps.png, from results/default.jsonl
    python -m extras.figures RUN [RUN]    RUN/answers.png: what one or two runs answer, and where
                                          they look
    python -m extras.figures CAUSAL MMA --ship    answers.png of these, and their weights as
                                          causal.pt and mma.pt, which extras.sample asks
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path
from random import Random
from statistics import median
from textwrap import fill

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data import (FIRST_SEED, IMAGE_ID, NO_YES, Dataset, Example, draw, load_picture, make_scene,
                  read_entries, read_lines)
from eval_pope import ask, own_part
from extras.variants import FISH, look_alikes
from train import answer, load, pick_device

INK, PAPER = (30, 30, 30), (255, 255, 255)
LINE = (235, 237, 240)
GREEN, RED = (20, 120, 60), (200, 30, 30)
EXAMPLE = 291  # seed of the scene that is drawn: five fish, one of them red
STEPS = {300: "-300", 400: "-400", 600: ""}  # of fine-tuning -> end of the name of a row
ORANGE, BLUE = (213, 94, 0), (0, 114, 178)  # the color-blind can tell them apart (Okabe and Ito)
COLORS = ((115, 120, 130), ORANGE)  # of causal and mma


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    lines = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def blank(width, height):
    """An empty picture, and a pen to draw on it. Here all sizes and places are in pixels."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def put(pen, x, y, text, size=18, color=INK, anchor="lm", letters=200):
    """Write a text whose left end, or what `anchor` says, is at (x, y), in one line or two."""
    text = fill(text, letters, max_lines=2, placeholder="...")
    pen.text((x, y), text, color, ImageFont.load_default(size), anchor)


def write(picture, path, shows=""):
    """Write a picture to a file, and say so."""
    picture.save(path, optimize=True)
    print(f"wrote {path}{shows}")


@torch.inference_mode()
def look(run, picture, question, room="?" * 16):
    """Ask a run, as `train.load` returns it. picture: (image_size, image_size, 3) uint8.

    Returns the answer, and how strongly it looks at each image token: (n,), the mean over layers
    and heads. SystemExit if the question is too long. room: the longest answer that must fit.
    """
    model, tokenizer, checkpoint = run
    shared = tokenizer, model.config, checkpoint["options"]["order"]
    dataset = Dataset([Example(0, question, room, "")], picture[None], *shared)
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
    side = round(len(weights) ** 0.5)
    light = Image.fromarray((0.12 + 0.88 * weights / weights.max()).reshape(side, side))
    return np.uint8(picture * np.array(light.resize(picture.shape[:2], Image.NEAREST))[..., None])


def choose_six(answers):
    """Six questions about six pictures, by a fixed seed; each of the kind that was used least.

    As many of the six as of all have a wrong answer, rounded, but one at least and five at most.
    answers: for each run a dict of Example -> text.
    """
    asked = [e for e in answers[0] if all(e in texts for texts in answers)]
    wrong = {e for e in asked if any(texts[e] != e.answer for texts in answers)}
    share = len(wrong) / max(1, len(asked))
    kind_of = {e: (e.kind, e.answer in NO_YES and e.answer) for e in asked}  # yes and no are two
    Random(0).shuffle(asked)
    chosen, used = [], Counter()
    for n in range(min(6, len({e.picture for e in asked}))):
        shows_wrong = n < min(5, max(1, round(6 * share)))
        chosen.append(min(asked, key=lambda e: (  # the first one that suits best
            used[e.picture], (e in wrong) != shows_wrong, used[kind_of[e]],
            not shows_wrong and e.kind != "exist")))
        used.update((chosen[n].picture, kind_of[chosen[n]]))
    return sorted(chosen)


def entries_of_test(folder):
    """The entries of a folder of one's own pictures which `eval_pope.own_part` asks about."""
    files = [Path(folder, f"{name}.jsonl") for name in ("test", "val", "train")]
    return read_entries(next(filter(Path.exists, files), files[-1]))


def large(folder, part):
    """A function of the index of a picture in a Part of test -> the picture, 240 pixels a side.

    folder: of one's own pictures, or None for the picture world.
    """
    if not folder:
        return lambda i: draw(make_scene(FIRST_SEED["test"] + i), 240)
    path_of = {entry["hash"]: entry["file"] for entry in entries_of_test(folder)}
    return lambda i: load_picture(path_of[part.hashes[i]], 240)


def draw_sheet(*runs):
    """Six pictures, what runs answer about them, and where they look; and the same in words."""
    checkpoint = runs[0][2]
    parts = [own_part((run[0], None, checkpoint), 200) for run in runs]  # each in its run's size
    answers = [dict(ask(run, part)) for run, part in zip(runs, parts)]
    chosen = choose_six(answers)
    picture_of = large(checkpoint["options"]["data"], parts[0])
    shares = [sum(text == e.answer for e, text in texts.items()) / len(texts) for texts in answers]
    right = ", ".join(f"{run[0].attention} {share:.1%}" for run, share in zip(runs, shares))
    words = (f"{len(chosen)} pictures, chosen to show mistakes, too. Right answers to all "
             f"{len(answers[0]):,} questions: {right}. Bright: where the answer looks.")
    width = 250 * (1 + len(runs))
    picture, pen = blank(2 * width + 60, 1190)
    put(pen, 20, 14, words, 20, anchor="la", letters=width // 5)
    for n, e in enumerate(chosen):
        x, y = 20 + n % 2 * (width + 30), 140 + n // 2 * 365
        photo = picture_of(e.picture)
        picture.paste(Image.fromarray(photo), (x, y))
        put(pen, x, y - 6, e.prompt, 22, anchor="ld", letters=width // 12)
        put(pen, x, y + 246, f"right: {e.answer}", 20, anchor="la", letters=24)
        for run, part, texts in zip(runs, parts, answers):
            x += 250
            _, weights = look(run, part.images[e.picture], e.prompt, e.answer)
            picture.paste(Image.fromarray(spotlight(photo // 2 + 127, weights)), (x, y))
            color = GREEN if texts[e] == e.answer else RED
            put(pen, x, y + 246, f"{run[0].attention}: {texts[e]}", 20, color, "la", 24)
    return picture, words


def draw_lines(pen, left, title, below, places, lines):
    """A diagram, 400 pixels wide: a thin line for each run, a bold one for the median of a row.

    places: of the points of a line, from left to right, in units of what `below` says. lines:
    row -> list of lines, each of them a list of shares. Those below 50 % are drawn at 50 %.
    """
    def point(place, share):
        width = (place - places[0]) / (places[-1] - places[0])
        return left + 50 + 330 * width, 390 - 600 * (max(share, 0.5) - 0.5)

    put(pen, left + 10, 40, title, 24)
    lowest = 50 if min(min(line) for of_row in lines.values() for line in of_row) < 0.5 else None
    for percent in range(50, 101, 10):
        (x, y), (right, _) = point(places[0], percent / 100), point(places[-1], 0)
        pen.line((x, y, right, y), LINE, 2)
        put(pen, x - 10, y, "<=" * (percent == lowest) + str(percent), anchor="rm")
    for place in places:
        put(pen, point(place, 0)[0], 410, str(place), anchor="mm")
    put(pen, left + 215, 440, f"{below}   (thin: a model, thick: the median)", 16, anchor="mm")
    for of_row, color in zip(lines.values(), COLORS):
        pale = tuple((part + 255) // 2 for part in color)
        for line in of_row:
            pen.line([*map(point, places, line)], pale, 2, "curve")
    for of_row, color in zip(lines.values(), COLORS):  # above all runs
        pen.line([*map(point, places, map(median, zip(*of_row)))], color, 6, "curve")


def of_rows(*ends):
    """Runs of results/default.jsonl: dict of causal and mma -> a list for each seed: its line of
    each row with this name and one of these ends. Seeds that lack one are left out."""
    line_of = {}
    for where, line in read_lines("results/default.jsonl"):
        if (line["row"], line["seed"]) in line_of:
            raise SystemExit(f"{where}: the row and seed of another line, at another rate?")
        line_of[line["row"], line["seed"]] = line
    wanted = {name: [name + end for end in ends] for name in ("causal", "mma")}
    seeds = [seed for row, seed in line_of if row == "causal" and all(
        (row, seed) in line_of for rows in wanted.values() for row in rows)]
    return {name: [[line_of[row, seed] for row in rows] for seed in seeds]
            for name, rows in wanted.items()}


def draw_look_alikes():
    """Right answers over the number of fish, beside an example."""
    runs = of_rows("")
    picture, pen = blank(1180, 470)
    scene, *_ = look_alikes(5, True, Random(EXAMPLE))
    picture.paste(Image.fromarray(draw(scene, 260)), (20, 90))
    put(pen, 20, 40, "Five fish, one is red", 24)
    for y, name, color in zip((384, 420), runs, COLORS):
        put(pen, 20, y, f"{name}: {len(runs[name])} models", 22, color)
    for left, kind, title in ((310, "exist_color", "Is there a red fish?"),
                              (745, "exist", "Is there a fish?")):
        lines = {name: [line["fish"][kind] for [line] in seeds] for name, seeds in runs.items()}
        draw_lines(pen, left, f"{title}  Right, in %", "fish in the picture", FISH, lines)
    return picture


def draw_steps():
    """Right answers over the steps of fine-tuning."""
    runs = of_rows(*STEPS.values())
    picture, pen = blank(460, 470)
    lines = {name: [[line["accuracy"] for line in seed] for seed in seeds]
             for name, seeds in runs.items()}
    draw_lines(pen, 20, "All questions: right, in %", "steps of fine-tuning", [*STEPS], lines)
    for y, name, color in zip((330, 362), runs, COLORS):
        put(pen, 390, y, f"{name}: {len(runs[name])} models", 20, color, "rm")
    return picture


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", type=Path, help="one or two runs")
    parser.add_argument("--ship", action="store_true", help="see above")
    options = parser.parse_args()
    runs = [load(path, pick_device()) for path in options.runs]
    if not runs:
        write(draw_look_alikes(), "results/look-alikes.png")
        return write(draw_steps(), "results/steps.png")
    sheet, words = draw_sheet(*runs)
    folder = options.runs[0] if options.runs[0].is_dir() else options.runs[0].parent
    if options.ship:
        folder = Path("results")
        for model, _, checkpoint in runs:
            weights = {"weights": model.cpu().half().state_dict(), "log": []}
            torch.save(checkpoint | weights, folder / f"{model.attention}.pt")
    write(sheet, folder / "answers.png", f": {words}")


if __name__ == "__main__":
    main()
