"""The benchmark measures what it says, on a very small model."""
import sys

import pytest
import torch

import train
from data import Dataset, Example
from extras import bench
from test_compare import TINY


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "VAL_SCENES", 4)
    trainer = train.start(train.parse([*TINY, "--name", str(tmp_path / "run")]))
    for p in trainer.model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # at the start every block is the identity
    trainer.begin("sft")
    return trainer


@pytest.mark.parametrize("attention, shared", [("causal", 17), ("causal", 0), ("mma", 0)])
def test_six_questions_about_a_picture_are_answered_as_each_alone(trainer, attention, shared):
    model = trainer.model
    model.attention = attention
    examples = [Example(0, question, "", "") for question in bench.QUESTIONS]
    six = Dataset(examples, trainer.data.images, trainer.tokenizer, model.config)
    found = bench.first_logits(model, six.batch(range(6), prompts_only=True), shared)
    for i, logits in enumerate(found):
        batch = six.batch([i], prompts_only=True)
        torch.testing.assert_close(logits, model(**batch)[0][0, -1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1])


def test_functions_are_timed_in_turn_and_figures_shown_as_median():
    order, device = [], torch.device("cpu")
    times = bench.in_turn(device, [lambda: order.append("a"), lambda: order.append("b")], 3, 1)
    assert order == ["a", "b"] * 4 and [len(taken) for taken in times] == [3, 3]
    assert bench.show("s", [3.0, 1.0, 2.0]) == "2 s (1 to 3)"


def test_every_figure_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(bench, "NEW", 2)
    monkeypatch.setattr(sys, "argv", ["bench", "--steps=1", "--device=cpu", "--", *TINY])
    bench.main()
    rows = capsys.readouterr().out.strip().split("\n")[4:]
    assert len(rows) == 10 and all(row.count("(") == 1 for row in rows)
