"""What each choice of the recipe is worth: undo one, train again, compare. Read after `compare.py`.

`python ablate.py` trains the default and, for each choice, a variant that undoes it alone, with every seed (runs
that `compare.py` made are used again; what is done is not done again). Choices of pre-training are compared on
captions; choices of fine-tuning start from the same pre-trained model and are compared on POPE; choices that
change the speed alone are timed in turn, a step of one and a step of the other. All goes to results/ablation.md.
"""
import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import torch.nn.functional as F

import data
import model
import runs
import train
from compare import fine_tuned, metrics, pretrained, spread
from eval_pope import markdown


@dataclass(frozen=True)
class PlainPatches(model.Config):
    """A configuration in which a patch is seen without its margin."""
    window: int = 8


VARIANTS = {  # stage -> name of the row -> what is patched to undo the choice
    "pretrain": {
        "default": (),
        "patches seen without their margin (plain ViT)": ((train, "Config", PlainPatches),),
        "AdamW for patch embedding and projector": ((model, "MIXING", ()),),
    },
    "sft": {
        "default": (),
        "ViT trained on, not frozen": ((train, "FREEZE_VIT", False),),
        "linear decay from the start": ((train, "COOLDOWN", 1.0),),
    },
}


class OwnPictures(data.Examples):
    """Examples in which every question brings a picture of its own, as if its ViT pass could not be shared."""

    def batch(self, rows, prompts_only=False):
        """As in data.Examples."""
        batch = super().batch(rows, prompts_only)
        return replace(batch, images=batch.images[batch.image_index], image_index=torch.arange(len(batch.image_index)))


def bfloat16_attention(q, k, v, attn_mask=None, kernel=F.scaled_dot_product_attention):
    """The CPU's attention kernel in bfloat16."""
    return kernel(q.bfloat16(), k.bfloat16(), v.bfloat16(), attn_mask=attn_mask)


def one_thread(trainer):
    """The whole batch in one Python thread, operations spread over all cores by torch."""
    trainer.halves, trainer.pool = 1, runs.threads(trainer.device, 1)


SPEED = {  # name of the row -> (what is patched, what is done to the Trainer)
    "float32 throughout": (((runs, "autocast", lambda *_: torch.autocast("cpu", enabled=False)),), None),
    "attention in bfloat16 too": (((F, "scaled_dot_product_attention", bfloat16_attention),), None),
    "one thread, torch's own parallelism": ((), one_thread),
    "rows not grouped by length": (((data.Batches, "POOL", 1),), None),
    "a ViT pass for each question, not for each picture": (((train, "Examples", OwnPictures),), None),
    "ViT trained on, not frozen": (((train, "FREEZE_VIT", False),), None),
}


def timed(name, extra, steps):
    """Times of single steps, in turn: stage -> (the default's, the variant's), lists of seconds."""
    patches, change = SPEED[name]

    def patched(stack, wanted):
        """Undo the choice while `stack` is open, if wanted."""
        for owner, attribute, value in patches if wanted else ():
            stack.enter_context(patch.object(owner, attribute, value))

    trainers = []
    with TemporaryDirectory() as folder:
        for variant in (False, True):
            with ExitStack() as stack:
                patched(stack, variant)
                options = train.parse([*extra, "--scenes", "2000"])  # enough for a few steps
                trainers.append(train.Trainer(options, Path(folder), torch.device("cpu")))
                if variant and change:
                    change(trainers[-1])
    times = {}
    for stage in train.STAGES:
        times[stage] = [], []
        for i in range(steps + 2):
            for variant, trainer in enumerate(trainers):
                with ExitStack() as stack:
                    patched(stack, variant)
                    if i == 0:
                        trainer.begin(stage)
                    started = time.perf_counter()
                    trainer.train_step(0.0)
                    trainer.step += 1
                    if i > 1:
                        times[stage][variant].append(time.perf_counter() - started)
    return times


def speed_row(name, times):
    """One row of the table of speed: milliseconds a step with and without the choice, and their ratio."""
    cells = [name]
    for with_it, without in times.values():
        a, b = 1000 * median(with_it), 1000 * median(without)
        cells += [f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}"]
    return cells


def row(stage, folders):
    """The figures of one row; folders: the run of each seed."""
    found = [metrics(folder, stage) for folder in folders]
    accuracies = [[line for line in lines if "accuracy" in line] for lines in found]
    if stage == "pretrain":
        losses = [[line["loss"] for line in lines if "loss" in line][-1] for lines in found]
        return [spread(losses, "{:.3f}"), spread([100 * lines[-1]["accuracy"]["caption"] for lines in accuracies])]
    reached = [next((line["step"] for line in lines if line["accuracy"]["pope"] >= 0.9), None) for lines in accuracies]
    return [*(spread([100 * lines[-1]["accuracy"][kind] for lines in accuracies])
              for kind in ("pope", "exist_color", "relation")), spread(reached, "{:.0f}")]


def trained(stage, name, seed, extra):
    """The folder of one row with one seed."""
    short, patches = " ".join(name.replace(",", "").split()[:5]), VARIANTS[stage][name]
    if stage == "pretrain":
        return pretrained(seed, extra, f"without-{short}" if patches else "pretrain", patches)
    return fine_tuned("mma", seed, extra, name=f"without-{short}" if patches else None, patches=patches)


def main():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=runs.number(int, 1), default=2, help="seeds a row (default: 2)")
    p.add_argument("--steps", type=runs.number(int, 1), default=20, help="steps a row is timed for (default: 20)")
    p.add_argument("train", nargs="*", help="after --: further options of train.py, such as -- --sft-steps 300")
    options = p.parse_args()
    Path("results").mkdir(exist_ok=True)  # now: that it cannot be made would be sad news after hours
    headers = {"pretrain": ["pre-training", "caption loss", "captions right, %"],
               "sft": ["fine-tuning", "POPE random, %", "exist_color, %", "relation, %", "steps to 90 % POPE random"]}
    parts = [f"Every row undoes one choice. Mean ± standard deviation of {options.seeds} seeds, on validation scenes."]
    for stage, variants in VARIANTS.items():
        parts.append(markdown(headers[stage], [
            [name, *row(stage, [trained(stage, name, seed, options.train) for seed in range(options.seeds)])]
            for name in variants]))
    parts += [f"Milliseconds a step on a CPU with {torch.get_num_threads()} threads: median of {options.steps} steps with "
              "the choice and without, in turn.",
              markdown(["without the choice", *(f"{stage}: {what}" for stage in ("pre-training", "fine-tuning")
                                                for what in ("with", "without", "ratio"))],
                       [speed_row(name, timed(name, options.train, options.steps)) for name in SPEED])]
    text = "\n\n".join(parts) + "\n"
    Path("results/ablation.md").write_text(text)
    print(f"\n{text}\nwrote results/ablation.md")


if __name__ == "__main__":
    runs.command_line(main)
