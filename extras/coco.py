"""COCO's annotations as a folder for `train.py --data`.

    python -m extras.coco DIR    writes DIR/train.jsonl and DIR/val.jsonl

DIR holds train2017/ and val2017/ (or 2014) with pictures, and annotations/ with captions_*.json and
instances_*.json. VQA v2 (v2_*_questions.json, v2_*_annotations.json) is taken if it is there, too.
With only one folder of pictures only train.jsonl is written: the trainer holds out a tenth of it.
"""
import argparse
import json
from collections import defaultdict
from pathlib import Path


def read(path, *keys):
    """The lists with these names in a JSON file. SystemExit if they are not there."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return [content[key] for key in keys]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path}: COCO's {' and '.join(keys)} are wanted here ({error!r})")


def read_instances(path):
    """instances_*.json -> two dicts by picture id: the file's name, and the objects, each once."""
    images, categories, instances = read(path, "images", "categories", "annotations")
    names = {category["id"]: category["name"] for category in categories}
    files = {image["id"]: image["file_name"] for image in images}
    objects = {i: [] for i in files}
    for entry in instances:
        there, name = objects[entry["image_id"]], names[entry["category_id"]]
        if name not in there:
            there.append(name)
    return files, objects


def add_vqa(lines, folder):
    """Add to `lines` the questions of all VQA v2 files in DIR and DIR/annotations."""
    pattern = "v2_mscoco_*_annotations.json"
    for path in [*folder.glob(pattern), *folder.glob(f"annotations/{pattern}")]:
        beside = path.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions")
        [questions] = read(path.with_name(beside), "questions")
        [answers] = read(path, "annotations")
        texts = {entry["question_id"]: entry["question"] for entry in questions}
        for entry in answers:
            question, answer = texts[entry["question_id"]], entry["multiple_choice_answer"]
            lines[entry["image_id"]].append({"question": question, "answer": answer, "kind": "vqa"})


def convert(folder, part, path):
    """Write to `path` what is known of the pictures in DIR/part."""
    annotations = folder / "annotations"
    files, objects = read_instances(annotations / f"instances_{part}.json")
    [captions] = read(annotations / f"captions_{part}.json", "annotations")
    lines = defaultdict(list)  # picture id -> what is known, without the picture's name
    for i, names in objects.items():
        lines[i].append({"objects": names})
    for entry in captions:
        lines[entry["image_id"]].append({"caption": " ".join(entry["caption"].split())})
    add_vqa(lines, folder)
    there = [i for i in files if (folder / part / files[i]).is_file()]
    with open(path, "w") as out:
        for i in there:
            for line in lines[i]:
                out.write(json.dumps({"image": f"{part}/{files[i]}", **line}) + "\n")
    print(f"{path}: {len(there):,} of {len(files):,} annotated pictures are in {part}")


def main():
    """The command line."""
    parser = argparse.ArgumentParser("python -m extras.coco", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with COCO")
    folder = parser.parse_args().folder
    for year in ("2017", "2014"):
        parts = [part for part in (f"train{year}", f"val{year}") if (folder / part).is_dir()]
        if parts:
            break
    else:
        raise SystemExit(f"{folder}: a folder train2017 or val2017 (or 2014) is wanted in it")
    for part, name in zip(parts, ("train", "val")):
        convert(folder, part, folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
