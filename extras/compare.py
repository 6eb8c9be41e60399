"""One mask beside another: rows of settings, from the same pre-trained start, seed by seed.

    python -m extras.compare --search --rows causal mma --seeds 100 101   the rate of each row
    python -m extras.compare --rows causal mma --seeds 0 1 2              at that rate
    python -m extras.compare --seeds 0 -- --sft-steps 1800    options after -- go to train.py
    python -m extras.compare --seeds 0 --mix one-way          other captions, see variants.py
    python -m extras.compare --table                          the tables of all finished runs

Each seed is pre-trained once, and its rows are fine-tuned from there on the same data. The search
tries learning rates of fine-tuning on validation scenes; then each row is trained at the one that
was best for it, and asked about test scenes. Runs lie in runs/compare-ROW-seedSEED-RATE-DIGEST; a
finished one adds a line to results/runs.jsonl. Stop at any time: the same command skips it.
"""
import json
import re
import time
from argparse import ArgumentParser, Namespace
from collections import defaultdict, namedtuple
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import fmean
from subprocess import getoutput

import torch

import train
from data import (FIRST_SEED, NO_YES, OBJECTS, Example, exist_question, make_scene, make_world,
                  read_lines)
from eval_pope import SPLITS, ask, ask_own
from extras.tables import best_rate, paired_table, short_table, tables
from extras.variants import CCA, DOT, MIXES, Scrambled, instructed
from model import pick_device

RUNS = Path("results/runs.jsonl")
PARTS = {"search": "val", "test": "test"}  # split of a line -> scenes that are asked about
SCENES = 1000  # POPE asks about 500 of them
OWN = {"--attention", "--order", "--seed", "--name", "--pretrained"}  # not for the user to set
SFT_ONLY = ("attention", "order", "questions", "sft_steps", "sft_lr", "train_vit")


def ask_world(run, part, dataset_class):
    """-> the figures of a run about its own data, of the picture world with those of `existence`.

    part: "val" or "test".
    """
    figures = ask_own(run, SCENES, part, dataset_class)
    pope = {split: figures[split] for split in SPLITS if split in figures}
    figures |= {split: pope[split]["accuracy"] for split in pope}
    figures["yes_ratio"] = {split: pope[split]["yes_ratio"] for split in pope}
    own_data = run[2]["options"]["data"]
    return figures if own_data else figures | existence(run, part, dataset_class)


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


def settings(row, options):
    """What a Row and the command line change, as in a line of the results; see tables.DEFAULTS."""
    run = train.parse([*row.options, *options.train])
    given = vars(train.parse(options.train)).items() - vars(train.parse([])).items()
    elsewhere = ("data", "seed", "sft_lr", "sft_steps", "name", "device", "save_every")
    return {"steps": run.sft_steps, "mix": " ".join(row.mix) or "default",
            "data": Path(run.data).name if run.data else row.data,
            "options": {key: value for key, value in sorted(given) if key not in elsewhere}}


def trained(name, options, row):
    """Train a run, or finish it, or find it finished -> its folder.

    It is named by a digest of all options: another option or default is another run.
    """
    told = repr([sorted(vars(options).items()), row.data, row.mix])
    words = re.sub(r"[^\w.]+", "-", f"compare-{name}")
    options.name = f"{words}-{sha256(told.encode()).hexdigest()[:8]}"
    folder = Path("runs", options.name)
    begun, started = (folder / "model.pt").exists(), time.monotonic()
    if begun and train.load(folder, model_class=row.trainer.model_class)[2]["finished"]:
        return folder
    splits = row.splits(options)
    for mix in row.mix:
        splits = [MIXES[mix](split) for split in splits]
    if begun:
        train.resume(folder, splits, row.trainer).train()
    else:
        train.start(options, splits, row.trainer).train()
        (folder / "seconds").write_text(f"{time.monotonic() - started:.0f}")
    return folder


def fine_tuned(name, options, row):
    """Pre-train a seed unless that is done, and fine-tune it -> folders of the two stages."""
    default = vars(train.parse([]))
    start = vars(options) | {key: default[key] for key in SFT_ONLY} | {"sft_steps": 0}
    pretrained = trained(f"pretrained-{row.start.__name__}-seed{options.seed}",
                         Namespace(**start), row._replace(trainer=row.start))
    options.pretrained = str(pretrained / "model.pt")
    return pretrained, trained(f"{name}-seed{options.seed}-{options.sft_lr}", options, row)


def take_off(curve, least=0.6):
    """The first validation from which accuracy stays above `least` -> its step, or None."""
    low = max((step for step, accuracy in curve if accuracy <= least), default=0)
    return next((step for step, _ in curve if step > low), None)


def all_objects(part, n):
    """Questions for every object in n scenes: yields Examples whose kind is (object, Scene)."""
    for i in range(n):
        scene = make_scene(FIRST_SEED[part] + i)
        present = {o.name for o in scene.objects}
        for name in OBJECTS:
            yield Example(i, exist_question(name), NO_YES[name in present], (name, scene))


def existence(run, part, dataset_class):
    """Ask for all objects of the picture world in half of the scenes -> two dicts.

    false_yes: on how many of ten training scenes of its theme an object is -> share of "yes" where
    it is not. by_objects: number of objects in the scene -> accuracy, as if half were there.
    """
    shown, false_yes, right = defaultdict(list), defaultdict(list), defaultdict(list)
    for example in all_objects("train", 5000):
        name, scene = example.kind
        shown[name, scene.theme].append(example.answer == "yes")
    images = make_world(part, SCENES // 2, 0, run[0].config.image_size).images
    examples = list(all_objects(part, len(images)))
    for example, text in zip(examples, ask(run, images, examples, dataset_class)):
        name, scene = example.kind
        right[len(scene.objects), example.answer].append(text == example.answer)
        if example.answer == "no":
            false_yes[round(10 * fmean(shown[name, scene.theme]))].append(text == "yes")
    numbers = sorted({number for number, _ in right})
    return {"false_yes": {key: fmean(false_yes[key]) for key in sorted(false_yes)},
            "by_objects": {n: fmean(fmean(right[n, label]) for label in NO_YES) for n in numbers}}


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


def recorded(path):
    """The lines of all finished runs."""
    return [line for _, line in read_lines(path)] if path.exists() else []


def queue(rows, options, path, split="test"):
    """Train and ask what has no line in `path` yet. rows: of name, Row, and learning rate."""
    done, version = recorded(path), commit()
    for seed, (name, row, rate) in product(options.seeds, rows):
        run = train.parse([*row.options, "--sft-lr", str(rate), *options.train])
        run.seed = seed
        line = {"row": name, "seed": seed, "learning_rate": run.sft_lr, "split": split,
                **settings(row, options)}
        if any(line.items() <= other.items() for other in done):
            continue
        print(f"\n{name}, seed {seed}", flush=True)
        folders, device = fine_tuned(name, run, row), pick_device(run.device)
        line |= measured(folders[-1], device, PARTS[split], row)
        if all((folder / "seconds").exists() for folder in folders):  # never interrupted
            line["seconds"] = [int((folder / "seconds").read_text()) for folder in folders]
        line |= {"commit": version, "machine": machine(device)}
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def search(name, row, options, path):
    """Try learning rates for a row, going on while the last one at either end is the best."""
    rates = options.search or [0.01, 0.02, 0.03, 0.04]
    while True:
        queue([(name, row, rate) for rate in rates], options, path, "search")
        best = best_rate(name, recorded(path), **settings(row, options))
        if best == rates[-1]:
            rates = [*rates, round(best + 0.01, 3)]
        elif best == rates[0]:
            rates = [best / 2, *rates]
        else:
            return


def arguments(description, rows):
    """A parser of the command line for some rows."""
    parser = ArgumentParser(description=description)
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
    lines, chosen = recorded(path), []
    if clash := OWN & {word.split("=")[0] for word in options.train}:
        raise SystemExit(f"{' '.join(sorted(clash))}: set for each run; don't give it after --")
    if options.table:
        return lines
    for name in options.rows:
        row = rows[name]._replace(mix=options.mix)
        if options.search is None:
            rate = best_rate(name, lines, like=like, **settings(row, options))
            chosen.append((name, row, rate))
        else:
            search(name, row, options, path)
    queue(chosen, options, path)
    return recorded(path)


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
