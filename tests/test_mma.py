"""The masks: against a mask drawn by hand, a dull loop, and FlexAttention's own mask builder."""
import doctest
import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import mma
from mma import IMAGE, KINDS, PAD, TEXT, attention_mask, mask_mod

# Padding, two pictures (i) and two sounds (2) with text between, question, answer, question 2,
# answer 2, padding. A row is the position that looks; # = may attend.
BY_HAND = """\
   causal         image          prefix         mma
.  #------------  #------------  #------------  #------------
i  -#-----------  -##--#-------  -#######-----  -#-##-##-----
i  -##----------  -##--#-------  -#######-----  -####-##-----
2  -###---------  -###--#------  -#######-----  -#####-#-----
t  -####--------  -####--------  -#######-----  -####--------
i  -#####-------  -#####-------  -#######-----  -#######-----
2  -######------  -######------  -#######-----  -#######-----
t  -#######-----  -#######-----  -#######-----  -#######-----
T  -########----  -########----  -########----  -########----
t  -#########---  -#########---  -##########--  -#########---
t  -##########--  -##########--  -##########--  -##########--
T  -###########-  -###########-  -###########-  -###########-
.  ------------#  ------------#  ------------#  ------------#
"""


def read_rows(*layouts):
    """Layouts of equal length -> (ids, modality, generated).

    A layout is a text, one character a position. i: of a picture; 2 and 3: of further modalities;
    a dot: padding; another letter: a token of text, generated if it is a capital.
    """
    modalities = {".": PAD, "i": IMAGE, "2": 2, "3": 3}
    ids, modality, generated = [], [], []
    for layout in layouts:
        ids.append([ord(c) % 32 for c in layout])
        modality.append([modalities.get(c, TEXT) for c in layout])
        generated.append([c.isupper() for c in layout])
    return torch.tensor(ids), torch.tensor(modality), torch.tensor(generated)


def dull_rule(q, k, modality, generated, attention):
    """The rule once more, for one row as plain lists."""
    if modality[q] == PAD or modality[k] == PAD:
        return q == k
    if k <= q:
        return True
    if any(generated[q + 1:k + 1]):
        return False
    if attention == "image":
        return modality[q] != TEXT and modality[q] == modality[k]
    if attention == "prefix":
        return not generated[q]
    if attention == "mma":
        return modality[q] != TEXT and modality[q] != modality[k]
    assert attention == "causal", "write its rule here, too"
    return False


def random_batches(seed, n):
    """n batches of eight random rows."""
    rng = random.Random(seed)
    for _ in range(n):
        T = rng.randint(1, 20)
        layouts = ["".join(rng.choices("..tttttTiiii22233", k=T)) for _ in range(8)]
        yield read_rows(*layouts)[1:]


@pytest.mark.parametrize("attention", KINDS)
def test_mask_is_the_one_drawn_by_hand(attention):
    head, *lines = BY_HAND.splitlines()
    column = head.split().index(attention) + 1
    _, modality, generated = read_rows("".join(line[0] for line in lines))
    mask = attention_mask(modality, generated, attention)
    assert mask.shape == (1, 1, 13, 13) and mask.dtype == torch.bool
    for row, line in zip(mask[0, 0].tolist(), lines):
        assert row == [sign == "#" for sign in line.split()[column]]


@pytest.mark.parametrize("attention", KINDS)
def test_masks_equal_a_dull_loop_on_hundreds_of_random_rows(attention):
    for modality, generated in random_batches(attention, 40):
        B, T = modality.shape
        mask = attention_mask(modality, generated, attention)
        for row, *about in zip(mask[:, 0].tolist(), modality.tolist(), generated.tolist()):
            for q in range(T):
                assert row[q] == [dull_rule(q, k, *about, attention) for k in range(T)]
        mod = mask_mod(modality, generated, attention)
        assert torch.equal(mask, create_mask(mod, B, None, T, T, device="cpu"))


@pytest.mark.parametrize("attention", KINDS)
def test_no_generated_token_reaches_an_earlier_position_through_any_number_of_layers(attention):
    opened = 0
    for modality, generated in random_batches(3, 100):
        reach = attention_mask(modality, generated, attention)[:, 0].double()
        opened += reach.triu(1).sum()
        for _ in range(6):  # squared six times: 64 layers, more than there are positions
            reach = (reach @ reach).clamp(max=1)
        assert not reach.triu(1)[generated[:, None].expand_as(reach)].any()
    assert (opened > 0) == (attention != "causal")  # else nothing was tested


_, GOOD, ANSWER = read_rows("itT")


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
