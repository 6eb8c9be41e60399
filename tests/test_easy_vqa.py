"""easy-VQA as a folder: on a package of a few pictures."""
import json
from zipfile import ZipFile

import pytest
from PIL import Image

from data import read_folder
from driving import refused
from extras.easy_vqa import convert, question_kind


@pytest.mark.parametrize("question, kind", [
    ("what is the blue shape?", "shape"), ("what shape is in the image?", "shape"),
    ("what color is the shape?", "color"), ("what is the color of the circle?", "color"),
    ("does the image contain a rectangle?", "is there"), ("is there a black shape?", "is there"),
    ("does the image not contain a gray shape?", "is there not"),
    ("is no blue shape present?", "is there not")])
def test_the_four_kinds_of_questions_are_told_apart(question, kind):
    assert question_kind(question) == kind


def test_the_unpacked_package_is_a_folder_that_can_be_trained_on(tmp_path):
    refused("pip download", convert, tmp_path)
    questions = [["is there a circle?", answer, i] for i, answer in enumerate(["yes", "no"] * 2)]
    with ZipFile(tmp_path / "easy_vqa-1.0-py3-none-any.whl", "w") as package:
        for part, first in (("train", 0), ("test", 100)):
            data = f"easy_vqa/data/{part}"
            package.writestr(f"{data}/questions.json", json.dumps(questions))
            for i in range(4):
                with package.open(f"{data}/images/{i}.png", "w") as file:
                    Image.new("RGB", (64, 64), (first + i, 0, 0)).save(file, "png")
    convert(tmp_path)
    for part, first in zip(read_folder(tmp_path, 64), (0, 100)):
        found = [(*e[1:], part.images[e.picture, 5, 5, 0] - first) for e in part.questions]
        assert found == [(text, answer, "is there", i) for text, answer, i in questions]
    lines = (tmp_path / "val.jsonl").read_text().splitlines()
    assert json.loads(lines[3])["image"] == "easy_vqa/data/test/images/3.png"
