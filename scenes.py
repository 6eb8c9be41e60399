"""The picture world: endless labelled 64x64 scenes, drawn from a seed, for captions and questions.

Read `model.py` before, `data.py` after. A seed becomes a `Scene` (its things are the label), and that
becomes pixels, a caption, and questions with answers; nothing is downloaded.

    scene = make_scene(7)
    draw(scene)       # (64, 64, 3) uint8
    caption(scene)    # 'a yellow tree at left, a yellow house at right.'
    ask([scene], 0)   # [[Question(kind='exist', text='Is there a moon in the image?', answer='no'), ...]]
"""
import hashlib
import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

SIZE = 64   # side of the picture the model is trained on
PITCH = 21  # side of a cell of the 3x3 grid; the cells fill pixels 1..63, their centres are 11, 32, 53

THEMES = {  # in each theme the common kinds come first
    "sky": ("sun", "moon", "star", "cloud"),
    "land": ("tree", "house", "flower", "car"),
    "sea": ("fish", "boat", "anchor", "shell"),
    "home": ("cup", "key", "clock", "lamp"),
}
KINDS = tuple(kind for kinds in THEMES.values() for kind in kinds)
RARITY = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)  # a uniform pick from it weighs a theme's kinds 4 : 3 : 2 : 1
COLORS = {
    "red": (222, 40, 44), "orange": (250, 138, 20), "yellow": (252, 224, 40),
    "green": (36, 156, 62), "blue": (44, 88, 222), "purple": (150, 56, 190),
}
BACKGROUNDS = {  # top and bottom; muted, so that no thing of a named colour drowns in it
    "sky": ((176, 206, 230), (232, 240, 244)), "land": ((206, 222, 180), (164, 192, 138)),
    "sea": ((150, 200, 200), (96, 158, 166)), "home": ((236, 224, 204), (226, 210, 186)),
}
MARKS = {"sea": [(0, 1), (2, 2), (4, 1), (6, 2), (8, 1)], "land": [(0, 0), (1.5, 2.5), (3, 0)]}  # waves, grass
INK, WHITE = (38, 34, 46), (255, 255, 255)
PLACES = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
SIZES = (15, 17, 19)  # odd, so that a thing has a centre pixel
JITTER = 1  # px by which a centre may leave the middle of its cell
SPLIT_SEEDS = 100_000_000
SPLITS = {"train": 0, "val": SPLIT_SEEDS, "test": 2 * SPLIT_SEEDS}  # first seed of each


@dataclass(frozen=True)
class Thing:
    """One object: its label (kind, color, place 0..8) and where it is drawn (centre x, y and size, in px)."""
    kind: str
    color: str
    place: int
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn; `things` is a tuple of Thing in reading order of place."""
    seed: int
    theme: str
    things: tuple


def _pick(rng, options):
    # Python promises the same sequence for ever for random() alone, not for choice() or shuffle().
    return options[int(rng.random() * len(options))]


def split_seeds(split, n):
    """The first n seeds of "train", "val" or "test" as a range; ValueError for another split, or no such n."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if not 1 <= n <= SPLIT_SEEDS:
        raise ValueError(f"n={n} scenes asked of split {split!r}, which has 1 to {SPLIT_SEEDS}")
    return range(SPLITS[split], SPLITS[split] + n)


def make_scene(seed):
    """The Scene of an integer seed >= 0: 2 to 6 things in cells of their own, the same on every machine.

    A thing is of the scene's theme 7 times in 10, else of another; its colour doesn't depend on its kind.
    """
    rng = Random(seed)
    theme = _pick(rng, tuple(THEMES))
    free = list(range(len(PLACES)))
    things = []
    for _ in range(_pick(rng, (2, 3, 4, 5, 6))):
        place = free.pop(int(rng.random() * len(free)))
        source = theme if rng.random() < 0.7 else _pick(rng, [name for name in THEMES if name != theme])
        kind, color, size = THEMES[source][_pick(rng, RARITY)], _pick(rng, tuple(COLORS)), _pick(rng, SIZES)
        x, y = (11 + PITCH * cell + _pick(rng, range(-JITTER, JITTER + 1)) for cell in (place % 3, place // 3))
        things.append(Thing(kind, color, place, x, y, size))
    return Scene(seed, theme, tuple(sorted(things, key=lambda thing: thing.place)))


def _ring(n, *radii, x=8.0, y=8.0):
    """n points around (x, y) from the topmost one on, their distances taken in turn from radii."""
    turns = [(radii[i % len(radii)], 2 * math.pi * i / n) for i in range(n)]
    return [(x + radius * math.sin(turn), y - radius * math.cos(turn)) for radius, turn in turns]


def _disc(x, y, radius):
    return (x - radius, y - radius, x + radius, y + radius)


# A kind is a list of (primitive, tone, coordinates, width of a line) on a 16x16 grid, drawn in order; an
# oval or a box is (left, top, right, bottom). The outline is added around it, so the border stays free.
SHAPES = {
    "sun": [("poly", "dark", _ring(20, 7.2, 4.9)), ("oval", "fill", _disc(8, 8, 4.9))],
    "moon": [("oval", "fill", (1.2, 1.2, 14.4, 14.8)), ("oval", "none", (6.0, -0.6, 16.6, 11.2))],
    "star": [("poly", "fill", _ring(10, 7.6, 3.3, y=8.6))],
    "cloud": [("oval", "fill", (1, 6.6, 7.4, 13)), ("oval", "fill", (3.4, 3, 11, 11)),
        ("oval", "fill", (8.4, 5.8, 15, 13)), ("box", "fill", (4, 9, 12, 13))],
    "tree": [("box", "ink", (6.9, 12, 9.1, 15)), ("poly", "fill", [(8, 5.5), (14.4, 13), (1.6, 13)]),
        ("poly", "dark", [(8, 4), (12.7, 9.4), (3.3, 9.4)]), ("poly", "fill", [(8, 1), (12.2, 7.6), (3.8, 7.6)])],
    "house": [("box", "fill", (3, 7, 13, 15)), ("box", "dark", (3, 8, 13, 9)), ("box", "ink", (5, 10, 7.4, 15)),
        ("box", "light", (9, 10, 11.5, 12)), ("poly", "fill", [(8, 1), (15, 8), (1, 8)])],
    "flower": [*[("oval", "fill", _disc(*point, 2.8)) for point in _ring(5, 4.6, y=8.4)],
        ("oval", "ink", _disc(8, 8.4, 2.8)), ("oval", "white", _disc(8, 8.4, 2.1))],
    "car": [("poly", "fill", [(3.4, 8), (5.2, 3.8), (10.6, 3.8), (13, 8)]), ("box", "fill", (1, 7.4, 15, 12)),
        ("box", "light", (5.6, 5, 7.3, 7.4)), ("box", "light", (8.7, 5, 10.4, 7.4)),
        *[("oval", tone, _disc(x, 12, r)) for tone, r in (("ink", 2.3), ("light", 0.8)) for x in (4.5, 11.5)]],
    "fish": [("poly", "dark", [(6.5, 8), (1, 3.2), (2.6, 8), (1, 12.8)]), ("oval", "fill", (4, 3.4, 15, 12.6)),
        ("poly", "dark", [(7.2, 7.4), (10, 8.4), (7.4, 10.6)]), ("oval", "ink", _disc(12, 6.8, 1.0))],
    "boat": [("poly", "fill", [(1, 10.4), (15, 10.4), (12.2, 15), (3.8, 15)]), ("box", "ink", (7.2, 1, 8.2, 10)),
        ("poly", "fill", [(8.7, 1.4), (14, 8.8), (8.7, 8.8)]), ("poly", "light", [(6.7, 3), (6.7, 8.8), (2.2, 8.8)])],
    "anchor": [("oval", "fill", _disc(8, 3.2, 2.4)), ("oval", "none", _disc(8, 3.2, 0.9)),
        ("box", "fill", (6.8, 4.6, 9.2, 14)), ("box", "fill", (4, 5.6, 12, 7.8)),
        ("line", "fill", [(2.8, 10), (4.6, 12.8), (8, 13.8), (11.4, 12.8), (13.2, 10)], 2.4),
        *[("poly", "fill", [(8 + 7 * s, 11.6), (8 + 6.4 * s, 7.8), (8 + 2.8 * s, 10.4)]) for s in (-1, 1)]],
    "shell": [("box", "dark", (5, 12.4, 11, 15)), ("poly", "fill", [(8, 14.6), (1.6, 9), (3, 4), (13, 4), (14.4, 9)]),
        *[("oval", "fill", _disc(x, y, 1.9)) for x, y in ((2.9, 7), (5.2, 4), (8, 2.9), (10.8, 4), (13.1, 7))],
        *[("line", "dark", [(8, 14.4), end], 0.9) for end in ((4, 5.6), (6.7, 3.6), (9.3, 3.6), (12, 5.6))]],
    "cup": [("oval", "fill", (8, 5, 15, 12.4)), ("oval", "none", (9.6, 6.9, 13, 10.5)),
        ("poly", "fill", [(1.6, 3.4), (11.4, 3.4), (10.6, 14.8), (2.4, 14.8)]), ("oval", "fill", (1.6, 1.2, 11.4, 5.4)),
        ("oval", "ink", (2.7, 2.1, 10.3, 4.5))],
    "key": [("oval", "fill", _disc(5, 7.4, 4)), ("oval", "none", _disc(5, 7.4, 1.6)),
        *[("box", "fill", where) for where in ((8, 6.2, 15, 8.6), (10.2, 8, 12, 12), (13.2, 8, 15, 12.6))]],
    "clock": [*[("oval", "dark", _disc(x, 3.4, 2.4)) for x in (4, 12)],
        *[("line", "dark", [(8, 8), (x, 15)], 1.8) for x in (3.4, 12.6)], ("oval", "fill", _disc(8, 8.6, 6.2)),
        ("oval", "white", _disc(8, 8.6, 3.6)), ("line", "ink", [(8, 5.6), (8, 8.8), (10.6, 8.8)], 1.0)],
    "lamp": [("box", "ink", (7.3, 9, 8.7, 14)), ("poly", "fill", [(5, 1), (11, 1), (15, 9.6), (1, 9.6)]),
        ("poly", "light", [(6.6, 2), (6.6, 8), (3.6, 8)]), ("poly", "fill", [(5, 13), (11, 13), (12, 15), (4, 15)])],
}


def _toward(color, goal, share):
    return tuple(round(a + (b - a) * share) for a, b in zip(color, goal))


@lru_cache(maxsize=None)
def _sprite(kind, color, px):
    """(colour x alpha, 255 - alpha) of a thing drawn px wide: (px, px, 3) and (px, px, 1), both uint16."""
    zoom = 8  # drawn large and averaged down: that's the antialiasing
    unit, rgb = px * zoom / 16, COLORS[color]
    tones = {"fill": rgb, "dark": _toward(rgb, INK, 0.3), "light": _toward(rgb, WHITE, 0.6),
             "white": WHITE, "ink": INK, "none": (0, 0, 0, 0)}
    shape = Image.new("RGBA", (px * zoom, px * zoom))
    pen = ImageDraw.Draw(shape)
    pens = {"poly": pen.polygon, "oval": pen.ellipse, "box": pen.rectangle, "line": pen.line}
    for primitive, tone, where, *width in SHAPES[kind]:
        where = (np.array(where) * unit).ravel().tolist()
        pens[primitive](where, tones[tone], *(round(w * unit) for w in width))
    outlined = Image.new("RGBA", shape.size)
    for x, y in _ring(16, 0.8 * unit, x=0, y=0):  # the outline: the silhouette in ink, shifted all around
        outlined.paste(INK, (round(x), round(y)), shape.getchannel("A"))
    outlined.alpha_composite(shape)
    pixels = np.array(outlined.reduce(zoom)).astype(np.uint16)
    alpha = pixels[..., 3:]
    return pixels[..., :3] * alpha + 127, 255 - alpha  # + 127 makes draw's division by 255 round


@lru_cache(maxsize=None)
def _background(theme, variant, scale):
    """The empty picture of a theme, (64 * scale, 64 * scale, 3) uint8; each variant has its own light and layout."""
    rng = Random(variant)
    top, bottom = (_toward(tone, WHITE, 0.2 * rng.random()) for tone in BACKGROUNDS[theme])
    side, px = 4 * SIZE * scale, 4 * scale  # drawn 4 times as large, too
    ramp = np.linspace(top, bottom, side).round().astype(np.uint8)
    image = Image.fromarray(np.repeat(ramp[:, None], side, axis=1))
    pen = ImageDraw.Draw(image)
    if theme == "home":
        pen.rectangle((0, (44 + 8 * rng.random()) * px, side, side), fill=_toward(bottom, INK, 0.25))
    for _ in range(20 if theme in MARKS else 0):
        x, y = rng.random() * 58, rng.random() * 60
        tone = _toward(top, WHITE, 0.4) if theme == "sea" else _toward(bottom, INK, 0.2)
        pen.line([((x + a) * px, (y + b) * px) for a, b in MARKS[theme]], tone, px, joint="curve")
    return np.array(image.reduce(4))


def draw(scene, size=SIZE):
    """The picture of a Scene: (size, size, 3) uint8, RGB. 64 is what the model sees; 256 is for people.

    Raises ValueError where size isn't a positive multiple of 64.
    """
    scale = size // SIZE
    if scale < 1 or size % SIZE:
        raise ValueError(f"size={size} must be a positive multiple of {SIZE}")
    picture = _background(scene.theme, scene.seed % 8, scale).copy()
    for thing in scene.things:
        ink, keep = _sprite(thing.kind, thing.color, thing.size * scale)
        left, top = (thing.x - thing.size // 2) * scale, (thing.y - thing.size // 2) * scale
        patch = picture[top:top + len(ink), left:left + len(ink)]
        patch[...] = (patch * keep + ink) // 255
    return picture


QUESTION_KINDS = ("exist", "exist_color", "color", "count", "where", "what", "relation")
# Among how many answers a text should share its questions; 3 for count, as 4 of a kind are too rare to wait for.
ANSWERS = dict(zip(QUESTION_KINDS, (2, 2, 6, 3, 9, 96, 2)))


class Question(NamedTuple):
    """One question about one scene; `kind` is one of QUESTION_KINDS."""
    kind: str
    text: str
    answer: str


def a_or_an(word):
    """The word behind its article: 'a fish', 'an anchor'."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def caption(scene):
    """One lowercase sentence that names every thing: 'a red fish at top-left, a blue cup at center.'"""
    return ", ".join(f"{a_or_an(t.color)} {t.kind} at {PLACES[t.place]}" for t in scene.things) + "."


def _candidates(kind, scene, rng):
    """Every (text, answer) pair of a question kind that is unambiguous for the scene."""
    things = scene.things
    kinds, pairs = Counter(t.kind for t in things), Counter((t.color, t.kind) for t in things)
    if kind == "exist":
        # Most "no"s are of the scene's theme: else "does it fit the background?" would often do.
        own_theme = rng.random() < 0.6
        absent = [k for k in KINDS if k not in kinds]
        absent = [k for k in absent if (k in THEMES[scene.theme]) == own_theme] or absent
        return [(f"Is there {a_or_an(k)} in the image?", "yes" if k in kinds else "no") for k in (*kinds, *absent)]
    if kind == "exist_color":
        return [(f"Is there {a_or_an(c)} {k} in the image?", "yes" if (c, k) in pairs else "no")
                for c in dict.fromkeys(t.color for t in things) for k in kinds]
    if kind == "color":
        return [(f"What color is the {t.kind}?", t.color) for t in things if kinds[t.kind] == 1]
    if kind == "count":
        return [(f"How many {k if k == 'fish' else k + 's'} are in the image?", str(n)) for k, n in kinds.items()]
    if kind == "where":
        return [(f"Where is the {t.color} {t.kind}?", PLACES[t.place]) for t in things if pairs[t.color, t.kind] == 1]
    if kind == "what":
        return [(f"What is at {PLACES[t.place]}?", f"{t.color} {t.kind}") for t in things]
    reach = {}  # how far each kind goes in each direction, smaller is further: its furthest thing decides
    for k in kinds:
        columns, rows = zip(*[(t.place % 3, t.place // 3) for t in things if t.kind == k])
        reach[k] = {"left of": min(columns), "right of": -max(columns), "above": min(rows), "below": -max(rows)}
    return [(f"Is there {a_or_an(k)} {relation} the {ref}?", "yes" if reach[k][relation] < limit else "no")
            for ref in kinds if kinds[ref] == 1 for relation, limit in reach[ref].items() for k in kinds if k != ref]


def ask(scenes, seed):
    """Questions on every scene: a list (one per Scene) of lists of Question, in QUESTION_KINDS order.

    A scene gets at most one question of a kind. Its text must not give the answer away, so the list is
    balanced as it grows: of a scene's candidates, the one is asked whose answer is furthest below its fair
    share among the answers its text has had so far. Besides, yes/no kinds first toss a fair coin where the
    scene allows both answers, and a count above its share is left out, which drops many an easy "1".
    """
    rng, asked = Random(seed), []
    seen = Counter()  # how often (text, answer) and text were asked
    for scene in scenes:
        questions = []
        for kind in QUESTION_KINDS:
            candidates = _candidates(kind, scene, rng)
            if ANSWERS[kind] == 2:
                wanted = "yes" if rng.random() < 0.5 else "no"
                both = len({answer for _, answer in candidates}) == 2
                candidates = [c for c in candidates if both and c[1] == wanted]
            ranked = [(seen[c] - seen[c[0]] / ANSWERS[kind], rng.random(), c) for c in candidates]
            if ranked and (kind != "count" or min(ranked)[0] <= 0):
                text, answer = min(ranked)[2]
                seen.update([(text, answer), text])
                questions.append(Question(kind, text, answer))
        asked.append(questions)
    return asked


def render(split, n, cache_dir):
    """The first n pictures of a split: (n, 64, 64, 3) uint8, read-only, mapped from a file in cache_dir.

    Drawn only where no whole file of that name is there; the name holds all that the pixels depend on.
    """
    seeds, shape = split_seeds(split, n), (n, SIZE, SIZE, 3)
    source = Path(__file__).read_text(encoding="utf-8") + PIL.__version__
    path = Path(cache_dir) / f"scenes-{split}-{n}-{SIZE}-{hashlib.sha256(source.encode()).hexdigest()[:12]}.npy"
    if path.exists():
        try:
            pictures = np.load(path, mmap_mode="r", allow_pickle=False)
            if (pictures.shape, pictures.dtype) == (shape, np.uint8) and all(
                    (pictures[i] == draw(make_scene(seeds[i]))).all() for i in (0, n // 2, -1)):
                return pictures
            print(f"{path} doesn't hold the pictures its name promises: drawing them again")
        except (ValueError, EOFError, OSError) as error:
            print(f"{path} is damaged ({error}): drawing it again")
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:  # not mapped: on a full disk that would be no error but a crash
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.writelines(draw(make_scene(s)).tobytes() for s in tqdm(seeds, desc=f"drawing {split}", unit="scene"))
        os.replace(unfinished, path)  # in one step: a file of this name is always whole
    except OSError as error:
        raise OSError(f"--cache {cache_dir}: pictures cannot be kept there ({error.strerror})") from None
    finally:
        if unfinished.exists():
            unfinished.unlink()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def sheet(scenes, lines, path, columns=4, side=256):
    """Write to path a picture of scenes, each over its lines of text: a list of (text, RGB colour) for each."""
    font, gap, height = ImageFont.load_default(size=13), 14, side + 28 + 19 * max(map(len, lines))
    picture = Image.new("RGB", (columns * (side + gap) + gap, -(-len(scenes) // columns) * height + gap), WHITE)
    for i, scene in enumerate(scenes):
        x, y = gap + i % columns * (side + gap), gap + i // columns * height
        picture.paste(Image.fromarray(draw(scene, side)), (x, y))
        for j, (text, color) in enumerate(lines[i]):
            ImageDraw.Draw(picture).text((x, y + side + 4 + 19 * j), text, color, font)
    picture.save(path, optimize=True)
    print(f"wrote {path}")


def main(path="scenes.png"):
    """Draw a sheet of val scenes with their captions and two questions each."""
    scenes = [make_scene(seed) for seed in split_seeds("val", 12)]
    lines = [caption(scene).split(", ") + [f"{q.text} {q.answer}" for q in asked[i % 4::3][:2]]
             for i, (scene, asked) in enumerate(zip(scenes, ask(scenes, 0)))]
    sheet(scenes, [[(text, INK) for text in texts] for texts in lines], path)


if __name__ == "__main__":
    import runs  # here: it needs this file
    runs.command_line(main)
