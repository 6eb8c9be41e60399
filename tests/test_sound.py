"""Sound as a third modality: clips, rows of tokens, and runs."""
import json

import numpy as np
import pytest
import torch

from data import OBJECTS, Tokenizer
from driving import TINY
from extras import sound
from extras.sound import FRAME, FRAMES, RATE, SOUND, TextEdges, make_clip, spectrogram
from mma import IMAGE, PAD, TEXT
from model import Config

PART = sound.make_clips("train", 12, 64)
TOKENIZER = Tokenizer.build(example.answer for example in PART.captions)
CONFIG = Config(len(TOKENIZER.pieces), width=32, heads=2, layers=3, vit_layers=1)


@pytest.mark.parametrize("hertz, frame", [(100, 0), (1100, 7), (1900, 15)])
def test_a_tone_is_seen_in_the_spectrogram_when_and_where_it_is(hertz, frame):
    samples = np.zeros(FRAMES * FRAME)
    playing = slice(frame * FRAME, (frame + 1) * FRAME)
    samples[playing] = np.sin(2 * np.pi * hertz * np.arange(FRAME) / RATE)
    levels = spectrogram(samples)
    assert np.unravel_index(levels.argmax(), levels.shape) == (frame, hertz * 32 // 2000)


def test_every_object_has_a_sound_that_can_be_told_from_the_others():
    rng = np.random.default_rng(0)

    def heard(name):
        levels = spectrogram(sound.play(name, rng))
        return np.stack([levels.mean(0), levels.var(0)])

    sounds = np.array([[heard(name) for name in OBJECTS] for _ in range(30)])
    known = sounds[:20].mean(0)
    distance = abs(sounds[20:, :, None] - known).sum((3, 4))  # to each object
    assert (distance.argmin(2) == range(len(OBJECTS))).mean() >= 0.9


def test_questions_and_captions_say_what_is_heard_and_seen():
    asked = []
    for clip in map(make_clip, range(1000)):
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
        for _, answer, kind in sound.questions_about(clip):
            assert [answer] == list(right[kind])
            asked.append((kind, answer))
        heard = sound.described(clip).split(". You see ")[0]
        assert all(f"{o.color} {o.name} {o.place}" in heard for o in seen)
    assert {kind for kind, _ in asked} == right.keys()
    yes, no = asked.count(("in image", "yes")), asked.count(("in image", "no"))
    assert abs(yes / (yes + no) - 0.5) < 0.05


def test_a_row_in_a_batch_equals_the_row_alone_and_hears_its_own_clip():
    examples = [PART.captions[3], *PART.questions[:4]]
    dataset = sound.SoundDataset(examples, PART.images, TOKENIZER, CONFIG)
    model = sound.SoundGPT(CONFIG, "mma").eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)  # the blocks of a fresh model do nothing

    batch = dataset.batch(range(5))
    together, T = model(**batch), batch["ids"].shape[1]
    for i, (prompt, answer) in enumerate(dataset.rows):
        length = len(prompt + answer)
        row = [TEXT] + [IMAGE] * 16 + [SOUND] * 16 + [TEXT] * (length - 33)
        assert batch["modality"][i].tolist() == [PAD] * (T - length) + row
        alone = model(**dataset.batch([i]))
        torch.testing.assert_close(together[i, -length:], alone[0], atol=1e-4, rtol=1e-4)
    dataset.sounds = dataset.sounds.copy()
    dataset.sounds[3] += 1  # of the caption's clip
    changed = (model(**dataset.batch(range(5))) != together).any(2).any(1)
    assert changed.tolist() == [True] + [False] * 4


def test_without_edges_between_picture_and_sound_both_still_see_the_question():
    row = torch.tensor([[TEXT, IMAGE, SOUND, TEXT, TEXT]])
    mask = TextEdges.model_class(CONFIG, "mma").mask(row, row < 0)[0, 0]  # nothing is generated
    drawn = ["".join(".#"[seen] for seen in looks) for looks in mask.tolist()]
    assert drawn == ["#....", "##.##", "#####", "####.", "#####"]


def test_rows_are_compared_on_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("VAL_SCENES", 4), ("CLIPS", 12)):
        monkeypatch.setattr(sound, name, value)
    words = [*TINY, "--pretrain-steps", "2", "--sft-steps", "2"]
    monkeypatch.setattr("sys.argv", ["sound", "mine", "--seeds", "7", "--", *words])
    sound.main()
    lines = [json.loads(line) for line in open("results/mine.jsonl")]
    assert [(line["row"], line["rate"]) for line in lines] == [("causal", 0.005), ("mma", 0.01)]
    assert lines[0]["kinds"].keys() == {"hear", "in image", "color", "where", "silent"}
    assert "| mma " in capsys.readouterr().out
