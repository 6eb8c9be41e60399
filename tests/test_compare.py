"""The comparison: each run trained once from one start, resumed, recorded; and its tables."""
import json
import re
import sys
from pathlib import Path

import pytest

import train
from data import FIRST_SEED, PLACES, make_scene
from extras import compare, mixes, tables
from model import Config, MultimodalGPT

RESULTS = Path(compare.__file__).parent.parent / "results"
TINY = ["--width", "32", "--heads", "2", "--layers", "1", "--vit-layers", "1", "--scenes", "64",
        "--batch-size", "8", "--pretrain-steps", "2", "--sft-steps", "2", "--device", "cpu"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder, with few scenes and frequent validations -> the lines."""
    def command(module, *words, table=True):
        monkeypatch.setattr(sys, "argv", ["NAME", *words])
        if not table:
            monkeypatch.setattr(module, "tables", lambda lines, order: "")
        module.main()
        return list(map(json.loads, open(compare.RUNS)))

    for module, name, value in ((train, "VAL_SCENES", 4), (train, "EVAL_EVERY", 1),
                                (train, "LOG_EVERY", 1), (compare, "SCENES", 12)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    return command


def test_every_row_starts_from_the_one_pretrained_model_of_its_seed(run, capsys):
    found = run(compare, "--rows", "text-first", "mma", "--seeds", "0", "1", "--", *TINY)
    assert [(line["row"], line["seed"]) for line in found] == [
        ("text-first", 0), ("mma", 0), ("text-first", 1), ("mma", 1)]
    options = [train.load(path)[2]["options"] for path in Path("runs").glob("*/model.pt")]
    starts = {o["seed"]: f"runs/{o['name']}/model.pt" for o in options if not o["pretrained"]}
    assert len(starts) == 2 and sum(o["pretrained"] == starts[o["seed"]] for o in options) == 4
    assert found[0].items() >= {"learning_rate": 0.02, "steps": 2, "split": "test"}.items()
    assert [step for step, _ in found[0]["curves"]["exist"]] == [1, 2]
    assert tables.tables(found, compare.ROWS) in capsys.readouterr().out


def test_finished_runs_are_skipped_and_an_interrupted_one_ends_the_same(run, monkeypatch):
    command = (compare, "--rows", "mma", "--", *TINY, "--save-every", "0")
    step, trained, stops = train.Trainer.train_step, [], [3]

    def counted(trainer):
        if len(trained) in stops:
            raise KeyboardInterrupt
        trained.append(trainer.stage)
        return step(trainer)

    monkeypatch.setattr(train.Trainer, "train_step", counted)
    with pytest.raises(KeyboardInterrupt):
        run(*command)
    assert not Path("results/runs.jsonl").exists()
    stops.clear()
    resumed = run(*command)
    assert "seconds" not in resumed[0]  # which would be those of a part
    assert run(*command) == resumed and trained == ["pretrain", "pretrain", "sft", "sft"]
    Path("results/runs.jsonl").unlink()
    Path("runs").rename("interrupted")
    [whole] = run(*command)
    assert whole.pop("seconds") and [whole] == resumed


def test_a_run_with_another_option_is_not_taken_for_the_wanted_one(run, monkeypatch):
    command = (compare, "--rows", "mma", "--", *TINY)
    run(*command)
    Path("results/runs.jsonl").unlink()
    parse = train.parse

    def other_default(arguments=None):
        options = parse(arguments)
        options.sft_lr = 0.5
        return options

    monkeypatch.setattr(train, "parse", other_default)
    with pytest.raises(SystemExit, match="runs/compare-mma-seed0.* has another sft_lr"):
        run(*command)
    assert not Path("results/runs.jsonl").exists()


def test_a_mix_has_its_own_start_and_an_option_of_fine_tuning_has_not(run):
    run(compare, "--rows", "mma", "--", *TINY)
    run(compare, "--rows", "mma", "--", *TINY, "--train-vit")
    found = run(compare, "--rows", "mma", "--mix", "one-way", "one-exist", "--", *TINY)
    names = {path.name for path in Path("runs").iterdir()}
    assert sum("pretrained" in name for name in names) == 2 and len(names) == 5
    assert [line["mix"] for line in found] == ["default", "default", "one-way one-exist"]
    assert "train_vit" in found[1]["options"]
    starts = [train.load(path)[2]["log"] for path in Path("runs").glob("*pretrained*")]
    assert starts[0][0]["loss"] != starts[1][0]["loss"]
    assert tables.tables(found, compare.ROWS).count("take-off") == 3  # three tables


def test_mixes_change_what_they_say_and_nothing_else():
    splits = train.load_splits(train.parse(["--scenes", "40"]))
    for mix, kind in (("one-exist", "exist"), ("one-exist_color", "exist_color")):
        for before, after in zip(splits, mixes.MIXES[mix](splits), strict=True):
            left, dropped = [*after.questions], []
            for e in before.questions:
                left.pop(0) if left and left[0] == e else dropped.append(e)
            assert left == [] and {e.kind for e in dropped} == {kind}
            assert len({e.picture for e in dropped}) == len(dropped) > len(before.images) // 2
            assert after.captions == before.captions
    for mix in ("one-way", "in-order"):
        for before, after in zip(splits, mixes.MIXES[mix](splits), strict=True):
            assert after.questions == before.questions
            for old, new in zip(before.captions, after.captions, strict=True):
                said = [sorted(sorted(phrase.split()) for phrase in e.answer.split(", "))
                        for e in (old, new)]
                assert said[0] == said[1] and old._replace(answer=new.answer) == new
            for e in after.captions:
                assert all(phrase.split()[0] in PLACES for phrase in e.answer.split(", "))


def test_options_that_the_rows_set_are_refused(run):
    with pytest.raises(SystemExit, match="--name --seed: set for each run"):
        run(compare, "--", "--seed", "1", "--name=x")


def test_take_off_is_the_first_validation_from_which_all_are_above_60_percent():
    for percents, step in (([50, 61, 80], 2), ([70, 60, 90], 3), ([70, 80], 1), ([90, 50], None)):
        assert compare.take_off([[i, x / 100] for i, x in enumerate(percents, 1)]) == step


@pytest.mark.parametrize("best, tried", [
    (0.03, {0.01, 0.02, 0.03, 0.04}), (0.06, {0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07}),
    (0.005, {0.0025, 0.005, 0.01, 0.02, 0.03, 0.04})])
def test_the_search_goes_on_while_the_best_rate_is_at_an_end(best, tried, run, monkeypatch):
    found = {}

    def queue(rows, seeds, extra, path, split):
        for name, row in rows:
            rate = train.parse(row.options).sft_lr
            accuracy = 1 - abs(rate - best)
            found[rate] = {"row": name, "split": split, "data": "world", "learning_rate": rate,
                           "steps": 700, "mix": "default", "options": {},
                           **dict.fromkeys(compare.SPLITS, accuracy)}
        path.write_text("".join(json.dumps(line) + "\n" for line in found.values()))

    monkeypatch.setattr(compare, "queue", queue)
    run(compare, "--search", "--rows", "mma", "--seeds", "100", table=False)
    assert set(found) == tried and tables.best_rate("mma", found.values()) == best
    assert tables.best_rate("causal", found.values()) == train.parse([]).sft_lr  # not searched
    assert tables.best_rate("causal", found.values(), like="mma") == best
    longer = [{**line, "steps": 900} for rate, line in found.items() if rate != best]
    assert tables.best_rate("mma", [*found.values(), *longer], steps=900) != best
    assert tables.best_rate("mma", [*found.values(), *longer], steps=700) == best


def test_false_yes_are_counted_by_how_plausible_the_object_is(monkeypatch):
    themes = {"cloud": "sky", "tree": "land", "fish": "sea", "cup": "home"}

    def ask(run, images, examples, dataset_class):  # sees the background alone
        scenes = [make_scene(FIRST_SEED["val"] + example.picture) for example in examples]
        return ["yes" if themes.get(example.kind) == scene.theme else "no"
                for example, scene in zip(examples, scenes)]

    monkeypatch.setattr(compare, "ask", ask)
    found = compare.existence([MultimodalGPT(Config(256))], "val", None)
    highest = max(found["false_yes"])
    assert highest >= 9 and found["false_yes"].pop(highest) == 1
    assert set(found["false_yes"].values()) == {0} and len(found["false_yes"]) > 3
    assert list(found["by_objects"]) == [5, 6, 7, 8, 9]
    assert all(0.5 < accuracy < 0.7 for accuracy in found["by_objects"].values())


def test_a_table_shows_every_seed_the_median_and_how_many_reach_90_percent():
    line = {"row": "mma", "steps": 8, "learning_rate": 0.01, "mix": "default", "data": "world",
            "split": "test", "options": {"width": 32}, "commit": "abc", "machine": "old",
            "kinds": {"exist": 0.25}, "accuracy": 0.75, "popular": 0.5}
    runs = [{**line, "seed": seed, "random": random, "adversarial": 0.125, "take_off": step}
            for seed, random, step in ((7, 0.5, None), (2, 0.9, 300), (4, 0.986, 100))]
    title, pope, kinds = tables.tables(runs, compare.ROWS).split("\n\n")
    assert title.endswith("split test, options {'width': 32}, commit abc, machine old")
    assert re.split(r" *\| ?", pope.splitlines()[2])[1:-1] == [
        "mma", "0.01", "2 4 7", "90.0 98.6 50.0", "90.0", "2 of 3", "50.0 50.0 50.0", "12.5 12.5 12.5",
        "300 100 -"]
    assert "25.0 25.0 25.0" in kinds
    runs.append({**runs[0], "learning_rate": 0.02})  # a row of its own
    runs.append({**runs[0], "steps": 9})  # a table of its own
    assert tables.tables(runs, compare.ROWS).count("mma") == 3 * 2
    assert tables.tables(runs, compare.ROWS).count("take-off") == 2


def test_the_tables_in_the_results_are_what_the_command_prints():
    text = (RESULTS / "README.md").read_text("utf-8")
    lines = list(map(json.loads, open(RESULTS / "runs.jsonl")))
    parts = tables.tables(lines, compare.ROWS).split("\n\n")
    parts += [tables.paired_table(lines, mix=mix) for mix in ("default", "one-way")]
    for part in parts:
        assert len(part) > 99 and part in text


def test_the_table_in_the_readme_is_what_compare_prints():
    lines = list(map(json.loads, open(RESULTS / "runs.jsonl")))
    assert tables.short_table(lines) in (RESULTS.parent / "README.md").read_text("utf-8")


def test_the_test_of_paired_differences_counts_all_signs():
    assert tables.sign_flip_test([3, 2, 1]) == 2 / 8  # all positive, or all negative
    assert tables.sign_flip_test([3, -2, 1]) == 6 / 8  # |sum| = 2; only +-(3 - 2 - 1) is less
    assert tables.sign_flip_test([1.5] * 10) == 2 / 1024
    assert tables.sign_flip_test([0.0, 0.0]) == 1


def test_pairs_are_of_one_seed_and_one_number_of_steps():
    line = {"mix": "default", "data": "world", "split": "test", "options": {}, "steps": 9,
            "popular": 0.5, "adversarial": 0.5, "learning_rate": 0.02,
            "accuracy": 0.5, "kinds": {"exist_color": 0.5, "where_color": 0.5}}
    lines = [{**line, "row": row, "seed": seed, "random": random}
             for row, seed, random in (("mma", 1, 0.9), ("causal", 0, 0.5), ("causal", 1, 0.7),
                                       ("mma", 0, 0.4), ("mma", 2, 0.1))]
    lines.append({**lines[1], "steps": 8})  # without a partner
    lines += [{**line, "learning_rate": 0.03, "random": 0.8} for line in lines[1:3]]
    lines.append({**lines[0], "learning_rate": 0.03, "random": 0.99})  # not the best of its row
    rows = [re.split(r" *\| ?", row)[1:-1] for row in tables.paired_table(lines).split("\n")]
    start = ["9", "0.02", "causal at 0.02", "random"]
    assert rows[2] == [*start, "-10.0 +20.0", "+5.0", "+5.0", "2", "1.000"]
    start = ["9", "0.02", "causal at 0.03", "random"]
    assert rows[8] == [*start, "-40.0 +10.0", "-15.0", "-15.0", "2", "1.000"]
    assert len(rows) == 2 + 2 * 6
