"""extras/coco.py: what becomes of a small COCO folder."""
import json
import sys

import pytest
from PIL import Image

from data import read_folder
from extras import coco

COLORS = {"dog": (200, 40, 40), "bus": (40, 40, 200)}
ID = {"dog": 10, "bus": 20, "wine glass": 30}
SHOWN = {1: ["dog", "dog", "bus"], 2: ["bus", "wine glass", "dog"]}  # the first gives the color
VQA = {  # id of the question -> picture, question, answer
    7: (2, "What is left?", "a bus"),
    8: (102, "And right?", "a dog"),
    9: (999, "?", "x"),  # of no picture that is there
}


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
    categories = [{"id": i, "name": name} for name, i in ID.items()]
    write(folder, f"captions_{part}", annotations=captions)
    write(folder, f"instances_{part}", images=images, annotations=instances, categories=categories)


def write(folder, name, **content):
    (folder / f"annotations/{name}.json").write_text(json.dumps(content))


@pytest.fixture
def convert(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["coco", str(tmp_path)])
    return coco.main


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_train_and_val_are_written_in_the_format_that_the_trainer_reads(tmp_path, convert, year):
    write_part(tmp_path, f"train{year}")
    write_part(tmp_path, f"val{year}", first=100)
    questions, answers = [], []
    for n, (i, question, answer) in VQA.items():
        questions.append({"question_id": n, "question": question})
        answers.append({"question_id": n, "image_id": i, "multiple_choice_answer": answer})
    write(tmp_path, "v2_OpenEnded_mscoco_train2014_questions", questions=questions)
    write(tmp_path, "v2_mscoco_train2014_annotations", annotations=answers)
    convert()
    for split, (_, *question) in zip(read_folder(tmp_path, 16), VQA.values()):
        named = [names for names in split.objects if names]  # not of the other part's pictures
        assert named == [["dog", "bus"], ["bus", "wine glass", "dog"]]
        for i, name in enumerate(["dog", "bus"]):
            assert split.captions[i].answer == f"A {name} alone."
            assert split.images[split.captions[i].picture][8, 8].tolist() == list(COLORS[name])
        [vqa] = [example for example in split.questions if example.kind != "exist"]
        assert vqa[1:] == (*question, "vqa")
        assert split.images[vqa.picture][8, 8].tolist() == list(COLORS["bus"])


def test_one_folder_alone_becomes_train_and_missing_pictures_are_left_out(tmp_path, convert):
    with pytest.raises(SystemExit, match="a folder train2017 or val2017"):
        convert()
    write_part(tmp_path, "val2014")
    (tmp_path / "val2014" / "2.png").unlink()
    convert()
    assert not (tmp_path / "val.jsonl").exists()
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert {json.loads(line)["image"] for line in lines} == {"val2014/1.png"}
    path = tmp_path / "annotations/instances_val2014.json"
    for wrong in (lambda: path.write_text('{"images": [{'), path.unlink):
        wrong()
        with pytest.raises(SystemExit, match=f"^{path}: [^\n]* are wanted here[^\n]*$"):
            convert()
