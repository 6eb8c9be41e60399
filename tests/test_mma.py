"""The masks: against masks written by hand, a dull triple loop, and FlexAttention's own mask builder."""
import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import mma
from mma import IMAGE, KINDS, PAD, TEXT, attention_mask, mask_mod

AUDIO = 2

# text, image, image, image, question, question, answer, pad: 1 = may attend, read as rows that look.
MODALITY = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT, PAD]
GENERATED = [0, 0, 0, 0, 0, 0, 1, 0]
BY_HAND = {
    "causal": """
        1 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0
        1 1 1 0 0 0 0 0
        1 1 1 1 0 0 0 0
        1 1 1 1 1 0 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 1 0
        0 0 0 0 0 0 0 1""",
    "image": """
        1 0 0 0 0 0 0 0
        1 1 1 1 0 0 0 0
        1 1 1 1 0 0 0 0
        1 1 1 1 0 0 0 0
        1 1 1 1 1 0 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 1 0
        0 0 0 0 0 0 0 1""",
    "prefix": """
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 1 0
        0 0 0 0 0 0 0 1""",
    "mma": """
        1 0 0 0 0 0 0 0
        1 1 0 0 1 1 0 0
        1 1 1 0 1 1 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 0 0 0
        1 1 1 1 1 1 0 0
        1 1 1 1 1 1 1 0
        0 0 0 0 0 0 0 1""",
}


def by_hand(text):
    return torch.tensor([[int(c) for c in line.split()] for line in text.strip().splitlines()], dtype=torch.bool)


def dull_mask(modality, generated, kind):
    """The rule once more, as the dullest possible loop over plain Python lists."""
    T = len(modality)
    seen = [[False] * T for _ in range(T)]
    for q in range(T):
        for k in range(T):
            if modality[q] == PAD or modality[k] == PAD:
                seen[q][k] = q == k
            elif k <= q:
                seen[q][k] = True
            elif kind == "image":
                seen[q][k] = modality[q] != TEXT and modality[q] == modality[k]
            elif kind == "prefix":
                seen[q][k] = not generated[q] and not generated[k]
            elif kind == "mma":
                seen[q][k] = modality[q] != TEXT and modality[k] != modality[q] and not generated[k]
    return seen


def random_layout(rng):
    """Segments of text, image and audio in any order, answers among them, padding on both sides."""
    modality, generated = [PAD] * rng.choice([0, 0, 1, 3]), []
    generated += [False] * len(modality)
    for _ in range(rng.randint(1, 6)):
        what, n = rng.choice([TEXT, TEXT, IMAGE, AUDIO, 3]), rng.randint(1, 4)
        modality += [what] * n
        generated += [what == TEXT and rng.random() < 0.4] * n
    tail = rng.choice([0, 0, 1, 3])
    return modality + [PAD] * tail, generated + [False] * tail


def random_batch(rng, rows):
    layouts = [random_layout(rng) for _ in range(rows)]
    T = max(len(m) for m, _ in layouts)
    return (torch.tensor([m + [PAD] * (T - len(m)) for m, _ in layouts]),
            torch.tensor([g + [False] * (T - len(g)) for _, g in layouts]))


@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_the_one_written_by_hand(kind):
    mask = attention_mask(torch.tensor([MODALITY]), torch.tensor([GENERATED]).bool(), kind)
    assert mask.shape == (1, 1, 8, 8) and mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], by_hand(BY_HAND[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_two_pictures_with_text_between_follow_the_rule(kind):
    # image image text image image text answer answer
    m, g = [1, 1, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]
    expected = {
        "causal": ["10000000", "11000000", "11100000", "11110000", "11111000", "11111100", "11111110", "11111111"],
        "image": ["11011000", "11011000", "11100000", "11111000", "11111000", "11111100", "11111110", "11111111"],
        "prefix": ["11111100"] * 6 + ["11111110", "11111111"],
        "mma": ["10100100", "11100100", "11100000", "11110100", "11111100", "11111100", "11111110", "11111111"],
    }[kind]
    mask = attention_mask(torch.tensor([m]), torch.tensor([g]).bool(), kind)[0, 0].int().tolist()
    assert ["".join(map(str, row)) for row in mask] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_mask_equals_a_dull_loop_on_hundreds_of_random_layouts(kind):
    rng = random.Random(kind)
    for _ in range(60):
        modality, generated = random_batch(rng, rows=5)
        mask = attention_mask(modality, generated, kind)[:, 0].tolist()
        assert mask == [dull_mask(m, g, kind) for m, g in zip(modality.tolist(), generated.tolist())]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_mod_equals_attention_mask(kind):
    rng = random.Random(1)
    for _ in range(20):
        modality, generated = random_batch(rng, rows=4)
        (B, T), mod = modality.shape, mask_mod(modality, generated, kind)
        assert torch.equal(create_mask(mod, B, 1, T, T, device="cpu"), attention_mask(modality, generated, kind))


def test_causal_is_contained_in_every_kind_and_no_row_is_empty():
    rng = random.Random(2)
    for _ in range(50):
        modality, generated = random_batch(rng, rows=4)
        causal = attention_mask(modality, generated, "causal")
        for kind in KINDS:
            mask = attention_mask(modality, generated, kind)
            assert (mask | ~causal).all() and mask.any(-1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_generated_tokens_are_seen_by_later_positions_only(kind):
    rng = random.Random(3)
    for _ in range(50):
        modality, generated = random_batch(rng, rows=4)
        mask, T = attention_mask(modality, generated, kind), modality.shape[1]
        early = torch.ones(T, T, dtype=torch.bool).triu(1)
        assert not (mask & early & generated[:, None, None, :]).any()


def test_mma_without_a_prompt_token_after_the_image_is_causal():
    modality = torch.tensor([[TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT, PAD]])
    generated = torch.tensor([[False, False, False, False, True, True, False]])
    assert torch.equal(attention_mask(modality, generated, "mma"), attention_mask(modality, generated, "causal"))


def test_mma_opens_image_to_question_and_nothing_else():
    names, modality, generated = mma.example()
    opened = attention_mask(modality, generated, "mma") & ~attention_mask(modality, generated, "causal")
    pairs = {(names[q], names[k]) for q, k in opened[0, 0].nonzero().tolist()}
    assert pairs == {("img", word) for word in ("is", "there", "a", "cat", "?", "<assistant>")}


def test_any_signed_integer_dtype_gives_the_same_mask():
    modality, generated = torch.tensor([MODALITY]), torch.tensor([GENERATED]).bool()
    wanted = attention_mask(modality, generated, "mma")
    for dtype in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(attention_mask(modality.to(dtype), generated, "mma"), wanted)


GOOD = torch.tensor([[IMAGE, TEXT, TEXT]]), torch.tensor([[False, False, True]])


@pytest.mark.parametrize("build", [attention_mask, mask_mod])
@pytest.mark.parametrize("modality, generated, kind, says", [
    (GOOD[0][0], GOOD[1][0], "mma", r"modality must be a tensor of shape \(B, T\), but is \(3,\)"),
    ([[1, 0, 0]], GOOD[1], "mma", "modality must be a tensor .* but is list"),
    (GOOD[0], GOOD[1][:, :2], "mma", "differ in shape"),
    (GOOD[0].float(), GOOD[1], "mma", "dtype is torch.float32"),
    (GOOD[0].bool(), GOOD[1], "mma", "dtype is torch.bool"),
    (GOOD[0].to(torch.uint8), GOOD[1], "mma", "signed integers, but its dtype is torch.uint8"),
    (GOOD[0], GOOD[1].long(), "mma", "generated must be bool"),
    (GOOD[0], GOOD[1], "bidirectional", "unknown kind of attention 'bidirectional'"),
    (GOOD[0] - 3, GOOD[1], "mma", r"modality\[0, 0\] is -2"),
    (torch.tensor([[IMAGE, TEXT, PAD]]), GOOD[1], "mma", r"generated\[0, 2\] .* PAD"),
    (torch.tensor([[TEXT, TEXT, IMAGE]]), GOOD[1], "mma", r"generated\[0, 2\] .* modality 1"),
])
def test_wrong_input_is_refused_by_name(build, modality, generated, kind, says):
    with pytest.raises(ValueError, match=says):
        build(modality, generated, kind)


def test_printed_and_drawn_masks_show_every_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mma.main()
    text = capsys.readouterr().out
    assert all(kind in text for kind in KINDS) and max(map(len, text.splitlines())) <= 80
    assert text.count("▒") == 6 + 55 + 24 + 1  # image, prefix, mma, and the legend
    assert (tmp_path / "masks.png").stat().st_size > 1000
