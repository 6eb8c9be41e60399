"""Batches equal a dull loop, the picture world tells the truth, folders are read or refused."""
import json
import os
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import data
from data import COLORS, PLACES, Dataset, Example, read_folder
from eval_pope import SPLITS
from extras import guess
from mma import IMAGE, PAD, TEXT
from model import ASSISTANT_ID, EOS_ID, IMAGE_ID, PAD_ID, USER_ID, Config, Tokenizer

TOKENIZER = Tokenizer.build(["Is there a star in the image?", "a red fish at top-left."] * 2)
CONFIG = Config(vocab_size=300, context=48, image_size=32)  # 4 image tokens
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
EXAMPLES = [Example(0, None, "a red fish at top-left.", "caption"),
            Example(2, "x" * 60, "no", "exist"),  # too long
            Example(1, "Is there a star in the image?", "no", "exist"),
            Example(2, "Is there a fish?", "yes", "exist"), Example(1, "yes?", "no", "exist")]


def dull_row(i, order, prompts_only):
    """Example i -> (ids, generated), lists."""
    example, picture, question = EXAMPLES[i], [IMAGE_ID] * 4, []
    if example.prompt is not None:
        question = TOKENIZER.encode(example.prompt)
    body = picture + question
    if order == "text-first":
        body = question + picture
    prompt = [USER_ID] + body + ([] if example.prompt is None else [ASSISTANT_ID])
    answer = [] if prompts_only else TOKENIZER.encode(example.answer) + [EOS_ID]
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


@pytest.mark.parametrize("prompts_only", [False, True])
@pytest.mark.parametrize("order", ["image-first", "text-first"])
def test_batch_equals_a_dull_loop(order, prompts_only, capsys):
    dataset = Dataset(EXAMPLES, IMAGES, TOKENIZER, CONFIG, order)
    assert "4 of 5 texts" in capsys.readouterr().out  # longer than the context
    kept, indices = [0, 2, 3, 4], [3, 0, 2, 1, 3]
    assert dataset.examples == [EXAMPLES[i] for i in kept]
    batch = dataset.batch(indices, prompts_only=prompts_only)
    rows = [dull_row(kept[i], order, prompts_only) for i in indices]
    T = max(len(ids) for ids, _ in rows)
    for b, (ids, generated) in enumerate(rows):
        padding = T - len(ids)
        ids = [PAD_ID] * padding + ids
        generated = [False] * padding + generated
        assert batch["ids"][b].tolist() == ids
        assert batch["generated"][b].tolist() == generated
        modality = [{PAD_ID: PAD, IMAGE_ID: IMAGE}.get(i, TEXT) for i in ids]
        assert batch["modality"][b].tolist() == modality
    shown = [EXAMPLES[kept[i]].picture for i in indices]
    assert torch.equal(batch["images"][batch["image_index"]], torch.from_numpy(IMAGES[shown]))
    assert len(batch["images"]) == len(set(shown))  # each picture once
    if not prompts_only:
        assert dataset.generated_tokens(indices) == batch["generated"].sum()


def dataset_of(rows_of):
    """A Dataset in which picture i has rows_of[i] rows."""
    examples = [Example(i, None, "", "caption") for i, n in enumerate(rows_of) for _ in range(n)]
    return Dataset(examples, None, Tokenizer([]), Config(vocab_size=261))


def test_a_batch_depends_on_its_seed_alone():
    forward = [dataset_of([3] * 40).sample(8, 2, seed) for seed in range(20)]
    dataset = dataset_of([3] * 40)
    assert [dataset.sample(8, 2, seed) for seed in reversed(range(20))] == forward[::-1]
    assert len({tuple(batch) for batch in forward}) == 20


def test_a_batch_has_so_many_pictures_and_at_most_so_many_rows_of_each():
    picture_of = [picture for picture in range(48) for _ in range(1 + picture % 4)]
    dataset = dataset_of([1 + i % 4 for i in range(48)])
    for seed in range(20):
        rows = dataset.sample(6, 2, seed)
        pictures = [picture_of[i] for i in rows]
        assert len(set(rows)) == len(rows) and len(set(pictures)) == 6
        assert all(pictures.count(i) == min(2, 1 + i % 4) for i in pictures)
        assert pictures == sorted(pictures, key=pictures.index)  # neighbors


@pytest.mark.parametrize("pictures", [3, 33, 100])
def test_every_picture_is_drawn_equally_often_and_a_small_set_is_a_batch(pictures):
    dataset = dataset_of([1] * pictures)
    plan = [dataset.sample(32, 1, seed) for seed in range(400)]
    assert all(len(rows) == min(32, pictures) for rows in plan)
    visits = [sum(i in rows for rows in plan) for i in range(pictures)]
    assert min(visits) > 0.6 * max(visits)


# The picture world.

def some_scenes(split, n):
    return [data.make_scene(data.FIRST_SEED[split] + i) for i in range(n)]


def box(o):
    """The pixels of an object: rows, columns."""
    left, top = o.x - o.size // 2, o.y - o.size // 2
    return slice(top, top + o.size), slice(left, left + o.size)


def test_a_seed_is_the_same_scene_and_the_same_pixels():
    # Written down: only a constant notices that another machine or Python version differs.
    start = "bottom-left orange star, blue fish top-left, bottom orange boat"
    assert data.caption(data.make_scene(7)).startswith(start)
    scenes = some_scenes("train", 30)
    first = [data.draw(scene) for scene in scenes]
    data.sprite.cache_clear()
    data.background.cache_clear()
    again = [data.draw(scene) for scene in reversed(some_scenes("train", 30))][::-1]
    assert first[0].shape == (64, 64, 3) and np.array_equal(first, again)


def test_parts_share_no_scene_and_no_picture():
    contents, pixels = [], []
    for part in data.FIRST_SEED:
        scenes = some_scenes(part, 2000)
        contents += {(scene.theme, *sorted(scene.objects)) for scene in scenes}
        pixels += {data.draw(scene).tobytes() for scene in scenes}
    assert len(set(contents)) == len(contents) and len(set(pixels)) == len(pixels)


def test_each_object_stands_in_a_cell_of_its_own_and_its_color_dominates_it():
    colors = np.array([ImageColor.getrgb(color) for color in COLORS.values()])
    for scene in some_scenes("train", 300):
        assert 5 <= len({o.place for o in scene.objects}) == len(scene.objects) <= 9
        picture = data.draw(scene).astype(float)
        changed = (picture != data.draw(scene._replace(objects=()))).any(-1)
        for o in scene.objects:
            row, column = divmod(PLACES.index(o.place), 3)
            for side, cell in zip(box(o), (row, column)):
                assert 21 * cell < side.start and side.stop <= 21 * cell + 22
            pixels = picture[box(o)][changed[box(o)]]
            distance = np.linalg.norm(pixels[:, None] - colors, axis=2)
            named = Counter(distance.argmin(1)[distance.min(1) < 50].tolist()).most_common(1)[0]
            assert list(COLORS)[named[0]] == o.color and named[1] > 0.2 * len(pixels)
            changed[box(o)] = False
        assert not changed.any()  # nothing is drawn outside


def test_objects_look_different_from_one_another():
    o = data.Object("fish", "red", "center", 32, 32, 17)
    scenes = [data.Scene("sky", (o._replace(name=name),)) for name in data.OBJECTS]
    drawn = [data.draw(scene)[box(o)] for scene in scenes]
    for i, a in enumerate(drawn):
        assert all(np.abs(a.astype(float) - b).mean() > 20 for b in drawn[:i])


def only(values):
    (value,) = values  # a question that has two answers is not fair
    return value


CHECKS = {  # question kind -> its wording, and (objects, words of the question) -> answer
    "exist": (r"Is there an? (\w+) in the image\?",
              lambda objects, name: ("no", "yes")[name in [o.name for o in objects]]),
    "exist_color": (r"Is there an? (\w+) (\w+) in the image\?", lambda objects, color, name: (
        "no", "yes")[(color, name) in [(o.color, o.name) for o in objects]]),
    "color": (r"What color is the (\w+)\?",
              lambda objects, name: only(o.color for o in objects if o.name == name)),
    "where": (r"Where is the (\w+)\?",
              lambda objects, name: only(o.place for o in objects if o.name == name)),
    "where_color": (r"Where is the (\w+) (\w+)\?", lambda objects, color, name: only(
        o.place for o in objects if (o.color, o.name) == (color, name))),
    "what": (r"What is at ([\w-]+)\?", lambda objects, place: only(
        f"{o.color} {o.name}" for o in objects if o.place == place)),
}


def test_every_answer_and_caption_is_true():
    scenes, split = some_scenes("val", 600), data.make_world("val", 600)
    assert np.array_equal(split.images[:50], [data.draw(scene) for scene in scenes[:50]])
    for picture, prompt, answer, kind in split.questions:
        wording, find = CHECKS[kind]
        words = re.fullmatch(wording, prompt).groups()
        assert find(scenes[picture].objects, *words) == answer, (prompt, scenes[picture])
        assert not re.search(r" a [aeiou]| an [^aeiou]", prompt)
    asked = Counter(kind for *_, kind in split.questions)
    assert set(asked) == set(CHECKS) and min(asked.values()) > 300
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


# Your own pictures.

def make_folder(folder, lines, pictures=20, part="train"):
    """Some pictures 0.png, 1.png, ... of one red each, and a file of lines, dicts or texts."""
    for i in range(pictures):
        if not (folder / f"{i}.png").exists():
            Image.new("RGB", (6, 6), (i, 0, 0)).save(folder / f"{i}.png")
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"{part}.jsonl").write_text("\n".join(lines))
    return folder


def captions(n):
    return [{"image": f"{i}.png", "caption": f"number {i}"} for i in range(n)]


def shown(split):
    """The numbers of the pictures of a Split made by `make_folder`, from their red."""
    return split.images[:, 4, 4, 0].tolist()


def test_the_three_forms_of_lines_become_examples(tmp_path):
    lines, objects = captions(20), [["cat", "dog"], ["cup"], ["key"]]
    for i in range(20):
        lines += [{"image": f"{i}.png", "question": f"{i}?", "answer": "a"},
                  {"image": f"{i}.png", "question": f"k{i}?", "answer": "b", "kind": "k"},
                  {"image": f"{i}.png", "objects": objects[i % 3]}]
    lines.append(lines[-1])  # objects that are named twice count once
    for split in read_folder(make_folder(tmp_path, lines), 8):
        numbers = shown(split)
        assert split.images.shape == (len(numbers), 8, 8, 3) and split.images.dtype == np.uint8
        told = [(i, None, f"number {n}", "caption") for i, n in enumerate(numbers)]
        assert split.captions == told
        assert split.objects == [objects[n % 3] for n in numbers]
        for i, n in enumerate(numbers):
            own, answers = [q[1:] for q in split.questions if q.picture == i], []
            assert own[:2] == [(f"{n}?", "a", "question"), (f"k{n}?", "b", "k")]
            for prompt, answer, kind in own[2:]:
                name = re.fullmatch(r"Is there a (cat|dog|cup|key) in the image\?", prompt)[1]
                assert kind == "exist" and answer == ("yes" if name in objects[n % 3] else "no")
                answers.append(answer)
            assert answers.count("yes") == answers.count("no")
            if len(numbers) > 10:  # in the training split each object is asked for
                assert len(set(own)) == 2 + 4


def test_without_captions_open_questions_and_their_answers_are_captions(tmp_path):
    lines = [{"image": f"{i}.png", "question": f"{i} {j}?", "answer": answer}
             for i in range(20) for j, answer in enumerate(("red", "yes", "two", "no"))]
    for split in read_folder(make_folder(tmp_path, lines), 8):
        for i, n in enumerate(shown(split)):
            told = {c.answer for c in split.captions if c.picture == i and c.prompt is None}
            assert told and told <= {f"{n} 0? red {n} 2? two", f"{n} 2? two {n} 0? red"}
    lines = [line for line in lines[4:] if line["answer"] in ("yes", "no")] + lines[:4]
    for split in read_folder(make_folder(tmp_path, lines), 8):
        for i, n in enumerate(shown(split)):
            a, b = (f"{n} 0? red", f"{n} 2? two") if n == 0 else (f"{n} 1? yes", f"{n} 3? no")
            told = {c.answer for c in split.captions if c.picture == i}
            assert told and told <= {f"{a} {b}", f"{b} {a}"}


def test_without_val_jsonl_a_tenth_of_the_pictures_is_held_out(tmp_path):
    lines = captions(200) + captions(200)
    train, val = read_folder(make_folder(tmp_path, lines, pictures=200), 8)
    assert sorted(shown(train) + shown(val)) == list(range(200)) and len(val.images) == 20
    assert len(val.captions) == 40  # all lines about a picture stay together
    _, again = read_folder(make_folder(tmp_path, lines[::-1]), 8)
    assert set(shown(again)) == set(shown(val))  # chosen by name, not by order
    for n in (2, 9):
        train, val = read_folder(make_folder(tmp_path, captions(n)), 8)
        assert len(val.images) == 1 and len(train.images) == n - 1
    make_folder(tmp_path, captions(3), part="val")
    train, val = read_folder(make_folder(tmp_path, captions(20)[3:]), 8)
    assert shown(val) == [0, 1, 2] and shown(train) == list(range(3, 20))


def refused(folder):
    """The one line that `read_folder` ends with."""
    with pytest.raises(SystemExit) as stopped:
        read_folder(folder, 8)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


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
def test_a_wrong_line_is_named_with_its_file(tmp_path, bad, says):
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    text = refused(make_folder(folder, captions(20) + [bad] + captions(20)))
    assert says in text and f"{folder}/train.jsonl, line 21:" in text


def test_missing_and_empty_files_are_named(tmp_path):
    assert f"{tmp_path}/train.jsonl" in refused(tmp_path)
    for lines in ([""], captions(1)):  # nothing to train on, nothing to hold out
        assert str(tmp_path) in refused(make_folder(tmp_path, lines))


def test_one_broken_picture_of_twenty_is_an_error_of_two_hundred_left_out(tmp_path, capsys):
    make_folder(tmp_path, captions(20), pictures=220)
    make_folder(tmp_path, captions(220)[200:], part="val")
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:50])
    text = refused(tmp_path)
    assert "1 of 20 pictures" in text and "7.png" in text
    make_folder(tmp_path, captions(200))
    for _ in range(2):  # decoded, then kept
        train, _ = read_folder(tmp_path, 8)
        assert shown(train) == [i for i in range(200) if i != 7]
        assert [c.answer for c in train.captions] == [f"number {i}" for i in shown(train)]
        assert re.search(r"left out: .*7\.png: no readable picture", capsys.readouterr().out)


def test_pictures_are_decoded_once_and_changed_ones_anew(tmp_path, monkeypatch):
    first = read_folder(make_folder(tmp_path, captions(20)), 8)
    decoded, load_picture = [], data.load_picture
    monkeypatch.setattr(data, "load_picture",
                        lambda path, size: decoded.append(path) or load_picture(path, size))
    again = read_folder(tmp_path, 8)
    assert not decoded and all(np.array_equal(a[0], b[0]) for a, b in zip(first, again))
    assert read_folder(tmp_path, 16)[0].images.shape[1] == 16 and len(decoded) == 20
    changed = shown(first[0])[0]
    Image.new("RGB", (6, 6), (99, 0, 0)).save(tmp_path / f"{changed}.png")
    os.utime(tmp_path / f"{changed}.png", (1, 1))
    assert shown(read_folder(tmp_path, 8)[0])[0] == 99


@pytest.mark.parametrize("mode, name", [
    ("RGB", "a.jpg"), ("CMYK", "a.jpg"), ("RGB", "a.png"), ("P", "a.png"), ("RGBA", "a.png"),
    ("RGB", "a.webp"), ("P", "a.gif"), ("RGB", "a.bmp"), ("CMYK", "a.tiff"), ("PA", "a.tiff")])
def test_every_mode_and_format_is_read(tmp_path, mode, name):
    Image.new("RGB", (40, 20), (200, 40, 90)).convert(mode).save(tmp_path / name)
    found = data.load_picture(tmp_path / name, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    assert np.abs(found[8, 8].astype(int) - (200, 40, 90)).max() <= 12
    assert (found[:4] == 128).all() and (found[12:] == 128).all()  # the margins


def test_gray_transparent_and_turned_pictures_are_read(tmp_path):
    pictures = {"gray": (Image.new("L", (9, 9), 77), 77), "bits": (Image.new("1", (9, 9), 1), 255),
                "clear": (Image.new("RGBA", (9, 9), (10, 20, 30, 0)), 255)}
    for name, (picture, value) in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        assert (data.load_picture(tmp_path / f"{name}.png", 9) == value).all(), name
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (0, 0, 32, 16))  # black above
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    found = data.load_picture(tmp_path / "turned.png", 32)
    assert found[4].min() == 255 and found[28].max() == 0


VALUES = ("3.png", "a dog", "x" * 300, "", ["cat"], ["dog", "cup"], ["cat", ""], [], 5)


def mutate(rng, line):
    """Change the value of some key, or some characters."""
    if rng.random() < 0.7:
        entry = json.loads(line)
        return json.dumps({**entry, rng.choice([*entry, "objects"]): rng.choice(VALUES)})
    at = rng.randrange(len(line))
    return line[:at] + rng.choice(["", '"', "{", "[", ",", "\0", "é", "1"]) + line[at + 1:]


def test_mutated_lines_end_in_a_right_result_or_in_one_line(tmp_path):
    rng, read = random.Random(0), 0
    lines = [json.dumps(line) for line in captions(4) + [
        {"image": "1.png", "question": "Why?", "answer": "so", "kind": "why"},
        {"image": "2.png", "objects": ["cat", "dog"]}, {"image": "3.png", "objects": ["cup"]}]]
    for _ in range(300):
        i = rng.randrange(len(lines))
        make_folder(tmp_path, lines[:i] + [mutate(rng, lines[i])] + lines[i + 1:], pictures=4)
        try:
            train, val = read_folder(tmp_path, 8)
        except SystemExit as stopped:
            assert "\n" not in str(stopped) and str(tmp_path) in str(stopped)
            continue
        read += 1
        assert shown(train) and shown(val) and not set(shown(train)) & set(shown(val))
        for split in (train, val):
            assert all(name and isinstance(name, str) for own in split.objects for name in own)
            for picture, prompt, answer, kind in split.captions + split.questions:
                assert picture < len(split.images) == len(split.objects)
                TOKENIZER.encode((prompt or "") + answer + kind)
    assert 50 < read < 250
