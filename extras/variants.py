"""Other captions, and scenes of look-alikes. `compare.py` uses them."""
from functools import cache
from itertools import product
from random import Random

import numpy as np

from data import (COLORS, COMMON, NO_YES, OBJECTS, PLACES, THEMES, Example, Part, draw,
                  exist_question, make_scene)
from train import Trainer

FISH = range(1, 7)  # things of the name that is asked for, in scenes of look-alikes
LOOK_ALIKES = 200  # scenes for each number of FISH and each answer


class OneWay(Trainer):
    """Captions that say what is at each place, and never where a thing is."""

    def __init__(self, options, folder, model, tokenizer, parts):
        super().__init__(options, folder, model, tokenizer, [one_way(part) for part in parts])


def one_way(part):
    """The same Part with the place first in each phrase: "top-left red fish, left blue cup"."""
    captions = []
    for example in part.captions:
        phrases = []
        for phrase in example.answer.split(", "):
            place_first = sorted(phrase.split(), key=lambda word: word not in PLACES)
            phrases.append(" ".join(place_first))
        captions.append(example._replace(answer=", ".join(phrases)))
    return part._replace(captions=captions)


def look_alikes(fish, there, rng):
    """(Scene of nine things, name, color): is there such a thing, a red fish? As `there` says.

    `fish` things have the name. With and without the red one, names and colors are the same: only
    which thing has which color tells the answer.
    """
    while True:
        scene = make_scene(rng.random())
        name = rng.choice((*COMMON, *THEMES[scene.theme]))
        objects = sorted(scene.objects, key=lambda o: o.name != name)  # those of this name first
        if len(objects) == 9 and objects[fish].name != name:
            break
    color, *others = rng.sample(list(COLORS), len(COLORS))
    colors = [color, *others[:fish - 1], rng.choice(others)]  # the last one: of another thing
    if not there:
        colors[0], colors[-1] = colors[-1], colors[0]
    for i, own in enumerate(colors):
        objects[i] = objects[i]._replace(name=name if i < fish else objects[i].name, color=own)
    return scene._replace(objects=tuple(objects)), name, color


@cache
def look_alike_part(name, size):
    """A Part with two questions about each scene of look-alikes: "Is there a red fish?", and as a
    control "Is there a fish?", or where there is no red one, a thing that is not there at all.

    Half of the answers are yes. The kind of a question is ("exist_color" or "exist", fish).
    """
    part, rng = Part([], [], [], [], ()), Random(f"look-alikes {name}")
    for fish, there, _ in product(FISH, (False, True), range(LOOK_ALIKES)):
        scene, thing, color = look_alikes(fish, there, rng)
        i = len(part.images)
        part.images.append(draw(scene, size))
        present = {o.name for o in scene.objects}
        likely = [x for x in (*COMMON, *THEMES[scene.theme]) if x not in present]
        absent = rng.choice(likely or [x for x in OBJECTS if x not in present])
        for kind, asked in (("exist_color", f"{color} {thing}"),
                            ("exist", thing if there else absent)):
            question = exist_question(asked)
            part.questions.append(Example(i, question, NO_YES[there], (kind, fish)))
    return part._replace(images=np.stack(part.images))
