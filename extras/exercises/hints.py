"""Hints: `python -m extras.exercises.hints masks 3` prints the one for exercise 3 of `masks.py`."""
import sys
from contextlib import contextmanager

import pytest

HINTS = {"masks": """\
`tril` keeps what lies on and below the diagonal, and `torch.ones` takes a dtype.
Start from causal(T). In which rows is more True? And in which columns of these?
Which rows, and which columns, must become empty? And which pairs are True all the same?
know = mask; T times: know = (know.float() @ mask.float()) > 0. Which pairs of it are leaks?
What does the picture take for its question? And which words see the picture?
generated.cumsum(0) is the same at two positions if nothing generated comes in between.
Who looks: modality[:, None] > TEXT. At whom: what is not of the same modality.
Some rows and columns of the whole mask. What is in the cache sees no token that comes later.
Nobody sees padding, text is causal, nothing leaks; what is open? Rows: padding; no picture.
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


@contextmanager
def grading(course, number):
    """A failure in it says which exercise it is about, and how to get a hint; no traceback."""
    try:
        yield
    except pytest.fail.Exception as failure:
        failure.pytrace = False
        failure.msg = (f"Exercise {number} of {len(HINTS[course].splitlines())}: {failure.msg}\n"
                       f"A hint: python -m extras.exercises.hints {course} {number}")
        raise failure from None


def ask(function, arguments):
    """What a student's function returns; a gap that is still empty fails in words."""
    __tracebackhide__ = True
    result = function(*arguments)
    if result is None:
        pytest.fail("not solved yet: the gap returns None. Nothing is broken.")
    return result


if __name__ == "__main__":
    course, number = (*sys.argv[1:], "", "")[:2]
    hints = HINTS.get(course, "").splitlines()
    print({str(i): hint for i, hint in enumerate(hints, 1)}.get(number, __doc__))
