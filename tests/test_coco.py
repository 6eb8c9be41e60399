"""extras/coco.py: what becomes of a small COCO folder, and what is said about wrong files."""
import json

import pytest
from PIL import Image

from data import read_folder
from extras import coco

COLORS = {"dog": (200, 40, 40), "bus": (40, 40, 200), "wine glass": (200, 200, 40)}
ID = {"dog": 10, "bus": 20, "wine glass": 30, "person": 40, "apple": 50}
SHOWN = {  # picture -> its objects; the first gives its color, * marks a crowd
    1: ["dog", "dog", "bus"], 2: ["bus", "wine glass", "dog"], 3: ["wine glass", "apple*"],
    4: ["dog", "dog*", "dog", "person", "apple"]}


def write_part(folder, part, first=0):
    """Pictures and annotations of one part of COCO; `first` is added to the ids."""
    (folder / part).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images, captions, instances = [], [], []
    for i, names in SHOWN.items():
        file = f"COCO_{part}_{first + i:012}.png"
        Image.new("RGB", (48, 40), COLORS[names[0]]).save(folder / part / file)
        images.append({"id": first + i, "file_name": file})
        captions.append({"image_id": first + i, "caption": f" A {names[0]}\nalone. "})
        captions.append({"image_id": first + i, "caption": f"Picture {i}."})
        instances += [{"image_id": first + i, "category_id": ID[name.rstrip("*")],
                       "iscrowd": int("*" in name)} for name in names]
    write_json(folder / f"annotations/captions_{part}.json", images=images, annotations=captions)
    write_json(folder / f"annotations/instances_{part}.json", images=images, annotations=instances,
               categories=[{"id": i, "name": name} for name, i in ID.items()])


def write_json(path, **content):
    path.write_text(json.dumps(content))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def convert(monkeypatch, capsys):
    """convert(arguments) runs the program and returns what it prints."""
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["extras.coco", *map(str, arguments)])
        coco.main()
        return capsys.readouterr().out
    return run


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_train_and_val_are_written_in_the_format_that_the_trainer_reads(tmp_path, convert, year):
    write_part(tmp_path, f"train{year}")
    write_part(tmp_path, f"val{year}", first=100)
    printed = convert(tmp_path)
    assert f"{tmp_path}/train.jsonl: 20 lines about 4 pictures" in printed
    for split in read_folder(tmp_path, 16):
        assert split.objects == [["dog", "bus"], ["bus", "wine glass", "dog"],
                                 ["wine glass", "apple"], ["dog", "person", "apple"]]
        assert len(split.captions) == 8 <= sum(q.kind == "exist" for q in split.questions)
        for example in split.captions[::2]:
            name = example.answer.removeprefix("A ").removesuffix(" alone.")
            assert split.images[example.picture][8, 8].tolist() == list(COLORS[name])


def test_objects_are_counted_in_the_plural_and_crowds_are_not_counted(tmp_path, convert):
    write_part(tmp_path, "train2017")
    convert(tmp_path)
    asked = [line for line in lines(tmp_path / "train.jsonl") if line.get("kind") == "count"]
    assert [(line["image"][-5], line["question"], line["answer"]) for line in asked] == [
        (picture, f"How many {plural} are in the image?", count) for picture, plural, count in (
            ("1", "dogs", "2"), ("1", "buses", "1"), ("2", "buses", "1"),
            ("2", "wine glasses", "1"), ("2", "dogs", "1"), ("3", "wine glasses", "1"),
            ("4", "people", "1"), ("4", "apples", "1"))]  # not the dogs: a crowd is among them


def test_plurals():
    plurals = {"dog": "dogs", "person": "people", "wine glass": "wine glasses", "sheep": "sheep",
               "couch": "couches", "knife": "knives", "toothbrush": "toothbrushes", "skis": "skis"}
    assert {name: coco.plural(name) for name in plurals} == plurals


@pytest.mark.parametrize("place", [".", "annotations"])
def test_vqa_questions_go_to_their_pictures_and_others_are_ignored(tmp_path, convert, place):
    write_part(tmp_path, "train2017")
    write_part(tmp_path, "val2017", first=100)
    asked = [(7, 2, "What is left?", "a bus"), (8, 102, "And right?", "a dog"), (9, 999, "?", "x")]
    write_json(tmp_path / place / "v2_OpenEnded_mscoco_train2014_questions.json", questions=[
        {"question_id": n, "image_id": image, "question": text} for n, image, text, _ in asked])
    write_json(tmp_path / place / "v2_mscoco_train2014_annotations.json", annotations=[
        {"question_id": n, "image_id": image, "multiple_choice_answer": answer}
        for n, image, _, answer in asked])
    convert(tmp_path)
    for part, (_, number, question, answer) in zip(("train", "val"), asked):
        found = [line for line in lines(tmp_path / f"{part}.jsonl") if line.get("kind") == "vqa"]
        assert found == [{"image": f"{part}2017/COCO_{part}2017_{number:012}.png",
                          "question": question, "answer": answer, "kind": "vqa"}]


def test_one_folder_alone_becomes_train_and_missing_pictures_are_left_out(tmp_path, convert):
    write_part(tmp_path, "val2014")
    (tmp_path / "val2014" / f"COCO_val2014_{2:012}.png").unlink()
    assert "val2014: 3 of 4 annotated pictures are here" in convert(tmp_path)
    assert not (tmp_path / "val.jsonl").exists()
    assert {line["image"][-5] for line in lines(tmp_path / "train.jsonl")} == {"1", "3", "4"}


def test_pope_files_have_the_official_format_and_true_labels(tmp_path, convert):
    write_part(tmp_path, "val2014", first=100)
    printed = convert(tmp_path, "--pope", tmp_path / "new" / "pope")
    for split in ("random", "popular", "adversarial"):
        path = tmp_path / "new" / "pope" / f"coco_pope_{split}.json"
        asked = lines(path)  # pictures 2 and 4 show three objects, and of two others is known
        assert f"{path}: 10 lines about 2 pictures" in printed
        assert [line["question_id"] for line in asked] == list(range(1, 11))
        for line in asked:
            assert list(line) == ["question_id", "image", "text", "label"]
            name = line["text"].removesuffix(" in the image?").split(" ", 3)[3]
            assert (name in SHOWN[int(line["image"][-5])]) == (line["label"] == "yes")
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize("name, change, says", [
    ("captions", {"caption": None}, 'annotations[1]: None is no valid "caption"'),
    ("captions", {"image_id": 55}, 'annotations[1]: 55 is no valid "image_id"'),
    ("instances", {"category_id": 7}, 'annotations[1]: 7 is no valid "category_id"'),
    ("instances", {"image_id": [1]}, 'annotations[1]: [1] is no valid "image_id"')])
def test_a_wrong_entry_is_named_with_its_file_and_place(tmp_path, convert, name, change, says):
    write_part(tmp_path, "train2017")
    path = tmp_path / "annotations" / f"{name}_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][1].update(change)
    write_json(path, **content)
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path)
    assert str(stopped.value) == f"{path}, {says}"


@pytest.mark.parametrize("content", [None, b'{"images": [{', b"[]", b'{"images": 3}', b"\xff"])
def test_a_file_that_is_not_there_or_not_whole_is_named(tmp_path, convert, content):
    write_part(tmp_path, "train2017")
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^{path}: [^\n]* is wanted[^\n]*$"):
        convert(tmp_path)
    with pytest.raises(SystemExit, match="a folder train2017 or val2017"):
        convert(tmp_path / "annotations")
