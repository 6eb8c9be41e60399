"""The paper's comparison: each way to show the question to the picture, from the same start.

    python -m extras.compare --rows causal mma --seeds 0 1 2
    python -m extras.compare --seeds 0 -- --sft-steps 2400    options after -- go to train.py
    python -m extras.compare --table                          the tables of all finished runs

Each seed is pre-trained once, and its rows are fine-tuned from there on the same data. A finished
run adds a line to results/runs.jsonl. Stop at any time: the same command skips finished runs.
"""
import argparse
import json
import re
from pathlib import Path
from statistics import median
from subprocess import getoutput

import torch

import train
from data import read_lines
from eval_pope import SPLITS, ask_own
from model import pick_device

ROWS = {  # name -> options of train.py; as in Table 1 of the paper
    "causal": ["--attention", "causal"],
    "text-first": ["--attention", "causal", "--order", "text-first"],
    "image": ["--attention", "image"],
    "prefix": ["--attention", "prefix"],
    "mma": ["--attention", "mma"],
}
OWN = {"--attention", "--order", "--seed", "--name", "--pretrained"}  # not for the user to set
RUNS = Path("results/runs.jsonl")
SCENES = 1000  # test scenes; POPE asks about 500 of them
MIX = "default"  # of the questions in data.py; the runs of commit a0f1923 had another one
SETTINGS = ("steps", "learning_rate", "mix", "data", "options")  # equal for all rows of a table
SFT_ONLY = ("attention", "order", "questions", "sft_steps", "sft_lr", "train_vit")


def changed(arguments, without):
    """Options of train.py -> dict of those that differ from the default and change the result."""
    options = vars(train.parse(arguments))
    default = vars(train.parse(["--preset", options["preset"]])) | {"preset": "tiny"}
    kept = sorted(options.keys() - {*without, "name", "seed", "device", "save_every"})
    return {key: options[key] for key in kept if options[key] != default[key]}


def trained(kind, seed, options, arguments):
    """Train a run, or finish it, or find it finished -> its folder. options: part of its name."""
    words = [f"compare-{kind}-seed{seed}", *(f"{key}-{value}" for key, value in options.items())]
    folder = Path("runs") / re.sub(r"[^\w.]+", "-", "-".join(words))
    if not folder.exists():
        train.start(train.parse([*arguments, "--seed", str(seed), "--name", folder.name])).train()
    elif not train.load(folder)[2]["finished"]:
        train.resume(folder).train()
    return folder


def fine_tuned(seed, arguments):
    """Pre-train a seed unless that is done, and fine-tune it -> the folder of the run."""
    options, kind = changed(arguments, SFT_ONLY), train.parse(arguments).attention
    start = trained("pretrained", seed, options, [*arguments, "--sft-steps", "0"])
    arguments = [*arguments, "--pretrained", str(start / "model.pt")]
    return trained(kind, seed, changed(arguments, ["attention", "pretrained"]), arguments)


def take_off(curve, least=0.6):
    """The first validation from which accuracy stays above `least` -> its step, or None."""
    low = max((step for step, accuracy in curve if accuracy <= least), default=0)
    return next((step for step, _ in curve if step > low), None)


def measured(folder, device):
    """Ask a finished run -> the figures of its line in the results."""
    run = train.load(folder, device)
    figures = ask_own(run, SCENES)
    if "random" not in figures:
        raise SystemExit(f"{folder}: its data name no objects, so POPE has nothing to ask about")
    curve = [[line["step"], line["accuracy"].get("exist", 0)] for line in run[2]["log"]
             if line["stage"] == "sft" and "accuracy" in line]
    return {"split": "test", **{split: figures[split]["accuracy"] for split in SPLITS},
            "yes_ratio": {split: figures[split]["yes_ratio"] for split in SPLITS},
            "take_off": take_off(curve), "kinds": figures["kinds"], "curve": curve}


def commit():
    """The commit of the code, with a + if a file of code differs from it."""
    edited = getoutput("git status --porcelain -- '*.py' 2>/dev/null")
    return getoutput("git rev-parse --short=7 HEAD 2>/dev/null") + ("+" if edited else "")


def machine(device):
    """The machine in one line."""
    name = getoutput("sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null").split("\n")[0]
    name = torch.cuda.get_device_name() if device.type == "cuda" else name or "CPU"
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def queue(rows, seeds, extra, path):
    """Train and ask what has no line in `path` yet. rows: name -> options of train.py."""
    if clash := OWN & {word.split("=")[0] for word in extra}:
        raise SystemExit(f"{' '.join(sorted(clash))}: set for each run; don't give it after --")
    done = [run for _, run in read_lines(path)] if path.exists() else []
    device, version = pick_device(train.parse(extra).device), commit()
    for seed in seeds:
        for name, row in rows.items():
            options = train.parse([*extra, *row])
            line = {"row": name, "seed": seed, "learning_rate": options.sft_lr, "mix": MIX,
                    "steps": options.sft_steps, "data": options.data or "world",
                    "options": changed(extra, ("sft_lr", "sft_steps", "data"))}
            if any(line.items() <= run.items() for run in done):
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            line |= measured(fine_tuned(seed, [*extra, *row]), device)
            line |= {"commit": version, "machine": machine(device)}
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    cells = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


def percents(shares):
    return " ".join(f"{100 * share:.1f}" for share in shares)


def tables(lines, order, equal=SETTINGS):
    """Markdown: for all runs with the same settings a table of POPE and one of question kinds."""
    groups, parts = {}, []
    for run in sorted(lines, key=lambda run: run["seed"]):
        group = groups.setdefault(tuple(str(run[key]) for key in equal), {})
        group.setdefault(run["row"], []).append(run)
    for settings, found in groups.items():
        pope, kinds = [], []
        for name, runs in {name: found[name] for name in [*order, *found] if name in found}.items():
            random = [run["random"] for run in runs]
            pope.append({
                "row": name, "seeds": " ".join(str(run["seed"]) for run in runs),
                "random": percents(random), "median": percents([median(random)]),
                "90 % or more": f"{sum(accuracy >= 0.9 for accuracy in random)} of {len(runs)}",
                **{split: percents(run[split] for run in runs) for split in SPLITS[1:]},
                "take-off": " ".join(str(run["take_off"] or "-") for run in runs)})
            kinds.append({"row": name, **{kind: percents(run["kinds"][kind] for run in runs)
                                          for kind in runs[0]["kinds"]}})
        commits = {run["commit"] for runs in found.values() for run in runs}
        title = dict(zip(equal, settings)) | {"commit": " ".join(sorted(commits))}
        title = [f"{key} {value}" for key, value in title.items() if value != "{}"]
        parts += [", ".join(title).replace("_", " "), table(pope), table(kinds)]
    return "\n\n".join(parts)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--table", action="store_true", help="print the tables, train nothing")
    parser.add_argument("train", nargs="*", help="after --: options of train.py")
    options = parser.parse_args()
    if not options.table:
        queue({name: ROWS[name] for name in options.rows}, options.seeds, options.train, RUNS)
    print(tables([run for _, run in read_lines(RUNS)], ROWS))


if __name__ == "__main__":
    main()
