"""Says in words and in a drawing what is wrong with a mask: for the tests and for exercises."""
import pytest
import torch


def read_mask(rows):
    """Texts in which # = may attend -> (T, T) bool."""
    return torch.tensor([[sign == "#" for sign in row] for row in rows])


def describe(x):
    """A tensor as "(11, 11) bool", anything else as its type."""
    if not torch.is_tensor(x):
        return f"of type {type(x).__name__}"
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def compare_forms(yours, wanted, given=""):
    """Fail unless `yours` is a tensor of the shape and dtype of `wanted`."""
    if describe(yours) != describe(wanted):
        pytest.fail(f"{given}wanted is {describe(wanted)}, yours is {describe(yours)}",
                    pytrace=False)


SIGNS = "# sees, . does not, ! sees too much, ? sees too little. Row: who sees."
LEAK_SIGNS = "# a leak, . none; ! you mark it, but it is no leak; ? a leak that you miss."


def draw(yours, wanted, names, leaks=False, titles=("yours", "wanted")):
    """The rows in which two masks differ, and the first difference in words; "" if there is none.

    yours, wanted: (R, S) bool. names: of the S tokens that are seen; the last R of them look.
    leaks: True if the masks mark leaks, and not who sees whom.
    """
    wrong = (yours != wanted).nonzero().tolist()
    if not wrong:
        return ""
    start = len(names) - len(wanted)
    left, right = titles
    lines = [f"{len(wrong)} of {wanted.numel()} pairs {'is' if len(wrong) == 1 else 'are'} wrong.",
             LEAK_SIGNS if leaks else SIGNS, f"Columns: {' '.join(names)}",
             f"{'':14}{left:{2 * len(names) + 2}}{right}"]
    for q in sorted({q for q, _ in wrong}):
        pairs = list(zip(yours[q].tolist(), wanted[q].tolist()))
        signs = [".?!#"[2 * found + truth] for found, truth in pairs]
        truths = [".#"[truth] for _, truth in pairs]
        blind = "" if leaks or yours[q].any() else "   nobody is seen: 0/0 = NaN"
        lines.append(f"{names[start + q]:>12}  {' '.join(signs)}   {' '.join(truths)}{blind}")
    q, k = wrong[0]
    who, whom = (f"'{names[i]}' (position {i})" for i in (start + q, k))
    if leaks:
        lines.append(f"The first: you {'mark' if yours[q, k] else 'miss'} {who}, {whom}.")
    else:
        lines.append(f"The first: {who} {'sees' if yours[q, k] else 'does not see'} {whom}.")
    return "\n".join(lines)


def draw_mask(mask, modality, generated):
    """A right (T, T) bool mask: in each row who looks, and # for each token that it sees."""
    names = [{-1: "<pad>", 0: "TEXT" if made else "text", 1: "img"}.get(id, f"id {id}")
             for id, made in zip(modality.tolist(), generated.tolist())]
    rows = [" ".join(".#"[sees] for sees in row) for row in mask.tolist()]
    return "".join(f"{name:>12}  {row}\n" for name, row in zip(names, rows))


def compare(yours, wanted, names, given="", leaks=False):
    """Fail with a drawing unless two masks are the same. given: what the message starts with."""
    compare_forms(yours, wanted, given)
    if drawing := draw(yours, wanted, names, leaks):
        pytest.fail(given + drawing, pytrace=False)


def compare_numbers(yours, wanted, given):
    """Fail with the first wrong number unless two tensors are almost the same."""
    compare_forms(yours, wanted, given)
    wrong = (~yours.isclose(wanted, rtol=1e-3, atol=1e-3)).nonzero().tolist()
    for i in map(tuple, wrong[:1]):
        pytest.fail(f"{given}{len(wrong)} of {wanted.numel()} numbers are wrong. The first, at "
                    f"{[*i]}, is {yours[i]:.4g}, wanted is {wanted[i]:.4g}.", pytrace=False)
