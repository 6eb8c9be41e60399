"""One mask beside another: rows of settings, from the same pre-trained start, seed by seed.

    python -m extras.compare --rows causal mma --seeds 0 1 2
    python -m extras.compare --seeds 0 -- --sft-steps 2400    options after -- go to train.py
    python -m extras.compare --table                          the tables of all finished runs

Each seed is pre-trained once, and its rows are fine-tuned from there on the same data. A finished
run adds a line to results/runs.jsonl. Stop at any time: the same command skips finished runs.
"""
import argparse
import json
import re
import time
from pathlib import Path
from statistics import median
from subprocess import getoutput

import torch

import train
from data import read_lines
from eval_pope import SPLITS, ask_own
from model import pick_device

ROWS = {  # name -> options of train.py
    "causal": ["--attention", "causal"],
    "text-first": ["--attention", "causal", "--order", "text-first"],
    "image": ["--attention", "image"],
    "prefix": ["--attention", "prefix"],
    "mma": ["--attention", "mma"],
}
OWN = {"--attention", "--order", "--seed", "--name", "--pretrained"}  # not for the user to set
RUNS = Path("results/runs.jsonl")
SCENES = 1000  # test scenes; POPE asks about 500 of them
MIX = "default"  # of the questions in data.py
SETTINGS = ("steps", "learning_rate", "mix", "data", "split", "options")  # of all rows of a table
SFT_ONLY = ("attention", "order", "questions", "sft_steps", "sft_lr", "train_vit")


def changed(arguments, without):
    """Options of train.py -> dict of those that differ from the default and change the result."""
    options = vars(train.parse(arguments))
    default = vars(train.parse(["--preset", options["preset"]])) | {"preset": "tiny"}
    kept = sorted(options.keys() - {*without, "name", "seed", "device", "save_every"})
    return {key: options[key] for key in kept if options[key] != default[key]}


def trained(kind, seed, options, arguments, change=None):
    """Train a run, or finish it, or find it finished -> its folder. options: part of its name.

    change: None, or a function that takes the two splits of the data and returns others.
    """
    words = [f"compare-{kind}-seed{seed}", *(f"{key}-{value}" for key, value in options.items())]
    words += [change.__name__] if change else []
    folder = Path("runs") / re.sub(r"[^\w.]+", "-", "-".join(words))
    if folder.exists() and train.load(folder)[2]["finished"]:
        return folder
    options = train.parse([*arguments, "--seed", str(seed), "--name", folder.name])
    splits = change(train.load_splits(options)) if change else None
    if folder.exists():
        train.resume(folder, splits).train()
    else:
        started = time.monotonic()
        train.start(options, splits).train()
        (folder / "seconds").write_text(f"{time.monotonic() - started:.0f}")
    return folder


def fine_tuned(seed, arguments, change=None):
    """Pre-train a seed unless that is done, and fine-tune it -> folders of the two stages."""
    options, kind = changed(arguments, SFT_ONLY), train.parse(arguments).attention
    first = [*arguments, "--sft-steps", "0"]
    pretrained = trained("pretrained", seed, options, first, change)
    arguments = [*arguments, "--pretrained", str(pretrained / "model.pt")]
    own = changed(arguments, ["attention", "pretrained"])
    return pretrained, trained(kind, seed, own, arguments, change)


def take_off(curve, least=0.6):
    """The first validation from which accuracy stays above `least` -> its step, or None."""
    low = max((step for step, accuracy in curve if accuracy <= least), default=0)
    return next((step for step, _ in curve if step > low), None)


def measured(folder, device, part):
    """Ask a finished run -> the figures of its line in the results. part: "val" or "test"."""
    run = train.load(folder, device)
    figures = ask_own(run, SCENES, part)
    pope = [split for split in SPLITS if split in figures]
    log = [line for line in run[2]["log"] if "accuracy" in line]
    curves = {}  # question kind -> list of [step, accuracy on held-out pictures]
    for line in log:
        for kind, accuracy in line["accuracy"].items():
            curves.setdefault(kind, []).append([line["step"], round(accuracy, 4)])
    return {**{split: figures[split]["accuracy"] for split in pope},
            "yes_ratio": {split: figures[split]["yes_ratio"] for split in pope},
            "take_off": take_off(curves.get("exist", [])), "kinds": figures.get("kinds", {}),
            "accuracy": figures.get("accuracy"), "curves": curves}


def commit():
    """The commit of the code, with a + if a file of code differs from it."""
    edited = getoutput("git status --porcelain -- '*.py' 2>/dev/null")
    return getoutput("git rev-parse --short=7 HEAD 2>/dev/null") + ("+" if edited else "")


def machine(device):
    """The machine in one line."""
    name = getoutput("sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null").split("\n")[0]
    name = torch.cuda.get_device_name() if device.type == "cuda" else name or "CPU"
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def queue(rows, seeds, extra, path, part="test"):
    """Train and ask what has no line in `path` yet.

    rows: name -> options of train.py, of which one may be a function: see `trained`.
    """
    if clash := OWN & {word.split("=")[0] for word in extra}:
        raise SystemExit(f"{' '.join(sorted(clash))}: set for each run; don't give it after --")
    done = [run for _, run in read_lines(path)] if path.exists() else []
    device, version = pick_device(train.parse(extra).device), commit()
    for seed in seeds:
        for name, row in rows.items():
            change = next(filter(callable, row), None)
            arguments = [*extra, *(word for word in row if word is not change)]
            options = train.parse(arguments)
            line = {"row": name, "seed": seed, "learning_rate": options.sft_lr, "mix": MIX,
                    "steps": options.sft_steps, "split": part,
                    "data": Path(options.data).name if options.data else "world",
                    "options": changed(extra, ("sft_lr", "sft_steps", "data"))}
            if any(line.items() <= run.items() for run in done):
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            folders = fine_tuned(seed, arguments, change)
            line |= measured(folders[-1], device, part)
            if all((folder / "seconds").exists() for folder in folders):  # never interrupted
                line["seconds"] = [int((folder / "seconds").read_text()) for folder in folders]
            line |= {"commit": version, "machine": machine(device)}
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    cells = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


def percents(shares):
    """Shares of 1 as text: "97.5 88.0"."""
    return " ".join(f"{100 * share:.1f}" for share in shares)


def tables(lines, order, equal=SETTINGS):
    """Markdown: for all runs with the same settings a table of POPE and one of question kinds."""
    groups, parts = {}, []
    for run in sorted(lines, key=lambda run: run["seed"]):
        group = groups.setdefault(tuple(str(run[key]) for key in equal), {})
        group.setdefault(run["row"], []).append(run)
    for settings, found in groups.items():
        rows = {name: found[name] for name in [*order, *found] if name in found}
        commits = {run["commit"] for runs in rows.values() for run in runs}
        title = dict(zip(equal, settings)) | {"commit": " ".join(sorted(commits))}
        title = [f"{key} {value}" for key, value in title.items() if value != "{}"]
        parts.append(", ".join(title).replace("_", " "))
        if all("random" in run for runs in rows.values() for run in runs):
            parts.append(table([pope_row(name, runs) for name, runs in rows.items()]))
        parts.append(table([kinds_row(name, runs) for name, runs in rows.items()]))
    return "\n\n".join(parts)


def default_runs(lines):
    """Those of the runs that have default options and were asked about test scenes, by seed."""
    options = train.parse([])
    default = {"mix": MIX, "data": "world", "split": "test", "options": {},
               "steps": options.sft_steps, "learning_rate": options.sft_lr}
    runs = [run for run in lines if default.items() <= run.items()]
    return sorted(runs, key=lambda run: run["seed"])


def short_table(lines):
    """The table of the README: the default run on test scenes, masks beside each other."""
    runs, rows = default_runs(lines), []
    for figure in ("random", "adversarial", "exist_color"):
        for name in sorted({run["row"] for run in runs}, key=[*ROWS].index):
            row = {"accuracy, %": figure, "mask": name}
            for run in runs:
                if run["row"] == name:
                    share = run[figure] if figure in SPLITS else run["kinds"][figure]
                    row[f"seed {run['seed']}"] = percents([share])
            rows.append(row)
    return table(rows)


def pope_row(name, runs):
    """A row of the table of POPE: every seed, the median, and how many learned."""
    random = [run["random"] for run in runs]
    return {"row": name, "seeds": " ".join(str(run["seed"]) for run in runs),
            "random": percents(random), "median": percents([median(random)]),
            "90 % or more": f"{sum(accuracy >= 0.9 for accuracy in random)} of {len(runs)}",
            **{split: percents(run[split] for run in runs) for split in SPLITS[1:]},
            "take-off": " ".join(str(run["take_off"] or "-") for run in runs)}


def kinds_row(name, runs):
    """A row of the table of question kinds; seconds: of each stage that was not interrupted."""
    kinds = {kind: percents(run["kinds"][kind] for run in runs) for kind in runs[0]["kinds"]}
    seconds = ["+".join(map(str, run.get("seconds", "-"))) for run in runs]
    return {"row": name, **kinds, "all questions": percents(run["accuracy"] for run in runs),
            "seconds": " ".join(seconds)}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="scenes to ask")
    parser.add_argument("--table", action="store_true", help="print the tables, train nothing")
    parser.add_argument("train", nargs="*", help="after --: options of train.py")
    options = parser.parse_args()
    if not options.table:
        rows = {name: ROWS[name] for name in options.rows}
        queue(rows, options.seeds, options.train, RUNS, options.split)
    lines = [run for _, run in read_lines(RUNS)]
    print(tables(lines, ROWS))
    if default_runs(lines):
        print(f"\n{short_table(lines)}")


if __name__ == "__main__":
    main()
