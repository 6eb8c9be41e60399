"""COCO's annotations as a folder for `train.py --data`.

    python -m extras.coco DIR    writes DIR/train.jsonl and DIR/val.jsonl

DIR holds train2014/ and val2014/ (or 2017) with pictures, and annotations/ with captions_*.json and
instances_*.json. VQA v2 (v2_*_questions.json, v2_*_annotations.json) is taken if it is there, too.
With only one folder of pictures only train.jsonl is written: the trainer holds out a tenth of it.
POPE asks about pictures of val2014, most of which are in train2017, too: those that its files
(DIR/coco_pope_*.json or DIR/pope/*.json) ask about are left out.
"""
import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePath

from data import check_line, read_lines


def read(path, *keys):
    """The lists of objects under the keys of a JSON file. SystemExit if it has none."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        return [[{**entry} for entry in content[key]] for key in keys]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        wanted = " and ".join(keys)
        raise SystemExit(f"{path}: COCO's {wanted} are wanted here, as lists of objects ({error})")


def clean(text):
    """A text on one line, or "" if it is no text."""
    return " ".join(text.split()) if isinstance(text, str) else ""


def number(name):
    """The COCO id in the name of a picture: "COCO_val2014_000000310196.jpg" -> "310196"."""
    stem = PurePath(name).stem
    return re.search(r"\d*$", stem)[0].lstrip("0") or stem


def known(annotations, part, categories, objects, left_out):
    """Yields (id of a picture, line for the trainer); what is missing in the line is empty."""
    names = {str(entry.get("id")): clean(entry.get("name")) for entry in categories}
    objects_of = defaultdict(list)
    for entry in objects:
        if name := names.get(str(entry.get("category_id"))):
            objects_of[str(entry.get("image_id"))].append(name)
        else:
            left_out["objects of an unknown category"] += 1
    for picture in objects_of:
        yield picture, {"objects": objects_of[picture]}
    [captions] = read(annotations / f"captions_{part}.json", "annotations")
    for entry in captions:
        yield str(entry.get("image_id")), {"caption": clean(entry.get("caption"))}
    for path in sorted(annotations.glob("v2_mscoco_*_annotations.json")):
        beside = path.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions")
        [questions] = read(annotations / beside, "questions")
        texts = {str(entry.get("question_id")): clean(entry.get("question")) for entry in questions}
        for entry in read(path, "annotations")[0]:
            question = texts.get(str(entry.get("question_id")), "")
            answer = clean(entry.get("multiple_choice_answer"))
            line = {"question": question, "answer": answer, "kind": "vqa"}
            yield str(entry.get("image_id")), line


def convert(folder, part, asked):
    """The lines about the pictures in DIR/part, but not about those with an id in `asked`.

    What is left out is counted and printed. SystemExit if nothing is left.
    """
    annotations, files, lines, left_out = folder / "annotations", {}, [], Counter()
    there = {path.name for path in (folder / part).iterdir()}
    instances = read(annotations / f"instances_{part}.json", "images", "categories", "annotations")
    for image in instances[0]:
        picture, name = str(image.get("id")), PurePath(str(image.get("file_name"))).name
        if name not in there:
            left_out[f"pictures that are not in {part}"] += 1
        elif {picture, number(name)} & asked:
            left_out["pictures that POPE asks about"] += 1
        elif picture in files:
            left_out["pictures with the id of another one"] += 1
        else:
            files[picture] = f"{part}/{name}"
    for picture, line in known(annotations, part, *instances[1:], left_out):
        if picture not in files:
            left_out["entries about other pictures"] += 1
        elif not all(line.values()):
            left_out[f"entries with an empty {' or '.join(line)}"] += 1
        else:
            lines.append(json.dumps({"image": files[picture], **line}) + "\n")
    print(f"{part}: {len(lines):,} lines about {len(files):,} pictures",
          *[f"{n:,} {what}" for what, n in left_out.items()], sep="\n  left out: ")
    if not lines:
        raise SystemExit(f"{folder}: nothing is written, there is no line about {part}")
    return lines


def convert_all(folder):
    """Write train.jsonl and val.jsonl. SystemExit if one is there."""
    outputs = folder / "train.jsonl", folder / "val.jsonl"
    for path in outputs:
        if path.exists():
            raise SystemExit(f"{path} is there already: delete it first")
    parts = ["train2014", "val2014", "train2017", "val2017"]
    there = [part for part in parts if (folder / part).is_dir()]
    if not there:
        raise SystemExit(f"{folder}: no folder of pictures ({', '.join(parts)}) is in it")
    taken = [part for part in there if part[-4:] == there[0][-4:]]
    vqa_v1 = [path.name for path in folder.glob("annotations/mscoco_*_annotations.json")]
    for name in there[len(taken):] + vqa_v1:
        print(f"{name} is not taken: only one year is, and only VQA v2")
    asked = set()
    for path in [*folder.glob("coco_pope_*.json"), *folder.glob("pope/*.json")]:
        for where, question in read_lines(path):
            check_line(where, question, [])
            asked.add(number(question["image"]))
    for path, lines in zip(outputs, [convert(folder, part, asked) for part in taken]):
        with open(path, "x") as file:
            file.writelines(lines)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with COCO")
    folder = parser.parse_args().folder
    try:
        convert_all(folder)
    except OSError as error:
        raise SystemExit(f"{folder}: cannot be read or written ({error})")


if __name__ == "__main__":
    main()
