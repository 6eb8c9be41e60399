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


def draw(yours, wanted, names, verb="see", titles=("yours", "wanted")):
    """The rows in which two masks differ, and the first difference in words; "" if there is none.

    yours, wanted: (R, S) bool. names: of the S tokens that are seen; the last R of them look.
    """
    wrong = (yours != wanted).nonzero().tolist()
    if not wrong:
        return ""
    start = len(names) - len(wanted)
    left, right = titles
    lines = [f"{len(wrong)} of {wanted.numel()} pairs {'is' if len(wrong) == 1 else 'are'} wrong "
             f"(! {verb}s too much, ? {verb}s too little). Row: who {verb}s.",
             f"Columns: {' '.join(names)}", f"{'':14}{left:{2 * len(names) + 2}}{right}"]
    for q in sorted({q for q, _ in wrong}):
        pairs = list(zip(yours[q].tolist(), wanted[q].tolist()))
        signs = [".?!#"[2 * found + truth] for found, truth in pairs]
        truths = [".#"[truth] for _, truth in pairs]
        blind = "   nobody is seen: 0/0 = NaN" if verb == "see" and not yours[q].any() else ""
        lines.append(f"{names[start + q]:>12}  {' '.join(signs)}   {' '.join(truths)}{blind}")
    q, k = wrong[0]
    does = f"{verb}s" if yours[q, k] else f"does not {verb}"
    lines.append(f"The first: '{names[start + q]}' (position {start + q}) {does} '{names[k]}' "
                 f"(position {k}).")
    return "\n".join(lines)


def compare(yours, wanted, names, given="", verb="see"):
    """Fail with a drawing unless two masks are the same. given: what the message starts with."""
    compare_forms(yours, wanted, given)
    if drawing := draw(yours, wanted, names, verb):
        pytest.fail(given + drawing, pytrace=False)
