"""Two masks side by side: what a failing test of a mask shows."""


def difference(found, wanted, names):
    """The text that says how a mask is wrong, or "" if it is right.

    found, wanted: (B, 1, T, T) bool, True = may attend. names: B lists of what the T tokens are
    called. The first row of the batch that is wrong is drawn.
    """
    if not hasattr(found, "shape"):
        return f"A mask is wanted, but {found!r} is given: not solved yet, nothing is broken."
    if found.shape != wanted.shape:
        return f"The mask has the shape {tuple(found.shape)}; wanted is {tuple(wanted.shape)}."
    if found.dtype != wanted.dtype:
        return f"The mask holds {found.dtype}; wanted is {wanted.dtype}, True = may attend."
    for row_names, yours, right in zip(names, found[:, 0].tolist(), wanted[:, 0].tolist()):
        if yours != right:
            return side_by_side(yours, right, row_names)
    return ""


def side_by_side(yours, wanted, names):
    signs = {(True, True): "#", (False, False): ".", (True, False): "!", (False, True): "?"}
    side = max(map(len, names))
    wrong, drawn = [], []
    for q, name in enumerate(names):
        pairs = list(zip(yours[q], wanted[q]))
        wrong += [(q, k) for k, (mine, right) in enumerate(pairs) if mine != right]
        left = " ".join(signs[pair] for pair in pairs)
        right = " ".join(signs[sees, sees] for sees in wanted[q])
        drawn.append(f"{name:>{side}}  {left}   {right}")
    q, k = wrong[0]
    verb = "sees" if yours[q][k] else "does not see"
    return "\n".join([
        f"{len(wrong)} of {len(names) ** 2} pairs are wrong: ! sees too much, ? sees too little.",
        "Left is your mask, right the wanted one. A row is the token that looks.",
        *drawn,
        f"The first: '{names[q]}' (position {q}) {verb} '{names[k]}' (position {k})."])
