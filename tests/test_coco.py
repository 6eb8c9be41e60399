"""extras/coco.py: what becomes of a small COCO folder, and what is said about wrong files."""
import json

import pytest
from PIL import Image

from data import read_folder
from extras import coco

COLORS = {"dog": (200, 40, 40), "bus": (40, 40, 200), "wine glass": (200, 200, 40)}
ID = {"dog": 10, "bus": 20, "wine glass": 30, "person": 40}
SHOWN = {1: ["dog", "dog", "bus"], 2: ["bus", "wine glass", "dog"],
         3: ["wine glass", "person"]}  # picture -> its objects; the first gives its color


def write_json(path, **content):
    path.write_text(json.dumps(content))


def write_part(folder, part, first=0):
    """Pictures and annotations of one part of COCO; `first` is added to the ids."""
    (folder / part).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images, captions, instances = [], [], []
    for i, names in SHOWN.items():
        i, file = first + i, f"{i}.png"
        Image.new("RGB", (48, 40), COLORS[names[0]]).save(folder / part / file)
        images.append({"id": i, "file_name": file})
        captions.append({"image_id": i, "caption": f" A {names[0]}\nalone. "})
        instances += [{"image_id": i, "category_id": ID[name]} for name in names]
    write_json(folder / f"annotations/captions_{part}.json", annotations=captions)
    write_json(folder / f"annotations/instances_{part}.json", images=images, annotations=instances,
               categories=[{"id": i, "name": name} for name, i in ID.items()])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def convert(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["extras.coco", str(tmp_path)])
    return coco.main


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_train_and_val_are_written_in_the_format_that_the_trainer_reads(tmp_path, convert, year):
    write_part(tmp_path, f"train{year}")
    write_part(tmp_path, f"val{year}", first=100)
    convert()
    for split in read_folder(tmp_path, 16):
        assert split.objects == [["dog", "bus"], ["bus", "wine glass", "dog"],
                                 ["wine glass", "person"]]
        for i, name in enumerate(["dog", "bus", "wine glass"]):
            assert split.captions[i].answer == f"A {name} alone."
            assert split.images[split.captions[i].picture][8, 8].tolist() == list(COLORS[name])


@pytest.mark.parametrize("place", [".", "annotations"])
def test_vqa_questions_go_to_their_pictures_and_others_are_ignored(tmp_path, convert, place):
    write_part(tmp_path, "train2017")
    write_part(tmp_path, "val2017", first=100)
    asked = [(7, 2, "What is left?", "a bus"), (8, 102, "And right?", "a dog"), (9, 999, "?", "x")]
    write_json(tmp_path / place / "v2_OpenEnded_mscoco_train2014_questions.json", questions=[
        {"question_id": n, "question": text} for n, _, text, _ in asked])
    write_json(tmp_path / place / "v2_mscoco_train2014_annotations.json", annotations=[
        {"question_id": n, "image_id": image, "multiple_choice_answer": answer}
        for n, image, _, answer in asked])
    convert()
    for part, (_, _, question, answer) in zip(("train", "val"), asked):
        found = [line for line in lines(tmp_path / f"{part}.jsonl") if "question" in line]
        assert found == [{"image": f"{part}2017/2.png", "question": question, "answer": answer,
                          "kind": "vqa"}]


def test_one_folder_alone_becomes_train_and_missing_pictures_are_left_out(tmp_path, convert):
    write_part(tmp_path, "val2014")
    (tmp_path / "val2014" / "2.png").unlink()
    convert()
    assert not (tmp_path / "val.jsonl").exists()
    there = {line["image"] for line in lines(tmp_path / "train.jsonl")}
    assert there == {"val2014/1.png", "val2014/3.png"}


@pytest.mark.parametrize("content", [None, '{"images": [{', '{"images": 3}'])
def test_a_file_that_is_not_there_or_not_whole_is_named(tmp_path, convert, content):
    with pytest.raises(SystemExit, match="a folder train2017 or val2017"):
        convert()
    write_part(tmp_path, "train2017")
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SystemExit, match=f"^{path}: [^\n]* are wanted here[^\n]*$"):
        convert()
