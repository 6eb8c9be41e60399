"""Asking about a picture: what is shown is what the model computes."""
import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data import draw, make_scene
from extras import sample
from mma import IMAGE
from model import ASSISTANT_ID, EOS_ID, IMAGE_ID, USER_ID, Config, MultimodalGPT, Tokenizer

QUESTION = "Is there a boat in the image?"
PICTURE = draw(make_scene(0))


def make_run(attention="mma", order="image-first", image_size=64):
    """A small model with random weights, as `train.load` returns it."""
    tokenizer = Tokenizer.build([QUESTION + " yes no"] * 2)
    model = MultimodalGPT(Config(vocab_size=len(tokenizer.pieces), width=32, heads=2, layers=2,
                                 vit_layers=1, image_size=image_size), attention).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)  # the blocks of a fresh model are the identity
    return model, tokenizer, {"options": {"attention": attention, "order": order},
                              "stage": "sft", "finished": False}


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program(arguments) asks a run of image size 96 in a fresh folder, and returns its output."""
    monkeypatch.chdir(tmp_path)
    model, tokenizer, checkpoint = make_run(image_size=96)
    Path("runs/one").mkdir(parents=True)
    torch.save({"config": asdict(model.config), "words": tokenizer.words,
                "weights": model.state_dict(), **checkpoint}, "runs/one/model.pt")

    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["sample", "--device", "cpu", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        sample.main()
        return capsys.readouterr().out

    return run


def true_weights(monkeypatch, model, inputs):
    """The decoder's attention weights (L, T, T), from the calls that the model itself makes."""
    softmax, maps = torch.Tensor.softmax, []

    def watch(scores, dim):
        weights = softmax(scores, dim)
        if scores.shape[-1] == inputs[1].shape[1]:  # the decoder, not the ViT
            maps.append(weights[0].mean(0))
        return weights

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", watch)
        model(*inputs, torch.zeros_like(inputs[1], dtype=torch.bool))
    return torch.stack(maps).detach()


@pytest.mark.parametrize("attention, order, sees", [
    ("mma", "image-first", True), ("prefix", "image-first", True), ("causal", "image-first", False),
    ("image", "image-first", False), ("causal", "text-first", True)])
def test_what_is_shown_is_what_the_model_computes(monkeypatch, attention, order, sees):
    run = model, tokenizer, _ = make_run(attention, order)
    answer, word, to_word, to_image = sample.look(run, PICTURE, QUESTION)
    text, image = tokenizer.encode(QUESTION), [IMAGE_ID] * 16
    body = text + image if order == "text-first" else image + text
    ids = torch.tensor([[USER_ID, *body, ASSISTANT_ID]])
    inputs = torch.from_numpy(PICTURE[None]), ids, (ids == IMAGE_ID) * IMAGE
    new = model.generate(*inputs, sample.NEW_TOKENS, EOS_ID)[0]
    assert answer == tokenizer.decode(new) != ""
    weights = true_weights(monkeypatch, model, inputs)
    first = body.index(IMAGE_ID) + 1
    np.testing.assert_allclose(to_image, weights[:, -1, first:first + 16].mean(0), atol=1e-6)
    start = body.index(text[0]) + 1
    words = weights[0, first:first + 16, start:start + 7]  # without the "?"
    assert (to_word > 0).all() == sees
    if sees:
        best = QUESTION.strip("?").split().index(word)
        np.testing.assert_allclose(to_word, words[:, best], atol=1e-6)
        assert words[:, best].max() == words.max()


def test_an_image_token_is_as_bright_as_its_weight():
    gray = np.full((320, 320, 3), 100, np.uint8)
    panel = np.array(sample.spotlight(gray, np.float32([0, 0.2, 0, 0.4])))  # 2 x 2 tokens
    assert panel[[80, 80, 240, 240], [80, 240, 80, 240], 0].tolist() == [12, 56, 12, 100]


def test_a_picture_of_any_size_is_asked_about_and_shown(program):
    Image.new("RGB", (300, 100), "red").save("a.png")
    out = program("runs/one", "--image", "a.png", "--question", QUESTION, "--out", "b.png")
    assert out.startswith("not fully fine-tuned") and out.endswith("wrote b.png\n")
    shown = np.array(Image.open("b.png"))[sample.TOP + 160, sample.GAP + 160]
    assert shown.tolist() == [255, 0, 0]


def test_a_scene_is_asked_about_again_and_again_until_quit_or_the_end(program):
    out = program("--scene", "3", typed=f"{QUESTION}\n\nIs it?\nquit\nIs it?\n")
    assert "test scene 3" in out and out.count("mma: ") == 2
    scene = draw(make_scene(200_000_003), 320)
    shown = np.array(Image.open("sample.png"))[sample.TOP:][:320, sample.GAP:][:, :320]
    assert (shown == scene).all()
    assert program(typed=QUESTION).count("mma: ") == 1


def test_a_mistake_is_one_line(program):
    for arguments, says in ((["nowhere"], "nowhere: no such checkpoint"),
                            (["--question", "x" * 5000], "no text is short enough"),
                            (["--question", "a", "--image", "a.txt"], "no readable picture"),
                            (["--question", "a", "--out", "no/a.png"], "cannot be written")):
        with pytest.raises(SystemExit, match=f"^[^\n]*{says}[^\n]*$"):
            program(*arguments)
    Path("runs/one/model.pt").unlink()
    with pytest.raises(SystemExit, match="no trained model under runs/"):
        program()
