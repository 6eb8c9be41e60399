"""One mask beside another: rows of settings, from the same pre-trained start, seed by seed.

    python -m extras.compare --search --rows causal mma --seeds 100 101   the rate of each row
    python -m extras.compare --rows causal mma --seeds 0 1 2              at that rate
    python -m extras.compare --seeds 0 -- --sft-steps 1800    options after -- go to train.py
    python -m extras.compare --seeds 0 --mix one-way          other captions, see mixes.py
    python -m extras.compare --table                          the tables of all finished runs

Each seed is pre-trained once, and its rows are fine-tuned from there on the same data. The search
tries learning rates of fine-tuning on validation scenes; then each row is trained at the one that
was best for it, and asked about test scenes. A finished run adds a line to results/runs.jsonl. Stop
at any time: the same command skips finished runs.
"""
import argparse
import json
import re
import time
from collections import Counter, defaultdict, namedtuple
from functools import cache
from pathlib import Path
from statistics import mean
from subprocess import getoutput

import torch

import train
from data import (FIRST_SEED, NO_YES, OBJECTS, Example, exist_question, make_scene, make_world,
                  read_lines)
from eval_pope import SPLITS, ask, ask_own
from extras.mixes import MIXES
from extras.tables import best_rate, paired_table, short_table, tables
from extras.variants import CCA, DOT, Scrambled, instructed
from model import pick_device

RATES = (0.01, 0.02, 0.03, 0.04)
OWN = {"--attention", "--order", "--seed", "--name", "--pretrained"}  # not for the user to set
RUNS = Path("results/runs.jsonl")
PARTS = {"search": "val", "test": "test"}  # split of a line -> scenes that are asked about
SCENES = 1000  # POPE asks about 500 of them
SFT_ONLY = ("attention", "order", "questions", "sft_steps", "sft_lr", "train_vit")


def ask_world(run, part, dataset_class):
    """-> the figures of a run about its own data, of the picture world with those of `existence`.

    part: "val" or "test".
    """
    figures = ask_own(run, SCENES, part, dataset_class)
    own = {} if run[2]["options"]["data"] else existence(run, part, dataset_class)
    pope = [split for split in SPLITS if split in figures]
    return {**{split: figures[split]["accuracy"] for split in pope},
            "yes_ratio": {split: figures[split]["yes_ratio"] for split in pope},
            "kinds": figures.get("kinds", {}), "accuracy": figures.get("accuracy"), **own}


# options: of train.py. data: its name. splits: makes it from parsed options. trainer: of
# fine-tuning. start: the Trainer of pre-training; rows with the same one share it. ask: see above.
# mix: names of MIXES that change the data, one after the other.
Row = namedtuple("Row", "options data splits trainer start ask mix", defaults=(
    [], "world", train.load_splits, train.Trainer, train.Trainer, ask_world, ()))
ROWS = {
    "causal": Row(["--attention", "causal"]),
    "text-first": Row(["--attention", "causal", "--order", "text-first"]),
    "image": Row(["--attention", "image"]),
    "prefix": Row(["--attention", "prefix"]),
    "mma": Row(["--attention", "mma"]),
    "scrambled": Row(["--attention", "mma"], trainer=Scrambled),
    "dot": Row(["--attention", "causal"], splits=instructed, trainer=DOT, start=DOT),
    "cca": Row(["--attention", "causal"], trainer=CCA, start=CCA),
}


def changed(arguments, without):
    """Options of train.py -> dict of those that differ from the default and change the result."""
    options = vars(train.parse(arguments))
    default = vars(train.parse(["--preset", options["preset"]])) | {"preset": "tiny"}
    kept = sorted(options.keys() - {*without, "name", "seed", "device", "save_every"})
    return {key: options[key] for key in kept if options[key] != default[key]}


def trained(words, seed, arguments, row):
    """Train a run, or finish it, or find it finished -> its folder. words: its name."""
    if row.splits is not train.load_splits:
        words = [*words, row.splits.__name__]
    words = [*words, *row.mix]
    folder = Path("runs") / re.sub(r"[^\w.]+", "-", "-".join(words))
    options = train.parse([*arguments, "--seed", str(seed), "--name", folder.name])
    if folder.exists():
        checkpoint = train.load(folder, model_class=row.trainer.model_class)[2]
        check_options(folder, checkpoint["options"], vars(options))
        if checkpoint["finished"]:
            return folder
    splits = row.splits(options)
    for name in row.mix:
        splits = MIXES[name](splits)
    if folder.exists():
        train.resume(folder, splits, row.trainer).train()
    else:
        started = time.monotonic()
        train.start(options, splits, row.trainer).train()
        (folder / "seconds").write_text(f"{time.monotonic() - started:.0f}")
    return folder


def check_options(folder, found, wanted):
    """SystemExit if a run has other options: a default has changed since it was trained."""
    ignored = {*train.SIZES, "pretrain_steps", "device", "save_every"}
    if not wanted["sft_steps"]:
        ignored |= {*SFT_ONLY}
    other = [key for key in wanted.keys() - ignored if found[key] != wanted[key]]
    if other:
        raise SystemExit(f"{folder} has another {', '.join(other)}; move it away")


def fine_tuned(name, seed, arguments, row):
    """Pre-train a seed unless that is done, and fine-tune it -> folders of the two stages."""
    def words(name, options):
        return [f"compare-{name}-seed{seed}", *(f"{key}-{options[key]}" for key in options)]

    own_start = row.start is not train.Trainer
    before = f"pretrained-{row.start.__name__}" if own_start else "pretrained"
    pretrained = trained(words(before, changed(arguments, SFT_ONLY)), seed,
                         [*arguments, "--sft-steps", "0"], row._replace(trainer=row.start))
    arguments = [*arguments, "--pretrained", str(pretrained / "model.pt")]
    kind = train.parse(arguments).attention if row.trainer is train.Trainer else name
    own = changed(arguments, ["attention", "pretrained"])
    return pretrained, trained(words(kind, own), seed, arguments, row)


def take_off(curve, least=0.6):
    """The first validation from which accuracy stays above `least` -> its step, or None."""
    low = max((step for step, accuracy in curve if accuracy <= least), default=0)
    return next((step for step, _ in curve if step > low), None)


@cache
def plausibility():
    """(object, theme) -> how many of ten training scenes of the theme show the object."""
    themes, seen = Counter(), Counter()
    for seed in range(5000):
        scene = make_scene(FIRST_SEED["train"] + seed)
        themes[scene.theme] += 1
        seen.update((name, scene.theme) for name in {o.name for o in scene.objects})
    return {(name, theme): round(10 * seen[name, theme] / themes[theme])
            for name in OBJECTS for theme in themes}


def existence(run, part, dataset_class):
    """Ask for all objects of the picture world in half of the scenes -> two dicts.

    false_yes: plausibility (of ten) -> share of "yes" for what is not there.
    by_objects: number of objects in the scene -> accuracy, as if half of them were there.
    """
    split, plausible = make_world(part, SCENES // 2, 0, run[0].config.image_size), plausibility()
    scenes = [make_scene(FIRST_SEED[part] + i) for i in range(len(split.objects))]
    examples, false_yes, right = [], defaultdict(list), defaultdict(list)
    for i, present in enumerate(split.objects):
        for name in OBJECTS:
            label = NO_YES[name in present]
            examples.append(Example(i, exist_question(name), label, name))
    for example, text in zip(examples, ask(run, split.images, examples, dataset_class)):
        scene = scenes[example.picture]
        right[len(scene.objects), example.answer].append(text == example.answer)
        if example.answer == "no":
            false_yes[plausible[example.kind, scene.theme]].append(text == "yes")
    numbers = sorted({number for number, _ in right})
    return {"false_yes": {key: round(mean(false_yes[key]), 4) for key in sorted(false_yes)},
            "by_objects": {key: round(mean(mean(right[key, label]) for label in NO_YES), 4)
                           for key in numbers}}


def measured(folder, device, part, row):
    """Ask a finished run -> the figures of its line in the results. part: "val" or "test"."""
    run = train.load(folder, device, row.trainer.model_class)
    curves = defaultdict(list)  # question kind -> list of [step, accuracy on held-out pictures]
    for line in run[2]["log"]:
        for kind, accuracy in line.get("accuracy", {}).items():
            curves[kind].append([line["step"], round(accuracy, 4)])
    return {**row.ask(run, part, row.trainer.dataset_class),
            "take_off": take_off(curves.get("exist", [])), "curves": curves}


def commit():
    """The commit of the code, with a + if a file of code differs from it."""
    edited = getoutput("git status --porcelain -- '*.py' 2>/dev/null")
    return getoutput("git rev-parse --short=7 HEAD 2>/dev/null") + ("+" if edited else "")


def machine(device):
    """The machine in one line."""
    name = getoutput("sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null").split("\n")[0]
    name = torch.cuda.get_device_name() if device.type == "cuda" else name or "CPU"
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def queue(rows, seeds, extra, path, split="test"):
    """Train and ask what has no line in `path` yet. rows: pairs of name and Row."""
    if clash := OWN & {word.split("=")[0] for word in extra}:
        raise SystemExit(f"{' '.join(sorted(clash))}: set for each run; don't give it after --")
    done = [run for _, run in read_lines(path)] if path.exists() else []
    device, version = pick_device(train.parse(extra).device), commit()
    for seed in seeds:
        for name, row in rows:
            arguments = [*row.options, *extra]
            options = train.parse(arguments)
            line = {"row": name, "seed": seed, "learning_rate": options.sft_lr,
                    "steps": options.sft_steps, "split": split, **settings(row, extra)}
            if any(line.items() <= run.items() for run in done):
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            folders = fine_tuned(name, seed, arguments, row)
            line |= measured(folders[-1], device, PARTS[split], row)
            if all((folder / "seconds").exists() for folder in folders):  # never interrupted
                line["seconds"] = [int((folder / "seconds").read_text()) for folder in folders]
            line |= {"commit": version, "machine": machine(device)}
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")


def settings(row, extra):
    """What the options of a Row and further ones change, as in its line; see tables.DEFAULTS."""
    data = train.parse(extra).data
    return {"mix": " ".join(row.mix) or "default", "data": Path(data).name if data else row.data,
            "options": changed(extra, ("sft_lr", "sft_steps", "data"))}


def at_rate(row, rate):
    """A Row at a learning rate."""
    return row._replace(options=[*row.options, "--sft-lr", str(rate)])


def search(name, row, seeds, extra, path, rates):
    """Try learning rates for a row, going on while the last one at either end is the best."""
    rates, steps = list(rates), train.parse([*row.options, *extra]).sft_steps
    while True:
        queue([(name, at_rate(row, rate)) for rate in rates], seeds, extra, path, "search")
        lines = [run for _, run in read_lines(path)]
        best = best_rate(name, lines, steps, **settings(row, extra))
        if best == rates[-1]:
            rates.append(round(best + 0.01, 3))
        elif best == rates[0]:
            rates.insert(0, best / 2)
        else:
            return


def arguments(description, rows):
    """A parser of the command line for some rows."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--rows", nargs="+", choices=rows, default=rows, help="default: all")
    add("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    add("--mix", nargs="+", choices=MIXES, default=[], help="other captions or fewer questions")
    add("--search", nargs="*", type=float, metavar="RATE",
        help="search the rate of each row, from these (default: 0.01 to 0.04)")
    add("--table", action="store_true", help="print the tables, train nothing")
    add("train", nargs="*", help="after --: options of train.py")
    return parser


def compare(options, rows, path, like=None):
    """Do what the command line asks -> the lines of all runs in the file `path`."""
    rows = {name: rows[name]._replace(mix=options.mix) for name in options.rows}
    lines = [run for _, run in read_lines(path)] if path.exists() else []
    extra = options.train
    if options.table:
        return lines
    if options.search is not None:
        for name, row in rows.items():
            search(name, row, options.seeds, extra, path, options.search or RATES)
    else:
        chosen = []
        for name, row in rows.items():
            steps = train.parse([*row.options, *extra]).sft_steps
            rate = best_rate(name, lines, steps, like, **settings(row, extra))
            chosen.append((name, at_rate(row, rate)))
        queue(chosen, options.seeds, extra, path)
    return [run for _, run in read_lines(path)]


def main():
    """The command line."""
    lines = compare(arguments(__doc__.split("\n")[0], ROWS).parse_args(), ROWS, RUNS)
    print(tables(lines, ROWS))
    for mix in sorted({run["mix"] for run in lines}):
        if pairs := paired_table(lines, mix=mix):
            print(f"\nmix {mix}\n\n{pairs}")
    print(f"\n{short_table(lines)}")


if __name__ == "__main__":
    main()
