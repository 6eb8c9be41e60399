"""easy-VQA, a data set of simple shapes that nobody here made, as a folder for `train.py --data`.

    pip install easy-vqa
    python -m extras.easy_vqa DIR && python train.py --data DIR

It has 4,000 pictures to train on and 1,000 to test, one shape each, with about ten questions a
picture and no captions. DIR/val.jsonl holds the package's test questions.
"""
import argparse
import json
import shutil
from pathlib import Path


def question_kind(question):
    """Which of the four kinds of easy-VQA's questions this is."""
    words = question.strip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "is there not" if {"no", "not"} & set(words) else "is there"


def write_part(folder, part, questions, paths):
    """Copy the pictures of a part to `folder`/`part`, and write their questions beside it."""
    pictures = folder / part
    pictures.mkdir(parents=True, exist_ok=True)
    for i, path in paths.items():
        shutil.copy(path, pictures / f"{i}.png")
    with open(folder / f"{part}.jsonl", "w") as file:
        for question, answer, i in zip(*questions):
            line = {"image": f"{part}/{i}.png", "question": question, "answer": answer,
                    "kind": question_kind(question)}
            file.write(json.dumps(line) + "\n")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write")
    folder = parser.parse_args().folder
    try:
        import easy_vqa  # not among the requirements
    except ImportError:
        raise SystemExit("the package easy-vqa is missing: pip install easy-vqa")
    write_part(folder, "train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
    write_part(folder, "val", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())


if __name__ == "__main__":
    main()
