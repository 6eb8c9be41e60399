"""easy-VQA, a data set of simple shapes that nobody here made, as a folder for `train.py --data`.

    pip download --no-deps --dest DIR easy-vqa
    python -m extras.easy_vqa DIR && python train.py --data DIR

It has 4,000 pictures to train on and 1,000 to test, one shape each, with about ten questions a
picture and no captions. DIR/val.jsonl holds its test questions. The package is unpacked as data:
nothing of it is installed or run.
"""
import argparse
import json
from pathlib import Path
from zipfile import ZipFile


def question_kind(question):
    """Which of the four kinds of easy-VQA's questions this is."""
    words = question.strip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "is there not" if {"no", "not"} & set(words) else "is there"


def convert(folder):
    """Unpack the package in `folder`, and write train.jsonl and val.jsonl beside it."""
    wheels = list(folder.glob("easy_vqa-*.whl"))
    if not wheels:
        raise SystemExit(f"no package here: pip download --no-deps --dest {folder} easy-vqa")
    ZipFile(wheels[0]).extractall(folder)
    for part, name in (("train", "train"), ("test", "val")):
        data = f"easy_vqa/data/{part}"
        with open(folder / f"{name}.jsonl", "w") as file:
            for question, answer, i in json.loads((folder / data / "questions.json").read_text()):
                line = {"image": f"{data}/images/{i}.png", "question": question, "answer": answer,
                        "kind": question_kind(question)}
                file.write(json.dumps(line) + "\n")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with the package")
    convert(parser.parse_args().folder)


if __name__ == "__main__":
    main()
