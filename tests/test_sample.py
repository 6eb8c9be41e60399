"""Asking about a picture: what is shown is what the model computes."""
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import Dataset, Example, draw, make_scene
from driving import float32
from extras import sample
from model import EOS_ID, IMAGE_ID, Config, MultimodalGPT, Tokenizer

QUESTION = "Is there a boat in the image?"
PICTURE = draw(make_scene(0))


def make_run(attention="mma", order="image-first", image_size=64):
    """A small model with random weights, as `train.load` returns it."""
    tokenizer = Tokenizer.build([QUESTION] * 2)
    config = Config(len(tokenizer.pieces), width=32, heads=2, layers=2, vit_layers=1,
                    image_size=image_size)
    model = MultimodalGPT(config, attention).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # the blocks of a fresh model are the identity
    options = {"attention": attention, "order": order}
    return model, tokenizer, {"options": options, "stage": "sft"}


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program(arguments) asks a run of image size 96 in a fresh folder, and returns its output."""
    monkeypatch.chdir(tmp_path)
    model, tokenizer, checkpoint = make_run(image_size=96)
    Path("runs/one").mkdir(parents=True)
    torch.save({"config": vars(model.config), "words": tokenizer.words,
                "weights": model.state_dict(), **checkpoint}, "runs/one/model.pt")

    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["sample", "--device", "cpu", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        sample.main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("attention, order, sees", [
    ("mma", "image-first", True), ("prefix", "image-first", True), ("causal", "image-first", False),
    ("image", "image-first", False), ("causal", "text-first", True)])
def test_what_is_shown_is_what_the_model_computes(monkeypatch, attention, order, sees):
    monkeypatch.setattr("model.autocast", float32)
    run = model, tokenizer, _ = make_run(attention, order)
    answer, to_question, to_image = sample.look(run, PICTURE, QUESTION)
    example = Example(0, QUESTION, "", "")
    dataset = Dataset([example], PICTURE[None], tokenizer, model.config, order)
    batch = dataset.batch([0], prompts_only=True)
    [new] = model.generate(**batch, max_new_tokens=17, end=EOS_ID)
    assert answer == tokenizer.decode(new) != ""

    maps, softmax = [], torch.Tensor.softmax

    def watch(scores, dim):
        maps.append(softmax(scores, dim))
        return maps[-1]

    monkeypatch.setattr(torch.Tensor, "softmax", watch)
    model(**batch)
    weights = torch.cat(maps[-2:]).mean(1).detach()  # (layers, T, T), of the decoder
    [ids] = batch["ids"]
    image = ids == IMAGE_ID
    question = torch.isin(ids, torch.tensor(tokenizer.encode(QUESTION)))
    np.testing.assert_allclose(to_image, weights[:, -1, image].mean(0), atol=1e-6)
    np.testing.assert_allclose(to_question, weights[0, image][:, question].sum(1), atol=1e-6)
    assert (to_question > 0).tolist() == [sees] * 16


def test_an_image_token_is_as_bright_as_its_weight():
    gray = np.full((32, 32, 3), 100, np.uint8)
    panel = sample.spotlight(gray, np.float32([0, 0.2, 0, 0.4]))  # 2 x 2 tokens
    assert panel[[8, 8, 24, 24], [8, 24, 8, 24], 0].tolist() == [12, 56, 12, 100]


def test_a_picture_of_any_size_is_asked_about_and_shown(program):
    Image.new("RGB", (300, 100), "red").save("a.png")
    out = program("runs/one", "--image", "a.png", "--question", QUESTION, "--out", "b.png")
    assert out.startswith("mma: ") and out.endswith("\nwrote b.png\n")
    assert Image.open("b.png").getpixel((14 + 128, 14 + 128)) == (255, 0, 0)


def test_a_scene_is_asked_about_again_and_again_until_an_empty_line_or_the_end(program):
    out = program("--scene", "3", typed=f"{QUESTION}\nIs it?\n\nIs it?\n")
    assert "test scene 3" in out and out.count("mma: ") == 2
    scene = Image.fromarray(draw(make_scene(200_000_003), 96)).resize((256, 256))
    assert Image.open("sample.png").crop((14, 14, 270, 270)) == scene
    assert program(typed=QUESTION).count("mma: ") == 1


def test_a_mistake_is_one_line(program):
    for arguments, says in ((["--question", "x" * 5000], "no text is short enough"),
                            (["--image", "a.txt"], "a.txt: no readable picture")):
        with pytest.raises(SystemExit, match=f"^{says}[^\n]*$"):
            program(*arguments)
    Path("runs/one/model.pt").unlink()
    with pytest.raises(SystemExit, match="^runs/model.pt: no such checkpoint[^\n]*$"):
        program()
