"""Pictures and texts as batches: the picture world, your own pictures, and Dataset.

Read `model.py` before, `train.py` after. Shapes: B rows, T positions, N pictures.
"""
import json
from collections import Counter, defaultdict, namedtuple
from functools import cache, partial
from itertools import cycle
from os.path import normpath
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.contrib.concurrent import thread_map

from mma import IMAGE, PAD, TEXT
from model import ASSISTANT_ID, EOS_ID, IMAGE_ID, PAD_ID, USER_ID

# picture: index into the images. prompt: a question; None where the answer is a caption.
Example = namedtuple("Example", "picture prompt answer kind")
# A part of a data set: images (N, size, size, 3) uint8, Examples, names of objects by picture.
Split = namedtuple("Split", "images captions questions objects")


# The picture world: a seed becomes a Scene, and a Scene becomes pixels, a caption, and questions.
SIZE = 64  # side of a picture in pixels
COMMON = ("star", "flower", "key", "shell")  # they lie anywhere
THEMES = {  # as in photographs, these mostly stay in their theme; from frequent to rare
    "sky": ("cloud", "sun", "moon"),
    "land": ("tree", "house", "car"),
    "sea": ("fish", "boat", "anchor"),
    "home": ("cup", "clock", "lamp"),
}
OBJECTS = COMMON + sum(THEMES.values(), ())
COLORS = {"red": "#de282c", "orange": "#fa8a14", "yellow": "#fce028",
          "green": "#249c3e", "blue": "#2c58de", "purple": "#9638be"}
PLACES = "top-left top top-right left center right bottom-left bottom bottom-right".split()
FIRST_SEED = {"train": 0, "val": 100_000_000, "test": 200_000_000}
NO_YES = ("no", "yes")  # the answer by truth
Object = namedtuple("Object", "name color place x y size")  # x, y: the center, in pixels
Scene = namedtuple("Scene", "theme objects")


def make_scene(seed):
    """The Scene of an integer seed: 5 to 9 objects in random order."""
    rng = Random(seed)
    theme = rng.choice(list(THEMES))
    objects = []
    for place in rng.sample(range(len(PLACES)), rng.randint(5, 9)):
        name = rng.choice(COMMON)
        if rng.random() < 0.75:
            source = theme if rng.random() < 0.85 else rng.choice(list(THEMES))
            name = rng.choices(THEMES[source], weights=(3, 2, 1))[0]
        color = rng.choice(list(COLORS))
        row, column = divmod(place, 3)
        x = 11 + 21 * column + rng.randint(-1, 1)
        y = 11 + 21 * row + rng.randint(-1, 1)
        size = rng.choice((11, 13, 15, 17))
        objects.append(Object(name, color, PLACES[place], x, y, size))
    return Scene(theme, tuple(objects))


# Four backgrounds of 256 pixels above sixteen objects of 128, ordered as THEMES and OBJECTS.
SPRITES = Image.open(Path(__file__).parent / "art/sprites.png")


@cache
def background(theme, size):
    """The empty picture of a theme, as a Pillow image."""
    left = 256 * list(THEMES).index(theme)
    return SPRITES.resize((size, size), Image.BOX, (left, 0, left + 256, 256))


@cache
def sprite(name, color, size):
    """One object as a Pillow image: what is gray in the sheet gets the color."""
    row, column = divmod(OBJECTS.index(name), 8)
    left = 128 * column
    top = 256 + 128 * row
    tile = SPRITES.crop((left, top, left + 128, top + 128))
    picture = ImageOps.colorize(tile.convert("L"), "#26222e", "white", mid=COLORS[color])
    picture.putalpha(tile.getchannel("A"))
    return picture.resize((size, size), Image.BOX)


def draw(scene, size=SIZE):
    """The picture of a Scene, (size, size, 3) uint8."""
    scale = size / SIZE
    picture = background(scene.theme, size).copy()
    for o in scene.objects:
        tile = sprite(o.name, o.color, round(scale * o.size))
        left = round(scale * (o.x - o.size // 2))
        top = round(scale * (o.y - o.size // 2))
        picture.alpha_composite(tile, (left, top))
    return np.array(picture.convert("RGB"))


def caption(scene):
    """Place first and thing first, in turn: "top-left red fish, blue cup center"."""
    phrases = []
    for i, o in enumerate(scene.objects):
        thing = f"{o.color} {o.name}"
        phrases.append(f"{thing} {o.place}" if i % 2 else f"{o.place} {thing}")
    return ", ".join(phrases)


def exist_question(thing):
    """POPE's wording: "Is there a fish in the image?", "Is there an anchor in the image?"."""
    article = "an" if thing[0] in "aeiou" else "a"
    return f"Is there {article} {thing} in the image?"


def unambiguous(scene):
    """Question kind -> all (question, answer) of that kind with one right answer in a Scene."""
    pairs = {"exist_color": [], "color": [], "where": [], "where_color": [], "what": []}
    names = [o.name for o in scene.objects]
    things = [f"{o.color} {o.name}" for o in scene.objects]
    for o, thing in zip(scene.objects, things):
        pairs["what"].append((f"What is at {o.place}?", thing))
        if names.count(o.name) == 1:
            pairs["color"].append((f"What color is the {o.name}?", o.color))
            pairs["where"].append((f"Where is the {o.name}?", o.place))
        elif things.count(thing) == 1:
            pairs["where_color"].append((f"Where is the {thing}?", o.place))
        for other in scene.objects:
            asked = f"{other.color} {o.name}"
            truth = asked in things
            pairs["exist_color"].append((exist_question(asked), NO_YES[truth]))
    return pairs


def questions_about(scenes, seed):
    """Yields for each Scene a list of (question, answer, kind).

    Two ask whether something is there. Of each other kind there is one, if the Scene has any: the
    (question, answer) that was used least so far, so that no answer to it becomes usual.
    """
    rng = Random(seed)
    used = Counter()
    for scene in scenes:
        questions = []
        present = [o.name for o in scene.objects]
        absent = [name for name in OBJECTS if name not in present]
        for _ in range(2):
            name = rng.choice(present if rng.random() < 0.5 else absent)
            questions.append((exist_question(name), NO_YES[name in present], "exist"))
        pairs_of = unambiguous(scene)
        for kind in ("exist_color", *pairs_of):  # exist_color twice: it takes longest to learn
            if pairs := pairs_of[kind]:
                pair = min(pairs, key=lambda pair: (used[pair], rng.random()))
                used[pair] += 1
                questions.append((*pair, kind))
        yield questions


def make_world(part, n, seed=0, size=SIZE):
    """The first n scenes of "train", "val" or "test" -> Split. seed: of the questions."""
    scenes = [make_scene(FIRST_SEED[part] + i) for i in range(n)]
    split = Split(np.stack([draw(scene, size) for scene in scenes]), [], [], [])
    for i, questions in enumerate(questions_about(scenes, seed)):
        split.captions.append(Example(i, None, caption(scenes[i]), "caption"))
        split.questions.extend(Example(i, *question) for question in questions)
        names = [o.name for o in scenes[i].objects]
        split.objects.append(list(dict.fromkeys(names)))
    return split


class Dataset:
    """Examples about pictures, as rows of ids. What stands after the bar is generated:

        question:  <user> image tokens, question <assistant> | answer <eos>
        caption:   <user> image tokens | caption <eos>
    """

    def __init__(self, examples, images, tokenizer, config, order="image-first"):
        self.images = images
        self.tokenizer = tokenizer
        self.config, self.order = config, order
        self.examples = []
        self.rows = []  # of each example: its prompt, and what is generated
        self.rows_of = defaultdict(list)  # picture -> indices of the rows about it
        for example in examples:
            prompt, answer = self.layout(example)
            if len(prompt + answer) <= config.context:
                self.rows_of[example.picture].append(len(self.rows))
                self.rows.append((prompt, answer))
                self.examples.append(example)
        if examples and not self.rows:
            raise SystemExit("no text is short enough for the context; smaller pictures leave more")
        if len(self.rows) < len(examples):
            print(f"{len(self.rows)} of {len(examples)} texts are short enough for the context")

    def layout(self, example):
        """Example -> (ids of the prompt, ids of what the model must produce)."""
        picture = [IMAGE_ID] * self.config.image_tokens
        answer = self.tokenizer.encode(example.answer) + [EOS_ID]
        if example.prompt is None:
            return [USER_ID, *picture], answer
        question = self.tokenizer.encode(example.prompt)
        if self.order == "text-first":
            return [USER_ID, *question, *picture, ASSISTANT_ID], answer
        return [USER_ID, *picture, *question, ASSISTANT_ID], answer

    def sample(self, pictures, rows, seed):
        """Some pictures and rows about each -> indices. No state: resumed runs draw the same."""
        rng = Random(seed)
        indices = []
        for picture in rng.sample(list(self.rows_of), min(pictures, len(self.rows_of))):
            about = self.rows_of[picture]
            indices += rng.sample(about, min(rows, len(about)))
        return indices

    def generated_tokens(self, indices):
        return sum(len(self.rows[i][1]) for i in indices)

    def batch(self, indices, device="cpu", prompts_only=False):
        """Rows, padded on the left, as arguments of `forward`, or as prompts for `generate`."""
        rows = [self.rows[i] for i in indices]
        if prompts_only:
            rows = [(prompt, []) for prompt, _ in rows]
        T = max(len(prompt + answer) for prompt, answer in rows)
        ids, generated = [], []
        for prompt, answer in rows:
            padding = T - len(prompt + answer)
            ids.append([PAD_ID] * padding + prompt + answer)
            generated.append([False] * (T - len(answer)) + [True] * len(answer))
        ids = np.array(ids)
        generated = np.array(generated)
        modality = np.select([ids == IMAGE_ID, ids == PAD_ID], [IMAGE, PAD], TEXT)
        # Each picture once: questions about it share one pass through the ViT.
        shown = [self.examples[i].picture for i in indices]
        pictures, image_index = np.unique(shown, return_inverse=True)
        batch = {"images": self.images[pictures], "image_index": image_index,
                 "ids": ids, "modality": modality, "generated": generated}
        return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


# Your own pictures: a folder with train.jsonl and perhaps val.jsonl. Each line is a JSON object:
# "image" is a file's name; with it go "question" and "answer", a "caption", or a list of "objects".
def read_lines(path):
    """A file of JSON lines -> yields (where: "FILE, line N", object as dict)."""
    where = path
    try:
        text = Path(path).read_text("utf-8-sig")
        for number, line in enumerate(text.split("\n"), 1):
            where = f"{path}, line {number}"
            if line.strip():
                yield where, dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{where}: cannot be read as a JSON object ({error})")


def check_line(where, folder, line, wanted):
    """SystemExit unless `wanted` keys hold texts, and "image" names a file inside the folder."""
    for key in ("image", *wanted):
        if not isinstance(line.get(key), str):
            raise SystemExit(f'{where}: a text "{key}" is wanted; given: {line!r:.99}')
    picture = (folder / line["image"]).resolve()
    if not picture.is_relative_to(folder.resolve()):
        raise SystemExit(f"{where}: {line['image']!r} is no file inside {folder}")


def read_entries(path):
    """A .jsonl file as above -> yields dicts. SystemExit names a line that is wrong."""
    for where, entry in read_lines(path):
        texts = [key for key in ("question", "answer", "caption", "kind") if key in entry]
        if "question" in entry or not {"caption", "objects"} & entry.keys():
            texts += ["question", "answer"]
        check_line(where, path.parent, entry, texts)
        entry["image"] = normpath(entry["image"])  # one name for one picture
        names = entry.setdefault("objects", [])
        if not isinstance(names, list) or not all(isinstance(x, str) and x for x in names):
            raise SystemExit(f'{where}: a list "objects" of names is wanted')
        yield entry


def read_folder(folder, size, seed=0):
    """A folder of your own pictures -> two Splits. Without val.jsonl a tenth is held out."""
    folder = Path(folder)
    train, val = list(read_entries(folder / "train.jsonl")), []
    if (folder / "val.jsonl").exists():
        val = list(read_entries(folder / "val.jsonl"))
    images, index = load_pictures(folder, [entry["image"] for entry in train + val], size)
    if len(images) < 2:
        raise SystemExit(f"{folder}: not enough pictures")
    if not val:
        held_out = set(Random(0).sample(sorted(index), max(1, len(index) // 10)))
        val = [entry for entry in train if entry["image"] in held_out]
        train = [entry for entry in train if entry["image"] not in held_out]
    known = {name for entry in train + val for name in entry["objects"]}
    return [make_split(images, index, entries, known, seed) for entries in (train, val)]


def make_split(images, index, entries, known, seed):
    """Entries of a .jsonl file -> Split. known: all objects, to ask for what is not there, too."""
    split = Split(images, [], [], [[] for _ in images])
    for entry in entries:
        i = index.get(entry["image"])
        if i is None:  # it could not be read
            continue
        if "caption" in entry:
            split.captions.append(Example(i, None, entry["caption"], "caption"))
        if "question" in entry:
            kind = entry.get("kind", "question")
            split.questions.append(Example(i, entry["question"], entry["answer"], kind))
        for name in entry["objects"]:
            if name not in split.objects[i]:
                split.objects[i].append(name)
    rng = Random(seed)
    for i, present in enumerate(split.objects):
        absent = sorted(known - set(present))
        rng.shuffle(absent)
        for yes, no in zip(cycle(present), absent[:6]):  # one of each for up to six absent objects
            split.questions.append(Example(i, exist_question(yes), "yes", "exist"))
            split.questions.append(Example(i, exist_question(no), "no", "exist"))
    if not split.captions:
        split.captions.extend(captions_of_questions(split.questions, rng))
    return split


def captions_of_questions(questions, rng):
    """Yields captions for pictures without any, such as "What color is it? red Where is it? left".

    Each joins up to four questions and their answers; yes and no only where nothing else is asked.
    """
    about = defaultdict(list)
    for e in questions:
        about[e.picture].append(e)
    for i, examples in about.items():
        open_questions = [e for e in examples if e.answer not in NO_YES]
        texts = [f"{e.prompt} {e.answer}" for e in open_questions or examples]
        for _ in range(4):
            rng.shuffle(texts)
            yield Example(i, None, " ".join(texts[:4]), "caption")


def load_picture(path, size):
    """A picture file -> (size, size, 3) uint8 with gray margins, or as text what is wrong."""
    try:
        with Image.open(path) as picture:
            picture.draft(None, (size, size))  # reads large JPEGs at a fraction of their size
            if picture.mode[0] in "IF":
                raise ValueError("more than 8 bits a channel")
            picture = ImageOps.exif_transpose(picture).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.array(ImageOps.pad(picture.convert("RGB"), (size, size), color="gray"))
    except Exception as error:  # Pillow's decoders raise nearly every kind there is
        return f"{path}: no readable picture ({error!r})"


def load_pictures(folder, names, size):
    """Picture files -> (images (N, size, size, 3) uint8, dict of name -> index of its image)."""
    names = list(dict.fromkeys(names))
    if not names:
        raise SystemExit(f"{folder}: no pictures")
    paths = [folder / name for name in names]
    decoded = thread_map(partial(load_picture, size=size), paths, desc=f"decoding {folder}")
    images, index, bad = [], {}, []
    for name, picture in zip(names, decoded):
        if isinstance(picture, str):
            bad.append(picture)
        else:
            index[name] = len(images)
            images.append(picture)
    if len(bad) > len(names) / 100:
        raise SystemExit(f"{len(bad)} of {len(names)} pictures can't be read; first: {bad[0]}")
    for reason in bad:
        print(f"left out: {reason}")
    return np.stack(images), index
