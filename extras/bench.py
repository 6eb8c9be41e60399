"""How fast is it? Read after everything else.

    python -m extras.bench                                   one table, in under a minute
    python -m extras.bench --device cuda -- --preset base    options after -- go to train.py

Close other programs: timings are noisy. What is compared is measured in turn, A B A B.
"""
import argparse
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.benchmark import timer

import train
from data import Dataset, Example, draw, exist_question, make_scene
from extras.compare import machine
from extras.tables import table
from model import answer, autocast, pick_device

NEW = 32  # tokens that are generated
QUESTIONS = [Example(0, exist_question(name), "", "")
             for name in ("fish", "boat", "key", "shell", "cloud", "cup")]


def in_turn(functions, repetitions, warmup=2):
    """Run functions A B A B ... -> the seconds that each took, (functions, repetitions)."""
    seconds = []
    for _ in range(warmup + repetitions):
        for function in functions:
            started = timer()  # when the device has done all that it was given
            function()
            seconds.append(timer() - started)
    return np.reshape(seconds, (-1, len(functions)))[warmup:].T


@torch.inference_mode()
def first_logits(model, batch, shared):
    """Logits of the first token of each answer to prompts about one picture, (B, V).

    shared: the number of first positions that are alike and go through the decoder once for all
    rows. Under causal attention <user> and the image tokens can, under MMA they see each question.
    """
    mask = model.mask(batch["modality"], batch["generated"], 0)
    x = model.embed(batch["images"], batch["ids"], batch["modality"], batch["image_index"])
    x = x + model.position(model.positions(batch["modality"]))
    picture, x = x[:1, :shared], x[:, shared:]
    for block in model.blocks:
        cache = []
        if shared:
            picture = block(picture, mask[:1, :, :shared, :shared], cache)
            cache = [past.expand(len(x), -1, -1, -1) for past in cache]
        x = block(x, mask[:, :, shared:], cache)
    return model.logits(x[:, -1])


def row(figure, values, unit=""):
    """A row of the table, in three digits or without a fraction."""
    numbers = np.median(values), min(values), max(values)
    middle, small, large = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in numbers)
    return {"figure": figure, "median (min to max)": f"{middle}{unit} ({small} to {large})"}


def figures(trainer, steps):
    """Yields the rows of the table."""
    model, device = trainer.model, trainer.device

    def step(attention):
        model.attention = attention
        trainer.train_step()

    for stage in ("pretrain", "sft"):
        trainer.begin(stage)
        [taken] = in_turn([trainer.train_step], steps)
        yield row(f"{stage}: steps a second", 1 / taken)
    causal, mma = in_turn([lambda: step("causal"), lambda: step("mma")], steps)
    yield row("sft: time of a step, mma / causal", mma / causal)

    for rows in (1, 64):
        prompt = trainer.data.batch(range(rows), device, prompts_only=True)
        with autocast(device):
            [taken] = in_turn([lambda: model.generate(**prompt, max_new_tokens=NEW, end=-1)], 3)
        yield row(f"generation, batch {rows}: tokens a second", rows * NEW / taken)
    six = Dataset(QUESTIONS, trainer.data.images, trainer.tokenizer, model.config)
    batch = six.batch(range(6), device, prompts_only=True)
    shared = 1 + model.config.image_tokens
    with autocast(device):
        causal, mma = in_turn([lambda: first_logits(model, batch, shared),
                               lambda: first_logits(model, batch, 0)], 30)
    yield row("six questions about a picture, causal", 1000 * causal, " ms")
    yield row("six questions about a picture, mma", 1000 * mma, " ms")
    yield row("six questions about a picture, mma / causal", mma / causal)

    [taken] = in_turn([lambda: answer(model, trainer.val)], 3)
    yield row("answers a second", len(trainer.val.examples) / taken)
    [taken] = in_turn([lambda: [draw(make_scene(seed)) for seed in range(500)]], 5)
    yield row("drawing: scenes a second", 500 / taken)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add("--steps", type=int, default=15, help="training steps a stage (default: 15)")
    add("train", nargs="*", help="after --: options of train.py, such as -- --preset base")
    options = parser.parse_args()
    device = pick_device(options.device)
    with TemporaryDirectory() as folder:
        own = ["--device", str(device), "--name", f"{folder}/bench"]
        trainer = train.start(train.parse(["--scenes", "1000", *options.train, *own]))
    print(f"{machine(device)}\n\n{table(list(figures(trainer, options.steps)))}")


if __name__ == "__main__":
    main()
