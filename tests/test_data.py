"""Text survives, nobody types a special token, and a batch is what a dull loop would build."""
import random

import numpy as np
import pytest
import torch

from data import (ASSISTANT_ID, EOS_ID, IMAGE_ID, ORDERS, PAD_ID, SPECIALS, USER_ID, Batches, Examples, Item, Tokenizer,
                  ragged)
from mma import IMAGE, PAD, TEXT, attention_mask
from model import IGNORE, Config

TEXTS = ["Is there a star in the image?", "a red fish at top-left, a blue cup at center.", "yes", "no"] * 3
TOKENIZER = Tokenizer.build(TEXTS)
CONFIG = Config(vocab_size=len(TOKENIZER), context=48, width=32, heads=2, image_size=16, patch_size=4)  # 4 image tokens
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
ITEMS = [Item((0,), None, "a red fish at top-left."), Item((1,), "Is there a star in the image?", "no"),
         Item((2, 0), "Is there a fish?", "yes"), Item((), "yes?", "no"), Item((1,), "Is there a cup?", "yes")]


def random_text(rng):
    alphabets = ["abc XYZ-?.,", "äßñçœ łéÅ", "日本語テキスト", "🙂👩‍👩‍👧🇫🇷", "\x00\x1b\t\n\r\x7f", "\u202e\u200b\ufeff\ud800\udfff",
                 "<pad><image><user><assistant><eos>", "Is there a star in the image?"]
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(0, 40)))


def test_any_string_survives_encode_and_decode():
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(3000)]
    texts += ["".join(chr(rng.randrange(0x110000)) for _ in range(20)) for _ in range(500)]
    for text in texts + TEXTS + ["", " ", "  a  red  "]:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens_cannot_be_typed():
    rng = random.Random(1)
    texts = ["<user>", "<assistant> yes <eos>", "<image>" * 3, " <pad>"] + [random_text(rng) for _ in range(1000)]
    assert min(min(TOKENIZER.encode(text), default=99) for text in texts) >= len(SPECIALS)
    assert len(set(SPECIALS)) == 5 and TOKENIZER.decode(range(len(SPECIALS))) == ""


def test_frequent_words_are_one_token_and_rare_ones_are_bytes():
    assert len(TOKENIZER.encode(" top-left")) == 1 and len(TOKENIZER.encode("Is there a star in the image?")) == 8
    assert len(TOKENIZER.encode("zebra")) == 5
    assert len(TOKENIZER) == len(SPECIALS) + 256 + len(TOKENIZER.words)
    assert Tokenizer.build(reversed(TEXTS)).words == TOKENIZER.words  # the order of the texts says nothing


def test_ids_that_are_no_utf8_decode_to_replacement_characters():
    assert TOKENIZER.decode([5 + 0xFF, 5 + ord("a")]) == "\ufffda"


def test_vocabularies_with_doubles_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        Tokenizer(["a", "a"])


def dull_row(item, order="image-first", i=0):
    """One row as plain lists: ids, modality, generated."""
    picture, text = [IMAGE_ID] * 4 * len(item.pictures), list(TOKENIZER.encode(item.prompt or ""))
    text_first = order == "text-first" or order == "dual" and i % 2 == 1
    if item.prompt is None:
        prompt = [USER_ID] + picture
    else:
        prompt = [USER_ID] + (text + picture if text_first else picture + text) + [ASSISTANT_ID]
    answer = list(TOKENIZER.encode(item.answer)) + [EOS_ID]
    ids = prompt + answer
    return ids, [IMAGE if x == IMAGE_ID else TEXT for x in ids], [False] * len(prompt) + [True] * len(answer)


@pytest.mark.parametrize("order", ORDERS)
def test_batch_equals_a_dull_loop(order):
    examples = Examples(ITEMS, IMAGES, TOKENIZER, CONFIG, order)
    rows = [4, 0, 2, 3, 1, 4]
    batch = examples.batch(rows)
    T = max(len(dull_row(ITEMS[r])[0]) for r in rows)
    shown = []
    for b, r in enumerate(rows):
        ids, modality, generated = dull_row(ITEMS[r], order, r)
        rest = T - len(ids)
        assert batch.ids[b].tolist() == ids + [PAD_ID] * rest
        assert batch.modality[b].tolist() == modality + [PAD] * rest
        assert batch.generated[b].tolist() == generated + [False] * rest
        assert batch.labels[b].tolist() == [i if g else IGNORE for i, g in zip(ids, generated)] + [IGNORE] * rest
        shown += ITEMS[r].pictures
    assert torch.equal(batch.images[batch.image_index], torch.from_numpy(IMAGES[shown]))
    assert len(batch.images) == len(set(shown))  # each picture once, however many questions ask about it


def test_prompts_end_at_the_right_edge_and_hold_no_answer():
    examples = Examples(ITEMS, IMAGES, TOKENIZER, CONFIG)
    batch = examples.batch([1, 3, 2], prompts_only=True)
    assert (batch.ids[:, -1] == ASSISTANT_ID).all() and not batch.generated.any()
    assert batch.ids[1].tolist() == [PAD_ID] * (batch.ids.shape[1] - 4) + dull_row(ITEMS[3])[0][:4]


def test_mma_on_a_document_is_causal_for_there_is_no_question():
    examples = Examples(ITEMS[:1], IMAGES, TOKENIZER, CONFIG)
    batch = examples.batch([0])
    assert torch.equal(attention_mask(batch.modality, batch.generated, "mma"),
                       attention_mask(batch.modality, batch.generated, "causal"))


def test_examples_beyond_the_context_say_by_how_much():
    with pytest.raises(ValueError, match=r"example 1 .* has 57 positions, 9 more than the context of 48"):
        Examples([ITEMS[0], Item((0,), "x" * 49, "no")], IMAGES, TOKENIZER, CONFIG)
    with pytest.raises(ValueError, match="unknown order 'sideways'"):
        Examples(ITEMS, IMAGES, TOKENIZER, CONFIG, "sideways")


def many_examples(pictures=40, each=5):
    rng = random.Random(0)
    items = [Item((p,), None, "a" * rng.randint(1, 20)) for p in range(pictures) for _ in range(each)]
    return Examples(items, np.zeros((pictures, 16, 16, 3), np.uint8), TOKENIZER, CONFIG)


def test_an_epoch_visits_every_picture_once_with_the_asked_number_of_examples():
    examples = many_examples()
    batches = Batches(examples, 8, 3, seed=0)
    assert batches.steps_per_epoch == 5
    for epoch in (0, 3):
        rows = np.concatenate([batches[epoch * 5 + i] for i in range(5)])
        assert sorted(rows // 5) == sorted([p for p in range(40) for _ in range(3)]) and len(set(rows)) == 120


def test_batches_depend_on_seed_and_step_alone():
    examples = many_examples()
    forwards = [Batches(examples, 8, 3, seed=0)[step].tolist() for step in range(12)]
    one = Batches(examples, 8, 3, seed=0)
    assert [one[step].tolist() for step in reversed(range(12))][::-1] == forwards
    assert [Batches(examples, 8, 3, seed=1)[step].tolist() for step in range(12)] != forwards


def test_batches_group_rows_of_like_length():
    examples = many_examples(pictures=400, each=1)
    batches = Batches(examples, 8, 1, seed=0)
    spread = np.mean([np.ptp(examples.lengths[batches[step]]) for step in range(50)])
    assert spread < 0.25 * np.ptp(examples.lengths)


def test_a_batch_that_cannot_be_filled_is_refused():
    with pytest.raises(ValueError, match="a batch of 50 pictures cannot be filled from 40"):
        Batches(many_examples(), 50, 1, 0)


def test_ragged_is_a_loop_of_ranges():
    starts, counts = np.array([3, 0, 9, 5]), np.array([2, 0, 3, 1])
    assert ragged(starts, counts).tolist() == [i for s, c in zip(starts, counts) for i in range(s, s + c)]
