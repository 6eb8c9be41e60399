"""How fast is it? Read after everything else.

    python -m extras.bench                                   one table, in under a minute
    python -m extras.bench --device cuda -- --preset base    options after -- go to train.py

Close other programs: timings are noisy. What is compared is measured in turn, A B A B.
"""
import argparse
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

import train
from data import Dataset, Example, draw, make_scene
from extras.compare import machine
from extras.tables import table
from model import answer, autocast, pick_device

NEW = 32  # tokens that are generated
QUESTIONS = [f"Is there a {name} in the image?" for name in "fish boat key shell cloud cup".split()]


def now(device):
    """Seconds, after the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter()


def in_turn(device, functions, repetitions, warmup=2):
    """Run functions A B A B ... -> for each the list of its seconds."""
    seconds = [[] for _ in functions]
    for repetition in range(warmup + repetitions):
        for function, taken in zip(functions, seconds):
            started = now(device)
            function()
            taken.append(now(device) - started)
    return [taken[warmup:] for taken in seconds]


def ratios(first, second):
    """Times measured in turn -> what the first takes in terms of the second."""
    return [a / b for a, b in zip(first, second)]


@torch.inference_mode()
def first_logits(model, batch, shared):
    """Logits of the first token of each answer to prompts about one picture, (B, V).

    shared: the number of first positions that are alike and go through the decoder once for all
    rows. Under causal attention <user> and the image tokens can, under MMA they see each question.
    """
    mask = model.mask(batch["modality"], batch["generated"], 0)
    x = model.embed(batch["images"], batch["ids"], batch["modality"], batch["image_index"])
    x = x + model.position(model.positions(batch["modality"]))
    caches = [[] for _ in model.blocks]
    picture = x[:1, :shared]
    for block, cache in zip(model.blocks, caches if shared else ()):
        picture = block(picture, mask[:1, :, :shared, :shared], cache)
        cache[:] = [past.expand(len(x), -1, -1, -1) for past in cache]
    x = x[:, shared:]
    for block, cache in zip(model.blocks, caches):
        x = block(x, mask[:, :, shared:], cache)
    return model.logits(x[:, -1])


def figures(trainer, steps):
    """Yields (name, unit, values)."""
    model, device = trainer.model, trainer.device

    def step(attention):
        model.attention = attention
        trainer.train_step()

    for stage in ("pretrain", "sft"):
        trainer.begin(stage)
        [taken] = in_turn(device, [trainer.train_step], steps)
        yield f"{stage}: steps a second", "", [1 / s for s in taken]
    causal, mma = in_turn(device, [lambda: step("causal"), lambda: step("mma")], steps)
    yield "sft: time of a step, mma / causal", "", ratios(mma, causal)

    for rows in (1, 64):
        prompt = trainer.data.batch(range(rows), device, prompts_only=True)
        with autocast(device):
            [taken] = in_turn(device, [
                lambda: model.generate(**prompt, max_new_tokens=NEW, end=-1)], 3)
        yield f"generation, batch {rows}: tokens a second", "", [rows * NEW / s for s in taken]
    examples = [Example(0, question, "", "") for question in QUESTIONS]
    six = Dataset(examples, trainer.data.images, trainer.tokenizer, model.config)
    batch, shared = six.batch(range(6), device, prompts_only=True), 1 + model.config.image_tokens
    with autocast(device):
        causal, mma = in_turn(device, [lambda: first_logits(model, batch, shared),
                                       lambda: first_logits(model, batch, 0)], 30)
    yield "six questions about a picture, causal", "ms", [1000 * s for s in causal]
    yield "six questions about a picture, mma", "ms", [1000 * s for s in mma]
    yield "six questions about a picture, mma / causal", "", ratios(mma, causal)

    [taken] = in_turn(device, [lambda: answer(model, trainer.val)], 3)
    yield "answers a second", "", [len(trainer.val.examples) / s for s in taken]
    [taken] = in_turn(device, [lambda: [draw(make_scene(seed)) for seed in range(500)]], 5)
    yield "drawing: scenes a second", "", [500 / s for s in taken]


def show(unit, values):
    """-> "median unit (smallest to largest)", in three digits or without a fraction."""
    middle, small, large = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}"
                            for v in (median(values), min(values), max(values)))
    return " ".join(filter(None, (middle, unit, f"({small} to {large})")))


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
    rows = [{"figure": name, "median (min to max)": show(unit, values)}
            for name, unit, values in figures(trainer, options.steps)]
    print(f"{machine(device)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
