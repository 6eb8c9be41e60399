"""Sound as a third modality: clips, rows, masks, and runs."""
import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import FIRST_SEED, OBJECTS, Example
from driving import TINY
from extras import clips, sound, tables
from extras.sound import SOUND, Sound, SoundFirst, TextEdges
from mma import IMAGE, PAD, TEXT
from model import EOS_ID, Config, Tokenizer

SPLIT = clips.make_clips("train", 60, 64)
TOKENIZER = Tokenizer.build(example.answer for example in SPLIT.captions)
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1)
EXAMPLES = [
    SPLIT.captions[0],
    SPLIT.questions[0],
    Example(1, "Is it there?", "no", "picture alone"),
    Example(2, "What do you hear?", "cup", "sound alone"),
    Example(3, "What color is a red cup?", "red", "text alone"),
]
ALL = range(len(EXAMPLES))
SHORT = [*TINY, "--pretrain-steps", "2", "--sft-steps", "3"]


def dataset_of(trainer):
    return trainer.dataset_class(EXAMPLES, SPLIT.images, TOKENIZER, CONFIG)


def model_of(trainer):
    """A small model in which every part matters."""
    model = trainer.model_class(CONFIG, "mma").eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.fixture
def short(tmp_path, monkeypatch):
    """An empty folder, few clips, and frequent validations."""
    monkeypatch.chdir(tmp_path)
    for module, name, value in ((clips, "VAL_SCENES", 4), (sound, "CLIPS", 12),
                                (train, "EVAL_EVERY", 1), (train, "LOG_EVERY", 1)):
        monkeypatch.setattr(module, name, value)


def test_every_object_has_a_sound_that_can_be_told_from_the_others():
    rng = np.random.default_rng(0)

    def heard(name):
        levels = clips.spectrogram(clips.play(name, rng))
        return np.stack([levels.mean(0), levels.var(0)])

    sounds = np.array([[heard(name) for name in OBJECTS] for _ in range(30)])
    known = sounds[:20].mean(0)
    distance = abs(sounds[20:, :, None] - known).sum((3, 4))  # to each object
    right = distance.argmin(2) == range(len(OBJECTS))
    assert right.mean() >= 0.9


def test_questions_about_clips_have_one_right_answer_and_no_usual_one():
    asked = []
    for clip in map(clips.make_clip, range(2000)):
        assert 1 <= len(set(clip.heard)) == len(clip.heard) <= 3
        seen = [o for o in clip.scene.objects if o.name in clip.heard]
        names = {o.name for o in seen}
        right = {
            "hear": [", ".join(sorted(clip.heard, key=OBJECTS.index))],
            "in image": {"yes" if name in names else "no" for name in clip.heard},
            "color": [o.color for o in seen],
            "where": [o.place for o in seen],
            "silent": {o.name for o in clip.scene.objects if seen} - names,
        }
        for _, answer, kind in clips.questions_about(clip):
            assert [answer] == list(right[kind])
            asked.append((kind, answer))
    assert {kind for kind, _ in asked} == right.keys()
    yes, no = asked.count(("in image", "yes")), asked.count(("in image", "no"))
    assert abs(yes / (yes + no) - 0.5) < 0.04


def test_captions_say_where_a_sound_comes_from_if_it_is_seen():
    for clip in map(clips.make_clip, range(50)):
        heard = clips.described(clip).split(". You see ")[0].removeprefix("You hear ")
        for part, name in zip(heard.split(", "), clip.heard, strict=True):
            seen = [f"{o.color} {name} {o.place}" for o in clip.scene.objects if o.name == name]
            assert part == (" and ".join(seen) or name)


@pytest.mark.parametrize("trainer, both", [(Sound, [IMAGE, SOUND]), (SoundFirst, [SOUND, IMAGE])])
@pytest.mark.parametrize("edges", [Sound, TextEdges])
def test_masks_of_all_layouts_are_those_of_a_dull_loop(trainer, both, edges):
    dataset = dataset_of(trainer)
    batch = dataset.batch(ALL)
    mask = model_of(edges).mask(batch["modality"], batch["generated"], 0)[:, 0]
    T = mask.shape[1]
    for b, shown in enumerate([both, both, [IMAGE], [SOUND], []]):
        prompt, answer = map(len, dataset.rows[b])
        row = [PAD] * (T - prompt - answer) + [TEXT]  # padding, <user>
        for part in shown:
            row += [part] * 16
        row += [TEXT] * (T - len(row))
        assert batch["modality"][b].tolist() == row
        for q in range(T):
            for k in range(T):
                opened = row[q] in (IMAGE, SOUND) and k < T - answer and row[k] != row[q]
                opened &= row[k] == TEXT or edges is Sound
                allowed = (k <= q or opened) and PAD not in (row[q], row[k])
                assert mask[b, q, k] == (allowed or q == k), (b, q, k)


@pytest.mark.parametrize("trainer", [Sound, SoundFirst])
def test_a_row_in_a_mixed_batch_equals_the_row_alone_and_hears_its_own_clip(trainer):
    dataset, model = dataset_of(trainer), model_of(trainer)

    def run(rows):
        logits, _ = model(**dataset.batch(rows))
        prompts = dataset.batch(rows, prompts_only=True)
        return logits, model.generate(**prompts, max_new_tokens=4, end=EOS_ID)

    together, answers = run(ALL)
    for i in ALL:
        alone, answer = run([i])
        T = alone.shape[1]
        torch.testing.assert_close(together[i, -T:], alone[0], atol=1e-4, rtol=1e-4)
        assert (answers[i, :answer.shape[1]] == answer[0]).all()
    dataset.sounds = dataset.sounds.copy()
    dataset.sounds[2] += 1  # of the row of a sound alone
    changed = (run(ALL)[0] != together).any(2).any(1)
    assert changed.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("trainer", [Sound, SoundFirst, TextEdges])
def test_an_interrupted_run_ends_as_a_whole_one(trainer, short):
    splits = clips.alone_splits(train.parse(SHORT))
    whole = train.start(train.parse([*SHORT, "--name", "whole"]), splits, trainer)
    whole.train()
    stopped = train.start(train.parse([*SHORT, "--name", "stopped"]), splits, trainer)
    steps = iter([stopped.train_step] * 3)
    stopped.train_step = lambda: next(steps)()
    with pytest.raises(StopIteration):
        stopped.train()
    resumed = train.resume(stopped.folder, splits, trainer)
    assert (resumed.stage, resumed.step) == ("sft", 1)
    resumed.train()
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(),
                               rtol=0, atol=0)


def test_the_comparison_shares_starts_and_draws_the_answers(short, monkeypatch, capsys):
    Path("results").mkdir()
    rows = ["causal", "mma", "causal, sound first", "mma, some parts alone"]
    monkeypatch.setattr(sys, "argv", ["sound", "--rows", *rows, "--seeds", "7", "--", *SHORT])
    sound.main()
    found = list(map(json.loads, open(sound.LINES)))
    assert [line["row"] for line in found] == rows
    assert [line["data"] for line in found] == ["sound"] * 3 + ["alone"]
    assert found[0]["kinds"].keys() == {"hear", "in image", "color", "where", "silent"}
    assert tables.tables(found, sound.ROWS) in capsys.readouterr().out
    runs = [str(path) for path in Path("runs").iterdir()]
    assert len(runs) == 4 + 3 and sum("pretrained" in run for run in runs) == 3
    [causal] = [run for run in runs if "compare-causal-seed7" in run]
    [mma] = [run for run in runs if "compare-mma-seed7" in run]
    monkeypatch.setattr(sys, "argv", ["sound", "--picture", causal, mma])
    sound.main()
    assert Path("results/sound.png").stat().st_size > 10_000


def test_a_clip_can_be_listened_to(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "clip.wav")
    monkeypatch.setattr(sys, "argv", ["clips", "3", "--wav", path])
    clips.main()
    with wave.open(path) as file:
        seconds = file.getnframes() / file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert 1 < seconds < 1.1 and abs(samples).max() > 20_000
    heard = clips.make_clip(FIRST_SEED["test"] + 3).heard
    assert f"{path}: {', '.join(heard)}" in capsys.readouterr().out


def test_the_tables_in_the_results_are_what_the_command_prints():
    results = Path(sound.__file__).parent.parent / "results"
    text = (results / "README.md").read_text("utf-8")
    lines = list(map(json.loads, open(results / "sound.jsonl")))
    pairs = tables.paired_table(lines, sound.FIGURES, data="sound")
    for part in [*tables.tables(lines, sound.ROWS).split("\n\n"), pairs]:
        assert len(part) > 99 and part in text
