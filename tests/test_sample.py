"""Asking about a picture: what is shown is what the model computes."""
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data import IMAGE_ID, Dataset, Example, Tokenizer, draw, make_scene
from extras import sample
from model import Config, MultimodalGPT
from train import load

QUESTION = "Is there a boat in the image?"


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program(arguments) asks a run in a fresh folder, and returns its output. Its model has one
    layer, one head, random weights and pictures of 96 pixels."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.build([QUESTION] * 2)
    config = Config(len(tokenizer.pieces), width=32, heads=1, layers=1, vit_layers=1, image_size=96)
    model = MultimodalGPT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # the blocks of a fresh model do nothing
    Path("runs/one").mkdir(parents=True)
    torch.save({"config": vars(config), "words": tokenizer.words, "attention": "mma",
                "weights": model.state_dict(), "options": {"order": "image-first"}},
               "runs/one/model.pt")

    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["sample", "--device", "cpu", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        sample.main()
        return capsys.readouterr().out

    return run


@torch.no_grad()
def test_where_the_answer_looks_is_the_softmax_of_its_query_with_each_key(program):
    run = model, tokenizer, _ = load("runs/one")
    picture = draw(make_scene(0), 96)
    _, found = sample.look(run, picture, QUESTION)
    dataset = Dataset([Example(0, QUESTION, "", "")], picture[None], tokenizer, model.config)
    batch = dataset.batch([0], prompts_only=True)
    x = model.embed(batch["images"], batch["ids"], batch["modality"])[0]
    x = model.blocks[0].norm1(x + model.position.weight[:len(x)])  # (T, D)
    to_query, to_key, _ = model.blocks[0].attention.qkv.weight.split(32)
    query = F.layer_norm(to_query @ x[-1], [32])
    strengths = [(query @ F.layer_norm(to_key @ token, [32]) / 32 ** 0.5).exp() for token in x]
    expected = torch.stack(strengths)[batch["ids"][0] == IMAGE_ID] / sum(strengths)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_image_token_is_as_bright_as_its_weight():
    gray = np.full((32, 32, 3), 100, np.uint8)
    panel = sample.spotlight(gray, np.float32([0, 0.2, 0, 0.4]))  # 2 x 2 tokens
    assert panel[[8, 8, 24, 24], [8, 24, 8, 24], 0].tolist() == [12, 56, 12, 100]


def test_the_picture_is_shown_before_a_question_is_asked_for(program, monkeypatch):
    shown = []
    monkeypatch.setattr("builtins.input", lambda _: shown.append(Image.open("sample.png")) or "")
    assert "wrote sample.png" in program("--scene", "3")
    scene = Image.fromarray(draw(make_scene(200_000_003), 96)).resize((256, 256))
    assert shown[0].crop((14, 14, 270, 270)) == scene


def test_questions_are_asked_until_an_empty_line_or_the_end(program):
    out = program(typed=f"{QUESTION}\n{'x' * 5000}\nIs it?\n\nIs it?\n")
    assert out.count("mma: ") == 2 and "too long" in out
    assert program(typed=QUESTION).count("mma: ") == 1


def test_a_picture_of_any_size_and_name_is_asked_about_and_shown(program):
    Image.new("RGB", (300, 100), "red").save("a\udcff.png")
    out = program("--image", "a\udcff.png", "--question", QUESTION, "--out", "b\udcff.png")
    assert "mma: " in out and out.endswith("\nwrote b\\udcff.png\n")
    whole = Image.open("b\udcff.png")
    assert whole.width > 2 * 256 and whole.getpixel((14 + 128, 14 + 128)) == (255, 0, 0)


@pytest.mark.parametrize("arguments, says", [
    (["--question", "x" * 5000], "no text is left"), (["--out", "no/such.png"], "no/such.png"),
    (["--out", "a.xyz"], "a.xyz: cannot be written"), (["runs/none"], "no such checkpoint"),
    (["--image", "a.txt"], "1")])  # its line is printed before
def test_a_mistake_is_one_line(program, monkeypatch, arguments, says):
    monkeypatch.delattr("builtins.input")  # nothing is asked for
    with pytest.raises(SystemExit, match=f"{says}[^\n]*$"):
        program(*arguments)
