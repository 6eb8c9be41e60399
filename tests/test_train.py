"""train.py learns, repeats itself bit for bit, and survives kills, races and damaged files."""
import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from itertools import count
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
    trainer = trained(tiny("--pretrain-steps", 40, "--sft-steps", 40, "--save-every", 1000))
    loss = losses(trainer.folder)
    assert len(loss) == 40
    assert loss[19] < 0.7 * loss[0] and loss[39] < 0.7 * loss[20]
    model, tokenizer, checkpoint = train.load(trainer.folder)
    assert_close(model.state_dict(), trainer.model.state_dict(), atol=0, rtol=0)
    assert model.attention == "mma" and tokenizer.words == trainer.tokenizer.words
    assert checkpoint["finished"] and checkpoint["stage"] == "sft" and checkpoint["step"] == 40


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


def test_a_finished_pre_training_is_fine_tuned_in_its_sizes_and_nothing_else_is(tiny):
    first = tiny("--name", "first", "--image-size", 32, "--layers", 2)
    refused("no finished pre-training", tiny, "--pretrained", first.folder / "model.pt")
    first.train()
    for fine_tuned in (first.folder, first.folder / "model.pt"):
        refused("no finished pre-training", tiny, "--pretrained", fine_tuned)
    path = first.folder / "pretrained.pt"
    second = tiny("--name", "second", "--pretrained", path, "--attention", "causal", "--seed", 1)
    assert second.stage == "sft" and second.data.images.shape[1] == 32
    assert_close(weights(second.folder), weights(path), atol=0, rtol=0)
    second.train()
    assert {line["stage"] for line in second.log} == {"sft"}
    third = trained(tiny("--name", "third", "--pretrained", path))
    assert_close(weights(third.folder), weights(first.folder), atol=0, rtol=0)


QUESTION = {"question": "Is it red?", "answer": "yes"}
CAPTION = {"caption": "all is red"}


@pytest.mark.parametrize("about, stages", [
    ({**CAPTION, **QUESTION}, {"pretrain": "caption", "sft": "question"}),
    (CAPTION, {"pretrain": "caption"}), (QUESTION, {"pretrain": "question", "sft": "question"})])
def test_twenty_pictures_train_with_the_default_batch_size(tiny, folder, about, stages):
    write_lines(folder / "train.jsonl", [{"image": f"{i}.png", **about} for i in range(20)])
    trainer = trained(tiny("--data", folder, "--batch-size", 64))
    assert {line["stage"] for line in trainer.log} == stages.keys()
    for stage, kind in stages.items():  # without captions both stages learn from questions
        trainer.begin(stage)
        assert {e.kind for e in trainer.data.examples + trainer.val.examples} == {kind}
    assert train.load(trainer.folder)[2]["finished"]


def test_long_texts_are_counted_and_left_out_or_refused_if_no_other_is_left(
        tiny, folder, capsys):
    short = {"image": "0.png", **CAPTION, **QUESTION}
    write_lines(folder / "val.jsonl", [{**short, "image": "1.png"}])
    write_lines(folder / "train.jsonl", [short, {**short, "question": "x" * 300}])
    tiny("--data", folder)
    assert "1 of 2 texts are left out" in capsys.readouterr().out
    for long in ({"question": "x" * 300}, {"caption": "x" * 300}):
        write_lines(folder / "train.jsonl", [{**short, **long}])
        refused("no text is left: raise --context", tiny, "--data", folder, "--name", "refused")
    write_lines(folder / "train.jsonl", [{"image": "0.png", "objects": ["cat"]}])
    refused("no captions, no questions", tiny, "--data", folder, "--name", "refused")
    assert not Path("runs/refused").exists()


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
    options = "--width 8 --scenes 8 --pretrain-steps 4 --sft-steps 4 --name".split()
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

    def save(content, file):
        file.write(b"half of a file")
        event()
        file.seek(0)
        torch_save(content, file)

    def rename(old, new):
        event()
        replace(old, new)

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
    assert first > 20


def python(*words, until="", send=None):
    """-> exit code and output of a process. It is sent a signal when a line matches `until`."""
    process = Popen([sys.executable, *words], stdout=PIPE, stderr=STDOUT, text=True)
    printed = ""
    for line in process.stdout:
        printed += line
        if send and re.search(until, line):
            process.send_signal(send)
            send = None
    return process.wait(), printed


def test_a_process_goes_on_after_a_kill_and_after_ctrl_c_with_its_data_elsewhere(
        folder, tmp_path, monkeypatch):
    lines = [{"image": f"{i}.png", "question": f"{i}?", "answer": str(i)} for i in range(20)]
    write_lines(folder / "train.jsonl", lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    options = *TINY, "--pretrain-steps", "30", "--sft-steps", "30", "--data", "pictures", "--name"
    whole = trained(train.start(train.parse([*options, "whole"]))).folder
    new = train.__file__, *options, "stopped"
    killed, _ = python(*new, until="pretrain: .*%", send=signal.SIGKILL)
    folder.rename("moved")
    again = train.__file__, "--resume", "runs/stopped", "--data", "moved", "--device", "cpu"
    stopped, printed = python(*again, until="sft: .*%", send=signal.SIGINT)
    assert killed == -signal.SIGKILL and stopped == 1 and "Traceback" not in printed
    assert "interrupted; to go on: python train.py --resume runs/stopped\n" in printed
    assert_same_run(trained(train.resume("runs/stopped/model.pt")).folder, whole)


def test_a_run_is_not_overwritten_and_resuming_a_finished_one_changes_nothing(tiny):
    Path("runs/mma-seed0").mkdir(parents=True)  # without a checkpoint it stands in nobody's way
    folder = trained(tiny()).folder
    refused(f"{folder} exists", tiny)
    shutil.copytree(folder, "copy")
    assert_same_run(trained(train.resume(folder)).folder, Path("copy"))
    refused("no such checkpoint", train.resume, "runs")


def test_of_two_runs_started_together_under_one_name_one_stays_and_one_ends(tiny, monkeypatch):
    load_parts = train.load_parts

    def meanwhile(options):
        monkeypatch.setattr(train, "load_parts", load_parts)
        shutil.copytree(trained(tiny("--sft-lr", 0.01)).folder, "copy")
        return load_parts(options)

    monkeypatch.setattr(train, "load_parts", meanwhile)
    refused("runs/mma-seed0 cannot be written", tiny)
    assert_same_run(Path("runs/mma-seed0"), Path("copy"))


def test_a_run_with_other_data_is_not_resumed(tiny, folder):
    lines = [{"image": f"{i}.png", **QUESTION} for i in range(20)]
    write_lines(folder / "train.jsonl", lines)
    run = tiny("--data", folder).folder
    write_lines(folder / "train.jsonl", reversed(lines[:1] + lines))
    refused("have changed", train.resume, run)


def test_a_folder_that_cannot_be_written_to_ends_a_run_in_one_line(tiny):
    Path("runs").touch()  # root may write into any folder, but not into a file
    refused("runs/mma-seed0 cannot be written", tiny)
    Path("runs").unlink()
    Path("runs/mma-seed0/model.tmp").mkdir(parents=True)
    refused("runs/mma-seed0 cannot be written", tiny)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_pre_training_is_not_lost(tiny):
    whole = trained(tiny("--name", "whole"))
    trainer = tiny("--name", "nan", "--save-every", 1000)
    train_step = trainer.train_step
    trainer.train_step = lambda: train_step() * (float("nan") if trainer.stage == "sft" else 1)
    refused("the loss is nan at step 2: lower --sft-lr", trainer.train)
    checkpoint = train.load(trainer.folder)[2]
    assert (checkpoint["stage"], checkpoint["step"]) == ("sft", 0)
    assert_same_run(trained(train.resume(trainer.folder)).folder, whole.folder)


def test_threads_and_processes_train_as_one_whole_batch_does(tiny, monkeypatch):
    """With SGD: Muon computes in bfloat16, Adam divides by tiny numbers; both magnify rounding."""
    # A batch has three rows in pretrain, which gives no equal halves, and one in sft.
    options = [*TINY, "--batch-size", "3", "--questions", "1"]
    monkeypatch.setattr(train, "make_optimizers", driving.sgd)
    whole = tiny(*options, "--name", "whole")
    whole.threads = 1
    whole.train()
    trained(tiny(*options, "--name", "threads"))
    monkeypatch.setenv("PYTHONPATH", str(Path(train.__file__).parent))
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"
    code, printed = python(*torchrun, driving.__file__, *options, "--name", "processes")
    assert code == 0, printed
    wanted = losses(whole.folder)
    for folder in (Path("runs/threads"), Path("runs/processes")):
        assert len(wanted) == 10 and losses(folder) == pytest.approx(wanted, rel=1e-6)
        assert_close(weights(folder), whole.model.state_dict(), atol=1e-6, rtol=0)


def test_processes_with_different_data_stop_before_the_first_step(tiny, monkeypatch):
    def gather(found, mine):
        found[:] = mine, ["other", "data"]

    monkeypatch.setattr(train, "PROCESSES", 2)
    monkeypatch.setattr(train.dist, "all_gather_object", gather)
    refused("the processes do not have the same data", tiny)
    assert not Path("runs").exists()


# Files that are no checkpoint, damaged ones, and wrong options.

class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_damaged_or_foreign_file_or_a_trap_is_refused(tiny):
    path = tiny().folder / "model.pt"
    whole, content, expected = path.read_bytes(), torch.load(path), weights(path)
    size, harmless = len(whole), 0
    damaged = [whole[:length] for length in (0, 1, 100, size // 2, size - 1)]
    for place in [*range(0, size, size // 40), *range(size - 4000, size, 100)]:  # zip's directory
        flipped = bytes([whole[place] ^ 1 << place % 8])
        damaged.append(whole[:place] + flipped + whole[place + 1:])
    for data in damaged:
        path.write_bytes(data)
        try:
            assert_close(weights(path), expected, atol=0, rtol=0)  # a date, or padding
            harmless += 1
        except SystemExit as stop:
            assert stop.code.startswith(f"{path}: damaged") and stop.code.isprintable()
    assert harmless < 40
    config, words, tensors = (content[name] for name in ("config", "words", "weights"))
    changes = [{"config": {**config, "width": 64}}, {"config": {**config, "layers": 2}},
               {"config": {**config, "depth": 2}}, {"config": Trap()},
               {"weights": {name: x[None] for name, x in tensors.items()}},
               {"attention": "nonsense"}, {"words": words[1:]}, {"words": [*words, "more"]}]
    for foreign in ([1, 2], tensors, *({**content, **change} for change in changes)):
        torch.save(foreign, path)
        refused("model.pt: damaged", train.load, path)
    assert not Path("trapped").exists()  # a checkpoint runs no code


@pytest.mark.parametrize("nonsense, says", [
    ("--width 30 --heads 4", "--width must be a multiple of --heads"),
    ("--width 32 --heads 32", "and at least 4 times as large"),
    ("--heads 0", "--heads must be from 1"),
    ("--heads -2", "--heads must be from 1"),
    ("--layers -1", "--layers must be from 1"),
    ("--scenes 0", "--scenes must be from 1"),
    ("--batch-size 0", "--batch-size must be from 1"),
    ("--image-size 0", "--image-size must be from 1"),
    ("--image-size 100", "--image-size must be a multiple of 16"),
    ("--sft-steps -1", "--sft-steps must be from 0"),
    ("--pretrain-lr nan", "--pretrain-lr must be from 0"),
    ("--seed 99999999999999999999", "--seed must be from 0 to 2 ** 31"),
    ("--seed 1.5", "--seed: invalid"),
    ("--attention nonsense", "--attention: invalid choice: 'nonsense'"),
    ("--bogus", "unrecognized arguments: --bogus"),
    ("--resume", "--resume: expected one argument"),
    ("--resume runs/a", "--resume takes only --device and --data"),
    ("--pretrained runs/a.pt --width 64", "--pretrained: the sizes are those of the file"),
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
