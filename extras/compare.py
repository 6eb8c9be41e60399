"""Masks side by side: rows x seeds, the rows of a seed from one pre-trained start.

    python -m extras.compare default                               the table of an experiment
    python -m extras.compare mine --rows causal mma --seeds 0 1    train what is not in it yet
    python -m extras.compare half --seeds 0 1 -- --sft-steps 350   options after -- go to train.py
    python -m extras.compare mine --seeds 100 101 --validate --rates 0.01 0.02 0.03

An experiment is a file: each finished run adds a line to results/NAME.jsonl, and its checkpoints
lie in runs/NAME/. Stop at any time: the same command goes on. For other options take another NAME.
The last command finds a rate: it asks about validation scenes and writes results/NAME-rates.jsonl.
"""
import json
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict, namedtuple
from itertools import product
from pathlib import Path
from statistics import median
from subprocess import getoutput

import torch

import train
from data import make_world, read_folder, read_lines
from eval_pope import SPLITS, ask_own
from extras.figures import table
from extras.variants import CCA, OneWay

# options: words for train.py. rate: the learning rate of fine-tuning that was best for POPE on
# validation scenes. trainer: of both stages; rows with the same one share their pre-training.
Row = namedtuple("Row", "options rate trainer", defaults=(train.Trainer,))
CAUSAL, MMA = ["--attention", "causal"], ["--attention", "mma"]
ROWS = {
    "causal": Row(CAUSAL, 0.05),
    "image": Row(["--attention", "image"], 0.03),
    "prefix": Row(["--attention", "prefix"], 0.03),
    "mma": Row(MMA, 0.02),
    "text-first": Row([*CAUSAL, "--order", "text-first"], 0.04),
    "cca": Row(CAUSAL, 0.02, CCA),
    "causal-one-way": Row(CAUSAL, 0.04, OneWay),
    "mma-one-way": Row(MMA, 0.03, OneWay),
}
FIGURES = ("adversarial", "exist", "exist_color", "all questions")
HOW = ("In %: median of the seeds (lowest to highest). k/n: ahead of the first row in k of n pairs "
       "of runs with the same seed.")
SCENES = 1000  # that are asked about; POPE takes 500 of them


def ask_world(run, name, dataset_class):
    """What is asked of a run about pictures, see `compare`."""
    options, size = run[2]["options"], run[0].config.image_size
    if options["data"]:
        [part] = read_folder(options["data"], size, options["seed"], [name])
    else:
        part = make_world(name, SCENES, 0, size)
    figures = ask_own(run, part, dataset_class)
    pope = {split: figures[split]["accuracy"] for split in SPLITS if split in figures}
    return pope | {"kinds": figures["kinds"], "accuracy": figures["accuracy"]}


def trained(options, parts, trainer):
    """Train a run, or finish it, or find it finished -> its folder. Arguments: see `measured`."""
    folder = Path("runs", options.name)
    if not (folder / "model.pt").exists():
        train.start(options, parts(options), trainer).train()
    elif not train.load(folder, "cpu", trainer.model_class)[2]["finished"]:
        train.resume(folder, parts(options), trainer).train()
    return folder


def measured(options, trainer, parts, ask, scenes):
    """Train a run, from the pre-training of its seed and Trainer, and ask it -> its line.

    options: of train.py. parts, ask: see `compare`. scenes: "val" or "test".
    """
    version, device = commit(), train.pick_device(options.device)
    name = Path(options.name).with_name(f"pretrained-{trainer.__name__}-seed{options.seed}")
    first = vars(options) | {"name": str(name), "order": "image-first", "sft_steps": 0}
    start = trained(Namespace(**first), parts, trainer)
    options.pretrained = str(start / "pretrained.pt")
    began = time.monotonic()
    folder = trained(options, parts, trainer)
    seconds = round(time.monotonic() - began)  # of fine-tuning
    run = train.load(folder, device, trainer.model_class)
    figures = ask(run, scenes, trainer.dataset_class)
    return figures | {"seconds": seconds, "commit": version, "machine": machine(device)}


def commit():
    """The commit of the code, with a + if a file of code differs from it."""
    edited = getoutput("git status --porcelain -- '*.py' 2>/dev/null")
    return getoutput("git rev-parse --short=7 HEAD 2>/dev/null") + ("+" if edited else "")


def machine(device):
    """The machine in one line."""
    name = getoutput("sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null").split("\n")[0]
    name = torch.cuda.get_device_name() if device.type == "cuda" else name or "CPU"
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def summary(lines, figures=FIGURES):
    """Lines of results/NAME.jsonl -> Markdown: a table with a row per (row, rate), and its key.

    figures: splits of POPE, kinds of question and "all questions"; unknown ones are left out.
    """
    runs, rows = defaultdict(dict), []  # (row, rate) -> seed -> figure -> percent
    for line in lines:
        shares = {**line, **line["kinds"], "all questions": line["accuracy"]}
        percents = {figure: 100 * shares[figure] for figure in figures if figure in shares}
        runs[line["row"], line["rate"]][line["seed"]] = percents
    first = next(iter(runs.values()))
    for (name, rate), found in runs.items():
        cells = {"row": name, "rate": str(rate), "seeds": str(len(found))}
        pairs = [(found[seed], first[seed]) for seed in found if seed in first]
        for figure in percents:
            values = sorted(run[figure] for run in found.values())
            ahead = sum(run[figure] > other[figure] for run, other in pairs)
            against = f" {ahead}/{len(pairs)}" if found is not first else ""
            cells[figure] = f"{median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f}){against}"
        rows.append(cells)
    origins = {f"Commit {line['commit']}, {line['machine']}.": None for line in lines}
    return "\n\n".join([HOW, table(rows), *origins])


def arguments(rows, description):
    """The command line as a namespace; `train` is what stands after --."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", help="of the experiment: its lines are in results/NAME.jsonl")
    add("--seeds", nargs="+", type=int, default=[], help="to train (default: none)")
    add("--rows", nargs="+", choices=rows, metavar="ROW",
        help=f"{', '.join(rows)} (default: train causal and mma, print all)")
    add("--rates", nargs="+", type=float, metavar="RATE",
        help="of fine-tuning (default: train at those of the rows, print all)")
    add("--validate", action="store_true", help="ask about validation scenes, to find a rate")
    words = [*sys.argv[1:], "--"]
    end = words.index("--")
    options = parser.parse_args(words[:end])
    options.train = words[end + 1:-1]
    return options


def compare(rows, ask, description, parts=train.load_parts, figures=FIGURES):
    """The command line of experiments: train what has no line yet, then print the table.

    rows: name -> Row. ask: function of (a run as `train.load` returns it, "val" or "test", a
    dataset class) -> dict of `kinds` (kind of question -> share), `accuracy` (of all questions)
    and, where there is POPE, the accuracies `random`, `popular` and `adversarial`. parts: function
    of options -> the two `data.Part`s to train and to validate on. figures: columns of the table.
    """
    options = arguments(rows, description)
    scenes, ending = ("val", "-rates") if options.validate else ("test", "")
    path = Path(f"results/{options.name}{ending}.jsonl")
    path.parent.mkdir(exist_ok=True)
    lines = [line for _, line in read_lines(path)] if path.exists() else []
    for seed, row in product(options.seeds, options.rows or ("causal", "mma")):
        for rate in options.rates or [rows[row].rate]:
            line = {"row": row, "seed": seed, "rate": rate}
            if any(line.items() <= other.items() for other in lines):
                continue
            print(f"\n{row} at {rate}, seed {seed}", flush=True)
            own = f"--seed {seed} --sft-lr {rate} --name {options.name}/{row}-{rate}-seed{seed}"
            given = train.parse([*rows[row].options, *options.train, *own.split()])
            line |= measured(given, rows[row].trainer, parts, ask, scenes)
            lines.append(line)
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")
    if options.rows:
        lines = [line for line in lines if line["row"] in options.rows]
    if options.rates:
        lines = [line for line in lines if line["rate"] in options.rates]
    if not lines:
        raise SystemExit(f"{path}: no such run yet; --seeds 0 trains some")
    print(summary(lines, figures))


def main():
    """The command line."""
    compare(ROWS, ask_world, __doc__)


if __name__ == "__main__":
    main()
