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
FIGURES = (*SPLITS, "exist_color", "where_color", "all questions")  # that are compared in pairs


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


def tables(lines, order):
    """Markdown: for all runs with the same settings a table of POPE and one of question kinds."""
    groups, parts = {}, []
    for run in sorted(lines, key=lambda run: run["seed"]):
        group = groups.setdefault(tuple(str(run[key]) for key in SETTINGS), {})
        group.setdefault((run["row"], run["learning_rate"]), []).append(run)
    names = [*order]
    for values, found in groups.items():
        rows = {key: found[key] for key in sorted(found, key=lambda k: (names.index(k[0]), k[1]))}
        title = dict(zip(SETTINGS, values))
        for key in ("commit", "machine"):
            title[key] = " and ".join(sorted({run[key] for runs in rows.values() for run in runs}))
        title = [f"{key} {value}" for key, value in title.items() if value != "{}"]
        parts.append(", ".join(title))
        if all("random" in run for runs in rows.values() for run in runs):
            parts.append(table([pope_row(*key, runs) for key, runs in rows.items()]))
        parts.append(table([kinds_row(*key, runs) for key, runs in rows.items()]))
    return "\n\n".join(parts)


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


def best_rate(row, lines, steps=None, like=None, **other):
    """The learning rate that was best for the row of a name in the search, by the mean accuracy on
    POPE, or on all questions where there is no POPE.

    steps: if a search had so many, it alone counts. like: a row whose rate is taken if this one was
    never searched. other: settings that are not DEFAULTS; those are taken if there was no search.
    """
    wanted = {"row": row, "split": "search", **DEFAULTS, **other}
    tried = [run for run in lines if wanted.items() <= run.items()]
    found = defaultdict(list)
    for run in [run for run in tried if run["steps"] == steps] or tried:
        pope = [run[split] for split in SPLITS if split in run]
        found[run["learning_rate"]].append(mean(pope or [run["accuracy"]]))
    if found:
        return max(found, key=lambda rate: mean(found[rate]))
    if like:
        return best_rate(like, lines, steps, **other)
    return best_rate(row, lines, steps) if other else parse([]).sft_lr


def share(run, figure):
    """The accuracy of a run on a split of POPE, a kind of question, or all questions."""
    if figure == "all questions":
        return run["accuracy"]
    return run[figure] if figure in SPLITS else run["kinds"][figure]


def reported(lines, steps, any_rate=False, **other):
    """The runs on test scenes, by seed, whose settings are DEFAULTS but for `other`.

    any_rate: not only at the rate that was best for the row.
    """
    wanted = {"split": "test", "steps": steps, **DEFAULTS, **other}
    best = {name: best_rate(name, lines, steps, **other) for name in {run["row"] for run in lines}}
    runs = [run for run in lines if wanted.items() <= run.items()
            and (any_rate or run["learning_rate"] == best[run["row"]])]
    return sorted(runs, key=lambda run: run["seed"])


def short_table(lines):
    """The table of the README: seeds 0 to 9 on test scenes, in whole percent."""
    rows = []
    for mix in ("default", "one-way"):
        found = defaultdict(list)  # (row, rate) -> runs
        for run in reported(lines, parse([]).sft_steps, any_rate=True, mix=mix):
            if run["row"] in ("causal", "mma") and run["seed"] < 10:
                found[run["row"], run["learning_rate"]].append(run)
        for (name, rate), runs in sorted(found.items()):
            best = " (best)" if rate == best_rate(name, lines, mix=mix) else ""
            row = {"captions": mix, "mask": name, "rate": f"{rate}{best}"}
            for figure in ("adversarial", "all questions"):
                row[f"{figure}, %"] = " ".join(f"{100 * share(run, figure):.0f}" for run in runs)
            rows.append(row)
    return table(rows)


def sign_flip_test(differences):
    """Two-sided p of the mean, exact: how often do random signs lead as far from 0?"""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(abs(sums) >= abs(sum(differences)) - 1e-9))


def paired_table(lines, figures=FIGURES, **other):
    """Markdown: mma minus another row, in points, by seed: mma at its best rate, or both at one.

    other: settings that are not DEFAULTS.
    """
    rows = []
    for steps in sorted({run["steps"] for run in lines}):
        found = defaultdict(dict)  # (row, rate) -> seed -> run
        for run in reported(lines, steps, any_rate=True, **other):
            found[run["row"], run["learning_rate"]][run["seed"]] = run
        best = best_rate("mma", lines, steps, **other)
        for (own, own_rate), (name, rate) in product(found, found):
            if own != "mma" or name == "mma" or own_rate not in (best, rate):
                continue
            mma, runs = found[own, own_rate], found[name, rate]
            seeds = sorted(mma.keys() & runs.keys())
            for figure in figures if len(seeds) > 1 else ():
                points = [round(100 * (share(mma[seed], figure) - share(runs[seed], figure)), 6)
                          for seed in seeds]
                p = sign_flip_test(points)
                rows.append({"steps": f"{steps}", "mma at": f"{own_rate}",
                             "minus": f"{name} at {rate}", "figure": figure,
                             "by seed": " ".join(f"{d:+.1f}" for d in points),
                             "median": f"{median(points):+.1f}", "mean": f"{mean(points):+.1f}",
                             "n": f"{len(seeds)}", "p": f"{p:.3f}" if p >= 0.001 else "< 0.001"})
    return table(rows)
