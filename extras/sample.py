"""Ask a trained model about a picture, and see where it looks.

    python -m extras.sample                                    the newest run and a test scene
    python -m extras.sample --image photo.jpg --question "Is there a boat in the image?"

The answer is printed, and where the model looked is drawn: how strongly each image token looks at
the question (what MMA opens), and how strongly the answer looks at each image token.
"""
from argparse import ArgumentParser
from contextlib import suppress
from random import randrange
from textwrap import wrap

import numpy as np
import torch

from data import FIRST_SEED, Dataset, Example, draw, load_picture, make_scene
from extras.figures import INK, newest_run, sheet, write
from model import IMAGE_ID, PATCH, SPECIALS, answer, pick_device
from train import load


def attention_maps(model, batch):
    """How strongly the token at q looks at the token at k: (layers, T, T), the mean over heads.

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

    Returns the answer and two arrays (n,): the share of its attention that an image token gives to
    the question in the first layer, and the share that the answer gives to the image token, the
    mean over layers.
    """
    model, tokenizer, checkpoint = run
    order = checkpoint["options"]["order"]
    example = Example(0, question, "?" * 16, "")  # leaves room for an answer of 16 tokens
    dataset = Dataset([example], picture[None], tokenizer, model.config, order)
    [text] = answer(model, dataset)
    batch = dataset.batch([0], model.token.weight.device, prompts_only=True)
    maps = attention_maps(model, batch).cpu()
    ids = batch["ids"][0].cpu()
    image, words = ids == IMAGE_ID, ids >= len(SPECIALS)
    to_question = maps[0, image][:, words].sum(1)
    to_image = maps[:, -1, image].mean(0)  # the last token of the prompt predicts the answer
    return text, to_question.numpy(), to_image.numpy()


def spotlight(picture, weights):
    """The picture, its image tokens as bright as their weights (n,): 0 is dark."""
    side = round(len(weights) ** 0.5)  # image tokens a side
    light = weights.reshape(side, side) / max(weights.max(), 1e-9)
    light = light.repeat(PATCH, 0).repeat(PATCH, 1)
    return np.uint8(picture * (0.12 + 0.88 * light[..., None]))


def draw_look(picture, question, text, to_question, to_image):
    """The picture, then twice in the light of attention. The last three: what `look` returns."""
    pictures = picture, spotlight(picture, to_question), spotlight(picture, to_image)
    texts = (
        f"{question} {text}",
        f"Brighter image tokens look more at the question (at most {to_question.max():.0%})",
        f"The answer looks more at brighter image tokens (at most {to_image.max():.0%})")
    return sheet(pictures, [[(line, INK) for line in wrap(text, 38)] for text in texts])


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="run folder or checkpoint (default: the newest run)")
    add("--image", metavar="FILE", help="a picture of yours (default: a test scene)")
    add("--scene", metavar="N", type=int, default=randrange(1000), help="test scene (default: any)")
    add("--question", metavar="TEXT", help="ask this and end (default: ask again and again)")
    add("--out", metavar="FILE", default="sample.png", help="what to draw (default: sample.png)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    run = model, *_ = load(options.run or newest_run(), pick_device(options.device))
    if options.image:
        picture = load_picture(options.image, model.config.image_size)
        if isinstance(picture, str):
            raise SystemExit(picture)
    else:
        print(f"test scene {options.scene} (--scene {options.scene} shows it again)")
        picture = draw(make_scene(FIRST_SEED["test"] + options.scene), model.config.image_size)
    questions = [options.question]
    if not options.question:
        questions = iter(lambda: input("Ask about the picture (an empty line ends): "), "")
    with suppress(EOFError, KeyboardInterrupt):
        for question in questions:
            text, *seen = look(run, picture, question)
            print(f"{model.attention}: {text}")
            write(draw_look(picture, question, text, *seen), options.out)


if __name__ == "__main__":
    main()
