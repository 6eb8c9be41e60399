"""Batches are as drawn by hand, the world tells the truth, folders are read or refused."""
import json
import os
import random
import re
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from PIL.PngImagePlugin import PngInfo

import data
from data import (ASSISTANT_ID, COLORS, EOS_ID, IMAGE_ID, PAD_ID, PLACES, USER_ID, Dataset, Example,
                  Tokenizer, load_picture, read_folder)
from driving import refused, write_lines
from eval_pope import SPLITS, build
from mma import IMAGE, PAD, TEXT
from model import Config

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
    assert dataset.examples == examples
    assert re.search("1 of 5 texts are left out.* --context 48; 69 tokens: .*xxx",
                     capsys.readouterr().out)
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
    refused("--context", Dataset, [LONG], IMAGES, BYTES, CONFIG, order)


@pytest.mark.parametrize("pictures", [3, 33, 100])
def test_a_seed_gives_so_many_pictures_all_equally_often_and_so_many_rows_of_each(pictures):
    examples = [Example(i, None, "", "") for i in range(pictures) for _ in range(1 + i % 4)]
    dataset, again = (Dataset(examples, None, BYTES, CONFIG) for _ in range(2))
    visits = Counter()
    for seed in range(400):
        rows = dataset.sample(32, 2, seed)
        count = Counter(examples[i].picture for i in rows)
        assert len({*rows}) == len(rows) and len(count) == min(32, pictures)
        assert count == {picture: min(2, 1 + picture % 4) for picture in count}
        visits.update(count.keys())
    assert rows == again.sample(32, 2, seed)  # it depends on the seed alone
    assert len(visits) == pictures and min(visits.values()) > 0.6 * max(visits.values())


# The picture world.

def some_scenes(part, n):
    return [data.make_scene(data.FIRST_SEED[part] + i) for i in range(n)]


def box(o):
    """The pixels of an object: rows, columns."""
    left, top = o.x - o.size // 2, o.y - o.size // 2
    return slice(top, top + o.size), slice(left, left + o.size)


def test_a_seed_is_the_same_scene_and_the_same_pixels_and_parts_share_none():
    # Written down: only a constant notices that another machine or Python version differs.
    start = "bottom-left orange star, blue fish top-left, bottom orange boat"
    assert data.caption(data.make_scene(7)).startswith(start)
    first = [data.draw(scene) for scene in some_scenes("train", 30)]
    data.sprite.cache_clear()
    data.background.cache_clear()
    again = [data.draw(scene) for scene in reversed(some_scenes("train", 30))]
    assert first[0].shape == (64, 64, 3) and np.array_equal(first, again[::-1])
    pixels = []
    for part in data.FIRST_SEED:
        pixels += {data.draw(scene).tobytes() for scene in some_scenes(part, 1000)}
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
    drawn = []
    for name in data.OBJECTS:
        o = data.Object(name, "red", "center", 32, 32, 17)
        drawn.append(data.draw(data.Scene("sky", (o,)))[box(o)].astype(float))
        assert all(np.abs(drawn[-1] - other).mean() > 20 for other in drawn[:-1])


KINDS = {  # question kind: its wording, with what it says of an object; the share of right guesses
    "exist": (r"Is there an? (\w+) in the image\?", 1),
    "exist_color": (r"Is there an? (\w+ \w+) in the image\?", 1 / 2),
    "color": (r"What color is the (\w+)\?", 1 / 6),
    "where": (r"Where is the (\w+)\?", 1 / 9),
    "where_color": (r"Where is the (\w+ \w+)\?", 1 / 9),
    "what": (r"What is at ([\w-]+)\?", 1 / 96),
}


def right_answer(objects, kind, said):
    """The answer, by all objects that are as the question says."""
    meant = [o for o in objects if f" {said} " in f" {o.color} {o.name} at {o.place} "]
    if kind.startswith("exist"):
        return "yes" if meant else "no"
    (o,) = meant  # a question that has two answers is not fair
    return {"color": o.color, "what": f"{o.color} {o.name}"}.get(kind, o.place)


def test_every_answer_and_caption_is_true():
    scenes, part = some_scenes("val", 600), data.make_world("val", 600)
    assert np.array_equal(part.images[:50], [data.draw(scene) for scene in scenes[:50]])
    asked = Counter(example.kind for example in part.questions)
    assert asked.keys() == KINDS.keys(), "say in KINDS and right_answer what a new kind asks"
    assert min(asked.values()) > 300 and asked["exist"] == 2 * 600
    for picture, prompt, answer, kind in part.questions:
        said = re.fullmatch(KINDS[kind][0], prompt)[1]
        assert right_answer(scenes[picture].objects, kind, said) == answer, prompt
        assert not re.search(r" a [aeiou]| an [^aeiou]", prompt)
    for scene, example, names in zip(scenes, part.captions, part.objects, strict=True):
        said = [set(phrase.split()) for phrase in example.answer.split(", ")]
        assert said == [{o.color, o.name, o.place} for o in scene.objects]
        assert sorted(names) == sorted({o.name for o in scene.objects})


def questions_and_themes(name, n, splits=()):
    """All questions about n scenes, with their backgrounds. splits: of POPE, to add."""
    scenes = some_scenes(name, n)
    objects = [list(dict.fromkeys(o.name for o in scene.objects)) for scene in scenes]
    for i, questions in enumerate(data.questions_about(scenes, 0)):
        yield from ((Example(i, *question), scenes[i].theme) for question in questions)
    for split in splits:
        for i, thing, label in build(objects, split):
            yield Example(i, data.exist_question(thing), label, split), scenes[i].theme


def test_only_existence_can_be_guessed_and_as_on_photographs():
    answers = defaultdict(Counter)  # in training: to a question, and to it on a background
    for e, theme in questions_and_themes("train", 8000):
        answers[e.prompt][e.answer] += 1
        answers[e.prompt, theme][e.answer] += 1
    usual = {clue: max(counts, key=counts.get) for clue, counts in answers.items()}
    right = defaultdict(list)
    for e, theme in questions_and_themes("test", 1000, SPLITS):
        guess = usual.get(e.prompt)
        better = usual.get((e.prompt, theme), guess)
        right[e.kind].append([guess == e.answer, better == e.answer])
    found = {kind: np.mean(hits, axis=0) for kind, hits in right.items()}
    for kind in found.keys() - {*SPLITS}:
        assert kind in KINDS, f"say in KINDS how often a guess is right for {kind!r}"
        assert max(found[kind]) < KINDS[kind][1] + 0.05, kind
    question, background = zip(*(found[split] for split in SPLITS))
    assert max(question) < 0.62 and background[0] > 0.75 and max(background[1:]) < 0.68


# Your own pictures: 0.png, 1.png, ..., see conftest.py.

def read(folder, train, val=(), test=(), names=("train", "val")):
    """The Parts of a folder with these lines."""
    for name, lines in (("train", train), ("val", val), ("test", test)):
        if lines:
            write_lines(folder / f"{name}.jsonl", lines)
    return read_folder(folder, 8, names=names)


def captions(numbers):
    return [{"image": f"{i}.png", "caption": f"number {i}"} for i in numbers]


def shown(part):
    """The numbers of the pictures that a Part is about, from their red, in order."""
    about = {example.picture for example in part.captions + part.questions}
    about.update(i for i, names in enumerate(part.objects) if names)
    return sorted(part.images[sorted(about), 4, 4, 0].tolist())


def test_the_three_forms_of_lines_become_examples(folder, capsys):
    train, val = read(folder, [
        {"image": "3.png", "caption": "A cat.", "question": None, "id": 3},  # null: not given
        {"image": "3.png", "objects": ["cat", "dog"], "id": 4},
        {"image": "./3.png", "objects": [" Dog", "CAT "]},  # picture and object count once
        {"image": "5.png", "question": "Why?", "answer": "so"},
        '\ufeff{"image": "5.png", "question": "Who?", "answer": "Tom", "kind": "name"}\r',
        '{"image": "5.png", "objects": ["cup"], "caption": NaN}',
    ], val=[{"image": "9.png", "objects": ["key"]}])
    assert capsys.readouterr().out == f"{folder}/train.jsonl: keys that are not used: {{'id': 2}}\n"
    assert shown(train) == [3, 5] and shown(val) == [9]
    assert train.images.shape == (2, 8, 8, 3) and train.images.dtype == np.uint8
    assert train.captions == [(0, None, "A cat.", "caption")]
    assert train.objects == [["cat", "dog"], ["cup"]] and val.objects == [["key"]]
    assert train.questions[:2] == [(1, "Why?", "so", "question"), (1, "Who?", "Tom", "name")]
    wanted = []
    for i, yes, no in ((0, "cat", "cup"), (0, "dog", "key"),
                       (1, "cup", "cat"), (1, "cup", "dog"), (1, "cup", "key")):
        wanted.append((i, f"Is there a {yes} in the image?", "yes", "exist"))
        wanted.append((i, f"Is there a {no} in the image?", "no", "exist"))
    assert sorted(train.questions[2:]) == sorted(wanted)


def test_who_is_held_out_is_a_property_of_the_picture(folder, capsys):
    train, val = read(folder, captions(range(200)))
    out = {*shown(val)}
    assert shown(train) == sorted({*range(200)} - out) and 8 < len(out) < 40
    assert re.search(rf"\b{len(out)} .*held out", capsys.readouterr().out)
    for i in range(0, 200, 2):  # half of them get a link with another name, the others a copy
        (folder / f"new{i}.png").symlink_to(folder / f"{i}.png")
        shutil.copy(folder / f"{i + 1}.png", folder / f"new{i + 1}.png")
    lines = captions([*range(1, 200, 2), *(f"new{i}" for i in range(200)), *range(200, 220)])
    for lines in (lines, lines[::-1], lines[90:]):
        train, val = read(folder, lines)
        both = {*shown(train), *shown(val)}
        assert out & both == {i for i in shown(val) if i < 200}
        assert len(both) == len(train.images) + len(val.images)  # each once, on one side
        assert len(lines) == len(train.captions + val.captions)
    train, val = read(folder, captions([1, 3]))  # a small folder
    assert shown(val) == [min((1, 3), key=lambda i: data.file_hash(folder / f"{i}.png"))]
    assert shown(train) == [4 - i for i in shown(val)]


def test_no_held_out_picture_is_trained_on(folder, capsys):
    shutil.copy(folder / "15.png", folder / "a.png")
    lines, held_out = captions(range(30)), (captions(["a", 16, 17, 18]), captions(range(18, 25)))
    train, val = read(folder, lines, *held_out)
    assert shown(train) == [*range(15), *range(25, 30)] and shown(val) == [*range(15, 19)]
    assert re.search(r"\b10 .*held out, such as 15\.png\n", capsys.readouterr().out)
    (folder / "3.png").unlink()  # those of train.jsonl are not opened
    [test] = read(folder, lines, *held_out, names=["test"])
    assert shown(test) == [*range(18, 25)] and not capsys.readouterr().out
    refused("none is left to train on", read, folder, captions(range(16, 23)))


@pytest.mark.parametrize("bad, says", [
    (b'{"image": "../0.png", "caption": "x"}', "no file inside"),
    (b'{"image": "/etc/hostname", "caption": "x"}', "no file inside"),
    (b'{"image": 5, "caption": "x"}', 'a text "image"'), (b'{"caption": "x"}', 'a text "image"'),
    (b'{"image": "0.png", "caption": 7}', 'a text "caption"'), (b'{"image": "0.png"}', "a text"),
    (b'{"image": "0.png", "question": "x", "answer": null}', 'a text "answer"'),
    (b'{"image": "0.png", "answer": "x", "caption": "x"}', 'a text "question"'),
    (b'{"image": "0.png", "objects": "cat"}', 'a list "objects"'),
    (b'{"image": "0.png", "objects": [" "]}', 'a list "objects"'),
    (b'{"image": "0.png", "caption": "x", "caption": "y"}', "twice"),
    (b'[["image", "0.png"], ["caption", "x"]]', "wanted is {...}, given is [["),
    (b"{broken", "JSON object"), (b"[" * 100_000, "JSON object"),
    (b'{"image": "0.png", "caption": "caf\xe9"}', "utf-8"), ("{}".encode("utf-16"), "utf-8"),
], ids=lambda value: str(value)[:40])
def test_a_wrong_line_is_named_with_its_file_and_number(folder, bad, says):
    good = b'{"image": "0.png", "caption": "x"}\n'
    (folder / "train.jsonl").write_bytes(20 * good + bad + b"\n" + good)
    assert f"{folder}/train.jsonl, line 21:" in refused(says, read_folder, folder, 8)


def test_missing_and_empty_files_are_named(folder):
    refused(f"{folder}/train.jsonl", read_folder, folder, 8)
    refused(f"{folder}/train.jsonl", read, folder, [""])
    refused("none is left to train on", read, folder, captions([0]))
    refused(f"{folder}/val.jsonl", read, folder, captions(range(9)), [""])


def test_one_broken_picture_of_forty_is_an_error_of_more_than_two_hundred_left_out(folder, capsys):
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:50])
    os.mkfifo(folder / "pipe.png")  # it would be waited for
    val = captions(range(200, 220))
    refused("39 of 40 pictures", read, folder, captions(range(20)), val)
    train, _ = read(folder, captions([*range(200), "pipe"]), val)
    assert shown(train) == [i for i in range(200) if i != 7]
    told = [(i, None, f"number {n}", "caption") for i, n in enumerate(shown(train))]
    assert train.captions == told
    left_out = re.findall(r"left out: .*/(\w+)\.png: no readable picture", capsys.readouterr().out)
    assert sorted(left_out) == ["7", "7", "pipe"]


RED = (200, 40, 90)
PLAIN = Image.new("RGB", (40, 20), RED)
HALF = Image.new("RGB", (20, 20), RED).crop((0, 0, 40, 20))  # its right half is black
BOOK, UPSIDE_DOWN = PngInfo(), Image.Exif()
BOOK.add_text("book", "x" * 3_000_000, zip=True)
UPSIDE_DOWN[0x0112] = 3


@pytest.mark.parametrize("name, picture, seen, options", [
    ("a.jpg", PLAIN.convert("CMYK"), RED, {}), ("a.tiff", PLAIN.convert("PA"), RED, {}),
    ("a.gif", PLAIN.convert("P"), RED, {}), ("a.png", Image.new("P", (6000, 3000), RED), RED, {}),
    ("a.png", Image.new("RGBA", (40, 20), (10, 20, 30, 0)), 255, {}),  # transparent
    ("a.png", Image.new("1", (40, 20), 1), 255, {}), ("a.bmp", Image.new("L", (40, 20)), 0, {}),
    ("a.png", Image.new("RGB", (2000, 10), RED), RED, {}), ("a.png", PLAIN, RED, {"pnginfo": BOOK}),
    ("a.png", PLAIN, RED, {"exif": b"Exif\0\0no"}), ("a.webp", PLAIN, RED, {"exif": b"Exif\0\0no"}),
    ("a.png", HALF, RED, {"exif": UPSIDE_DOWN}),
    ("a.png", Image.new("I;16", (9, 9), 40_000), None, {}),  # it would be cut off
    ("a.tiff", Image.new("F", (9, 9), 0.5), None, {}),
])
def test_pictures_are_read_with_8_bits_per_channel(tmp_path, name, picture, seen, options, capsys):
    picture.save(tmp_path / name, **options)
    found = load_picture(tmp_path / name, 17)
    if seen is None:
        assert found is None and "more than 8 bits" in capsys.readouterr().out
        return
    assert found.shape == (17, 17, 3) and found.dtype == np.uint8
    assert np.abs(found[8, 12].astype(int) - seen).max() <= 12
    assert (found[:4] == 128).all() and (found[13:] == 128).all()  # the margins


def test_mutated_lines_end_in_a_right_result_or_in_one_line(folder):
    rng, read_well = random.Random(0), 0
    lines = captions(range(4)) + [
        {"image": "1.png", "question": "Why?", "answer": "so", "kind": "why"},
        {"image": "2.png", "objects": ["cat", "dog"]}, {"image": "3.png", "objects": ["cup"]}]
    values = ["3.png", "a dog", "x" * 300, "", ["cat"], ["dog", "cup"], ["cat", ""], [], 5, None]
    for _ in range(300):
        changed = [dict(line) for line in lines]
        line = rng.choice(changed)
        line[rng.choice([*line, "objects"])] = rng.choice(values)
        text = "\n".join(map(json.dumps, changed))
        if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["", '"', "{", "[", ",", "\0", "é", "1"]) + text[at + 1:]
        try:
            parts = read(folder, [text])
        except SystemExit as stop:
            assert stop.code.isprintable() and re.search(f"{folder}|see above", stop.code)
            continue
        read_well += 1
        assert all(map(shown, parts)) and not set.intersection(*({*shown(part)} for part in parts))
        for part in parts:
            assert all(name and isinstance(name, str) for own in part.objects for name in own)
            for picture, prompt, answer, kind in part.captions + part.questions:
                assert picture < len(part.images) == len(part.objects)
                BYTES.encode((prompt or "") + answer + kind)
    assert 50 < read_well < 250
