"""Asking about a picture: what is shown is what the model computes, and no question breaks it."""
import io
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import draw, make_scene
from extras import sample
from mma import IMAGE, TEXT, attention_mask
from model import (ASSISTANT_ID, EOS_ID, IMAGE_ID, USER_ID, Attention, Config, MultimodalGPT,
                   Tokenizer)

QUESTION = "Is there a boat in the image?"
PICTURE = draw(make_scene(0))


def make_run(attention="mma", order="image-first", **config):
    """A small model with random weights, as `train.load` returns it."""
    tokenizer = Tokenizer.build([QUESTION + " yes no"] * 2)
    model = MultimodalGPT(Config(vocab_size=len(tokenizer.pieces), width=32, heads=2, layers=2,
                                 vit_layers=1, **config)).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)  # the blocks of a fresh model are the identity
    model.attention = attention
    return model, tokenizer, {
        "config": asdict(model.config), "words": tokenizer.words, "weights": model.state_dict(),
        "options": {"attention": attention, "order": order}, "stage": "sft", "finished": True}


def save_run(name="run", stage="sft", **about):
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    torch.save({**make_run(**about)[2], "stage": stage}, folder / "model.pt")
    return folder


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, typed=b""):
        monkeypatch.setattr("sys.argv", ["sample", "--device", "cpu", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        try:
            return sample.main(), capsys.readouterr().out
        except SystemExit as stop:
            return stop.code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("kind", ["causal", "mma"])
def test_weights_times_values_are_the_output_of_the_attention(kind):
    attention, x = Attention(Config(vocab_size=300, width=32, heads=2)), torch.randn(2, 7, 32)
    modality = torch.tensor([[TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT]] * 2)
    mask = attention_mask(modality, torch.zeros_like(modality, dtype=torch.bool), kind)
    weights = sample.attention_weights(attention, x, mask)
    assert ((weights > 0) == mask).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7))
    values = attention.qkv(x)[..., 64:].view(2, 7, 2, 16)
    y = torch.einsum("bhij,bjhd->bihd", weights, values)
    torch.testing.assert_close(attention.out(y.reshape(2, 7, 32)), attention(x, mask))


@pytest.mark.parametrize("attention, order, sees", [
    ("mma", "image-first", True), ("prefix", "image-first", True), ("causal", "image-first", False),
    ("image", "image-first", False), ("causal", "text-first", True)])
def test_what_is_shown_is_what_the_model_computes(attention, order, sees):
    run = model, tokenizer, _ = make_run(attention, order)
    seen = sample.look("run", run, PICTURE, QUESTION)
    text, image = tokenizer.encode(QUESTION), [IMAGE_ID] * 16
    body = text + image if order == "text-first" else image + text
    ids = torch.tensor([[USER_ID, *body, ASSISTANT_ID]])
    inputs = torch.from_numpy(PICTURE[None]), ids, (ids == IMAGE_ID) * IMAGE
    generated = torch.zeros_like(ids, dtype=torch.bool)
    likely = model(*inputs, generated)[0][0, -1].softmax(-1)
    yes, no = (likely[tokenizer.encode(word)[0]].item() for word in ("yes", "no"))
    assert (seen.yes, seen.no) == pytest.approx((yes, no), abs=1e-6)
    new = model.generate(*inputs, sample.NEW_TOKENS, EOS_ID)[0]
    assert seen.answer == tokenizer.decode(new) != ""

    x = model.embed(*inputs) + model.position(model.positions(inputs[2]))
    mask, weights = attention_mask(inputs[2], generated, attention), []
    for block in model.blocks:
        weights.append(sample.attention_weights(block.attention, block.norm1(x), mask)[0].mean(0))
        x = block(x, mask)
    first = body.index(IMAGE_ID) + 1
    to_image = (weights[0] + weights[1])[-1, first:first + 16].detach() / 2
    np.testing.assert_allclose(seen.to_image, to_image, atol=1e-6)
    if sees:
        token = tokenizer.encode(seen.word if seen.word == "Is" else f" {seen.word}")[0]
        start = body.index(text[0]) + 1
        words = weights[0][first:first + 16, start:start + 7].detach()  # without the "?"
        np.testing.assert_allclose(seen.to_word, words[:, text.index(token)], atol=1e-6)
        assert seen.to_word.max() == pytest.approx(words.max().item())
    assert (seen.to_word > 0).all() == sees
    assert (sample.look("run", run, PICTURE, "???").to_word > 0).all() == sees
    assert not any(block.attention._forward_hooks for block in model.blocks)


def test_percentages_stand_only_beside_yes_and_no():
    for yes, text in ((0.95, "mma: yes (yes 95.0 %, no 2.6 %)"), (0.3, "mma: yes")):
        assert str(sample.Look("mma", "yes", yes, 0.026, "", 0, 0)) == text


def test_an_image_token_is_as_bright_as_its_weight():
    gray = np.full((320, 320, 3), 100, np.uint8)
    panel = np.array(sample.spotlight(gray, np.array([0, 0.2, 0, 0.4]), most=0.4))  # 2 x 2 tokens
    assert panel[[80, 80, 240, 240], [80, 240, 80, 240], 0].tolist() == [12, 56, 12, 100]


def test_each_model_has_a_row_in_one_picture(program):
    one, two = save_run("one"), save_run("two", attention="causal")
    for n, paths in enumerate(([one], [one, two], [one, one, two])):
        out = program(*paths, "--scene", 3, "--question", QUESTION, "--out", "both.png")[1]
        assert "test scene 3" in out and "wrote both.png" in out
        assert Image.open("both.png").height == 466 + n * sample.ROW
    assert "\nmma: " in out and "\nmma runs/one: " in out and "\ncausal: " in out


def test_a_picture_of_any_size_is_asked_about_at_the_size_of_the_model(program):
    path = save_run(image_size=96)  # 36 image tokens
    assert program(path, "--question", QUESTION)[0] is None
    Image.new("RGB", (300, 100)).save("a.png")
    assert program(path, "--image", "a.png", "--question", QUESTION)[0] is None
    message, out = program(path, "--image", "a\x1b.txt", "--question", QUESTION)
    assert "no readable picture" in message and message.isprintable() and out == ""


@pytest.mark.parametrize("typed", [
    b"x" * 5000, b"\x1b[2J\x07\x00 clear", b"\xff\xfe\xed\xa0\x80", "\u202egnp. \u2028é".encode(),
    b"<image><user><eos>"])
def test_no_question_ends_the_conversation_but_quit(program, typed):
    os.utime(save_run("old", attention="causal") / "model.pt", (0, 0))
    save_run("new")  # the newest run need not be named
    code, out = program(typed=typed + b"\n\n" + QUESTION.encode() + b"\nquit\nIs it?\n")
    assert code is None and all(c.isprintable() or c == "\n" for c in out)
    answers = out.split("> ")[1:]
    assert len(answers) == 4 and answers[1] == "" and answers[2].startswith("mma: ")
    assert ("5000 tokens, more than the" in answers[0]) == (len(typed) == 5000)
    assert program(typed=QUESTION.encode())[0] is None  # the input may end without quit


def test_a_mistake_is_one_line(program):
    assert "no trained model under runs/" in program("--question", QUESTION)[0]
    run = save_run(stage="pretrain")
    for arguments, says in ((["nowhere"], "nowhere: no such checkpoint"),
                            ([run, "--question", "x" * 5000], "5000 tokens, more than the"),
                            ([run, "--question", "a", "--out", "a"], "must end in .png"),
                            ([run, "--question", "a", "--out", "no/a.png"], "cannot be written")):
        message, out = program(*arguments)
        assert says in message and "\n" not in message
    assert "not fully fine-tuned" in out
