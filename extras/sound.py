"""A third modality, sound beside the picture: what adding a modality takes.

    python -m extras.sound sound                                print the table of results/
    python -m extras.sound mine --rows causal mma --seeds 0 1   as in compare.py

A clip is a picture of two to eight objects, and a sound. Every kind of object has its own sound;
a clip plays one to three, some of objects in the picture and some of others. The sound becomes 16
tokens, one per frame of its spectrogram. A modality of your own takes the same five steps:

1. An id for `modality` (2, 3, ...), and as the placeholder a token id that is in no text.
2. `Part.images` holds the pictures and your data. Take yours out in `Dataset.__init__`, and put
   the placeholders into the row in `Dataset.layout`.
3. `Dataset.batch`: set the modality of the placeholders, and add your data to `images`, which
   `embed` gets as it is.
4. `MultimodalGPT.embed`: project your data, and put the tokens where the modality is yours.
5. A `Trainer` that names both classes, and Parts whose captions and questions speak of both:
   `train.start(train.parse(), parts, YourTrainer).train()`. `train.load` takes the model class.
"""
from collections import namedtuple
from functools import cache
from random import Random

import numpy as np
import torch
import torch.nn as nn

from data import (FIRST_SEED, IMAGE_ID, NO_YES, OBJECTS, SPECIALS, Dataset, Example, Part, caption,
                  draw, make_scene)
from eval_pope import ask
from extras.compare import Row, compare
from mma import IMAGE
from model import MultimodalGPT
from train import VAL_SCENES, Trainer, accuracy_by_kind

SOUND = 2  # the modality
SOUND_ID = len(SPECIALS) + 255  # stands where a sound goes: the byte 255 is in no UTF-8 text
FRAMES, FRAME, RATE = 16, 256, 4000  # frames of a sound; samples of a frame, and of a second
BANDS = 32  # of the spectrum of a frame
CLIPS = 1000  # that are asked about
Clip = namedtuple("Clip", "seed scene heard")  # heard: names of objects, ordered as OBJECTS
Senses = namedtuple("Senses", "images sounds")  # (N, size, size, 3) uint8, (N, 16, 32) float32


# Clips: what is in the data.

def make_clip(seed):
    """The Clip of an integer seed. What is heard and not seen is usual on this background, too."""
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
    interval = (1.25, 1.5, 1.75, 2)[strokes]
    seconds = np.arange(FRAMES * FRAME) / RATE
    pitch = 200 * 2 ** (tone * 2 / 3) * rng.uniform(0.97, 1.03)  # Hz
    phase = 2 * np.pi * pitch * seconds
    beat = 1 / (strokes + 1)  # seconds
    since = (seconds + rng.uniform(0, beat)) % beat  # seconds since the last stroke
    loudness = rng.uniform(0.3, 1) * np.exp(-6 * since)
    return loudness * (np.sin(phase) + np.sin(interval * phase))


def waveform(clip):
    """What a Clip plays, (samples,)."""
    rng = np.random.default_rng(clip.seed)
    sounds = [play(name, rng) for name in clip.heard]
    return sum(sounds) + rng.normal(0, rng.uniform(0.01, 0.1), FRAMES * FRAME)


def spectrogram(samples):
    """-> (FRAMES, BANDS) float32: the logarithm of the power in bands of 62.5 Hz."""
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
    yield "What do you hear?", ", ".join(clip.heard), "hear"
    names = {o.name for o in clip.scene.objects}
    sources = [o for o in clip.scene.objects if o.name in clip.heard]
    both = {o.name for o in sources}  # heard and seen
    if len(both) in (0, len(clip.heard)):
        yield "Is what you hear in the image?", NO_YES[bool(both)], "in image"
    if len(sources) == 1:
        yield "What color is the thing that you hear?", sources[0].color, "color"
        yield "Where is the thing that you hear?", sources[0].place, "where"
    if both and len(names - both) == 1:
        yield "Which thing in the image is silent?", *(names - both), "silent"


@cache
def make_clips(name, n, size):
    """The first n clips of "train", "val" or "test" as a Part; its images are Senses."""
    clips = [make_clip(FIRST_SEED[name] + i) for i in range(n)]
    images = np.stack([draw(clip.scene, size) for clip in clips])
    sounds = np.stack([spectrogram(waveform(clip)) for clip in clips])
    part = Part(Senses(images, sounds), [], [], [])
    for i, clip in enumerate(clips):
        part.captions.append(Example(i, None, described(clip), "caption"))
        part.questions.extend(Example(i, *question) for question in questions_about(clip))
    return part


def sound_parts(options):
    """The Parts to train and to validate on."""
    numbers = {"train": options.scenes, "val": VAL_SCENES}
    return [make_clips(name, n, options.image_size) for name, n in numbers.items()]


# The third modality: the five steps.

class SoundDataset(Dataset):
    """Rows with one picture and one sound after it. The images are Senses."""

    def __init__(self, examples, senses, *rest):
        self.sounds = senses.sounds
        super().__init__(examples, senses.images, *rest)

    def layout(self, example):
        prompt, answer = super().layout(example)
        stop = prompt.index(IMAGE_ID) + self.config.image_tokens
        return prompt[:stop] + [SOUND_ID] * FRAMES + prompt[stop:], answer

    def batch(self, indices, device="cpu", prompts_only=False):
        """As in data.py, but the images are Senses."""
        batch = super().batch(indices, device, prompts_only)
        batch["modality"][batch["ids"] == SOUND_ID] = SOUND
        clips = sorted({self.examples[i].picture for i in indices})  # each once, as the pictures
        sounds = torch.from_numpy(self.sounds[clips]).to(device)
        return batch | {"images": Senses(batch["images"], sounds)}


class SoundGPT(MultimodalGPT):
    """The model with a projector for sounds. Takes Senses in place of images."""

    def __init__(self, config, attention="causal"):
        super().__init__(config, attention)
        self.sound_projector = nn.Linear(BANDS, config.width)

    def embed(self, images, ids, modality, image_index=None):
        x = super().embed(images.images, ids, modality, image_index)
        sound_tokens = self.sound_projector(images.sounds)[image_index]  # (B, FRAMES, D)
        x[modality == SOUND] = sound_tokens.flatten(0, -2).to(x.dtype)
        return x


class Sound(Trainer):
    """Trains on clips."""
    model_class, dataset_class = SoundGPT, SoundDataset


class TextEdges(Sound):
    """mma with the edges to text alone: pictures and sounds are to each other as under causal."""
    class model_class(SoundGPT):
        def mask(self, modality, generated):
            return super().mask(modality.clamp(max=IMAGE), generated)


WORDS = "--sft-steps 1200 --attention"
ROWS = {
    "causal": Row(f"{WORDS} causal", 0.005, Sound),
    "image": Row(f"{WORDS} image", 0.005, Sound),
    "prefix": Row(f"{WORDS} prefix", 0.005, Sound),
    "mma": Row(f"{WORDS} mma", 0.01, Sound),
    "mma-edges-to-text": Row(f"{WORDS} mma", 0.01, TextEdges),
}
FIGURES = ("hear", "in image", "color", "where", "silent", "all questions")


def ask_clips(run, name):
    """The figures of a run for its line in the results. name: "val" or "test"."""
    part = make_clips(name, CLIPS, run[0].config.image_size)
    given = ask(run, part, SoundDataset)
    right = [text == example.answer for example, text in given]
    return {"kinds": accuracy_by_kind(*zip(*given))[0], "accuracy": sum(right) / len(right)}


def main():
    """The command line."""
    compare(ROWS, ask_clips, __doc__, sound_parts, FIGURES)


if __name__ == "__main__":
    main()
