"""Ask a trained model about a picture, and see where it looks.

    python -m extras.sample --image photo.jpg --question "Is there a boat in the image?"
    python -m extras.sample                                    the newest run and a test scene
    python -m extras.sample runs/causal-seed0 runs/mma-seed0   two models, one picture

The answer is printed, and where the model looked is drawn: how strongly each image token looks at
one word of the question (what MMA opens), and how strongly the answer looks at each image token.

Shapes: B rows, H heads, L layers of the decoder, T positions, n image tokens, V vocabulary.
"""
import argparse
import random
import sys
import textwrap
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from data import FIRST_SEED, Dataset, Example, draw, load_picture, make_scene
from extras.figures import INK, PAPER, font, newest_run, printable, write
from mma import IMAGE
from model import EOS_ID, SPECIALS, pick_device
from train import load

NEW_TOKENS = 16  # of an answer, at most
PANEL, GAP, MARGIN, ROW = 320, 24, 60, 406  # pixels; MARGIN: for the question; ROW: a whole row


class Look(NamedTuple):
    """What one model said to one question about one picture, and where it looked."""
    name: str
    answer: str
    yes: float  # probability that the answer begins with yes, and with no
    no: float
    word: str  # of the question: the one at which an image token looks most strongly
    to_word: np.ndarray  # (n,): share of its attention that an image token gives to it, layer 1
    to_image: np.ndarray  # (n,): share that the answer gives to an image token, mean over layers

    def __str__(self):
        sure = f" (yes {100 * self.yes:.1f} %, no {100 * self.no:.1f} %)"
        return f"{self.name}: {printable(self.answer)}" + (sure if self.yes + self.no > 0.5 else "")


def attention_weights(attention, x, mask):
    """How strongly q looks at k in a `model.Attention`: (B, H, T, T), rows sum to 1."""
    q, k, _ = attention.split(x)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def watched_forward(model, batch):
    """One prompt -> logits (T, V), attention weights (L, T, T), the mean over heads."""
    weights = []

    def watch(attention, inputs, output):
        weights.append(attention_weights(attention, *inputs[:2])[0].mean(0))

    hooks = [block.attention.register_forward_hook(watch) for block in model.blocks]
    logits, _ = model(batch["images"], batch["ids"], batch["modality"], batch["generated"])
    for hook in hooks:
        hook.remove()
    return logits[0], torch.stack(weights)


@torch.inference_mode()
def look(name, run, picture, question):
    """Ask a run, as `train.load` returns it. picture: (image_size, image_size, 3) uint8."""
    model, tokenizer, checkpoint = run
    room = model.config.context - model.config.image_tokens - NEW_TOKENS - 2  # <user>, <assistant>
    if (length := len(tokenizer.encode(question))) > room:
        raise SystemExit(f"the question has {length} tokens, more than the {room} that fit {name}")
    example, order = Example(0, question, "", ""), checkpoint["options"]["order"]
    dataset = Dataset([example], picture[None], tokenizer, model.config, order)
    batch = dataset.batch([0], model.token.weight.device, prompts_only=True)
    ids, image = batch["ids"][0], batch["modality"][0] == IMAGE
    logits, weights = watched_forward(model, batch)
    # The answer's first token is predicted from the last position of the prompt.
    likely, to_image = logits[-1].softmax(-1), weights[:, -1, image].mean(0)
    yes, no = (likely[tokenizer.encode(word)[0]].item() for word in ("yes", "no"))
    new = model.generate(batch["images"], ids[None], batch["modality"], NEW_TOKENS, EOS_ID)[0]
    words = [tokenizer.decode([i]).strip() for i in ids.tolist()]
    is_word = torch.tensor([word[:1].isalnum() for word in words], device=ids.device)
    to_words = weights[0][image] * (is_word if is_word.any() else ids >= len(SPECIALS))  # (n, T)
    best = int(to_words.amax(0).argmax())  # mostly an object's name
    return Look(name, tokenizer.decode(new.tolist()), yes, no, printable(words[best]),
                to_words[:, best].cpu().numpy(), to_image.cpu().numpy())


def spotlight(picture, weights, most):
    """The picture, its image tokens as bright as their weights (n,): 0 is dark, `most` bright."""
    side = round(len(weights) ** 0.5)  # image tokens a side
    light = Image.fromarray(np.float32(weights / most).reshape(side, side))
    light = np.array(light.resize((PANEL, PANEL), Image.NEAREST))[..., None]
    panel = Image.fromarray(np.uint8(picture * (0.12 + 0.88 * light)))
    pen, cell = ImageDraw.Draw(panel), PANEL / side
    for i, weight in enumerate(weights if side <= 8 else ()):  # smaller squares have no room for it
        place = i % side * cell + 5, i // side * cell + 4
        pen.text(place, f"{100 * weight:.0f} %", PAPER, font(14), stroke_width=2, stroke_fill=INK)
    return panel


def draw_looks(picture, question, looks):
    """A row for each model: the picture, then twice in the light of attention."""
    whole = Image.new("RGB", (3 * PANEL + 4 * GAP, len(looks) * ROW + MARGIN), PAPER)
    pen = ImageDraw.Draw(whole)
    pen.text((GAP, 18), printable(question)[:64], INK, font(30))
    most_word = max(one.to_word.max() for one in looks) or 1
    most_image = max(one.to_image.max() for one in looks)
    for i, one in enumerate(looks):
        seen = f'The brighter an image token, the more it looks at "{one.word}"'
        titles = (str(one), seen if one.to_word.any() else "Image tokens cannot see the question",
                  "The brighter an image token, the more the answer looks at it")
        panels = (Image.fromarray(picture), spotlight(picture, one.to_word, most_word),
                  spotlight(picture, one.to_image, most_image))
        for column, (title, panel) in enumerate(zip(titles, panels)):
            x, y = GAP + column * (PANEL + GAP), (i + 1) * ROW + MARGIN - PANEL - GAP
            title = textwrap.fill(title, 34, max_lines=2, placeholder=" ...")
            pen.text((x, y - 10), title, INK, font(18), anchor="ld")
            whole.paste(panel, (x, y))
    return whole


def choose_picture(options):
    """The picture to ask about, as a function of its size in pixels -> (size, size, 3) uint8."""
    if options.image is not None:
        if isinstance(problem := load_picture(options.image, PANEL), str):
            raise SystemExit(printable(problem))
        return lambda size: load_picture(options.image, size)
    n = random.randrange(1000) if options.scene is None else options.scene
    print(f"picture: test scene {n} (--scene {n} shows it again)")
    return lambda size: draw(make_scene(FIRST_SEED["test"] + n), size)


def ask(runs, show, question, out):
    """Print the answers, and draw where the models looked. runs: name -> what `load` returns."""
    looks = [look(name, run, show(run[0].config.image_size), question)
             for name, run in runs.items()]
    print(*looks, sep="\n")
    write(draw_looks(show(PANEL), question, looks), out)


def converse(runs, show, out):
    """Answer questions until `quit` or the end of the input."""
    print("Ask about the picture; quit ends.")
    sys.stdin.reconfigure(errors="replace")  # bytes that are no text are a question like any other
    while True:
        try:
            question = input("> ").strip()
            if question == "quit":
                break
            if question:
                ask(runs, show, question, out)
        except (EOFError, KeyboardInterrupt):
            break
        except SystemExit as error:  # too long, for example: the next one may be better
            print(error)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add, source = parser.add_argument, parser.add_mutually_exclusive_group()
    add("runs", nargs="*", metavar="RUN", help="run folder or checkpoint (default: the newest run)")
    source.add_argument("--image", metavar="FILE", help="a picture of yours")
    source.add_argument("--scene", metavar="N", type=int, help="test scene (default: any)")
    add("--question", metavar="TEXT", help="ask this and end (default: ask again and again)")
    add("--out", metavar="FILE", default="sample.png", help="what to draw (default: sample.png)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character
    runs = {}
    for path in options.runs or [newest_run()]:
        run = model, _, checkpoint = load(path, pick_device(options.device))
        if checkpoint["stage"] != "sft" or not checkpoint["finished"]:
            print(f"{printable(str(path))}: not fully fine-tuned, so its answers may mean nothing")
        name = model.attention if model.attention not in runs else f"{model.attention} {path}"
        runs[printable(name)] = run
    show = choose_picture(options)
    if options.question is None:
        converse(runs, show, options.out)
    else:
        ask(runs, show, options.question.strip(), options.out)


if __name__ == "__main__":
    main()
