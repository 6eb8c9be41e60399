"""The rows beyond the masks of mma.py do what their papers, or their names, say."""
import numpy as np
import pytest
import torch

import train
from data import Dataset, Example, make_world
from driving import TINY
from extras import variants
from mma import IMAGE, PAD, TEXT, attention_mask
from model import Config, Tokenizer

QUESTIONS = ["Is there a fish?", "Is there a cup?", "What color is the key?"]
TOKENIZER = Tokenizer.build(["yes no", *QUESTIONS] * 2)
EXAMPLES = [Example(i, prompt, "yes", "exist") for i, prompt in enumerate(3 * QUESTIONS)]
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=2, vit_layers=1)
IMAGES = np.zeros((9, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("row, positions", [
    ("uiiiiiiiiiiiiiiiiqqa",
     "01111122112211111345"),
    ("uqqiiiiiiiiiiiiiiiisa",
     "012333334433443333356"),
    ("--uiiiiiiiiiiiiiiiiqaiiiiiiiiiiiiiiiiqa",
     "000111112211221111134555556655665555578")])
def test_concentric_attention_goes_from_ring_to_ring(row, positions):
    modality = torch.tensor([[{"i": IMAGE, "-": PAD}.get(c, TEXT) for c in row]])
    model = variants.CCAModel(CONFIG)
    assert "".join(map(str, model.positions(modality)[0].tolist())) == positions
    mask = model.mask(modality, modality == 9, 0)[0, 0]
    for q in range(len(row)):
        for k in range(len(row)):
            wanted = positions[k] <= positions[q] and "-" not in row[q] + row[k]
            assert mask[q, k] == (wanted or q == k), (q, k)


def test_scrambled_shows_the_picture_another_question_and_the_text_its_own():
    dataset = variants.OtherQuestions(EXAMPLES, IMAGES, TOKENIZER, CONFIG)
    model = variants.ScrambledModel(CONFIG, "mma")
    batch = dataset.batch(range(9))
    masks = model.mask(batch["modality"], batch["generated"], 1)[:, 0]
    for row, (example, mask) in enumerate(zip(EXAMPLES, masks)):
        modality, ids = batch["modality"][row], batch["ids"][row]
        other, true = modality == variants.OTHER, modality == TEXT
        assert TOKENIZER.decode(ids[true].tolist()) == example.prompt + "yes"
        assert TOKENIZER.decode(ids[other].tolist()) in set(QUESTIONS) - {example.prompt}
        image = modality == IMAGE
        assert mask[image][:, other].all()
        assert mask[image][:, true].sum(1).tolist() == [1] * 16  # <user> alone
        assert not mask[true][:, other].any()
    alone = Dataset(EXAMPLES[:1], IMAGES, TOKENIZER, CONFIG).batch([0])
    usual = attention_mask(alone["modality"], alone["generated"], "mma")
    assert masks[0].sum() - (batch["modality"][0] == PAD).sum() >= usual.sum()  # as many edges


def test_dual_order_training_turns_its_rows_in_the_middle_of_a_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = train.parse([*TINY, "--pretrain-steps", "4", "--sft-steps", "2"])
    trainer = train.start(options, variants.instructed(options), variants.DOT)
    orders = []
    for stage in ("pretrain", "sft"):
        trainer.begin(stage)
        for _ in range(trainer.steps):
            trainer.train_step()
            trainer.step += 1
            prompt, _ = trainer.data.rows[0]
            orders.append("text" if prompt[1] >= 5 else "picture")
    assert orders == ["text"] * 2 + ["picture"] * 2 + ["text", "picture"]


@pytest.mark.parametrize("trainer", [variants.Scrambled, variants.CCA, variants.DOT])
def test_an_interrupted_run_of_a_variant_ends_as_a_whole_one(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = [make_world("train", 16), make_world("val", 4)]
    options = [*TINY, "--pretrain-steps", "0", "--sft-steps", "4", "--name"]
    whole, stopped = (train.start(train.parse([*options, name]), splits, trainer)
                      for name in ("whole", "stopped"))
    whole.train()
    for _ in range(2):
        stopped.train_step()
        stopped.step += 1
    stopped.save()
    resumed = train.resume(stopped.folder, splits, trainer)
    assert resumed.step == 2
    resumed.train()
    for wanted, found in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(wanted, found)
