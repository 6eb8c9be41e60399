"""Pictures and texts as batches: the picture world, your own pictures, and Dataset.

Read `model.py` before, `train.py` after. Shapes: B rows, T positions, N pictures.
"""
import hashlib
import json
import os
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import cycle, permutations
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from mma import IMAGE, PAD, TEXT
from model import ASSISTANT_ID, EOS_ID, IGNORE, IMAGE_ID, PAD_ID, USER_ID

ORDERS = ("image-first", "text-first", "dual")  # of picture and question in a row

# One text about one picture, an index into the images; without a prompt the answer is a caption.
Example = namedtuple("Example", "picture prompt answer kind")
# One part of a data set: images (N, size, size, 3) uint8, two lists of Example, and for each
# picture the names of the objects in it.
Split = namedtuple("Split", "images captions questions objects")

# The picture world: a seed becomes a Scene, and a Scene becomes pixels, a caption, and questions.

SIZE = 64  # side of a picture in pixels
THEMES = {  # in each theme the common objects come first
    "sky": ("sun", "moon", "star", "cloud"),
    "land": ("tree", "house", "flower", "car"),
    "sea": ("fish", "boat", "anchor", "shell"),
    "home": ("cup", "key", "clock", "lamp"),
}
OBJECTS = tuple(name for names in THEMES.values() for name in names)
RARITY = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)  # a pick from it weighs a theme's objects 4 : 3 : 2 : 1
COLORS = {
    "red": (222, 40, 44), "orange": (250, 138, 20), "yellow": (252, 224, 40),
    "green": (36, 156, 62), "blue": (44, 88, 222), "purple": (150, 56, 190),
}
INK = (38, 34, 46)  # of outlines
PLACES = ("top-left", "top", "top-right", "left", "center", "right",
          "bottom-left", "bottom", "bottom-right")
FIRST_SEED = {"train": 0, "val": 100_000_000, "test": 200_000_000}
NO_YES = ("no", "yes")  # the answer by truth
QUESTION_KINDS = ("exist", "exist_color", "color", "count", "where", "what", "relation")
Object = namedtuple("Object", "name color place x y size")  # x, y: the center; in pixels
Scene = namedtuple("Scene", "seed theme objects")  # objects in reading order of their places


def pick(rng, options):
    # Python promises the same sequence for ever for random() alone, not for choice() or shuffle().
    return options[int(rng.random() * len(options))]


def make_scene(seed):
    """The Scene of an integer seed >= 0: 2 to 6 objects, the same on every machine."""
    rng = Random(seed)
    theme = pick(rng, tuple(THEMES))
    free = list(range(len(PLACES)))
    objects = []
    for _ in range(pick(rng, (2, 3, 4, 5, 6))):
        place = free.pop(int(rng.random() * len(free)))
        source = theme if rng.random() < 0.6 else pick(rng, tuple(THEMES))
        name = THEMES[source][pick(rng, RARITY)]
        color = pick(rng, tuple(COLORS))
        size = pick(rng, (15, 17, 19))
        x = 11 + 21 * (place % 3) + pick(rng, (-1, 0, 1))
        y = 11 + 21 * (place // 3) + pick(rng, (-1, 0, 1))
        objects.append(Object(name, color, place, x, y, size))
    return Scene(seed, theme, tuple(sorted(objects, key=lambda o: o.place)))


# Four backgrounds of 256 pixels above sixteen objects of 128, in the order of THEMES and OBJECTS.
SPRITES = Image.open(Path(__file__).parent / "art" / "sprites.png")


@lru_cache(maxsize=None)
def sprite(name, color, size):
    """One object as a Pillow image: the sheet's red becomes the color, its black becomes INK."""
    row, column = divmod(OBJECTS.index(name), 8)
    left, top = 128 * column, 256 + 128 * row
    tile = SPRITES.crop((left, top, left + 128, top + 128)).resize((size, size), Image.BOX)
    red, white, _, opacity = np.split(np.float32(tile) / 255, 4, axis=2)
    colors = (red - white) * COLORS[color] + white * 255 + (1 - red) * INK
    return Image.fromarray(np.uint8(np.dstack([colors, opacity * 255]).round()))


@lru_cache(maxsize=None)
def background(theme, light, size):
    """The empty picture of a theme, in a light from 0 to 7, as a Pillow image."""
    left = 256 * list(THEMES).index(theme)
    tile = SPRITES.crop((left, 0, left + 256, 256)).resize((size, size), Image.BOX)
    return Image.blend(tile, Image.new("RGBA", tile.size, "white"), light / 40)


def draw(scene, size=SIZE):
    """The picture of a Scene, (size, size, 3) uint8; size must be a multiple of 64."""
    scale = size // SIZE
    picture = background(scene.theme, scene.seed % 8, size).copy()
    for o in scene.objects:
        corner = scale * (o.x - o.size // 2), scale * (o.y - o.size // 2)
        picture.alpha_composite(sprite(o.name, o.color, scale * o.size), corner)
    return np.array(picture.convert("RGB"))


def a_or_an(word):
    """The word with its article: "a fish", "an anchor"."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def caption(scene):
    """One sentence that names every object: "a red fish at top-left, a blue cup at center"."""
    return ", ".join(f"{a_or_an(o.color)} {o.name} at {PLACES[o.place]}" for o in scene.objects)


def exist_question(name):
    """POPE's wording."""
    return f"Is there {a_or_an(name)} in the image?"


def unambiguous(scene):
    """Question kind -> all (question, answer) of that kind that a Scene allows."""
    count = Counter(o.name for o in scene.objects)
    colored = Counter((o.color, o.name) for o in scene.objects)
    single = [o for o in scene.objects if count[o.name] == 1]
    pairs = {kind: [] for kind in QUESTION_KINDS[1:]}
    for name in count:
        for color in {o.color: None for o in scene.objects}:
            question = f"Is there {a_or_an(color)} {name} in the image?"
            pairs["exist_color"].append((question, NO_YES[(color, name) in colored]))
        if len(single) < len(count):  # else all counts are 1
            plural = name if name == "fish" else name + "s"
            pairs["count"].append((f"How many {plural} are in the image?", str(count[name])))
    for o in scene.objects:
        pairs["what"].append((f"What is at {PLACES[o.place]}?", f"{o.color} {o.name}"))
        if colored[o.color, o.name] == 1:
            pairs["where"].append((f"Where is the {o.color} {o.name}?", PLACES[o.place]))
        if o in single:
            pairs["color"].append((f"What color is the {o.name}?", o.color))
    for a, b in permutations(single, 2):
        right, down = a.place % 3 - b.place % 3, a.place // 3 - b.place // 3
        for relation, truth in (("left of", right < 0), ("right of", right > 0),
                                ("above", down < 0), ("below", down > 0)):
            question = f"Is there {a_or_an(a.name)} {relation} the {b.name}?"
            pairs["relation"].append((question, NO_YES[truth]))
    return pairs


def ask(scenes, seed):
    """Yields for each Scene a list of (question, answer, kind).

    Three questions are about whether something is there, half of them about objects that are. Of
    every other kind there is one, and its wording must not give the answer away: of all that the
    scene allows it is the (question, answer) that was asked least so far.
    """
    rng, seen = Random(seed), Counter()
    for scene in scenes:
        present = [o.name for o in scene.objects]
        absent = [name for name in OBJECTS if name not in present]
        asked = []
        for _ in range(3):
            name = pick(rng, present if rng.random() < 0.5 else absent)
            asked.append((exist_question(name), NO_YES[name in present], "exist"))
        for kind, pairs in unambiguous(scene).items():
            if pairs:
                pair = min(pairs, key=lambda pair: (seen[pair], rng.random()))
                seen[pair] += 1
                asked.append((*pair, kind))
        yield asked


def make_world(split, n, seed=0, size=SIZE):
    """The Split of the first n scenes of "train", "val" or "test"; seed varies the questions."""
    if size % SIZE:
        raise SystemExit(f"--image-size {size}: the picture world is drawn in multiples of {SIZE}")
    scenes = [make_scene(FIRST_SEED[split] + i) for i in range(n)]
    images = [draw(scene, size) for scene in tqdm(scenes, f"drawing {split}", leave=False)]
    captions = [Example(i, None, caption(scene), "caption") for i, scene in enumerate(scenes)]
    questions = [Example(i, *question) for i, asked in enumerate(ask(scenes, seed))
                 for question in asked]
    objects = [list(dict.fromkeys(o.name for o in scene.objects)) for scene in scenes]
    return Split(np.stack(images), captions, questions, objects)


# Your own pictures: a folder with train.jsonl and perhaps val.jsonl, one JSON object a line:
#     {"image": "cats/1.jpg", "question": "What color is it?", "answer": "black", "kind": "color"}
#     {"image": "cats/1.jpg", "caption": "A black cat on a sofa."}
#     {"image": "cats/1.jpg", "objects": ["cat", "sofa"]}

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # for others Pillow may start programs


def read_lines(path):
    """A file of JSON lines -> list of (where: "FILE, line N", object as dict)."""
    where, found = path, []
    try:
        for number, line in enumerate(Path(path).read_text("utf-8").split("\n"), 1):
            where = f"{path}, line {number}"
            if line.strip():
                found.append((where, dict(json.loads(line))))
    except OSError as error:
        raise SystemExit(f"{path}: a file of JSON lines is wanted here ({error.strerror})")
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{where}: one JSON object a line is wanted ({error})")
    return found


def read_entries(path):
    """A .jsonl file in the format above -> list of dicts. SystemExit names a line that is wrong."""
    entries = []
    for where, entry in read_lines(path):
        names = entry.get("objects", [])
        texts = [entry.get(key, "") for key in ("image", "question", "answer", "caption", "kind")]
        whole = {"caption", "objects"} & entry.keys() or {"question", "answer"} <= entry.keys()
        if not (whole and texts[0] and isinstance(names, list)
                and all(isinstance(text, str) for text in texts + names) and all(names)):
            raise SystemExit(f'{where}: "image" is wanted, with "question" and "answer", or '
                             '"caption", or "objects" (a list), all of them texts')
        check_inside(where, path.parent, entry["image"])
        entries.append(entry)
    return entries


def check_inside(where, folder, name):
    """SystemExit unless a file lies in the folder, also after following links."""
    if not name.isprintable() or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise SystemExit(f"{where}: {name!r} is outside {folder}, and is not read")


def read_folder(folder, size, seed=0):
    """A folder of your own pictures, size x size pixels each -> (train, val), two Splits.

    Without val.jsonl a tenth of the pictures, chosen by a hash of their names, is held out.
    """
    folder = Path(folder)
    train = read_entries(folder / "train.jsonl")
    if (folder / "val.jsonl").exists():
        val = read_entries(folder / "val.jsonl")
    else:
        names = {entry["image"] for entry in train}
        by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out = set(by_hash[:max(1, len(names) // 10)])
        val = [entry for entry in train if entry["image"] in held_out]
        train = [entry for entry in train if entry["image"] not in held_out]
    known = sorted({name for entry in train + val for name in entry.get("objects", [])})
    return (make_split(folder, "train", train, size, known, seed),
            make_split(folder, "val", val, size, known, seed))


def make_split(folder, part, entries, size, known, seed):
    """Entries of a .jsonl file -> Split. known: the names of all objects in the data."""
    if not entries:
        raise SystemExit(f"{folder}: no pictures for {part}; more are wanted")
    names = list(dict.fromkeys(entry["image"] for entry in entries))
    images, names = load_pictures(folder, names, size, folder / f".{part}-{size}px.npz")
    index = {name: i for i, name in enumerate(names)}
    split = Split(images, [], [], [[] for _ in names])
    for entry in entries:
        i = index.get(entry["image"])
        if i is None:
            continue  # unreadable, as `load_pictures` said
        split.objects[i][:] = dict.fromkeys(split.objects[i] + entry.get("objects", []))
        if "caption" in entry:
            split.captions.append(Example(i, None, entry["caption"], "caption"))
        if "question" in entry:
            kind = entry.get("kind", "question")
            split.questions.append(Example(i, entry["question"], entry["answer"], kind))
    rng = Random(seed)
    for i, present in enumerate(split.objects):
        absent = [name for name in known if name not in present]
        rng.shuffle(absent)
        for yes, no in zip(cycle(present), absent[:6]):
            split.questions.append(Example(i, exist_question(yes), "yes", "exist"))
            split.questions.append(Example(i, exist_question(no), "no", "exist"))
    return split


def load_picture(path, size):
    """A picture file -> (size, size, 3) uint8 with gray margins, or as text what is wrong."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded no larger than of use
            picture = ImageOps.exif_transpose(picture).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")  # behind what is transparent
        picture = Image.alpha_composite(white, picture).convert("RGB")
        return np.array(ImageOps.pad(picture, (size, size), color=(128, 128, 128)))
    except Exception as error:  # Pillow's decoders raise nearly every kind there is
        return f"{path}: no readable picture ({error or type(error).__name__})"


def load_pictures(folder, names, size, kept):
    """Picture files -> (images (N, size, size, 3) uint8, names of those that can be read).

    Decoded once: the file `kept` holds them for the next time, as long as no picture changes.
    """
    paths = [folder / name for name in names]
    dates = [(path.stat().st_size, path.stat().st_mtime) for path in paths if os.path.isfile(path)]
    key = hashlib.sha256(repr((names, dates)).encode()).hexdigest()
    if not kept.exists() or np.load(kept)["key"] != key:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pictures = pool.map(load_picture, paths, [size] * len(paths))
            pictures = list(tqdm(pictures, f"decoding {folder.name}", len(paths), leave=False))
        good = [i for i, picture in enumerate(pictures) if not isinstance(picture, str)]
        bad = [picture for picture in pictures if isinstance(picture, str)]
        if len(bad) > len(names) / 100:
            raise SystemExit(f"{len(bad)} of {len(names)} pictures can't be read, more than 1 %; "
                             f"the first: {bad[0]}")
        temporary = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, key=key, bad=bad, names=[names[i] for i in good],
                 images=np.stack([pictures[i] for i in good]))
        os.replace(temporary, kept)
    found = np.load(kept)
    print("".join(f"left out: {reason}\n" for reason in found["bad"]), end="")
    return found["images"], found["names"].tolist()


class Dataset:
    """Examples about pictures, as rows of ids. What stands after the bar is generated:

        question:  <user> image tokens, question <assistant> | answer <eos>
        caption:   <user> image tokens | caption <eos>
    """

    def __init__(self, examples, images, tokenizer, config, order="image-first"):
        """order: one of ORDERS; dual puts the question first in every other row."""
        self.images, self.tokenizer, self.config = images, tokenizer, config
        self.examples, self.rows, self.prompt_lengths = [], [], []
        for i, example in enumerate(examples):
            text_first = order == "text-first" or (order == "dual" and i % 2)
            prompt, answer = self.layout(example, text_first)
            if len(prompt) + len(answer) <= config.context:
                self.examples.append(example)
                self.rows.append(np.array(prompt + answer))
                self.prompt_lengths.append(len(prompt))
        if left_out := len(examples) - len(self.examples):
            print(f"left out: {left_out} of {len(examples)} texts, which have more than "
                  f"{config.context} tokens")

    def layout(self, example, text_first):
        """Example -> (ids of the prompt, ids of what the model must produce)."""
        picture = [IMAGE_ID] * self.config.image_tokens
        answer = self.tokenizer.encode(example.answer) + [EOS_ID]
        if example.prompt is None:
            return [USER_ID, *picture], answer
        question = self.tokenizer.encode(example.prompt)
        body = question + picture if text_first else picture + question
        return [USER_ID, *body, ASSISTANT_ID], answer

    def generated_tokens(self, indices):
        """The number of tokens that the model must produce in some rows."""
        return sum(len(self.rows[i]) - self.prompt_lengths[i] for i in indices)

    def batch(self, indices, prompts_only=False):
        """Rows -> the arguments of `MultimodalGPT.forward`, padded on the right.

        prompts_only: without the answers, padded on the left, for `generate`.
        """
        rows = [self.rows[i][:self.prompt_lengths[i] if prompts_only else None] for i in indices]
        T = max(map(len, rows))
        ids = np.full((len(rows), T), PAD_ID)
        generated = np.zeros((len(rows), T), bool)
        for b, (i, row) in enumerate(zip(indices, rows)):
            start = T - len(row) if prompts_only else 0
            ids[b, start:start + len(row)] = row
            generated[b, start + self.prompt_lengths[i]:start + len(row)] = True
        modality = np.where(ids == IMAGE_ID, IMAGE, TEXT)
        modality[ids == PAD_ID] = PAD
        # Each picture once: several questions about it share one pass through the ViT.
        shown = [self.examples[i].picture for i in indices]
        pictures, image_index = np.unique(shown, return_inverse=True)
        batch = {"images": self.images[pictures], "image_index": image_index, "ids": ids,
                 "modality": modality, "generated": generated,
                 "labels": np.where(generated, ids, IGNORE)}
        return {name: torch.from_numpy(array) for name, array in batch.items()}
