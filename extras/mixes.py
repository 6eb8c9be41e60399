"""Other captions, and fewer questions, for the picture world: `compare.py --mix` trains on them.

Each takes the two Splits to train and to validate on, and returns changed ones.
"""
from data import FIRST_SEED, PLACES, make_scene


def retold(splits, tell):
    """Captions that tell of the objects of a scene in another way."""
    told = []
    for part, split in zip(("train", "val"), splits):
        captions = []
        for example in split.captions:
            objects = make_scene(FIRST_SEED[part] + example.picture).objects
            captions.append(example._replace(answer=", ".join(tell(objects))))
        told.append(split._replace(captions=captions))
    return told


def one_way(objects):
    """Yields what is at each place, and never where a thing is: "top-left red fish"."""
    for o in objects:
        yield f"{o.place} {o.color} {o.name}"


def in_order(objects):
    """The same from the top left to the bottom right."""
    yield from one_way(sorted(objects, key=lambda o: PLACES.index(o.place)))


def once(splits, kind):
    """At most one question of a kind about each picture."""
    fewer = []
    for split in splits:
        questions, asked = [], set()
        for e in split.questions:
            if e.kind != kind or e.picture not in asked:
                questions.append(e)
            if e.kind == kind:
                asked.add(e.picture)
        fewer.append(split._replace(questions=questions))
    return fewer


MIXES = {
    "one-way": lambda splits: retold(splits, one_way),
    "in-order": lambda splits: retold(splits, in_order),
    "one-exist": lambda splits: once(splits, "exist"),
    "one-exist_color": lambda splits: once(splits, "exist_color"),
}
