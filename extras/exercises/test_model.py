"""Grades `model.py` beside the project's model, which it must not import, with the same weights."""
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from data import EOS_ID, Dataset, make_world
from drawing import compare_forms, describe
from extras.exercises import model as yours
from extras.exercises.hints import ask
from extras.exercises.model import TEXT, part
from train import load

CHECKPOINT = Path(__file__).parents[2] / "results/mma.pt"
QUESTIONS = 36
STEPS = 6  # tokens of an answer, with its end
GAPS = "attention block vit embed logits loss generate".split()


@cache
def sheet():
    """The project's model, and the first questions about test scenes as a Dataset."""
    if not CHECKPOINT.exists():
        pytest.fail("results/mma.pt is missing; it is a part of the repository", pytrace=False)
    model, tokenizer, _ = load(CHECKPOINT)
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
    """An exercise -> weights, the project's function without them, and some arguments of both."""
    model, _ = sheet()
    w, first = model.state_dict(), model.blocks[0]
    row = images, ids, modality, generated, mask = inputs()
    *prompts, _, long_mask = inputs(prompts_only=True)
    x = model.embed(images, ids, modality) + model.position(model.positions(modality))
    y = first.norm1(x)
    return {
        "attention": (part(w, "blocks.0.attention."), first.attention,
                      [(y[:, -1:],), (y,), (y, mask)]),
        "block": (part(w, "blocks.0."), first, [(x, mask)]),
        "vit": (part(w, "vit."), model.vit, [(images,)]),
        "embed": (w, lambda *about: x, [row[:3]]),
        "logits": (w, lambda *about: model(*row[:4]), [(images, ids, modality, mask)]),
        "loss": (w, lambda *about: model.loss(*row[:4]), [row]),
        "generate": (w, lambda *about: model.generate(*prompts, STEPS, end=-1),
                     [(*prompts, long_mask, STEPS)]),
    }[name]


def grade(number, name, like=None):
    """Compare each case of an exercise, number by number."""
    __tracebackhide__ = True
    w, reference, given = cases(like or name)
    for arguments in given:
        wanted = reference(*arguments)
        found = ask("model", number, getattr(yours, name), (w, *arguments))
        shapes = [describe(x) for x in arguments if torch.is_tensor(x)]
        about = f"{name}, given {', '.join(shapes)}:\n"
        compare_forms(found, wanted, about)
        wrong = (~found.isclose(wanted, rtol=1e-3, atol=1e-3)).nonzero().tolist()
        for index in map(tuple, wrong[:1]):
            pytest.fail(f"{about}{len(wrong)} of {wanted.numel()} numbers are wrong. The first, at "
                        f"{list(index)}, is {found[index]:.4g}, wanted is {wanted[index]:.4g}.",
                        pytrace=False)


@pytest.mark.parametrize("number, name", [*enumerate(GAPS, 1)])
@torch.no_grad()
def test_model(number, name):
    grade(number, name)


@torch.no_grad()
def test_model_with_a_cache():
    grade(8, "generate_fast", like="generate")
    w, reference, [arguments] = cases("generate")
    work = []
    for function, given in (reference, arguments), (yours.generate_fast, (w, *arguments)):
        with FlopCounterMode(display=False) as counter:
            function(*given)
        work.append(counter.get_total_flops())
    if work[1] > 1.5 * work[0]:
        pytest.fail(f"generate_fast: right, but {work[1] / work[0]:.1f} times the work of the "
                    "project's. What is computed again and again?", pytrace=False)


@torch.no_grad()
def test_your_model_sees(capsys):
    _, dataset = sheet()
    w, reference, [arguments] = cases("generate")
    right = []
    for tokens in ask("model", 8, yours.generate_fast, (w, *arguments)), reference(*arguments):
        texts = [dataset.tokenizer.decode(takewhile(EOS_ID.__ne__, row)) for row in tokens.tolist()]
        right.append(sum(text == e.answer for text, e in zip(texts, dataset.examples)))
    with capsys.disabled():
        print(f"\nYour model sees: {right[0]} of {len(texts)}. The project's: {right[1]}.")
