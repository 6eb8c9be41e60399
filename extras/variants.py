"""Other masks, models and trainings, as small subclasses. `compare.py` and `intervene.py` use them.

Each overrides one seam: `MultimodalGPT.mask` and `positions`, `Dataset.layout` and `batch`, or a
step of the `Trainer`.
"""
from random import Random

import torch

from data import Dataset
from mma import IMAGE, PAD, TEXT, attention_mask
from model import MultimodalGPT
from train import Trainer, load_splits

OTHER = 2  # the modality of the tokens of question A, which only image tokens see


class Intervened(MultimodalGPT):
    """A model whose image tokens see something else than the question in some layers."""
    closed = swapped = ()  # layers

    def mask(self, modality, generated, layer):
        """As mma.attention_mask, (B, 1, T, T); modality may hold OTHER, for tokens of A."""
        other = modality == OTHER
        image, text = modality == IMAGE, modality == TEXT
        mask = attention_mask(modality.where(~other, TEXT), generated, self.attention)
        if layer in self.closed:  # all text but <user>
            question = text & (text.cumsum(1) > 1)
            mask = mask & ~(image[:, :, None] & question[:, None, :])[:, None]
        if not other.any():
            return mask
        after = other.cumsum(1) > 0
        hidden = text & after if layer in self.swapped else other  # from the image tokens
        blocked = image[:, :, None] & hidden[:, None, :]
        blocked |= (text & after)[:, :, None] & other[:, None, :]  # B never sees A
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

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.swapped = range(len(self.blocks))


class Scrambled(Trainer):
    """A control: as many open edges as under mma, but not to what is asked."""
    model_class, dataset_class = ScrambledModel, OtherQuestions


class CCAModel(MultimodalGPT):
    """Concentric causal attention (arXiv 2410.15926): pictures are read ring by ring, inward."""

    def positions(self, modality):
        """(B, T): the tokens of a ring share a position; the text goes on after the last ring."""
        n = self.config.image_tokens
        side = round(n ** 0.5)
        index = torch.arange(n, device=modality.device)
        row, column = index // side, index % side
        ring = torch.stack([row, column, side - 1 - row, side - 1 - column]).amin(0)  # (n,)
        image = (modality == IMAGE).long()
        text = (modality != PAD).long() - image
        text_before = text.cumsum(1) - text
        image_before = image.cumsum(1) - image
        within = ring[image_before % n] * image
        return text_before + image_before // n * (ring.max() + 1) + within

    def mask(self, modality, generated, layer):
        """(B, 1, T, T): a token sees all that is not at a later position."""
        at, real = self.positions(modality), modality != PAD
        allowed = at[:, None, :] <= at[:, :, None]
        allowed &= real[:, None, :] & real[:, :, None]
        itself = torch.eye(at.shape[1], dtype=torch.bool, device=at.device)
        return (allowed | itself)[:, None]


class CCA(Trainer):
    """Both stages under concentric causal attention."""
    model_class = CCAModel


def instructed(options):
    """The splits with captions that answer an instruction, which can stand before the picture."""
    splits = []
    for split in load_splits(options):
        captions = [e._replace(prompt="Describe the image.") for e in split.captions]
        splits.append(split._replace(captions=captions))
    return splits


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
