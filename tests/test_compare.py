"""The comparison: runs from one start, lines in a file, their table; and what rows are made of."""
import json
import re
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch

import driving
import eval_pope
import train
from data import FIRST_SEED, make_scene, make_world, read_lines
from extras import compare, sound, variants

ROOT = Path(compare.__file__).parent.parent
TINY = [*driving.TINY, "--pretrain-steps", "4", "--sft-steps", "4"]
LINE = {"row": "mma", "rate": compare.ROWS["mma"].rate, "seed": 0, "kinds": {}, "accuracy": 0.5,
        "commit": "abc", "machine": "A"}  # without options, as lines were once


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder, with few scenes, and a checkpoint after each step."""
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["compare", *words])
        compare.compare()

    for name, value in (driving.SMALL | {"LOG_EVERY": 1}).items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(compare, "SCENES", 12)
    monkeypatch.setattr(variants, "LOOK_ALIKES", 2)
    variants.look_alike_part.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield command
    variants.look_alike_part.cache_clear()


def lines(name):
    return list(map(json.loads, open(f"results/{name}.jsonl")))


@pytest.mark.parametrize("rows", [["text-first", "mma"], ["causal-one-way", "mma-one-way"]])
def test_interrupted_rows_share_a_pre_training_and_end_as_runs_of_train_py(
        rows, run, monkeypatch, capsys):
    step, done, stops = train.Trainer.train_step, [], [2, 5]

    def counted(trainer):
        if len(done) in stops:
            stops.remove(len(done))
            raise KeyboardInterrupt
        done.append(trainer.stage)
        return step(trainer)

    monkeypatch.setattr(train.Trainer, "train_step", counted)
    command = ("tiny", "--rows", *rows, "--seeds", "1", "--", *TINY)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            run(*command)
    assert not Path("results/tiny.jsonl").exists()
    run(*command)
    run(*command)
    found = lines("tiny")
    assert [line["row"] for line in found] == rows
    assert done == ["pretrain"] * 4 + ["sft"] * 4 * len(rows)  # nothing is done twice
    assert capsys.readouterr().out.endswith(compare.summary(found) + "\n")
    row = compare.ROWS[rows[-1]]
    [shared] = Path("runs/tiny").glob("pretrained-*")
    options = train.load(shared, model_class=row.trainer.model_class)[2]["options"]
    assert options["order"] == "image-first"  # whichever row is first
    words = f"{row.words} --seed 1 --sft-lr {row.rate} --name alone".split()
    train.start(train.parse([*TINY, *words]), trainer_class=row.trainer).train()
    compared = Path(f"runs/tiny/{rows[-1]}-{row.rate}-seed1")
    alone, same = (train.load(folder, model_class=row.trainer.model_class)
                   for folder in ("runs/alone", compared))
    assert all(map(torch.equal, alone[0].parameters(), same[0].parameters()))
    figures = eval_pope.ask_own(alone, make_world("test", 12))
    assert found[-1].items() >= {key: figures[key] for key in ("kinds", "accuracy")}.items()
    for split in eval_pope.SPLITS:
        assert found[-1][split] == figures[split]["accuracy"]


def test_other_options_of_train_py_need_another_name(run, monkeypatch):
    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "train_step", interrupted)
    command = ("tiny", "--rows", "mma", "--seeds", "0", "--")
    with pytest.raises(KeyboardInterrupt):
        run(*command, *TINY)
    says = f"seed0: made with other options ({' '.join(TINY)}): take another NAME"
    driving.refused(says, run, *command, *TINY, "--layers", "2")
    driving.write_lines(Path("results/tiny.jsonl"), [LINE])
    run(*command)
    driving.refused("other options (none)", run, *command, "--layers", "2")
    driving.write_lines(Path("results/tiny.jsonl"), [LINE | {"options": ["--layers", "2"]}])
    driving.refused("other options (--layers 2)", run, *command)
    run("tiny")  # prints the table


def test_rates_are_tried_on_validation_scenes_in_a_file_of_their_own(run):
    run("tiny", *"--rows mma --seeds 7 --rates 0.01 0.5 --validate --".split(), *TINY)
    assert [line["rate"] for line in lines("tiny-rates")] == [0.01, 0.5]
    model = train.load("runs/tiny/mma-0.5-seed7")
    figures = eval_pope.ask_own(model, make_world("val", 12))
    assert lines("tiny-rates")[1]["accuracy"] == figures["accuracy"]
    assert model[2]["options"]["sft_lr"] == 0.5 and not Path("results/tiny.jsonl").exists()
    driving.refused("has no 'exits' in all", run, *"tiny --validate --figures exits".split())
    for words in ([], ["--validate", "--rates", "0.2"], ["--validate", "--rows", "image"]):
        driving.refused("no such run yet", run, "tiny", *words)


def test_a_table_has_median_range_and_pairs_of_one_seed():
    made_up = [("mma", 0.02, 1, 0.9), ("mma", 0.02, 2, 0.5), ("causal", 0.05, 1, 0.8),
               ("mma", 0.02, 5, 0.6), ("causal", 0.05, 7, 0.5), ("causal", 0.01, 2, 0.625)]
    runs = [LINE | {"row": row, "rate": rate, "seed": seed, "adversarial": share,
                    "accuracy": 1 - share, "kinds": {"exist": share / 2}}
            for row, rate, seed, share in made_up]
    how, table, origin = compare.summary(runs, ("adversarial", "unknown", "exist")).split("\n\n")
    assert re.sub(" +", " ", table).split("\n") == [
        "| row | rate | seeds | adversarial | exist |",
        "| --- | ---- | ----- | ----------- | ----- |",
        "| mma | 0.02 | 3 | 60.0 (50.0 to 90.0) | 30.0 (25.0 to 45.0) |",
        "| causal | 0.05 | 2 | 65.0 (50.0 to 80.0) 0/1 | 32.5 (25.0 to 40.0) 0/1 |",
        "| causal | 0.01 | 1 | 62.5 (62.5 to 62.5) 1/1 | 31.2 (31.2 to 31.2) 1/1 |"]
    assert compare.summary(runs, ["all questions"]).count("35.0 (20.0 to 50.0) 1/1") == 1
    assert how == compare.HOW and origin == "Commit abc, A."


def test_results_show_what_the_commands_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = Path("results/README.md").read_text("utf-8")
    commands = re.findall(r"^    python -m extras\.(compare|sound) ([\w -.]+)$", text, re.MULTILINE)
    for module, words in commands:
        monkeypatch.setattr(sys, "argv", [module, *words.split()])
        {"compare": compare.compare, "sound": sound.main}[module]()
        for part in capsys.readouterr().out.strip().split("\n\n"):
            assert part in text, words
    assert len(commands) == 8


def test_one_way_captions_put_the_place_first_and_change_nothing_else():
    part = make_world("val", 40)
    changed = variants.one_way(part)
    for i, example in enumerate(changed.captions):
        objects = make_scene(FIRST_SEED["val"] + i).objects
        assert example.answer == ", ".join(f"{o.place} {o.color} {o.name}" for o in objects)
        assert example._replace(answer=part.captions[i].answer) == part.captions[i]
    assert changed._replace(captions=part.captions) == part


def test_look_alikes_have_the_same_names_and_colors_with_and_without_the_thing():
    for fish, seed in product(variants.FISH, range(20)):
        (scene, *thing), (other, *same) = (
            variants.look_alikes(fish, there, Random(seed)) for there in (True, False))
        assert thing == same and len({o.place for o in scene.objects}) == 9
        for what in ("name", "color", "place"):
            assert [sorted(getattr(o, what) for o in x.objects) for x in (scene, other)] == [
                sorted(getattr(o, what) for o in scene.objects)] * 2
        for x, there in ((scene, True), (other, False)):
            colors = [o.color for o in x.objects if o.name == thing[0]]
            assert len(colors) == fish and (thing[1] in colors) == there
    part = variants.look_alike_part("test", 32)
    count = Counter((e.kind, e.answer) for e in part.questions)
    assert {*count.values()} == {variants.LOOK_ALIKES} and len(count) == 2 * 2 * 6


def test_the_rate_of_a_row_is_that_of_its_lines_in_results_and_the_default_of_train_py():
    for row in compare.ROWS.values():
        if row.trainer is train.Trainer:  # the default captions
            assert train.parse(row.words.split()).sft_lr == row.rate
    for name, rows in (("default", compare.ROWS), ("sound", sound.ROWS)):
        first = {}  # row -> the rate that comes first, which is its best
        for _, line in read_lines(ROOT / f"results/{name}.jsonl"):
            first.setdefault(line["row"], line["rate"])
            assert name == "sound" or line["rate"] == rows[line["row"]].rate
        assert all(first[row] == rows[row].rate for row in ("causal", "mma"))
