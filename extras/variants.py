"""Other masks, trainings, captions and questions. `compare.py` and `intervene.py` use them.

Each class overrides one seam: `MultimodalGPT.mask` and `positions`, `Dataset.layout` and `batch`,
or a step of the `Trainer`.
"""
from functools import partial
from random import Random

import torch

from data import PLACES, Dataset
from mma import IMAGE, PAD, TEXT, attention_mask
from model import MultimodalGPT
from train import Trainer, load_splits

OTHER = 2  # the modality of the tokens of question A, which only image tokens see


class Intervened(MultimodalGPT):
    """A model whose image tokens see something else than the question in some layers."""
    closed = swapped = ()  # layers

    def mask(self, modality, generated, layer):
        """As mma.attention_mask, (B, 1, T, T); modality may hold OTHER, for tokens of A."""
        other, text = modality == OTHER, modality == TEXT
        b = text & (other.cumsum(1) > 0)  # all text from question B on
        hidden = b if layer in self.swapped else other  # from the image tokens
        if layer in self.closed:
            hidden = hidden | (text & (text.cumsum(1) > 1))  # all text but <user>
        blocked = (modality == IMAGE)[:, :, None] & hidden[:, None, :]
        blocked |= b[:, :, None] & other[:, None, :]  # B never sees A
        mask = attention_mask(modality.where(~other, TEXT), generated, self.attention)
        return mask & ~blocked[:, None]

    def positions(self, modality):
        """(B, T): A and B begin at the same position, as if each stood alone."""
        other = modality == OTHER
        alone = super().positions(modality.where(~other, PAD))
        return super().positions(modality).where(other, alone)


class TwoQuestions(Dataset):
    """Examples whose prompt is question A and question B in a row; A's tokens become OTHER."""

    def batch(self, indices, device="cpu", prompts_only=False):
        batch = super().batch(indices, device, prompts_only)
        [mark] = self.tokenizer.encode("?")
        is_mark = (batch["ids"] == mark).long()
        first = is_mark.cumsum(1) == is_mark  # up to A's question mark
        modality = batch["modality"]
        after_picture = (modality == IMAGE).cumsum(1) == self.config.image_tokens
        batch["modality"] = modality.masked_fill(first & after_picture & (modality == TEXT), OTHER)
        return batch


class OtherQuestions(TwoQuestions):
    """Before each question stands one about another picture, in other words."""

    def __init__(self, examples, *rest):
        self.all = examples
        super().__init__(examples, *rest)

    def layout(self, example):
        rng, other = Random(f"{example.picture} {example.prompt}"), example
        while other.picture == example.picture or other.prompt == example.prompt:
            other = rng.choice(self.all)
        return super().layout(example._replace(prompt=other.prompt + example.prompt))


class ScrambledModel(Intervened):
    """Image tokens see the other question alone, and the text sees the true one alone."""
    swapped = range(99)  # every layer


class Scrambled(Trainer):
    """A control: as many open edges as under mma, but not to what is asked."""
    model_class, dataset_class = ScrambledModel, OtherQuestions


class CCAModel(MultimodalGPT):
    """Concentric causal attention (arXiv 2410.15926): pictures are read ring by ring, inward."""

    def positions(self, modality):
        """(B, T): the tokens of a ring share a position; the text goes on after the last ring."""
        n = self.config.image_tokens
        line = torch.arange(round(n ** 0.5), device=modality.device)
        to_border = line.minimum(line.flip(0))
        ring = to_border[:, None].minimum(to_border).flatten()  # (n,)
        text, image = (modality == TEXT).long(), (modality == IMAGE).long()
        text_before = text.cumsum(1) - text
        image_before = image.cumsum(1) - image
        pictures_before = image_before // n
        within = ring[image_before % n] * image
        return text_before + pictures_before * (ring.max() + 1) + within

    def mask(self, modality, generated, layer):
        """(B, 1, T, T): a token sees all that is not at a later position."""
        at = self.positions(modality)
        later = at[:, None, :] > at[:, :, None]
        return attention_mask(modality, generated, "image") & ~later[:, None]


class CCA(Trainer):
    """Both stages under concentric causal attention."""
    model_class = CCAModel


class DOT(Trainer):
    """Dual-order training, as in the MMA paper: in both stages the text before the picture for half
    of the steps, then the picture before the text."""

    def begin(self, stage):
        super().begin(stage)
        self.picture_first = self.data
        self.text_first = Dataset(self.data.examples, self.data.images, self.tokenizer,
                                  self.model.config, "text-first")

    def train_step(self):
        self.data = self.text_first if 2 * self.step < self.steps else self.picture_first
        return super().train_step()


def instructed(options):
    """The splits with captions that answer an instruction, which can stand before the picture."""
    splits = []
    for split in load_splits(options):
        captions = [e._replace(prompt="Describe the image.") for e in split.captions]
        splits.append(split._replace(captions=captions))
    return splits


def one_way(split, order=list):
    """Captions that say what is at each place, and never where a thing is: "top-left red fish".

    order: function that sorts the phrases.
    """
    captions = []
    for example in split.captions:
        phrases = [phrase.split() for phrase in example.answer.split(", ")]
        phrases = [sorted(words, key=lambda word: word not in PLACES) for words in phrases]
        text = ", ".join(" ".join(words) for words in order(phrases))
        captions.append(example._replace(answer=text))
    return split._replace(captions=captions)


def in_order(split):
    """The same from the top left to the bottom right."""
    return one_way(split, lambda phrases: sorted(phrases, key=lambda words: PLACES.index(words[0])))


def once(split, kind):
    """At most one question of a kind about each picture."""
    first = {}
    for e in split.questions:
        first.setdefault((e.picture, e.kind), e)
    kept = [e for e in split.questions if e.kind != kind or e is first[e.picture, kind]]
    return split._replace(questions=kept)


# By the name in `compare.py --mix`: Split -> Split.
MIXES = {"one-way": one_way, "in-order": in_order, "one-exist": partial(once, kind="exist"),
         "one-exist_color": partial(once, kind="exist_color")}
