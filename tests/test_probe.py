"""The probe finds what is in the image tokens, and nothing that is not."""
import numpy as np
import torch

from data import make_scene
from extras import probe
from model import Config, MultimodalGPT, Tokenizer


def test_overlaps_equal_a_count_of_pixels():
    for o in make_scene(3).objects:
        mask = np.zeros((64, 64))
        left, top = o.x - o.size // 2, o.y - o.size // 2
        mask[top:top + o.size, left:left + o.size] = 1
        patches = mask.reshape(4, 16, 4, 16).sum((1, 3)).reshape(-1)
        np.testing.assert_allclose(probe.overlap(o, 4), patches / o.size ** 2)


def test_only_single_objects_are_asked_about():
    images, examples, overlaps = probe.asked("val", 50)
    assert images.shape == (50, 64, 64, 3) and len(examples) == len(overlaps) > 40
    for example in examples:
        names = [o.name for o in make_scene(100_000_000 + example.picture).objects]
        assert sum(example.prompt.split()[3] == name for name in names) == 1


def test_a_mark_in_a_layer_is_found_in_this_layer_and_after_it():
    train, test = probe.asked("train", 300), probe.asked("val", 60)
    words = {word for _, examples, _ in (train, test) for e in examples for word in [e.prompt]}
    tokenizer = Tokenizer.build([*words] * 2)
    config = Config(len(tokenizer.pieces), width=32, heads=2, layers=3, vit_layers=1)

    class Marked(torch.nn.Module):
        """A block after which an image token tells how much of the object it shows."""

        def forward(self, x, mask=None, cache=None):
            truth = train[2] if len(x) == len(train[2]) else test[2]
            x = x.clone()
            x[:, 1:17, 0] = 10 * torch.from_numpy(truth).float()
            return x

    model = MultimodalGPT(config, "mma").eval()
    model.blocks[1] = Marked()
    shares = probe.probe((model, tokenizer, {"options": {"order": "image-first"}}), train, test)
    assert max(shares[:2]) < 0.7 and min(shares[2:]) == 1 and len(shares) == 4
