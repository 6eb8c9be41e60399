"""Asking one picture: the weights are those of the model, the answers too, and no question breaks the program."""
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import runs
import sample
import scenes
from data import ASSISTANT_ID, EOS_ID, IMAGE_ID, USER_ID, Tokenizer
from mma import IMAGE, TEXT, attention_mask
from model import Attention, Config, MultimodalGPT

QUESTION = "Is there a boat in the image?"
SMALL = dict(width=32, heads=2, layers=2, vit_layers=1)


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small gain nothing from a second thread, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(**about):
    """A small model with random weights that does something, its tokenizer and its checkpoint; about: what differs."""
    tokenizer = Tokenizer.build([QUESTION + " yes no"] * 2)
    config = {key: about.pop(key) for key in list(about) if key in Config.LIMITS}
    torch.manual_seed(0)
    model = MultimodalGPT(Config(vocab_size=len(tokenizer), **SMALL, **config)).eval()
    for name, p in model.named_parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)  # the blocks of a fresh model are the identity
    about = {"stage": "sft", "attention": "mma", "order": "image-first", "training": None, **about}
    return model, tokenizer, runs.pack(model, tokenizer, **about)


def look(**about):
    model, tokenizer, checkpoint = made(**about)
    return sample.look("run", model, tokenizer, checkpoint, scenes.draw(scenes.make_scene(0)), QUESTION)


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program(*arguments, typed="") runs sample.py in a folder of its own -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, typed=b""):
        monkeypatch.setattr("sys.argv", ["sample.py", "--device", "cpu", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        try:
            runs.command_line(sample.main)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_of(tmp_path):
    """run_of(name, **about) writes a checkpoint -> its path."""
    def write(name="mma", **about):
        (tmp_path / "runs" / name).mkdir(parents=True)
        runs.save(tmp_path / "runs" / name / "model.pt", made(**about)[2])
        return tmp_path / "runs" / name

    return write


@pytest.mark.parametrize("kind", ["causal", "mma"])
def test_weights_are_the_softmax_of_what_the_mask_lets_through_and_give_the_output(kind):
    config = Config(vocab_size=300, **SMALL)
    attention, x = Attention(config), torch.randn(2, 7, 32)
    torch.nn.init.normal_(attention.out.weight)
    modality = torch.tensor([[TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT]] * 2)
    mask = attention_mask(modality, torch.zeros_like(modality, dtype=torch.bool), kind)
    weights = attention.weights(x, mask)
    assert weights.shape == (2, 2, 7, 7)
    q, k, v = (attention.qkv(x).detach()[..., 32 * i:32 * i + 32].view(2, 7, 2, 16) for i in range(3))  # (B, T, H, D/H)
    for b in range(2):
        for h in range(2):
            for i in range(7):
                scores = {j: float(F.layer_norm(q[b, i, h], (16,)) @ F.layer_norm(k[b, j, h], (16,))) / 4
                          for j in range(7) if mask[b, 0, i, j]}
                total = sum(np.exp(s) for s in scores.values())
                for j in range(7):
                    wanted = np.exp(scores[j]) / total if j in scores else 0.0
                    assert weights[b, h, i, j].item() == pytest.approx(wanted, abs=1e-5)
                    assert j in scores or weights[b, h, i, j] == 0
    y = torch.stack([weights[:, h] @ v[:, :, h] for h in range(2)], 2).reshape(2, 7, 32)
    torch.testing.assert_close(attention.out(y), attention(x, mask))


@pytest.mark.parametrize("order", ["image-first", "text-first"])
def test_what_is_shown_is_what_the_model_computes(order):
    model, tokenizer, checkpoint = made(order=order)
    picture = scenes.draw(scenes.make_scene(0))
    seen = sample.look("run", model, tokenizer, checkpoint, picture, QUESTION)
    text, image = list(tokenizer.encode(QUESTION)), [IMAGE_ID] * 16
    body = text + image if order == "text-first" else image + text
    ids = torch.tensor([[USER_ID, *body, ASSISTANT_ID]])
    modality = (ids == IMAGE_ID).long() * IMAGE
    inputs = torch.from_numpy(picture[None]), ids, modality
    likely = model(*inputs, torch.zeros_like(ids, dtype=torch.bool), kind="mma")[0][0, -1].softmax(-1)
    yes, no = (likely[tokenizer.encode(word)[0]].item() for word in ("yes", "no"))
    assert (seen.yes, seen.no) == pytest.approx((yes, no), abs=1e-6)
    assert seen.answer == tokenizer.decode(model.generate(*inputs, sample.NEW_TOKENS, EOS_ID, "mma")[0])
    assert seen.words == ["Is", "there", "a", "boat", "in", "the", "image", "?"]

    x = model.embed(*inputs)
    mask = attention_mask(modality, torch.zeros_like(ids, dtype=torch.bool), "mma")
    first_image, first_word = ids[0].tolist().index(IMAGE_ID), ids[0].tolist().index(text[0])
    for layer, block in enumerate(model.blocks):
        weights = block.attention.weights(block.norm1(x), mask)[0].mean(0)
        for token in range(16):  # in reading order
            at = layer, token // 4, token % 4
            assert seen.to_image[at] == pytest.approx(weights[-1, first_image + token].item(), abs=1e-6)
            for word in range(8):
                assert seen.to_words[layer, word, token // 4, token % 4] == pytest.approx(
                    weights[first_image + token, first_word + word].item(), abs=1e-6)
        x = block(x, mask)


@pytest.mark.parametrize("about, sees", [
    (dict(attention="mma"), True), (dict(attention="prefix"), True), (dict(attention="causal"), False),
    (dict(attention="image"), False), (dict(attention="causal", order="text-first"), True),
])
def test_image_tokens_see_the_question_where_mask_or_order_let_them(about, sees):
    seen = look(**about)
    assert (seen.to_words > 0).all() if sees else (seen.to_words == 0).all()
    assert (seen.to_image > 0).all()
    block = sample.words_block(scenes.draw(scenes.make_scene(0), sample.DISPLAY), seen, 1200)
    assert (block.height > sample.CELL) == sees  # else one line says so, instead of empty cells


def test_looking_leaves_the_model_as_it_was():
    model, tokenizer, checkpoint = made()
    sample.look("run", model, tokenizer, checkpoint, scenes.draw(scenes.make_scene(0)), QUESTION)
    assert not any(block.attention._forward_hooks for block in model.blocks)


def test_yes_and_no_have_percentages_only_where_the_question_is_such():
    cells = np.zeros((1, 1, 1))
    assert str(sample.Look("mma", "yes", 0.973, 0.026, [], cells, cells)) == "yes   (yes 97.3 %, no 2.6 %)"
    assert str(sample.Look("mma", "red", 0.3, 0.1, [], cells, cells)) == "red"
    assert "\x1b" not in str(sample.Look("mma", "a\x1b[2J\nb", 0, 0, [], cells, cells))


def test_two_runs_make_one_picture_with_both(program, run_of, tmp_path):
    one, two = run_of("mma"), run_of("causal", attention="causal")
    heights = []
    for paths in ([one], [two], [one, two], [one, one]):
        code, out, err = program(*paths, "--scene", 3, "--question", QUESTION, "--out", "both.png")
        assert (code, err) == (0, "") and "picture: test scene 3 (--scene 3 " in out and "wrote both.png" in out
        with Image.open(tmp_path / "both.png") as picture:
            heights.append(picture.height)
    row, only_mma, only_causal, both, twice = sample.CELL + sample.GAP, *heights
    assert both == only_mma + row + 2 * sample.MARGIN  # one more row of the answer's, one line for causal
    assert only_causal == only_mma + 2 * sample.MARGIN - (twice - only_mma - row)  # that line for a block of words
    out = program(one, two, "--question", QUESTION)[1]
    assert "\nmma: " in out and "\ncausal: " in out


def test_a_picture_file_is_asked_about_at_the_size_of_the_model(program, run_of, tmp_path):
    path = run_of(image_size=224, patch_size=16)
    scenes_only = program(path, "--question", QUESTION)
    assert scenes_only[0] == 1 and "give it a picture with --image" in scenes_only[2]
    Image.new("RGB", (300, 100), (200, 30, 30)).save(tmp_path / "a.png")
    code, out, err = program(path, "--image", "a.png", "--question", QUESTION)
    assert (code, err) == (0, "") and "picture: a.png" in out
    assert Image.open(tmp_path / "sample.png").width > 8 * sample.CELL


def test_a_file_that_is_no_picture_is_one_line_and_exit_code_1(run_of, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    command = [sys.executable, sample.__file__, str(run_of()), "--device", "cpu", "--image", "notes.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("sample.py: notes.txt: ") and done.stderr.count("\n") == 1


def test_questions_are_answered_until_quit_or_the_end_of_the_input(program, run_of, tmp_path):
    run_of()  # the newest run, so it need not be named
    for typed in (b"%s\n\n  \nWhat is at top?\nquit\nIs it?\n", b"%s\nWhat is at top?\n", b"%s\nWhat is at top?"):
        code, out, err = program(typed=typed.replace(b"%s", QUESTION.encode()))
        assert (code, err) == (0, "") and out.count("sample.png") == 1
        answers = [line for line in out.split("> ")[1:] if line.strip()]
        assert len(answers) == 2 and (tmp_path / "sample.png").exists()


@pytest.mark.parametrize("typed", [
    b"x" * 100_000, b"word " * 20_000, b"\x1b[2J\x07\x00 clear", b"\xff\xfe\xed\xa0\x80",
    "\u202egnp.🚤 \u2028é".encode(), b"<image><user><assistant>",
], ids=["one word", "words", "control", "no UTF-8", "Unicode", "specials"])
def test_no_question_breaks_the_conversation(program, run_of, typed):
    code, out, err = program(run_of(), typed=typed + b"\n" + QUESTION.encode() + b"\nquit\n")
    assert (code, err) == (0, "")
    answers = out.split("> ")[1:]
    assert len(answers) == 3 and all(answer.count("\n") == 1 for answer in answers[:2])  # a line each
    assert ("the question is too long" in answers[0]) == (len(typed) > 1000) and len(answers[0]) < 300
    assert all(c.isprintable() or c == "\n" for c in out)


def test_a_question_of_the_command_line_may_hold_anything(program, run_of):
    path = run_of(context=64)
    for question in ("\udcff\ud800 \x1b[31m", "й" * 100_000):
        code, out, err = program(path, "--question", question)
        assert (code, err.count("\n")) in ((0, 0), (1, 1))
        assert all(c.isprintable() or c == "\n" for c in out + err)
    assert program(path, "--question", " ")[0] == 2
    fits = 64 - 16 - 3  # positions that the question may take: <user>, <assistant> and <eos> take three
    assert program(path, "--question", "x" * fits)[0] == 0
    assert "1 more than the context of 64" in program(path, "--question", "x" * (fits + 1))[2]


def test_long_questions_are_cut_to_a_picture_of_bounded_width(program, run_of, tmp_path):
    assert program(run_of(), "--question", "x" * 100)[0] == 0
    most = 2 * sample.MARGIN + sample.LEFT + sample.MOST_WORDS * (sample.CELL + sample.GAP)
    assert Image.open(tmp_path / "sample.png").width == most


def test_a_run_that_was_never_fine_tuned_says_so(program, run_of):
    assert "NEVER FINE-TUNED" in program(run_of(stage="pretrain"), "--question", QUESTION)[1]
    assert "NEVER" not in program(run_of("done"), "--question", QUESTION)[1]


@pytest.mark.parametrize("arguments, code, says", [
    (["a", "b", "c"], 2, "one or two runs"), (["--image", "a.png", "--scene", "1"], 2, "not allowed with"),
    (["--scene", "-1"], 2, "-1 is below 0"), (["--out", "a"], 2, "must end in .png"),
    (["nowhere"], 1, "nowhere: no such checkpoint"),
    ([], 1, "no trained model here"),
])
def test_mistakes_of_the_command_line_are_named(program, arguments, code, says):
    stopped, _, err = program(*arguments)
    assert stopped == code and says in err
