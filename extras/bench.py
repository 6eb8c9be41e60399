"""How fast is it? Read after everything else.

    python -m extras.bench                                   one table, in under a minute
    python -m extras.bench -- --device cuda --preset base    options after -- go to train.py

Close other programs: timings are noisy. What is compared is measured alternately, A B A B.
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from tempfile import TemporaryDirectory

import numpy as np
from torch.utils.benchmark import timer

import train
from extras.compare import origin
from extras.figures import table

NEW = 32  # tokens that are generated
STEPS = 15  # of training, in each stage


def alternately(functions, repetitions, warmup=2):
    """Run functions A B A B ... -> the seconds that each took, (functions, repetitions)."""
    seconds = []
    for _ in range(warmup + repetitions):
        for function in functions:
            started = timer()  # when the device has done all that it was given
            function()
            seconds.append(timer() - started)
    return np.reshape(seconds, (-1, len(functions)))[warmup:].T


def row(figure, values):
    """A row of the table, in three digits or without a fraction."""
    numbers = np.median(values), min(values), max(values)
    middle, small, large = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in numbers)
    return {"figure": figure, "median (min to max)": f"{middle} ({small} to {large})"}


def figures(trainer):
    """Yields the rows of the table."""
    model = trainer.model

    def step(attention):
        model.attention = attention
        trainer.train_step()

    for stage in ("pretrain", "sft"):
        if stage == "sft":
            trainer.begin_sft()
        [seconds] = alternately([trainer.train_step], STEPS)
        yield row(f"{stage}: steps per second", 1 / seconds)
    causal, mma = alternately([lambda: step("causal"), lambda: step("mma")], STEPS)
    yield row("sft: time of a step, mma / causal", mma / causal)
    for rows in (1, 64):
        prompts = trainer.data.batch(range(rows), trainer.device, prompts_only=True)
        [seconds] = alternately(
            [lambda: model.generate(**prompts, max_new_tokens=NEW, end=-1)], 3)
        yield row(f"generation, batch of {rows}: tokens per second", rows * NEW / seconds)


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="*", help="after --: options of train.py")
    words = parser.parse_args().train
    with TemporaryDirectory() as folder:
        words = ["--scenes", "1000", *words, "--name", f"{folder}/bench"]
        trainer = train.start(train.parse(words))
    print(f"{origin(trainer.device)['machine']}\n\n{table(list(figures(trainer)))}")


if __name__ == "__main__":
    main()
