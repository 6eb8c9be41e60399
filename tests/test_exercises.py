"""The exercises: graders accept the project's own code, and name what is wrong."""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from drawing import compare, draw, read_mask
from extras.exercises import masks, test_masks, test_model
from extras.exercises import model as modules
from extras.exercises.hints import HINTS
from extras.exercises.masks import IMAGE, PAD, TEXT, row
from extras.exercises.test_masks import causal, leaks, right
from model import Attention, Block, MultimodalGPT, ViT

SCREEN = SimpleNamespace(disabled=nullcontext)  # in place of capsys


def check_all_but_the_idea(attention_mask):
    for words in ("<pad> <user> img <pad> what ? RED FISH <EOS>", "<user> what ? RED FISH <EOS>"):
        _, modality, generated = row(words)
        mask, real = attention_mask(modality, generated), modality != PAD
        assert not mask[real][:, ~real].any() and not mask.triu(1)[modality == TEXT].any()


def check(attention_mask):
    check_all_but_the_idea(attention_mask)
    assert attention_mask(*row("img what ? RED")[1:])[0, 2]


def loaded(cls, w, mask=None):
    """A module of the project with these weights; a mask in place of its own."""
    with torch.device("meta"):  # no random weights first
        module = cls(test_model.sheet()[0].config)
    module.load_state_dict(w, assign=True)
    module.mask = lambda *_: mask
    return module


def embed(w, images, ids, modality):
    model = loaded(MultimodalGPT, w)
    return model.embed(images, ids, modality) + model.position(model.positions(modality))


def generate(w, images, ids, modality, mask, steps):
    return loaded(MultimodalGPT, w, mask).generate(images, ids, modality, steps, end=-1)


MASKS = {name: answer for name, (answer, _) in test_masks.GAPS.items()} | {"check": check}
MODEL = {
    "attention": lambda w, *about: loaded(Attention, w)(*about),
    "block": lambda w, *about: loaded(Block, w)(*about),
    "vit": lambda w, images: loaded(ViT, w)(images),
    "embed": embed,
    "logits": lambda w, *about: loaded(MultimodalGPT, w, about[3])(*about),
    "loss": lambda w, *about: loaded(MultimodalGPT, w, about[4]).loss(*about[:4]),
    "generate": generate,
    "generate_fast": generate,
}


@pytest.fixture(autouse=True)
def solve(monkeypatch):
    """All gaps hold the project's code; solve(name, function) puts something else into one."""
    def solve(name, function):
        monkeypatch.setattr(masks if name in MASKS else modules, name, function)

    monkeypatch.setattr(test_model, "QUESTIONS", 6)
    for name, function in (MASKS | MODEL).items():
        solve(name, function)
    return solve


def grade(name):
    """What pytest does for one exercise."""
    if name == "check":
        test_masks.test_your_own_test(SCREEN)
    elif name == "generate_fast":
        test_model.test_model_with_a_cache(SCREEN)
    elif name in MASKS:
        test_masks.test_masks([*MASKS].index(name) + 1, name)
    else:
        test_model.test_model([*MODEL].index(name) + 1, name)


def fails(says, call, *arguments):
    """The call fails without a traceback; each line of `says` comes in its message."""
    with pytest.raises(pytest.fail.Exception) as failure:
        call(*arguments)
    assert not failure.value.pytrace
    for line in says.split("\n"):
        assert line in failure.value.msg


def test_a_wrong_mask_is_drawn_beside_the_right_one_and_named_in_words():
    yours, wanted = read_mask(["##.", "...", "###"]), read_mask(["#..", "##.", "###"])
    assert draw(yours, wanted, ["img", "is", "YES"]) == """\
3 of 9 pairs are wrong.
# sees, . does not, ! sees too much, ? sees too little. Row: who sees.
Columns: img is YES
              yours   wanted
         img  # ! .   # . .
          is  ? ? .   # # .   nobody is seen: 0/0 = NaN
The first: 'img' (position 0) sees 'is' (position 1)."""
    fails("wanted is (3, 3) bool, yours is (3,) bool", compare, yours[0], wanted, "abc")
    fails("wanted is (3, 3) bool, yours is of type list", compare, [yours], wanted, "abc")
    compare(wanted.clone(), wanted, "abc")


def test_the_code_of_the_project_passes_both_courses(capsys):
    for name in MASKS | MODEL:
        grade(name)
    said = capsys.readouterr().out
    assert "You would have caught five bugs of real projects." in said
    assert " of 6 answers are right." in said


@pytest.mark.parametrize("course, gaps", [("masks", MASKS), ("model", MODEL)])
def test_a_gap_is_not_solved_and_not_wrong_and_has_a_hint(solve, course, gaps):
    assert len(HINTS[course].splitlines()) == len(gaps)
    for number, name in enumerate(gaps, 1):
        solve(name, lambda *_: None)
        says = f"Exercise {number} of {len(gaps)}: not\nNothing is broken.\n{course} {number}"
        fails(says, grade, name)


def prompt_seen(m, g):
    """Image tokens see all text that is not generated, of any prompt, and padding sees nothing."""
    mask = causal(len(m)) | (m == IMAGE)[:, None] & (m == TEXT) & ~g
    return mask & (m != PAD)[:, None] & (m != PAD)


def promises(promise):
    """A check of one row: some images and words, one of them padded."""
    def check(attention_mask):
        assert promise(attention_mask(*row("<pad> <user> img what ? RED FISH <EOS>")[1:]))
    return check


@pytest.mark.parametrize("name, wrong, says", [
    ("causal", lambda T: torch.ones(T, T).tril(), "wanted is (11, 11) bool, yours is (11, 11)"),
    ("causal", lambda T: causal(T).T, "'<user>' (position 0) sees 'img' (position 1)."),
    ("one_question", lambda m, g: right(m, g & False), "4 of 121\n'img' (position 1) sees 'YES'"),
    ("one_question", lambda m, g: causal(len(m)) | ~g, "'<user>' (position 0) sees 'img'"),
    ("with_padding", prompt_seen, "nobody is seen: 0/0 = NaN\n'<pad>' (position 0) does not see"),
    ("with_padding", lambda m, g: right(m, g) | (m == PAD), "'<pad>' (position 0) sees '<pad>'"),
    ("leaks", lambda mask, g: mask.triu(1) & g, "itself and the next\nmiss '<user>' (position 0)"),
    ("leaks", lambda mask, g: leaks(mask, g | True), "you mark '<user>' (position 0), 'img'"),
    ("caption", lambda m, g: leaks(right(m, g), g), "you miss 'img' (position 1), 'A'"),
    ("caption", right, "you mark '<user>' (position 0), '<user>' (position 0)"),
    ("two_questions", lambda m, g: prompt_seen(m, g) | causal(len(m)),
     "6 of 169\n'img' (position 1) sees 'where' (position 8)."),
    ("two_questions", lambda m, g: causal(len(m)), "'img' (position 1) does not see 'what'"),
    ("three_modalities", lambda m, g: right(m.clamp(max=IMAGE), g), "does not see 'snd'"),
    ("three_modalities", lambda m, g: right(m, g) | (m > 0)[:, None] & (m > 0), "sees 'img'"),
    ("one_step", lambda m, g, a, b: right(m, g)[a:b, a:b], "start 9, stop 10: wanted is (1, 10)"),
    ("one_step", lambda m, g, a, b: causal(b)[a:b], "start 0, stop 9\ndoes not see 'is'"),
    ("check", promises(lambda mask: not mask[1:, 0].any()), "finds 2 of 5 bugs\nkeras #23038"),
    ("check", promises(lambda mask: not mask[5, 7]), "finds 2 of 5 bugs\n#35855\nsees '<pad>'"),
    ("check", promises(lambda mask: ~(mask ^ mask.tril()).any() | mask.all()), "for this row"),
    ("check", lambda attention_mask: attention_mask(*row("img A")[1:]).nothing, "AttributeError"),
    ("check", check_all_but_the_idea, "5 of 5 bugs. It accepts a mask under which the picture"),
    ("attention", lambda w, x, mask=None: MODEL["attention"](w, x), ") bool:\nThe first, at [0, "),
    ("block", lambda w, x, mask: MODEL["block"](w, x), "block, given (6, "),
    ("vit", lambda w, images: MODEL["vit"](w, images.flip(1)), "numbers are wrong. The first"),
    ("embed", lambda w, i, ids, m: embed(w, i, ids, m.clamp(min=0)), "embed, given (6, 64, 64, 3)"),
    ("embed", lambda w, images, *about: embed(w, images[1:2].expand_as(images), *about),
     "no and with two pictures:"),
    ("logits", lambda w, *about: embed(w, *about[:3]), "128) float32"),
    ("loss", lambda w, *about: MODEL["loss"](w, *about).item(), "wanted is () float32, yours"),
    ("generate", lambda *about: generate(*about) + 1, "generate, given (6, 64, 64, 3) uint8"),
    ("generate_fast", lambda *about: [generate(*about), generate(*about)][1], "but 2.0 times"),
])
def test_a_mistake_is_named(solve, name, wrong, says):
    solve(name, wrong)
    fails(says, grade, name)


def test_a_test_must_accept_the_right_mask(solve):
    solve("check", promises(lambda mask: mask[0, 5]))
    fails("rejects the right mask, for this row:\n         img  . # # # # . . .\nLine ",
          grade, "check")
