"""The benchmark and the ablation do what they say, on a very small model."""
import sys
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch

import ablate
import bench
import train
from test_train import SMALL


@pytest.fixture
def in_small_world(tmp_path, monkeypatch):
    monkeypatch.setitem(train.PRESETS, "tiny", SMALL)
    monkeypatch.chdir(tmp_path)


def test_the_parts_of_a_step_are_all_there_and_sum_to_no_more_than_the_whole(in_small_world):
    trainer = train.set_up(train.parse(["--val-scenes", "4", "--device", "cpu"]))
    clock = bench.Clock(torch.device("cpu"))
    for stage in train.STAGES:
        trainer.begin(stage)
        before = trainer.train_step(0.0).item()
        with bench.timed_parts(trainer, clock):
            start = clock.now()
            trainer.train_step(0.0)
            whole = clock.now() - start
        parts = clock.take()
        assert set(parts) == {"data", "mask", "ViT forward", "forward", "backward", "optimizer"}
        outer = sum(parts[name] for name in ("data", "forward", "backward", "optimizer"))
        assert 0.3 * whole < outer < 1.05 * whole and parts["mask"] + parts["ViT forward"] < parts["forward"]
        assert trainer.train_step(0.0).item() < before  # unpatched again, and still training


def test_figures_are_shown_as_median_with_their_spread():
    assert bench.show([3.0, 1.0, 2.0], " s") == "2.0 s (1.0 to 3.0)"
    assert bench.show([0.001234], " µs", 1e6, 0) == "1,234 µs (1,234 to 1,234)"


def test_functions_are_timed_in_turn():
    order = []
    times = bench.repeat(bench.Clock(torch.device("cpu")), [lambda: order.append("a"), lambda: order.append("b")], 3, 1)
    assert order == ["a", "b"] * 4 and [len(t) for t in times] == [3, 3]


def test_an_ablation_trains_every_row_once_and_writes_its_table(in_small_world, monkeypatch, capsys):
    command = ["ablate.py", "--seeds", "2", "--steps", "1", "--", "--pretrain-steps", "2", "--sft-steps", "2",
               "--val-scenes", "8", "--log-every", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    ablate.main()
    first = capsys.readouterr().out
    for name in [name for variants in ablate.VARIANTS.values() for name in variants] + list(ablate.SPEED):
        assert f"| {name} " in first, name
    monkeypatch.setattr(train, "set_up", None)  # nothing is trained again
    monkeypatch.setattr(ablate, "SPEED", {})
    ablate.main()
    table = open("results/ablation.md").read().split("Milliseconds")[0]
    assert table in first and table in capsys.readouterr().out


def test_a_variant_that_is_only_slower_learns_the_same(in_small_world, tmp_path):
    """What is timed against the default computes the same loss: nothing was left out to be fast."""
    options = ["--val-scenes", "4", "--device", "cpu", "--scenes", "64"]
    losses = []
    for patches, change in [((), None), *(ablate.SPEED[name] for name in ("one thread, torch's own parallelism",
                            "a ViT pass for each question, not for each picture", "attention in bfloat16 too"))]:
        with ExitStack() as stack:
            for owner, attribute, value in patches:
                stack.enter_context(patch.object(owner, attribute, value))
            trainer = train.Trainer(train.parse(options), tmp_path, torch.device("cpu"))
            (change or (lambda trainer: None))(trainer)
            trainer.begin("sft")
            losses.append(trainer.train_step(0.0).item())
    assert losses == pytest.approx([losses[0]] * 4, rel=0.02)
