"""A third modality, sound beside the picture: what adding a modality takes. Read after `clips.py`.

    python -m extras.sound --search --rows causal mma --seeds 100   the learning rates
    python -m extras.sound --seeds 0 1 2           masks side by side, from one start a seed
    python -m extras.sound --table                 the tables of all finished runs
    python -m extras.sound --picture CAUSAL MMA    clips with the answers of two runs

A sound becomes 16 tokens, one for each frame of its spectrogram, through a linear projector of its
own. A finished run adds a line to results/sound.jsonl. A modality of your own takes five steps:

1. An id for `modality` (2, 3, ...), and as the placeholder a token id that is in no text.
2. `Split.images` holds the pictures and your data. Take yours out in `Dataset.__init__`, and put
   the placeholders into the row in `Dataset.layout`.
3. `Dataset.batch`: set the modality of the placeholders, and add your data to `images`, which
   `embed` gets as it is.
4. `MultimodalGPT.embed`: project your data, and put the tokens where the modality is yours.
5. A `Trainer` that names both classes, and splits whose captions and questions speak of both:
   `train.start(train.parse([...]), splits, YourTrainer).train()`. `train.load` and `train.resume`
   take the classes, too.
"""
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn as nn
from PIL import Image, ImageDraw, ImageOps

from data import FIRST_SEED, SIZE, Dataset, draw
from eval_pope import ask
from extras.clips import (BANDS, FRAMES, Senses, alone_splits, make_clip, make_clips,
                          sound_splits)
from extras.compare import Row, arguments, compare
from extras.figures import COLORS, GREEN, INK, PAPER, RED, font, write
from extras.tables import paired_table, tables
from mma import IMAGE
from model import IMAGE_ID, SPECIALS, MultimodalGPT
from train import Trainer, accuracy_by_kind, load

SOUND = 2  # the modality
SOUND_ID = len(SPECIALS) + 255  # stands where a sound goes: the byte 255 is in no UTF-8 text
LINES = Path("results/sound.jsonl")
CLIPS = 1000  # that are asked about
DRAWN = (1, 12, 18, 21)  # test questions of four kinds, about four clips
FIGURES = "hear", "in image", "color", "where", "silent", "all questions"
OPTIONS = "--batch-size 96 --pretrain-steps 800 --sft-steps 1600".split()


class SoundDataset(Dataset):
    """Rows with at most one picture and one sound. The images are Senses."""
    sound_first = False

    def __init__(self, examples, senses, *rest):
        self.sounds = senses.sounds
        super().__init__(examples, senses.images, *rest)

    def layout(self, example):
        prompt, answer = super().layout(example)
        start = prompt.index(IMAGE_ID)
        stop = start + self.config.image_tokens
        picture, sound = prompt[start:stop], [SOUND_ID] * FRAMES
        both = sound + picture if self.sound_first else picture + sound
        alone = {"picture alone": picture, "sound alone": sound, "text alone": []}
        return prompt[:start] + alone.get(example.kind, both) + prompt[stop:], answer

    def batch(self, indices, device="cpu", prompts_only=False):
        """As in data.py, but images and image_index are Senses: what there is, and whose it is."""
        batch = super().batch(indices, device, prompts_only)
        modality, index = batch["modality"], batch["image_index"]
        modality[batch["ids"] == SOUND_ID] = SOUND
        clips = sorted({self.examples[i].picture for i in indices})
        batch["images"] = Senses(batch["images"], torch.from_numpy(self.sounds[clips]).to(device))
        batch["image_index"] = Senses(*(index[(modality == m).any(1)] for m in (IMAGE, SOUND)))
        return batch


class SoundGPT(MultimodalGPT):
    """The model with a projector for sounds. Takes Senses in place of images and their index."""

    def __init__(self, config, attention="causal"):
        super().__init__(config, attention)
        self.sound_projector = nn.Linear(BANDS, config.width)

    def embed(self, images, ids, modality, image_index=None):
        x = super().embed(images.images, ids, modality, image_index.images)
        sound_tokens = self.sound_projector(images.sounds)[image_index.sounds]  # (M, 16, D)
        x[modality == SOUND] = sound_tokens.flatten(0, 1).to(x.dtype)
        return x


class Sound(Trainer):
    """Trains on clips."""
    model_class, dataset_class = SoundGPT, SoundDataset


# Two more rows of the comparison, and the command line.

class SoundFirst(Sound):
    """Both stages with the sound before the picture."""
    class dataset_class(SoundDataset):
        sound_first = True


class TextEdges(Sound):
    """mma with the edges to text alone: pictures and sounds are to each other as under causal."""
    class model_class(SoundGPT):
        def mask(self, modality, generated, layer):
            return super().mask(modality.clamp(max=IMAGE), generated, layer)


def ask_clips(run, part, dataset_class):
    """-> the figures of a run for its line in the results."""
    split = make_clips(part, CLIPS, run[0].config.image_size)
    answers = ask(run, split.images, split.questions, dataset_class)
    right = mean(text == example.answer for text, example in zip(answers, split.questions))
    return {"kinds": accuracy_by_kind(split.questions, answers), "accuracy": right}


def row(attention, trainer=Sound, start=Sound):
    """A Row of compare.py."""
    options = ["--attention", attention, *OPTIONS]
    return Row(options, "sound", sound_splits, trainer, start, ask_clips)


ROWS = {
    "causal": row("causal"),
    "causal, sound first": row("causal", SoundFirst, SoundFirst),
    "image": row("image"),
    "prefix": row("prefix"),
    "mma": row("mma"),
    "mma, edges to text": row("mma", TextEdges),
    "mma, some parts alone": row("mma")._replace(data="alone", splits=alone_splits),
}


def draw_clips(runs):
    """A picture of test clips with a question each, and the answers of runs."""
    split = make_clips("test", 8, SIZE)
    examples = [split.questions[i] for i in DRAWN]
    answers = {}
    for name, run in runs.items():
        answers[name] = ask(run, split.images, examples, SoundDataset)
    picture = Image.new("RGB", (20 + 300 * len(examples), 540), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, example in enumerate(examples):
        x, clip = 20 + 300 * i, make_clip(FIRST_SEED["test"] + example.picture)
        picture.paste(Image.fromarray(draw(clip.scene, 256)), (x, 20))
        levels = split.images.sounds[example.picture].T[::-1]  # low tones below
        gray = np.uint8(127 * (1 + levels.clip(-1, 1)))
        heard = Image.fromarray(gray).resize((256, 128), Image.NEAREST)
        picture.paste(ImageOps.colorize(heard, PAPER, INK, mid=COLORS[1]), (x, 286))
        pen.text((x, 422), f"plays: {', '.join(clip.heard)}", INK, font(15))
        pen.text((x, 448), example.prompt, INK, font(15))
        for j, (name, texts) in enumerate(answers.items()):
            color = GREEN if texts[i] == example.answer else RED
            pen.text((x, 474 + 26 * j), f"{name}: {texts[i]}", color, font(15))
    return picture


def main():
    """The command line."""
    parser = arguments(__doc__.split("\n")[0], ROWS)
    parser.add_argument("--picture", nargs=2, metavar=("CAUSAL", "MMA"),
                        help="draw clips with the answers of two runs")
    options = parser.parse_args()
    if options.picture:
        runs = [load(path, model_class=SoundGPT) for path in options.picture]
        write(draw_clips({run[0].attention: run for run in runs}), "results/sound.png")
    else:
        lines = compare(options, ROWS, LINES, like="causal")
        print(f"{tables(lines, ROWS)}\n\n{paired_table(lines, FIGURES, data='sound')}")


if __name__ == "__main__":
    main()
