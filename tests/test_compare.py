"""The comparison: each run trained once from one start, resumed, recorded; and its tables."""
import json
import re
import sys
from pathlib import Path

import pytest

import driving
import train
from data import FIRST_SEED, NO_YES, PLACES, make_scene
from extras import compare, tables
from extras.variants import MIXES
from model import Config, MultimodalGPT

ROOT = Path(compare.__file__).parent.parent
TINY = [*driving.TINY, "--pretrain-steps", "2", "--sft-steps", "2"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder, with few scenes and frequent validations -> the lines."""
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["compare", *words])
        compare.main()
        return list(map(json.loads, open(compare.RUNS)))

    for module, name, value in ((train, "VAL_SCENES", 4), (train, "EVAL_EVERY", 1),
                                (train, "LOG_EVERY", 1), (compare, "SCENES", 12)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    return command


def record(row, seed=0, accuracy=0.5, **changes):
    """A line of the results."""
    return {"row": row, "seed": seed, "learning_rate": 0.02, "steps": 700, "split": "test",
            "mix": "default", "data": "world", "options": {}, "commit": "abc", "machine": "old",
            "random": accuracy, "popular": accuracy, "adversarial": accuracy, "take_off": 100,
            "yes_ratio": {"random": 0.5, "popular": 0.5, "adversarial": 0.5},
            "accuracy": 0.5, "kinds": dict.fromkeys(tables.FIGURES[3:-1], 0.5), **changes}


def trained():
    """name -> checkpoint of all runs."""
    return {path.parent.name: train.load(path)[2] for path in Path("runs").glob("*/model.pt")}


def test_every_row_starts_from_the_one_pretrained_model_of_its_seed(run, capsys):
    found = run("--rows", "text-first", "mma", "--seeds", "0", "1", "--", *TINY)
    assert [(line["row"], line["seed"]) for line in found] == [
        ("text-first", 0), ("mma", 0), ("text-first", 1), ("mma", 1)]
    options = [checkpoint["options"] for checkpoint in trained().values()]
    starts = {o["seed"]: f"runs/{o['name']}/model.pt" for o in options if not o["pretrained"]}
    assert len(starts) == 2 and sum(o["pretrained"] == starts[o["seed"]] for o in options) == 4
    assert found[0].items() >= {"learning_rate": 0.02, "steps": 2, "split": "test"}.items()
    assert [step for step, _ in found[0]["curves"]["exist"]] == [1, 2]
    assert found[0]["yes_ratio"].keys() == {"random", "popular", "adversarial"}
    assert tables.tables(found, compare.ROWS) in capsys.readouterr().out


def test_finished_runs_are_skipped_and_an_interrupted_one_ends_the_same(run, monkeypatch):
    command = ("--rows", "mma", "--", *TINY)
    step, done, stops = train.Trainer.train_step, [], [3]

    def counted(trainer):
        if len(done) in stops:
            raise KeyboardInterrupt
        done.append(trainer.stage)
        return step(trainer)

    monkeypatch.setattr(train.Trainer, "train_step", counted)
    with pytest.raises(KeyboardInterrupt):
        run(*command)
    assert not Path("results/runs.jsonl").exists()
    stops.clear()
    resumed = run(*command)
    assert "seconds" not in resumed[0]  # which would be those of a part
    assert run(*command) == resumed and done == ["pretrain", "pretrain", "sft", "sft"]
    Path("results/runs.jsonl").unlink()
    Path("runs").rename("interrupted")
    [whole] = run(*command)
    assert whole.pop("seconds") and [whole] == resumed


def test_a_run_with_another_default_is_not_taken_for_the_wanted_one(run, monkeypatch):
    run("--rows", "mma", "--", *TINY)
    Path("results/runs.jsonl").unlink()
    monkeypatch.setitem(train.NUMBERS, "--questions", (4, "another default"))
    run("--rows", "mma", "--", *TINY)
    found = [checkpoint["options"] for name, checkpoint in trained().items() if "mma" in name]
    assert sorted(options["questions"] for options in found) == [4, 8]


def test_a_mix_has_its_own_start_and_an_option_of_fine_tuning_has_not(run):
    run("--rows", "mma", "--", *TINY)
    run("--rows", "mma", "--", *TINY, "--train-vit")
    found = run("--rows", "mma", "--mix", "one-way", "one-exist", "--", *TINY)
    starts = [checkpoint for name, checkpoint in trained().items() if "pretrained" in name]
    assert len(starts) == 2 and len(trained()) == 5
    assert starts[0]["log"][0]["loss"] != starts[1]["log"][0]["loss"]
    assert [line["mix"] for line in found] == ["default", "default", "one-way one-exist"]
    assert "train_vit" in found[1]["options"]
    assert tables.tables(found, compare.ROWS).count("take-off") == 3  # three tables


def test_mixes_change_what_they_say_and_nothing_else():
    for part, split in zip(("train", "val"), train.load_splits(train.parse(["--scenes", "40"]))):
        for kind in ("exist", "exist_color"):
            wanted, asked = [], []
            for e in split.questions:
                if e.kind != kind or e.picture not in asked:
                    wanted.append(e)
                if e.kind == kind:
                    asked.append(e.picture)
            assert MIXES[f"one-{kind}"](split) == split._replace(questions=wanted)
            assert len(split.questions) - len(wanted) > len(split.images) // 2
        one_way, in_order = [], []
        for i, caption in enumerate(split.captions):
            objects = make_scene(FIRST_SEED[part] + i).objects
            told = [f"{o.place} {o.color} {o.name}" for o in objects]
            one_way.append(caption._replace(answer=", ".join(told)))
            told = [text for place in PLACES for text in told if text.split()[0] == place]
            in_order.append(caption._replace(answer=", ".join(told)))
        assert MIXES["one-way"](split) == split._replace(captions=one_way)
        assert MIXES["in-order"](split) == split._replace(captions=in_order)


def test_options_that_the_rows_set_are_refused(run):
    with pytest.raises(SystemExit, match="--name --seed: set for each run"):
        run("--", "--seed", "1", "--name=x")


def test_take_off_is_the_first_validation_from_which_all_are_above_60_percent():
    for percents, step in (([50, 61, 80], 2), ([70, 60, 90], 3), ([70, 80], 1), ([90, 50], None)):
        assert compare.take_off([[i, x / 100] for i, x in enumerate(percents, 1)]) == step


@pytest.mark.parametrize("best, tried", [
    (0.03, {0.01, 0.02, 0.03, 0.04}), (0.06, {0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07}),
    (0.005, {0.0025, 0.005, 0.01, 0.02, 0.03, 0.04})])
def test_the_search_goes_on_while_the_best_rate_is_at_an_end(best, tried, run, monkeypatch):
    found = {}

    def queue(rows, options, path, split="test"):
        for name, _, rate in rows:
            found[rate] = record(name, 100, 1 - abs(rate - best), split=split, learning_rate=rate)
        path.write_text("".join(json.dumps(line) + "\n" for line in found.values()))

    monkeypatch.setattr(compare, "queue", queue)
    run("--search", "--rows", "mma", "--seeds", "100")
    assert set(found) == tried


def test_the_rate_is_the_best_of_the_search_that_is_most_alike():
    lines = [record("mma", 100, 1 - abs(rate - best), split="search", learning_rate=rate, **changes)
             for best, changes in ((0.01, {}), (0.03, {"steps": 900}), (0.04, {"mix": "one-way"}))
             for rate in (0.01, 0.02, 0.03, 0.04)]
    assert tables.best_rate("mma", lines, 700) == 0.01
    assert tables.best_rate("mma", lines, 900) == 0.03
    assert tables.best_rate("mma", lines, 900, mix="one-way") == 0.04
    assert tables.best_rate("mma", lines, 700, mix="in-order") == 0.01  # never searched
    assert tables.best_rate("causal", lines, 700, like="mma") == 0.01
    assert tables.best_rate("causal", lines, 700) == train.parse([]).sft_lr


def test_false_yes_are_counted_by_how_plausible_the_object_is(monkeypatch):
    themes = {"cloud": "sky", "tree": "land", "fish": "sea", "cup": "home"}

    def ask(run, images, examples, dataset_class):  # sees the background and keys
        answers = []
        for example in examples:
            name = re.search("an? (.*) in the", example.prompt)[1]
            likely = themes.get(name) == make_scene(FIRST_SEED["val"] + example.picture).theme
            answers.append(example.answer if name == "key" else NO_YES[likely])
        return answers

    monkeypatch.setattr(compare, "ask", ask)
    found = compare.existence([MultimodalGPT(Config(256))], "val", None)
    highest = max(found["false_yes"])
    assert highest >= 9 and found["false_yes"].pop(highest) == 1
    assert set(found["false_yes"].values()) == {0} and len(found["false_yes"]) > 3
    assert list(found["by_objects"]) == [5, 6, 7, 8, 9]
    assert all(0.5 < accuracy < 0.7 for accuracy in found["by_objects"].values())


def test_a_table_shows_every_seed_the_median_and_how_many_reach_90_percent():
    runs = [record("mma", seed, random=random, adversarial=0.125, take_off=step,
                   options={"width": 32}, kinds={"exist": 0.25})
            for seed, random, step in ((7, 0.5, None), (2, 0.9, 300), (4, 0.986, 100))]
    title, pope, kinds = re.sub(" +", " ", tables.tables(runs, compare.ROWS)).split("\n\n")
    assert title.endswith("split test, options {'width': 32}, commit abc, machine old")
    assert pope.split("\n")[2:] == ["| mma | 0.02 | 2 4 7 | 90.0 98.6 50.0 | 90.0 | 2 of 3 "
                                    "| 50.0 50.0 50.0 | 12.5 12.5 12.5 | 50.0 50.0 50.0 "
                                    "| 300 100 - |"]
    assert "25.0 25.0 25.0" in kinds


def test_what_the_command_prints_is_what_the_readmes_show(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["compare", "--table"])
    compare.main()
    *parts, short = capsys.readouterr().out.strip().split("\n\n")
    results = Path("results/README.md").read_text("utf-8")
    for part in parts:
        assert part in results
    assert len(parts) > 30 and short in Path("README.md").read_text("utf-8")


def test_the_test_of_paired_differences_counts_all_signs():
    assert tables.sign_flip_test([3, 2, 1]) == 2 / 8  # all positive, or all negative
    assert tables.sign_flip_test([3, -2, 1]) == 6 / 8  # |sum| = 2; only +-(3 - 2 - 1) is less
    assert tables.sign_flip_test([1.5] * 10) == 2 / 1024
    assert tables.sign_flip_test([0.0, 0.0]) == 1


def test_pairs_are_of_one_seed_and_one_number_of_steps():
    lines = [record(row, seed, random=random)
             for row, seed, random in (("mma", 1, 0.9), ("causal", 0, 0.5), ("causal", 1, 0.7),
                                       ("mma", 0, 0.4), ("mma", 2, 0.1))]
    lines.append({**lines[1], "steps": 8})  # without a partner
    lines += [{**line, "learning_rate": 0.03, "random": 0.8} for line in lines[1:3]]
    lines.append({**lines[0], "learning_rate": 0.03, "random": 0.99})  # not the best of its row
    table = re.sub(" +", " ", tables.paired_table(lines))
    assert "causal at 0.02 | random | -10.0 +20.0 | +5.0 | +5.0 | 2 | 1.000 |" in table
    assert "causal at 0.03 | random | -40.0 +10.0 | -15.0 | -15.0 | 2 | 1.000 |" in table
    assert table.count("\n| 700 | 0.02 | causal at") == table.count("\n") - 1 == 2 * 10
