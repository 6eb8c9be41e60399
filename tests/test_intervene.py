"""What is changed in a trained model is what the interventions say, and nothing else."""
import re
from pathlib import Path

import pytest
import torch

from data import Dataset, Example, Tokenizer, draw, make_scene
from driving import refused
from extras import intervene
from extras.intervene import OTHER, Intervened, TwoQuestions
from mma import IMAGE, TEXT
from model import Config

A, B = "Is there a fish in the image?", "Is there a red cup in the image?"
TOKENIZER = Tokenizer.build([A, B, "yes no"] * 2)
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1)
BY_HAND = {  # u: <user>, i: image tokens, s: <assistant>; B in the layer, or A in its place
    "u": ("#......", "#......"),
    "i": ("##...##", "##.##.."),
    "j": ("###..##", "#####.."),
    "A": ("####...", "####..."),
    "a": ("#####..", "#####.."),
    "B": ("###..#.", "###..#."),
    "s": ("###..##", "###..##"),
}


def last_logits(model, prompt, dataset_class):
    examples = [Example(0, prompt, "yes" if dataset_class is Dataset else ("no", "yes"), "exist")]
    images = draw(make_scene(0))[None]
    dataset = dataset_class(examples, images, TOKENIZER, CONFIG)
    return model(**dataset.batch([0], prompts_only=True))[0, -1]


def test_the_masks_of_both_kinds_of_layer_are_those_drawn_by_hand():
    model = Intervened(CONFIG, "mma")
    model.swapped = [1]
    modality = torch.tensor([[TEXT, IMAGE, IMAGE, OTHER, OTHER, TEXT, TEXT]])
    masks = model.mask(modality, modality < 0)  # nothing is generated
    assert masks.shape == (3, 1, 1, 7, 7)
    for mask, swapped in zip(masks, (0, 1, 0)):
        for row, drawn in zip(mask[0, 0].tolist(), BY_HAND.values()):
            assert "".join(".#"[seen] for seen in row) == drawn[swapped]


@pytest.mark.parametrize("swapped", [[], [0], [1], [0, 1, 2]])
def test_question_a_comes_in_through_swapped_layers_alone(swapped):
    model = Intervened(CONFIG, "mma").double().eval()  # so that a difference is no rounding
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)  # a fresh model has blocks that do nothing
    model.swapped = swapped
    both = last_logits(model, (A, B), TwoQuestions)
    for other in (last_logits(model, B, Dataset),
                  last_logits(model, ("Is there a cup?", B), TwoQuestions)):
        assert torch.allclose(both, other, rtol=1e-7) == (swapped == [])


def test_runs_become_a_table_of_their_range_and_a_picture(tiny, monkeypatch, capsys):
    heard = [*"BABA", *"BBBB"]  # by the first run and by the second, in each row of the table

    def answer(model, dataset):
        for pair in dataset.examples:
            assert pair.prompt[0] != pair.prompt[1] and pair.answer[0] != pair.answer[1]
        question = "AB".index(heard.pop(0))
        return [pair.answer[question] for pair in dataset.examples]

    trainer = tiny("--layers", 2, "--name", "one")
    Path("results").mkdir()
    monkeypatch.setattr("sys.argv", ["intervene", "runs/one", "runs/one"])
    monkeypatch.setattr(intervene, "SCENES", 20)
    monkeypatch.setattr("eval_pope.answer", answer)
    refused("not fine-tuned", intervene.main)
    trainer.begin("sft")
    trainer.save()
    intervene.main()
    rows = [re.split(" +[|] ?", row)[1:-1] for row in capsys.readouterr().out.split("\n")]
    assert [row for row in rows if row][2:] == [["0"] * 6, ["0 to 100"] * 6] * 2
    assert Path("results/swap.png").exists()
