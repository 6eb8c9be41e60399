"""Ask a trained model about a picture, and see where it looks. Read after `eval_pope.py`.

    python sample.py --image photo.jpg --question "Is there a boat in the image?"
    python sample.py                                     the newest run and a test scene; write questions, then quit
    python sample.py runs/causal-seed0 runs/mma-seed0    two models, one picture

The answer is printed; the attention is drawn into one picture: how strongly each image token looks at each word
of the question (what MMA opens), and how strongly the answer looks at each image token.

Shapes: L layers of the decoder, T positions of the prompt, W words of the question, g image tokens a side.
"""
import argparse
import random
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import pictures
import runs
import scenes
from data import EOS_ID, SPECIALS, Examples, Item
from eval_pope import evaluation_order, label_of
from mma import IMAGE

DISPLAY = 256  # pixels a side of the picture at the top
TEST_SCENES = 1000  # a random scene is one of so many
NEW_TOKENS = 16  # of an answer, at most
MOST_WORDS = 16  # columns of the picture

INK, SOFT, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
# From nothing to the most: darker all the way, so that colour-blind readers and grey printers see the same order.
RAMP = ((0, (255, 255, 255)), (0.33, (255, 214, 90)), (0.67, (240, 120, 20)), (1, (196, 26, 30)))
CELL, GAP, MARGIN, LEFT = 100, 6, 28, 116  # pixels; LEFT: the column of the rows' names


@dataclass(frozen=True)
class Look:
    """What one model said to one question about one picture, and where it looked."""
    name: str  # how the run is called in the picture
    answer: str
    yes: float  # probability that the answer begins with yes, and with no
    no: float
    words: list  # of the question: its tokens as text
    to_words: np.ndarray  # (L, W, g, g): the share of its attention that an image token gives to a word
    to_image: np.ndarray  # (L, g, g): the share of its attention that the answer's first token gives to an image token

    def __str__(self):
        sure = f"   (yes {100 * self.yes:.1f} %, no {100 * self.no:.1f} %)" if self.yes + self.no > 0.5 else ""
        return f"{printable(self.answer) or '(an empty answer)'}{sure}"


@torch.inference_mode()
def look(name, model, tokenizer, checkpoint, picture, question):
    """Ask one question about one picture -> Look.

    name: for the picture; model, tokenizer, checkpoint: as `runs.load` returns them; picture: (image_size, image_size,
    3) uint8 array. Answers greedily, in float32. Raises ValueError for a question that the context has no room for.
    """
    kind, config, device = checkpoint["attention"], model.config, model.token.weight.device
    item = Item((0,), question, "")
    try:
        examples = Examples([item], picture[None], tokenizer, config, evaluation_order(checkpoint["order"]))
    except ValueError as error:
        raise ValueError(f"the question is too long: {error}") from None
    batch = examples.batch([0], prompts_only=True).to(device)
    logits, weights = prompt_pass(model, batch, kind)
    room = config.context - batch.ids.shape[1]  # at least 1: Examples counts the end token
    ids = model.generate(batch.images, batch.ids, batch.modality, min(NEW_TOKENS, room), EOS_ID, kind)[0].tolist()
    likely = logits.softmax(-1)
    yes, no = (likely[tokenizer.encode(word)[0]].item() for word in ("yes", "no"))

    image = (batch.modality[0] == IMAGE).cpu()
    text = ~image & (batch.ids[0].cpu() >= len(SPECIALS))  # without <user> and <assistant>
    g = int(config.image_tokens ** 0.5)
    to_words = weights[:, image][:, :, text].transpose(1, 2).reshape(len(weights), -1, g, g)
    # The last position of the prompt is the one from which the answer's first token is predicted.
    return Look(name, tokenizer.decode(ids), yes, no, [word_of(tokenizer, i) for i in batch.ids[0, text].tolist()],
                to_words.numpy(), weights[:, -1, image].reshape(-1, g, g).numpy())


def prompt_pass(model, batch, kind):
    """One pass of a prompt -> (logits of the next token (V,), weights (L, T, T), the mean over heads), on the CPU.

    weights[l, q, k] is the share of its attention that position q gives to k in layer l; each row sums to 1.
    """
    weights = []

    def collect(attention, inputs, _):
        """A forward hook: keep the layer's weights, (T, T), mean over the heads of the first row."""
        weights.append(attention.weights(*inputs[:2])[0].mean(0).cpu())

    hooks = [block.attention.register_forward_hook(collect) for block in model.blocks]
    try:
        logits, _ = model(batch.images, batch.ids, batch.modality, batch.generated, kind=kind)
    finally:
        for hook in hooks:
            hook.remove()
    return logits[0, -1].cpu(), torch.stack(weights)


def word_of(tokenizer, token):
    """A token id as a column's heading; a byte that is no letter by itself in hexadecimal."""
    text = tokenizer.decode([token])
    return "0x%02x" % (token - len(SPECIALS)) if text == "\ufffd" else printable(text.strip()) or "space"


def printable(text):
    """Text from a stranger, harmless on a terminal: control characters, lone surrogates and the like as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# The rest draws.


def ramp(strength):
    """Array of numbers from 0 to 1 -> colours of RAMP, floats, with one axis more."""
    at, colors = zip(*RAMP)
    return np.stack([np.interp(strength, at, channel) for channel in zip(*colors)], -1)


def heat(picture, weights, most):
    """The picture (a square RGB array), pale, each image token tinted by its weight (g, g); `most` is red."""
    grey = np.array(Image.fromarray(picture).convert("L").resize((CELL, CELL), Image.LANCZOS), dtype=float)
    # Not smoothed between tokens: a square is what the decoder has, and its colour can be read off the scale.
    strength = Image.fromarray((weights / most).astype(np.float32)).resize((CELL, CELL), Image.NEAREST)
    pale = 1 - 0.45 * (1 - grey / 255)
    return Image.fromarray((pale[..., None] * ramp(np.array(strength))).astype(np.uint8))


def figure(picture, question, looks):
    """The whole picture as a Pillow image. picture: (DISPLAY, DISPLAY, 3) uint8; looks: list of Look, one a model."""
    columns = max(max(min(len(one.words), MOST_WORDS), len(one.to_image) + 1) for one in looks)
    width = max(2 * MARGIN + LEFT + columns * (CELL + GAP), 900)
    parts = [header(picture, question, looks, width), *(words_block(picture, one, width) for one in looks),
             answer_block(picture, looks, width)]
    whole = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        whole.paste(part, (0, y))
        y += part.height
    return whole


def header(picture, question, looks, width):
    """The picture beside the question, the answers and what the colours mean."""
    part = Image.new("RGB", (width, 2 * MARGIN + DISPLAY), PAPER)
    part.paste(Image.fromarray(picture), (MARGIN, MARGIN))
    pen, x, y = ImageDraw.Draw(part), 2 * MARGIN + DISPLAY, MARGIN
    for text, size in ((printable(question), 28), *((f"{one.name}:  {one}", 21) for one in looks)):
        for line in textwrap.wrap(text, (width - x - MARGIN) * 2 // size, max_lines=2, placeholder=" ..."):
            pen.text((x, y), line, INK, ImageFont.load_default(size))
            y += round(1.3 * size)
        y += 10
    g = looks[0].to_image.shape[-1]
    legend = f"Below, each of the {g} x {g} squares is an image token: the redder, the more attention."
    pen.text((x, MARGIN + DISPLAY), legend, SOFT, ImageFont.load_default(15), anchor="ls")
    return part


def words_block(picture, one, width):
    """How strongly each image token of one model looks at each word; one line where the mask hides them all."""
    if not one.to_words.any():
        part = Image.new("RGB", (width, 2 * MARGIN), PAPER)
        text = f"{one.name}: image tokens cannot see the question"
        ImageDraw.Draw(part).text((MARGIN, 0), text, INK, ImageFont.load_default(21))
        return part
    more = len(one.words) - MOST_WORDS
    return block(f"{one.name}: how strongly each image token looks at each word of the question",
                 "of an image token's attention" + (f"; {more} more tokens are left out" if more > 0 else ""),
                 layers(one), one.words[:MOST_WORDS], picture, one.to_words[:, :MOST_WORDS], width)


def answer_block(picture, looks, width):
    """How strongly the answer of each model looks at each image token, one model a row."""
    deepest = max(looks, key=lambda one: len(one.to_image))
    return block("How strongly the answer looks at each image token", "of the answer's attention",
                 [one.name for one in looks], ["mean", *layers(deepest)], picture,
                 [[one.to_image.mean(0), *one.to_image] for one in looks], width)


def layers(one):
    """The names of the decoder's layers."""
    return [f"layer {i + 1}" for i in range(len(one.to_image))]


def block(title, unit, rows, columns, picture, cells, width):
    """A titled table of heat. rows, columns: names; cells[row][column]: (g, g) weights, all on one scale."""
    top, font, small = 88, ImageFont.load_default(17), ImageFont.load_default(15)
    part = Image.new("RGB", (width, top + len(rows) * (CELL + GAP) + MARGIN), PAPER)
    pen, most = ImageDraw.Draw(part), max(weights.max() for row in cells for weights in row) or 1.0
    pen.text((MARGIN, 0), title, INK, ImageFont.load_default(21))
    scale = Image.fromarray(ramp(np.linspace(0, 1, 140))[None].repeat(12, 0).astype(np.uint8))
    pen.text((MARGIN, 42), "0 %", SOFT, small, anchor="lm")
    pen.rectangle((MARGIN + 31, 35, MARGIN + 172, 48), outline=SOFT)
    part.paste(scale, (MARGIN + 32, 36))
    pen.text((MARGIN + 182, 42), f"{100 * most:.0f} % {unit}", SOFT, small, anchor="lm")
    for i, name in enumerate(columns):
        pen.text((MARGIN + LEFT + i * (CELL + GAP) + CELL / 2, top - 8), name[:12], INK, font, anchor="ms")
    for j, (name, row) in enumerate(zip(rows, cells)):
        y = top + j * (CELL + GAP)
        pen.text((MARGIN, y + CELL / 2), textwrap.fill(name, 12), INK, small, anchor="lm")
        for i, weights in enumerate(row):
            part.paste(heat(picture, weights, most), (MARGIN + LEFT + i * (CELL + GAP), y))
    return part


def ask(loaded, shown, question, out):
    """Print the answers of all models to one question, and write the picture of their attention to `out`.

    loaded: list of (name, model, tokenizer, checkpoint); shown: function of a size in pixels -> the picture as array.
    """
    looks = [look(name, model, tokenizer, checkpoint, shown(model.config.image_size), question)
             for name, model, tokenizer, checkpoint in loaded]
    for one in looks:
        print(one if len(looks) == 1 else f"{one.name}: {one}")
    figure(shown(DISPLAY), question, looks).save(out, optimize=True)


def chosen_picture(options, sizes):
    """The picture of the command line as a function of a size in pixels that returns (size, size, 3) uint8.

    sizes: a dict of run -> pixels a side that its model sees. Says which picture it is. Raises ValueError for a file
    that is no picture, and for a test scene where a model wants more pixels than those have.
    """
    if options.image is not None:
        for size in set(sizes.values()):
            pictures.load(options.image, size)  # a bad file is refused before anything is asked
        print(f"picture: {printable(options.image)}")
        return lambda size: pictures.load(options.image, size)
    for path, size in sizes.items():
        if size != scenes.SIZE:
            raise ValueError(f"{path}: this model sees pictures of {size} pixels a side, and the test scenes have "
                             f"{scenes.SIZE}: give it a picture with --image")
    n = random.randrange(TEST_SCENES) if options.scene is None else options.scene
    scene = scenes.make_scene(scenes.split_seeds("test", n + 1)[n])
    print(f"picture: test scene {n} (--scene {n} shows it again)")
    return lambda size: scenes.draw(scene, size)


def converse(loaded, shown, out):
    """Ask for questions and answer them until `quit` or the end of the input."""
    print(f"Ask about the picture; quit ends. Each question's attention is drawn into {printable(out)}.")
    sys.stdin.reconfigure(errors="replace")  # bytes that are no text are a question like any other
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            break
        if question == "quit":
            break
        if question:
            try:
                ask(loaded, shown, question, out)
            except ValueError as error:  # too long; the next one may be shorter
                print(error)


def main():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="*", type=Path, help="one or two run folders or checkpoints (default: the newest run)")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--image", metavar="FILE", help="the picture to ask about (default: a random test scene)")
    source.add_argument("--scene", type=runs.number(int, 0), metavar="N", help="ask about test scene N instead")
    p.add_argument("--question", metavar="TEXT", help="ask this and end (default: ask again and again, until quit)")
    p.add_argument("--out", metavar="FILE", default="sample.png", help="the picture to write (default: sample.png)")
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: CUDA, then MPS, then CPU)")
    options = p.parse_args()
    if len(options.runs) > 2:
        p.error("one or two runs, not more")
    if options.question is not None and not options.question.strip():
        p.error("--question: nothing is asked")
    if not options.out.lower().endswith(".png"):
        p.error(f"--out {options.out}: the picture's name must end in .png")
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every letter
    paths, device = options.runs or [runs.newest()], runs.pick_device(options.device)
    loaded = [runs.load(path, device) for path in paths]
    shown = chosen_picture(options, {path: model.config.image_size for path, (model, _, _) in zip(paths, loaded)})
    for path, (_, _, checkpoint) in zip(paths, loaded):
        if checkpoint["stage"] != "sft":
            print(f"{path} was NEVER FINE-TUNED: at best it writes captions, and its answers mean nothing")
    names = [label_of(checkpoint) for _, _, checkpoint in loaded]
    if len(set(names)) < len(names):
        names = [f"{name} {printable(path.name)}" for name, path in zip(names, paths)]
    loaded = [(name, *rest) for name, rest in zip(names, loaded)]
    if options.question is None:
        return converse(loaded, shown, options.out)
    ask(loaded, shown, options.question.strip(), options.out)
    print(f"wrote {printable(options.out)}")


if __name__ == "__main__":
    runs.command_line(main)
