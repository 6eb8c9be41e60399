"""extras/coco.py: what becomes of a small COCO folder."""
import json
import sys

import pytest
from PIL import Image

from data import read_folder
from driving import refused, write_lines
from extras import coco

CATEGORIES = [{"id": 10, "name": "dog"}, {"id": 90, "name": "wine glass"}]
NAME = "COCO_val2014_{:012}.png"


@pytest.fixture
def convert(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["coco", str(tmp_path)])
    (tmp_path / "annotations").mkdir()
    return coco.main


def annotate(folder, name, **content):
    (folder / f"annotations/{name}.json").write_text(json.dumps(content), "utf-8-sig")


def make_part(folder, part, first, captions=None, **instances):
    """Two pictures of one part of COCO, with ids from `first` on; their red is their id."""
    (folder / part).mkdir(exist_ok=True)
    images = [{"id": i, "file_name": NAME.format(i)} for i in (first, first + 1)]
    for image in images:
        Image.new("RGB", (48, 40), (image["id"], 0, 0)).save(folder / part / image["file_name"])
    objects = [{"image_id": first, "category_id": n} for n in (10, 90, 10)]
    right = {"images": images, "annotations": objects, "categories": CATEGORIES}
    annotate(folder, f"instances_{part}", **right | instances)
    right = [{"image_id": first + 1, "caption": f" Picture\n{first + 1}. "}]
    annotate(folder, f"captions_{part}", annotations=right if captions is None else captions)


def test_both_parts_of_2014_are_written_as_the_trainer_reads_them(tmp_path, convert, capsys):
    for part, first in (("train2014", 1), ("val2014", 5), ("val2017", 7)):
        make_part(tmp_path, part, first)
    questions = [{"question_id": 3, "question": "What is it?"}]
    annotate(tmp_path, "v2_OpenEnded_mscoco_val2014_questions", questions=questions)
    answer = {"question_id": 3, "image_id": 5, "multiple_choice_answer": "a dog"}
    empty = [answer | {"question_id": 4}, answer | {"multiple_choice_answer": None}]
    annotate(tmp_path, "v2_mscoco_val2014_annotations", annotations=[answer, *empty])
    annotate(tmp_path, "mscoco_val2014_annotations")  # of VQA v1
    convert()
    printed = capsys.readouterr().out  # says what is read
    assert "{'entries that are empty or about other pictures': 2}" in printed
    assert "v2_mscoco_val" in printed and "/mscoco_val" not in printed and "2017" not in printed
    train, val = read_folder(tmp_path, 16)
    assert [e.answer for e in train.captions + val.captions] == ["Picture 2.", "Picture 6."]
    assert [train.images[e.picture, 8, 8, 0] for e in train.captions] == [2]
    assert [names for names in train.objects if names] == [["dog", "wine glass"]]
    [vqa] = [e for e in val.questions if e.kind == "vqa"]
    assert (val.images[vqa.picture, 8, 8, 0], *vqa[1:3]) == (5, "What is it?", "a dog")


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_no_file_is_replaced_or_left_from_before(tmp_path, convert, name):
    make_part(tmp_path, "val2017", 5)
    target = tmp_path / "by hand"
    (tmp_path / name).symlink_to(target)
    for _ in range(2):  # without a target, and with one
        refused(f"{name} is there already: delete it first", convert)
        assert not target.exists() or target.read_text() == "by hand"
        target.write_text("by hand")
    assert [path.name for path in tmp_path.glob("*.jsonl")] == [name]


@pytest.mark.parametrize("changes, told", [
    ({"images": [{"id": "5", "file_name": "val2017/" + NAME.format(5)}]}, "1 lines about 1 pic"),
    ({"images": [{"id": 6, "file_name": NAME.format(i)} for i in (6, 5, 7)]}, "their own': 2"),
    ({"categories": [CATEGORIES[0], {"id": 90, "name": None}, {"id": 91}]}, "2 lines about 2 pic"),
    ({"captions": [{"image_id": "6", "caption": x} for x in ("a", None, " ", 7)]}, "pictures': 3")])
def test_what_is_left_out_is_counted(tmp_path, convert, capsys, changes, told):
    make_part(tmp_path, "val2017", 5, **changes)
    convert()
    line = capsys.readouterr().out.split("\n")[-2]
    assert told in line and "entries that are empty or about other pictures': " in line


@pytest.mark.parametrize("file", ["coco_pope_random.json", "pope/any.json"])
def test_pictures_that_pope_asks_about_are_left_out(tmp_path, convert, capsys, file):
    make_part(tmp_path, "train2017", 310195)
    (tmp_path / "pope").mkdir()
    write_lines(tmp_path / file, [{"image": "COCO_val2014_000000310196.jpg", "label": "yes"}] * 2)
    convert()
    assert "'pictures that POPE asks about': 1" in capsys.readouterr().out
    [line] = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "train2017/" + NAME.format(310195),
                                "objects": ["dog", "wine glass", "dog"]}


def test_files_in_another_format_end_with_a_line_that_names_them(tmp_path, convert):
    refused("no folder of pictures (train2014, ", convert)
    make_part(tmp_path, "val2014", 5, captions=[], annotations=[])
    refused("nothing is written", convert)
    for text in ("[]", "{", "{}", '{"images": [3]}', '{"images": null}', "\xff"):
        (tmp_path / "annotations/instances_val2014.json").write_text(text, "latin-1")
        refused("instances_val2014.json: images, categories, annotations: lists of", convert)
    assert not (tmp_path / "train.jsonl").exists()
