"""Grades `model.py` beside the project's model, which it must not import, with the same weights."""
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from data import EOS_ID, Dataset, make_world
from drawing import compare_numbers, describe
from extras.exercises import model as yours
from extras.exercises.hints import ask, grading
from extras.exercises.model import IMAGE, TEXT, part
from train import load

QUESTIONS = 36
STEPS = 6  # tokens of an answer, with its end
GAPS = "attention block vit embed logits loss generate".split()


@cache
def sheet():
    """The project's model, and the first questions about test scenes as a Dataset."""
    model, tokenizer, _ = load(Path(__file__).parents[2] / "results/mma.pt")
    world = make_world("test", 8)
    return model, Dataset(world.questions[:QUESTIONS], world.images, tokenizer, model.config)


def inputs(prompts_only=False):
    """Of the questions: images, ids, modality, generated, and the mask, for prompts with STEPS."""
    model, dataset = sheet()
    batch = dataset.batch(range(len(dataset.rows)), prompts_only=prompts_only)
    modality, generated = batch["modality"], batch["generated"]
    more = 0, STEPS if prompts_only else 0
    mask = model.mask(F.pad(modality, more, value=TEXT), F.pad(generated, more, value=True))
    return batch["images"][batch["image_index"]], batch["ids"], modality, generated, mask


def cases(name):
    """An exercise -> the project's function, and cases: a remark, weights and other arguments."""
    model, _ = sheet()
    w, first = model.state_dict(), model.blocks[0]
    row = images, ids, modality, generated, mask = inputs()
    *prompts, _, long_mask = inputs(prompts_only=True)
    x = model.embed(*row[:3])
    y, heads, vit = first.norm1(x), part(w, "blocks.0.attention."), part(w, "vit.")
    off = {name: 0 * x if "out." in name or "down." in name else x for name, x in vit.items()}
    others = torch.cat([255 - images[:1], images[1:]])  # because images[0] is images[1]
    longer = F.pad(modality, (0, 16), value=TEXT)
    longer[0].clamp_(max=TEXT)  # no picture
    longer[1, -16:] = IMAGE  # the second picture
    return {
        "attention": (lambda w, *about: first.attention(*about), [
            ("with one token (softmax is 1): look at values, heads, out.weight", heads, y[:, -1:]),
            ("without a mask: look at queries, keys, norm, scale, softmax", heads, y),
            ("with a mask", heads, y, mask)]),
        "block": (lambda w, *about: first(*about), [("", part(w, "blocks.0."), x, mask)]),
        "vit": (lambda w, images: functional_call(model.vit, w, images), [
            ("blocks switched off: look at scale, convolutions, order of patches", off, images),
            ("with all blocks", vit, images)]),
        "embed": (lambda w, *row: model.embed(*row) + model.position(model.positions(row[2])), [
            ("", w, *row[:3]),
            ("rows with no and with two pictures", w, others, F.pad(ids, (0, 16)), longer)]),
        "logits": (lambda *_: model(*row[:4]), [("", w, *row[:3], mask)]),
        "loss": (lambda *_: model.loss(*row[:4]), [("", w, *row)]),
        "generate": (lambda *_: model.generate(*prompts, STEPS, end=-1),
                     [("", w, *prompts, long_mask, STEPS)]),
    }[name]


def grade(name, like=None):
    """Compare each case of an exercise, number by number."""
    __tracebackhide__ = True
    reference, given = cases(like or name)
    for remark, *arguments in given:
        wanted = reference(*arguments)
        shapes = ", ".join(describe(x) for x in arguments if torch.is_tensor(x))
        about = f"{name}, given {shapes}:\n" + f"{remark}:\n" * bool(remark)
        compare_numbers(ask(getattr(yours, name), arguments), wanted, about)


@pytest.mark.parametrize("number, name", [*enumerate(GAPS, 1)])
@torch.no_grad()
def test_model(number, name):
    with grading("model", number):
        grade(name)


@torch.no_grad()
@grading("model", 8)
def test_model_with_a_cache(capsys):
    grade("generate_fast", like="generate")
    reference, [(_, *arguments)] = cases("generate")
    work = []
    for function in reference, yours.generate_fast:
        with FlopCounterMode(display=False) as counter:
            tokens = function(*arguments)
        work.append(counter.get_total_flops())
    if work[1] > 1.5 * work[0]:
        pytest.fail(f"generate_fast: right, but {work[1] / work[0]:.1f} times the work of the "
                    "project's. What is computed again and again?")
    _, dataset = sheet()
    texts = [dataset.tokenizer.decode(takewhile(EOS_ID.__ne__, row)) for row in tokens.tolist()]
    right = sum(text == example.answer for text, example in zip(texts, dataset.examples))
    with capsys.disabled():
        print(f"\nYour model sees: {right} of {len(texts)} answers are right.")
