"""Clips: pictures of the picture world with sounds, and what is asked about both.

    python -m extras.clips                  what guessing reaches
    python -m extras.clips --wav FILE 3     what test clip 3 sounds like

Every kind of object has a sound. A clip shows two to eight objects and plays one to three sounds,
some of objects in the picture and some of others. `sound.py` trains on clips.
"""
import argparse
import wave
from collections import defaultdict, namedtuple
from functools import cache
from random import Random

import numpy as np

from data import (COLORS, FIRST_SEED, NO_YES, OBJECTS, Example, Split, caption, draw,
                  exist_question, make_scene)
from extras.guess import guessed, percent_table
from train import VAL_SCENES

RATE, FRAMES, FRAME, BANDS = 4000, 16, 256, 32  # samples a second; frames; samples of a frame
Clip = namedtuple("Clip", "seed scene heard")  # heard: names of objects, ordered as OBJECTS
Senses = namedtuple("Senses", "images sounds")  # (N, size, size, 3) uint8, (N, 16, 32) float32


def make_clip(seed):
    """The Clip of an integer seed.

    What is heard and not seen comes from another scene with the same background: it is plausible
    there, too.
    """
    rng, scene = Random(f"sound {seed}"), make_scene(seed)
    shown = scene.objects[:rng.randint(2, len(scene.objects) - 1)]
    names = list(dict.fromkeys(o.name for o in shown))
    others = []
    while len(others) < 2:
        other = make_scene(rng.random())
        if other.theme == scene.theme:
            others = list(dict.fromkeys(o.name for o in other.objects if o.name not in names))
    seen, unseen = rng.choice(((1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (1, 1), (1, 2), (2, 1)))
    heard = rng.sample(names, min(seen, len(names))) + rng.sample(others, unseen)
    return Clip(seed, scene._replace(objects=shown), sorted(heard, key=OBJECTS.index))


def play(name, rng):
    """The sound of an object, (samples,): two tones that are struck one to four times."""
    tone, strokes = divmod(OBJECTS.index(name), 4)
    seconds = np.arange(FRAMES * FRAME) / RATE
    pitch = 200 * 2 ** (tone * 2 / 3) * rng.uniform(0.97, 1.03)  # Hz
    interval = (1.25, 1.5, 1.75, 2)[strokes]
    tones = np.sin(2 * np.pi * pitch * seconds) + np.sin(2 * np.pi * pitch * interval * seconds)
    beat = 1 / (strokes + 1)
    since = (seconds + rng.uniform(0, beat)) % beat  # seconds since the last stroke
    return rng.uniform(0.3, 1) * np.exp(-6 * since) * tones


def waveform(clip):
    """What a Clip plays, (samples,)."""
    rng = np.random.default_rng(clip.seed)
    sounds = [play(name, rng) for name in clip.heard]
    return sum(sounds) + rng.normal(0, rng.uniform(0.01, 0.1), FRAMES * FRAME)


def spectrogram(samples):
    """-> (16, 32) float32: for each frame the logarithm of the power in bands of 62.5 Hz."""
    frames = samples.reshape(FRAMES, FRAME) * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (16, 129)
    bands = power[:, 1:].reshape(FRAMES, BANDS, -1).sum(2)
    return (np.log(1 + bands) / 4 - 1).astype(np.float32)


def described(clip):
    """What is heard, then what is seen: "You hear cup, red fish left. You see top blue key"."""
    heard = []
    for name in clip.heard:
        seen = [f"{o.color} {name} {o.place}" for o in clip.scene.objects if o.name == name]
        heard.append(" and ".join(seen) or name)
    return f"You hear {', '.join(heard)}. You see {caption(clip.scene)}."


def questions_about(clip):
    """Yields (question, answer, kind): what has one right answer in a Clip."""
    objects, heard = clip.scene.objects, clip.heard
    names = [o.name for o in objects]
    both = [name for name in heard if name in names]
    silent = sorted(set(names) - set(heard))
    yield "What do you hear?", ", ".join(heard), "hear"
    if len(both) in (0, len(heard)):
        yield "Is what you hear in the image?", NO_YES[bool(both)], "in image"
    if len(both) == 1 and names.count(both[0]) == 1:
        o = objects[names.index(both[0])]
        yield "What color is the thing that you hear?", o.color, "color"
        yield "Where is the thing that you hear?", o.place, "where"
    if both and len(silent) == 1:
        yield "Which thing in the image is silent?", silent[0], "silent"


def first_clips(part, n):
    """The first n clips of "train", "val" or "test"."""
    return [make_clip(FIRST_SEED[part] + i) for i in range(n)]


@cache
def make_clips(part, n, size):
    """The same as a Split; its images are Senses."""
    clips = first_clips(part, n)
    images = np.stack([draw(clip.scene, size) for clip in clips])
    sounds = np.stack([spectrogram(waveform(clip)) for clip in clips])
    split = Split(Senses(images, sounds), [], [], [])
    for i, clip in enumerate(clips):
        split.captions.append(Example(i, None, described(clip), "caption"))
        split.questions.extend(Example(i, *question) for question in questions_about(clip))
    return split


def sound_splits(options):
    """The splits to train and to validate on."""
    train = make_clips("train", options.scenes, options.image_size)
    return train, make_clips("val", VAL_SCENES, options.image_size)


def alone_splits(options):
    """The same with rows of a picture alone, of a sound alone, and of text alone."""
    splits = []
    for part, split in zip(("train", "val"), sound_splits(options)):
        captions, questions = [*split.captions], [*split.questions]
        for i, clip in enumerate(first_clips(part, len(split.captions))):
            rng, heard = Random(f"{part} {i}"), ", ".join(clip.heard)
            present = sorted({o.name for o in clip.scene.objects})
            absent = [name for name in OBJECTS if name not in present]
            label = rng.choice(NO_YES)
            name = rng.choice(present if label == "yes" else absent)
            color = rng.choice(list(COLORS))
            captions.append(Example(i, None, caption(clip.scene), "picture alone"))
            captions.append(Example(i, None, f"You hear {heard}.", "sound alone"))
            questions.append(Example(i, exist_question(name), label, "picture alone"))
            questions.append(Example(i, "What do you hear?", heard, "sound alone"))
            questions.append(Example(i, f"What color is my {color} {name}?", color, "text alone"))
        splits.append(split._replace(captions=captions, questions=questions))
    return splits


def with_backgrounds(part, n):
    """Yields (Example, background) for guess.py: a background can be heard, too."""
    for i, clip in enumerate(first_clips(part, n)):
        background = clip.scene.theme, len(clip.heard), clip.heard[0]
        for question in questions_about(clip):
            yield Example(i, *question), background


def guesses():
    """Markdown: what can be right without a look at the objects, and without hearing."""
    train, test = with_backgrounds("train", 20_000), with_backgrounds("test", 1000)
    right = defaultdict(list)
    for e, alone, precise in guessed(train, test):
        right["the usual answer", e.kind].append(alone)
        right["sound and background", e.kind].append(precise)
        objects = make_clip(FIRST_SEED["test"] + e.picture).scene.objects
        seen = {
            "hear": [""],
            "in image": NO_YES,
            "color": [o.color for o in objects],
            "where": [o.place for o in objects],
            "silent": sorted({o.name for o in objects}),
        }[e.kind]
        right["an object that is seen", e.kind].append(seen.count(e.answer) / len(seen))
    return percent_table(right)


def write_wav(clip, path):
    """A Clip as a file to listen to."""
    samples = waveform(clip)
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((30_000 * samples / abs(samples).max()).astype("<i2").tobytes())
    print(f"wrote {path}: {', '.join(clip.heard)}")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clip", nargs="?", type=int, default=0, help="which test clip (default: 0)")
    parser.add_argument("--wav", metavar="FILE", help="write what it plays")
    options = parser.parse_args()
    if options.wav:
        write_wav(make_clip(FIRST_SEED["test"] + options.clip), options.wav)
    else:
        print(guesses())


if __name__ == "__main__":
    main()
