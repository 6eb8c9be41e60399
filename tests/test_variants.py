"""The rows of the comparison beyond the masks of mma.py do what their papers, or their names, say."""
import numpy as np
import pytest
import torch

import train
from data import Dataset, Example, make_world
from extras import variants
from mma import IMAGE, PAD, TEXT, attention_mask
from model import Config, Tokenizer

RINGS = [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]  # of 4 x 4 patches
QUESTIONS = ["Is there a fish?", "Is there a cup?", "What color is the key?"]
TOKENIZER = Tokenizer.build(["yes no", *QUESTIONS] * 2)
EXAMPLES = [Example(i, prompt, "yes", "exist") for i, prompt in enumerate(QUESTIONS)]
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=2, vit_layers=1)
TINY = ("--width 32 --heads 2 --layers 1 --vit-layers 1 --batch-size 8 --device cpu").split()
IMAGES = np.zeros((3, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("row", ["u" + 16 * "i" + "qqa", "uqq" + 16 * "i" + "sa",
                                 "--u" + 16 * "i" + "qa" + 16 * "i" + "qa"])
def test_concentric_attention_goes_from_ring_to_ring(row):
    modality = torch.tensor([[{"i": IMAGE, "-": PAD}.get(c, TEXT) for c in row]])
    position, positions, images = 0, [], 0
    for i, c in enumerate(row):  # a picture takes two positions
        if c == "i":
            positions.append(position + RINGS[images % 16])
            images += 1
            position += 2 * (images % 16 == 0)
        else:
            positions.append(position)
            position += c != "-"
    model = variants.CCAModel(CONFIG)
    assert model.positions(modality)[0].tolist() == positions
    mask = model.mask(modality, modality == 9, 0)[0, 0]
    for q in range(len(row)):
        for k in range(len(row)):
            wanted = positions[k] <= positions[q] and "-" not in row[q] + row[k]
            assert mask[q, k] == (wanted or q == k), (q, k)


def test_scrambled_shows_the_picture_another_question_and_the_text_its_own():
    dataset = variants.OtherQuestions(EXAMPLES, IMAGES, TOKENIZER, CONFIG)
    model = variants.ScrambledModel(CONFIG, "mma")
    batch = dataset.batch(range(3))
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
    options = train.parse([*TINY, "--pretrain-steps", "4", "--sft-steps", "2", "--scenes", "16"])
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
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    options = [*TINY, "--pretrain-steps", "0", "--sft-steps", "4", "--save-every", "0"]
    splits = [make_world("train", 16), make_world("val", 4)]
    whole = train.start(train.parse([*options, "--name", "whole"]), splits, trainer)
    whole.train()
    stopped = train.start(train.parse([*options, "--name", "stopped"]), splits, trainer)
    step = stopped.train_step

    def interrupted():
        if stopped.step == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(stopped, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = train.resume(stopped.folder, splits, trainer)
    assert resumed.step == 2
    resumed.train()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
