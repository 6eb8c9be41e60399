"""The paper's comparison, repeated: every way to show the question to the picture, at equal data, steps and parameters.

`python compare.py --seeds 3` pre-trains once for each seed, fine-tunes every row of ROWS from there, some of them
again for LONGER times as many steps, and adds two lessons on pre-training. What is done is not done again: stop it
and start it as you like. Tables and figures go to results/: table.md, results.json, curves.png,
curves-long.png.
"""
import argparse
import json
import platform
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from unittest.mock import patch

import torch

import model
import runs
import train
from chart import chart
from eval_pope import SPLITS, TestSet, markdown
from mma import attention_mask

ROWS = {  # name -> (attention, order); as in Table 1 of the paper, whose DOT is `dual`
    "causal": ("causal", "image-first"),
    "causal text-first": ("causal", "text-first"),
    "dual": ("causal", "dual"),
    "image": ("image", "image-first"),
    "prefix": ("prefix", "image-first"),
    "mma": ("mma", "image-first"),
}
LONG_ROWS, LONGER = ("causal", "prefix", "mma"), 3
REACHED = 0.9  # "steps to 90 %": of POPE `random` on validation scenes


def caption_taken_for_a_prompt(modality, generated, kind, validate=True):
    """The wrong mask for pre-training: image tokens see the very caption that is to be predicted from them.

    That is MMA with the caption declared to be prompt. Never train with it: this is to show what leaks.
    """
    return attention_mask(modality, torch.zeros_like(generated), "mma", validate)


PRETRAINING = {  # name of the row -> what is patched; "mma": the mask that fine-tuning has, where there is no question
    "causal": (),
    "mma": ((train, "PRETRAIN_ATTENTION", "mma"),),
    "image tokens see the caption (wrong)": ((model, "attention_mask", caption_taken_for_a_prompt),),
}


def slug(name):
    """A name of a row as part of a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def trained(name, seed, arguments, patches=()):
    """Train the run runs/compare-NAME-seedSEED unless it is done, or finish it; returns its folder.

    arguments: options of train.py; patches: what differs from the usual code, as (module, attribute, value).
    Raises ValueError if a run of that name was trained with other options.
    """
    folder = Path(f"runs/compare-{slug(name)}-seed{seed}")
    arguments = ["--seed", str(seed), "--name", folder.name, *map(str, arguments)]
    if folder.exists() and not (folder / "model.pt").exists():
        raise ValueError(f"{folder}: stopped before its first save; delete that folder and start again")
    checkpoint = runs.load(folder)[2] if folder.exists() else None
    if checkpoint:
        for option, wanted in vars(train.parse(arguments)).items():
            if checkpoint["options"].get(option, wanted) != wanted:
                raise ValueError(f"{folder}: trained with {option} {checkpoint['options'][option]}, not {wanted}; "
                                 "move that folder away to train it again")
        arguments = ["--resume", str(folder)]
    if not checkpoint or checkpoint["training"]:
        print(f"\n{folder.name}", flush=True)
        with ExitStack() as patched:
            for owner, attribute, value in patches:
                patched.enter_context(patch.object(owner, attribute, value))
            train.set_up(train.parse(arguments)).train()
    return folder


def pretrained(seed, extra, name="pretrain", patches=()):
    """The folder of a run that is pre-trained only."""
    return trained(name, seed, ["--sft-steps", 0, *extra], patches)


def fine_tuned(row, seed, extra, longer=1, name=None, patches=()):
    """The folder of one row of the comparison; with a name and patches, of a variant of it."""
    attention, order = ROWS[row]
    start = pretrained(seed, extra) / "pretrained.pt"
    steps = train.parse(extra).sft_steps
    return trained(name or (row if longer == 1 else f"long-{row}"), seed, [
        *extra, "--attention", attention, "--order", order, "--pretrained", start,
        "--sft-steps", steps * longer, "--eval-every", max(1, steps * longer // 16)], patches)


def metrics(folder, stage):
    """The lines of one stage in a run's metrics.jsonl."""
    return [line for line in map(json.loads, open(folder / "metrics.jsonl")) if line["stage"] == stage]


def measured(folder, test):
    """All figures of a fine-tuned run, as they stand in results.json; answered once, then kept beside the run."""
    kept, path = folder / "result.json", folder / "model.pt"
    if kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime:
        return json.loads(kept.read_text())
    network, tokenizer, checkpoint = runs.load(folder, runs.pick_device())
    scores, accuracy, _ = test().evaluate(network, tokenizer, checkpoint)
    curve = [[line["step"], line["accuracy"]["pope"]] for line in metrics(folder, "sft") if "accuracy" in line]
    result = {"pope": scores, "kinds": accuracy, "seconds": checkpoint["seconds"]["sft"], "curve": curve,
              "reached": next((step for step, value in curve if value >= REACHED), None),
              "steps": checkpoint["options"]["sft_steps"], "data": checkpoint["data"],
              "parameters": sum(p.numel() for p in network.parameters())}
    kept.write_text(json.dumps(result))
    return result


def check_equal(table, what):
    """All rows of a table: the same steps, the same data in the same order, the same number of parameters.

    table: row -> seed -> what `measured` returns. Raises ValueError that names what differs, between rows or seeds.
    """
    for seed in {seed for row in table.values() for seed in row}:
        for key in ("steps", "data", "parameters"):
            found = {name: row[seed][key] for name, row in table.items() if seed in row}
            if len(set(found.values())) > 1:
                raise ValueError(f"{what}, seed {seed}: the rows are not comparable, their {key} differ: {found}")
    found = {seed: run["steps"] for row in table.values() for seed, run in row.items()}
    if len(set(found.values())) > 1:  # the data, and with them the vocabulary, may differ from seed to seed
        raise ValueError(f"{what}: the seeds are not comparable, their steps differ: {found}")
    first = next(iter(next(iter(table.values())).values()))
    print(f"{what}: equal in every row: {first['steps']} steps, {first['parameters']:,} parameters, "
          "the data and their order (checksums of all batches compared)")


def spread(values, form="{:.1f}"):
    """Mean ± sample standard deviation over seeds; "not reached" if a value is None, with the number of seeds."""
    there = [v for v in values if v is not None]
    if not there:
        return "not reached"
    text = form.format(mean(there)) + (" ± " + form.format(stdev(there)) if len(there) > 1 else "")
    return text if len(there) == len(values) else f"not reached ({text} in {len(there)} of {len(values)} seeds)"


def pope_table(table):
    """One table of the comparison as Markdown; table: row -> seed -> what `measured` returns."""
    kinds = list(next(iter(next(iter(table.values())).values()))["kinds"])
    header = ["attention", *SPLITS, "F1", *kinds, "SFT time, s", "steps to 90 %"]
    rows = []
    for name, by_seed in table.items():
        found = list(by_seed.values())
        rows.append([name, *(spread([100 * f["pope"][split]["accuracy"] for f in found]) for split in SPLITS),
                     spread([100 * mean(f["pope"][split]["f1"] for split in SPLITS) for f in found]),
                     *(spread([100 * f["kinds"][kind] for f in found]) for kind in kinds),
                     spread([f["seconds"] for f in found], "{:.0f}"), spread([f["reached"] for f in found], "{:.0f}")])
    return markdown(header, rows)


def tables(results):
    """results/table.md as text, from what stands in results/results.json."""
    def counted(table):
        """Steps and seeds of a table, as its title."""
        seeds = len(next(iter(table.values())))
        steps = next(iter(next(iter(table.values())).values()))["steps"]
        return f"{steps} steps of fine-tuning, " + (f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed")

    parts = [f"**{counted(results['main'])}**", pope_table(results["main"])]
    if results["long"]:
        parts += [f"**{counted(results['long'])}**", pope_table(results["long"])]
    if results["pretraining"]:
        parts += ["**Which mask in pre-training** (seed 0)", markdown(
            ["mask of pre-training", "caption loss", "captions right, %", "one scene's caption, as the model writes it"],
            [[name, f"{row['loss']:.3f}", f"{100 * row['right']:.1f}", row["example"]]
             for name, row in results["pretraining"].items()])]
    return "\n\n".join(parts) + "\n"


def example_caption(folder, cache):
    """The caption that a pre-trained model writes for the first validation scene."""
    network, tokenizer, _ = runs.load(folder / "pretrained.pt")
    val = train.scene_items("val", 8, 0, cache)
    examples = train.Examples(val.captions[:1], val.images, tokenizer, network.config)
    return train.answer(network, examples, [0], "causal", 64)[0]


def write(results, folder=Path("results")):
    """results.json, table.md, curves.png and, if there are longer runs, curves-long.png."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "table.md").write_text(tables(results))
    for table, file in (("main", "curves.png"), ("long", "curves-long.png")):
        lines = {}
        for style, name in enumerate(reversed(ROWS)):  # mma first: it gets the plainest line
            if name in results[table]:
                curves = [dict(map(tuple, f["curve"])) for f in results[table][name].values()]
                lines[name] = style, [(0, [50] * len(curves)), *((x, [100 * c[x] for c in curves]) for x in curves[0])]
        if lines:
            chart(lines, folder / file, f"POPE random on unseen scenes, while fine-tuning ({len(curves)} seeds)",
                  "steps of fine-tuning", "accuracy in percent: thick the mean, thin each seed; 50 is guessing", (40, 100))


def read_results(path):
    """What `write` left in a results.json. ValueError names a file that is none, OSError one that cannot be read."""
    try:
        results = json.loads(Path(path).read_text())
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path}: no results.json of this program ({error})") from None
    if not isinstance(results, dict) or not {"main", "long", "pretraining"} <= set(results):
        raise ValueError(f"{path}: no results.json of this program (main, long and pretraining are wanted in it)")
    return results


def main():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=runs.number(int, 1), default=3, help="seeds a row (default: 3)")
    p.add_argument("--long-seeds", type=runs.number(int, 1), default=3,
                   help=f"of these, seeds that are fine-tuned {LONGER} times as long, too (default: 3)")
    p.add_argument("--known", metavar="FILE", help="a results.json of before: what is in it is not trained again")
    p.add_argument("--scenes", type=runs.number(int, 1), default=500, help="test scenes of POPE (default: 500)")
    p.add_argument("train", nargs="*", help="after --: further options of train.py, such as -- --sft-steps 300")
    options = p.parse_args()
    Path("results").mkdir(exist_ok=True)  # now, for what cannot be written must not be noticed after hours
    extra, cache, seeds = options.train, train.parse(options.train).cache, range(options.seeds)
    known = read_results(options.known) if options.known else {}
    test_sets = []

    def test():
        """The test set, drawn when it is first wanted."""
        if not test_sets:
            test_sets.append(TestSet.of_scenes(cache, options.scenes))
        return test_sets[0]

    def rows_of(table, names, seeds, longer=1):
        """row -> seed -> what `measured` returns; what is known is taken from there."""
        found = {}
        for seed in map(str, seeds):
            found[seed] = {name: known.get(table, {}).get(name, {}).get(seed) for name in names}
            if not all(found[seed].values()):  # a seed is trained as a whole, on one machine
                found[seed] = {name: measured(fine_tuned(name, int(seed), extra, longer), test) for name in names}
        return {name: {seed: found[seed][name] for seed in found} for name in names}

    results = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
               "main": rows_of("main", ROWS, seeds), "long": {}, "pretraining": known.get("pretraining", {})}
    check_equal(results["main"], "comparison")
    write(results)  # the rest takes as long again: have this table now
    for name, patches in PRETRAINING.items() if not known.get("pretraining") else ():
        folder = pretrained(0, extra, f"pretrain-{name}" if patches else "pretrain", patches)
        lines = metrics(folder, "pretrain")
        results["pretraining"][name] = {
            "loss": [line["loss"] for line in lines if "loss" in line][-1],
            "right": [line["accuracy"]["caption"] for line in lines if "accuracy" in line][-1],
            "example": example_caption(folder, cache)}
    results["long"] = rows_of("long", LONG_ROWS, seeds[:options.long_seeds], LONGER)
    check_equal(results["long"], f"{LONGER} times as long")
    write(results)
    print("\n" + tables(results))


if __name__ == "__main__":
    runs.command_line(main)
