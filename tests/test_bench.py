"""The benchmark measures what it says, on a very small model."""
import sys

import numpy as np
import pytest
import torch

from data import Dataset
from driving import TINY
from extras import bench
from model import Config, MultimodalGPT, Tokenizer


@pytest.mark.parametrize("attention, shared", [("causal", 17), ("causal", 0), ("mma", 0)])
def test_six_questions_about_a_picture_are_answered_as_each_alone(attention, shared):
    prompts = [example.prompt for example in bench.QUESTIONS]
    tokenizer = Tokenizer.build(prompts + prompts)
    config = Config(len(tokenizer.pieces), width=32, heads=2, layers=2, vit_layers=1)
    model = MultimodalGPT(config, attention)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # at the start every block is the identity
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    six = Dataset(bench.QUESTIONS, image, tokenizer, config)
    batch = six.batch(range(6), prompts_only=True)
    found = bench.first_logits(model, batch, shared)
    for i, logits in enumerate(found):
        alone, _ = model(**six.batch([i], prompts_only=True))
        torch.testing.assert_close(logits, alone[0, -1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1])


def test_functions_are_timed_in_turn_and_figures_shown_as_median():
    order = []
    a, b = (lambda: order.append("a")), (lambda: order.append("b"))
    times = bench.in_turn([a, b], 3, warmup=1)
    assert order == ["a", "b"] * 4
    assert times.shape == (2, 3)
    row = bench.row("", [3.0, 1.0, 2.0], " ms")
    assert "2 ms (1 to 3)" in row.values()


def test_every_figure_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(bench, "NEW", 2)
    monkeypatch.setattr(sys, "argv", ["bench", "--steps=1", "--device=cpu", "--", *TINY])
    bench.main()
    printed = capsys.readouterr().out.strip()
    rows = printed.split("\n")[4:]
    assert len(rows) == 10 and all(row.count("(") == 1 for row in rows)
