"""COCO's annotations as a folder for `train.py --data`, or as files for `eval_pope.py --pope`.

    python -m extras.coco DIR              writes DIR/train.jsonl and DIR/val.jsonl
    python -m extras.coco DIR --pope OUT   writes OUT/coco_pope_{random,popular,adversarial}.json

DIR holds train2017/ and val2017/ (or 2014) with pictures, and annotations/ with captions_*.json and
instances_*.json. VQA v2 (v2_*_questions.json, v2_*_annotations.json) is taken if it is there, too.
With only one folder of pictures only train.jsonl is written: the trainer holds out a tenth of it.
"""
import argparse
import json
from collections import defaultdict
from pathlib import Path

from data import exist_question
from eval_pope import SPLITS, build

PLURALS = {"person": "people", "mouse": "mice", "knife": "knives", "sheep": "sheep",
           "skis": "skis", "scissors": "scissors", "broccoli": "broccoli"}


def plural(name):
    """The plural of an object's name: "wine glasses", "people"."""
    *before, last = name.split(" ")
    regular = last + ("es" if last.endswith(("s", "sh", "ch", "x")) else "s")
    return " ".join([*before, PLURALS.get(last, regular)])


def entries(path, key, **fields):
    """Yields these fields of each entry of a list in a JSON file; SystemExit names a wrong one.

    fields: for each its type, or a dict whose keys are the ids that are known.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SystemExit(f"{path}: a JSON file of COCO's annotations is wanted here ({error})")
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise SystemExit(f'{path}: an object with a list "{key}" is wanted')
    for i, entry in enumerate(content[key]):
        for field, wanted in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            kind = wanted if isinstance(wanted, type) else int
            if type(value) is not kind or kind is not wanted and value not in wanted:
                raise SystemExit(f'{path}, {key}[{i}]: {value!r:.40} is no valid "{field}"')
        yield [entry[field] for field in fields]


def read_objects(path):
    """instances_*.json -> (file names, dicts of object -> count or None), both by picture id."""
    names = dict(entries(path, "images", id=int, file_name=str))
    categories = dict(entries(path, "categories", id=int, name=str))
    objects = {number: {} for number in names}
    fields = {"image_id": names, "category_id": categories, "iscrowd": int}
    for number, category, crowd in entries(path, "annotations", **fields):
        count = objects[number].get(categories[category], 0)  # None: a crowd, so nobody knows
        objects[number][categories[category]] = None if crowd or count is None else count + 1
    return names, objects


def read_vqa(folder):
    """All VQA v2 files in DIR and DIR/annotations -> lists of questions by picture id."""
    asked, pattern = defaultdict(list), "v2_mscoco_*_annotations.json"
    for path in [*folder.glob(pattern), *folder.glob(f"annotations/{pattern}")]:
        beside = path.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions")
        texts = dict(entries(path.with_name(beside), "questions", question_id=int, question=str))
        fields = {"image_id": int, "question_id": texts, "multiple_choice_answer": str}
        for number, question, answer in entries(path, "annotations", **fields):
            asked[number].append({"question": texts[question], "answer": answer, "kind": "vqa"})
    return asked


def part_lines(folder, part, vqa):
    """What is known of the pictures in DIR/part -> lines for `data.read_folder`."""
    names, objects = read_objects(folder / "annotations" / f"instances_{part}.json")
    captions, lines = folder / "annotations" / f"captions_{part}.json", []
    for i, text in entries(captions, "annotations", image_id=names, caption=str):
        lines.append({"image": names[i], "caption": " ".join(text.split())})
    for i, counts in objects.items():
        lines.append({"image": names[i], "objects": list(counts)})
        asked = [{"question": f"How many {plural(name)} are in the image?", "answer": str(count),
                  "kind": "count"} for name, count in counts.items() if count]
        lines += [{"image": names[i], **question} for question in asked + vqa[i]]
    there = {name for name in names.values() if (folder / part / name).is_file()}
    print(f"{folder / part}: {len(there):,} of {len(names):,} annotated pictures are here")
    return [{**line, "image": f"{part}/{line['image']}"}
            for line in lines if line["image"] in there]


def pope_lines(path, split):
    """An instances_*.json -> the lines of an official POPE file."""
    names, objects = [list(by_id.values()) for by_id in read_objects(path)]
    built = build([list(counts) for counts in objects], split)
    return [{"question_id": n, "image": names[i], "text": exist_question(name), "label": label}
            for n, (i, name, label) in enumerate(built, 1)]


def main():
    """The command line."""
    parser = argparse.ArgumentParser("python -m extras.coco", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with COCO")
    parser.add_argument("--pope", metavar="OUT", type=Path, help="write POPE files about val")
    options = parser.parse_args()
    folder = options.folder
    names = ("train2017", "train2014", "val2017", "val2014")
    parts = [name for name in names if (folder / name).is_dir()]
    if not parts:
        raise SystemExit(f"{folder}: a folder train2017 or val2017 (or 2014) is wanted in it")
    year = parts[0][-4:]
    parts = [name for name in parts if name.endswith(year)]
    if options.pope:
        path = folder / "annotations" / f"instances_val{year}.json"
        found = {options.pope / f"coco_pope_{split}.json": pope_lines(path, split)
                 for split in SPLITS}
    else:
        vqa = read_vqa(folder)
        found = {folder / f"{name}.jsonl": part_lines(folder, part, vqa)
                 for name, part in zip(("train", "val"), parts)}
    for path, lines in found.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise SystemExit(f"{path}: can't be written ({error.strerror})")
        pictures = len({line["image"] for line in lines})
        print(f"{path}: {len(lines):,} lines about {pictures:,} pictures")


if __name__ == "__main__":
    main()
