"""Ask a trained model about a picture, and see where it looks.

    python -m extras.sample                                    the newest run and a test scene
    python -m extras.sample --image photo.jpg --question "Is there a boat in the image?"

The answer is printed, and where the model looked is drawn: how strongly each image token looks at
one word of the question (what MMA opens), and how strongly the answer looks at each image token.

Shapes: D width, H heads, L layers of the decoder, T positions, n image tokens.
"""
import argparse
import random
import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw

from data import FIRST_SEED, Dataset, Example, draw, load_picture, make_scene
from extras.figures import INK, PAPER, font, newest_run, write
from mma import IMAGE
from model import EOS_ID, pick_device
from train import load

NEW_TOKENS = 16  # of an answer, at most
PANEL, GAP, TOP = 320, 24, 122  # pixels: of a picture, between two, and of the text above them


def attention_maps(model, batch):
    """How strongly the token at q looks at the token at k: (L, T, T), the mean over heads.

    batch: one prompt, from `Dataset.batch`. As `MultimodalGPT.forward`, which keeps no weights.
    """
    modality, maps = batch["modality"], []
    x = model.embed(batch["images"], batch["ids"], modality)  # (1, T, D)
    x = x + model.position(model.positions(modality))
    for layer, block in enumerate(model.blocks):
        mask = model.mask(modality, batch["generated"], layer)
        q, k, _ = block.attention.split(block.norm1(x))  # (1, H, T, D/H)
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (1, H, T, T)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        maps.append(weights[0].mean(0))
        x = block(x, mask)
    return torch.stack(maps)


@torch.inference_mode()
def look(run, picture, question):
    """Ask a run, as `train.load` returns it. picture: (image_size, image_size, 3) uint8.

    Returns the answer, a word of the question (that at which an image token looks most strongly),
    and two arrays (n,): the share of its attention that an image token gives to the word in the
    first layer, and the share that the answer gives to the image token, the mean over layers.
    """
    model, tokenizer, checkpoint = run
    order = checkpoint["options"]["order"]
    example = Example(0, question, "", "")
    dataset = Dataset([example], picture[None], tokenizer, model.config, order)
    batch = dataset.batch([0], model.token.weight.device, prompts_only=True)
    ids = batch["ids"][0].tolist()
    room = min(NEW_TOKENS, model.config.context - len(ids))
    new = model.generate(**batch, max_new_tokens=room, end=EOS_ID)[0]
    answer = tokenizer.decode(new.tolist())

    maps = attention_maps(model, batch).cpu()
    image = batch["modality"][0].cpu() == IMAGE
    to_image = maps[:, -1, image].mean(0)  # the last token of the prompt predicts the answer
    words = [tokenizer.decode([i]).strip() for i in ids]
    is_word = torch.tensor([word[:1].isalnum() for word in words])
    to_words = maps[0, image] * is_word  # (n, T)
    best = int(to_words.amax(0).argmax())  # mostly an object's name
    return answer, words[best], to_words[:, best].numpy(), to_image.numpy()


def spotlight(picture, weights):
    """The picture, its image tokens as bright as their weights (n,): 0 is dark."""
    side = round(len(weights) ** 0.5)  # image tokens a side
    light = weights.reshape(side, side) / max(weights.max(), 1e-9)
    light = Image.fromarray(light).resize((PANEL, PANEL), Image.NEAREST)
    return Image.fromarray(np.uint8(picture * (0.12 + 0.88 * np.array(light)[..., None])))


def draw_look(picture, question, answer, word, to_word, to_image):
    """The picture, then twice in the light of attention. The last four: what `look` returns."""
    seen = f'Brighter image tokens look more at "{word}" (at most {100 * to_word.max():.0f} %)'
    if not to_word.any():
        seen = "Image tokens see no word of the question"
    looked_at = "The answer looks more at brighter image tokens"
    panels = (
        (f"Answer: {answer}", Image.fromarray(picture)),
        (seen, spotlight(picture, to_word)),
        (f"{looked_at} (at most {100 * to_image.max():.0f} %)", spotlight(picture, to_image)))
    whole = Image.new("RGB", (3 * PANEL + 4 * GAP, TOP + PANEL + GAP), PAPER)
    pen = ImageDraw.Draw(whole)
    pen.text((GAP, 18), question[:64], INK, font(30))
    for i, (title, panel) in enumerate(panels):
        x = GAP + i * (PANEL + GAP)
        title = textwrap.fill(title, 34, max_lines=2, placeholder=" ...")
        pen.text((x, TOP - 10), title, INK, font(18), anchor="ld")
        whole.paste(panel, (x, TOP))
    return whole


def make_picture(options, size):
    """The picture to ask about, (size, size, 3) uint8."""
    if not options.image:
        return draw(make_scene(FIRST_SEED["test"] + options.scene), size)
    picture = load_picture(options.image, size)
    if isinstance(picture, str):
        raise SystemExit(picture)
    return picture


def ask(run, options, question):
    """Print the answer to a question, and draw where the model looked."""
    seen = look(run, make_picture(options, run[0].config.image_size), question)
    print(f"{run[0].attention}: {seen[0]}")
    write(draw_look(make_picture(options, PANEL), question, *seen), options.out)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add, source = parser.add_argument, parser.add_mutually_exclusive_group()
    add("run", nargs="?", metavar="RUN", help="run folder or checkpoint (default: the newest run)")
    source.add_argument("--image", metavar="FILE", help="a picture of yours")
    source.add_argument("--scene", metavar="N", type=int, default=random.randrange(1000),
                        help="test scene (default: any)")
    add("--question", metavar="TEXT", help="ask this and end (default: ask again and again)")
    add("--out", metavar="FILE", default="sample.png", help="what to draw (default: sample.png)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    run = _, _, checkpoint = load(options.run or newest_run(), pick_device(options.device))
    if checkpoint["stage"] != "sft" or not checkpoint["finished"]:
        print("not fully fine-tuned: the answers may mean nothing")
    if not options.image:
        print(f"test scene {options.scene} (--scene {options.scene} shows it again)")
    if options.question:
        return ask(run, options, options.question)
    print("Ask about the picture; quit ends.")
    try:
        while (question := input("> ").strip()) != "quit":
            if question:
                ask(run, options, question)
    except (EOFError, KeyboardInterrupt):
        print()


if __name__ == "__main__":
    main()
