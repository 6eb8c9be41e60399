"""Batches are as drawn by hand, the world tells the truth, folders are read or refused."""
import json
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import data
from data import COLORS, PLACES, Dataset, Example, read_folder
from driving import refused, write_lines
from eval_pope import SPLITS
from extras import guess
from mma import IMAGE, PAD, TEXT
from model import ASSISTANT_ID, EOS_ID, IMAGE_ID, PAD_ID, USER_ID, Config, Tokenizer

BYTES = Tokenizer([])
CONFIG = Config(len(BYTES.pieces), context=48, image_size=32)  # 4 image tokens
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
LONG = Example(2, "x" * 60, "no", "exist")
CASES = [  # with prompt|answer in either order, one character a token
    (Example(0, None, "a red fish", "caption"), "<####|a red fish>", "<####|a red fish>"),
    (Example(1, "Is it red?", "no", "exist"), "<####Is it red?:|no>", "<Is it red?####:|no>"),
    (Example(2, "A fish?", "yes", "exist"), "<####A fish?:|yes>", "<A fish?####:|yes>"),
    (Example(1, "yes?", "no", "exist"), "<####yes?:|no>", "<yes?####:|no>"),
]
SIGNS = {"_": PAD_ID, "#": IMAGE_ID, "<": USER_ID, ":": ASSISTANT_ID, ">": EOS_ID}


@pytest.mark.parametrize("prompts_only, T", [(False, 19), (True, 16)])
@pytest.mark.parametrize("order, column", [("image-first", 1), ("text-first", 2)])
def test_batch_is_the_one_drawn_by_hand(order, column, prompts_only, T, capsys):
    examples = [example for example, *_ in CASES]
    dataset = Dataset([LONG, *examples], IMAGES, BYTES, CONFIG, order)
    assert "4 of 5 texts" in capsys.readouterr().out and dataset.examples == examples
    indices = [3, 0, 2, 1, 3]
    batch = dataset.batch(indices, prompts_only=prompts_only)
    for b, i in enumerate(indices):
        prompt, answer = CASES[i][column].split("|")
        if prompts_only:
            answer = ""
        row = (prompt + answer).rjust(T, "_")
        assert batch["ids"][b].tolist() == [SIGNS.get(c, 5 + ord(c)) for c in row]
        assert batch["modality"][b].tolist() == [{"_": PAD, "#": IMAGE}.get(c, TEXT) for c in row]
        assert batch["generated"][b].tolist() == [t >= T - len(answer) for t in range(T)]
    shown = batch["images"][batch["image_index"]]
    assert torch.equal(shown, torch.from_numpy(IMAGES[[1, 0, 2, 1, 1]]))
    assert len(batch["images"]) == 3  # each picture once
    assert prompts_only or dataset.generated_tokens(indices) == batch["generated"].sum()


@pytest.mark.parametrize("pictures", [3, 33, 100])
def test_a_seed_gives_so_many_pictures_all_equally_often_and_so_many_rows_of_each(pictures):
    examples = []
    for i in range(pictures):
        examples += [Example(i, None, "", "caption")] * (1 + i % 4)
    dataset, again = (Dataset(examples, None, BYTES, CONFIG) for _ in range(2))
    plan = {seed: again.sample(32, 2, seed) for seed in reversed(range(400))}
    visits = Counter()
    for seed in range(400):
        rows = dataset.sample(32, 2, seed)
        assert rows == plan[seed]  # it depends on nothing else
        shown = [examples[i].picture for i in rows]
        assert shown == sorted(shown, key=shown.index)  # neighbors
        count = Counter(shown)
        assert len(set(rows)) == len(rows) and len(count) == min(32, pictures)
        assert all(n == min(2, 1 + picture % 4) for picture, n in count.items())
        visits.update(count.keys())
    assert len(visits) == pictures and min(visits.values()) > 0.6 * max(visits.values())


# The picture world.

def some_scenes(part, n):
    return [data.make_scene(data.FIRST_SEED[part] + i) for i in range(n)]


def box(o):
    """The pixels of an object: rows, columns."""
    left, top = o.x - o.size // 2, o.y - o.size // 2
    return slice(top, top + o.size), slice(left, left + o.size)


def test_a_seed_is_the_same_scene_and_the_same_pixels():
    # Written down: only a constant notices that another machine or Python version differs.
    start = "bottom-left orange star, blue fish top-left, bottom orange boat"
    assert data.caption(data.make_scene(7)).startswith(start)
    first = [data.draw(scene) for scene in some_scenes("train", 30)]
    data.sprite.cache_clear()
    data.background.cache_clear()
    again = [data.draw(scene) for scene in reversed(some_scenes("train", 30))]
    assert first[0].shape == (64, 64, 3) and np.array_equal(first, again[::-1])


def test_parts_share_no_scene_and_no_picture():
    pixels = []
    for part in data.FIRST_SEED:
        pixels += {data.draw(scene).tobytes() for scene in some_scenes(part, 2000)}
    assert len(set(pixels)) == len(pixels)  # equal scenes would be equal pictures


def test_each_object_stands_in_a_cell_of_its_own_and_its_color_dominates_it():
    colors = np.array([ImageColor.getrgb(color) for color in COLORS.values()])
    for scene in some_scenes("train", 300):
        assert 5 <= len({o.place for o in scene.objects}) == len(scene.objects) <= 9
        picture = data.draw(scene).astype(float)
        changed = (picture != data.draw(scene._replace(objects=()))).any(-1)
        for o in scene.objects:
            row_and_column = divmod(PLACES.index(o.place), 3)
            for side, cell in zip(box(o), row_and_column):
                assert 21 * cell < side.start and side.stop <= 21 * cell + 22
            pixels = picture[box(o)][changed[box(o)]]
            distance = np.linalg.norm(pixels[:, None] - colors, axis=2)
            counts = (distance < 50).sum(0)
            assert list(COLORS)[counts.argmax()] == o.color and counts.max() > 0.2 * len(pixels)
            changed[box(o)] = False
        assert not changed.any()  # nothing is drawn outside


def test_objects_look_different_from_one_another():
    o = data.Object("fish", "red", "center", 32, 32, 17)
    drawn = []
    for name in data.OBJECTS:
        scene = data.Scene("sky", (o._replace(name=name),))
        drawn.append(data.draw(scene)[box(o)].astype(float))
    for i, a in enumerate(drawn):
        assert all(np.abs(a - b).mean() > 20 for b in drawn[:i])


WORDING = {  # question kind -> its wording, with what it says of an object
    "exist": r"Is there an? (\w+) in the image\?",
    "exist_color": r"Is there an? (\w+ \w+) in the image\?",
    "color": r"What color is the (\w+)\?",
    "where": r"Where is the (\w+)\?",
    "where_color": r"Where is the (\w+ \w+)\?",
    "what": r"What is at ([\w-]+)\?",
}


def right_answer(objects, kind, said):
    """The answer, by all objects that are as the question says."""
    meant = [o for o in objects if f" {said} " in f" {o.color} {o.name} at {o.place} "]
    if kind.startswith("exist"):
        return "yes" if meant else "no"
    (o,) = meant  # a question that has two answers is not fair
    return {"color": o.color, "what": f"{o.color} {o.name}"}.get(kind, o.place)


def test_every_answer_and_caption_is_true():
    scenes, split = some_scenes("val", 600), data.make_world("val", 600)
    assert np.array_equal(split.images[:50], [data.draw(scene) for scene in scenes[:50]])
    for picture, prompt, answer, kind in split.questions:
        said = re.fullmatch(WORDING[kind], prompt)[1]
        assert right_answer(scenes[picture].objects, kind, said) == answer, prompt
        assert not re.search(r" a [aeiou]| an [^aeiou]", prompt)
    asked = Counter(example.kind for example in split.questions)
    assert set(asked) == set(WORDING) and min(asked.values()) > 300
    assert asked["exist"] == 2 * 600
    for scene, example, names in zip(scenes, split.captions, split.objects, strict=True):
        said = [set(phrase.split()) for phrase in example.answer.split(", ")]
        assert said == [{o.color, o.name, o.place} for o in scene.objects]
        assert sorted(names) == sorted({o.name for o in scene.objects})


def test_only_existence_can_be_guessed_and_as_on_photographs():
    train, test = guess.questions("train", 10_000), guess.questions("test", 1000, SPLITS)
    right = defaultdict(list)
    for e, *hits in guess.guessed(train, test):
        right[e.kind].append(hits)
    found = {kind: np.mean(hits, axis=0) for kind, hits in right.items()}
    chances = {"exist_color": 1 / 2, "color": 1 / 6, "where": 1 / 9, "where_color": 1 / 9,
               "what": 1 / 96}
    for kind, chance in chances.items():
        assert max(found[kind]) < chance + 0.05, kind
    question, background = zip(*(found[split] for split in SPLITS))
    assert max(question) < 0.62 and background[0] > 0.75 and max(background[1:]) < 0.68


# Your own pictures: 0.png, 1.png, ..., see conftest.py.

def read(folder, lines):
    write_lines(folder / "train.jsonl", lines)
    return read_folder(folder, 8)


def captions(numbers):
    return [{"image": f"{i}.png", "caption": f"number {i}"} for i in numbers]


def shown(split):
    """The numbers of the pictures that a Split is about, from their red."""
    about = {example.picture for example in split.captions + split.questions}
    about.update(i for i, names in enumerate(split.objects) if names)
    return split.images[sorted(about), 4, 4, 0].tolist()


def test_the_three_forms_of_lines_become_examples(folder):
    write_lines(folder / "val.jsonl", [{"image": "9.png", "objects": ["key"]}])
    train, val = read(folder, [
        {"image": "3.png", "caption": "A cat."},
        {"image": "3.png", "objects": ["cat", "dog"]},
        {"image": "./3.png", "objects": ["dog"]},  # picture and object count once
        {"image": "5.png", "question": "Why?", "answer": "so"},
        {"image": "5.png", "question": "Who?", "answer": "Tom", "kind": "name"},
        {"image": "5.png", "objects": ["cup"]},
    ])
    assert shown(train) == [3, 5] and shown(val) == [9]
    assert train.images.shape == (3, 8, 8, 3) and train.images.dtype == np.uint8
    assert train.captions == [(0, None, "A cat.", "caption")]
    assert train.objects == [["cat", "dog"], ["cup"], []] and val.objects == [[], [], ["key"]]
    assert train.questions[:2] == [(1, "Why?", "so", "question"), (1, "Who?", "Tom", "name")]
    wanted = []
    for i, yes, no in ((0, "cat", "cup"), (0, "dog", "key"),
                       (1, "cup", "cat"), (1, "cup", "dog"), (1, "cup", "key")):
        wanted.append((i, f"Is there a {yes} in the image?", "yes", "exist"))
        wanted.append((i, f"Is there a {no} in the image?", "no", "exist"))
    assert sorted(train.questions[2:]) == sorted(wanted)


def test_without_captions_open_questions_and_their_answers_are_captions(folder):
    lines = []
    for i, text in ((3, "Color? red"), (3, "Here? yes"), (3, "Number? two"),
                    (5, "Here? yes"), (5, "There? no")):
        question, answer = text.split()
        lines.append({"image": f"{i}.png", "question": question, "answer": answer})
    write_lines(folder / "val.jsonl", lines)
    for split in read(folder, lines):
        assert {c.picture for c in split.captions} == {0, 1}
        for picture, prompt, answer, kind in split.captions:
            a, b = ("Here? yes", "There? no") if picture else ("Color? red", "Number? two")
            assert answer in (f"{a} {b}", f"{b} {a}") and (prompt, kind) == (None, "caption")


def test_without_val_jsonl_a_tenth_of_the_pictures_is_held_out(folder):
    lines = captions(range(200)) * 2
    train, val = read(folder, lines)
    assert sorted(shown(train) + shown(val)) == list(range(200)) and len(shown(val)) == 20
    assert len(val.captions) == 40  # all lines about a picture stay together
    _, again = read(folder, lines[::-1])
    assert set(shown(again)) == set(shown(val))  # chosen by name, not by order
    for n in (2, 9):
        train, val = read(folder, captions(range(n)))
        assert len(shown(val)) == 1 and len(shown(train)) == n - 1
    write_lines(folder / "val.jsonl", captions(range(3)))
    train, val = read(folder, captions(range(3, 20)))
    assert shown(val) == [0, 1, 2] and shown(train) == list(range(3, 20))


@pytest.mark.parametrize("bad, says", [
    ({"image": "../secret.png", "caption": "x"}, "no file inside"),
    ({"image": "sub/../../secret.png", "caption": "x"}, "no file inside"),
    ({"image": "/etc/hostname", "caption": "x"}, "no file inside"),
    ({"image": "link.png", "caption": "x"}, "no file inside"),
    ({"image": 5, "caption": "x"}, "is wanted"),
    ({"caption": "x"}, "is wanted"), ({"image": "0.png", "question": "x"}, "is wanted"),
    ({"image": "0.png"}, "is wanted"), ({"image": "0.png", "objects": "cat"}, "is wanted"),
    ({"image": "0.png", "objects": [""]}, "is wanted"),
    ("[1, 2]", "JSON object"), ("{broken", "JSON object"), ("7", "JSON object"),
], ids=str)
def test_a_wrong_line_is_named_with_its_file(folder, bad, says):
    Image.new("RGB", (6, 6)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    line = refused(says, read, folder, captions(range(20)) + [bad] + captions(range(20)))
    assert f"{folder}/train.jsonl, line 21:" in line


def test_missing_and_empty_files_are_named(folder):
    refused(f"{folder}/train.jsonl", read_folder, folder, 8)
    for lines in ([""], captions([0])):  # nothing to train on, nothing to hold out
        refused(str(folder), read, folder, lines)


def test_one_broken_picture_of_forty_is_an_error_of_more_than_two_hundred_left_out(folder, capsys):
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:50])
    write_lines(folder / "val.jsonl", captions(range(200, 220)))
    assert "7.png" in refused("1 of 40 pictures", read, folder, captions(range(20)))
    train, _ = read(folder, captions(range(200)))
    assert shown(train) == [i for i in range(200) if i != 7]
    told = [(i, None, f"number {n}", "caption") for i, n in enumerate(shown(train))]
    assert train.captions == told
    assert re.search(r"left out: .*7\.png: no readable picture", capsys.readouterr().out)


@pytest.mark.parametrize("mode, name", [
    ("RGB", "a.jpg"), ("CMYK", "a.jpg"), ("RGB", "a.png"), ("P", "a.png"), ("RGBA", "a.png"),
    ("RGB", "a.webp"), ("P", "a.gif"), ("RGB", "a.bmp"), ("CMYK", "a.tiff"), ("PA", "a.tiff")])
def test_every_mode_and_format_is_read(tmp_path, mode, name):
    Image.new("RGB", (40, 20), (200, 40, 90)).convert(mode).save(tmp_path / name)
    found = data.load_picture(tmp_path / name, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    assert np.abs(found[8, 8].astype(int) - (200, 40, 90)).max() <= 12
    assert (found[:4] == 128).all() and (found[12:] == 128).all()  # the margins


@pytest.mark.parametrize("mode, color, value", [
    ("L", 77, 77), ("1", 1, 255), ("RGBA", (10, 20, 30, 0), 255)])  # the last is transparent
def test_gray_and_transparent_pictures_are_read(tmp_path, mode, color, value):
    Image.new(mode, (9, 9), color).save(tmp_path / "a.png")
    assert (data.load_picture(tmp_path / "a.png", 9) == value).all()


@pytest.mark.parametrize("mode, name", [("I;16", "a.png"), ("F", "a.tiff")])
def test_pictures_with_more_than_8_bits_are_refused_instead_of_cut_off(tmp_path, mode, name):
    Image.new(mode, (9, 9), 40_000).save(tmp_path / name)
    assert "more than 8 bits" in data.load_picture(tmp_path / name, 9)


def test_turned_pictures_are_turned_back(tmp_path):
    picture = Image.new("L", (1, 2))
    picture.putpixel((0, 1), 255)  # black above white
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    assert data.load_picture(tmp_path / "turned.png", 2)[:, 0, 0].tolist() == [255, 0]


def test_mutated_lines_end_in_a_right_result_or_in_one_line(folder):
    rng, read_well = random.Random(0), 0
    lines = captions(range(4)) + [
        {"image": "1.png", "question": "Why?", "answer": "so", "kind": "why"},
        {"image": "2.png", "objects": ["cat", "dog"]}, {"image": "3.png", "objects": ["cup"]}]
    values = ["3.png", "a dog", "x" * 300, "", ["cat"], ["dog", "cup"], ["cat", ""], [], 5]
    for _ in range(300):
        i = rng.randrange(len(lines))
        key = rng.choice([*lines[i], "objects"])
        line = json.dumps({**lines[i], key: rng.choice(values)})
        if rng.random() < 0.3:
            at = rng.randrange(len(line))
            line = line[:at] + rng.choice(["", '"', "{", "[", ",", "\0", "é", "1"]) + line[at + 1:]
        try:
            train, val = read(folder, [*lines[:i], line, *lines[i + 1:]])
        except SystemExit as stop:
            assert "\n" not in stop.code and str(folder) in stop.code
            continue
        read_well += 1
        assert shown(train) and shown(val) and not set(shown(train)) & set(shown(val))
        for split in (train, val):
            assert all(name and isinstance(name, str) for own in split.objects for name in own)
            for picture, prompt, answer, kind in split.captions + split.questions:
                assert picture < len(split.images) == len(split.objects)
                BYTES.encode((prompt or "") + answer + kind)
    assert 50 < read_well < 250
