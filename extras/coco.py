"""COCO's annotations as a folder for `train.py --data`.

    python -m extras.coco DIR    writes DIR/train.jsonl and DIR/val.jsonl

DIR holds train2014/ and val2014/, or those of 2017, with pictures, and annotations/ with
captions_*.json and instances_*.json. VQA v2 (v2_*_questions.json, v2_*_annotations.json) is read if
it is there, too. With only one folder of pictures only train.jsonl is written: the trainer holds
out a tenth of it. POPE asks about pictures of val2014, most of which are in train2017, too: those
that its files (DIR/coco_pope_*.json or DIR/pope/*.json) ask about are left out.
"""
import json
import os
import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict
from pathlib import Path, PurePath

from data import check_line, read_lines

PARTS = ("train2014", "val2014", "train2017", "val2017")  # of one year, the first that is there


def outputs(folder):
    """The train.jsonl and val.jsonl that shall be written. SystemExit if one is there already."""
    paths = folder / "train.jsonl", folder / "val.jsonl"
    for path in paths:
        if os.path.lexists(path):
            raise SystemExit(f"{path} is there already: delete it first")
    return paths


def read(path, *keys):
    """The lists of objects under the keys of a JSON file. SystemExit if it has none."""
    print(f"reading {path}")
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        return [[{**entry} for entry in content[key]] for key in keys]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SystemExit(f"{path}: {', '.join(keys)}: lists of objects are wanted ({error!r:.99})")


def clean(text):
    """A text on one line, or "" if it is no text."""
    return " ".join(text.split()) if isinstance(text, str) else ""


def number(name):
    """The COCO id in the name of a picture: "COCO_val2014_000000310196.jpg" -> "310196"."""
    stem = PurePath(name).stem
    return re.search(r"\d*$", stem)[0].lstrip("0") or stem


def known(annotations, part, categories, objects):
    """Yields (id of a picture, line for the trainer); what is missing in the line is empty."""
    names = {str(entry.get("id")): clean(entry.get("name")) for entry in categories}
    objects_of = defaultdict(list)
    for entry in objects:
        picture = str(entry.get("image_id"))
        if name := names.get(str(entry.get("category_id"))):
            objects_of[picture].append(name)
        else:
            yield picture, {"objects": []}
    for picture in objects_of:
        yield picture, {"objects": objects_of[picture]}
    [captions] = read(annotations / f"captions_{part}.json", "annotations")
    for entry in captions:
        yield str(entry.get("image_id")), {"caption": clean(entry.get("caption"))}
    for path in sorted(annotations.glob("v2_mscoco_*_annotations.json")):
        beside = path.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions")
        [questions] = read(annotations / beside, "questions")
        texts = {str(entry.get("question_id")): clean(entry.get("question")) for entry in questions}
        [answers] = read(path, "annotations")
        for entry in answers:
            question = texts.get(str(entry.get("question_id")), "")
            answer = clean(entry.get("multiple_choice_answer"))
            line = {"question": question, "answer": answer, "kind": "vqa"}
            yield str(entry.get("image_id")), line


def convert(folder, part, asked):
    """The lines about the pictures in DIR/part, but not about those with a number in `asked`.

    What is left out is counted and printed. SystemExit if nothing is left.
    """
    annotations, there = folder / "annotations", {path.name for path in (folder / part).iterdir()}
    keys = "images", "categories", "annotations"
    images, categories, objects = read(annotations / f"instances_{part}.json", *keys)
    files, lines, left_out = {}, [], Counter()
    for image in images:
        picture, name = str(image.get("id")), PurePath(str(image.get("file_name"))).name
        if number(name) in asked:
            left_out["pictures that POPE asks about"] += 1
        elif name not in there or picture in files:
            left_out["pictures without a file or an id of their own"] += 1
        else:
            files[picture] = f"{part}/{name}"
    for picture, line in known(annotations, part, categories, objects):
        if picture in files and all(line.values()):
            lines.append(json.dumps({"image": files[picture], **line}) + "\n")
        else:
            left_out["entries that are empty or about other pictures"] += 1
    print(f"{part}: {len(lines):,} lines about {len(files):,} pictures; left out: {dict(left_out)}")
    if not lines:
        raise SystemExit(f"{folder}: nothing is written, there is no line about {part}")
    return lines


def main():
    """The command line. All is converted before the first file is written."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with COCO")
    folder = parser.parse_args().folder
    paths = outputs(folder)
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if not parts:
        raise SystemExit(f"{folder}: no folder of pictures ({', '.join(PARTS)}) is in it")
    asked = set()
    for path in [*folder.glob("coco_pope_*.json"), *folder.glob("pope/*.json")]:
        for where, question in read_lines(path):
            check_line(where, question, [])
            asked.add(number(question["image"]))
    taken = [part for part in parts if part[-4:] == parts[0][-4:]]
    texts = ["".join(convert(folder, part, asked)) for part in taken]
    for path, text in zip(paths, texts):
        path.write_text(text)


if __name__ == "__main__":
    main()
