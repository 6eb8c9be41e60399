"""easy-VQA as a folder: on a few pictures in place of the package, which is not required."""
import json

import pytest
from PIL import Image

from data import read_folder
from extras.easy_vqa import question_kind, write_part


@pytest.mark.parametrize("question, kind", [
    ("what is the blue shape?", "shape"), ("what shape is in the image?", "shape"),
    ("what color is the shape?", "color"), ("what is the color of the circle?", "color"),
    ("does the image contain a rectangle?", "is there"), ("is there a black shape?", "is there"),
    ("does the image not contain a gray shape?", "is there not"),
    ("is no blue shape present?", "is there not")])
def test_the_four_kinds_of_questions_are_told_apart(question, kind):
    assert question_kind(question) == kind


def test_a_written_folder_is_one_that_can_be_trained_on(tmp_path):
    paths = {}
    for i in range(4):
        paths[i] = tmp_path / f"from-{i}.png"
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(paths[i])
    questions = ["is there a circle?"] * 4, ["yes", "no", "no", "yes"], [0, 1, 2, 3]
    for part in ("train", "val"):
        write_part(tmp_path / "easy-vqa", part, questions, paths)
    for split in read_folder(tmp_path / "easy-vqa", 64):
        assert [example.answer for example in split.questions] == questions[1]
        red = [split.images[example.picture, 5, 5, 0] for example in split.questions]
        assert red == [0, 60, 120, 180]
        told = {f"is there a circle? {answer}" for answer in questions[1]}
        assert {caption.answer for caption in split.captions} == told  # it has none of its own
    lines = (tmp_path / "easy-vqa" / "val.jsonl").read_text().splitlines()
    assert json.loads(lines[3])["image"] == "val/3.png"
