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
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict, namedtuple
from itertools import product
from pathlib import Path
from statistics import mean, median
from subprocess import getoutput

import torch

import train
from data import make_world, read_folder, read_lines
from eval_pope import SPLITS, ask, ask_own
from extras.figures import table
from extras.variants import FISH, OneWay, look_alike_part

# words: options of train.py. rate: of fine-tuning. For causal and mma, one-way or not, it is the
# best one on validation scenes, by the mean over the kinds of question
# (results/default-rates.jsonl); other rows take that of the one that is more like them. trainer: of
# both stages; rows with the same one share their pre-training.
Row = namedtuple("Row", "words rate trainer", defaults=(train.Trainer,))
ROWS = {
    "causal": Row("--attention causal", 0.005),
    "mma": Row("--attention mma", 0.03),
    "image": Row("--attention image", 0.005),
    "future": Row("--attention future", 0.03),
    "prefix": Row("--attention prefix", 0.03),
    "text-first": Row("--attention causal --order text-first", 0.03),
    "text-twice": Row("--attention causal --order text-twice", 0.03),
    "causal-one-way": Row("--attention causal", 0.01, OneWay),
    "mma-one-way": Row("--attention mma", 0.03, OneWay),
}
ROWS |= {f"{row}-{steps}": Row(f"{ROWS[row].words} --sft-steps {steps}", ROWS[row].rate)
         for steps in (300, 400, 1200) for row in ("causal", "mma")}  # in place of 600
FIGURES = ("adversarial", "exist", "exist_color", "look-alikes", "all questions")
HOW = ("In %: median of the seeds (lowest to highest). k/n: ahead of the first row in k of n pairs "
       "of runs with the same seed.")
SCENES = 1000  # that are asked about; POPE takes 500 of them


def measure_world(run, name):
    """What is asked of a run about pictures, see `compare`."""
    model, _, checkpoint = run
    options, size = checkpoint["options"], model.config.image_size
    if options["data"]:
        [part] = read_folder(options["data"], size, options["seed"], [name])
    else:
        part = make_world(name, SCENES, 0, size)
    figures = ask_own(run, part)
    found = {split: figures[split]["accuracy"] for split in SPLITS if split in figures}
    if found and options["data"]:
        found["yes_ratio"] = mean(figures[split]["yes_ratio"] for split in found)
    if not options["data"]:
        given = ask(run, look_alike_part(name, size))
        shares = train.accuracy_by_kind(*zip(*given))[0]
        found["fish"] = {kind: [shares[kind, fish] for fish in FISH]
                         for kind in ("exist", "exist_color")}
        found["look-alikes"] = mean(found["fish"]["exist_color"][3:])
    return found | {"kinds": figures["kinds"], "accuracy": figures["accuracy"]}


def same_options(path, found, given):
    """SystemExit if what is at the path was made with other words for train.py than those given."""
    if found != given:
        words = " ".join(found) or "none"
        raise SystemExit(f"{path}: made with other options ({words}): take another NAME")


def trained(options, trainer, parts):
    """Both stages of a run, trained or resumed where they are not finished -> the loaded run.

    options: of train.py, with `words`, the words that were given for them. The first stage is that
    of all runs with the same seed and Trainer. parts: see `compare`.
    """
    shared = Path(options.name).with_name(f"pretrained-{trainer.__name__}-seed{options.seed}")
    first = {"name": str(shared), "order": "image-first", "sft_steps": 0}
    first = Namespace(**vars(options) | first)
    options.pretrained = f"runs/{shared}/pretrained.pt"
    for stage in (first, options):
        folder = Path("runs", stage.name)
        if not (folder / "model.pt").exists():
            train.start(stage, parts(stage), trainer).train()
        checkpoint = train.load(folder, "cpu", trainer.model_class)[2]
        same_options(folder, checkpoint["options"].get("words", []), options.words)
        if not checkpoint["finished"]:
            train.resume(folder, parts(stage), trainer).train()
    return train.load(folder, train.pick_device(options.device), trainer.model_class)


def origin(device):
    """A dict of the commit of the code, with a + if a file of code differs, and of the machine."""
    commit = getoutput("git rev-parse --short=7 HEAD 2>/dev/null")
    if getoutput("git status --porcelain -- '*.py' 2>/dev/null"):
        commit += "+"
    name = getoutput("sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null").split("\n")[0]
    name = torch.cuda.get_device_name() if device.type == "cuda" else name or "CPU"
    machine = f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    return {"commit": commit, "machine": machine}


def shares_of(line):
    """All that a line of results/NAME.jsonl says, by name."""
    return line | line["kinds"] | {"all questions": line["accuracy"]}


def summary(lines, figures=FIGURES):
    """Lines of results/NAME.jsonl -> Markdown: a table with a row per (row, rate), and its key.

    figures: splits of POPE, kinds of question, "all questions", "yes_ratio", and "look-alikes":
    "Is there a red fish?" among four to six fish. Those that a line lacks are left out.
    """
    groups = defaultdict(dict)  # (row, rate) -> seed -> figure -> share of right answers
    for line in lines:
        groups[line["row"], line["rate"]][line["seed"]] = shares_of(line)
    figures = [name for name in figures if all(name in shares_of(line) for line in lines)]
    first = next(iter(groups.values()))
    rows = []
    for (name, rate), group in groups.items():
        rows.append({"row": name, "rate": str(rate), "seeds": str(len(group))})
        shared = group.keys() & first.keys()  # seeds
        for figure in figures:
            percents = [100 * run[figure] for run in group.values()]
            cell = f"{median(percents):.1f} ({min(percents):.1f} to {max(percents):.1f})"
            if group is not first and figure != "yes_ratio":  # more is not better
                ahead = sum(group[seed][figure] > first[seed][figure] for seed in shared)
                cell += f" {ahead}/{len(shared)}"
            rows[-1][figure] = cell
    origins = {f"Commit {line['commit']}, {line['machine']}.": None for line in lines}
    return "\n\n".join([HOW, table(rows), *origins])


def arguments(rows, description, figures):
    """The command line as a namespace; `words` are those after --."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", help="name of the experiment: its lines are in results/NAME.jsonl")
    add("--seeds", nargs="+", type=int, default=[], help="seeds to train (default: none)")
    add("--rows", nargs="+", choices=rows, metavar="ROW",
        help=f"{', '.join(rows)}, see ROWS (default: train causal and mma, print all)")
    add("--rates", nargs="+", type=float, metavar="RATE",
        help="learning rates of fine-tuning (default: train at those of ROWS, print all)")
    add("--figures", nargs="+", metavar="FIGURE", default=figures,
        help=f"columns of the table, as far as they are known (default: {', '.join(figures)})")
    add("--validate", action="store_true", help="ask about validation scenes, to find a rate")
    words = [*sys.argv[1:], "--"]
    end = words.index("--")
    options = parser.parse_args(words[:end])
    options.words = words[end + 1:-1]
    return options


def compare(rows=ROWS, measure=measure_world, description=__doc__, parts=train.load_parts,
            figures=FIGURES):
    """The command line: train what has no line yet, then print the table.

    rows: name -> Row. measure: function of (a run as `train.load` returns it, "val" or "test") ->
    dict of `kinds` (kind of question -> share), `accuracy` (of all questions) and further figures.
    parts: function of options -> the two `data.Part`s to train and to validate on. figures: columns
    of the table, see `summary`.
    """
    options = arguments(rows, description, figures)
    scenes, ending = ("val", "-rates") if options.validate else ("test", "")
    path = Path(f"results/{options.name}{ending}.jsonl")
    path.parent.mkdir(exist_ok=True)
    lines = [line for _, line in read_lines(path)] if path.exists() else []
    if options.seeds:
        for line in lines:
            same_options(path, line.get("options", []), options.words)
    for seed, name in product(options.seeds, options.rows or ("causal", "mma")):
        for rate in options.rates or [rows[name].rate]:
            line = {"row": name, "seed": seed, "rate": rate}
            if any(line.items() <= other.items() for other in lines):
                continue
            print(f"\n{name} at {rate}, seed {seed}", flush=True)
            own = f"--seed {seed} --sft-lr {rate} --name {options.name}/{name}-{rate}-seed{seed}"
            given = train.parse(rows[name].words.split() + options.words + own.split())
            given.words = options.words
            line |= origin(train.pick_device(given.device)) | {"options": options.words}
            line |= measure(trained(given, rows[name].trainer, parts), scenes)
            lines.append(line)
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")
    for key, wanted in (("row", options.rows), ("rate", options.rates)):
        lines = [line for line in lines if line[key] in (wanted or [line[key]])]
    order = [*(options.rows or rows), *(line["row"] for line in lines)]
    lines.sort(key=lambda line: order.index(line["row"]))
    if not lines:
        raise SystemExit(f"{path}: no such run yet; --seeds 0 trains some")
    for name in options.figures:
        if name not in figures and any(name not in shares_of(line) for line in lines):
            raise SystemExit(f"--figures: {path} has no {name!r} in all of these rows")
    print(summary(lines, options.figures))


if __name__ == "__main__":
    compare()
