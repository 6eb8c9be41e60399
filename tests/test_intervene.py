"""What is changed in a trained model is what the interventions say, and nothing else."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data import NO_YES, Dataset, Example, draw, make_scene
from extras import intervene
from extras.variants import OTHER, Intervened, TwoQuestions
from mma import IMAGE, TEXT
from model import Config, Tokenizer
from train import save

RESULTS = Path(__file__).parents[1] / "results"
A, B = "Is there a fish in the image?", "Is there a red cup in the image?"
TOKENIZER = Tokenizer.build([A, B, "yes no"] * 2)
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1)
IMAGES = draw(make_scene(0))[None]


@pytest.fixture
def model():
    """Random weights also where they start as zeros. In float64 a difference is no rounding."""
    model = Intervened(CONFIG, "mma").double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def last_logits(model, prompt, dataset=Dataset):
    examples = [Example(0, prompt, "yes", "exist")]
    batch = dataset(examples, IMAGES, TOKENIZER, CONFIG).batch([0], prompts_only=True)
    return model(**batch)[0][0, -1]


@pytest.mark.parametrize("layers", [[], [0], [1], [0, 1, 2]])
def test_question_a_comes_in_through_swapped_layers_alone(model, layers):
    model.swapped = layers
    both = last_logits(model, A + B, TwoQuestions)
    for prompt, dataset in ((B, Dataset), ("Is there a cup?" + B, TwoQuestions)):
        other = last_logits(model, prompt, dataset)
        assert torch.allclose(both, other, rtol=1e-7) == (layers == [])


@pytest.mark.parametrize("attention, row, change, before, after", [
    ("mma", "uiiiiAAABBs", "swapped", "uBs", "uA"), ("mma", "uiiiiBBs", "closed", "uBs", "u"),
    ("causal", "uBBBiiiiss", "closed", "uB", "u")])
def test_masks_of_changed_layers_equal_a_dull_loop(model, attention, row, change, before, after):
    """row: <user>, picture, questions, <assistant>. before, after: text that image tokens see."""
    modality = torch.tensor([[{"i": IMAGE, "A": OTHER}.get(c, TEXT) for c in row]])
    generated = modality < 0  # nothing
    model.attention = attention
    setattr(model, change, [1, 2])
    for layer, sees in enumerate((before, after, after)):
        mask = model.mask(modality, generated, layer)[0, 0]
        for q, k in np.ndindex(*mask.shape):
            wanted = k <= q
            if row[q] == "i" and row[k] != "i":
                wanted = row[k] in sees
            if row[q] in "Bs" and row[k] == "A":
                wanted = False
            assert mask[q, k] == wanted, (layer, q, k)


def test_both_questions_of_a_pair_are_answerable_and_differ():
    scenes = [make_scene(i) for i in range(30)]
    for a, b in intervene.pairs_of_questions(scenes):
        assert a.answer != b.answer and a.prompt != b.prompt
        assert a.picture == b.picture and a.kind == b.kind in intervene.KINDS
        if a.kind == "exist":
            for e in (a, b):
                there = any(f" {o.name} " in e.prompt for o in scenes[e.picture].objects)
                assert e.answer == NO_YES[there]


def test_every_intervention_becomes_a_line_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    save(Path("model.pt"), {
        "config": vars(CONFIG), "words": TOKENIZER.words, "finished": True, "stage": "sft",
        "weights": Intervened(CONFIG).state_dict(),
        "options": {"attention": "mma", "order": "image-first", "seed": 3}})
    monkeypatch.setattr("sys.argv", ["intervene", "model.pt"])
    monkeypatch.setattr(intervene, "SCENES", 20)
    intervene.main()

    def answer_b(run, images, examples, dataset_class):
        assert bool(run[0].swapped) == (dataset_class is TwoQuestions)
        return [example.answer for example in examples]

    monkeypatch.setattr(intervene, "ask", answer_b)
    intervene.main()  # asked anew: in place of the lines before
    lines = [json.loads(line) for line in open("results/interventions.jsonl")]
    some = [[0], [1], [2], [1, 2], [0, 1, 2]]
    assert [line["layers"] for line in lines] == [[], *some, *some]
    assert [line["change"] for line in lines] == ["closed"] * 6 + ["swapped"] * 5
    for line in lines:
        assert line["kinds"] == dict.fromkeys(intervene.KINDS, [0, 1])
    assert "| mma | swapped | 1 2 3" in capsys.readouterr().out
    assert Path("results/layers.png").exists()


def test_the_table_in_the_results_is_what_the_command_prints():
    lines = [json.loads(line) for line in open(RESULTS / "interventions.jsonl")]
    assert intervene.layer_table(lines) in (RESULTS / "README.md").read_text("utf-8")
