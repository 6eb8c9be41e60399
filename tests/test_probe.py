"""The probe finds what is in the image tokens, and nothing that is not."""
import numpy as np

from data import make_scene
from extras import probe
from model import Config, MultimodalGPT, Tokenizer


def test_overlaps_equal_a_count_of_pixels():
    for o in make_scene(3).objects:
        counts = np.zeros(16)
        for y in range(o.size):
            for x in range(o.size):
                row, column = o.y - o.size // 2 + y, o.x - o.size // 2 + x
                counts[row // 16 * 4 + column // 16] += 1
        np.testing.assert_allclose(probe.overlap(o), counts / o.size ** 2)


def test_only_single_objects_are_asked_about():
    images, examples, overlaps = probe.asked("val", 50)
    assert images.shape == (50, 64, 64, 3) and len(examples) == len(overlaps) > 40
    for example in examples:
        names = [o.name for o in make_scene(100_000_000 + example.picture).objects]
        assert names.count(example.prompt.split()[3]) == 1


def test_a_mark_in_a_layer_is_found_in_this_layer_and_after_it():
    train, test = probe.asked("train", 300), probe.asked("val", 60)
    tokenizer = Tokenizer.build([example.prompt for example in train[1] + test[1]] * 2)
    config = Config(len(tokenizer.pieces), width=32, heads=2, layers=3, vit_layers=1)
    model = MultimodalGPT(config, "mma").eval()

    def mark(block, inputs, x):
        """After the block an image token tells how much of the object it shows."""
        truth = train[2] if len(x) == len(train[2]) else test[2]
        x[:, 1:17, 0] = 10 * truth

    model.blocks[1].register_forward_hook(mark)
    shares = probe.probe((model, tokenizer, {"options": {"order": "image-first"}}), train, test)
    assert max(shares[:2]) < 0.7 and min(shares[2:]) == 1 and len(shares) == 4
