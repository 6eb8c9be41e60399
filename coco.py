"""COCO-format data: photographs with captions, objects and VQA v2 questions. Read `pictures.py` and `pope.py` before.

    DIR/train2017/*.jpg, val2017/*.jpg                 (or the names of 2014)
    DIR/annotations/captions_{train,val}2017.json      pre-training, and "Describe the image."
    DIR/annotations/instances_{train,val}2017.json     "Is there a dog in the image?", "How many dogs ...?"
    DIR/v2_OpenEnded_mscoco_*_questions.json and DIR/v2_mscoco_*_annotations.json    VQA v2, also in annotations/

Where there is no train folder, a tenth of the pictures of val, chosen by a hash of their ids, is held out.
"""
import hashlib
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pope
from data import Item, Material
from pictures import load_all

HELD_OUT = 10  # one picture in so many
ROUNDS, ASKED = 10, 20_000  # small sets are seen many times: up to so many rounds of questions, on so many pictures
PLURALS = {"person": "people", "mouse": "mice", "knife": "knives", "sheep": "sheep", "skis": "skis",
           "scissors": "scissors", "broccoli": "broccoli"}


def read_json(path, *keys):
    """A JSON file that holds an object with lists under `keys` -> that object.

    Raises ValueError that names the file, the place and what is wrong: missing, cut off, JSON lines, no such list.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"{path}: no such file; COCO's annotations belong there") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text file in UTF-8; JSON is wanted") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "one JSON object is wanted, but this looks like JSON lines" if error.msg == "Extra data" else error.msg
        end = " (the file ends there: cut off?)" if error.pos >= len(text.rstrip()) - 1 else ""
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: {hint}{end}") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be COCO's annotations") from None
    for key in keys:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: an object with a list of objects {key!r} is wanted")
    return content


def field(entry, key, kind, path):
    """entry[key], which must be of a type; ValueError names the file and the entry."""
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path}: {key!r} is {str(value)[:40]!r} in the entry {json.dumps(entry)[:80]}")
    return value


def read_images(content, path):
    """The pictures of an annotation file -> dict of id -> file name, in the order of ids."""
    found = {}
    for entry in content["images"]:
        number, name = field(entry, "id", int, path), field(entry, "file_name", str, path)
        if found.setdefault(number, name) != name:
            raise ValueError(f"{path}: the picture id {number} is there twice")
    return dict(sorted(found.items()))


def read_annotations(path, content, per_entry):
    """Call per_entry(annotation, image id) for each annotation in a file's content; returns its pictures, id -> name."""
    images = read_images(content, path)
    for annotation in content["annotations"]:
        number = field(annotation, "image_id", int, path)
        if number not in images:
            raise ValueError(f"{path}: annotation {annotation.get('id')} is about picture {number}, "
                             "which is not among the file's images")
        per_entry(annotation, number)
    return images


def read_captions(path):
    """captions_*.json -> (pictures: id -> file name, captions: id -> list of texts)."""
    content, captions = read_json(path, "images", "annotations"), defaultdict(list)

    def add(annotation, number):
        """Keep the caption of one picture."""
        text = " ".join(field(annotation, "caption", str, path).split())
        if not text:
            raise ValueError(f"{path}: the caption of annotation {annotation.get('id')} (picture {number}) is empty")
        captions[number].append(text)

    return read_annotations(path, content, add), captions


def read_objects(path):
    """instances_*.json -> (pictures: id -> file name, objects: id -> Counter of kinds, crowds: id -> set of kinds).

    Objects that are marked `iscrowd` are not counted, for nobody knows how many they are: they are in crowds.
    """
    content = read_json(path, "images", "annotations", "categories")  # once: 450 MB for train2017
    names = {field(c, "id", int, path): field(c, "name", str, path) for c in content["categories"]}
    objects, crowds = defaultdict(Counter), defaultdict(set)

    def add(annotation, number):
        """Count one object of a picture, or note its crowd."""
        category = field(annotation, "category_id", int, path)
        if not names.get(category):
            raise ValueError(f"{path}: annotation {annotation.get('id')} has the unknown category_id {category}")
        if annotation.get("iscrowd"):
            crowds[number].add(names[category])
        else:
            objects[number][names[category]] += 1

    return read_annotations(path, content, add), objects, crowds


def read_vqa(folder):
    """All VQA v2 files in DIR and DIR/annotations -> dict of picture id -> list of (question, answer)."""
    found = defaultdict(list)
    for path in sorted([*folder.glob("v2_OpenEnded_mscoco_*_questions.json"),
                        *folder.glob("annotations/v2_OpenEnded_mscoco_*_questions.json")]):
        answers_path = path.with_name(path.name.replace("v2_OpenEnded_", "v2_").replace("_questions", "_annotations"))
        if not answers_path.exists():
            print(f"{path}: left out, for its answers {answers_path.name} are not beside it", file=sys.stderr)
            continue
        questions = {}
        for entry in read_json(path, "questions")["questions"]:
            number = field(entry, "question_id", int, path)
            if number in questions:
                raise ValueError(f"{path}: question_id {number} is there twice")
            questions[number] = field(entry, "question", str, path)
        for entry in read_json(answers_path, "annotations")["annotations"]:
            number = field(entry, "question_id", int, answers_path)
            if number not in questions:
                raise ValueError(f"{answers_path}: question_id {number} is not in {path.name}")
            found[field(entry, "image_id", int, answers_path)].append(
                (questions[number], field(entry, "multiple_choice_answer", str, answers_path)))
    return found


def plural(name):
    """The plural of a category's name: "wine glasses", "people"."""
    *before, last = name.split(" ")
    ending = last + ("es" if last.endswith(("s", "sh", "ch", "x")) else "s")
    return " ".join([*before, PLURALS.get(last, ending)])


def object_questions(objects, crowds, seed, rounds=1):
    """Existence and counting questions. objects: for each picture a Counter; crowds: for each a set of kinds.

    Existence is asked as POPE does: each kind that is there, followed by one that is not, and the latter chosen in
    turn by chance, by frequency and by co-occurrence. All is asked in several rounds, each with other chances.
    A kind of which the picture shows a crowd is there, but is not counted.
    """
    present = [set(counted) | crowd for counted, crowd in zip(objects, crowds)]
    most = max(map(len, present), default=0)
    items = [Item((picture,), pope.question_text(kind), label, "exist")
             for r in range(rounds) for split in pope.SPLITS
             for picture, kind, label in pope.build(present, split, f"{seed} {r}", len(present), least=1, each=most)]
    items += [Item((i,), f"How many {plural(kind)} are in the image?", str(n), "count")
              for i, counted in enumerate(objects) for kind, n in counted.items() if kind not in crowds[i]] * rounds
    return items


def held_out(number):
    """Whether a picture, by its id, is kept from training where there is no train folder."""
    return int(hashlib.sha256(str(number).encode()).hexdigest(), 16) % HELD_OUT == 0


def load_coco(folder, size, limit, seed, cache):
    """A COCO folder -> (train, val): two Material. limit: at most so many pictures of either, or None.

    Says on stderr what was found, and what was left out. Raises ValueError for what is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--coco-dir {folder}: no such folder")
    there = [name for name in ("train2017", "train2014", "val2017", "val2014") if (folder / name).is_dir()]
    if not there:
        raise ValueError(f"--coco-dir {folder}: neither train2017/ nor val2017/ (or 2014) with pictures is in it")
    train = next((name for name in there if name.startswith("train")), None)
    year = (train or there[0])[-4:]
    val = f"val{year}"
    vqa = read_vqa(folder)
    if train and val in there:
        return tuple(load_split(folder, name, lambda number: True, size, limit, seed, cache, vqa) for name in (train, val))
    return (load_split(folder, train or val, lambda number: not held_out(number), size, limit, seed, cache, vqa),
            load_split(folder, train or val, held_out, size, limit, seed, cache, vqa))


def load_split(folder, name, wanted, size, limit, seed, cache, vqa):
    """One Material: the pictures of folder/name whose id is `wanted`, with all that is known about them."""
    annotations = folder / "annotations"
    names, captions = read_captions(annotations / f"captions_{name}.json")
    instances = annotations / f"instances_{name}.json"
    objects, crowds = read_objects(instances)[1:] if instances.exists() else ({}, {})
    ids = [number for number in names if wanted(number)][:limit]
    if not ids:
        raise ValueError(f"{folder / name}: no pictures are left for this part of the data; more are needed")
    images, bad = load_all(folder / name, [names[number] for number in ids], size, cache)
    for reason in list(bad.values())[:10]:
        print(f"left out: {reason}", file=sys.stderr)
    at = {number: i for i, number in enumerate(ids) if i not in bad}
    # A damaged picture keeps its place in the array, but nothing is asked about it.
    counted = [objects.get(number, Counter()) if number in at else Counter() for number in ids]
    crowded = [crowds.get(number, set()) if number in at else set() for number in ids]
    shown = [Item((i,), None, text, "caption") for number, i in at.items() for text in captions.get(number, ())]
    rounds = max(1, min(ROUNDS, ASKED // len(ids)))
    questions = object_questions(counted, crowded, seed, rounds)
    asked = [Item((i,), text, answer, "vqa") for number, i in at.items() for text, answer in vqa.get(number, ())]
    # One caption a picture: with all five, their many tokens would drown the short answers in the loss.
    told = [Item((i,), "Describe the image.", captions[number][0], "describe") for number, i in at.items() if number in captions]
    print(f"{folder / name}: {len(at)} pictures ({len(bad)} left out), {len(shown)} captions, {len(questions)} questions "
          f"about objects, {len(asked)} of VQA v2", file=sys.stderr)
    return Material(images, shown, questions + (asked + told) * rounds, [set(c) | s for c, s in zip(counted, crowded)])


def fitting(items, tokenizer, config):
    """The Items whose row fits into the model's context; says on stderr how many do not."""
    room = config.context - config.image_tokens - 3  # <user>, <assistant>, <eos>
    kept = [item for item in items if len(tokenizer.encode(item.prompt or "")) + len(tokenizer.encode(item.answer)) <= room]
    if len(kept) < len(items):
        print(f"{len(items) - len(kept)} of {len(items)} texts are longer than the context and left out", file=sys.stderr)
    return kept
