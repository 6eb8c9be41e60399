"""Batches are as drawn by hand, the world tells the truth, folders are read or refused."""
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from itertools import combinations, product

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from PIL.PngImagePlugin import PngInfo

import data
from data import ASSISTANT_ID, EOS_ID, IMAGE_ID, PAD_ID, USER_ID, Dataset, Example, Tokenizer
from driving import refused, write_lines
from eval_pope import SPLITS, build
from mma import IMAGE, PAD, TEXT
from model import Config

BYTES = Tokenizer([])
CONFIG = Config(len(BYTES.pieces), context=48, image_size=32)  # 4 image tokens
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
EXAMPLES = [Example(0, None, "a red fish", "caption"), Example(1, "Is it red?", "no", "exist"),
            Example(2, "A fish?", "yes", "exist")]
DRAWN = {  # prompt|answer, one character a token
    "image-first": ["<####|a red fish>", "<####Is it red?:|no>", "<####A fish?:|yes>"],
    "text-first": ["<####|a red fish>", "<Is it red?####:|no>", "<A fish?####:|yes>"],
    "text-twice": ["<####|a red fish>", "<Is it red?####Is it red?:|no>",
                   "<A fish?####A fish?:|yes>"]}
SIGNS = {"_": PAD_ID, "#": IMAGE_ID, "<": USER_ID, ":": ASSISTANT_ID, ">": EOS_ID}


@pytest.mark.parametrize("prompts_only", [False, True])
@pytest.mark.parametrize("order", DRAWN)
def test_batch_is_the_one_drawn_by_hand(order, prompts_only):
    long = Example(2, "x" * 60, "no", "exist")  # is left out
    dataset = Dataset([long, *EXAMPLES], IMAGES, BYTES, CONFIG, order)
    indices = [1, 0, 2, 1]
    batch = dataset.batch(indices, prompts_only=prompts_only)
    drawn = [text.split("|")[:1] + [""] if prompts_only else text.split("|")
             for text in DRAWN[order]]
    T = max(map(len, map("".join, drawn)))
    for b, i in enumerate(indices):
        prompt, answer = drawn[i]
        row = (prompt + answer).rjust(T, "_")
        assert batch["ids"][b].tolist() == [SIGNS.get(c, 5 + ord(c)) for c in row]
        assert batch["modality"][b].tolist() == [{"_": PAD, "#": IMAGE}.get(c, TEXT) for c in row]
        assert batch["generated"][b].tolist() == [t >= T - len(answer) for t in range(T)]
    shown = batch["images"][batch["image_index"]]
    assert torch.equal(shown, torch.from_numpy(IMAGES[[1, 0, 2, 1]]))
    assert len(batch["images"]) == 3  # each picture once
    assert prompts_only or dataset.generated_tokens(indices) == batch["generated"].sum()


def test_a_seed_draws_so_many_pictures_all_equally_often_and_so_many_rows_of_each():
    examples = [Example(i, None, "", "") for i in range(100) for _ in range(1 + i % 4)]
    dataset = Dataset(examples, None, BYTES, CONFIG)
    visits = Counter()
    for seed in range(400):
        rows = dataset.sample(32, 2, seed)
        count = Counter(examples[i].picture for i in {*rows})
        assert rows == dataset.sample(32, 2, seed) and len(count) == 32
        assert count == {picture: min(2, 1 + picture % 4) for picture in count}
        visits.update(count.keys())
    assert len(visits) == 100 and min(visits.values()) > 0.6 * max(visits.values())


def test_a_seed_is_the_same_scene_and_the_same_pixels_and_parts_share_none():
    # Written down: only a constant notices that another machine or Python version differs.
    start = "bottom-left orange star, blue fish top-left, bottom orange boat"
    assert data.caption(data.make_scene(7)).startswith(start)
    pictures = np.concatenate([data.make_world(part, 300).images for part in data.FIRST_SEED])
    assert len({picture.tobytes() for picture in pictures}) == 3 * 300


def test_each_object_stands_in_a_cell_of_its_own_in_its_color_and_looks_like_no_other():
    for scene in map(data.make_scene, range(100)):
        assert 5 <= len({o.place for o in scene.objects}) == len(scene.objects) <= 9
        picture, empty = data.draw(scene), data.draw(scene._replace(objects=()))
        rows, columns = (picture != empty).any(2).nonzero()
        cells = 3 * (rows // 21) + columns // 21
        assert {*cells} == {data.PLACES.index(o.place) for o in scene.objects}
        for o in scene.objects:
            pixels = picture[rows, columns][cells == data.PLACES.index(o.place)]
            distance = pixels - np.array(ImageColor.getrgb(data.COLORS[o.color]))
            assert (np.linalg.norm(distance, axis=1) < 50).mean() > 0.2  # other colors are far
    sprites = [np.array(data.sprite(name, "red", 17), float) for name in data.OBJECTS]
    assert all(np.abs(one - other).mean() > 18 for one, other in combinations(sprites, 2))


QUESTIONS = {  # kind: its wording and its answer, from an object; the share of right guesses
    "exist": ("Is there a {0.name} in the image?", "yes", 1),
    "exist_color": ("Is there a {0.color} {0.name} in the image?", "yes", 1 / 2),
    "color": ("What color is the {0.name}?", "{0.color}", 1 / 6),
    "where": ("Where is the {0.name}?", "{0.place}", 1 / 9),
    "where_color": ("Where is the {0.color} {0.name}?", "{0.place}", 1 / 9),
    "what": ("What is at {0.place}?", "{0.color} {0.name}", 1 / 96),
}


def test_every_answer_and_caption_is_true():
    scenes = [data.make_scene(data.FIRST_SEED["val"] + i) for i in range(300)]
    part = data.make_world("val", 300)
    assert np.array_equal(part.images, [data.draw(scene) for scene in scenes])
    asked = Counter(example.kind for example in part.questions)
    assert asked.keys() == QUESTIONS.keys(), "say in QUESTIONS what a new kind asks"
    assert min(asked.values()) > 150 and asked["exist"] == 2 * 300
    for picture, prompt, answer, kind in part.questions:
        wording, reply, _ = QUESTIONS[kind]
        assert not re.search(" a [aeiou]| an [^aeiou]", prompt)
        prompt = prompt.replace(" an ", " a ")
        meant = [o for o in scenes[picture].objects if wording.format(o) == prompt]
        right = [reply.format(o) for o in meant]  # of two answers neither would be fair
        assert [answer] == (right[:1] or ["no"] if reply == "yes" else right), prompt
    for scene, example, names in zip(scenes, part.captions, part.objects, strict=True):
        said = [set(phrase.split()) for phrase in example.answer.split(", ")]
        assert said == [{o.color, o.name, o.place} for o in scene.objects]
        assert sorted(names) == sorted({o.name for o in scene.objects})


def test_each_thing_is_asked_for_as_often_where_it_is_as_where_it_is_not():
    objects = [["cat", "dog"], [], ["cat"], ["cat", "cup", "key"], ["dog"], ["cat", "dog"]]
    asked = data.exist_questions(objects, seed=0)
    assert not asked[1]  # nobody knows what it shows
    pairs = Counter((prompt, answer) for questions in asked for prompt, answer, _ in questions)
    fewer = {"cat": 1, "dog": 2, "cup": 1, "key": 1}  # of the pictures with it and without it
    assert pairs == {(data.exist_question(name), answer): n
                     for name, n in fewer.items() for answer in ("yes", "no")}
    for present, questions in zip(objects, asked):
        there = {data.exist_question(name) for name in present}
        assert all((prompt in there) == (answer == "yes") for prompt, answer, _ in questions)
        assert len({prompt for prompt, _, _ in questions}) == len(questions)


def test_only_existence_can_be_guessed_and_as_on_photographs(monkeypatch):
    monkeypatch.setattr(data, "draw", lambda scene, size: scene.theme)  # in place of a picture
    train, test = data.make_world("train", 4000), data.make_world("test", 1000)
    answers = defaultdict(Counter)  # in training: to a question, and to it on a background
    for e in train.questions:
        answers[e.prompt][e.answer] += 1
        answers[e.prompt, train.images[e.picture]][e.answer] += 1
    usual = {clue: max(counts, key=counts.get) for clue, counts in answers.items()}
    for split in SPLITS:
        for i, thing, label in build(test.objects, split):
            test.questions.append(Example(i, data.exist_question(thing), label, split))
    right = defaultdict(list)
    for e in test.questions:
        clues = e.prompt, (e.prompt, test.images[e.picture])
        right[e.kind].append([usual.get(clue) == e.answer for clue in clues])
    found = {kind: np.mean(hits, axis=0) for kind, hits in right.items()}
    question, background = zip(*(found.pop(split) for split in SPLITS))
    assert all(max(shares) < QUESTIONS[kind][2] + 0.05 for kind, shares in found.items()), found
    assert max(question) < 0.62 and background[0] > 0.75 and max(background[1:]) < 0.68


def read(folder, *files, names=("train", "val")):
    """The Parts of conftest's folder with these lines in train.jsonl, val.jsonl, test.jsonl."""
    for name, lines in zip(("train", "val", "test"), files):
        write_lines(folder / f"{name}.jsonl", lines)
    return data.read_folder(folder, 8, names=names)


def captions(numbers):
    return [{"image": f"{i}.png", "caption": f"number {i}"} for i in numbers]


def shown(part):
    """The numbers of the pictures that a Part is about, from their red, in order."""
    about = {example.picture for example in part.captions + part.questions}
    return sorted(part.images[sorted(about), 4, 4, 0].tolist())


def test_the_three_forms_of_lines_become_examples(folder, capsys):
    train, val = read(folder, [
        {"image": "3.png", "caption": "A cat.", "question": None, "id": 3},  # null: not given
        {"image": "3.png", "objects": ["cat", "dog"], "id": 4},
        {"image": "./3.png", "objects": [" Dog", "CAT "]},  # picture and object count once
        {"image": "5.png", "question": "Why?", "answer": "so"},
        '\ufeff{"image": "5.png", "question": "Who?", "answer": "Tom", "kind": "name"}\r',
        '{"image": "5.png", "objects": ["cup"], "caption": NaN}',
    ], [{"image": "9.png", "objects": ["key"]}, {"image": "8.png", "objects": ["cup"]}])
    assert capsys.readouterr().out == f"{folder}/train.jsonl: keys that are not used: {{'id': 2}}\n"
    assert shown(train) == [3, 5] and shown(val) == [8, 9]
    assert train.captions == [(0, None, "A cat.", "caption"), *4 * [(1, None, "cup", "caption")]]
    assert train.objects == [["cat", "dog"], ["cup"]] and val.objects == [["key"], ["cup"]]
    assert train.questions[:2] == [(1, "Why?", "so", "question"), (1, "Who?", "Tom", "name")]
    wanted = [(0, "cat", "yes"), (0, "cup", "no"), (0, "dog", "yes"),
              (1, "cat", "no"), (1, "cup", "yes"), (1, "dog", "no")]
    wanted = [(i, data.exist_question(name), answer, "exist") for i, name, answer in wanted]
    assert sorted(train.questions[2:]) == wanted


def test_a_picture_without_a_caption_gets_four_of_its_objects_or_of_questions_and_answers(folder):
    asked = [("Which?", "a"), ("Red?", "yes"), ("Why?", "b")]
    lines = [{"image": "3.png", "question": q, "answer": a} for q, a in asked]
    lines += [{"image": "5.png", "question": "Red?", "answer": "no"}, *captions([7])]
    lines += [{"image": "8.png", "objects": ["cat", "sofa"], "question": "Why?", "answer": "b"}]
    train, _ = read(folder, lines, captions([9]))
    assert {e.answer for e in train.captions if e.picture == 3} <= {"cat, sofa", "sofa, cat"}
    told = {(e.picture, e.prompt, e.kind): e.answer for e in train.captions}
    assert told.keys() == {(i, None, "caption") for i in range(4)}
    assert {e.answer for e in train.captions if e.picture == 0} <= {
        "Which? a Why? b", "Why? b Which? a"}
    assert told[1, None, "caption"] == "Red? no" and len(train.captions) == 13


def test_who_is_held_out_is_a_property_of_the_picture_and_is_not_trained_on(folder, capsys):
    train, val = read(folder, captions(range(200)))
    out = {*shown(val)}
    assert shown(train) == sorted({*range(200)} - out) and 8 < len(out) < 40
    for i in range(200):
        shutil.copy(folder / f"{i}.png", folder / f"new{i}.png")
    more = captions([*(f"new{i}" for i in range(200)), *range(100, 220)])
    for lines in (more[::-1], captions(range(100))):
        train, val = read(folder, lines)
        both = {*shown(train), *shown(val)}
        assert out & both == {i for i in shown(val) if i < 200}
        assert len(both) == len(train.images) + len(val.images)  # each once, on one side
        assert len(lines) == len(train.captions + val.captions)
    assert sorted(map(shown, read(folder, captions([1, 3])))) == [[1], [3]]
    files = captions(range(30)), captions(["new15", 16, 17, 18]), captions(range(18, 25))
    train, val = read(folder, *files)
    assert shown(train) == [*range(15), *range(25, 30)] and shown(val) == [*range(15, 19)]
    assert re.search(r"\b10 .*held out, such as 15\.png\n", capsys.readouterr().out)
    (folder / "3.png").unlink()  # those of train.jsonl are not opened
    [test] = read(folder, *files, names=["test"])
    assert shown(test) == [*range(18, 25)]
    refused("none is left to train on", read, folder, captions(range(16, 23)))


def test_wrong_lines_and_missing_and_empty_files_are_named(folder):
    refused(f"{folder}/train.jsonl", read, folder)
    refused(f"{folder}/train.jsonl", read, folder, [""])
    refused("none is left to train on", read, folder, captions([0]))
    refused(f"{folder}/val.jsonl", read, folder, captions(range(9)), [""])
    good, no_json = {"image": "0.png", "caption": "x"}, "cannot be read as one JSON object"
    for bad, says in [
            ({"image": "../0.png"}, "'../0.png' is no file"), ({"image": "/0"}, "'/0' is no file"),
            ({"image": 5}, 'a text "image"'), ({"caption": 7}, 'a text "caption"'),
            ({"question": "x"}, 'a text "answer"'), ({"answer": "x"}, 'a text "question"'),
            ({"objects": "cat"}, 'a list "objects"'), ({"objects": [" "]}, 'a list "objects"'),
            (b'{"image": "0.png", "image": "0.png"}', no_json), ({"caption": None}, "a text"),
            (b'[["image", "0.png"]]', f"{no_json} (wanted is {{...}}, given is [["),
            (b"{broken", no_json), (b"[" * 100_000, no_json), (b"caf\xe9", f"{no_json} ('utf-8'")]:
        line = json.dumps(good).encode() + b"\n"
        bad = json.dumps({**good, **bad}).encode() if isinstance(bad, dict) else bad
        (folder / "train.jsonl").write_bytes(20 * line + bad + b"\n" + line)
        refused(f"{folder}/train.jsonl, line 21: {says}", read, folder)


def test_one_broken_picture_of_forty_is_an_error_of_more_than_two_hundred_left_out(folder, capsys):
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:50])
    os.mkfifo(folder / "pipe.png")  # it would be waited for
    refused("39 of 40 pictures", read, folder, captions(range(20)), captions(range(200, 220)))
    train, _ = read(folder, captions([*range(200), "pipe"]))
    good = [i for i in range(200) if i != 7]
    assert shown(train) == good
    assert train.captions == [(i, None, f"number {n}", "caption") for i, n in enumerate(good)]
    left_out = re.findall(r"left out: .*/(\w+)\.png: no readable picture", capsys.readouterr().out)
    assert sorted(left_out) == ["7", "7", "pipe"]


RED = (200, 40, 90)
PLAIN = Image.new("RGB", (40, 20), RED)
BOOK, UPSIDE_DOWN = PngInfo(), Image.Exif()
BOOK.add_text("book", "x" * 3_000_000, zip=True)
UPSIDE_DOWN[0x0112] = 3


@pytest.mark.parametrize("name, picture, seen, options", [
    ("a.jpg", PLAIN.convert("CMYK"), RED, {}), ("a.tiff", PLAIN.convert("PA"), RED, {}),
    ("a.png", Image.new("P", (4000, 2000), RED), RED, {}),
    ("a.png", Image.new("RGBA", (40, 20), (10, 20, 30, 0)), 255, {}),  # transparent
    ("a.png", Image.new("1", (40, 20), 1), 255, {}), ("a.bmp", Image.new("L", (40, 20)), 0, {}),
    ("a.png", Image.new("RGB", (2000, 10), RED), RED, {}), ("a.png", PLAIN, RED, {"pnginfo": BOOK}),
    ("a.webp", PLAIN, RED, {"exif": b"Exif\0\0no"}),
    ("a.png", PLAIN.crop((0, 0, 80, 20)), RED, {"exif": UPSIDE_DOWN}),  # black at the right
    ("a.png", Image.new("I;16", (9, 9)), None, {}), ("a.tiff", Image.new("F", (9, 9)), None, {}),
])
def test_pictures_are_read_with_8_bits_per_channel(tmp_path, name, picture, seen, options, capsys):
    picture.save(tmp_path / name, **options)
    found = data.load_picture(tmp_path / name, 17)
    if seen is None:
        assert found is None and "more than 8 bits" in capsys.readouterr().out
        return
    assert found.shape == (17, 17, 3) and found.dtype == np.uint8
    assert np.abs(found[8, 12].astype(int) - seen).max() <= 12
    assert (found[:4] == 128).all() and (found[13:] == 128).all()  # the margins


def test_mutated_lines_end_in_a_right_result_or_in_one_line(folder):
    lines = """{"image": "0.png", "caption": "a cup"}\n{"image": "1.png", "objects": ["a", "b"]}
               {"image": "2.png", "question": "Why?", "answer": "so", "kind": "why"}"""
    pieces = re.split('("[^"]*")', lines)
    others = ['"0.png"', '"objects"', '""', f'"{"x" * 300}"', "null", "5", '["c", ""]', '"', "\0"]
    read_well = 0
    for i, other in product(range(len(pieces)), others):
        try:
            train, val = read(folder, ["".join([*pieces[:i], other, *pieces[i + 1:]])])
        except SystemExit as stop:
            assert stop.code.isprintable() and re.search(f"{folder}|see above", stop.code)
            continue
        read_well += 1
        assert train.hashes and val.hashes and not {*train.hashes} & {*val.hashes}
        for _, prompt, answer, kind in train.captions + train.questions + val.questions:
            BYTES.encode((prompt or "") + answer + kind)
    assert 20 < read_well < 200


def test_an_augmented_picture_is_a_part_of_it_flipped_or_not_and_the_same_for_a_seed():
    row = np.arange(64, dtype=np.uint8) * 3
    pictures = torch.from_numpy(np.stack([row + 0 * row[:, None]] * 3, -1)[None].repeat(40, 0))
    found = data.augment(pictures, "1 2")
    assert found.dtype == torch.uint8 and found.shape == pictures.shape
    assert torch.equal(found, data.augment(pictures, "1 2"))
    assert not torch.equal(found, data.augment(pictures, "1 3"))
    steps = found[:, 9, 1:-1, 0].float().diff().mean(1)  # 3 from pixel to pixel in the original
    assert {*steps.sign().tolist()} == {-1, 1}
    assert 1.7 < steps.abs().min() < 2 < 2.7 < steps.abs().max() < 3.01
