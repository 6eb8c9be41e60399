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
from extras import clips, compare, sound, tables
from mma import IMAGE, KINDS, PAD, TEXT
from model import EOS_ID, Config, Tokenizer

SPLIT = clips.make_clips("train", 60, 64)
TOKENIZER = Tokenizer.build(example.answer for example in SPLIT.captions)
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1)
ROWS = [  # (example, what its row shows in order, sound first)
    (SPLIT.captions[0], [IMAGE, sound.SOUND], [sound.SOUND, IMAGE]),
    (SPLIT.questions[0], [IMAGE, sound.SOUND], [sound.SOUND, IMAGE]),
    (Example(1, "Is it there?", "no", "picture alone"), [IMAGE], [IMAGE]),
    (Example(2, "What do you hear?", "cup", "sound alone"), [sound.SOUND], [sound.SOUND]),
    (Example(3, "What color is a red cup?", "red", "text alone"), [], []),
]
EXAMPLES = [example for example, *_ in ROWS]
TINY = ("--width 32 --heads 2 --layers 1 --vit-layers 1 --batch-size 8 --scenes 40 "
        "--pretrain-steps 2 --sft-steps 3 --device cpu").split()


def model_of(model_class, attention="mma"):
    """A small model in which every part matters."""
    model = model_class(CONFIG, attention).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def test_every_object_has_a_sound_that_can_be_told_from_the_others():
    rng = np.random.default_rng(0)

    def heard(name):
        return clips.spectrogram(clips.play(name, rng)).mean(0), clips.spectrogram(
            clips.play(name, rng)).var(0)

    known = {name: np.mean([heard(name) for _ in range(20)], axis=0) for name in OBJECTS}
    right = 0
    for name in OBJECTS:
        for _ in range(10):
            found = np.array(heard(name))
            right += name == min(OBJECTS, key=lambda other: abs(known[other] - found).sum())
    assert right >= 0.9 * 10 * len(OBJECTS)


def test_questions_about_clips_have_the_one_right_answer():
    asked = set()
    for seed in range(300):
        clip = clips.make_clip(seed)
        assert 1 <= len(clip.heard) <= 3 and len(set(clip.heard)) == len(clip.heard)
        seen = [o for o in clip.scene.objects if o.name in clip.heard]
        for _, answer, kind in clips.questions_about(clip):
            asked.add(kind)
            if kind == "hear":
                assert set(answer.split(", ")) == set(clip.heard)
            elif kind == "in image":
                names = {o.name for o in seen}
                assert names == (set(clip.heard) if answer == "yes" else set())
            elif kind == "silent":
                assert {o.name for o in clip.scene.objects if o not in seen} == {answer} and seen
            else:
                assert [getattr(o, {"where": "place"}.get(kind, kind)) for o in seen] == [answer]
    assert asked == {"hear", "in image", "color", "where", "silent"}


def test_whether_a_sound_is_in_the_image_has_no_usual_answer():
    answers = [answer for seed in range(2000) for _, answer, kind
               in clips.questions_about(clips.make_clip(seed)) if kind == "in image"]
    assert abs(answers.count("yes") / len(answers) - 0.5) < 0.04


def test_captions_say_where_a_sound_comes_from_if_it_is_seen():
    for seed in range(50):
        clip = clips.make_clip(seed)
        heard = clips.described(clip).split(". You see ")[0].removeprefix("You hear ")
        for part, name in zip(heard.split(", "), clip.heard):
            seen = [f"{o.color} {name} {o.place}" for o in clip.scene.objects if o.name == name]
            assert part == (" and ".join(seen) or name)


@pytest.mark.parametrize("dataset_class, order", [(sound.SoundDataset, 0),
                                                  (sound.SoundFirstDataset, 1)])
@pytest.mark.parametrize("model_class", [sound.SoundGPT, sound.TextEdgesGPT])
def test_masks_of_all_layouts_are_those_of_a_dull_loop(dataset_class, order, model_class):
    dataset = dataset_class(EXAMPLES, SPLIT.images, TOKENIZER, CONFIG)
    batch = dataset.batch(range(len(ROWS)))
    mask = model_of(model_class).mask(batch["modality"], batch["generated"], 0)[:, 0]
    T = mask.shape[1]
    for b, (example, *shown) in enumerate(ROWS):
        modality = [TEXT]
        for part in shown[order]:
            modality += [part] * 16
        modality += [TEXT] * (len(dataset.rows[b][0]) - len(modality))
        answer = [TEXT] * len(dataset.rows[b][1])
        padding = T - len(modality) - len(answer)
        row = [PAD] * padding + modality + answer
        assert batch["modality"][b].tolist() == row
        for q in range(T):
            for k in range(T):
                allowed = k <= q
                if row[q] in (IMAGE, sound.SOUND) and k < T - len(answer) and row[k] != row[q]:
                    allowed |= row[k] == TEXT or model_class is sound.SoundGPT
                allowed &= PAD not in (row[q], row[k])
                assert mask[b, q, k] == (allowed or q == k), (example, q, k)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("model_class", [sound.SoundGPT, sound.TextEdgesGPT])
def test_no_generated_token_reaches_an_earlier_position_through_any_layers(model_class, attention):
    batch = sound.SoundDataset(EXAMPLES, SPLIT.images, TOKENIZER, CONFIG).batch(range(len(ROWS)))
    sees = model_of(model_class, attention).mask(batch["modality"], batch["generated"], 0)[:, 0]
    for _ in range(8):
        sees = (sees.float() @ sees.float()) > 0
    position = torch.arange(sees.shape[1])
    earlier = position[:, None] < position  # q before k
    assert not (sees & earlier & batch["generated"][:, None]).any()


@pytest.mark.parametrize("dataset_class", [sound.SoundDataset, sound.SoundFirstDataset])
def test_a_row_alone_equals_the_row_in_a_mixed_batch(dataset_class):
    dataset = dataset_class(EXAMPLES, SPLIT.images, TOKENIZER, CONFIG)
    model = model_of(sound.SoundGPT)
    together, _ = model(**dataset.batch(range(len(ROWS))))
    answers = model.generate(**dataset.batch(range(len(ROWS)), prompts_only=True),
                             max_new_tokens=4, end=EOS_ID)
    for i in range(len(ROWS)):
        alone, _ = model(**dataset.batch([i]))
        T = alone.shape[1]
        torch.testing.assert_close(together[i, -T:], alone[0], atol=1e-4, rtol=1e-4)
        answer = model.generate(**dataset.batch([i], prompts_only=True), max_new_tokens=4,
                                end=EOS_ID)
        assert (answers[i, :answer.shape[1]] == answer[0]).all()


def test_the_model_hears_and_each_row_hears_its_own_clip():
    dataset = sound.SoundDataset(EXAMPLES, SPLIT.images, TOKENIZER, CONFIG)
    model, batch = model_of(sound.SoundGPT), dataset.batch(range(len(ROWS)))
    before, _ = model(**batch)
    clip = sorted(example.picture for example in EXAMPLES[1:]).index(EXAMPLES[3].picture)
    batch["images"].sounds[clip] += 1
    after, _ = model(**batch)
    changed = (before != after).any(2).any(1).tolist()
    assert changed == [False, False, False, True, False]  # the row of a sound alone


@pytest.mark.parametrize("trainer", [sound.Sound, sound.SoundFirst, sound.TextEdges])
def test_an_interrupted_run_ends_as_a_whole_one(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    monkeypatch.setattr(clips, "VAL_SCENES", 4)
    options = [*TINY, "--save-every", "0"]
    splits = clips.alone_splits(train.parse(options))
    whole = train.start(train.parse([*options, "--name", "whole"]), splits, trainer)
    whole.train()
    stopped = train.start(train.parse([*options, "--name", "stopped"]), splits, trainer)
    step, steps = stopped.train_step, []

    def interrupted():
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(1)
        return step()

    monkeypatch.setattr(stopped, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = train.resume(stopped.folder, splits, trainer)
    assert (resumed.stage, resumed.step) == ("sft", 1)
    resumed.train()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_the_comparison_shares_starts_and_draws_the_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for module, name, value in ((clips, "VAL_SCENES", 4), (sound, "CLIPS", 12),
                                (train, "EVAL_EVERY", 1), (train, "LOG_EVERY", 1)):
        monkeypatch.setattr(module, name, value)
    rows = ["causal", "mma", "causal, sound first", "mma, some parts alone"]
    monkeypatch.setattr(sys, "argv", ["sound", "--rows", *rows, "--seeds", "7", "--", *TINY])
    sound.main()
    found = list(map(json.loads, open(sound.LINES)))
    assert [line["row"] for line in found] == rows
    assert [line["data"] for line in found] == ["sound"] * 3 + ["alone"]
    assert found[0]["kinds"].keys() == {"hear", "in image", "color", "where", "silent"}
    assert tables.tables(found, sound.ROWS) in capsys.readouterr().out
    runs = sorted(str(path) for path in Path("runs").iterdir())
    assert len(runs) == 4 + 3 and sum("pretrained" in run for run in runs) == 3
    causal, mma = (next(run for run in runs if f"compare-{name}-seed7" in run)
                   for name in ("causal", "mma"))
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
