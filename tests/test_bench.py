"""The benchmark measures what it says, on a very small model."""
import json
import sys

import pytest
import torch

import train
from extras import ablate, bench
from test_compare import TINY


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "VAL_SCENES", 4)
    return train.start(train.parse([*TINY, "--name", str(tmp_path / "run")]))


def test_the_parts_of_a_step_are_disjoint_and_fill_most_of_it(trainer):
    timed = bench.TimedTrainer(trainer)
    for stage in ("pretrain", "sft"):
        timed.begin(stage)
        timed.timed_step()
        shares = timed.timed_step()
        assert min(shares.values()) > 0 and 30 < sum(shares.values()) < 101


def test_flop_are_those_of_the_matrix_products_counted_by_hand(trainer):
    trainer.begin("pretrain")
    indices, D, n, expected = bench.batch(trainer, 0), 32, 16, 0
    for half in (indices[:4], indices[4:]):  # a batch is halved between two threads
        batch = trainer.data.batch(half)
        B, T = batch["ids"].shape
        labels = int((batch["labels"][:, 1:] != -100).sum())
        first = 2 * B * 16 ** 2 * 8 * 8 * 3 * D // 4
        later = 2 * B * n * 8 * 8 * D // 4 * D
        vit = 2 * B * n * 12 * D * D + 4 * B * n * n * D
        decoder = 2 * B * T * 12 * D * D + 4 * B * T * T * D
        ends = 2 * B * n * D * D + 2 * labels * D * trainer.model.config.vocab_size
        expected += 2 * first + 3 * (later + vit + decoder + ends)  # pictures: no gradient
        expected += 2 * B * (n * n + T * T) * D  # attention's weights are made once more
    assert bench.count_flop(trainer, indices) == expected


def test_uncached_generation_says_what_the_cached_one_says(trainer):
    for p in trainer.model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # at the start every block is the identity
    trainer.begin("sft")
    prompt = trainer.data.batch(range(5), prompts_only=True)
    cached = trainer.model.generate(**prompt, max_new_tokens=bench.NEW, end=-1)
    assert torch.equal(cached, bench.generate_uncached(trainer.model, **prompt))


def test_functions_are_timed_in_turn_and_figures_shown_as_median():
    order, device = [], torch.device("cpu")
    times = bench.in_turn(device, [lambda: order.append("a"), lambda: order.append("b")], 3, 1)
    assert order == ["a", "b"] * 4 and [len(taken) for taken in times] == [3, 3]
    assert bench.show("s", [3.0, 1.0, 2.0]) == "2 s (1 to 3)"


def test_every_figure_is_printed_and_written(trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "NEW", 2)
    path = tmp_path / "bench.json"
    command = ["bench", "--steps=1", f"--json={path}", "--device=cpu", "--", *TINY]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    printed, figures = capsys.readouterr().out, json.loads(path.read_text())["figures"]
    assert len(figures) == 33 and len({name for name, _, _ in figures}) == 33
    for name, unit, values in figures:
        assert f"| {name} " in printed and bench.show(unit, values) in printed


def test_a_choice_about_speed_is_timed_against_the_default(trainer):
    row = ablate.speed_row("ViT trained, too", TINY, repetitions=1)
    for stage in ("pretrain", "sft"):
        assert float(row[f"{stage} ratio (min to max)"].split()[0]) > 0
