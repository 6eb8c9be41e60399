"""extras/coco.py: what becomes of a small COCO folder."""
import json
import sys

import pytest
from PIL import Image

from data import read_folder
from driving import refused, write_lines
from extras import coco

CATEGORIES = [{"id": 10, "name": "dog"}, {"id": 90, "name": "wine glass"}]
QUESTIONS, ANSWERS = "v2_OpenEnded_mscoco_val2014_questions", "v2_mscoco_val2014_annotations"
NAME = "COCO_val2014_{:012}.png"


@pytest.fixture
def convert(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["coco", str(tmp_path)])
    (tmp_path / "annotations").mkdir()
    return coco.main


def change(folder, name, **content):
    """Write an annotation file, or replace some keys of it; then it has a byte order mark."""
    path = folder / f"annotations/{name}.json"
    old, encoding = {}, "utf-8"
    if path.exists():
        old, encoding = json.loads(path.read_text()), "utf-8-sig"
    path.write_text(json.dumps(old | content), encoding)


def make_part(folder, part, first):
    """Two pictures of one part of COCO, with ids from `first` on; their red is their id."""
    (folder / part).mkdir()
    images = [{"id": i, "file_name": NAME.format(i)} for i in (first, first + 1)]
    for image in images:
        Image.new("RGB", (48, 40), (image["id"], 0, 0)).save(folder / part / image["file_name"])
    objects = [{"image_id": first, "category_id": n} for n in (10, 90, 10)]
    change(folder, f"instances_{part}", images=images, annotations=objects, categories=CATEGORIES)
    captions = [{"image_id": first + 1, "caption": f" Picture\n{first + 1}. "}]
    change(folder, f"captions_{part}", annotations=captions)


def test_both_parts_of_2014_are_written_as_the_trainer_reads_them(tmp_path, convert, capsys):
    for part, first in (("train2014", 1), ("val2014", 5), ("val2017", 7)):
        make_part(tmp_path, part, first)
    change(tmp_path, QUESTIONS, questions=[{"question_id": 3, "question": "What is it?"}])
    answer = {"question_id": 3, "image_id": 5, "multiple_choice_answer": "a dog"}
    no_question = answer | {"question_id": 4}
    no_answer = answer | {"multiple_choice_answer": None}
    change(tmp_path, ANSWERS, annotations=[answer, no_question, no_answer])
    change(tmp_path, "mscoco_val2014_annotations")  # of VQA v1
    convert()
    printed = capsys.readouterr().out
    assert "left out: 2 entries with an empty question or answer" in printed
    for name in ("val2017", "mscoco_val2014_annotations.json"):
        assert f"{name} is not taken" in printed
    train, val = read_folder(tmp_path, 16)
    assert [e.answer for e in train.captions + val.captions] == ["Picture 2.", "Picture 6."]
    assert [train.images[e.picture, 8, 8, 0] for e in train.captions] == [2]
    assert [names for names in train.objects if names] == [["dog", "wine glass"]]
    [vqa] = [e for e in val.questions if e.kind == "vqa"]
    assert (val.images[vqa.picture, 8, 8, 0], *vqa[1:3]) == (5, "What is it?", "a dog")


def test_no_file_is_replaced_or_left_from_before(tmp_path, convert):
    make_part(tmp_path, "val2017", 5)
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("by hand")
        refused(f"{name} is there already: delete it first", convert)
        assert (tmp_path / name).read_text() == "by hand"
        (tmp_path / name).unlink()
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "missing" / "train.jsonl")
    refused("cannot be read or written", convert)


@pytest.mark.parametrize("name, content, told", [
    ("instances", {"images": [{"id": "5", "file_name": "val2017/" + NAME.format(5)}]},
     "1 lines about 1 pictures\n  left out: 1 entries about other pictures\n"),
    ("instances", {"images": [{"id": 6, "file_name": NAME.format(i)} for i in (6, 5, 7)]},
     "1 lines about 1 pictures\n  left out: 1 pictures with the id of another one\n"
     "  left out: 1 pictures that are not in val2017\n"
     "  left out: 1 entries about other pictures\n"),
    ("instances", {"categories": [CATEGORIES[0], {"id": 90, "name": None}, {"id": 91}]},
     "2 lines about 2 pictures\n  left out: 1 objects of an unknown category\n"),
    ("captions", {"annotations": [{"image_id": "6", "caption": x} for x in ("a", None, " ", 7)]},
     "2 lines about 2 pictures\n  left out: 3 entries with an empty caption\n")])
def test_what_is_left_out_is_counted(tmp_path, convert, capsys, name, content, told):
    make_part(tmp_path, "val2017", 5)
    change(tmp_path, f"{name}_val2017", **content)
    convert()
    assert capsys.readouterr().out == f"val2017: {told}"


@pytest.mark.parametrize("file", ["coco_pope_random.json", "pope/any.json"])
def test_pictures_that_pope_asks_about_are_left_out(tmp_path, convert, capsys, file):
    make_part(tmp_path, "train2017", 310195)
    (tmp_path / "pope").mkdir()
    write_lines(tmp_path / file, [{"image": "COCO_val2014_000000310196.jpg", "label": "yes"}] * 2)
    convert()
    assert "left out: 1 pictures that POPE asks about" in capsys.readouterr().out
    [line] = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "train2017/" + NAME.format(310195),
                                "objects": ["dog", "wine glass", "dog"]}


def test_files_in_another_format_end_with_a_line_that_names_them(tmp_path, convert):
    refused("no folder of pictures (train2014, ", convert)
    make_part(tmp_path, "val2014", 5)
    change(tmp_path, "captions_val2014", annotations=[])
    change(tmp_path, "instances_val2014", annotations=[])
    refused("nothing is written", convert)
    for text in ("[]", "{", "{}", '{"images": [3]}', '{"images": null}', "\xff"):
        (tmp_path / "annotations/instances_val2014.json").write_text(text, "latin-1")
        refused("instances_val2014.json: COCO's images and categories and ann", convert)
    assert not (tmp_path / "train.jsonl").exists()
