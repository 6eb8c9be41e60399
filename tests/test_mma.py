"""The masks: against masks drawn by hand, a plain loop, and FlexAttention's own mask builder."""
import doctest
import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import mma
from drawing import difference
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


def compare(found, drawn, names):
    """found: a mask. drawn: for each row of the batch T texts in which # = may attend."""
    wanted = torch.tensor([[[sign == "#" for sign in text] for text in row] for row in drawn])
    called = {".": "<pad>", "i": "img", "2": "sound", "3": "depth"}
    names = [[called.get(name, name) for name in row] for row in names]
    if told := difference(found, wanted[:, None], names):
        pytest.fail(told, pytrace=False)


@pytest.mark.parametrize("attention, seen", [("causal", "#"), ("mma", "#o")])
def test_mask_is_the_one_drawn_in_the_documentation(attention, seen):
    rows = [line.split()[:14] for line in mma.__doc__.splitlines()]
    rows = [row for row in rows if len(row) == 14 and {*row[1:]} <= {*"#o."}]
    names = [name for name, *_ in rows]
    assert names == "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
    drawn = [["#" if sign in seen else "." for sign in signs] for _, *signs in rows]
    _, *about = read_rows("uiiiitttttaYE")
    compare(attention_mask(*about, attention), [drawn], [names])


@pytest.mark.parametrize("attention", KINDS)
def test_mask_is_the_one_drawn_by_hand(attention):
    head, *lines = BY_HAND.splitlines()
    if attention not in head.split():
        pytest.fail(f"draw its column in BY_HAND: {attention}", pytrace=False)
    column = head.split().index(attention) + 1
    layout = [line[0] for line in lines]
    _, *about = read_rows(layout)
    drawn = [line.split()[column] for line in lines]
    compare(attention_mask(*about, attention), [drawn], [layout])


def plain_rule(q, k, layout, attention):
    """The rule once more, for two positions of one layout."""
    looks, seen = layout[q], layout[k]
    if "." in (looks, seen):
        return q == k
    if k <= q:
        return True
    if any(c.isupper() for c in layout[q + 1:k + 1]):
        return False
    if attention == "causal":
        return False
    if attention == "image":
        return looks in "i23" and looks == seen
    if attention == "prefix":
        return not looks.isupper()
    if attention == "mma":
        return looks in "i23" and looks != seen
    pytest.fail(f"write its rule in plain_rule: {attention}", pytrace=False)


def random_batches(seed, n):
    """n batches of eight random layouts."""
    rng = random.Random(seed)
    for _ in range(n):
        T = rng.randint(1, 20)
        yield ["".join(rng.choices("..tttttTiiii22233", k=T)) for _ in range(8)]


@pytest.mark.parametrize("attention", KINDS)
def test_masks_equal_a_plain_loop_on_hundreds_of_random_rows(attention):
    for layouts in random_batches(attention, 40):
        _, *about = read_rows(*layouts)
        mask, places = attention_mask(*about, attention), range(len(layouts[0]))
        drawn = [[["-#"[plain_rule(q, k, row, attention)] for k in places] for q in places]
                 for row in layouts]
        compare(mask, drawn, layouts)
        mod = mask_mod(*about, attention)
        flex = create_mask(mod, 8, None, len(places), len(places), device="cpu")
        assert torch.equal(mask, flex)


@pytest.mark.parametrize("attention", KINDS)
def test_no_generated_token_reaches_an_earlier_position_through_any_number_of_layers(attention):
    opened = 0
    for layouts in random_batches(3, 100):
        _, modality, generated = read_rows(*layouts)
        reach = attention_mask(modality, generated, attention)[:, 0].double()
        opened += reach.triu(1).sum()
        for _ in range(6):  # squared six times: 64 layers, more than there are positions
            reach = (reach @ reach).clamp(max=1)
        assert not reach.triu(1)[generated[:, None].expand_as(reach)].any()
    assert opened or attention != "mma"  # else nothing was tested


def test_in_a_caption_the_mask_of_mma_is_the_causal_mask():
    _, *about = read_rows("uiiiiCAPTION.", "...tuiiiiCAPT")
    assert torch.equal(attention_mask(*about, "mma"), attention_mask(*about, "causal"))


def test_a_wrong_mask_is_drawn_beside_the_right_one_and_named_in_words():
    wanted = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    found = wanted.clone()
    found[1, 0, 0, 2], found[1, 0, 2, 0] = True, False
    told = difference(found, wanted, ["abc", ["img", "is", "yes"]])
    assert "2 of 9 pairs" in told and "\nyes  ? # #   # # #\n" in told
    assert told.endswith("The first: 'img' (position 0) sees 'yes' (position 2).")
    assert "(2, 1, 3); wanted is (2, 1, 3, 3)" in difference(found[..., 0], wanted, "")
    assert "torch.int64; wanted is torch.bool" in difference(found.long(), wanted, "")
    assert "None is given" in difference(None, wanted, "")


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
    (torch.tensor([[IMAGE, PAD - 1, TEXT]]), ANSWER, "mma", "or more, but is -2"),
    (torch.tensor([[IMAGE, TEXT, PAD]]), ANSWER, "mma", "only text is generated"),
    (torch.tensor([[TEXT, TEXT, IMAGE]]), ANSWER, "causal", "only text is generated"),
])
def test_wrong_input_is_refused_by_name(build, modality, generated, attention, says):
    with pytest.raises(ValueError, match=says):
        build(modality, generated, attention)


def test_the_example_in_the_documentation_runs():
    results = doctest.testmod(mma)
    assert results.attempted and not results.failed
