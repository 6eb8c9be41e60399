"""The masks: against masks drawn by hand and a plain loop."""
import doctest
import random

import pytest
import torch

import mma
from drawing import compare, read_mask
from mma import IMAGE, KINDS, PAD, TEXT, attention_mask, mask_mod

# Padding, two pictures (i) and two sounds (2) with text between, question, answer, question 2,
# answer 2, padding. A row is the position that looks; # = may attend.
BY_HAND = """\
   causal         image          future         prefix         mma
.  #............  #............  #............  #............  #............
i  .#...........  .##..#.......  .#######.....  .#######.....  .#.##.##.....
i  .##..........  .##..#.......  .#######.....  .#######.....  .####.##.....
2  .###.........  .###..#......  .#######.....  .#######.....  .#####.#.....
t  .####........  .####........  .####........  .#######.....  .####........
i  .#####.......  .#####.......  .#######.....  .#######.....  .#######.....
2  .######......  .######......  .#######.....  .#######.....  .#######.....
t  .#######.....  .#######.....  .#######.....  .#######.....  .#######.....
T  .########....  .########....  .########....  .########....  .########....
t  .#########...  .#########...  .#########...  .##########..  .#########...
t  .##########..  .##########..  .##########..  .##########..  .##########..
T  .###########.  .###########.  .###########.  .###########.  .###########.
.  ............#  ............#  ............#  ............#  ............#
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


@pytest.mark.parametrize("attention, opened", [("causal", "."), ("mma", "#")])
def test_mask_is_the_one_drawn_in_the_documentation(attention, opened):
    rows = [line.split()[:14] for line in mma.__doc__.splitlines() if "# " in line]
    names = [row[0] for row in rows]
    assert names == "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
    wanted = ["".join(row[1:]).replace("o", opened) for row in rows]
    _, *about = read_rows("uiiiitttttaYE")
    compare(attention_mask(*about, attention)[0, 0], read_mask(wanted), names)


@pytest.mark.parametrize("attention", KINDS)
def test_mask_is_the_one_drawn_by_hand(attention):
    head, *rows = map(str.split, BY_HAND.splitlines())
    if attention not in head:
        pytest.fail(f"draw the column of {attention!r} in BY_HAND", pytrace=False)
    names = [row[0] for row in rows]
    wanted = [row[1 + head.index(attention)] for row in rows]
    _, *about = read_rows(names)
    compare(attention_mask(*about, attention)[0, 0], read_mask(wanted), names)


def plain_rule(q, k, layout, attention):
    """The rule once more, for two positions of one layout."""
    looks, seen = layout[q], layout[k]
    if "." in (looks, seen):
        return q == k
    if k <= q:
        return True
    if any(c.isupper() for c in layout[q + 1:k + 1]):
        return False
    opened = {
        "causal": False,
        "image": looks in "i23" and looks == seen,
        "future": looks in "i23",
        "prefix": not looks.isupper(),
        "mma": looks in "i23" and looks != seen,
    }
    assert attention in opened, f"write the rule of {attention!r} in plain_rule, too"
    return opened[attention]


@pytest.mark.parametrize("attention", KINDS)
def test_masks_equal_a_plain_loop_and_answers_never_reach_back_through_layers(attention):
    rng = random.Random(0)
    for T in [*range(1, 21)] * 2:
        layouts = ["".join(rng.choices("..tttttTiiii22233", k=T)) for _ in range(8)]
        _, modality, generated = read_rows(*layouts)
        mask = attention_mask(modality, generated, attention)
        assert mask.dtype == torch.bool and mask.shape == (8, 1, T, T)
        for layout, found in zip(layouts, mask[:, 0]):
            wanted = ["".join(".#"[plain_rule(q, k, layout, attention)] for k in range(T))
                      for q in range(T)]
            compare(found, read_mask(wanted), layout)
        reach = torch.linalg.matrix_power(mask[:, 0].double(), 20)  # after twenty layers
        assert not reach.triu(1)[generated[:, None].expand_as(reach)].any()


_, GOOD, ANSWER = read_rows("itT")


@pytest.mark.parametrize("build", [attention_mask, mask_mod])
@pytest.mark.parametrize("modality, generated, attention, says", [
    (GOOD[0], ANSWER[0], "mma", r"must be \(B, T\), but are torch.Size\(\[3\]\)"),
    (GOOD, ANSWER[:, :2], "mma", r"Size\(\[1, 3\]\) and torch.Size\(\[1, 2\]\)"),
    (GOOD.float(), ANSWER, "mma", "dtype is torch.float32"),
    (GOOD.to(torch.uint8), ANSWER, "mma", "signed integers, but its dtype is torch.uint8"),
    (GOOD, ANSWER.long(), "mma", "generated must be bool, but its dtype is torch.int64"),
    (GOOD, ANSWER, "nonsense", f"unknown attention 'nonsense': choose one of {', '.join(KINDS)}"),
    (GOOD * 0 + PAD - 1, ANSWER, "mma", "or more, but is -2"),
    (torch.tensor([[IMAGE, TEXT, PAD]]), ANSWER, "causal", "only text is generated"),
])
def test_wrong_input_is_refused_by_name(build, modality, generated, attention, says):
    with pytest.raises(ValueError, match=says):
        build(modality, generated, attention)


def test_the_example_in_the_documentation_runs():
    results = doctest.testmod(mma)
    assert results.attempted and not results.failed
