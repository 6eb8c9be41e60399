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
CONVERSATIONS = ("uiiiiqweAB", "uqAiiiiwBCzD", "uiiiiqABwCiiiizxDy")


def make_model(cls=MultimodalGPT, attention="mma"):
    """A small model, random also where it starts as zeros, in float64: without rounding."""
    model = cls(CONFIG, attention).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def pictures(n):
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8)


class Blind(MultimodalGPT):
    """In the second layer generated tokens do not see pictures; positions count backward."""

    def mask(self, modality, generated):
        mask = super().mask(modality, generated)
        blind = generated[:, None, :, None] & (modality == IMAGE)[:, None, None, :]
        return torch.stack([mask, mask & ~blind, mask])

    def decode(self, x, mask, caches=(None,) * 3):
        for block, *its in zip(self.blocks, mask, caches):
            x = block(x, *its)
        return x

    def positions(self, modality):
        return 63 - super().positions(modality)


MODELS = [(Blind, "mma")] + [(MultimodalGPT, kind) for kind in KINDS]


@pytest.mark.parametrize("cls, attention", MODELS)
@pytest.mark.parametrize("layout", [*CONVERSATIONS, "iiiiqw", ".qiwiiiA.", "tiqiwAwiqiA"])
def test_answers_never_leak_and_all_reach_what_three_masks_let_them_reach(cls, attention, layout):
    model, images = make_model(cls, attention), pictures(layout.count("i") // 4)
    ids, modality, generated = read_rows(layout)
    x = model.embed(images, ids, modality).detach().requires_grad_()
    model.embed = lambda *_: x
    reached = []  # [q][k]: whether the token at k counts for the logits at q
    for logits in model(images, ids, modality, generated)[0]:
        gradient, = torch.autograd.grad(logits.sum(), x, retain_graph=True)
        reached.append(gradient[0].any(-1))
    reached = torch.stack(reached)
    assert not reached.triu(1)[:, generated[0]].any()
    mask = attention_mask(modality, generated, attention)[0, 0].double()
    second = mask.clone()
    if cls is Blind:
        second[generated[0]] *= modality != IMAGE
        used, = torch.autograd.grad(logits.sum(), model.position.weight)
        assert used[40:].any() and not used[:40].any()
    assert torch.equal(reached, mask @ second @ mask > 0)


def plain_generate(model, images, ids, modality, generated):
    """Six tokens for each row, each by the whole model for the whole row."""
    for _ in range(6):
        logits = model(images, ids, modality, generated)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        modality = F.pad(modality, (0, 1), value=TEXT)
        generated = F.pad(generated, (0, 1), value=True)
    return ids[:, -6:]


@pytest.mark.parametrize("cls, attention", MODELS)
@pytest.mark.parametrize("layouts, index", [
    (["uiiiiqw"], [2]),  # all rows end early
    (["uiiiiqw", "uiiiiwe"], [0, 0]),
    (["......uqwe", "uiiiiiiiiw", "...uiiiiwq"], [1, 0, 2]),
    (["...uqAwBqe", ".uiiiiqAwe", "qAwBCiiiiw"], [2, 1]),  # earlier turns, answers among them
    (["uiiiiqiiii", ".uiiiiiiii"], [[2, 0], [0, 1]]),  # two pictures in each prompt
])
def test_cached_generation_equals_recomputing_everything(cls, attention, layouts, index):
    model, images, index = make_model(cls, attention), pictures(3), torch.tensor(index)
    ids, modality, generated = read_rows(*layouts)
    wanted = plain_generate(model, images[index.flatten()], ids, modality, generated)
    arguments = images, ids, modality, 6
    assert torch.equal(model.generate(*arguments, -1, index, generated), wanted)
    end = wanted[0, 2].clone()
    ended = (wanted == end).cumsum(1) > 0  # from the end on there is nothing else
    wanted = wanted.masked_fill(ended, end)[:, :1 + (~ended.all(0)).sum()]
    assert torch.equal(model.generate(*arguments, end, index, generated), wanted)
    if not generated.any():
        assert torch.equal(model.generate(*arguments, end, index), wanted)


@pytest.mark.parametrize("attention", KINDS)
def test_loss_is_the_mean_over_the_answers_of_rows_that_stand_alone(attention):
    """Padding, other rows and a picture that is shared change nothing."""
    model, images = make_model(attention=attention), pictures(2)
    layouts = ["uiiiiqwAB", "uiiiiqAiiiiwB", "tqAwB"]  # one picture, two, none
    losses = []
    for layout, shown in zip(layouts, (images[:1], images[[1, 0]], None)):
        ids, modality, generated = read_rows(layout)
        likely = model(shown, ids, modality, generated).log_softmax(-1)[0]
        losses += [-likely[t - 1, ids[0, t]] for t in range(len(layout)) if layout[t].isupper()]
    for left in (0, 1, 3):
        padded = [("." * left + layout).ljust(17, ".") for layout in layouts]
        loss = model.loss(images, *read_rows(*padded), image_index=torch.tensor([0, 1, 0]))
        assert loss.item() == pytest.approx(sum(losses).item() / 6, rel=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", KINDS)
@torch.inference_mode()  # on a CPU FlexAttention has no backward pass
def test_flex_attention_gives_what_the_dense_mask_gives(attention):
    layer = Attention(CONFIG)
    q, k, v = layer.queries_keys_values(torch.randn(3, 18, CONFIG.width))
    _, *about = read_rows(*(layout.ljust(18, ".") for layout in CONVERSATIONS))
    blocks = create_block_mask(mask_mod(*about, attention), 3, None, 18, 18, device="cpu")
    flex = flex_attention(q, k, v, block_mask=blocks)
    dense = layer.weights(q, k, attention_mask(*about, attention)) @ v
    torch.testing.assert_close(flex, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("images, prompts, says", [
    (None, ["uiiiiqw"], "places for image tokens, but images is None"),
    (pictures(1) / 255, ["uiiiiqw"], r"must be uint8 .* they are torch.float32"),
    (pictures(1).permute(0, 3, 1, 2), ["uiiiiqw"], r"\(1, 3, 32, 32\)"),
    (pictures(1)[0], ["uiiiiqw"], r"\(32, 32, 3\)$"),
    (pictures(2), ["uiiiiqw"], "shape mismatch"),
    (None, ["t" * 65], "65 tokens, but the context is 64"),
    (None, ["tq", "t."], "pad prompts on the left"),
])
def test_pictures_and_prompts_of_another_kind_are_refused(images, prompts, says):
    with pytest.raises((ValueError, RuntimeError, IndexError), match=says):
        make_model().generate(images, *read_rows(*prompts)[:2], 3, 0)


def test_a_prompt_may_fill_the_context():
    assert make_model().generate(None, *read_rows("t" * 64)[:2], 3, -1).shape == (1, 3)


TEXTS = ["Is there a star in the image?", "a red fish at top-left, a blue cup at center."] * 2
TOKENIZER = Tokenizer.build(TEXTS + ["Is there a zebra?"])
LETTERS = [*"abc XYZ-?.,äßñçœłéÅ日本語テキスト🙂👩‍👩‍👧🇫🇷", *"\0\x1b\t\n\r\x7f\u202e\u200b\ufeff\u0301",
           "Is there a star", " in the image?", "-a", *SPECIALS]


def test_any_text_survives_the_tokenizer_and_types_no_special():
    rng = random.Random(0)
    texts = ["", " ", "  a  red  ", *TEXTS]
    texts += ["".join(rng.choices(LETTERS, k=rng.randint(1, 40))) for _ in range(2000)]
    for text in texts:
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert all(len(SPECIALS) <= i < len(TOKENIZER.pieces) for i in ids)
    assert TOKENIZER.decode(range(len(SPECIALS))) == ""
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"  # it has no UTF-8


def test_frequent_words_are_one_token_and_rare_ones_are_bytes():
    assert len(TOKENIZER.encode("Is there a star in the image?")) == 8
    assert len(TOKENIZER.encode(" zebra")) == 6  # came once
    assert Tokenizer.build(reversed(TEXTS)).words == Tokenizer.build(TEXTS).words
    assert Tokenizer.build(TEXTS, max_words=2).words == [" a", " at"]
