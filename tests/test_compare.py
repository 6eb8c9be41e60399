"""The comparison: runs from one start, lines in a file, their table; and the rows beyond mma.py."""
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import driving
import eval_pope
import train
from data import FIRST_SEED, PLACES, make_scene, make_world
from extras import compare, sound, variants
from mma import IMAGE, PAD, TEXT
from model import Config

ROOT = Path(compare.__file__).parent.parent
TINY = [*driving.TINY, "--pretrain-steps", "4", "--sft-steps", "4"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder, with few scenes, and a checkpoint after each step."""
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["compare", *words])
        compare.main()

    for name, value in (driving.SMALL | {"LOG_EVERY": 1}).items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(compare, "SCENES", 12)
    monkeypatch.chdir(tmp_path)
    return command


def lines(name):
    return list(map(json.loads, open(f"results/{name}.jsonl")))


def test_all_rows_of_a_seed_go_on_from_one_pre_training_and_end_as_runs_of_train_py(run, capsys):
    run("tiny", "--rows", "text-first", "mma", "--seeds", "0", "1", "--", *TINY)
    found = lines("tiny")
    assert [(line["row"], line["seed"], line["rate"]) for line in found] == [
        ("text-first", 0, 0.04), ("mma", 0, 0.02), ("text-first", 1, 0.04), ("mma", 1, 0.02)]
    assert capsys.readouterr().out.endswith(compare.summary(found) + "\n")
    assert len(list(Path("runs/tiny").glob("pretrained-*"))) == 2
    train.start(train.parse([*TINY, "--seed", "1", "--name", "alone"])).train()
    alone, _, _ = whole = train.load("runs/alone")
    compared, _, _ = train.load("runs/tiny/mma-0.02-seed1")
    for wanted, weights in zip(alone.parameters(), compared.parameters(), strict=True):
        assert torch.equal(wanted, weights)
    figures = eval_pope.ask_own(whole, make_world("test", 12))
    assert found[3]["kinds"] == figures["kinds"] and found[3]["accuracy"] == figures["accuracy"]
    assert [found[3][split] for split in eval_pope.SPLITS] == [
        figures[split]["accuracy"] for split in eval_pope.SPLITS]


@pytest.mark.parametrize("row", ["mma", "cca", "mma-one-way"])
def test_an_interrupted_run_goes_on_and_a_finished_one_is_skipped(row, run, monkeypatch):
    step, done, stops = train.Trainer.train_step, [], [2, 5]

    def counted(trainer):
        if len(done) in stops:
            raise KeyboardInterrupt
        done.append(trainer.stage)
        return step(trainer)

    def weights():
        [folder] = Path("runs/tiny").glob(f"{row}-*")
        return torch.load(folder / "model.pt", weights_only=True)["weights"]

    monkeypatch.setattr(train.Trainer, "train_step", counted)
    command = ("tiny", "--rows", row, "--seeds", "0", "--", *TINY)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            run(*command)
        stops.pop(0)
    assert not Path("results/tiny.jsonl").exists()
    run(*command)
    [resumed], end = lines("tiny"), weights()
    run(*command)
    assert lines("tiny") == [resumed] and done == ["pretrain"] * 4 + ["sft"] * 4
    Path("results/tiny.jsonl").unlink()
    Path("runs").rename("interrupted")
    run(*command)
    [whole] = lines("tiny")
    assert whole["kinds"] == resumed["kinds"] and len(done) == 16
    assert all(torch.equal(tensor, end[name]) for name, tensor in weights().items())


def test_rates_are_tried_on_validation_scenes_in_a_file_of_their_own(run, capsys):
    words = "--rows mma --seeds 7 --rates 0.01 0.5 --validate --".split()
    run("tiny", *words, *TINY)
    assert [line["rate"] for line in lines("tiny-rates")] == [0.01, 0.5]
    model = train.load("runs/tiny/mma-0.5-seed7")
    figures = eval_pope.ask_own(model, make_world("val", 12))
    assert lines("tiny-rates")[1]["accuracy"] == figures["accuracy"]
    assert model[2]["options"]["sft_lr"] == 0.5 and not Path("results/tiny.jsonl").exists()
    driving.refused("tiny.jsonl: no such run yet", run, "tiny")


def test_a_table_has_median_range_and_pairs_of_one_seed(capsys):
    made_up = [("mma", 0.02, 1, 0.9), ("mma", 0.02, 2, 0.5), ("causal", 0.05, 1, 0.8),
               ("mma", 0.02, 5, 0.6), ("causal", 0.05, 2, 0.5), ("causal", 0.01, 2, 0.625)]
    runs = [{"row": row, "rate": rate, "seed": seed, "adversarial": share, "accuracy": 1 - share,
             "kinds": {"exist": share / 2}, "commit": "abc", "machine": "A"}
            for row, rate, seed, share in made_up]
    how, table, origin = compare.summary(runs, ("adversarial", "unknown", "exist")).split("\n\n")
    assert re.sub(" +", " ", table).split("\n") == [
        "| row | rate | seeds | adversarial | exist |",
        "| --- | ---- | ----- | ----------- | ----- |",
        "| mma | 0.02 | 3 | 60.0 (50.0 to 90.0) | 30.0 (25.0 to 45.0) |",
        "| causal | 0.05 | 2 | 65.0 (50.0 to 80.0) 0/2 | 32.5 (25.0 to 40.0) 0/2 |",
        "| causal | 0.01 | 1 | 62.5 (62.5 to 62.5) 1/1 | 31.2 (31.2 to 31.2) 1/1 |"]
    assert compare.summary(runs, ["all questions"]).count("35.0 (20.0 to 50.0) 1/2") == 1
    assert how == compare.HOW and origin == "Commit abc, A."


def test_results_show_what_the_commands_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = Path("results/README.md").read_text("utf-8")
    commands = re.findall(r"^    python -m extras\.(compare|sound) ([\w -.]+)$", text, re.MULTILINE)
    for module, words in commands:
        monkeypatch.setattr(sys, "argv", [module, *shlex.split(words)])
        {"compare": compare, "sound": sound}[module].main()
        for part in capsys.readouterr().out.strip().split("\n\n"):
            assert part in text, words
    assert len(commands) == 3


@pytest.mark.parametrize("row, positions", [
    ("uiiiiiiiiiiiiiiiiqqa",
     "01111122112211111345"),
    ("uqqiiiiiiiiiiiiiiiisa",
     "012333334433443333356"),
    ("--uiiiiiiiiiiiiiiiiqaiiiiiiiiiiiiiiiiqa",
     "000111112211221111134555556655665555578")])
def test_concentric_attention_goes_from_ring_to_ring(row, positions):
    modality = torch.tensor([[{"i": IMAGE, "-": PAD}.get(c, TEXT) for c in row]])
    model = variants.CCAModel(Config(300, width=32, heads=2, layers=1, vit_layers=1))
    assert "".join(map(str, model.positions(modality)[0].tolist())) == positions
    mask = model.mask(modality, modality == 9)[0, 0]
    for q in range(len(row)):
        for k in range(len(row)):
            wanted = positions[k] <= positions[q] and "-" not in row[q] + row[k]
            assert mask[q, k] == (wanted or q == k), (q, k)


def test_one_way_captions_put_the_place_first_and_change_nothing_else():
    part = make_world("val", 40)
    changed = variants.one_way(part)
    for i, example in enumerate(changed.captions):
        objects = make_scene(FIRST_SEED["val"] + i).objects
        assert example.answer == ", ".join(f"{o.place} {o.color} {o.name}" for o in objects)
        assert example._replace(answer=part.captions[i].answer) == part.captions[i]
    assert changed._replace(captions=part.captions) == part
    assert {e.answer.split()[0] for e in changed.captions} <= set(PLACES)
