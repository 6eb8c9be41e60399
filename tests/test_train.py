"""Training, end to end on a very small model: it learns, it is saved, it is loaded, it is evaluated."""
import json

import pytest
import torch

import eval_pope
import runs
import train

SMALL = train.Preset(width=32, heads=2, layers=2, vit_layers=1, scenes=256, batch_size=16, pretrain_steps=60,
                     sft_steps=60, muon_lr=0.02, adam_lr=0.003)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small(tmp_path, monkeypatch, cache):
    """small(*options) trains the small preset in a folder of its own and returns the Trainer."""
    monkeypatch.setitem(train.PRESETS, "tiny", SMALL)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        options = train.parse(["--cache", cache, "--val-scenes", "8", "--log-every", "10", *map(str, arguments)])
        folder = runs.new_folder(options.name, f"{options.attention}-seed{options.seed}")
        trainer = train.Trainer(options, folder, torch.device("cpu"))
        trainer.train()
        return trainer

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
    monkeypatch.setattr("sys.argv", ["eval_pope.py", "--images", "20", "--cache", cache])
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
    monkeypatch.setattr("sys.argv", ["eval_pope.py", "--images", "5", "--cache", cache, "runs/mma-seed0", "runs/mma-seed1",
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
    monkeypatch.setattr("sys.argv", ["eval_pope.py", "--images", "3", "--cache", cache, str(trainer.folder / "pretrained.pt")])
    eval_pope.main()
    assert "NEVER FINE-TUNED" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_run_and_another_seed_another(small):
    options = ["--pretrain-steps", 8, "--sft-steps", 8, "--log-every", 1, "--eval-every", 8]
    a, b, c = (small("--name", name, "--seed", seed, *options) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert (a.folder / "metrics.jsonl").read_bytes() == (b.folder / "metrics.jsonl").read_bytes()
    assert all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert (a.folder / "metrics.jsonl").read_bytes() != (c.folder / "metrics.jsonl").read_bytes()


def test_halving_a_batch_between_threads_does_not_change_its_gradient(small):
    trainer = small("--pretrain-steps", 3, "--sft-steps", 3)
    examples, rows = trainer.examples["sft"], trainer.batches["sft"][0]
    gradients = []
    for parts in ([rows], [rows[:5], rows[5:]]):
        trainer.model.zero_grad()
        for part in parts:
            trainer.backward(examples, part, examples.answer_lengths[rows].sum())
        gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, atol=1e-6, rtol=1e-4)
