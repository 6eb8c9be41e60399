"""What each choice of the recipe is worth: undo one, train again, compare. Read after `bench.py`.

`python ablate.py` trains the default and, for each choice, a variant that undoes it alone, with every seed;
what is done is not done again. Choices of pre-training are compared on captions; choices of fine-tuning
start from the default's pre-trained model of the same seed and are compared on POPE. The tables go to
results/ablation.md.
"""
import argparse
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from unittest.mock import patch

import model
import runs
import train
from eval_pope import markdown

VARIANTS = {  # stage -> name of the row -> what is patched to undo the choice
    "pretrain": {
        "default": (),
        "patches seen without their margin (plain ViT)": ((train, "Config", partial(model.Config, window=8)),),
        "AdamW for patch embedding and projector": ((model, "MIXING", ()),),
    },
    "sft": {
        "default": (),
        "ViT trained on, not frozen": ((train, "FREEZE_VIT", False),),
        "linear decay from the start": ((train, "COOLDOWN", 1.0),),
    },
}


def run(stage, name, seed, options):
    """Train one row with one seed, unless it is done; returns the lines of its metrics.jsonl."""
    slug = "default" if name == "default" else f"{stage}-" + "".join(c if c.isalnum() else "-" for c in name)[:24]
    folder = Path(f"runs/ablate-{slug}-seed{seed}")
    arguments = ["--seed", str(seed), "--name", folder.name, *options.train]
    if name != "default":
        arguments += (["--sft-steps", "0"] if stage == "pretrain" else
                      ["--pretrained", f"runs/ablate-default-seed{seed}/pretrained.pt"])
    checkpoint = runs.load(folder)[2] if folder.exists() else None
    if checkpoint:
        for option, wanted in vars(train.parse(arguments)).items():
            if option != "name" and checkpoint["options"].get(option) != wanted:
                raise ValueError(f"{folder}: trained with {option} {checkpoint['options'].get(option)}, not {wanted}; "
                                 "move that folder away to train it again")
        arguments = ["--resume", str(folder)]
    if not checkpoint or checkpoint["training"]:
        print(f"\n{stage}, {name}, seed {seed}")
        with ExitStack() as undone:
            for owner, attribute, value in VARIANTS[stage][name]:
                undone.enter_context(patch.object(owner, attribute, value))
            train.set_up(train.parse(arguments)).train()
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    return [line for line in lines if line["stage"] == stage]


def spread(values, digits=1):
    """Mean and sample standard deviation over seeds; "not reached" for the seeds that have no value."""
    there = [v for v in values if v is not None]
    if len(there) < len(values):
        return f"not reached ({len(there)} of {len(values)} seeds)"
    return f"{mean(there):.{digits}f}" + (f" ± {stdev(there):.{digits}f}" if len(there) > 1 else "")


def row(stage, found):
    """The figures of one row; found: for each seed the lines of the stage."""
    accuracies = [[line for line in lines if "accuracy" in line] for lines in found]
    if stage == "pretrain":
        losses = [[line["loss"] for line in lines if "loss" in line][-1] for lines in found]
        return [spread(losses, 3), spread([100 * lines[-1]["accuracy"]["caption"] for lines in accuracies])]
    reached = [next((line["step"] for line in lines if line["accuracy"]["pope"] >= 0.95), None) for lines in accuracies]
    return [spread([100 * lines[-1]["accuracy"][kind] for lines in accuracies])
            for kind in ("pope", "exist_color", "relation")] + [spread(reached, 0)]


def main():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=runs.number(int, 1), default=2, help="seeds a row (default: 2)")
    p.add_argument("train", nargs="*", help="after --: further options of train.py, such as -- --sft-steps 300")
    options = p.parse_args()
    headers = {"pretrain": ["pre-training", "caption loss", "captions right, %"],
               "sft": ["fine-tuning", "POPE random, %", "exist_color, %", "relation, %", "steps to 95 % POPE random"]}
    tables = []
    for stage, variants in VARIANTS.items():
        rows = [[name, *row(stage, [run(stage, name, seed, options) for seed in range(options.seeds)])] for name in variants]
        tables.append(markdown(headers[stage], rows))
    text = (f"Mean ± standard deviation of {options.seeds} seeds, on validation scenes; every row undoes one choice.\n\n"
            + "\n\n".join(tables) + "\n")
    Path("results").mkdir(exist_ok=True)
    Path("results/ablation.md").write_text(text)
    print(f"\n{text}\nwrote results/ablation.md")


if __name__ == "__main__":
    runs.command_line(main)
