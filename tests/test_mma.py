"""The masks: against masks written by hand, a dull loop, and FlexAttention's own mask builder."""
import doctest
import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import mma
from mma import IMAGE, KINDS, PAD, TEXT, attention_mask, mask_mod

# A layout is a text, one letter a position. Capital letters are generated.
MODALITIES = {".": PAD, "t": TEXT, "i": IMAGE, "a": 2, "d": 3}

# layout -> attention -> the rows that look, 1 = may attend
BY_HAND = {
    "tiiittT.": {
        "causal": "10000000 11000000 11100000 11110000 11111000 11111100 11111110 00000001",
        "image": "10000000 11110000 11110000 11110000 11111000 11111100 11111110 00000001",
        "prefix": "11111100 11111100 11111100 11111100 11111100 11111100 11111110 00000001",
        "mma": "10000000 11001100 11101100 11111100 11111000 11111100 11111110 00000001",
    },
    "iitiitTT": {  # two pictures with text between
        "causal": "10000000 11000000 11100000 11110000 11111000 11111100 11111110 11111111",
        "image": "11011000 11011000 11100000 11111000 11111000 11111100 11111110 11111111",
        "prefix": "11111100 11111100 11111100 11111100 11111100 11111100 11111110 11111111",
        "mma": "10100100 11100100 11100000 11110100 11111100 11111100 11111110 11111111",
    },
    "iittTttT": {  # picture, question 1, answer 1, question 2, answer 2
        "causal": "10000000 11000000 11100000 11110000 11111000 11111100 11111110 11111111",
        "image": "11000000 11000000 11100000 11110000 11111000 11111100 11111110 11111111",
        "prefix": "11110000 11110000 11110000 11110000 11111000 11111110 11111110 11111111",
        "mma": "10110000 11110000 11100000 11110000 11111000 11111100 11111110 11111111",
    },
    ".taiat.T": {  # audio; padding looks at itself alone
        "causal": "10000000 01000000 01100000 01110000 01111000 01111100 00000010 01111101",
        "image": "10000000 01000000 01101000 01110000 01111000 01111100 00000010 01111101",
        "prefix": "10000000 01111100 01111100 01111100 01111100 01111100 00000010 01111101",
        "mma": "10000000 01000000 01110100 01111100 01111100 01111100 00000010 01111101",
    },
}


def read_layout(layout):
    """-> (modality, generated) of one row as lists."""
    return [MODALITIES[c.lower()] for c in layout], [c.isupper() for c in layout]


def tensors(layouts):
    """Layouts of equal length -> (modality, generated)."""
    modality, generated = zip(*map(read_layout, layouts))
    return torch.tensor(modality), torch.tensor(generated)


def dull_mask(modality, generated, attention):
    """The rule once more, as the dullest possible loop over plain lists."""
    T = len(modality)
    seen = [[False] * T for _ in range(T)]
    for q in range(T):
        for k in range(T):
            if modality[q] == PAD or modality[k] == PAD:
                seen[q][k] = q == k
            elif k <= q:
                seen[q][k] = True
            elif sum(generated[:q + 1]) != sum(generated[:k + 1]):
                seen[q][k] = False  # something is generated between them
            elif attention == "image":
                seen[q][k] = modality[q] != TEXT and modality[q] == modality[k]
            elif attention == "prefix":
                seen[q][k] = not generated[q]
            elif attention == "mma":
                seen[q][k] = modality[q] != TEXT and modality[q] != modality[k]
            else:
                assert attention == "causal", "write its rule here, too"
    return seen


def random_batches(seed, n, rows=5):
    """n batches of random layouts: turns, pictures, modalities, padding on both sides."""
    rng = random.Random(seed)
    for _ in range(n):
        layouts = []
        for _ in range(rows):
            parts = [rng.choice("ttTTiiad") * rng.randint(1, 4) for _ in range(rng.randint(1, 8))]
            layouts.append("." * rng.choice((0, 0, 1, 3)) + "".join(parts))
        T = max(map(len, layouts)) + rng.choice((0, 2))
        yield tensors([layout.ljust(T, ".") for layout in layouts])


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("layout", BY_HAND)
def test_mask_is_the_one_written_by_hand(layout, attention):
    mask = attention_mask(*tensors([layout]), attention)
    assert mask.shape == (1, 1, 8, 8) and mask.dtype == torch.bool
    rows = ["".join(map(str, row)) for row in mask[0, 0].int().tolist()]
    assert rows == BY_HAND[layout][attention].split()


@pytest.mark.parametrize("attention", KINDS)
def test_mask_equals_a_dull_loop_on_hundreds_of_random_layouts(attention):
    for modality, generated in random_batches(attention, 60):
        rows = zip(modality.tolist(), generated.tolist())
        wanted = [dull_mask(*row, attention) for row in rows]
        assert attention_mask(modality, generated, attention)[:, 0].tolist() == wanted


@pytest.mark.parametrize("attention", KINDS)
def test_mask_mod_equals_attention_mask(attention):
    for modality, generated in random_batches(1, 20):
        (B, T), mod = modality.shape, mask_mod(modality, generated, attention)
        mask = create_mask(mod, B, None, T, T, device="cpu")
        assert torch.equal(mask, attention_mask(modality, generated, attention))


def test_causal_is_contained_in_every_kind_and_no_row_is_empty():
    for modality, generated in random_batches(2, 50):
        causal = attention_mask(modality, generated, "causal")
        for attention in KINDS:
            mask = attention_mask(modality, generated, attention)
            assert (mask | ~causal).all() and mask.any(-1).all()


@pytest.mark.parametrize("attention", KINDS)
def test_no_generated_token_reaches_an_earlier_position_through_any_number_of_layers(attention):
    opened = 0
    for modality, generated in random_batches(3, 100):
        reach = attention_mask(modality, generated, attention)[:, 0].double()
        later = torch.ones_like(reach).triu(1).bool()
        opened += (reach.bool() & later).sum()
        for _ in range(6):  # squared six times: 64 layers, more than there are positions
            reach = ((reach @ reach) > 0).double()
        assert not (reach.bool() & later & generated[:, None, :]).any()
    assert (opened > 0) == (attention != "causal")  # else nothing was tested


def test_mma_without_a_prompt_token_after_the_picture_is_causal():
    for layout in ("tiiiT.", "..tiiT", "iTTTTT", "ttiiii", "t.iTTT"):
        modality, generated = tensors([layout])
        causal = attention_mask(modality, generated, "causal")
        assert torch.equal(attention_mask(modality, generated, "mma"), causal)


GOOD = torch.tensor([[IMAGE, TEXT, TEXT]])
ANSWER = torch.tensor([[False, False, True]])


@pytest.mark.parametrize("build", [attention_mask, mask_mod])
@pytest.mark.parametrize("modality, generated, attention, says", [
    (GOOD[0], ANSWER[0], "mma", r"must be \(B, T\), but are torch.Size\(\[3\]\)"),
    (GOOD, ANSWER[:, :2], "mma", r"Size\(\[1, 3\]\) and torch.Size\(\[1, 2\]\)"),
    (GOOD.float(), ANSWER, "mma", "dtype is torch.float32"),
    (GOOD.bool(), ANSWER, "mma", "dtype is torch.bool"),
    (GOOD.to(torch.uint8), ANSWER, "mma", "signed integers, but its dtype is torch.uint8"),
    (GOOD, ANSWER.long(), "mma", "generated must be bool, but its dtype is torch.int64"),
    (GOOD, ANSWER, "nonsense", f"unknown attention 'nonsense': choose one of {', '.join(KINDS)}"),
    (torch.tensor([[IMAGE, TEXT, PAD]]), ANSWER, "mma", "only text is generated"),
    (torch.tensor([[TEXT, TEXT, IMAGE]]), ANSWER, "causal", "only text is generated"),
])
def test_wrong_input_is_refused_by_name(build, modality, generated, attention, says):
    with pytest.raises(ValueError, match=says):
        built = build(modality, generated, attention)
        built(*torch.zeros(4, dtype=int))  # mask_mod meets an unknown attention when it is asked


def test_the_example_in_the_documentation_runs():
    results = doctest.testmod(mma)
    assert results.attempted and not results.failed
