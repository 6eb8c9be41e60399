"""The paper's comparison: each way to show the question to the picture, trained from the same start.

    python -m extras.compare --rows causal mma --seeds 0 1 2
    python -m extras.compare --seeds 0 -- --sft-steps 2400    options after -- go to train.py
    python -m extras.compare --table                          the tables of all finished runs

Each seed is pre-trained once and its rows are fine-tuned from there: the same pictures and questions,
steps and parameters. A run that ends adds a line to results/runs.jsonl. Stop it at any time: the same
command goes on, and finished runs are skipped.
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
MIX = "default"  # the mix of questions in data.py; the runs of commit a0f1923 had another
SETTINGS = ("steps", "learning_rate", "mix", "data", "options")  # equal in all rows of a table
SFT_ONLY = ("attention", "order", "questions", "sft_steps", "sft_lr", "train_vit")


# Training.

def changed(arguments, without=()):
    """Options of train.py -> dict of those whose run differs from the default run."""
    options = vars(train.parse(arguments))
    default = vars(train.parse(["--preset", options["preset"]])) | {"preset": "tiny"}
    without = (*without, "name", "seed", "device", "save_every")
    return {name: value for name, value in options.items()
            if value != default[name] and name not in without}


def trained(kind, seed, options, arguments):
    """Train a run, or finish it, or find it finished -> its folder, named after kind and options."""
    words = ["compare", kind, f"seed{seed}", *(f"{name}-{value}" for name, value in options.items())]
    name = re.sub(r"[^\w.]+", "-", "-".join(words))
    folder = Path("runs") / name
    if not folder.exists():
        arguments = [*arguments, "--seed", str(seed), "--name", name]
        train.start(train.parse(arguments)).train()
    elif not train.load(folder)[2]["finished"]:
        train.resume(folder).train()
    return folder


def fine_tuned(seed, arguments):
    """Pre-train a seed unless that is done, and fine-tune it -> the folder of the run."""
    start = trained("pretrained", seed, changed(arguments, SFT_ONLY), [*arguments, "--sft-steps", "0"])
    kind, options = train.parse(arguments).attention, changed(arguments, ["attention"])
    return trained(kind, seed, options, [*arguments, "--pretrained", str(start / "model.pt")])


def take_off(curve, least=0.6):
    """The first validation from which accuracy stays above `least` -> its step, or None."""
    low = max((step for step, accuracy in curve if accuracy <= least), default=0)
    return next((step for step, _ in curve if step > low), None)


def measured(folder, device, scenes):
    """Ask a finished run -> the figures of its line in the results."""
    run = train.load(folder, device)
    figures = ask_own(run, scenes)
    validations = [line for line in run[2]["log"] if line["stage"] == "sft" and "accuracy" in line]
    curve = [[line["step"], line["accuracy"].get("exist", 0.0)] for line in validations]
    pope = {split: figures[split] for split in SPLITS if split in figures}
    return {"split": "test", **{split: pope[split]["accuracy"] for split in pope},
            "yes_ratio": {split: pope[split]["yes_ratio"] for split in pope},
            "take_off": take_off(curve), "kinds": figures["kinds"], "curve": curve}


def commit():
    """The commit of the code, with a + if a file of code differs from it."""
    def git(*words):
        result = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return result.stdout.strip()

    edited = git("status", "--porcelain", "--", ":/*.py")
    return git("rev-parse", "--short=7", "HEAD") + ("+" if edited else "")


def machine(device):
    """The machine in one line."""
    cpus = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    [name, *_] = re.findall(r"model name\s*: (.*)", cpus) or [platform.machine()]
    name = torch.cuda.get_device_name() if device.type == "cuda" else name
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def read_runs(path):
    """A file of results -> list of dicts, one a run."""
    return [line for _, line in read_lines(path)] if path.exists() else []


def queue(rows, seeds, extra, path, scenes):
    """Train and ask what has no line in `path` yet. rows: name -> options of train.py."""
    given = {word.split("=")[0] for word in extra}
    own = {"--seed", "--name", "--pretrained", "--resume"}.union(*rows.values())
    if both := sorted(word for word in own & given if word.startswith("--")):
        raise SystemExit(f"{', '.join(both)}: not to be given after --, as the rows set it")
    path.parent.mkdir(exist_ok=True)
    device, version = pick_device(train.parse(extra).device), commit()
    for seed in seeds:
        for name, row in rows.items():
            options = train.parse([*extra, *row])
            line = {"row": name, "seed": seed, "learning_rate": options.sft_lr, "mix": MIX,
                    "steps": options.sft_steps, "data": options.data or "world",
                    "options": changed(extra, ("sft_lr", "sft_steps", "data"))}
            if any(line.items() <= run.items() for run in read_runs(path)):
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            line |= measured(fine_tuned(seed, [*extra, *row]), device, scenes)
            line |= {"commit": version, "machine": machine(device)}
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")


# Tables.

def table(header, rows):
    """A Markdown table whose columns line up in a terminal, too."""
    cells = [header, ["-" * len(name) for name in header], *rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in cells]
    return "\n".join(f"| {line} |" for line in lines)


def percents(shares, digits=1):
    """One share for each seed -> text in percent; "-" where there is none."""
    return " ".join("-" if share is None else f"{100 * share:.{digits}f}" for share in shares)


def pope_row(name, runs):
    """One row of a table about POPE. runs: the lines of its seeds."""
    seeds, random = [str(run["seed"]) for run in runs], [run.get("random", 0) for run in runs]
    return [name, " ".join(seeds), percents(random), percents([median(random)]),
            f"{sum(accuracy >= 0.9 for accuracy in random)} of {len(runs)}",
            *(percents(run.get(split) for run in runs) for split in SPLITS[1:]),
            percents((run["yes_ratio"].get("random") for run in runs), 0),
            " ".join(str(run["take_off"] or "-") for run in runs)]


def tables(lines, order, equal=SETTINGS):
    """Markdown: for each group of runs that are equal in `equal` a table of POPE and one of kinds."""
    groups, parts = {}, []
    for line in lines:
        groups.setdefault(json.dumps([line[key] for key in equal]), []).append(line)
    for group in groups.values():
        about = {**group[0], **group[0]["options"]}
        about = {key: about[key] for key in (*equal, *group[0]["options"]) if key != "options"}
        about["commit"] = " ".join(sorted({line["commit"] for line in group}))
        parts.append(", ".join(f"{key} {value}" for key, value in about.items()).replace("_", " "))
        rows = {name: [] for name in order}
        for line in sorted(group, key=lambda line: line["seed"]):
            rows.setdefault(line["row"], []).append(line)
        rows = {name: runs for name, runs in rows.items() if runs}
        parts.append(table(["row", "seeds", "random", "median", "90 % or more", *SPLITS[1:], "says yes",
                            "take-off"], [pope_row(name, runs) for name, runs in rows.items()]))
        kinds = list(dict.fromkeys(kind for line in group for kind in line["kinds"]))
        parts.append(table(["row", *kinds], [
            [name, *(percents((run["kinds"].get(kind) for run in runs), 0) for kind in kinds)]
            for name, runs in rows.items()]))
    return "\n\n".join(parts)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW",
        help=f"of {', '.join(ROWS)} (default: all)")
    add("--seeds", nargs="+", type=train.at_least(0), default=[0], metavar="N", help="(default: 0)")
    add("--scenes", type=train.at_least(1), default=1000, help="test scenes (default: 1000)")
    add("--table", action="store_true", help="print the tables, train nothing")
    add("train", nargs="*", help="after --: options of train.py, such as -- --sft-steps 2400")
    options = parser.parse_args()
    if not options.table:
        rows = {name: ROWS[name] for name in options.rows}
        queue(rows, options.seeds, options.train, RUNS, options.scenes)
    print(tables(read_runs(RUNS), ROWS))


if __name__ == "__main__":
    main()
