"""What is changed in a trained model is what the interventions say, and nothing else."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data import Dataset, Example, make_scene
from extras import intervene
from extras.variants import OTHER, Intervened, TwoQuestions
from mma import IMAGE, TEXT
from model import Config, Tokenizer
from train import save

RESULTS = Path(__file__).parents[1] / "results"
A, B = "Is there a fish in the image?", "Is there a red cup in the image?"
TOKENIZER = Tokenizer.build([A, B, "yes no"] * 2)
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1, image_size=32)
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


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


def test_a_question_that_nobody_sees_changes_nothing(model):
    torch.testing.assert_close(last_logits(model, A + B, TwoQuestions),
                               last_logits(model, B))


@pytest.mark.parametrize("layers", [[0], [1], [0, 1, 2]])
def test_a_swapped_layer_lets_question_a_in(model, layers):
    model.swapped = layers
    swapped = last_logits(model, A + B, TwoQuestions)
    assert not torch.allclose(swapped, last_logits(model, B))
    other = last_logits(model, "Is there a cup?" + B, TwoQuestions)
    assert not torch.allclose(swapped, other)


def test_in_the_last_layer_the_image_tokens_no_longer_matter(model):
    normal = last_logits(model, B)
    model.closed = [2]
    torch.testing.assert_close(last_logits(model, B), normal)
    model.closed = [0]
    assert not torch.allclose(last_logits(model, B), normal)


def test_closed_in_every_layer_is_causal_attention(model):
    model.closed = [0, 1, 2]
    closed = last_logits(model, B)
    model.closed, model.attention = [], "causal"
    torch.testing.assert_close(closed, last_logits(model, B))


def test_closed_also_hides_a_question_before_the_picture(model):
    model.attention = "causal"
    modality = torch.tensor([[TEXT] * 4 + [IMAGE] * 4 + [TEXT] * 2])  # <user>, question, picture
    generated = torch.zeros_like(modality, dtype=torch.bool)
    model.closed = [1]
    mask = model.mask(modality, generated, 1)[0, 0]
    changed = model.mask(modality, generated, 0)[0, 0] & ~mask
    assert changed.nonzero().tolist() == [[q, k] for q in (4, 5, 6, 7) for k in (1, 2, 3)]


@pytest.mark.parametrize("swapped", [True, False])
def test_the_mask_of_two_questions_equals_a_dull_loop(model, swapped):
    row = "uiiiiAAABBs"  # <user>, the picture, question A, question B, <assistant>
    modality = torch.tensor([[{"i": IMAGE, "A": OTHER}.get(c, TEXT) for c in row]])
    model.swapped = [1] if swapped else []
    mask = model.mask(modality, torch.zeros_like(modality, dtype=torch.bool), 1)[0, 0]
    for q, looks in enumerate(row):
        for k, seen in enumerate(row):
            wanted = k <= q
            if looks == "i" and seen != "i":
                wanted = seen == "u" or (seen == "A") == swapped
            if looks in "Bs" and seen == "A":
                wanted = False
            assert mask[q, k] == wanted, (q, k)


def test_both_questions_of_a_pair_are_answerable_and_differ():
    scenes = [make_scene(i) for i in range(30)]
    for i, kind, a, b in intervene.pairs_of_questions(scenes):
        assert a[1] != b[1] and a[0] != b[0] and kind in intervene.KINDS
        if kind == "exist":
            for question, answer in (a, b):
                there = any(f" {o.name} " in question for o in scenes[i].objects)
                assert answer == ("yes" if there else "no")


def test_every_intervention_becomes_a_line_and_a_picture(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    config = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1)
    weights = Intervened(config).state_dict()
    save(tmp_path / "model.pt", {
        "config": vars(config), "words": TOKENIZER.words, "weights": weights, "finished": True,
        "stage": "sft",
        "options": {"attention": "mma", "order": "image-first", "seed": 3}})
    monkeypatch.setattr("sys.argv", ["intervene", str(tmp_path / "model.pt")])
    monkeypatch.setattr(intervene, "SCENES", 4)
    intervene.main()
    intervene.main()  # asked anew: in place of the lines before
    lines = [json.loads(line) for line in open("results/interventions.jsonl")]
    assert [(line["change"], line["layers"]) for line in lines] == [
        ("closed", [])] + [(change, layers) for change in ("closed", "swapped")
                           for layers in ([0], [1], [2], [1, 2], [0, 1, 2])]
    assert "| mma | swapped | 1 2 3" in capsys.readouterr().out
    assert (tmp_path / "results" / "layers.png").exists()


def test_a_run_of_another_mask_is_refused(tmp_path):
    config = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=1, vit_layers=1)
    save(tmp_path / "model.pt", {
        "config": vars(config), "words": TOKENIZER.words, "finished": True, "stage": "sft",
        "weights": Intervened(config).state_dict(),
        "options": {"attention": "causal", "order": "image-first", "seed": 3}})
    with pytest.raises(SystemExit, match="--order text-first is wanted"):
        next(intervene.ask_run(tmp_path / "model.pt"))


def test_the_table_in_the_results_is_what_the_command_prints():
    lines = [json.loads(line) for line in open(RESULTS / "interventions.jsonl")]
    assert intervene.layer_table(lines) in (RESULTS / "README.md").read_text("utf-8")
