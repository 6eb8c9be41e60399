"""COCO-format data: what is read, what is asked, and what is said about files that are wrong."""
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import coco
import eval_pope
import options
import pope
import train
from data import Tokenizer
from model import Config

REAL = Path(__file__).parent.parent.parent / "shared" / "data"  # a few real photographs, where they are at hand
COLORS = {"dog": (200, 40, 40), "apple": (40, 200, 40), "bus": (40, 40, 200), "wine glass": (200, 200, 40), "kite": (200, 40, 200),
          "oven": (40, 200, 200), "person": (20, 20, 20), "couch": (120, 120, 120)}
CATEGORIES = [{"id": 10 + i, "name": name} for i, name in enumerate([*COLORS, "sheep"])]
ID = {c["name"]: c["id"] for c in CATEGORIES}


@pytest.fixture
def folder(tmp_path):
    """make(split, n) writes a small COCO folder: pictures with three bars of colour, each an object."""
    def make(*splits, n=20, year=2017):
        for split in splits:
            (tmp_path / f"{split}{year}").mkdir()
            images, captions, instances, rng = [], [], [], random.Random(split)
            for i in range(1, n + 1):
                number = i + (1000 if split == "val" else 0)
                name = f"COCO_{split}2014_{number:012}.jpg" if year == 2014 else f"{number:012}.jpg"
                picture, kinds = Image.new("RGB", (48, 40 + i % 9), (240, 240, 240)), rng.sample(list(COLORS), 3)
                for x, kind in enumerate(kinds):
                    picture.paste(COLORS[kind], (16 * x, 4, 16 * x + 14, 36))
                    instances.append({"id": len(instances), "image_id": number, "category_id": ID[kind], "iscrowd": 0})
                picture.save(tmp_path / f"{split}{year}" / name)
                images.append({"id": number, "file_name": name})
                captions.append({"id": i, "image_id": number, "caption": f"A {kinds[0]}, a {kinds[1]} and a {kinds[2]}."})
            write(tmp_path, f"captions_{split}{year}", images=images, annotations=captions)
            write(tmp_path, f"instances_{split}{year}", images=images, annotations=instances, categories=CATEGORIES)
        return tmp_path
    return make


def write(folder, name, **content):
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))


def change(folder, name, edit):
    """Load an annotation file, let edit(content) change it, and write it back."""
    content = json.loads((folder / "annotations" / f"{name}.json").read_text())
    edit(content)
    write(folder, name, **content)


def load(folder, limit=None):
    return coco.load_coco(folder, 32, limit, 0, folder / "cache")


@pytest.mark.parametrize("year", [2017, 2014])
def test_both_layouts_are_read(folder, year):
    data, val = load(folder("train", "val", year=year))
    assert len(data.images) == len(val.images) == 20 and data.images.shape[1:] == (32, 32, 3)
    assert Counter(item.kind for item in data.questions) == {"exist": 20 * 3 * 2 * 3 * 10, "count": 600, "describe": 200}
    assert len(data.captions) == 20 and data.captions[0].prompt is None
    assert len(load(folder(), limit=7)[0].images) == 7


def test_without_a_train_folder_a_tenth_of_val_is_held_out_by_a_hash_of_the_ids(folder):
    where = folder("val", n=60)
    data, val = load(where)
    assert len(data.images) + len(val.images) == 60 and 1 <= len(val.images) <= 14
    assert [coco.held_out(i) for i in range(1001, 1061)].count(True) == len(val.images)
    share = sum(map(coco.held_out, range(10_000))) / 10_000
    assert 0.09 < share < 0.11
    assert len(load(where, limit=5)[0].images) == 5


def test_the_picture_and_its_captions_belong_together(folder):
    data, _ = load(folder("train", "val"))
    for item in data.captions:
        first = item.answer.split()[1].rstrip(",").replace("wine", "wine glass")
        left_bar = data.images[item.pictures[0]][16, 4].astype(int)
        assert np.abs(left_bar - COLORS[first]).max() < 40, (item, left_bar)


def test_existence_questions_are_popes_balanced_and_true(folder):
    data, _ = load(folder("train", "val"))
    asked = [item for item in data.questions if item.kind == "exist"]
    assert Counter(item.answer for item in asked) == {"yes": 1800, "no": 1800}
    for item in asked:
        [kind] = [c["name"] for c in CATEGORIES if pope.question_text(c["name"]) == item.prompt]
        assert (kind in data.objects[item.pictures[0]]) == (item.answer == "yes"), item
    assert any(item.prompt == "Is there an apple in the image?" for item in asked)
    assert any(item.prompt == "Is there a wine glass in the image?" for item in asked)


def test_negatives_are_shared_between_popes_three_ways():
    """By chance, by frequency, by co-occurrence: what each denies, a third of the negatives denies at least."""
    rng = random.Random(0)
    kinds = [f"kind{i:02}" for i in range(40)]
    objects = [Counter({"often", *rng.sample(kinds, 3)} if rng.random() < 0.9 else rng.sample(kinds, 4)) for _ in range(300)]
    items = coco.object_questions(objects, [set()] * 300, seed=0, rounds=10)
    denied = [item for item in items if item.answer == "no"]
    assert len(denied) == len([item for item in items if item.answer == "yes" and item.kind == "exist"])
    for split in ("popular", "adversarial"):  # these two are no matter of chance
        wanted = {(i, pope.question_text(k)) for i, k, label in pope.build(objects, split, 7, 300, each=4) if label == "no"}
        assert sum((item.pictures[0], item.prompt) in wanted for item in denied) / len(denied) > 0.3, split
    assert len({(item.pictures, item.prompt) for item in denied}) / 300 > 15  # and by chance, always others


def test_crowds_are_there_but_not_counted(folder):
    where = folder("train", "val")
    change(where, "instances_train2017", lambda c: c["annotations"].append(
        {"id": 900, "image_id": 3, "category_id": ID["sheep"], "iscrowd": 1}))
    data, _ = load(where)
    assert "sheep" in data.objects[2]
    assert not any("sheep" in item.prompt for item in data.questions if item.kind == "count" and item.pictures == (2,))


@pytest.mark.parametrize("name, wanted", [("dog", "dogs"), ("person", "people"), ("wine glass", "wine glasses"),
                                          ("bus", "buses"), ("sheep", "sheep"), ("couch", "couches"), ("knife", "knives"),
                                          ("toothbrush", "toothbrushes"), ("mouse", "mice"), ("skis", "skis")])
def test_counting_uses_the_plural(name, wanted):
    assert coco.plural(name) == wanted


def vqa(folder, questions, annotations):
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": annotations}))


def test_vqa_questions_are_taken_as_they_are(folder):
    where = folder("train", "val")
    vqa(where, [{"question_id": 7, "image_id": 2, "question": "What is left?"}, {"question_id": 8, "image_id": 999_999, "question": "?"}],
        [{"question_id": 7, "image_id": 2, "multiple_choice_answer": "a dog"}, {"question_id": 8, "image_id": 999_999, "multiple_choice_answer": "x"}])
    data, val = load(where)
    [item] = {item for item in data.questions if item.kind == "vqa"}
    assert item == coco.Item((1,), "What is left?", "a dog", "vqa")
    assert not [item for item in val.questions if item.kind == "vqa"]
    vqa(where, [{"question_id": 7, "image_id": 2, "question": "a"}] * 2, [])
    with pytest.raises(ValueError, match="question_id 7 is there twice"):
        load(where)


def test_a_damaged_picture_is_left_out_with_all_that_is_said_about_it(folder, capsys):
    where = folder("train", "val", n=120)
    (where / "train2017" / f"{5:012}.jpg").write_bytes(b"nothing")
    data, _ = load(where)
    assert not any(4 in item.pictures for item in data.captions + data.questions)
    said = capsys.readouterr().err
    assert "000000000005.jpg: not a readable picture" in said and "119 pictures (1 left out)" in said


def wrong_json(text):
    return lambda where: (where / "annotations" / "captions_train2017.json").write_text(text)


def edited(name, edit):
    return lambda where: change(where, name, edit)


@pytest.mark.parametrize("damage, says", [
    (lambda where: (where / "annotations" / "captions_train2017.json").unlink(), "captions_train2017.json: no such file"),
    (wrong_json('{"images": [{"id": 1'), "captions_train2017.json, line 1, column .*cut off"),
    (wrong_json('{"id": 1}\n{"id": 2}\n'), "line 2, column 1: one JSON object is wanted, but this looks like JSON lines"),
    (wrong_json("[1, 2]"), "an object with a list of objects 'images' is wanted"),
    (wrong_json('{"images": [3], "annotations": []}'), "an object with a list of objects 'images' is wanted"),
    (wrong_json("[" * 100_000), "nested too deeply|line 1"),
    (lambda where: (where / "annotations" / "captions_train2017.json").write_bytes(b"\xff\xfe\x00"), "no text file in UTF-8"),
    (edited("captions_train2017", lambda c: c["annotations"][3].update(caption="  \n")), "caption of annotation 4 .* is empty"),
    (edited("captions_train2017", lambda c: c["annotations"][3].update(caption=None)), "'caption' is 'None'"),
    (edited("captions_train2017", lambda c: c["annotations"][3].update(image_id=555)), "annotation 4 is about picture 555"),
    (edited("captions_train2017", lambda c: c["images"][0].update(file_name="../../x.jpg")), "'../../x.jpg' leaves the folder"),
    (edited("captions_train2017", lambda c: c["images"][0].update(file_name="/etc/passwd")), "'/etc/passwd' leaves the folder"),
    (edited("captions_train2017", lambda c: c["images"][0].pop("id")), "'id' is 'None' in the entry"),
    (edited("captions_train2017", lambda c: c["images"][1].update(id=1)), "picture id 1 is there twice"),
    (edited("captions_train2017", lambda c: c["images"][1].update(file_name="not_there.jpg")), "1 of 20 pictures are bad.*not_there.jpg: no such picture"),
    (edited("instances_train2017", lambda c: c["annotations"][0].update(category_id=77)), "annotation 0 has the unknown category_id 77"),
    (lambda where: [p.unlink() for p in (where / "train2017").iterdir()], "20 of 20 pictures are bad"),
])
def test_wrong_files_are_named_with_the_place_in_them(folder, damage, says):
    where = folder("train", "val")
    damage(where)
    with pytest.raises(ValueError, match=says) as stopped:
        load(where)
    assert "\n" not in str(stopped.value)


def test_a_folder_that_is_not_coco_says_what_is_wanted(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither train2017/ nor val2017/"):
        load(tmp_path)


def test_texts_longer_than_the_context_are_counted_and_left_out(capsys):
    tokenizer = Tokenizer([])
    config = Config(vocab_size=len(tokenizer), context=40, image_size=16, patch_size=4, width=32, heads=2)  # 4 image tokens
    items = [coco.Item((0,), None, "x" * n) for n in (5, 33, 34)]
    assert coco.fitting(items, tokenizer, config) == items[:2]
    assert "1 of 3 texts are longer" in capsys.readouterr().err


def test_official_files_are_built_and_answered_and_can_be_scored_by_the_official_script(folder, tmp_path, capsys, monkeypatch):
    where = folder("train", "val")
    monkeypatch.chdir(tmp_path)
    small = options.Preset(width=32, heads=2, layers=2, vit_layers=1, scenes=9, batch_size=16, pretrain_steps=3, sft_steps=3,
                           muon_lr=0.02, adam_lr=0.003, photo_size=32)
    monkeypatch.setitem(train.PRESETS, "tiny", small)
    train.set_up(train.parse(["--data", "coco", "--coco-dir", str(where), "--device", "cpu", "--name", "run"])).train()

    def evaluate(*arguments):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["eval_pope.py", *map(str, arguments)])
        eval_pope.main()
        return capsys.readouterr()

    assert "only 20 pictures" in evaluate("--build", where / "annotations/instances_val2017.json", "--out", "built").err
    files = [f"built/coco_pope_{split}.json" for split in pope.SPLITS]
    printed = evaluate("--pope", *files, "--images", where / "val2017", "runs/run").out
    assert "random 120" in printed and "pictures: 20" in printed and "| adversarial" in printed
    for split in pope.SPLITS:
        asked = pope.read(f"built/coco_pope_{split}.json")
        assert pope.read(f"runs/run/pope_{split}_questions.jsonl") == asked
        given = [json.loads(line) for line in open(f"runs/run/pope_{split}_answers.jsonl")]
        assert [g["question"] for g in given] == [a["text"] for a in asked]  # what evaluate.py reads, line by line
        kinds = {number: set() for number in range(1001, 1021)}
        for annotation in json.loads((where / "annotations/instances_val2017.json").read_text())["annotations"]:
            kinds[annotation["image_id"]].add(pope.question_text(next(c["name"] for c in CATEGORIES if c["id"] == annotation["category_id"])))
        assert all((a["text"] in kinds[int(a["image"][:12])]) == (a["label"] == "yes") for a in asked)

    missing = where / "val2017" / f"{1004:012}.jpg"
    missing.unlink()
    found = evaluate("--pope", *files, "--images", where / "val2017", "runs/run")
    assert "1 of 20 pictures are not there (such as 000000001004.jpg): 18 of 360 questions are left out, 342 are asked" in found.err
    assert "random 114" in found.out
    for arguments, says in (([*files, "--strict"], "1 of 20 pictures are not there"), ([files[0], files[0]], "a second file called random")):
        with pytest.raises(ValueError, match=says):
            evaluate("--pope", *arguments, "--images", where / "val2017", "runs/run")
    with pytest.raises(ValueError, match="trained on photographs"):
        evaluate("runs/run")


@pytest.mark.parametrize("line, says", [
    ('{"question_id": 2, "image": "a.jpg", "text": "?", "label": "maybe"}', "line 2: the label is 'maybe', but must be yes or no"),
    ('{"question_id": 1, "image": "a.jpg", "text": "?", "label": "no"}', "line 2: question_id 1 was there before"),
    ('{"question_id": 2, "image": "a.jpg", "label": "no"}', "line 2: an object with the texts image, text and label"),
    ('{"question_id": 2, "image": "a.jp', "line 2: not JSON, or cut off"),
    ('[{"question_id": 2}]', "line 2: a list; JSON lines are wanted"),
    ('{"question_id": null, "image": "a.jpg", "text": "?", "label": "no"}', "line 2: the question_id is 'None'"),
])
def test_wrong_pope_files_are_named_with_the_line(tmp_path, line, says):
    path = tmp_path / "coco_pope_random.json"
    path.write_text('{"question_id": 1, "image": "a.jpg", "text": "?", "label": "YES"}\n\n'.replace("\n\n", "\n") + line + "\n")
    with pytest.raises(ValueError, match=says) as stopped:
        pope.read(path)
    assert str(path) in str(stopped.value)


def test_pope_files_in_other_shapes_say_what_is_wanted(tmp_path):
    path = tmp_path / "pope.json"
    path.write_text(json.dumps([{"question_id": 1}], indent=1))
    with pytest.raises(ValueError, match="line 1: .*looks like ordinary JSON: JSON lines are wanted"):
        pope.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no questions in it"):
        pope.read(path)
    with pytest.raises(ValueError, match="no such POPE file"):
        pope.read(tmp_path / "none.json")
    path.write_text('{"question_id": 1, "image": "a.jpg", "text": "?", "label": "YES"}')
    assert pope.read(path)[0]["label"] == "yes"


def test_mutated_json_is_read_or_refused(folder):
    """Bytes of the annotations and POPE files changed, cut and doubled at random: data, or one line."""
    where, rng, outcomes = folder("train", "val", n=3), random.Random(0), Counter()
    question = [{"question_id": n, "image": f"{n}.jpg", "text": "Is there a dog in the image?", "label": "no"} for n in range(4)]
    pope.write(where / "annotations" / "pope.json", question)
    vqa(where, [{"question_id": 7, "image_id": 2, "question": "What?"}], [{"question_id": 7, "image_id": 2, "multiple_choice_answer": "x"}])
    readers = {"annotations/captions_train2017.json": coco.read_captions, "annotations/instances_train2017.json": coco.read_objects,
               "annotations/pope.json": pope.read, "v2_mscoco_train2014_annotations.json": lambda path: coco.read_vqa(path.parent)}
    for name, read in readers.items():
        whole = (where / name).read_bytes()
        for _ in range(130):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 2)):
                at = rng.randrange(len(data))
                how = rng.randrange(4)
                if how == 0:
                    data[at] = rng.randrange(256)
                elif how == 1:
                    del data[at:at + rng.randint(1, 9)]
                elif how == 2:
                    data[at:at] = rng.choice([b"null", b"-1", b'"', b"[", b"}", b"1e999", b"NaN", b'\\ud800', b"true"])
                else:
                    del data[at + 1:]
            (where / name).write_bytes(data)
            try:
                read(where / name)
                outcomes["read"] += 1
            except ValueError as error:
                assert "\n" not in str(error) and Path(name).stem[:9] in str(error), error
                outcomes["refused"] += 1
        (where / name).write_bytes(whole)
    assert outcomes.total() == 520 and min(outcomes.values()) > 20, outcomes


@pytest.mark.skipif(not REAL.exists(), reason="the real COCO pictures are not on this machine")
def test_real_coco_is_read(tmp_path):
    data, val = coco.load_coco(REAL / "coco-mini", 64, None, 0, tmp_path)
    assert len(data.images) == 80 and len(val.images) == 79 and len(data.captions) == 400
    exist = Counter(item.answer for item in data.questions if item.kind == "exist")
    assert exist["yes"] == exist["no"] > 150


@pytest.mark.skipif(not REAL.exists(), reason="the official POPE files are not on this machine")
def test_the_official_pope_files_are_read(tmp_path, capsys):
    paths = [REAL / "pope" / f"coco_pope_{split}.json" for split in pope.SPLITS]
    test = eval_pope.TestSet.of_files(paths, REAL / "pope" / "val2014", 64, tmp_path)
    assert len(test) == 54 and "8,946 of 9,000 questions are left out" in capsys.readouterr().err


def test_captions_alone_are_enough_to_train(folder, tmp_path, monkeypatch):
    where = folder("train", "val")
    for split in ("train", "val"):
        (where / "annotations" / f"instances_{split}2017.json").unlink()
    monkeypatch.chdir(tmp_path)
    trainer = train.set_up(train.parse(["--data", "coco", "--coco-dir", str(where), "--device", "cpu", "--batch-size", "8",
                                        "--pretrain-steps", "1", "--sft-steps", "1"]))
    assert {item.kind for item in trainer.examples["sft"].items} == {"describe"}
    trainer.train()
    assert '"describe"' in (trainer.folder / "metrics.jsonl").read_text()


def test_photographs_and_their_options_go_together(capsys):
    for arguments, says in ((["--data", "coco"], "--data coco and --coco-dir"), (["--coco-dir", "x"], "--data coco and --coco-dir"),
                            (["--limit", "5"], "--limit goes with --data coco"),
                            (["--data", "coco", "--coco-dir", "x", "--scenes", "9"], "--scenes is the number of scenes")):
        with pytest.raises(SystemExit) as stopped:
            train.parse(arguments)
        assert stopped.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(ValueError, match="--coco-dir x: no such folder"):
        train.set_up(train.parse(["--data", "coco", "--coco-dir", "x", "--name", "never"]))
    assert not Path("runs/never").exists()
