"""Grades `masks.py`. It holds the answers: look into it afterwards."""
import pytest
import torch

from drawing import compare, draw
from extras.exercises import masks
from extras.exercises.hints import ask, not_solved
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
          "<pad> snd is img img this ? snd <assistant> NO <EOS> snd and img ? YES <EOS>"]
CAPTION = ["<user> img img A RED FISH <EOS>"]


def right(modality, generated):
    return attention_mask(modality[None], generated[None])[0, 0]


def unmarked(modality, generated):
    return right(modality, torch.zeros_like(generated))


def causal(T):
    return torch.tensor([[k <= q for k in range(T)] for q in range(T)])


def leaks(mask, generated):
    knows = mask.clone()
    for via in range(len(mask)):  # who knows `via` knows all that it knows
        knows |= knows[:, via, None] & knows[via]
    return knows.triu(1) & generated


GAPS = {  # name: (answer, rows of tokens)
    "causal": (causal, [*ONE, "A"]),
    "one_question": (right, ONE),
    "with_padding": (right, PADDED + ONE),
    "leaks": (leaks, TWO + CAPTION),
    "caption": (lambda *about: leaks(unmarked(*about), about[1]), CAPTION),
    "two_questions": (right, TWO + PADDED),
    "three_modalities": (right, SOUNDS + TWO + PADDED),
    "one_step": (lambda m, g, start, stop: right(m, g)[start:stop, :stop], ONE + PADDED + SOUNDS),
}


def cases(name):
    """Yields for each case of an exercise: a remark, names of the tokens seen, and arguments."""
    for words in GAPS[name][1]:
        names, *about = row(words)
        T, generated = len(names), about[1]
        if name == "causal":
            yield "", names, [T]
        elif name == "leaks":
            to_next = torch.ones(T, T).triu().tril(1).bool()
            yield "mask: each token sees the next. ", names, [to_next, generated]
            yield "mask: a right one. ", names, [right(*about), generated]
            yield "mask: exercise 3, nothing generated. ", names, [unmarked(*about), generated]
        elif name == "one_step":
            first = names.index("<assistant>") + 1  # of the answer
            for start, stop in ((0, first), (first, first + 1), (first + 1, first + 2)):
                yield f"start {start}, stop {stop}: ", names[:stop], [*about, start, stop]
        else:
            yield "", names, about


@pytest.mark.parametrize("number, name", [*enumerate(GAPS, 1)])
def test_masks(number, name):
    verb = "know" if name in ("leaks", "caption") else "see"
    for given, names, arguments in cases(name):
        wanted = GAPS[name][0](*arguments)
        yours = ask("masks", number, getattr(masks, name), arguments)
        compare(yours, wanted, names, given, verb)


BUGS = {
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
}


def test_your_own_test(capsys):
    rows = []
    masks.check(lambda *about: rows.append(about) or right(*about))  # must accept the right mask
    if not rows:
        not_solved("masks", 9, "check never calls attention_mask")
    missed = []
    for words, bug in BUGS.items():
        try:
            masks.check(bug)
            missed.append(words)
        except (AssertionError, pytest.fail.Exception):
            pass
    for words in missed[:1]:
        drawings = [draw(BUGS[words](*about), right(*about), names, titles=("accepted", "right"))
                    for names, *about in map(row, PADDED + TWO)]
        pytest.fail(f"Your test finds {5 - len(missed)} of 5 bugs. It accepts this one, modeled on "
                    f"{words}.\n{next(filter(None, drawings))}", pytrace=False)
    with capsys.disabled():
        print("\nYou would have caught five bugs of real projects.")
