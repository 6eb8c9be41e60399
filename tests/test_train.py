"""train.py learns, repeats itself bit for bit, and survives kills and damaged files."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from data import make_world
from driving import OFTEN, TINY, Run, float32


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """tiny(*options) starts a tiny run in an empty folder; the caller trains it."""
    monkeypatch.chdir(tmp_path)
    for name, value in OFTEN.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(train, "autocast", float32)
    torch.set_num_threads(2)

    def start(*options):
        return train.start(train.parse([*TINY, *map(str, options)]))

    return start


def trained(trainer):
    trainer.train()
    return trainer


def losses(folder):
    """All losses in the log of a run."""
    return [json.loads(line)["loss"] for line in open(folder / "metrics.jsonl")]


def weights(path):
    return train.load(path)[0].state_dict()


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def refused(says, call, *arguments):
    """The call ends the program with one line, which says so."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert isinstance(stop.value.code, str) and stop.value.code.isprintable(), stop.value.code
    assert says in stop.value.code


# Learning.

def test_both_stages_learn_and_the_checkpoint_is_what_was_trained(tiny):
    trainer = trained(tiny("--pretrain-steps", 60, "--sft-steps", 60, "--save-every", 1000))
    loss = losses(trainer.folder)
    assert len(loss) == 60
    assert loss[29] < 0.7 * loss[0] and loss[59] < 0.7 * loss[30]
    model, tokenizer, checkpoint = train.load(trainer.folder)
    assert_same_weights(trainer.model.state_dict(), model.state_dict())
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


def test_parts_of_a_batch_add_up_to_its_gradient(tiny, monkeypatch):
    """In two threads, and in two processes, whose gradients DistributedDataParallel averages."""
    trainer = tiny()
    for p in trainer.model.parameters():
        torch.nn.init.normal_(p, std=0.05)  # fresh weights are zero here and there
    rows = trainer.data.sample(6, 1, seed=0)
    _, loss = trainer.model(**trainer.data.batch(rows), with_loss=True)
    parameters = dict(trainer.model.named_parameters())
    expected = torch.autograd.grad(loss, parameters.values())
    tokens = sum(len(answer) for _, answer in (trainer.data.rows[i] for i in rows))
    for world in (1, 2):
        monkeypatch.setattr(train, "WORLD", world)
        parts = trainer.pool.map(lambda part: trainer.backward(part, tokens), (rows[:3], rows[3:]))
        torch.testing.assert_close(sum(parts), loss.detach())
        for (name, p), gradient in zip(parameters.items(), expected):
            assert (p.grad / world - gradient).abs().max() < 1e-5 * gradient.abs().max(), name
            p.grad = None


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


def test_a_pretrained_model_is_fine_tuned_from_its_weights_without_pre_training(tiny):
    first = trained(tiny("--name", "first"))
    path = first.folder / "pretrained.pt"
    second = tiny("--name", "second", "--pretrained", path, "--attention", "causal", "--seed", 1)
    assert second.stage == "sft"
    assert_same_weights(weights(path), weights(second.folder))
    second.train()
    assert {line["stage"] for line in second.log} == {"sft"}
    third = trained(tiny("--name", "third", "--pretrained", path))
    assert_same_weights(weights(first.folder), weights(third.folder))  # as if in one run


def make_folder(folder, captions, questions):
    """20 pictures, with a caption or a question each, or both."""
    folder.mkdir()
    with open(folder / "train.jsonl", "w") as file:
        for i in range(20):
            Image.new("RGB", (30 + i, 40), (12 * i, 0, 99)).save(folder / f"{i}.png")
            entry = {"image": f"{i}.png"}
            if captions:
                entry["caption"] = "very " * i + "red"
            if questions:
                entry |= {"question": "How red is it?", "answer": str(i % 3)}
            file.write(json.dumps(entry) + "\n")


@pytest.mark.parametrize("captions, questions, stages", [
    (True, True, ["pretrain", "sft"]), (False, True, ["pretrain", "sft"]),
    (True, False, ["pretrain"])])
def test_twenty_pictures_train_with_the_default_batch_size(tiny, captions, questions, stages):
    make_folder(Path("mine"), captions, questions)
    trainer = trained(tiny("--data", "mine", "--batch-size", 64))
    assert sorted({line["stage"] for line in trainer.log}) == stages
    assert train.load(trainer.folder)[2]["finished"]


# Runs that are killed.

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs-here")
    run = Run(folder, *TINY, "--name", "whole")
    assert run.wait() == 0, run.printed()
    return folder / "runs" / "whole"


def assert_same_run(folder, other):
    """Metrics byte for byte, weights bit for bit, and nothing else in the folder."""
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in ("model.pt", "pretrained.pt"):
        assert_same_weights(weights(folder / name), weights(other / name))
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in other.iterdir())


def start_or_resume(whole, name, method="forkserver"):
    """A Run of the same name as before goes on, unless that was killed before its first save."""
    folder = whole.parent / name
    if not (folder / "model.pt").exists():
        shutil.rmtree(folder, ignore_errors=True)
    arguments = ["--resume", f"runs/{name}"] if folder.exists() else [*TINY, "--name", name]
    return Run(whole.parent.parent, *arguments, method=method)


def kill_and_resume(whole, name, kills, method="forkserver"):
    """Kill a run again and again, and let it end as `whole` did. Returns where the kills met it."""
    rng, folder, met = random.Random(0), whole.parent / name, Counter()
    while kills:
        run = start_or_resume(whole, name, method)
        moment = rng.choice(("start", "save", "step"))
        if moment == "start":
            time.sleep(rng.uniform(0, 0.3 if method == "forkserver" else 3))
        else:
            run.until("s" if moment == "save" else "d", rng.randint(1, 4))
            time.sleep(rng.uniform(0, 0.004 if moment == "save" else 0.03))
        code = run.send(signal.SIGKILL)
        if code == -signal.SIGKILL:
            kills -= 1
            met["in a save"] += run.events().endswith("s")
            met["sft" if (folder / "pretrained.pt").exists() else "pretrain"] += 1
        else:  # it was faster: once more from the start
            assert code == 0, run.printed()
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
    start_or_resume(whole, name, method).wait()
    assert_same_run(folder, whole)
    return met


def test_a_run_that_is_killed_a_dozen_times_ends_as_one_that_never_was(whole):
    met = kill_and_resume(whole, "killed", 12)
    assert min(met["in a save"], met["pretrain"], met["sft"]) >= 2, met


@pytest.mark.slow
@pytest.mark.parametrize("kills, method", [(50, "forkserver"), (12, "spawn")])
def test_a_run_that_is_killed_many_times_ends_as_one_that_never_was(whole, kills, method):
    met = kill_and_resume(whole, f"killed-{method}", kills, method)
    assert min(met["in a save"], met["pretrain"], met["sft"]) >= 2, met


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_ctrl_c_says_in_one_line_how_to_go_on(whole, method):
    name = f"stopped-{method}"
    for _ in range(5):
        run = Run(whole.parent.parent, *TINY, "--name", name, method=method)
        run.until("d", 4)
        if (code := run.send(signal.SIGINT)) != 0:
            break
        assert_same_run(whole.parent / name, whole)  # it was faster: once more from the start
        shutil.rmtree(whole.parent / name)
    assert code == 1
    assert f"interrupted; to go on: python train.py --resume runs/{name}\n" in run.printed()
    assert "Traceback" not in run.printed()
    assert start_or_resume(whole, name).wait() == 0
    assert_same_run(whole.parent / name, whole)


def test_a_run_is_not_overwritten_and_resuming_a_finished_one_changes_nothing(tiny):
    folder = trained(tiny()).folder
    refused(f"{folder} exists", tiny)
    shutil.copytree(folder, "copy")
    assert_same_run(trained(train.resume(folder)).folder, Path("copy"))
    Path("empty").mkdir()
    refused("no such checkpoint", train.resume, "empty")


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_it_to_be_resumed(tiny):
    whole = trained(tiny("--name", "whole"))
    trainer = tiny("--name", "nan")
    train_step = trainer.train_step
    trainer.train_step = lambda: train_step() * (float("nan") if trainer.step == 6 else 1)
    refused("the loss is nan at step 8: lower --pretrain-lr", trainer.train)
    assert train.load(trainer.folder)[2]["step"] == 6
    assert_same_run(trained(train.resume(trainer.folder)).folder, whole.folder)


# Several processes.

def test_two_processes_train_as_one_does(tmp_path):
    """With SGD: Muon computes in bfloat16, Adam divides by tiny numbers; both magnify rounding."""
    options = [*TINY, "--batch-size", 6, "--questions", 3]  # 9 questions: no equal halves
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [Run(tmp_path, *options, "--name", "one", sgd=True)]
    for rank in (0, 1):
        started.append(Run(tmp_path, *options, "--name", "two", rank=rank, port=port, sgd=True))
    for run in started:
        assert run.wait() == 0, run.printed()
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    assert len(losses(one)) == 10 and losses(two) == pytest.approx(losses(one), rel=1e-6)
    after = weights(one)
    for name, weight in weights(two).items():
        torch.testing.assert_close(weight, after[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(tmp_path):
    found = []
    for n in "12":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc_per_node={n}", train.__file__, *TINY, "--name", n]
        done = subprocess.run(command, cwd=tmp_path, timeout=100, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(losses(tmp_path / "runs" / n))
    assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], rel=1e-3)


# Files that are no checkpoint, or a damaged one.

def test_a_checkpoint_runs_no_code(tiny):
    class Trap:
        def __reduce__(self):
            return os.mkdir, ("trapped",)

    torch.save({"config": Trap()}, "trap.pt")
    refused("trap.pt: damaged, or no checkpoint", train.load, "trap.pt")
    assert not Path("trapped").exists()


def test_a_flipped_bit_is_refused_or_changes_nothing(tiny):
    path = tiny().folder / "model.pt"
    whole, expected, rng, harmless = path.read_bytes(), weights(path), random.Random(0), 0
    places = [rng.randrange(len(whole)) for _ in range(60)]
    places += [rng.randrange(len(whole) - 4000, len(whole)) for _ in range(40)]  # zip's directory
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert_same_weights(weights(path), expected)  # a date, or padding
            harmless += 1
        except SystemExit as stop:
            assert stop.code.startswith(f"{path}: damaged") and stop.code.isprintable()
    assert harmless < 40


def test_a_checkpoint_that_is_cut_off_is_refused(tiny):
    path = tiny().folder / "model.pt"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("model.pt: damaged", train.load, path)


def test_a_file_that_is_no_checkpoint_of_this_program_is_refused(tiny):
    path = tiny().folder / "model.pt"
    checkpoint = torch.load(path)
    config, words, weights = (checkpoint[name] for name in ("config", "words", "weights"))
    for foreign in ([1, 2], {"a": torch.ones(3)}, weights,
                    {**checkpoint, "weights": {name: w[None] for name, w in weights.items()}},
                    {**checkpoint, "config": {**config, "width": 64}},
                    {**checkpoint, "config": {**config, "layers": 2}},
                    {**checkpoint, "config": {**config, "depth": 2}},
                    {**checkpoint, "options": {**checkpoint["options"], "attention": "nonsense"}},
                    {**checkpoint, "words": words[1:]},
                    {**checkpoint, "words": [*words, "more"]}):
        torch.save(foreign, path)
        refused("model.pt: damaged", train.load, path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("letter.txt", "hello")
    refused("model.pt: damaged", train.load, path)


# Nonsense on the command line.

@pytest.mark.parametrize("nonsense, says", [
    ("--width 30 --heads 4", "--width must be a multiple of --heads"),
    ("--scenes 0", "--scenes, --batch-size and --questions must be at least 1"),
    ("--batch-size 0", "--batch-size and --questions must be at least 1"),
    ("--image-size 100", "--image-size of 16"),
    ("--seed 1.5", "--seed: invalid"),
    ("--attention nonsense", "--attention: invalid choice: 'nonsense'"),
    ("--bogus", "unrecognized arguments: --bogus"),
    ("--resume", "--resume: expected one argument"),
    ("--resume runs/a --seed 1", "--resume takes no other option"),
    ("--resume=runs/a --train-vit", "--resume takes no other option"),
    ("--seed=1 --resume=runs/a", "--resume takes no other option"),
])
def test_options_that_make_no_sense_are_refused_in_one_line(capsys, nonsense, says):
    with pytest.raises(SystemExit) as stop:
        train.parse(nonsense.split())
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and says in lines[-1] and "error" not in "".join(lines[:-1])


@pytest.mark.parametrize("nonsense, says", [
    ("--data nowhere", "nowhere/train.jsonl"),
    ("--pretrained nowhere.pt", "nowhere.pt: no such checkpoint"),
    ("--device cuda:99", "--device cuda:99: not on this machine"),
    ("--device nonsense", "--device nonsense: not on this machine"),
])
def test_a_run_that_cannot_start_says_why_in_one_line_and_leaves_no_folder(tiny, nonsense, says):
    refused(says, tiny, *nonsense.split())
    assert not Path("runs").exists()


def test_fine_tuning_takes_the_size_of_pictures_from_the_pretrained_model(tiny):
    small = ["--pretrain-steps", 1, "--sft-steps", 1, "--scenes", 4]
    trained(tiny("--name", "first", *small, "--image-size", 128))
    second = trained(tiny("--name", "second", *small, "--pretrained", "runs/first/pretrained.pt"))
    assert second.data.images.shape[1] == 128


def test_a_validation_is_of_limited_size_and_has_all_kinds_of_questions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "VAL_TEXTS", 20)
    splits = [make_world("train", 8), make_world("val", 2)]
    by_kind = sorted(splits[1].questions, key=lambda example: example.kind)
    splits[1] = splits[1]._replace(questions=by_kind * 2)
    trainer = train.start(train.parse([*TINY, "--pretrain-steps", "0"]), splits)
    asked = [example.kind for example in trainer.val.examples]
    assert len(asked) <= 20 and set(asked) == {example.kind for example in by_kind}
