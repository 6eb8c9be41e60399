"""easy-VQA as a folder: on a package of a few pictures."""
import json
from zipfile import ZipFile

from PIL import Image

from data import read_folder
from driving import refused
from extras.easy_vqa import convert

QUESTIONS = [
    ("is there a circle?", "no", "is there"), ("what is the blue shape?", "circle", "shape"),
    ("is no color gray?", "yes", "is there"), ("what color is the shape?", "blue", "color")]


def test_the_unpacked_package_is_a_folder_that_can_be_trained_on(tmp_path):
    refused("pip download", convert, tmp_path)
    with ZipFile(tmp_path / "easy_vqa-1.0-py3-none-any.whl", "w") as package:
        for part, first in (("train", 0), ("test", 100)):
            data = f"easy_vqa/data/{part}"
            asked = [(question, answer, i) for i, (question, answer, _) in enumerate(QUESTIONS)]
            package.writestr(f"{data}/questions.json", json.dumps(asked))
            for i in range(4):
                with package.open(f"{data}/images/{i}.png", "w") as file:
                    Image.new("RGB", (64, 64), (first + i, 0, 0)).save(file, "png")
    convert(tmp_path)
    for part, first in zip(read_folder(tmp_path, 64), (0, 100)):
        assert [e[1:] for e in part.questions] == QUESTIONS
        assert [part.images[e.picture, 5, 5, 0] - first for e in part.questions] == [0, 1, 2, 3]
    lines = (tmp_path / "val.jsonl").read_text().splitlines()
    assert json.loads(lines[3])["image"] == "easy_vqa/data/test/images/3.png"
    refused("train.jsonl is there already: delete it first", convert, tmp_path)
