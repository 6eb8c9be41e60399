"""train.py learns, repeats itself bit for bit, and survives kills and damaged files."""
import json
import os
import random
import shutil
import signal
import sys
from contextlib import suppress
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest
import torch
from torch.testing import assert_close

import driving
import train
from driving import TINY, refused, write_lines


def trained(trainer):
    trainer.train()
    return trainer


def losses(folder):
    """All losses in the log of a run."""
    return [json.loads(line)["loss"] for line in open(folder / "metrics.jsonl")]


def weights(path):
    return train.load(path)[0].state_dict()


# Learning.

def test_both_stages_learn_and_the_checkpoint_is_what_was_trained(tiny):
    trainer = trained(tiny("--pretrain-steps", 60, "--sft-steps", 60, "--save-every", 1000))
    loss = losses(trainer.folder)
    assert len(loss) == 60
    assert loss[29] < 0.7 * loss[0] and loss[59] < 0.7 * loss[30]
    model, tokenizer, checkpoint = train.load(trainer.folder)
    assert_close(model.state_dict(), trainer.model.state_dict(), atol=0, rtol=0)
    assert model.attention == "mma" and tokenizer.words == trainer.tokenizer.words
    assert checkpoint["finished"] and checkpoint["stage"] == "sft" and checkpoint["step"] == 60


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny):
    first = trained(tiny("--name", "first", "--seed", 3)).folder
    again = trained(tiny("--name", "again", "--seed", 3)).folder
    other = trained(tiny("--name", "other", "--seed", 4)).folder
    assert_same_run(first, again)
    assert losses(first) != losses(other)
    assert not torch.equal(weights(first)["projector.weight"], weights(other)["projector.weight"])


def test_bfloat16_follows_float32(tiny, monkeypatch):
    expected = losses(trained(tiny("--name", "float32")).folder)
    monkeypatch.setattr(train, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    found = losses(trained(tiny("--name", "bfloat16")).folder)
    assert found != expected and found == pytest.approx(expected, rel=0.02)


def test_the_learning_rate_rises_stays_and_falls_linearly_to_zero(tiny):
    trainer = tiny("--pretrain-steps", 100, "--pretrain-lr", 0.04)
    factors = {0: 1 / 20, 9: 1 / 2, 19: 1, 20: 1, 50: 1, 70: 1, 85: 1 / 2, 97: 1 / 10, 99: 1 / 30}
    for trainer.step, factor in factors.items():  # steps count from 0
        trainer.train_step()
        rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
        assert rates == pytest.approx([0.04 * factor, 0.04 * factor, 0.3 * 0.04 * factor])


@pytest.mark.parametrize("option, frozen", [([], True), (["--train-vit"], False)])
def test_fine_tuning_changes_everything_but_a_frozen_vit(tiny, option, frozen):
    trainer = trained(tiny("--pretrain-steps", 2, "--sft-steps", 4, *option))
    before, after = weights(trainer.folder / "pretrained.pt"), weights(trainer.folder)
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == (frozen and name.startswith("vit.")), name


def test_a_pretrained_model_is_fine_tuned_in_its_sizes_without_pre_training(tiny):
    first = trained(tiny("--name", "first", "--image-size", 32, "--layers", 2))
    path = first.folder / "pretrained.pt"
    second = tiny("--name", "second", "--pretrained", path, "--attention", "causal", "--seed", 1)
    assert second.stage == "sft" and second.data.images.shape[1] == 32
    assert_close(weights(second.folder), weights(path), atol=0, rtol=0)
    second.train()
    assert {line["stage"] for line in second.log} == {"sft"}
    third = trained(tiny("--name", "third", "--pretrained", path))
    as_one = weights(first.folder)
    assert_close(weights(third.folder), as_one, atol=0, rtol=0)


QUESTION = {"question": "Is it red?", "answer": "yes"}


@pytest.mark.parametrize("about, stages", [
    ({"caption": "all is red", **QUESTION}, {"pretrain", "sft"}),
    ({"caption": "all is red"}, {"pretrain"}), (QUESTION, {"pretrain", "sft"})])
def test_twenty_pictures_train_with_the_default_batch_size(tiny, folder, about, stages):
    write_lines(folder / "train.jsonl", [{"image": f"{i}.png", **about} for i in range(20)])
    trainer = trained(tiny("--data", folder, "--batch-size", 64))
    assert {line["stage"] for line in trainer.log} == stages
    assert train.load(trainer.folder)[2]["finished"]


def test_own_pictures_are_validated_with_as_many_yes_as_no_and_without_texts_refused(
        tiny, folder, monkeypatch):
    monkeypatch.setattr(train, "VAL_TEXTS", 60)
    lines = [{"image": f"{i}.png", "objects": ["cat", "dog"]} for i in range(100)]
    write_lines(folder / "train.jsonl", lines)
    refused("no captions, no questions", tiny, "--data", folder)  # nothing is absent
    write_lines(folder / "val.jsonl", [*lines, {"image": "0.png", "objects": ["cup", "key"]}])
    trainer = tiny("--data", folder, "--pretrain-steps", 0)
    answers = [example.answer for example in trainer.val.examples]
    assert len(answers) == 60 and 15 < answers.count("yes") < 45


# Runs that are killed.

def assert_same_run(folder, other):
    """Metrics byte for byte, weights bit for bit, and nothing else in the folder."""
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in ("model.pt", "pretrained.pt"):
        assert_close(weights(folder / name), weights(other / name), atol=0, rtol=0)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in other.iterdir())


class Killed(BaseException):
    """Ends a run as SIGKILL does: it writes nothing after that."""


def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_never_was(tiny, monkeypatch):
    """At each event of a run, and at the eighth after that: at a step, or somewhere in a save."""
    options = "--scenes", 8, "--pretrain-steps", 4, "--sft-steps", 4, "--name"
    whole = trained(tiny(*options, "whole")).folder
    train_step, torch_save, replace = train.Trainer.train_step, torch.save, Path.replace
    events = 0

    def event():
        nonlocal events
        events += 1
        if events in (first, first + 8):
            raise Killed

    def step(trainer):
        event()
        return train_step(trainer)

    def save(content, path):
        path.write_bytes(b"half of a file")
        event()
        torch_save(content, path)

    def rename(old, new):
        event()
        replace(old, new)
        event()

    monkeypatch.setattr(train.Trainer, "train_step", step)
    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(Path, "replace", rename)
    for first in count(1):
        events, folder = 0, Path("runs", str(first))
        while True:
            with suppress(Killed):
                started = (folder / "model.pt").exists()
                assert started or events < 3  # in its first save
                trained(train.resume(folder) if started else tiny(*options, first))
                break
        assert_same_run(folder, whole)
        if events < first:  # it ended before
            break
    assert first > 25


def python(*words, until="", send=None):
    """-> exit code and output of a process, which is sent a signal when it prints `until`."""
    process = Popen([sys.executable, *words], stdout=PIPE, stderr=STDOUT, text=True)
    printed = ""
    for line in process.stdout:
        printed += line
        if send and until in line:
            process.send_signal(send)
            send = None
    return process.wait(), printed


def test_a_process_goes_on_after_a_kill_and_after_ctrl_c(folder, monkeypatch):
    lines = [{"image": f"{i}.png", "question": f"{i}?", "answer": str(i)} for i in range(20)]
    write_lines(folder / "train.jsonl", lines)
    monkeypatch.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    steps = "--pretrain-steps", "50", "--sft-steps", "50"
    new = train.__file__, *TINY, *steps, "--data", ".", "--name"
    again = train.__file__, "--resume", "runs/stopped"
    assert python(*new, "whole")[0] == 0
    killed, _ = python(*new, "stopped", until="pretrain:  50%", send=signal.SIGKILL)
    stopped, printed = python(*again, until="sft:  50%", send=signal.SIGINT)
    assert killed == -signal.SIGKILL and stopped == 1 and "Traceback" not in printed
    assert "interrupted; to go on: python train.py --resume runs/stopped\n" in printed
    assert python(*again)[0] == 0
    assert_same_run(Path("runs/stopped"), Path("runs/whole"))


@pytest.mark.slow
def test_a_run_with_fifty_kills_at_random_times_ends_as_one_that_never_was(tiny):
    whole, killed, kills = trained(tiny("--name", "whole")).folder, Path("runs/killed"), 0
    context, rng = get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["driving"])  # imports torch once
    while kills < 50 or killed.exists():
        words = [*TINY, "--name", "killed"]
        if (killed / "model.pt").exists():
            words = ["--resume", str(killed)]
        process = context.Process(target=driving.in_folder, args=(Path.cwd(), words))
        process.start()
        process.join(rng.uniform(0, 0.7) if kills < 50 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            assert_same_run(killed, whole)
            shutil.rmtree(killed)


def test_a_run_is_not_overwritten_and_resuming_a_finished_one_changes_nothing(tiny):
    folder = trained(tiny()).folder
    refused(f"{folder} exists", tiny)
    shutil.copytree(folder, "copy")
    assert_same_run(trained(train.resume(folder)).folder, Path("copy"))
    Path("empty").mkdir()
    refused("no such checkpoint", train.resume, "empty")


def test_a_pre_training_that_is_done_is_not_lost(tiny):
    trainer = tiny("--save-every", 1000)
    train_step = trainer.train_step

    def step():
        if trainer.stage == "sft":
            raise Killed
        return train_step()

    trainer.train_step = step
    with pytest.raises(Killed):
        trainer.train()
    assert train.load(trainer.folder)[2]["stage"] == "sft"


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_it_to_be_resumed(tiny):
    whole = trained(tiny("--name", "whole"))
    trainer = tiny("--name", "nan")
    train_step = trainer.train_step
    trainer.train_step = lambda: train_step() * (float("nan") if trainer.step == 6 else 1)
    refused("the loss is nan at step 8: lower --pretrain-lr", trainer.train)
    assert train.load(trainer.folder)[2]["step"] == 6
    assert_same_run(trained(train.resume(trainer.folder)).folder, whole.folder)


def test_halves_of_a_batch_and_two_processes_train_as_one_whole_does(tiny, monkeypatch):
    """With SGD: Muon computes in bfloat16, Adam divides by tiny numbers; both magnify rounding."""
    options = [*TINY, "--batch-size", "6", "--questions", "3"]  # 3 rows: no equal halves
    monkeypatch.setattr(train, "make_optimizers", driving.sgd)
    whole = tiny(*options, "--name", "whole")
    whole.threads = 1
    whole.train()
    trained(tiny(*options, "--name", "halves"))
    monkeypatch.setenv("PYTHONPATH", str(Path(train.__file__).parent))
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"
    code, printed = python(*torchrun, driving.__file__, *options, "--name", "processes")
    assert code == 0, printed
    wanted = losses(whole.folder)
    for folder in (Path("runs/halves"), Path("runs/processes")):
        assert len(wanted) == 10 and losses(folder) == pytest.approx(wanted, rel=1e-6)
        assert_close(weights(folder), whole.model.state_dict(), atol=1e-6, rtol=0)


# Files that are no checkpoint, or a damaged one.

def test_a_flipped_bit_is_refused_or_changes_nothing(tiny):
    path = tiny().folder / "model.pt"
    whole, expected, harmless = path.read_bytes(), weights(path), 0
    size = len(whole)
    for place in [*range(0, size, size // 60), *range(size - 4000, size, 100)]:  # zip's directory
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert_close(weights(path), expected, atol=0, rtol=0)  # a date, or padding
            harmless += 1
        except SystemExit as stop:
            assert stop.code.startswith(f"{path}: damaged") and stop.code.isprintable()
    assert harmless < 40


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_file_that_is_cut_off_or_foreign_or_a_trap_is_refused(tiny):
    path = tiny().folder / "model.pt"
    whole, checkpoint = path.read_bytes(), torch.load(path)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("model.pt: damaged", train.load, path)
    config, words, weights = (checkpoint[name] for name in ("config", "words", "weights"))
    changes = [{"weights": {name: w[None] for name, w in weights.items()}},
               {"config": {**config, "width": 64}},
               {"config": {**config, "layers": 2}},
               {"config": {**config, "depth": 2}},
               {"config": Trap()},
               {"options": {**checkpoint["options"], "attention": "nonsense"}},
               {"words": words[1:]}, {"words": [*words, "more"]}]
    for foreign in ([1, 2], weights, *({**checkpoint, **change} for change in changes)):
        torch.save(foreign, path)
        refused("model.pt: damaged", train.load, path)
    assert not Path("trapped").exists()  # a checkpoint runs no code


@pytest.mark.parametrize("nonsense, says", [
    ("--width 30 --heads 4", "--width must be a multiple of --heads"),
    ("--scenes 0", "--scenes, --batch-size and --questions must be at least 1"),
    ("--batch-size 0", "--batch-size and --questions must be at least 1"),
    ("--image-size 100", "--image-size of 16"),
    ("--seed 1.5", "--seed: invalid"),
    ("--attention nonsense", "--attention: invalid choice: 'nonsense'"),
    ("--bogus", "unrecognized arguments: --bogus"),
    ("--resume", "--resume: expected one argument"),
    ("--resume runs/a", "--resume takes no other option"),
    ("--data nowhere", "nowhere/train.jsonl"),
    ("--pretrained nowhere.pt", "nowhere.pt: no such checkpoint"),
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


def test_a_validation_is_of_limited_size_and_has_all_pictures_and_kinds(tiny, monkeypatch):
    monkeypatch.setattr(train, "VAL_SCENES", 20)
    monkeypatch.setattr(train, "VAL_TEXTS", 60)
    trainer = tiny("--pretrain-steps", 0)
    asked, known = trainer.val.examples, trainer.splits[1].questions
    assert len(asked) <= 60 < len(known)
    assert {e.picture for e in asked} == set(range(20))
    assert {e.kind for e in asked} == {e.kind for e in known}
