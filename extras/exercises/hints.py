"""Hints: `python -m extras.exercises.hints masks 3` prints the one for exercise 3 of `masks.py`."""
import sys

import pytest

HINTS = {"masks": """\
`tril` keeps what lies on and below the diagonal, and `torch.ones` takes a dtype.
causal(T) | opened. Who looks is an image token; at whom: TEXT, and not generated.
The mask of exercise 2 & who looks is real & at whom is real | torch.eye(T, dtype=torch.bool).
mask.float() @ mask.float() is what two layers do; torch.linalg.matrix_power. Then .triu(1).
torch.zeros_like(generated). A caption has no text after the picture that is not generated.
generated.cumsum(0) is the same at two positions if nothing generated comes in between.
Who looks: modality[:, None] > TEXT. At whom: what is not of the same modality.
Some rows and columns of the whole mask. What is in the cache sees no token that comes later.
Nobody sees padding, text is causal, nothing leaks. Rows: padding at two places; no picture.
""", "model": """\
F.linear(...).chunk(3, -1), and each .unflatten(-1, (HEADS, -1)).transpose(1, 2): (B, HEADS, T, 32).
part(w, "attention.") is what attention needs. None of these F.linear has a bias.
images.permute(0, 3, 1, 2); weight.unflatten(1, (-1, 8, 8)); at last .flatten(2).transpose(1, 2).
x[modality == IMAGE] = image_tokens.flatten(0, 1). cumsum counts the tokens that are not PAD.
The weights of block i: part(w, f"blocks.{i}."). All norms are F.layer_norm with a weight alone.
logits[:, :-1] predict ids[:, 1:], and generated[:, 1:], as an index, picks from both.
torch.cat for ids, F.pad(..., value=TEXT) for modality. A row of length S needs mask[..., :S, :S].
mask[..., start:stop, :stop]. The position of a new token is the number of real tokens before it.
"""}


def not_solved(course, number, why):
    """End a test whose exercise is still a gap."""
    gaps = len(HINTS[course].splitlines())
    pytest.fail(f"{number} of {gaps}: not solved yet ({why}). Nothing is broken.\n"
                f"A hint: python -m extras.exercises.hints {course} {number}", pytrace=False)


def ask(course, number, function, arguments):
    """What the student's function returns."""
    __tracebackhide__ = True
    result = function(*arguments)
    if result is None:
        not_solved(course, number, f"{function.__name__} returns None")
    return result


if __name__ == "__main__":
    course, number = (*sys.argv[1:], "", "")[:2]
    hints = HINTS.get(course, "").splitlines()
    if not number.isdecimal() or not 1 <= int(number) <= len(hints):
        raise SystemExit(__doc__)
    print(hints[int(number) - 1])
