"""Grades `masks.py`. It holds the answers: look into it afterwards."""
import traceback

import pytest
import torch

from drawing import compare, draw, draw_mask
from extras.exercises import masks
from extras.exercises.hints import ask, grading
from extras.exercises.masks import PAD, TEXT, row
from mma import attention_mask

ONE = ["<user> img img is there a cat ? <assistant> YES <EOS>",
       "<user> is there a cat ? img img <assistant> NO <EOS>"]
PADDED = ["<pad> <pad> <user> img img what ? <assistant> RED <EOS>",
          "<user> img img <pad> <pad> what ? <assistant> RED <EOS> <pad>"]
TWO = ["<user> img img what ? <assistant> RED <EOS> where ? <assistant> LEFT <EOS>",
       "<user> what ? <assistant> RED <EOS> where ? <assistant> LEFT <EOS>",
       "<pad> img what ? <assistant> RED <EOS> img img where ? <assistant> LEFT <EOS>"]
SOUNDS = ["<user> img img snd snd what ? <assistant> RED <EOS>",
          "<pad> snd is img img this ? snd <assistant> NO <EOS> snd and img ? YES <EOS>",
          "<user> depth img img snd depth what ? <assistant> RED <EOS>"]
CAPTION = ["<user> img img A RED FISH <EOS>", "<pad> <user> img <pad> A RED FISH <EOS>"]


def right(modality, generated):
    """The mask of MMA for one row: (T,) and (T,) -> (T, T) bool."""
    return attention_mask(modality[None], generated[None])[0, 0]


def causal(T):
    """(T, T) bool, in the plainest way."""
    return torch.tensor([[k <= q for k in range(T)] for q in range(T)])


def leaks(mask, generated):
    """(T, T) bool: [q, k] if k is generated after q, and q knows it through any layers."""
    knows = mask.clone()
    for via in range(len(mask)):  # who knows `via` knows all that it knows
        knows |= knows[:, via, None] & knows[via]
    return knows.triu(1) & generated


GAPS = {  # name: (answer, rows of tokens)
    "causal": (causal, [*ONE, "A"]),
    "one_question": (right, ONE),
    "with_padding": (right, PADDED + ONE),
    "leaks": (leaks, TWO + CAPTION),
    "caption": (lambda m, g: leaks(right(m, g & False), g), CAPTION),
    "two_questions": (right, TWO + PADDED),
    "three_modalities": (right, SOUNDS + TWO + PADDED),
    "one_step": (lambda m, g, start, stop: right(m, g)[start:stop, :stop], ONE + PADDED + SOUNDS),
}


def cases(name, words):
    """Yields for each case of an exercise: a remark, names of the tokens seen, and arguments."""
    names, m, g = row(words)
    if name == "leaks":
        to_next = torch.ones(len(m), len(m)).triu().tril(1).bool()
        yield "mask: each token sees itself and the next. ", names, [to_next, g]
        yield "mask: a right one. ", names, [right(m, g), g]
        yield "mask: exercise 3, nothing generated. ", names, [right(m, g & False), g]
    elif name == "one_step":
        first = names.index("<assistant>") + 1  # of the answer
        for start, stop in ((0, first), (first, first + 1), (first + 1, first + 2)):
            yield f"start {start}, stop {stop}: ", names[:stop], [m, g, start, stop]
    else:
        yield "", names, [len(m)] if name == "causal" else [m, g]


@pytest.mark.parametrize("number, name", [*enumerate(GAPS, 1)])
def test_masks(number, name):
    answer, rows = GAPS[name]
    with grading("masks", number):
        for given, names, arguments in (case for words in rows for case in cases(name, words)):
            yours = ask(getattr(masks, name), arguments)
            compare(yours, answer(*arguments), names, given, name in ("leaks", "caption"))


WRONG = {
    "transformers #35855: padding was hidden, and the prompt was opened after that, with padding":
        lambda m, g: right(m, g) | (m > TEXT)[:, None] & (m == PAD),
    "transformers PR #30918: a mask of ones, so that the label leaks":
        lambda m, g: right(m, g) | True,
    "keras #23038: on one of several paths the causal mask was lost; here without a picture":
        lambda m, g: right(m, g) | (m <= TEXT).all() & (m != PAD)[:, None] & (m != PAD),
    "unsloth-zoo PR #963: an answer sees its own later words, and the loss is too good":
        lambda m, g: right(m, g) | g[:, None] & g,
    "nanoVLM #29: padding stands between picture and question, and is taken for text":
        lambda m, g: right(m.masked_fill((m == PAD) & (m.roll(1) > TEXT), TEXT), g),
    "a mask under which the picture never sees the question. That lacks the idea itself":
        lambda m, g: right(m, g) & causal(len(m)),
}


def rejected(attention_mask):
    """The line in which the student's test rejects a mask; "" if it accepts it."""
    try:
        masks.check(attention_mask)
        return ""
    except (Exception, pytest.fail.Exception) as error:
        place = traceback.extract_tb(error.__traceback__)[1]  # in `check`
        line = f"Line {place.lineno}: {place.line}"
        if isinstance(error, (AssertionError, pytest.fail.Exception)):
            return line
        pytest.fail(f"Your test stopped with {type(error).__name__}. Only a failed assert rejects "
                    f"a mask.\n{line}\n{error}")


@grading("masks", 9)
def test_your_own_test(capsys):
    asked = []
    if line := rejected(lambda *about: asked.append(about) or right(*about)):
        drawing = "".join(draw_mask(right(*about), *about) for about in asked[-1:])
        pytest.fail(f"Your test rejects the right mask, for this row:\n{drawing}{line}")
    if not asked:
        pytest.fail("not solved yet (check never calls attention_mask). Nothing is broken.")
    missed = [words for words, wrong in WRONG.items() if not rejected(wrong)]
    for words in missed[:1]:
        drawing = next(filter(None, (
            draw(WRONG[words](*about), right(*about), names, titles=("accepted", "right"))
            for names, *about in map(row, PADDED + TWO))))
        found = 5 - sum("#" in other for other in missed)  # a bug has the number of its report
        bug = "a bug modeled on " * ("#" in words)
        pytest.fail(f"Your test finds {found} of 5 bugs. It accepts {bug}{words}.\n{drawing}")
    with capsys.disabled():
        print("\nYou would have caught five bugs of real projects.")
