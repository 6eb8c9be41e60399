"""Tables of what `compare.py` found, in Markdown. A line of results/runs.jsonl is a dict here.

Every seed is shown; p is that of an exact test, not corrected for the number of tests.
"""
from collections import defaultdict
from itertools import product
from statistics import mean, median

import numpy as np

from eval_pope import SPLITS
from train import parse

SETTINGS = ("steps", "mix", "data", "split", "options")  # of all rows of a table
DEFAULTS = {"mix": "default", "data": "world", "options": {}}
FIGURES = (*SPLITS, "exist", "exist_color", "color", "where", "where_color", "what",
           "all questions")  # that are compared in pairs


def table(rows):
    """A Markdown table whose columns line up in a terminal, too. rows: dicts of header -> text."""
    if not rows:
        return ""
    cells = [list(rows[0]), ["-" * len(name) for name in rows[0]], *(row.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


def percents(shares):
    """Shares of 1 as text: "97.5 88.0"."""
    return " ".join(f"{100 * share:.1f}" for share in shares)


def share(run, figure):
    """The accuracy of a run on a split of POPE, a kind of question, or all questions."""
    return {**run, **run["kinds"], "all questions": run["accuracy"]}[figure]


def by_row(lines, **wanted):
    """The runs with these settings: (row, learning rate) -> seed -> run."""
    found = defaultdict(dict)
    for run in sorted(lines, key=lambda run: run["seed"]):
        if wanted.items() <= run.items():
            found[run["row"], run["learning_rate"]][run["seed"]] = run
    return found


def best_rate(row, lines, steps=None, like=None, **other):
    """The learning rate that was best for a row in the search, by the mean accuracy on POPE, or on
    all questions where there is no POPE.

    other: settings that are not DEFAULTS. The search of so many steps with these settings counts.
    If there was none: one of other steps, then one with DEFAULTS, then one of the row `like`.
    """
    settings = (DEFAULTS | other, DEFAULTS)
    for name, alike, length in product((row, like), settings, ({"steps": steps}, {})):
        wanted = {"row": name, "split": "search", **alike, **length}
        found = defaultdict(list)  # rate -> accuracies
        for run in lines:
            if wanted.items() <= run.items():
                pope = [run[split] for split in SPLITS if split in run]
                found[run["learning_rate"]].append(mean(pope or [run["accuracy"]]))
        if found:
            return max(found, key=lambda rate: mean(found[rate]))
    return parse([]).sft_lr


def tables(lines, order):
    """Markdown: for all runs with the same settings a table of POPE and one of question kinds."""
    groups, parts, names = defaultdict(list), [], [*order]
    for run in sorted(lines, key=lambda run: run["seed"]):
        groups[tuple(str(run[key]) for key in SETTINGS)].append(run)
    for runs in groups.values():
        title = []
        for key in (*SETTINGS, "commit", "machine"):
            values = sorted({str(run[key]) for run in runs})
            title.append(f"{key} {' and '.join(values)}")
        parts.append(", ".join(title).replace(", options {}", ""))
        found = by_row(runs)
        for columns in (pope, kinds) if "random" in runs[0] else (kinds,):
            rows = []
            for name, rate in sorted(found, key=lambda key: (names.index(key[0]), key[1])):
                row = columns([*found[name, rate].values()])
                rows.append({"row": name, "rate": f"{rate}", **row})
            parts.append(table(rows))
    return "\n\n".join(parts)


def pope(runs):
    """Cells about POPE: every seed, the median, how many learned, how often they say yes."""
    random = [run["random"] for run in runs]
    splits = {split: percents(run[split] for run in runs) for split in SPLITS}
    yes = [median(run["yes_ratio"][split] for run in runs) for split in SPLITS]
    return {"seeds": " ".join(str(run["seed"]) for run in runs),
            "random": splits.pop("random"), "median": percents([median(random)]),
            "90 % or more": f"{sum(accuracy >= 0.9 for accuracy in random)} of {len(runs)}",
            **splits, "says yes": percents(yes),
            "take-off": " ".join(str(run["take_off"] or "-") for run in runs)}


def kinds(runs):
    """Cells about question kinds; seconds: of each stage that was not interrupted."""
    figures = [*runs[0]["kinds"], "all questions"]
    cells = {figure: percents(share(run, figure) for run in runs) for figure in figures}
    seconds = ["+".join(map(str, run.get("seconds", "-"))) for run in runs]
    return {**cells, "seconds": " ".join(seconds)}


def short_table(lines):
    """The table of the README: seeds 0 to 9 on test scenes, in whole percent."""
    rows, steps = [], parse([]).sft_steps
    ten = [run for run in lines if run["row"] in ("causal", "mma") and run["seed"] < 10]
    for mix in ("default", "one-way"):
        found = by_row(ten, split="test", steps=steps, **DEFAULTS | {"mix": mix})
        for name, rate in sorted(found):
            best = " (best)" if rate == best_rate(name, lines, steps, mix=mix) else ""
            row = {"captions": mix, "mask": name, "rate": f"{rate}{best}"}
            for figure in ("adversarial", "all questions"):
                points = [100 * share(run, figure) for run in found[name, rate].values()]
                row[f"{figure}, %"] = " ".join(f"{x:.0f}" for x in points)
            rows.append(row)
    return table(rows)


def sign_flip_test(differences):
    """Two-sided p of the mean, exact: how often do random signs lead as far from 0?"""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(abs(sums) >= abs(sum(differences)) - 1e-6))


def paired_table(lines, figures=FIGURES, **other):
    """Markdown: mma minus another row, in points, by seed: mma at its best rate, or both at one.

    other: settings that are not DEFAULTS.
    """
    rows = []
    for steps in sorted({run["steps"] for run in lines}):
        found = by_row(lines, split="test", steps=steps, **DEFAULTS | other)
        best = best_rate("mma", lines, steps, **other)
        for (own, own_rate), (name, rate) in product(found, found):
            mma, runs = found[own, own_rate], found[name, rate]
            seeds = [seed for seed in mma if seed in runs]
            if own != "mma" or name == "mma" or own_rate not in (best, rate) or len(seeds) < 2:
                continue
            for figure in figures:
                points = [100 * (share(mma[seed], figure) - share(runs[seed], figure))
                          for seed in seeds]
                p = sign_flip_test(points)
                rows.append({"steps": f"{steps}", "mma at": f"{own_rate}",
                             "minus": f"{name} at {rate}", "figure": figure,
                             "by seed": " ".join(f"{d:+.1f}" for d in points),
                             "median": f"{median(points):+.1f}", "mean": f"{mean(points):+.1f}",
                             "n": f"{len(seeds)}", "p": f"{p:.3f}" if p >= 0.001 else "< 0.001"})
    return table(rows)
