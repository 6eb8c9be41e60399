"""The model: masks reach the attention, answers do not leak, padding and cache change nothing."""
import random

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mma import IMAGE, KINDS, PAD, TEXT, attention_mask, mask_mod
from model import IMAGE_ID, PAD_ID, SPECIALS, Attention, Config, MultimodalGPT, Tokenizer

CONFIG = Config(vocab_size=40, context=64, width=32, heads=2, layers=3, vit_layers=1,
                image_size=32)  # 4 image tokens
END = 39


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


def read_rows(*layouts):
    """Layouts of equal length -> (ids, modality, generated).

    i: one position of a picture; a dot: padding; another letter: a token, generated if a capital.
    """
    ids, modality, generated = [], [], []
    for layout in layouts:
        ids.append([{".": PAD_ID, "i": IMAGE_ID}.get(c, ord(c) % 32 + 6) for c in layout])
        modality.append([{".": PAD, "i": IMAGE}.get(c, TEXT) for c in layout])
        generated.append([c.isupper() for c in layout])
    return torch.tensor(ids), torch.tensor(modality), torch.tensor(generated)


CONVERSATIONS = ("uiiiiqweAB", "uqAiiiiwBCzD", "uiiiiqABwCiiiizxDy")


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("layout", CONVERSATIONS)
def test_answer_tokens_never_leak_into_earlier_logits(attention, layout):
    model, images = make_model(attention=attention), pictures(layout.count("iiii"))
    ids, modality, generated = read_rows(layout)
    before = model(images, ids, modality, generated)[0]
    for k in generated[0].nonzero()[:, 0].tolist():
        other = ids.clone()
        other[0, k] += 1
        after = model(images, other, modality, generated)[0]
        assert torch.equal(before[0, :k], after[0, :k])
        assert not torch.equal(before[0, k], after[0, k])


@pytest.mark.parametrize("attention, moves",
                         [("causal", False), ("image", False), ("prefix", True), ("mma", True)])
def test_the_question_moves_the_image_tokens_under_mma_and_prefix_alone(attention, moves):
    model, images = make_model(attention=attention), pictures(1)
    ids, *rest = read_rows("uiiiiqwA")
    other = ids.clone()
    other[0, 5] += 1  # the first word of the question
    before, after = model(images, ids, *rest)[0], model(images, other, *rest)[0]
    assert ((before != after).any(-1)[0, 1:5] == moves).all()


class GivenInputs(MultimodalGPT):
    """Its input vectors, from pictures and text, are simply `x`."""

    def embed(self, images, ids, modality, image_index=None):
        return self.x


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("layout", CONVERSATIONS + ("iiiiqw", ".qiwiA.", "tiqiwAwiqA"))
def test_outputs_move_exactly_where_the_mask_lets_them(attention, layout):
    """An input at k moves the output at q if and only if k reaches q through the three masks."""
    model, rows = make_model(GivenInputs, attention), read_rows(layout)
    mask = attention_mask(*rows[1:], attention)[0, 0].double()
    reach = (mask @ mask @ mask) > 0
    model.x = torch.randn(1, len(layout), CONFIG.width, dtype=torch.float64)
    before = model(None, *rows)[0]
    for k in range(len(layout)):
        model.x[0, k] += torch.randn(CONFIG.width, dtype=torch.float64)
        after = model(None, *rows)[0]
        assert torch.equal((after != before).any(-1)[0], reach[:, k])
        before = after


@pytest.mark.parametrize("attention", KINDS)
def test_a_row_gives_the_same_logits_alone_padded_and_in_a_batch(attention):
    model, images = make_model(attention=attention), pictures(3)
    layouts = ["uiiiiqwAB", "uiiiiqAiiiiwB", "tqAwB"]  # one picture, two, none
    shown = [images[:1], images[1:], None]
    alone = [model(x, *read_rows(layout))[0] for x, layout in zip(shown, layouts)]
    for left in (0, 1, 3):
        padded = [("." * left + layout).ljust(17, ".") for layout in layouts]
        together = model(images, *read_rows(*padded))[0]
        for i, logits in enumerate(alone):
            row = together[i:i + 1, left:left + logits.shape[1]]
            torch.testing.assert_close(row, logits, atol=1e-9, rtol=0)


def dull_generate(model, images, ids, modality, new, image_index, generated):
    """The whole row through the whole model for each new token."""
    tokens, ended = [], torch.zeros(len(ids), dtype=torch.bool)
    while len(tokens) < new and not ended.all():
        logits = model(images, ids, modality, generated, image_index=image_index)[0]
        tokens.append(torch.where(ended, END, logits[:, -1].argmax(-1)))
        ended |= tokens[-1] == END
        ids = torch.cat([ids, tokens[-1][:, None]], 1)
        modality = F.pad(modality, (0, 1), value=TEXT)
        generated = F.pad(generated, (0, 1), value=True)
    return torch.stack(tokens, 1)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("layouts, index", [
    (["uiiiiqw", "uiiiiwe"], [0, 0]),
    (["......uqwe", "uiiiiiiiiw", "...uiiiiwq"], [1, 0, 2]),
    (["...uqAwBqe", ".uiiiiqAwe", "qAwBCiiiiw"], [2, 1]),  # earlier turns, answers among them
])
def test_cached_generation_equals_recomputing_everything(attention, layouts, index):
    model, images = make_model(attention=attention), pictures(3)
    ids, modality, generated = read_rows(*layouts)
    index = torch.tensor(index)
    got = model.generate(images, ids, modality, 6, END, index, generated)
    assert torch.equal(got, dull_generate(model, images, ids, modality, 6, index, generated))
    if not generated.any():
        assert torch.equal(got, model.generate(images, ids, modality, 6, END, index))


class Mixed(MultimodalGPT):
    """Another mask in each layer, and positions that count backward."""

    def mask(self, modality, generated, layer):
        mask = attention_mask(modality, generated, ("mma", "causal", "prefix")[layer])
        if layer == 1:  # generated tokens do not see pictures
            mask &= ~(generated[:, None, :, None] & (modality == IMAGE)[:, None, None, :])
        return mask

    def positions(self, modality):
        return 63 - super().positions(modality)


def test_a_subclass_with_its_own_masks_and_positions_uses_them_in_forward_and_generate():
    model, images, rows = make_model(Mixed), pictures(1), read_rows("uiiiiqAwe")
    ids, modality, generated = rows
    masks = [attention_mask(*rows[1:], attention) for attention in ("mma", "causal", "prefix")]
    masks[1][0, 0, 6, 1:5] = False
    x = model.embed(images, ids, modality) + model.position.weight[63 - torch.arange(9)]
    for block, mask in zip(model.blocks, masks):
        x = block(x, mask)
    torch.testing.assert_close(model(images, *rows)[0], model.logits(x))
    got = model.generate(images, ids, modality, 8, END, None, generated)
    assert torch.equal(got, dull_generate(model, images, ids, modality, 8, None, generated))


def test_generation_stops_when_every_row_has_ended():
    model, images = make_model(), pictures(3)
    ids, modality, _ = read_rows("uiiiiqw", "uiiiiwe", "uiiiiee")
    free = model.generate(images, ids, modality, 8, end=-1).tolist()
    end = free[0][2]  # the third token of the first row
    stops = [row.index(end) + 1 if end in row else 8 for row in free]
    wanted = [(row[:stop] + [end] * 8)[:max(stops)] for row, stop in zip(free, stops)]
    assert model.generate(images, ids, modality, 8, end).tolist() == wanted
    with torch.no_grad():
        model.norm.weight.zero_()  # every logit is 0, and argmax takes id 0
    assert model.generate(images, ids, modality, 8, end=0).tolist() == [[0]] * 3


def test_loss_is_the_mean_over_generated_tokens_predicted_one_earlier():
    model, images = make_model(), pictures(2)
    ids, modality, generated = read_rows("uiiiiqwAB...", "uiiiiqAwBCDE")
    logits, loss = model(images, ids, modality, generated, with_loss=True)
    every = model(images, ids, modality, generated)[0].log_softmax(-1)
    asked = generated.nonzero().tolist()
    assert logits.shape == (len(asked), 40) and len(asked) == 7
    by_hand = -sum(every[b, t - 1, ids[b, t]] for b, t in asked) / len(asked)
    assert abs(loss.item() - by_hand.item()) < 1e-5


def test_questions_about_one_picture_share_it():
    model, images, rows = make_model(), pictures(2), read_rows("uiiiiqw", "uiiiiwe", "uiiiiew")
    index = torch.tensor([1, 1, 0])
    shared = model(images, *rows, image_index=index)[0]
    torch.testing.assert_close(shared, model(images[index], *rows)[0])


def test_without_its_blocks_the_vit_sees_36_pixels_a_side_around_each_patch():
    model = make_model()
    model.vit.blocks = torch.nn.ModuleList()
    images = pictures(1).repeat(1024, 1, 1, 1)
    changed = images.clone()
    for i in range(1024):  # another pixel in each picture
        changed[i, i // 32, i % 32] ^= 255
    moved = (model.vit(changed) != model.vit(images)).any(-1)  # (1024, 4)
    for i in range(1024):
        for token in range(4):
            top, left = token // 2 * 16 - 10, token % 2 * 16 - 10
            inside = top <= i // 32 < top + 36 and left <= i % 32 < left + 36
            assert moved[i, token] == inside


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


def test_too_many_and_too_few_pictures_are_refused():
    for n in (0, 2):
        with pytest.raises((RuntimeError, IndexError), match="shape mismatch"):
            make_model()(pictures(n), *read_rows("uiiiiqw"))


def test_prompts_padded_on_the_right_are_refused():
    with pytest.raises(ValueError, match="pad prompts on the left"):
        make_model().generate(None, *read_rows("tq", "t.")[:2], 3, END)


TEXTS = ["Is there a star in the image?", "a red fish at top-left, a blue cup at center."] * 2
TOKENIZER = Tokenizer.build(TEXTS + ["Is there a zebra?"])
ALPHABETS = ("abc XYZ-?.,", "äßñçœ łéÅ", "日本語テキスト", "🙂👩‍👩‍👧🇫🇷", "\x00\x1b\t\n\r\x7f",
             "\u202e\u200b\ufeff\u0301", SPECIALS, ("Is there a star", " in the image?", "-a"))


def random_texts(n):
    rng = random.Random(0)
    for _ in range(n):
        letters = [rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(0, 40))]
        letters += [chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))]
        yield "".join(letters)


def test_any_text_survives_the_tokenizer_and_types_no_special():
    for text in ["", " ", "  a  red  ", "<eos>", *SPECIALS, *TEXTS, *random_texts(2000)]:
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
