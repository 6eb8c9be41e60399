"""easy-VQA, a data set of simple shapes that nobody here made, as a folder for `train.py --data`.

    pip download --no-deps --dest DIR easy-vqa
    python -m extras.easy_vqa DIR && python train.py --data DIR

It has 4,000 pictures to train on and 1,000 to test, one shape each, with about ten questions a
picture and no captions. DIR/val.jsonl holds its test questions. The package is unpacked as data:
nothing of it is installed or run.
"""
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from zipfile import ZipFile

from extras.coco import outputs


def convert(folder):
    """Unpack the package in `folder`, and write train.jsonl and val.jsonl beside it."""
    paths = outputs(folder, "train", "val")
    wheels = list(folder.glob("easy_vqa-*.whl"))
    if not wheels:
        raise SystemExit(f"no package here: pip download --no-deps --dest {folder} easy-vqa")
    ZipFile(wheels[0]).extractall(folder)
    for part, path in zip(("train", "test"), paths):
        data = f"easy_vqa/data/{part}"
        with open(path, "w") as file:
            for question, answer, i in json.loads((folder / data / "questions.json").read_text()):
                kind = "color" if "color" in question else "shape"
                if answer in ("yes", "no"):
                    kind = "is there"
                line = {"question": question, "answer": answer, "kind": kind}
                line["image"] = f"{data}/images/{i}.png"
                file.write(json.dumps(line) + "\n")


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with the package")
    convert(parser.parse_args().folder)


if __name__ == "__main__":
    main()
