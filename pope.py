"""POPE's questions: which objects a picture is asked about, and the official files. Read before `eval_pope.py`.

POPE ("Evaluating Object Hallucination in Large Vision-Language Models", Li et al. 2023, arXiv 2305.10355)
asks about each picture for three objects that are in it and three that are not. The absent ones are
drawn at random (`random`), from the most frequent kinds (`popular`), or from the kinds that most often
stand together with those in the picture (`adversarial`): the better a model knows what usually is there,
the harder not to say yes.
"""
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import scenes
from data import Item

SPLITS = ("random", "popular", "adversarial")


def build(objects, split, seed=0, images=500, least=3, each=3):
    """Build the POPE questions of one split, as the official builder does.

    objects: for each picture the set or list of the kinds in it.
    `images` pictures (in seeded order) with at least `least` kinds get `each` questions about kinds that are
    there, the same in every split, each followed by one about a kind that is not.
    Returns a list of (picture index, kind, "yes" or "no"). Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown POPE split {split!r}: choose one of {', '.join(SPLITS)}")
    shared, rng = random.Random(seed), random.Random(f"{seed} {split}")
    objects = [sorted(set(kinds)) for kinds in objects]
    frequency = Counter(kind for kinds in objects for kind in kinds)
    popular = sorted(frequency, key=lambda kind: (-frequency[kind], kind))
    together = defaultdict(Counter)
    for kinds in objects:
        for a in kinds:
            together[a].update(b for b in kinds if b != a)
    chosen = [i for i, kinds in enumerate(objects) if len(kinds) >= least]
    shared.shuffle(chosen)
    questions = []
    for i in sorted(chosen[:images]):
        asked = set()
        for kind in shared.sample(objects[i], min(each, len(objects[i]))):
            questions.append((i, kind, "yes"))
            if split == "random":
                candidates = rng.sample(popular, len(popular))
            elif split == "popular":
                candidates = popular
            else:  # what most often stands together with this very object
                candidates = sorted(popular, key=lambda other: -together[kind][other])
            absent = next((c for c in candidates if c not in objects[i] and c not in asked), None)
            if absent is not None:  # a picture that shows everything leaves nothing to ask for
                questions.append((i, absent, "no"))
                asked.add(absent)
    return questions


def question_text(kind):
    """POPE's wording."""
    return f"Is there {scenes.a_or_an(kind)} in the image?"


def pope_items(questions, kind):
    """The questions of `build` as Items for `data.Examples`."""
    return [Item((i,), question_text(name), label, kind) for i, name, label in questions]


def read(path):
    """An official POPE file: JSON lines with question_id, image (a file name), text and label -> list of such dicts.

    Labels are returned in lower case. Raises ValueError that names the file and the line.
    """
    path, questions, seen = Path(path), [], set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such POPE file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text file in UTF-8; JSON lines are wanted") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            question = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = ("; the file looks like ordinary JSON: JSON lines are wanted, one question a line"
                    if number == 1 and line.strip() in ("[", "{") else "")
            raise ValueError(f"{where}: not JSON, or cut off ({str(error)[:80]}){hint}") from None
        if isinstance(question, list):
            raise ValueError(f"{where}: a list; JSON lines are wanted, one question (an object) a line")
        if not isinstance(question, dict) or not all(
                isinstance(question.get(key), kind) for key, kind in (("image", str), ("text", str), ("label", str))):
            raise ValueError(f"{where}: an object with the texts image, text and label is wanted, not {line[:60]!r}")
        label, number = question["label"].strip().lower(), question.get("question_id")
        if label not in ("yes", "no"):
            raise ValueError(f"{where}: the label is {question['label'][:40]!r}, but must be yes or no")
        if not isinstance(number, (int, str)):
            raise ValueError(f"{where}: the question_id is {str(number)[:40]!r}, but must be a number")
        if number in seen:
            raise ValueError(f"{where}: question_id {number} was there before; each question has one of its own")
        seen.add(number)
        questions.append({**question, "label": label})
    if not questions:
        raise ValueError(f"{path}: no questions in it")
    return questions


def write(path, questions):
    """Write questions, a list of dicts, as an official POPE file."""
    Path(path).write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
