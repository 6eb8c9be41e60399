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


def read(path):
    """The content of a JSON file. SystemExit if there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: COCO's annotations are wanted here ({error!r})")


def known(annotations, instances, part):
    """Yields (id of a picture, what is known of it as a line for the trainer)."""
    names = {category["id"]: category["name"] for category in instances["categories"]}
    objects = defaultdict(list)
    for entry in instances["annotations"]:
        objects[entry["image_id"]].append(names[entry["category_id"]])
    for picture in objects:
        yield picture, {"objects": objects[picture]}
    for entry in read(annotations / f"captions_{part}.json")["annotations"]:
        caption = " ".join(entry["caption"].split())
        yield entry["image_id"], {"caption": caption}
    for path in annotations.glob("v2_mscoco_*_annotations.json"):
        beside = path.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions")
        questions = read(annotations / beside)["questions"]
        texts = {entry["question_id"]: entry["question"] for entry in questions}
        for entry in read(path)["annotations"]:
            question = texts[entry["question_id"]]
            answer = entry["multiple_choice_answer"]
            yield entry["image_id"], {"question": question, "answer": answer, "kind": "vqa"}


def convert(folder, part, path):
    """Write to `path` what is known of the pictures in DIR/part."""
    annotations = folder / "annotations"
    instances = read(annotations / f"instances_{part}.json")
    files = {}
    for image in instances["images"]:
        file = f"{part}/{image['file_name']}"
        if (folder / file).is_file():
            files[image["id"]] = file
    with open(path, "w") as out:
        for picture, line in known(annotations, instances, part):
            if picture in files:
                out.write(json.dumps({"image": files[picture], **line}) + "\n")
    print(f"{path}: {len(files):,} of {len(instances['images']):,} pictures are in {part}")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with COCO")
    folder = parser.parse_args().folder
    found = {path.name for path in folder.glob("*")}
    parts = sorted(found & {"train2017", "val2017"}) or sorted(found & {"train2014", "val2014"})
    if not parts:
        raise SystemExit(f"{folder}: a folder train2017 or val2017 (or 2014) is wanted in it")
    for part, name in zip(parts, ("train", "val")):
        convert(folder, part, folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
