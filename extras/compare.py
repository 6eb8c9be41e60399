"""The paper's comparison: every way to show the question to the picture, trained from the same start.

    python -m extras.compare                          every row with seed 0
    python -m extras.compare --rows causal mma --seeds 0 1 2
    python -m extras.compare --seeds 0 -- --sft-steps 2400    options after -- go to train.py
    python -m extras.compare --table                  the tables of all finished runs

Each seed is pre-trained once, and its rows are fine-tuned from there: the same data in the same
order, the same steps, the same number of parameters. A run that ends adds a line to
results/runs.jsonl. Stop it at any time: the same command goes on and skips finished runs.
"""
import argparse
import json
import platform
import re
import subprocess
from pathlib import Path
from statistics import median

import torch

import train
from data import read_lines
from eval_pope import SPLITS, ask_own
from model import pick_device

ROWS = {  # name -> options of train.py; as in Table 1 of the paper
    "causal": ["--attention", "causal"],
    "text-first": ["--attention", "causal", "--order", "text-first"],
    "dual": ["--attention", "causal", "--order", "dual"],
    "image": ["--attention", "image"],
    "prefix": ["--attention", "prefix"],
    "mma": ["--attention", "mma"],
}
RUNS = Path("results/runs.jsonl")
MIX = "default"  # the questions of data.py; earlier runs were trained on another mix
SETTINGS = ("steps", "learning_rate", "mix", "data", "options")  # equal in all rows of a table
SFT_ONLY = ("attention", "order", "questions", "sft_steps", "sft_lr", "train_vit")
OWN = {"--seed", "--name", "--pretrained", "--resume"}  # options that `queue` sets itself


# Training.

def changed(arguments, without=()):
    """Options of train.py -> dict of those that make another run than the default's."""
    options = vars(train.parse(arguments))
    default = vars(train.parse(["--preset", options["preset"]])) | {"preset": "tiny"}
    without = (*without, "name", "seed", "device", "save_every", "pretrained")
    return {name: value for name, value in options.items()
            if value != default[name] and name not in without}


def trained(kind, seed, options, arguments):
    """Train a run, or finish it, or find it finished -> its folder, which is named after its options."""
    words = [kind, f"seed{seed}"] + [f"{name}-{value}" for name, value in options.items()]
    name = re.sub(r"[^\w.]+", "-", "-".join(["compare", *words]))
    folder, arguments = Path("runs") / name, [*arguments, "--seed", str(seed), "--name", name]
    if not (folder / "model.pt").exists():
        train.start(train.parse(arguments)).train()
    elif not train.load(folder)[2]["finished"]:
        train.resume(folder).train()
    return folder


def fine_tuned(seed, arguments):
    """Pre-train a seed unless that is done, and fine-tune it -> folder of the run."""
    start = trained("pretrained", seed, changed(arguments, SFT_ONLY), [*arguments, "--sft-steps", "0"])
    attention = train.parse(arguments).attention
    return trained(attention, seed, changed(arguments, ["attention"]),
                   [*arguments, "--pretrained", str(start / "model.pt")])


def settings(arguments, extra):
    """What a line of results says about the options of a run. extra: those after --."""
    options = train.parse(arguments)
    others = changed(extra, ("sft_steps", "sft_lr", "data"))
    return {"learning_rate": options.sft_lr, "steps": options.sft_steps, "mix": MIX,
            "data": options.data or "world", "options": others}


def take_off(curve, least=0.6):
    """The first validation from which accuracy stays above `least` -> its step, or None."""
    first = None
    for step, accuracy in reversed(curve):
        if accuracy <= least:
            break
        first = step
    return first


def measured(folder, device, scenes):
    """Let a finished run answer -> the figures of its line of results."""
    run = train.load(folder, device)
    log = [line for line in run[2]["log"] if line["stage"] == "sft" and "accuracy" in line]
    curve = [[line["step"], round(line["accuracy"]["exist"], 4)] for line in log if "exist" in line["accuracy"]]
    figures = ask_own(run, scenes)
    asked = [split for split in SPLITS if split in figures]
    return {"split": "test", **{split: round(figures[split]["accuracy"], 4) for split in asked},
            "yes_ratio": {split: round(figures[split]["yes_ratio"], 4) for split in asked},
            "take_off": take_off(curve), "curve": curve,
            "kinds": {kind: round(share, 4) for kind, share in figures["kinds"].items()}}


def commit():
    """The version of the code: the commit, with a + if a file of code differs from it."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent.parent,
                              capture_output=True, text=True).stdout.strip()

    edited = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short=7", "HEAD") + ("+" if edited else "")


def machine(device):
    """The machine in one line."""
    name, cpus = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    elif cpus.exists() and "model name" in cpus.read_text():
        name = cpus.read_text().split("model name")[1].split("\n")[0].strip("\t :")
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def read_runs(path):
    """The lines of a file of results -> list of dicts."""
    return [line for _, line in read_lines(path)] if path.exists() else []


def queue(rows, names, seeds, extra, path, scenes):
    """Train and ask whatever has no line in `path` yet. rows: name -> options of train.py."""
    taken = OWN | {word for name in names for word in rows[name] if word.startswith("--")}
    if both := taken & {word.split("=")[0] for word in extra}:
        raise SystemExit(f"{', '.join(sorted(both))}: set by the rows or by --seeds, not after --")
    path.parent.mkdir(exist_ok=True)
    device, version = pick_device(train.parse(extra).device), commit()
    for seed in seeds:
        for name in names:
            line = {"row": name, "seed": seed, **settings([*extra, *rows[name]], extra)}
            if any(line.items() <= done.items() for done in read_runs(path)):
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            line |= measured(fine_tuned(seed, [*extra, *rows[name]]), device, scenes)
            with open(path, "a") as file:
                file.write(json.dumps(line | {"commit": version, "machine": machine(device)}) + "\n")


# Tables.

def table(header, rows):
    """A Markdown table whose columns line up in a terminal, too."""
    cells = [header, ["-" * len(name) for name in header], *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in cells]
    return "\n".join(f"| {line} |" for line in lines)


def percents(shares, form="{:.1f}"):
    """Shares of the seeds -> text in percent; "-" where there is none."""
    return " ".join("-" if share is None else form.format(100 * share) for share in shares)


def pope_row(name, runs):
    """One row of a table about POPE. runs: the lines of its seeds."""
    random = [run.get("random") for run in runs]
    there = [share for share in random if share is not None]
    return [name, " ".join(str(run["seed"]) for run in runs), percents(random),
            f"{100 * median(there):.1f}" if there else "-", f"{sum(x >= 0.9 for x in there)} of {len(runs)}",
            *(percents([run.get(split) for run in runs]) for split in SPLITS[1:]),
            percents([run["yes_ratio"].get("random") for run in runs], "{:.0f}"),
            " ".join(str(run["take_off"] or "-") for run in runs)]


def tables(lines, order, equal=SETTINGS):
    """All tables as Markdown: for each group of runs whose `equal` are equal POPE, and question kinds."""
    groups = {}
    for line in lines:
        groups.setdefault(json.dumps([line[key] for key in equal]), []).append(line)
    parts = []
    for group in groups.values():
        first, commits = group[0], sorted({line["commit"] for line in group})
        about = [f"{key.replace('_', ' ')} {first[key]}" for key in equal if key != "options"]
        about += [f"{key.replace('_', ' ')} {value}" for key, value in first["options"].items()]
        names = dict.fromkeys([*order, *(line["row"] for line in group)])
        rows = {name: sorted((line for line in group if line["row"] == name), key=lambda run: run["seed"])
                for name in names}
        rows = {name: runs for name, runs in rows.items() if runs}
        kinds = list(dict.fromkeys(kind for line in group for kind in line["kinds"]))
        parts.append(f"**{', '.join(about)}; commit {', '.join(commits)}**")
        parts.append(table(["row", "seeds", "random, %", "median", "reach 90 %", "popular, %", "adversarial, %",
                            "says yes, %", "take-off"], [pope_row(name, rows[name]) for name in rows]))
        parts.append(table(["row", *kinds], [
            [name, *(percents([run["kinds"].get(kind) for run in runs], "{:.0f}") for kind in kinds)]
            for name, runs in rows.items()]))
    return "\n\n".join(parts)


def main():
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    add("--seeds", nargs="+", type=train.at_least(0), default=[0], help="default: 0")
    add("--scenes", type=train.at_least(1), default=1000, help="test scenes (default: 1000)")
    add("--table", action="store_true", help="print the tables and train nothing")
    add("train", nargs="*", help="after --: options of train.py, such as -- --sft-steps 2400")
    options = parser.parse_args()
    if not options.table:
        queue(ROWS, options.rows, options.seeds, options.train, RUNS, options.scenes)
    print(tables(read_runs(RUNS), ROWS))


if __name__ == "__main__":
    main()
