"""Another mask and other captions. Rows of `compare.py` use them.

Each class overrides one thing: `MultimodalGPT.mask` and `positions`, or the data of a `Trainer`.
"""
import torch

from data import PLACES
from mma import IMAGE, TEXT, attention_mask
from model import MultimodalGPT
from train import Trainer


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

    def mask(self, modality, generated):
        """(B, 1, T, T): a token sees all that is not at a later position."""
        at = self.positions(modality)
        later = at[:, None, :] > at[:, :, None]
        return attention_mask(modality, generated, "image") & ~later[:, None]


class CCA(Trainer):
    """Both stages under concentric causal attention."""
    model_class = CCAModel


class OneWay(Trainer):
    """Captions that say what is at each place, and never where a thing is."""

    def __init__(self, options, folder, model, tokenizer, parts):
        super().__init__(options, folder, model, tokenizer, [one_way(part) for part in parts])


def one_way(part):
    """The same Part with the place first in each phrase: "top-left red fish, left blue cup"."""
    captions = []
    for example in part.captions:
        phrases = []
        for phrase in example.answer.split(", "):
            place_first = sorted(phrase.split(), key=lambda word: word not in PLACES)
            phrases.append(" ".join(place_first))
        captions.append(example._replace(answer=", ".join(phrases)))
    return part._replace(captions=captions)
