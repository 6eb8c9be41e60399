"""The model: masks reach the attention, answers do not leak, padding and cache change nothing."""
import random
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from data import Dataset, Example
from mma import IMAGE, KINDS, TEXT, attention_mask, mask_mod
from model import SPECIALS, Attention, Config, MultimodalGPT, Tokenizer, answer
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
    before = model(images, ids, *about)[0]
    columns = []
    for k, letter in enumerate(layout):
        if letter == "i":
            model.nudge[0, k] += torch.randn(CONFIG.width)
        else:
            ids[0, k] += 1
        after = model(images, ids, *about)[0]
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
def test_the_question_moves_the_image_tokens_under_mma_and_prefix_alone(attention):
    moves = moved(attention, "uiiiiqwA")[1:5, 5:7]
    assert (moves == (attention in ("mma", "prefix"))).all()


@pytest.mark.parametrize("attention", KINDS)
def test_a_row_gives_the_same_logits_alone_padded_and_in_a_batch_that_shares_pictures(attention):
    model, images = make_model(attention=attention), pictures(2)
    layouts = ["uiiiiqwAB", "uiiiiqAiiiiwB", "tqAwB"]  # one picture, two, none
    shown = [images[:1], images[[1, 0]], None]
    shared = torch.tensor([0, 1, 0])
    alone = [model(x, *read_rows(layout))[0] for x, layout in zip(shown, layouts)]
    for left in (0, 1, 3):
        padded = [("." * left + layout).ljust(17, ".") for layout in layouts]
        together = model(images, *read_rows(*padded), image_index=shared)[0]
        for i, logits in enumerate(alone):
            row = together[i:i + 1, left:left + logits.shape[1]]
            torch.testing.assert_close(row, logits, atol=1e-9, rtol=0)


def dull_generate(model, images, ids, modality, new, end, index, generated):
    """The whole row through the whole model for each new token."""
    tokens, ended = [], torch.zeros(len(ids), dtype=torch.bool)
    while len(tokens) < new and not ended.all():
        logits, _ = model(images, ids, modality, generated, image_index=index)
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
        assert torch.equal(found, dull_generate(model, *arguments))
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

    def mask(self, modality, generated, layer):
        mask = super().mask(modality, generated, layer)
        if layer == 1:
            mask &= ~(generated[:, None, :, None] & (modality == IMAGE)[:, None, None, :])
        return mask

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
    torch.testing.assert_close(model(images, ids, *about)[0], model.logits(x))
    assert_equals_recomputing(model, [layout], [0])


def test_loss_is_the_mean_over_generated_tokens_predicted_one_earlier():
    model, images = make_model(), pictures(2)
    ids, modality, generated = read_rows("uiiiiqwAB...", "uiiiiqAwBCDE")
    logits, loss = model(images, ids, modality, generated, with_loss=True)
    every = model(images, ids, modality, generated)[0].log_softmax(-1)
    asked = generated.nonzero().tolist()
    assert logits.shape == (len(asked), 40) and len(asked) == 7
    by_hand = -sum(every[b, t - 1, ids[b, t]] for b, t in asked) / len(asked)
    assert abs(loss.item() - by_hand.item()) < 1e-5


def test_without_its_blocks_the_vit_sees_36_pixels_a_side_around_each_patch():
    model = make_model()
    model.vit.blocks = torch.nn.ModuleList()
    images = pictures(1).repeat(1024, 1, 1, 1)
    changed = images.clone()
    for i in range(1024):  # another pixel in each picture
        changed[i, i // 32, i % 32] ^= 255
    seen = (model.vit(changed) != model.vit(images)).any(-1)  # (1024, 4)
    for i, token in product(range(1024), range(4)):
        top, left = token // 2 * 16 - 10, token % 2 * 16 - 10
        inside = top <= i // 32 < top + 36 and left <= i % 32 < left + 36
        assert seen[i, token] == inside


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", KINDS)
@torch.inference_mode()  # on a CPU FlexAttention has no backward pass
def test_flex_attention_gives_what_the_dense_mask_gives(attention):
    layer, x = Attention(CONFIG), torch.randn(3, 18, CONFIG.width)
    _, *about = read_rows(*(layout.ljust(18, ".") for layout in CONVERSATIONS))
    blocks = create_block_mask(mask_mod(*about, attention), 3, None, 18, 18, device="cpu")
    y = flex_attention(*layer.split(x), block_mask=blocks)
    flex = layer.out(y.transpose(1, 2).reshape(x.shape))
    dense = layer(x, attention_mask(*about, attention))
    torch.testing.assert_close(flex, dense, atol=1e-5, rtol=1e-4)


def test_other_numbers_of_pictures_and_padding_on_the_right_of_prompts_are_refused():
    for n in (0, 2):
        with pytest.raises((RuntimeError, IndexError), match="shape mismatch"):
            make_model()(pictures(n), *read_rows("uiiiiqw"))
    with pytest.raises(ValueError, match="pad prompts on the left"):
        make_model().generate(None, *read_rows("tq", "t.")[:2], 3, 0)


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


def test_an_answer_is_as_long_beside_a_long_prompt_as_alone():
    model = MultimodalGPT(Config(len(Tokenizer([]).pieces)))
    model.token.weight.data[:] = torch.linspace(-1, 1, model.config.width)
    model.token.weight.data[len(SPECIALS) + ord("z")] *= 2  # says z without end
    short, long = Example(0, "Why?", "x" * 100, ""), Example(0, "y" * 220, "no", "")
    images = torch.zeros(1, 64, 64, 3, dtype=torch.uint8).numpy()
    [alone], (beside, _) = (answer(model, Dataset(examples, images, Tokenizer([]), model.config))
                            for examples in ([short], [short, long]))
    assert alone == beside == "z" * 101
