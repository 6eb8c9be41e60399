"""Asking about a picture: what is shown is what the model computes."""
import io
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import IMAGE_ID, OBJECTS, Dataset, Example, draw, make_scene
from driving import write_lines
from extras import sample
from model import Attention
from train import load

ROOT = Path(sample.__file__).parent.parent
QUESTION = "Is there a boat in the image?"


@pytest.fixture
def program(tiny, monkeypatch, capsys):
    """program(arguments) asks a run of random weights, and returns its output."""
    trainer = tiny("--layers", 2, "--image-size", 96, "--name", "one")
    for p in trainer.model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # the blocks of a fresh model do nothing
    trainer.save(finished=True)

    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["sample", "--device", "cpu", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        sample.main()
        return capsys.readouterr().out

    return run


@torch.no_grad()
def test_where_the_answer_looks_are_the_weights_of_the_last_token_of_the_prompt(
        program, monkeypatch):
    run = model, tokenizer, _ = load("runs/one")
    picture = draw(make_scene(0), 96)
    _, found = sample.look(run, picture, QUESTION)
    weights, used = Attention.weights, []

    def watched(attention, q, k, mask=None):
        used.append(weights(attention, q, k, mask))  # (1, H, T, T)
        return used[-1]

    monkeypatch.setattr(Attention, "weights", watched)
    dataset = Dataset([Example(0, QUESTION, "", "")], picture[None], tokenizer, model.config)
    batch = dataset.batch([0], prompts_only=True)
    model(**batch)
    expected = torch.cat(used[1:])[:, :, -1].mean((0, 1))  # of the decoder; [0] is the ViT
    np.testing.assert_allclose(found, expected[batch["ids"][0] == IMAGE_ID], rtol=1e-4)


def test_an_image_token_is_as_bright_as_its_weight():
    gray = np.full((32, 32, 3), 100, np.uint8)
    panel = sample.spotlight(gray, np.float32([0, 0.2, 0, 0.4]))  # 2 x 2 tokens
    assert panel[[8, 8, 24, 24], [8, 24, 8, 24], 0].tolist() == [12, 56, 12, 100]


def test_the_picture_is_shown_before_a_question_is_asked_for(program, monkeypatch):
    shown = []
    monkeypatch.setattr("builtins.input", lambda _: shown.append(Image.open("sample.png")) or "")
    assert "The picture is in sample.png" in program("--scene", "3")
    scene = Image.fromarray(draw(make_scene(200_000_003), 96)).resize((256, 256))
    assert np.array_equal(shown[0].crop((0, 0, 256, 256)), scene)


def test_questions_are_asked_until_an_empty_line_or_the_end(program):
    out = program(typed=f"{QUESTION}\n{'x' * 5000}\nIs it?\n\nIs it?\n")
    assert out.count("causal: ") == 2 and "too long" in out
    assert program(typed=QUESTION).count("causal: ") == 1


def test_a_picture_of_any_size_and_name_is_asked_about_and_shown(program):
    Image.new("RGB", (300, 100), "red").save("a\udcff.png")
    out = program("--image", "a\udcff.png", "--question", QUESTION, "--out", "b\udcff.png")
    assert "causal: " in out and "The picture is in b\\udcff.png;" in out
    whole = Image.open("b\udcff.png")
    assert whole.size == (522, 306) and whole.getpixel((128, 128)) == (255, 0, 0)


def test_a_question_that_a_run_cannot_know_gets_its_answer_with_a_doubt():
    for path in sample.SHIPPED:
        _, tokenizer, checkpoint = load(ROOT / path)
        for question, doubt in (("Is there a boat in the image?", []),
                                ("What color is the fish?", []),
                                ("Is there a dog in the image?", ["it has never read dog"]),
                                ("What is there?", ["it was never asked this in training"])):
            assert list(sample.doubts(question, tokenizer, checkpoint)) == doubt
    unfinished = checkpoint | {"finished": False, "step": 7}
    [doubt] = sample.doubts("What color is the fish?", tokenizer, unfinished)
    assert doubt == "it has not learned to answer yet (sft step 7)"


def test_without_a_finished_run_of_yours_the_two_models_of_the_repository_answer(
        tiny, monkeypatch, capsys):
    tiny()  # has just begun
    words = ["sample", "--device", "cpu", "--scene", "1", "--question", "What is at bottom?"]
    monkeypatch.setattr("sys.argv", words)
    sample.main()
    lines = capsys.readouterr().out.splitlines()
    scene = make_scene(200_000_001)
    thing = next(o for o in scene.objects if o.place == "bottom")
    assert "No finished run of yours" in lines[1]
    answer = f"{thing.color} {thing.name}"
    assert f"causal: {answer}   mma: {answer}   (right: {answer})" in lines
    assert Image.open("sample.png").width == 788
    absent = next(name for name in OBJECTS if name not in map(itemgetter(0), scene.objects))
    monkeypatch.setattr("sys.argv", [*words[:-1], f"Where is the {absent}?"])
    sample.main()
    assert "but what it asks for is not there" in capsys.readouterr().out


def test_in_the_terminal_a_character_shows_a_pixel_above_another(capsys):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[1, 0] = 1, 2, 3
    sample.in_terminal(picture)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 32 and lines[0].startswith("\033[38;2;0;0;0;48;2;1;2;3m\u2580\033[")


def test_a_run_of_your_own_pictures_is_asked_about_those_that_it_has_not_seen(
        tiny, folder, monkeypatch, capsys):
    lines = [{"image": f"{i}.png", "objects": [["cat"], ["cup"]][i % 2]} for i in range(220)]
    write_lines(folder / "train.jsonl", lines[:200])
    write_lines(folder / "val.jsonl", lines[200:])
    tiny("--data", folder, "--image-size", 32)
    monkeypatch.setattr("sys.argv", ["sample", "runs/mma-seed0", "--scene", "21"])
    monkeypatch.setattr("sys.stdin", io.StringIO("Is there a cup\n"))
    sample.main()
    out = capsys.readouterr().out
    assert "these things: cat, cup." in out and "Try:\n  Is there a cup in the image?\n" in out
    assert "(right: yes)" in out
    assert Image.open("sample.png").getpixel((99, 99)) == (201, 0, 0)


@pytest.mark.parametrize("arguments, says", [
    (["--question", "x" * 5000], "no text is left"), (["--out", "no/such.png"], "no/such.png"),
    (["--out", "a.xyz"], "a.xyz: cannot be written"), (["runs/none"], "no such checkpoint"),
    (["--image", "a.txt"], "1")])  # its line is printed before
def test_a_mistake_is_one_line(program, monkeypatch, arguments, says):
    monkeypatch.delattr("builtins.input")  # nothing is asked for
    with pytest.raises(SystemExit, match=f"{says}[^\n]*$"):
        program(*arguments)
