"""train.py learns, repeats itself bit for bit, and survives kills, races and damaged files."""
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch
from torch.testing import assert_close

import driving
import train
from driving import TINY, refused, write_lines

SHORT = "--width 8 --pretrain-steps 4 --sft-steps 4".split()
AUTOCAST = train.autocast  # which `tiny` replaces
QUESTION = {"question": "Is it red?", "answer": "yes"}
CAPTION = {"caption": "all is red"}
assert_equal = partial(assert_close, atol=0, rtol=0)


def trained(trainer):
    trainer.train()
    return trainer


def losses(folder):
    return [json.loads(line)["loss"] for line in open(Path(folder, "metrics.jsonl"))]


def weights(path):
    return train.load(path)[0].state_dict()


def assert_same_run(folder, other):
    """Metrics byte for byte, weights bit for bit, and nothing else in the folder."""
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in ("model.pt", "pretrained.pt"):
        assert_equal(weights(folder / name), weights(other / name))
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in other.iterdir())


def test_both_stages_learn_and_the_checkpoint_is_what_was_trained(tiny):
    Path("runs/mma-seed0").mkdir(parents=True)  # without a checkpoint it stands in nobody's way
    trainer = trained(tiny("--pretrain-steps", 24, "--sft-steps", 24, "--save-every", 1000))
    loss = losses(trainer.folder)
    assert len(loss) == 24
    assert loss[11] < 0.7 * loss[0] and loss[23] < 0.7 * loss[12]
    model, tokenizer, checkpoint = train.load(trainer.folder)
    assert_equal(model.state_dict(), trainer.model.state_dict())
    assert model.attention == "mma" and tokenizer.words == trainer.tokenizer.words
    assert checkpoint["finished"] and checkpoint["stage"] == "sft" and checkpoint["step"] == 24


def test_another_seed_gives_another_run_and_bfloat16_nearly_the_same(tiny, monkeypatch):
    first = losses(trained(tiny(*SHORT, "--name", "first")).folder)
    other = losses(trained(tiny(*SHORT, "--name", "other", "--seed", 4)).folder)
    monkeypatch.setattr(train, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    found = losses(trained(tiny(*SHORT, "--name", "bfloat16")).folder)
    assert other[0] != first[0] != found[0] and found == pytest.approx(first, rel=0.02)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_muon_takes_the_steps_of_torch_but_for_rounding(shape):
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    steps = train.Muon([ours], {"lr": 0.1}), torch.optim.Muon([theirs], 0.1, weight_decay=0)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(shape)
        for optimizer in steps:
            optimizer.step()
    assert_close(ours, theirs, atol=0.02, rtol=0)  # torch computes in bfloat16
    assert (ours - 1).abs().mean() > 0.05  # they have moved


@pytest.mark.parametrize("words, rate", [
    ("", 0.03), ("--attention image", 0.005), ("--preset base --attention causal", 0.005),
    ("--preset photos", 0.02), ("--attention causal --keep-decoder", 0.02),
    ("--attention causal --order text-first", 0.03), ("--attention causal --sft-lr 0.1", 0.1)])
def test_fine_tuning_has_the_rate_that_suits_its_mask_unless_another_is_given(words, rate):
    assert train.parse(words.split()).sft_lr == rate


def test_the_learning_rate_rises_stays_and_falls_linearly_to_zero(tiny):
    trainer = tiny("--pretrain-steps", 100, "--pretrain-lr", 0.04)
    factors = {0: 1 / 20, 9: 1 / 2, 19: 1, 20: 1, 50: 1, 70: 1, 85: 1 / 2, 97: 1 / 10, 99: 1 / 30}
    for trainer.step, factor in factors.items():  # steps count from 0
        trainer.train_step()
        rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
        assert rates == pytest.approx([0.04 * factor, 0.04 * factor, 0.3 * 0.04 * factor])


@pytest.mark.parametrize("option, frozen", [([], True), (["--train-vit"], False)])
def test_fine_tuning_changes_everything_but_a_frozen_vit(tiny, option, frozen):
    trainer = trained(tiny(*SHORT, "--keep-decoder", *option))
    before, after = weights(trainer.folder / "pretrained.pt"), weights(trainer.folder)
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == (frozen and name.startswith("vit.")), name


def test_a_new_decoder_learns_to_answer_with_what_pre_training_taught_vit_and_projector(tiny):
    first = tiny(*SHORT, "--layers", 3)
    assert len(first.model.blocks) == train.CAPTION_LAYERS
    first.run_stage("pretrained.pt")
    before = weights(first.folder / "pretrained.pt")
    torch.randn(7)  # whatever has been drawn before
    first.begin_sft()
    second = tiny("--pretrained", first.folder / "pretrained.pt", "--layers", 3, "--name", "second")
    assert_equal(first.model.state_dict(), second.model.state_dict())
    blocks = [name for name in first.model.state_dict() if name.startswith("blocks.")]
    assert {name.split(".")[1] for name in blocks} == {"0", "1", "2"}
    assert not any(torch.equal(first.model.state_dict()[x], before[x]) for x in blocks
                   if x in before and "norm" not in x)
    assert_equal(*[{name: x for name, x in state.items() if name not in blocks and name in before}
                   for state in (first.model.state_dict(), before)])


def test_a_finished_pre_training_is_fine_tuned_in_its_sizes_and_nothing_else_is(tiny):
    first = tiny(*SHORT, "--name", "first", "--image-size", 32, "--layers", 2, "--keep-decoder")
    path = first.folder / "pretrained.pt"
    start = "--sft-steps", 4, "--pretrained"
    refused("no finished pre-training", tiny, *start, first.folder / "model.pt")
    first.train()
    refused("no finished pre-training", tiny, *start, first.folder)
    second = tiny(*start, path, "--name", "second", "--keep-decoder")
    assert second.stage == "sft" and second.data.images.shape[1] == 32
    assert_equal(weights(second.folder), weights(path))
    second.train()
    assert_equal(weights(second.folder), weights(first.folder))


@pytest.mark.parametrize("about, kinds", [
    (QUESTION | CAPTION, {"pretrain": "caption", "sft": "question"}),
    (CAPTION, {"pretrain": "caption"}), (QUESTION, {"pretrain": "caption", "sft": "question"})])
def test_twenty_pictures_train_with_the_default_batch_size(tiny, folder, about, kinds):
    write_lines(folder / "train.jsonl", [{"image": f"{i}.png", **about} for i in range(20)])
    trainer = trained(tiny(*SHORT, "--data", folder, "--batch-size", 64))
    assert {line["stage"] for line in trainer.log} == kinds.keys()
    for stage, kind in kinds.items():
        trainer.begin(stage)
        assert {e.kind for e in trainer.data.examples + trainer.val.examples} == {kind}


def test_a_validation_is_limited_and_asks_for_as_many_yes_as_no(tiny, folder, monkeypatch):
    monkeypatch.setattr(train, "VAL_TEXTS", 40)
    lines = [{"image": f"{i}.png", "objects": [("cat", "dog")[i % 2]]} for i in range(99)]
    write_lines(folder / "train.jsonl", lines[:9])
    write_lines(folder / "val.jsonl", lines[9:])
    _, val = tiny("--data", folder).data_of["sft"]
    answers = [example.answer for example in val.examples]
    assert len(answers) == 40 and 40 < 3 * answers.count("yes") < 80


def test_long_texts_are_left_out_and_where_nothing_is_left_there_is_no_run(tiny, folder, capsys):
    short = {"image": "0.png", **CAPTION, **QUESTION}
    write_lines(folder / "val.jsonl", [{**short, "image": "1.png"}])
    write_lines(folder / "train.jsonl", [short, {**short, "question": "x" * 300}])
    tiny("--data", folder)
    assert "1 of 2 texts are left out" in capsys.readouterr().out
    for line, says in (({**short, "question": "x" * 300}, "no text is left: raise --context"),
                       ({**short, "caption": "x" * 300}, "no text is left: raise --context"),
                       ({"image": "0.png", "objects": []}, "no captions, no questions")):
        write_lines(folder / "train.jsonl", [line])
        refused(says, tiny, "--data", folder, "--name", "refused")
    assert not Path("runs/refused").exists()


def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_never_was(tiny, monkeypatch):
    """Killed before each step and around each part of a save: what is then on the disk goes on."""
    copies = []

    def after_a_copy(function):
        def wrapped(*arguments):
            copies.append(Path(f"runs/copy{len(copies)}"))
            shutil.copytree("runs/whole", copies[-1])
            return function(*arguments)
        return wrapped

    options = *SHORT, "--scenes", 8, "--pretrain-steps", 3, "--sft-steps", 3, "--name"
    with monkeypatch.context() as patch:
        for owner, name in ((train.Trainer, "train_step"), (torch, "save"), (Path, "replace")):
            patch.setattr(owner, name, after_a_copy(getattr(owner, name)))
        whole = trained(tiny(*options, "whole")).folder
    for folder in [*copies, Path(shutil.copytree(whole, "runs/finished"))]:
        started = (folder / "model.pt").exists()
        assert started or folder in copies[:2]  # in its first save
        trained(train.resume(folder) if started else tiny(*options, folder.name))
        assert_same_run(folder, whole)
    assert len(copies) == 22  # at six steps and eight saves


def test_a_process_that_is_killed_goes_on_with_its_data_elsewhere(tiny, folder, monkeypatch):
    lines = [{"image": f"{i}.png", "question": f"{i}?", "answer": str(i)} for i in range(20)]
    write_lines(folder / "train.jsonl", lines)
    monkeypatch.setattr(train, "LOG_EVERY", 25)  # as in the process
    monkeypatch.setattr(train, "autocast", AUTOCAST)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [*TINY, *SHORT, "--pretrain-steps", "75", "--data", "pictures", "--name"]
    whole = trained(tiny(*options, "whole")).folder
    process = Popen([sys.executable, train.__file__, *options, "killed"], stderr=PIPE, text=True)
    for line in process.stderr:
        if "loss=" in line:  # it is about to save
            process.kill()
    assert process.wait() == -signal.SIGKILL
    folder.rename("moved")
    monkeypatch.setattr(sys, "argv", "train.py --resume runs/killed --data moved".split())
    train.main()
    assert_same_run(Path("runs/killed"), whole)
    write_lines(Path("moved/train.jsonl"), reversed(lines[:1] + lines))
    refused("have changed", train.resume, "runs/killed")


def test_ctrl_c_ends_a_run_in_one_line_that_says_how_to_go_on(tiny, monkeypatch):
    def stop(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "train_step", stop)
    for words in (TINY, ["--resume", "runs/mma-seed0"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        refused("interrupted; to go on: python train.py --resume runs/mma-seed0", train.main)


def test_no_run_overwrites_another_even_if_both_start_together(tiny, monkeypatch):
    load_parts = train.load_parts

    def meanwhile(options):
        monkeypatch.setattr(train, "load_parts", load_parts)
        tiny("--layers", 2)
        return load_parts(options)

    monkeypatch.setattr(train, "load_parts", meanwhile)
    refused("runs/mma-seed0 cannot be written", tiny)
    refused("runs/mma-seed0 exists", tiny)
    assert train.load("runs/mma-seed0")[0].config.layers == 2


def test_a_folder_that_cannot_be_written_to_ends_a_run_in_one_line(tiny):
    Path("runs/mma-seed0/model.tmp").mkdir(parents=True)
    refused("runs/mma-seed0 cannot be written", tiny)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_pre_training_is_not_lost(tiny):
    trainer = tiny(*SHORT, "--save-every", 1000)
    train_step = trainer.train_step
    trainer.train_step = lambda: train_step() * (float("nan") if trainer.stage == "sft" else 1)
    refused("the loss is nan at step 2: lower --sft-lr", trainer.train)
    checkpoint = train.load(trainer.folder)[2]
    assert (checkpoint["stage"], checkpoint["step"]) == ("sft", 0)


def test_two_threads_train_as_one_whole_batch_does(tiny, monkeypatch):
    # A batch has three rows in pretrain, which gives no equal halves, and one in sft.
    options = [*SHORT, "--batch-size", "3", "--questions", "1", "--name"]
    monkeypatch.setattr(train, "make_optimizers", driving.sgd)
    whole = tiny(*options, "whole")
    whole.threads = 1
    whole.train()
    halves = trained(tiny(*options, "halves"))
    assert halves.threads == 2
    assert losses(halves.folder) == pytest.approx(losses(whole.folder), rel=1e-6)
    assert_close(halves.model.state_dict(), whole.model.state_dict(), atol=1e-6, rtol=0)


def test_a_damaged_or_foreign_file_or_a_trap_is_refused(tiny):
    class Trap:
        def __reduce__(self):
            return os.mkdir, ("trapped",)

    path = tiny("--width", 8).folder / "model.pt"
    whole, content, expected = path.read_bytes(), torch.load(path), weights(path)
    size = len(whole)
    for place in [*range(0, size, size // 40), *range(size - 4000, size, 100)]:  # zip's directory
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with suppress(SystemExit):  # or what is flipped is a date, or padding
            assert_equal(weights(path), expected)
    for length in (0, 1, 100, size // 2, size - 1):
        path.write_bytes(whole[:length])
        refused("model.pt: damaged", train.load, path)
    config, words, tensors = content["config"], content["words"], content["weights"]
    changes = [{"config": config | {"width": 64}}, {"config": config | {"depth": 2}},
               {"config": Trap()}, {"weights": {}}, {"attention": "nonsense"},
               {"words": words[1:]}, {"words": [*words, "more"]}]
    for foreign in [[1, 2], tensors] + [content | change for change in changes]:
        torch.save(foreign, path)
        refused("model.pt: damaged", train.load, path)
    assert not Path("trapped").exists()  # a checkpoint runs no code


@pytest.mark.parametrize("nonsense, says", [
    ("--width 30 --heads 4", "--width must be a multiple of --heads"),
    ("--width 32 --heads 32", "and at least 4 times as large"),
    ("--heads 0", "--heads must be from 1"),
    ("--image-size 100", "--image-size must be a multiple of 16"),
    ("--sft-steps -1", "--sft-steps must be from 0"),
    ("--pretrain-lr nan", "--pretrain-lr must be from 0"),
    ("--seed 99999999999999999999", "--seed must be from 0 to 2 ** 31"),
    ("--attention nonsense", "--attention: invalid choice: 'nonsense'"),
    ("--resume runs/a", "--resume takes only --device and --data"),
    ("--pretrained runs/a.pt --width 64", "--pretrained: the sizes are those of the file"),
    ("--pretrained runs/a.pt --keep-decoder --layers 2", "the sizes are those of the file"),
    ("--pretrained nowhere.pt", "nowhere.pt: no such checkpoint"),
    ("--data nowhere", "nowhere/train.jsonl"),
    ("--device cuda:99", "--device cuda:99: not on this machine"),
    ("--device nonsense", "--device nonsense: not on this machine"),
])
def test_nonsense_is_refused_in_one_line_and_leaves_no_folder(tiny, capsys, nonsense, says):
    with pytest.raises(SystemExit) as stop:
        tiny(*nonsense.split())
    printed = capsys.readouterr().err.splitlines()
    line = printed.pop() if stop.value.code == 2 else stop.value.code
    assert says in line and line.isprintable() and "error" not in "".join(printed)
    assert not Path("runs").exists()
