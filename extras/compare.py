"""One mask beside another: rows of settings, from the same pre-trained start, seed by seed.

    python -m extras.compare --search --rows causal mma --seeds 100 101   the rate of each row
    python -m extras.compare --rows causal mma --seeds 0 1 2              at that rate
    python -m extras.compare --seeds 0 -- --sft-steps 1800    options after -- go to train.py
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
from itertools import product
from operator import mul
from pathlib import Path
from statistics import mean, median
from subprocess import getoutput

import torch

import train
from data import (FIRST_SEED, NO_YES, OBJECTS, Example, exist_question, make_scene, make_world,
                  read_lines)
from eval_pope import SPLITS, ask, ask_own
from extras.variants import CCA, DOT, Scrambled, instructed
from model import pick_device

RATES = (0.01, 0.02, 0.03, 0.04)
OWN = {"--attention", "--order", "--seed", "--name", "--pretrained"}  # not for the user to set
RUNS = Path("results/runs.jsonl")
PARTS = {"search": "val", "test": "test"}  # split of a line -> scenes that are asked about
SCENES = 1000  # POPE asks about 500 of them
MIX = "default"  # of the questions in data.py
SETTINGS = ("steps", "mix", "data", "split", "options")  # of all rows of a table
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
Row = namedtuple("Row", "options data splits trainer start ask", defaults=(
    [], "world", train.load_splits, train.Trainer, train.Trainer, ask_world))
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
    folder = Path("runs") / re.sub(r"[^\w.]+", "-", "-".join(words))
    options = train.parse([*arguments, "--seed", str(seed), "--name", folder.name])
    if folder.exists():
        checkpoint = train.load(folder, model_class=row.trainer.model_class)[2]
        check_options(folder, checkpoint["options"], vars(options))
        if checkpoint["finished"]:
            return folder
    splits = row.splits(options)
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
            line = {"row": name, "seed": seed, "learning_rate": options.sft_lr, "mix": MIX,
                    "steps": options.sft_steps, "split": split,
                    "data": Path(options.data).name if options.data else row.data,
                    "options": changed(extra, ("sft_lr", "sft_steps", "data"))}
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


def at_rate(row, rate):
    """A Row at a learning rate."""
    return row._replace(options=[*row.options, "--sft-lr", str(rate)])


def best_rate(name, lines, data="world", steps=None, like=None):
    """The learning rate that was best for a row in the search, by the mean accuracy on POPE, or on
    all questions where there is no POPE.

    steps: if a search had so many, it alone counts. like: a row whose rate is taken if this one was
    never searched.
    """
    tried = [run for run in lines
             if (run["row"], run["split"], run["data"]) == (name, "search", data)]
    found = defaultdict(list)
    for run in [run for run in tried if run["steps"] == steps] or tried:
        pope = [run[split] for split in SPLITS if split in run]
        found[run["learning_rate"]].append(mean(pope or [run["accuracy"]]))
    if not found:
        return best_rate(like, lines, data, steps) if like else train.parse([]).sft_lr
    return max(found, key=lambda rate: mean(found[rate]))


def search(name, row, seeds, extra, path, rates):
    """Try learning rates for a row, going on while the last one at either end is the best."""
    rates, steps = list(rates), train.parse([*row.options, *extra]).sft_steps
    while True:
        queue([(name, at_rate(row, rate)) for rate in rates], seeds, extra, path, "search")
        best = best_rate(name, [run for _, run in read_lines(path)], row.data, steps)
        if best == rates[-1]:
            rates.append(round(best + 0.01, 3))
        elif best == rates[0]:
            rates.insert(0, best / 2)
        else:
            return


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    cells = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


def percents(shares):
    """Shares of 1 as text: "97.5 88.0"."""
    return " ".join(f"{100 * share:.1f}" for share in shares)


def tables(lines, order):
    """Markdown: for all runs with the same settings a table of POPE and one of question kinds."""
    groups, parts = {}, []
    for run in sorted(lines, key=lambda run: run["seed"]):
        group = groups.setdefault(tuple(str(run[key]) for key in SETTINGS), {})
        group.setdefault((run["row"], run["learning_rate"]), []).append(run)
    names = [*order]
    for settings, found in groups.items():
        rows = {key: found[key] for key in sorted(found, key=lambda k: (names.index(k[0]), k[1]))}
        commits = {run["commit"] for runs in rows.values() for run in runs}
        title = dict(zip(SETTINGS, settings)) | {"commit": " ".join(sorted(commits))}
        title = [f"{key} {value}" for key, value in title.items() if value != "{}"]
        parts.append(", ".join(title).replace("_", " "))
        if all("random" in run for runs in rows.values() for run in runs):
            parts.append(table([pope_row(*key, runs) for key, runs in rows.items()]))
        parts.append(table([kinds_row(*key, runs) for key, runs in rows.items()]))
    return "\n\n".join(parts)


def default_runs(lines, steps=None, any_rate=False):
    """Runs with default options on test scenes, by seed. any_rate: not only at the row's best."""
    default = {"mix": MIX, "data": "world", "split": "test", "options": {},
               "steps": steps or train.parse([]).sft_steps}
    best = {name: best_rate(name, lines) for name in {run["row"] for run in lines}}
    runs = [run for run in lines if default.items() <= run.items()
            and (any_rate or run["learning_rate"] == best[run["row"]])]
    return sorted(runs, key=lambda run: run["seed"])


def short_table(lines):
    """The table of the README, on test scenes; each row at its best rate."""
    whole, rows = train.parse([]).sft_steps, []
    rows += product(("adversarial",), (whole // 2, whole), ("causal", "mma"))
    rows += product(("exist_color",), (whole,), ("causal", "scrambled", "mma"))
    seeds = sorted({run["seed"] for run in default_runs(lines)})
    cells = []
    for figure, steps, name in rows:
        runs = {run["seed"]: run for run in default_runs(lines, steps) if run["row"] == name}
        cells.append({"accuracy, %": figure, "steps": str(steps), "mask": name} | {
            f"seed {seed}": percents([share(runs[seed], figure)]) if seed in runs else ""
            for seed in seeds})
    return table(cells)


def sign_flip_test(differences):
    """Two-sided p of the mean, exact: how often do random signs lead as far from 0?"""
    flips = [abs(sum(map(mul, signs, differences)))
             for signs in product((1, -1), repeat=len(differences))]
    return mean(flip >= abs(sum(differences)) - 1e-9 for flip in flips)


def paired_table(lines):
    """Markdown: mma at its best rate minus each other row and rate, in points, by seed."""
    rows = []
    for steps in sorted({run["steps"] for run in lines}):
        mma = {run["seed"]: run for run in default_runs(lines, steps) if run["row"] == "mma"}
        others = defaultdict(dict)  # (row, rate) -> seed -> run
        for run in default_runs(lines, steps, any_rate=True):
            if run["row"] != "mma" and run["seed"] in mma:
                others[run["row"], run["learning_rate"]][run["seed"]] = run
        for (name, rate), other in others.items():
            for figure in (*SPLITS, "exist_color", "where_color") if len(other) > 1 else ():
                points = [round(100 * (share(mma[seed], figure) - share(run, figure)), 6)
                          for seed, run in other.items()]
                rows.append({"steps": str(steps), "mma minus": f"{name} at {rate}",
                             "figure": figure, "by seed": " ".join(f"{d:+.1f}" for d in points),
                             "median": f"{median(points):+.1f}", "mean": f"{mean(points):+.1f}",
                             "n": str(len(points)), "p": f"{sign_flip_test(points):.3f}"})
    return table(rows) if rows else ""


def share(run, figure):
    """The accuracy of a run on a split of POPE or on a kind of question."""
    return run[figure] if figure in SPLITS else run["kinds"][figure]


def pope_row(name, rate, runs):
    """A row of the table of POPE: every seed, the median, and how many learned."""
    random = [run["random"] for run in runs]
    return {"row": name, "rate": f"{rate}", "seeds": " ".join(str(run["seed"]) for run in runs),
            "random": percents(random), "median": percents([median(random)]),
            "90 % or more": f"{sum(accuracy >= 0.9 for accuracy in random)} of {len(runs)}",
            **{split: percents(run[split] for run in runs) for split in SPLITS[1:]},
            "take-off": " ".join(str(run["take_off"] or "-") for run in runs)}


def kinds_row(name, rate, runs):
    """A row of the table of question kinds; seconds: of each stage that was not interrupted."""
    kinds = {kind: percents(run["kinds"][kind] for run in runs) for kind in runs[0]["kinds"]}
    seconds = ["+".join(map(str, run.get("seconds", "-"))) for run in runs]
    accuracy = percents(run["accuracy"] for run in runs)
    return {"row": name, "rate": f"{rate}", **kinds, "all questions": accuracy,
            "seconds": " ".join(seconds)}


def arguments(description, rows, can_search=True):
    """A parser of the command line for some rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--table", action="store_true", help="print the tables, train nothing")
    if can_search:
        parser.add_argument("--search", nargs="*", type=float, metavar="RATE",
                            help="search the rate of each row, from these (default: 0.01 to 0.04)")
    parser.add_argument("train", nargs="*", help="after --: options of train.py")
    return parser


def compare(options, rows, path, like=None):
    """Do what the command line asks -> the lines of all runs in the file `path`."""
    if options.search is not None:
        for name in options.rows:
            rates = options.search or RATES
            search(name, rows[name], options.seeds, options.train, path, rates)
    elif not options.table:
        lines = [run for _, run in read_lines(path)] if path.exists() else []
        chosen = []
        for name in options.rows:
            steps = train.parse([*rows[name].options, *options.train]).sft_steps
            rate = best_rate(name, lines, rows[name].data, steps, like)
            chosen.append((name, at_rate(rows[name], rate)))
        queue(chosen, options.seeds, options.train, path)
    return [run for _, run in read_lines(path)]


def main():
    """The command line."""
    lines = compare(arguments(__doc__.split("\n")[0], ROWS).parse_args(), ROWS, RUNS)
    print(tables(lines, ROWS))
    if default_runs(lines):
        print(f"\n{paired_table(lines)}\n\n{short_table(lines)}")


if __name__ == "__main__":
    main()
