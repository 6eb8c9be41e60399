"""Pictures and texts as batches: tokenizer, picture world, your own pictures, and Dataset.

Read `model.py` before, `train.py` after. Shapes: B rows, T positions, N pictures.
`python data.py` shows what becomes of a scene.
"""
import json
import re
from collections import Counter, defaultdict, namedtuple
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from pathlib import Path, PurePath
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin
from tqdm.contrib.concurrent import thread_map

from mma import IMAGE, PAD, TEXT

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # some PNG files hold a book

# picture: index into the images. prompt: a question; None where the answer is a caption.
Example = namedtuple("Example", "picture prompt answer kind")
# What to train on, or to validate on, or to test. images: (N, size, size, 3) uint8. captions,
# questions: Examples. objects: for each picture the names of the objects in it. names: of all
# objects that may be asked for. hashes: of the picture files, where there are any.
Part = namedtuple("Part", "images captions questions objects names hashes", defaults=((), ()))


# Text as token ids.
SPECIALS = ("<pad>", "<image>", "<user>", "<assistant>", "<eos>")
PAD_ID, IMAGE_ID, USER_ID, ASSISTANT_ID, EOS_ID = range(len(SPECIALS))


class Tokenizer:
    """Ids for the specials, then the 256 bytes, then frequent words with the space before them.

    A word that has no id is spelled in UTF-8 bytes: nothing is ever unknown.
    """
    PIECE = re.compile(r" ?\w+(?:-\w+)*| ?[^\w\s]|.", re.DOTALL)  # each character is in some piece

    def __init__(self, words):
        self.words = words
        self.pieces = [b""] * len(SPECIALS)  # id -> what it prints
        self.pieces += [bytes([i]) for i in range(256)]
        self.id_of = {word: len(self.pieces) + i for i, word in enumerate(words)}
        self.pieces += [word.encode("utf-8", "replace") for word in words]

    @classmethod
    def build(cls, texts, max_words=8192):
        """The vocabulary of some texts: the most frequent pieces, if they come twice or more."""
        counts = Counter(piece for text in texts for piece in cls.PIECE.findall(text))
        twice = [piece for piece in counts if counts[piece] > 1]
        return cls(sorted(twice, key=lambda piece: (-counts[piece], piece))[:max_words])

    def encode(self, text):
        ids = []
        for piece in self.PIECE.findall(text):
            if piece in self.id_of:
                ids.append(self.id_of[piece])
            else:
                ids += [len(SPECIALS) + byte for byte in piece.encode("utf-8", "replace")]
        return ids

    def decode(self, ids):
        """Ids -> text. Specials print as nothing."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


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
    """Alternately place first and thing first: "top-left red fish, blue cup center"."""
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
    """Question kind -> all (question, answer) of that kind with one right answer in a Scene.

    A kind of question of your own is one more key here.
    """
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

    Two ask whether something is there. Of each other kind there is one (two of exist_color), if
    the Scene allows any: the (question, answer) that was used least so far. So no answer is more
    usual than another, and none can be guessed.
    """
    rng = Random(seed)
    used = Counter()
    for scene in scenes:
        questions = []
        present = [o.name for o in scene.objects]
        absent = [name for name in OBJECTS if name not in present]
        for _ in range(2):  # not balanced as `exist_questions`: with a hint learning starts earlier
            name = rng.choice(present if rng.random() < 0.5 else absent)
            questions.append((exist_question(name), NO_YES[name in present], "exist"))
        pairs_of = unambiguous(scene)
        for kind in ("exist_color", *pairs_of):  # exist_color twice: it takes longest to learn
            if pairs := sorted(pairs_of[kind]):  # in an order that never depends on hashing
                pair = min(pairs, key=lambda pair: (used[pair], rng.random()))
                used[pair] += 1
                questions.append((*pair, kind))
        yield questions


def make_world(name, n, seed=0, size=SIZE):
    """The first n scenes of "train", "val" or "test" as a Part. seed: of the questions."""
    scenes = [make_scene(FIRST_SEED[name] + i) for i in range(n)]
    part = Part(np.stack([draw(scene, size) for scene in scenes]), [], [], [], OBJECTS)
    for i, questions in enumerate(questions_about(scenes, seed)):
        part.captions.append(Example(i, None, caption(scenes[i]), "caption"))
        part.questions.extend(Example(i, *question) for question in questions)
        present = [o.name for o in scenes[i].objects]
        part.objects.append(list(dict.fromkeys(present)))
    return part


class Dataset:
    """Examples as rows of ids. The model generates what stands after the bar:

        question:  <user> image tokens, question <assistant> | answer <eos>
        caption:   <user> image tokens | caption <eos>

    In the order "text-first" the question stands before the picture, in "text-twice" before and
    after it. Override `layout` for another order, or for two pictures in a prompt: then `picture`
    of an Example is a pair of indices. The model needs no change.
    """

    def __init__(self, examples, images, tokenizer, config, order="image-first"):
        self.images = images
        self.tokenizer = tokenizer
        self.config, self.order = config, order
        self.examples = []
        self.rows = []  # of each example: (ids of the prompt, ids of what is generated)
        self.rows_of = defaultdict(list)  # picture -> indices of the rows about it
        too_long = {}  # number of tokens -> Example
        for example in examples:
            prompt, answer = self.layout(example)
            if len(prompt + answer) > config.context:
                too_long[len(prompt + answer)] = example
                continue
            self.rows_of[example.picture].append(len(self.rows))
            self.rows.append((prompt, answer))
            self.examples.append(example)
        if too_long:
            print(f"{len(examples) - len(self.rows)} of {len(examples)} texts are left out: with "
                  f"{config.image_tokens} image tokens they are too long for --context "
                  f"{config.context}; {max(too_long)} tokens: {too_long[max(too_long)]!r:.150}")
            if not self.rows:
                raise SystemExit("no text is left: raise --context")

    def layout(self, example):
        """Example -> (ids of the prompt, ids of what the model must produce)."""
        picture = [IMAGE_ID] * self.config.image_tokens
        answer = self.tokenizer.encode(example.answer) + [EOS_ID]
        if example.prompt is None:
            return [USER_ID, *picture], answer
        question = self.tokenizer.encode(example.prompt)
        before = [] if self.order == "image-first" else question
        after = [] if self.order == "text-first" else question
        return [USER_ID, *before, *picture, *after, ASSISTANT_ID], answer

    def sample(self, pictures, per_picture, seed):
        """Indices of rows: some pictures, and some rows about each. It depends on the seed alone,
        so that a resumed run draws the same."""
        rng = Random(seed)
        indices = []
        for picture in rng.sample(list(self.rows_of), min(pictures, len(self.rows_of))):
            about = self.rows_of[picture]
            indices += rng.sample(about, min(per_picture, len(about)))
        return indices

    def generated_tokens(self, indices):
        """How many tokens of these rows the model must produce."""
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


# Your own pictures: a folder with train.jsonl and, if you like, val.jsonl and test.jsonl. Each line
# is a JSON object: "image" is a file's name; with it go "question" and "answer" (and a "kind" of
# question), a "caption", or a list of "objects".
KEYS = {"image", "question", "answer", "kind", "caption", "objects"}


def read_lines(path):
    """A file of JSON lines -> yields (where: "FILE, line N", object as dict without nulls)."""
    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return {key: value for key, value in pairs if value is not None}

    where = path
    try:
        for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
            where = f"{path}, line {number}"
            if text := line.decode("utf-8-sig").strip():
                entry = json.loads(text, object_pairs_hook=unique, parse_constant=lambda _: None)
                if not isinstance(entry, dict):
                    raise ValueError(f"wanted is {{...}}, given is {text:.50}")
                yield where, entry
    except (OSError, ValueError, RecursionError) as error:
        raise SystemExit(f"{where}: cannot be read as one JSON object ({error})")


def check_line(where, line, wanted):
    """SystemExit unless `wanted` keys hold texts, and "image" names a file inside the folder."""
    for key in ("image", *wanted):
        if not isinstance(line.get(key), str):
            raise SystemExit(f'{where}: a text "{key}" is wanted; given: {line!r:.99}')
    name = PurePath(line["image"])  # by its text alone: links may lead anywhere
    if name.is_absolute() or ".." in name.parts:
        raise SystemExit(f"{where}: {line['image']!r} is no file inside the folder")


def read_entries(path):
    """A .jsonl file as above -> list of dicts, with the "file" of the picture and its "hash".

    SystemExit names a line that is wrong.
    """
    entries, unknown, hash_of = [], Counter(), {}
    for where, entry in read_lines(path):
        texts = [key for key in ("caption", "kind") if key in entry]
        if {"question", "answer"} & entry.keys() or not {"caption", "objects"} & entry.keys():
            texts += ["question", "answer"]
        check_line(where, entry, texts)
        names = entry.get("objects", [])
        if not isinstance(names, list) or not all(isinstance(x, str) and x.strip() for x in names):
            raise SystemExit(f'{where}: a list "objects" of names is wanted; given: {names!r:.99}')
        unknown.update(entry.keys() - KEYS)
        file = path.parent / entry["image"]
        hash_of[file] = hash_of.get(file) or file_hash(file)
        objects = [name.strip().lower() for name in names]  # "Cat " is a cat
        entries.append({**entry, "objects": objects, "file": file, "hash": hash_of[file]})
    if unknown:
        print(f"{path}: keys that are not used: {dict(unknown)}")
    if not entries:
        raise SystemExit(f"{path}: no line in it")
    return entries


def read_folder(folder, size, seed=0, names=("train", "val")):
    """A folder of your own pictures -> a Part for each of `names`.

    Without val.jsonl, "val" is a tenth of train.jsonl; without test.jsonl, "test" is "val".
    """
    folder, entries = Path(folder), {}
    for name in ("train", "val", "test"):
        if name == "train" or (folder / f"{name}.jsonl").exists():
            entries[name] = read_entries(folder / f"{name}.jsonl")
    known = sorted({thing for lines in entries.values() for e in lines for thing in e["objects"]})
    hold_out(folder, entries)
    if "train" in names and not entries["train"]:
        raise SystemExit(f"{folder}: not enough pictures: none is left to train on")
    pictures = load_pictures({e["hash"]: e["file"] for x in names for e in entries[x]}, size)
    return [make_part(pictures, entries[name], known, seed) for name in names]


def hold_out(folder, entries):
    """Take from the entries of "train" all that is held out; add "val" and "test" if need be.

    Who is held out is a property of the picture, the hash of its file: another picture in the
    folder, another order of lines or another name of the file does not change it.
    """
    train = entries["train"]
    if "val" not in entries:
        hashes = sorted({e["hash"] for e in train})
        tenth = [x for x in hashes if x < "1a"]  # as hexadecimal digits
        tenth = {*tenth} if 0 < len(tenth) < len(hashes) else {hashes[0]}
        entries["val"] = [e for e in train if e["hash"] in tenth]
    entries.setdefault("test", entries["val"])
    held_out = {e["hash"] for e in entries["val"] + entries["test"]}
    entries["train"] = [e for e in train if e["hash"] not in held_out]
    if out := [e["image"] for e in train if e["hash"] in held_out]:
        print(f"{folder}: {len({*out})} pictures of train.jsonl are held out, such as {out[0]}")


def make_part(pictures, entries, names, seed):
    """What entries say, as a Part. pictures: hash -> picture, of all files that can be read."""
    hashes = list(dict.fromkeys(e["hash"] for e in entries if e["hash"] in pictures))
    images = np.array([pictures[x] for x in hashes])
    part = Part(images, [], [], [[] for _ in hashes], names, hashes)
    index = {x: i for i, x in enumerate(hashes)}
    for entry in entries:
        if entry["hash"] not in index:
            continue
        i = index[entry["hash"]]
        if "caption" in entry:
            part.captions.append(Example(i, None, entry["caption"], "caption"))
        if "question" in entry:
            kind = entry.get("kind", "question")
            part.questions.append(Example(i, entry["question"], entry["answer"], kind))
        part.objects[i] = list(dict.fromkeys(part.objects[i] + entry["objects"]))
    for i, questions in enumerate(exist_questions(part.objects, seed)):
        part.questions.extend(Example(i, *question) for question in questions)
    part.captions.extend(make_captions(part, seed))
    return part


def make_captions(part, seed):
    """Yields four captions for each picture of a Part that has none, so that it is learned from.

    They name its objects, "sofa, cat", at most six in any order. Where no objects are known they
    are questions with their answers, "What color is it? red Where is it? left"; those that yes or
    no answers only where nothing else is asked.
    """
    rng = Random(seed)
    captioned = {e.picture for e in part.captions}
    about = defaultdict(list)
    for e in part.questions:
        about[e.picture].append(e)
    for i, texts in enumerate(part.objects):
        if i in captioned:
            continue
        joint = ", "
        if not texts:
            open_questions = [e for e in about[i] if e.answer not in NO_YES]
            texts = [f"{e.prompt} {e.answer}" for e in open_questions or about[i]]
            joint = " "
        for _ in range(4 if texts else 0):
            chosen = rng.sample(texts, min(6, len(texts)))
            yield Example(i, None, joint.join(chosen), "caption")


def exist_questions(objects, seed):
    """Whether things are there: for each picture a list of (question, answer, "exist").

    Balanced, as the pairs of VQA v2: a thing is asked for in as many pictures that show it as in
    pictures that do not. So the question alone never tells the answer: one must look. At most six
    of the things in a picture are asked for.
    objects: for each picture the names of what it shows; none where that is not known.
    """
    rng = Random(seed)
    questions = [[] for _ in objects]
    known = [i for i, present in enumerate(objects) if present]
    shown = defaultdict(list)  # thing -> pictures with it that are asked about
    for i in known:
        for thing in rng.sample(objects[i], min(6, len(objects[i]))):
            shown[thing].append(i)
    for thing, pictures in shown.items():
        others = [i for i in known if thing not in objects[i]]
        pairs = min(len(pictures), len(others))
        for answer, some in (("yes", pictures), ("no", others)):
            for i in rng.sample(some, pairs):
                questions[i].append((exist_question(thing), answer, "exist"))
    return questions


def file_hash(path):
    """16 hexadecimal digits of the content of a file, or its name if it cannot be read."""
    with suppress(OSError, ValueError):
        if path.is_file():  # a pipe would be waited for
            return sha256(path.read_bytes()).hexdigest()[:16]
    return f"~{path}"


def load_picture(path, size):
    """A picture file -> (size, size, 3) uint8 with gray margins, or None, with a printed line."""
    try:
        if not path.is_file():
            raise ValueError("no such file")
        with Image.open(path) as picture:
            picture.draft(None, (size, size))  # reads large JPEGs at a fraction of their size
            picture.load()
        if picture.mode[0] in "IF":
            raise ValueError("more than 8 bits per channel")
        with suppress(Exception):  # EXIF data that cannot be read turn nothing
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode in ("1", "P", "PA"):  # a mean of palette indices is no color
            picture = picture.convert("RGBA")
        picture = picture.reduce(max(1, max(picture.size) // (8 * size))).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        scale = size / max(picture.size)
        picture = picture.resize([max(1, round(scale * side)) for side in picture.size])
        whole = Image.new("RGB", (size, size), "gray")
        whole.paste(picture, [(size - side) // 2 for side in picture.size])
        return np.array(whole)
    except Exception as error:  # Pillow's decoders raise nearly every kind there is
        print(f"left out: {path}: no readable picture ({error!r})")


def load_pictures(path_of, size):
    """Dict of key -> picture file, as a dict of key -> (size, size, 3) uint8.

    SystemExit if more than one in a hundred cannot be read; fewer are printed and left out.
    """
    found = thread_map(partial(load_picture, size=size), path_of.values(), desc="decoding")
    pictures = {key: picture for key, picture in zip(path_of, found) if picture is not None}
    if len(pictures) < 0.99 * len(path_of):
        raise SystemExit(f"only {len(pictures)} of {len(path_of)} pictures can be read, see above")
    return pictures


def augment(images, seed):
    """Photographs as from another side: flipped or not, and enlarged, so that margins are cut off.

    images: (N, size, size, 3) uint8 -> the same. 60 to 100 % of each side stay.
    """
    rng = Random(seed)
    draws = torch.tensor([[rng.random() for _ in range(4)] for _ in images])  # (N, 4)
    share = 1 - 0.4 * draws[:, 0]  # of each side that stays
    where = torch.zeros(len(images), 2, 3)  # from places in the new picture to those in the old
    where[:, 0, 0] = share * (draws[:, 1] - 0.5).sign()  # left and right change places
    where[:, 1, 1] = share
    where[:, :, 2] = (1 - share[:, None]) * (2 * draws[:, 2:] - 1)
    x = images.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(where.to(x.device), x.shape, align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return x.permute(0, 2, 3, 1).round().byte()


def usual(part):
    """What is usual, for those who do not look: dict of `answers`, question or "kind " and kind of
    question -> its most frequent answer, and `shown`, question -> pictures that show what it asks.
    """
    counts = defaultdict(Counter)
    for e in part.questions:
        for key in (e.prompt, f"kind {e.kind}"):
            counts[key][e.answer] += 1
    shown = Counter(exist_question(thing) for things in part.objects for thing in things)
    answers = {key: count.most_common(1)[0][0] for key, count in counts.items()
               if count.total() > 1}
    return {"answers": answers, "shown": dict(shown)}


def digest(part):
    """16 hexadecimal digits of all that a Part says: other data have others."""
    told = repr((part.captions, part.questions, part.objects, part.hashes))
    return sha256(told.encode()).hexdigest()[:16]


def main():
    """Save a scene, and print its texts and one row of a batch, position by position."""
    from model import Config  # here alone: nothing else in this file knows the model
    part = make_world("train", 100)
    about = [e for e in part.questions if e.picture == 0]
    Image.fromarray(part.images[0]).resize((512, 512), Image.NEAREST).save("scene.png")
    print(f"wrote scene.png\n\ncaption:     {part.captions[0].answer}")
    for e in about:
        print(f"{e.kind + ':':12} {e.prompt} {e.answer}")
    tokenizer = Tokenizer.build(t for e in part.questions for t in (e.prompt, e.answer))
    batch = Dataset(about, part.images, tokenizer, Config(0)).batch(range(len(about)))
    print(f"\nOne row of a batch of {len(about)}:\nposition    id  modality  what it is")
    for t, i in enumerate(batch["ids"][0].tolist()):
        name = {PAD: "padding", TEXT: "text", IMAGE: "image"}[batch["modality"][0, t].item()]
        piece = SPECIALS[i] if i < len(SPECIALS) else repr(tokenizer.decode([i]))
        must = "  <- must be generated" if batch["generated"][0, t] else ""
        print(f"{t:8} {i:5}  {name:8}  {piece}{must}")


if __name__ == "__main__":
    main()
