"""Training, end to end on a very small model: it learns, it is saved, it is loaded, it is evaluated."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval_pope
import options
import runs
import train

SMALL = options.Preset(width=32, heads=2, layers=2, vit_layers=1, scenes=256, batch_size=16, pretrain_steps=60,
                     sft_steps=60, muon_lr=0.02, adam_lr=0.003)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small(tmp_path, monkeypatch, cache):
    """small(*options) trains the small preset in a folder of its own; small.set_up(*options) only prepares it."""
    monkeypatch.setitem(train.PRESETS, "tiny", SMALL)
    monkeypatch.chdir(tmp_path)

    def set_up(*arguments):
        common = ["--cache", cache, "--device", "cpu", "--val-scenes", "8", "--log-every", "10", "--float32"]
        return train.set_up(train.parse([*common, *map(str, arguments)]))

    def run(*arguments):
        trainer = set_up(*arguments)
        trainer.train()
        return trainer

    run.set_up = set_up
    return run


def lines(folder):
    return [json.loads(line) for line in open(folder / "metrics.jsonl")]


def test_both_stages_learn_and_the_checkpoint_answers_pope(small, capsys, monkeypatch, cache):
    trainer = small("--eval-every", 30)
    for stage in train.STAGES:
        losses = [line["loss"] for line in lines(trainer.folder) if line["stage"] == stage and "loss" in line]
        assert len(losses) == 6 and losses[-1] < 0.7 * losses[0], stage
    model, tokenizer, checkpoint = runs.load(trainer.folder)
    assert checkpoint["stage"] == "sft" and checkpoint["attention"] == "mma" and checkpoint["training"] is None
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    monkeypatch.setattr("sys.argv", ["eval_pope.py", "--scenes", "20", "--cache", cache])
    eval_pope.main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("random", "popular", "adversarial", "accuracy", "yes-ratio", "relation"))
    for split in eval_pope.SPLITS:
        asked = [json.loads(line) for line in open(trainer.folder / f"pope_{split}_questions.jsonl")]
        given = [json.loads(line) for line in open(trainer.folder / f"pope_{split}_answers.jsonl")]
        assert len(asked) == len(given) == 120 and set(asked[0]) == {"question_id", "image", "text", "label"}
        assert all(a["question_id"] == g["question_id"] and a["text"] == g["question"] for a, g in zip(asked, given))
        score = eval_pope.score([g["answer"] for g in given], [a["label"] for a in asked])
        row = next(line for line in printed.splitlines() if line.startswith(f"| {split} "))
        assert f"{100 * score['accuracy']:.1f}" in row  # the table is what the files say


def test_several_runs_make_one_table_with_spread(small, capsys, monkeypatch, cache):
    for seed in (0, 1):
        small("--seed", seed, "--pretrain-steps", 2, "--sft-steps", 2)
    small("--attention", "causal", "--pretrain-steps", 2, "--sft-steps", 0)
    monkeypatch.setattr("sys.argv", ["eval_pope.py", "--scenes", "5", "--cache", cache, "runs/mma-seed0", "runs/mma-seed1",
                                     "runs/causal-seed0"])
    eval_pope.main()
    printed = capsys.readouterr().out
    assert "| mma " in printed and "±" in printed and "| 2 " in printed


def test_fine_tuning_from_a_pretrained_file_starts_from_its_weights(small):
    first = small("--sft-steps", 0, "--pretrain-steps", 5)
    second = small("--pretrained", first.folder / "pretrained.pt", "--sft-steps", 0, "--attention", "causal", "--seed", 1)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_an_evaluation_of_a_model_that_saw_no_fine_tuning_says_so(small, capsys, monkeypatch, cache):
    trainer = small("--pretrain-steps", 2, "--sft-steps", 1)
    path = trainer.folder / "pretrained.pt"
    monkeypatch.setattr("sys.argv", ["eval_pope.py", "--scenes", "3", "--cache", cache, str(path)])
    eval_pope.main()
    assert (trainer.folder / "pope_pretrained_random_answers.jsonl").exists()  # not those of model.pt
    assert "NEVER FINE-TUNED" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_run_and_another_seed_another(small):
    arguments = ["--pretrain-steps", 8, "--sft-steps", 8, "--log-every", 1, "--eval-every", 8]
    a, b, c = (small("--name", name, "--seed", seed, *arguments) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert (a.folder / "metrics.jsonl").read_bytes() == (b.folder / "metrics.jsonl").read_bytes()
    assert all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert (a.folder / "metrics.jsonl").read_bytes() != (c.folder / "metrics.jsonl").read_bytes()


def test_training_in_bfloat16_follows_training_in_float32(small, monkeypatch):
    losses = []
    for name in ("float32", "bfloat16"):
        losses.append([line["loss"] for line in lines(small("--name", name, "--eval-every", 60).folder) if "loss" in line])
        monkeypatch.setattr(runs, "autocast", lambda device, wanted=True: torch.autocast("cpu", torch.bfloat16))
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


def test_halving_a_batch_between_threads_does_not_change_its_gradient(small):
    trainer = small("--pretrain-steps", 3, "--sft-steps", 3)
    examples, rows = trainer.examples["sft"], trainer.batches["sft"][0]
    answers, gradients = examples.answer_lengths[rows].sum(), []
    for parts in ([rows], [rows[:5], rows[5:]]):
        trainer.model.zero_grad()
        list(trainer.pool.map(lambda part: trainer.backward(examples, part, answers), parts))
        gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()
                          if not name.startswith("vit.")})  # frozen in this stage
    assert len(gradients[0]) > 15
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, atol=1e-6, rtol=1e-4)


def test_a_stopped_run_that_is_resumed_ends_as_one_that_was_never_stopped(small):
    arguments = ["--pretrain-steps", 7, "--sft-steps", 7, "--log-every", 3, "--eval-every", 5]
    whole = small("--name", "whole", *arguments)
    for moment in (1, 5, 9, 13):
        trainer = small.set_up("--name", f"stopped-{moment}", *arguments)
        step, taken = trainer.train_step, []

        def counted(*args):
            taken.append(1)
            trainer.stop = len(taken) == moment  # what Ctrl-C does
            return step(*args)

        trainer.train_step = counted
        with pytest.raises(SystemExit):
            trainer.train()
        resumed = train.set_up(train.parse(["--resume", str(trainer.folder)]))
        resumed.train()
        assert (resumed.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, resumed.model.state_dict()[name]), (moment, name)
    with pytest.raises(ValueError, match="that run is finished"):
        train.set_up(train.parse(["--resume", str(whole.folder)]))


def test_one_and_two_processes_train_alike(tmp_path, cache):
    """torchrun with 1 and 2 processes (gloo): the same losses, step by step, and the same weights in the end."""
    program = str(Path(train.__file__))
    arguments = ["--scenes", "64", "--val-scenes", "4", "--batch-size", "6", "--pretrain-steps", "4", "--sft-steps", "4",
                 "--log-every", "1", "--eval-every", "4", "--cache", cache, "--device", "cpu", "--float32"]
    losses, weights = [], []
    for n in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}", "--standalone", program]
        done = subprocess.run([*command, *arguments, "--name", f"n{n}"], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=170)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([line["loss"] for line in lines(tmp_path / "runs" / f"n{n}") if "loss" in line])
        weights.append(runs.load(tmp_path / "runs" / f"n{n}")[0].state_dict())
    assert len(losses[0]) == len(losses[1]) == 8
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).norm() < 0.05 * weight.norm() + 1e-3, name


def test_ddp_averages_to_the_gradient_of_the_whole_batch(small, monkeypatch):
    """What each of two processes adds, averaged as DDP does, is the gradient of one process on the whole batch."""
    trainer = small("--pretrain-steps", 2, "--sft-steps", 2)
    examples, rows = trainer.examples["sft"], trainer.batches["sft"][0]
    answers, gradients = examples.answer_lengths[rows].sum(), []
    for world in (1, 2):
        trainer.world = world
        trainer.model.zero_grad()
        for part in [rows] if world == 1 else [rows[:9], rows[9:]]:
            trainer.backward(examples, part, answers)
        gradients.append(trainer.model.token.weight.grad / world)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("arguments, says", [
    (["--sft-steps", "-1"], "--sft-steps: -1 is below 0"), (["--batch-size", "0"], "--batch-size: 0 is below 1"),
    (["--attention", "both"], "invalid choice: 'both'"), (["--seed", "x"], "--seed: invalid number value: 'x'"),
    (["--resume", "runs/a", "--seed", "1"], "--resume takes no other option"),
])
def test_nonsense_options_are_named_and_end_with_code_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.parse(arguments)
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_run_never_writes_into_the_folder_of_another(small, tmp_path):
    first, second = (small("--pretrain-steps", 0, "--sft-steps", 0) for _ in range(2))
    assert first.folder.name == "mma-seed0" and second.folder.name == "mma-seed0-2"
    with pytest.raises(ValueError, match="--name mma-seed0: runs/mma-seed0 exists already"):
        small("--name", "mma-seed0")


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays(small):
    trainer = small.set_up("--pretrain-steps", 9, "--save-every", 0, "--log-every", 100)
    step = trainer.train_step
    trainer.train_step = lambda progress: step(progress) * (float("nan") if trainer.step == 4 else 1)
    with pytest.raises(ValueError, match="the loss is nan at step 5 of pretrain"):
        trainer.train()
    model, _, checkpoint = runs.load(trainer.folder)
    assert checkpoint["training"]["step"] == 4 and all(w.isfinite().all() for w in model.state_dict().values())


def test_a_run_that_cannot_begin_leaves_its_name_free(small, tmp_path):
    for wrong in (["--scenes", 9], ["--batch-size", 1], ["--pretrained", "nowhere.pt"]):
        with pytest.raises((ValueError, FileNotFoundError), match="batch|nowhere.pt"):
            small.set_up("--name", "mine", *wrong)
    assert small("--name", "mine", "--pretrain-steps", 0, "--sft-steps", 0).folder.name == "mine"


def test_only_a_pretrained_model_is_fine_tuned(small):
    done = small("--pretrain-steps", 1, "--sft-steps", 1)
    with pytest.raises(ValueError, match="not fresh from pre-training"):
        small("--pretrained", done.folder)


def test_a_checkpoint_that_hides_code_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"format": runs.FORMAT, "trap": Trap()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: not a whole checkpoint"):
        runs.load(tmp_path)
    assert not marker.exists()


def test_checkpoints_that_do_not_fit_say_what_does_not(small):
    trainer = small("--pretrain-steps", 0, "--sft-steps", 0)
    path = trainer.folder / "model.pt"
    whole = torch.load(path, weights_only=True)

    def refused(says, **change):
        torch.save({**whole, **change}, path)
        with pytest.raises(ValueError, match=says):
            runs.load(path)

    refused("vocab_size .* the vocabulary has", words=whole["words"][:-1])
    refused("width is 1000000", config={**whole["config"], "width": 10**6})
    refused("weight .*: the configuration wants", config={**whole["config"], "layers": 3})
    refused("checkpoint format 1 is wanted", format=99)
    refused("attention 'both'", attention="both")
    torch.save({name: value for name, value in whole.items() if name != "order"}, path)
    with pytest.raises(ValueError, match="it has no 'order'"):
        runs.load(path)
    torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        runs.load(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        runs.load(trainer.folder / "other.pt")
