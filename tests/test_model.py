"""The model: masks reach the attention, answers do not leak, padding and cache change nothing."""
import random

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from data import SPECIALS, Tokenizer
from mma import IMAGE, KINDS, TEXT, attention_mask, mask_mod
from model import Attention, Config, MultimodalGPT
from test_mma import read_rows

CONFIG = Config(vocab_size=40, context=64, width=32, heads=2, layers=3, vit_layers=1,
                image_size=32)  # 4 image tokens


def make_model(cls=MultimodalGPT, attention="mma"):
    """A small model with random weights also where they start as zeros, so that every path counts.

    In float64 any difference that is left is a mistake, not rounding.
    """
    model = cls(CONFIG, attention).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def pictures(n):
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8)


CONVERSATIONS = ("uiiiiqweAB", "uqAiiiiwBCzD", "uiiiiqABwCiiiizxDy")


class Nudged(MultimodalGPT):
    """Its input vectors, from pictures and text, can be moved."""

    def embed(self, images, ids, modality, image_index=None):
        return super().embed(images, ids, modality, image_index) + self.nudge


def moved(attention, layout):
    """[q][k]: whether another token at k gives other logits at q."""
    model, images = make_model(Nudged, attention), pictures(layout.count("i") // 4)
    ids, *about = read_rows(layout)
    model.nudge = torch.zeros(*ids.shape, CONFIG.width)
    before = model(images, ids, *about)
    columns = []
    for k, letter in enumerate(layout):
        if letter == "i":
            model.nudge[0, k] += torch.randn(CONFIG.width)
        else:
            ids[0, k] += 1
        after = model(images, ids, *about)
        columns.append((after != before).any(-1)[0])
        before = after
    return torch.stack(columns, 1)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("layout", [*CONVERSATIONS, "iiiiqw", ".qiwiiiA.", "tiqiwAwiqiA"])
def test_answer_tokens_never_leak_and_all_move_what_they_reach_by_three_masks(attention, layout):
    found = moved(attention, layout)
    _, modality, generated = read_rows(layout)
    assert not found.triu(1)[:, generated[0]].any()
    mask = attention_mask(modality, generated, attention)[0, 0].double()
    assert torch.equal(found, mask @ mask @ mask > 0)


@pytest.mark.parametrize("attention", KINDS)
def test_a_row_gives_the_same_logits_alone_padded_and_in_a_batch_that_shares_pictures(attention):
    model, images = make_model(attention=attention), pictures(2)
    layouts = ["uiiiiqwAB", "uiiiiqAiiiiwB", "tqAwB"]  # one picture, two, none
    shown = [images[:1], images[[1, 0]], None]
    shared = torch.tensor([0, 1, 0])
    alone = [model(x, *read_rows(layout)) for x, layout in zip(shown, layouts)]
    for left in (0, 1, 3):
        padded = [("." * left + layout).ljust(17, ".") for layout in layouts]
        together = model(images, *read_rows(*padded), image_index=shared)
        for i, logits in enumerate(alone):
            row = together[i:i + 1, left:left + logits.shape[1]]
            torch.testing.assert_close(row, logits, atol=1e-9, rtol=0)
    two = model(images, *read_rows(layouts[1]), image_index=torch.tensor([[1, 0]]))
    assert torch.equal(two, alone[1])


def plain_generate(model, images, ids, modality, new, end, index, generated):
    """The whole row through the whole model for each new token."""
    tokens, ended = [], torch.zeros(len(ids), dtype=torch.bool)
    while len(tokens) < new and not ended.all():
        logits = model(images, ids, modality, generated, image_index=index)
        token = logits[:, -1].argmax(-1)
        token[ended] = end
        tokens.append(token)
        ended |= token == end
        ids = torch.cat([ids, token[:, None]], 1)
        modality = F.pad(modality, (0, 1), value=TEXT)
        generated = F.pad(generated, (0, 1), value=True)
    return torch.stack(tokens, 1)


def assert_equals_recomputing(model, layouts, index):
    """Without an end, and with the end that makes the first row stop after three tokens."""
    images, (ids, modality, generated) = pictures(3), read_rows(*layouts)
    end = -1
    for _ in range(2):
        arguments = images, ids, modality, 6, end, torch.tensor(index), generated
        found = model.generate(*arguments)
        assert torch.equal(found, plain_generate(model, *arguments))
        if not generated.any():
            assert torch.equal(found, model.generate(*arguments[:-1]))
        end = found[0, 2]


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("layouts, index", [
    (["uiiiiqw"], [2]),  # all rows end early
    (["uiiiiqw", "uiiiiwe"], [0, 0]),
    (["......uqwe", "uiiiiiiiiw", "...uiiiiwq"], [1, 0, 2]),
    (["...uqAwBqe", ".uiiiiqAwe", "qAwBCiiiiw"], [2, 1]),  # earlier turns, answers among them
])
def test_cached_generation_equals_recomputing_everything(attention, layouts, index):
    assert_equals_recomputing(make_model(attention=attention), layouts, index)


class Mixed(MultimodalGPT):
    """In the second layer generated tokens do not see pictures; positions count backward."""

    def mask(self, modality, generated):
        mask = super().mask(modality, generated)
        blind = mask & ~(generated[:, None, :, None] & (modality == IMAGE)[:, None, None, :])
        return torch.stack([mask, blind, mask])

    def decode(self, x, mask, caches=(None,) * 3):
        for block, *its in zip(self.blocks, mask, caches):
            x = block(x, *its)
        return x

    def positions(self, modality):
        return 63 - super().positions(modality)


def test_a_subclass_with_its_own_masks_and_positions_uses_them_in_forward_and_generate():
    layout = "uiiiiqAwe"
    model, images = make_model(Mixed), pictures(1)
    ids, *about = read_rows(layout)
    x = model.embed(images, ids, about[0]) + model.position.weight[63 - torch.arange(9)]
    for layer, block in enumerate(model.blocks):
        mask = attention_mask(*about, "mma")
        mask[0, 0, 6, 1:5] = layer != 1
        x = block(x, mask)
    torch.testing.assert_close(model(images, ids, *about), model.head(x))
    assert_equals_recomputing(model, [layout], [0])


def test_loss_is_the_mean_over_generated_tokens_predicted_one_earlier():
    model, images = make_model(), pictures(2)
    ids, modality, generated = read_rows("uiiiiqwAB...", "uiiiiqAwBCDE")
    loss = model.loss(images, ids, modality, generated)
    every = model(images, ids, modality, generated).log_softmax(-1)
    asked = generated.nonzero().tolist()
    by_hand = -sum(every[b, t - 1, ids[b, t]] for b, t in asked) / len(asked)
    assert len(asked) == 7 and abs(loss.item() - by_hand.item()) < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", KINDS)
@torch.inference_mode()  # on a CPU FlexAttention has no backward pass
def test_flex_attention_gives_what_the_dense_mask_gives(attention):
    layer, x = Attention(CONFIG), torch.randn(3, 18, CONFIG.width)
    _, *about = read_rows(*(layout.ljust(18, ".") for layout in CONVERSATIONS))
    blocks = create_block_mask(mask_mod(*about, attention), 3, None, 18, 18, device="cpu")
    y = flex_attention(*layer.queries_keys_values(x), block_mask=blocks)
    flex = layer.out(y.transpose(1, 2).reshape(x.shape))
    dense = layer(x, attention_mask(*about, attention))
    torch.testing.assert_close(flex, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("images, says", [
    (None, "places for image tokens, but images is None"),
    (pictures(1) / 255, r"must be uint8 .* they are torch.float32"),
    (pictures(1)[:, :16], r"\(1, 16, 32, 3\)"),
    (pictures(1).permute(0, 3, 1, 2), r"\(1, 3, 32, 32\)"),
    (pictures(1)[0], r"\(32, 32, 3\)$"),
])
def test_missing_pictures_and_those_of_another_kind_are_refused_by_name(images, says):
    for call, *last in (("forward", torch.zeros(1, 7) > 0), ("generate", 3, 0)):
        with pytest.raises(ValueError, match=says):
            getattr(make_model(), call)(images, *read_rows("uiiiiqw")[:2], *last)


def test_other_numbers_of_pictures_and_prompts_that_do_not_fit_are_refused():
    model = make_model()
    for n in (0, 2):
        with pytest.raises((RuntimeError, IndexError), match="shape mismatch"):
            model(pictures(n), *read_rows("uiiiiqw"))
    assert model.generate(None, *read_rows("t" * 64)[:2], 3, -1).shape == (1, 3)
    with pytest.raises(ValueError, match="65 tokens, but the context is 64"):
        model.generate(None, *read_rows("t" * 65)[:2], 3, -1)
    with pytest.raises(ValueError, match="pad prompts on the left"):
        model.generate(None, *read_rows("tq", "t.")[:2], 3, 0)


TEXTS = ["Is there a star in the image?", "a red fish at top-left, a blue cup at center."] * 2
TOKENIZER = Tokenizer.build(TEXTS + ["Is there a zebra?"])
LETTERS = [*"abc XYZ-?.,äßñçœłéÅ日本語テキスト🙂👩‍👩‍👧🇫🇷", *"\0\x1b\t\n\r\x7f\u202e\u200b\ufeff\u0301",
           "Is there a star", " in the image?", "-a", *SPECIALS]


def test_any_text_survives_the_tokenizer_and_types_no_special():
    rng = random.Random(0)
    texts = ["", " ", "  a  red  ", *TEXTS]
    texts += ["".join(rng.choices(LETTERS, k=rng.randint(1, 40))) for _ in range(2000)]
    texts += map(chr, [*range(0, 0xD800, 20), *range(0xE000, 0x110000, 1000)])
    for text in texts:
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert all(len(SPECIALS) <= i < len(TOKENIZER.pieces) for i in ids)
    assert TOKENIZER.decode(range(len(SPECIALS))) == ""
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"  # it has no UTF-8


def test_frequent_words_are_one_token_and_rare_ones_are_bytes():
    assert len(TOKENIZER.encode("Is there a star in the image?")) == 8
    assert len(TOKENIZER.encode(" top-left")) == 1
    assert len(TOKENIZER.encode(" zebra")) == 6  # came once
    assert Tokenizer.build(reversed(TEXTS)).words == Tokenizer.build(TEXTS).words
    assert Tokenizer.build(TEXTS, max_words=2).words == [" a", " at"]
