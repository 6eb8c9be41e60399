"""What scenes.py promises: the same picture for ever, true labels, and questions nobody answers blindly."""
from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import scenes as world


@lru_cache(maxsize=None)
def some_scenes(split, n):
    return tuple(world.make_scene(seed) for seed in world.split_seeds(split, n))


@lru_cache(maxsize=None)
def some_questions(split, n):
    return world.ask(some_scenes(split, n), 0)


def box(thing):
    left, top = thing.x - thing.size // 2, thing.y - thing.size // 2
    return slice(top, top + thing.size), slice(left, left + thing.size)


def test_a_seed_is_the_same_scene_on_every_machine():
    # Written down, because only a constant notices that a machine or a Python version differs.
    assert world.caption(world.make_scene(7)) == "a yellow tree at left, a yellow house at right."
    for seed in range(200):
        assert world.make_scene(seed) == world.make_scene(seed)


def test_a_seed_is_the_same_pixels_whatever_was_drawn_before():
    first = [world.draw(scene) for scene in some_scenes("train", 30)]
    world._sprite.cache_clear()
    world._background.cache_clear()
    again = [world.draw(scene) for scene in reversed(some_scenes("train", 30))][::-1]
    assert first[0].shape == (64, 64, 3) and first[0].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(first, again))


def test_drawing_larger_shows_the_same_scene():
    for scene in some_scenes("val", 4):
        large = world.draw(scene, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(large - world.draw(scene)).mean() < 6
    with pytest.raises(ValueError, match="size=100"):
        world.draw(scene, 100)


def test_splits_share_no_scene_and_no_picture():
    content, pixels = {}, {}
    for split in world.SPLITS:
        scenes = some_scenes(split, 3000)
        content[split] = {(scene.theme, scene.things) for scene in scenes}
        pixels[split] = {world.draw(scene).tobytes() for scene in scenes}
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not content[a] & content[b]
        assert not pixels[a] & pixels[b]


@pytest.mark.parametrize("split, n", [("train", 0), ("val", -3), ("test", 100_000_001), ("dev", 5)])
def test_a_bad_split_or_number_is_refused(split, n, tmp_path):
    with pytest.raises(ValueError, match=str(n) if split != "dev" else "dev"):
        world.split_seeds(split, n)
    with pytest.raises(ValueError):
        world.render(split, n, tmp_path)


def test_things_stand_in_cells_of_their_own_in_reading_order():
    for scene in some_scenes("train", 3000):
        places = [thing.place for thing in scene.things]
        assert 2 <= len(places) <= 6 and places == sorted(set(places))
        for thing in scene.things:
            rows, columns = box(thing)
            for side, cell in ((columns, thing.place % 3), (rows, thing.place // 3)):
                assert 1 + 21 * cell <= side.start and side.stop <= 22 + 21 * cell <= 64


def test_pixels_change_only_inside_the_boxes_of_things():
    for scene in some_scenes("train", 400):
        changed = (world.draw(scene) != world.draw(replace(scene, things=()))).any(axis=-1)
        for thing in scene.things:
            assert changed[box(thing)].mean() > 0.25  # the thing is there
            changed[box(thing)] = False
        assert not changed.any()


def test_the_named_colour_dominates_its_thing():
    palette = np.array(list(world.COLORS.values()), float)
    for scene in some_scenes("train", 400):
        picture, empty = world.draw(scene).astype(float), world.draw(replace(scene, things=())).astype(float)
        for thing in scene.things:
            pixels = picture[box(thing)].reshape(-1, 3)
            pixels = pixels[np.abs(pixels - empty[box(thing)].reshape(-1, 3)).max(axis=1) > 30]
            distance = np.linalg.norm(pixels[:, None] - palette, axis=-1)
            named = Counter(distance.argmin(axis=1)[distance.min(axis=1) < 50].tolist())
            assert list(world.COLORS)[named.most_common(1)[0][0]] == thing.color
            assert named.most_common(1)[0][1] > 0.2 * len(pixels)  # the rest: outline, shade, antialiasing


def test_kinds_and_colours_look_different_from_one_another():
    thing = world.Thing("fish", "red", 4, 32, 32, 17)
    shapes = {kind: world.draw(world.Scene(0, "sky", (replace(thing, kind=kind),))).astype(float)
              for kind in world.KINDS}
    for a in world.KINDS:
        for b in world.KINDS:
            assert a == b or np.abs(shapes[a] - shapes[b])[box(thing)].mean() > 20
    tones = [*world.COLORS.values(), *(tone for pair in world.BACKGROUNDS.values() for tone in pair)]
    for i, a in enumerate(world.COLORS.values()):
        assert all(np.linalg.norm(np.subtract(a, b)) > 80 for j, b in enumerate(tones) if j != i)


def test_themes_and_rarity_are_as_promised():
    scenes = some_scenes("train", 20_000)
    things = [(scene.theme, thing) for scene in scenes for thing in scene.things]
    own = [thing.kind in world.THEMES[theme] for theme, thing in things]
    assert abs(np.mean(own) - 0.7) < 0.01
    for numbers, options in ((Counter(len(scene.things) for scene in scenes), 5),
                             (Counter(scene.theme for scene in scenes), 4)):
        assert len(numbers) == options and all(abs(n / 20_000 - 1 / options) < 0.015 for n in numbers.values())
    kinds = Counter(thing.kind for _, thing in things)
    for theme in world.THEMES.values():
        total = sum(kinds[kind] for kind in theme)
        assert [round(10 * kinds[kind] / total) for kind in theme] == [4, 3, 2, 1]
    for kind in world.KINDS:  # a colour says nothing about its kind
        colors = Counter(thing.color for _, thing in things if thing.kind == kind)
        assert len(colors) == 6 and max(colors.values()) / kinds[kind] < 1 / 6 + 0.03


def test_a_caption_names_every_thing_in_order():
    for scene in some_scenes("val", 2000):
        text = world.caption(scene)
        assert text == text.lower() and text.endswith(".")
        for part, thing in zip(text[:-1].split(", "), scene.things, strict=True):
            article, color, kind, at, place = part.split(" ")
            assert (color, kind, at, world.PLACES.index(place)) == (thing.color, thing.kind, "at", thing.place)
            assert article == ("an" if color == "orange" else "a")


def dull_answer(kind, text, things):
    """The answer of a question, found again from its words; asserts that the question is a fair one."""
    words = text[:-1].split(" ")
    assert text[-1] == "?"
    if words[0] == "Is":
        assert words[2] == ("an" if words[3][0] in "aeiou" else "a")
    kinds = [thing.kind for thing in things]
    if kind == "exist":
        assert words[:2] + words[4:] == ["Is", "there", "in", "the", "image"] and words[3] in world.KINDS
        return "yes" if words[3] in kinds else "no"
    if kind == "exist_color":
        assert words[5:] == ["in", "the", "image"] and words[4] in kinds
        assert words[3] in [thing.color for thing in things]
        return "yes" if (words[3], words[4]) in [(thing.color, thing.kind) for thing in things] else "no"
    if kind == "color":
        assert words[:4] == ["What", "color", "is", "the"]
        (thing,) = [thing for thing in things if thing.kind == words[4]]
        return thing.color
    if kind == "count":
        assert words[:2] + words[3:] == ["How", "many", "are", "in", "the", "image"]
        name = "fish" if words[2] == "fish" else words[2].removesuffix("s")
        assert name in kinds and (words[2] == "fish" or words[2] == name + "s")
        return str(kinds.count(name))
    if kind == "where":
        assert words[:3] == ["Where", "is", "the"]
        (thing,) = [thing for thing in things if [thing.color, thing.kind] == words[3:]]
        return world.PLACES[thing.place]
    if kind == "what":
        assert words[:3] == ["What", "is", "at"]
        (thing,) = [thing for thing in things if world.PLACES[thing.place] == words[3]]
        return f"{thing.color} {thing.kind}"
    (reference,) = [thing for thing in things if thing.kind == words[-1]]
    assert words[3] in kinds and words[3] != words[-1] and words[-2] == "the"
    for thing in things:
        if thing.kind == words[3]:
            across, down = thing.place % 3 - reference.place % 3, thing.place // 3 - reference.place // 3
            holds = {"left of": across < 0, "right of": across > 0, "above": down < 0, "below": down > 0}
            if holds[" ".join(words[4:-2])]:
                return "yes"
    return "no"


def test_answers_are_true_and_questions_unambiguous():
    for scene, questions in zip(some_scenes("val", 4000), some_questions("val", 4000), strict=True):
        kinds = [question.kind for question in questions]
        assert kinds == [kind for kind in world.QUESTION_KINDS if kind in kinds]  # in order, at most one of each
        for question in questions:
            assert question.answer == dull_answer(question.kind, question.text, scene.things), (question, scene)


def test_the_same_scenes_and_seed_are_asked_the_same():
    assert world.ask(some_scenes("val", 300), 5) == world.ask(some_scenes("val", 300), 5)
    assert world.ask(some_scenes("val", 300), 5) != world.ask(some_scenes("val", 300), 6)


def by_kind(split, n, kind):
    return [question for questions in some_questions(split, n) for question in questions if question.kind == kind]


@pytest.mark.parametrize("kind, most", [
    ("exist", 0.53), ("exist_color", 0.53), ("relation", 0.53), ("color", 1 / 6 + 0.03), ("where", 1 / 9 + 0.03),
    ("count", 0.40), ("what", 0.03)])
def test_guessing_from_the_question_alone_is_no_better_than_chance(kind, most):
    seen = defaultdict(Counter)
    for question in by_kind("train", 20_000, kind):
        seen[question.text][question.answer] += 1
    asked = by_kind("val", 4000, kind)
    right = sum(bool(seen[q.text]) and seen[q.text].most_common(1)[0][0] == q.answer for q in asked)
    print(f"{kind}: {right / len(asked):.3f} guessed, {len(seen)} texts, in {len(asked) / 4000:.2f} of the scenes")
    assert right / len(asked) <= most
    assert len(asked) > 0.4 * 4000  # no kind is balanced by hardly ever asking it


@pytest.mark.parametrize("kind", ["exist", "exist_color", "relation"])
def test_half_of_the_yes_no_answers_are_yes(kind):
    assert abs(np.mean([question.answer == "yes" for question in by_kind("train", 20_000, kind)]) - 0.5) < 0.02


def test_most_absent_kinds_asked_for_would_fit_the_theme():
    own = [question.text.split(" ")[3] in world.THEMES[scene.theme]
           for scene, questions in zip(some_scenes("train", 20_000), some_questions("train", 20_000))
           for question in questions if question.kind == "exist" and question.answer == "no"]
    assert 0.55 < np.mean(own) < 0.65


def test_a_cache_is_drawn_once_and_holds_what_draw_draws(tmp_path, monkeypatch):
    drawn = world.render("val", 12, tmp_path)
    assert drawn.shape == (12, 64, 64, 3) and drawn.dtype == np.uint8
    assert all(np.array_equal(drawn[i], world.draw(scene)) for i, scene in enumerate(some_scenes("val", 12)))
    (path,) = tmp_path.iterdir()  # no temporary file is left
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(world, "tqdm", lambda *args, **kwargs: pytest.fail("drew again"))
    assert np.array_equal(world.render("val", 12, tmp_path), drawn) and path.stat().st_mtime_ns == before


def test_caches_of_other_pictures_have_other_names(tmp_path):
    for split, n in (("val", 3), ("val", 4), ("train", 3)):
        world.render(split, n, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "zeros", "fewer", "floats", "pickle"])
def test_a_damaged_cache_is_drawn_again(damage, tmp_path, capsys):
    good = np.array(world.render("test", 6, tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.unlink()
    if damage in ("empty", "cut", "garbage"):
        path.write_bytes({"empty": b"", "cut": whole[:-1000], "garbage": b"not an array at all" * 99}[damage])
    else:
        np.save(path, {"zeros": good * 0, "fewer": good[:5], "floats": good.astype(np.float32),
                       "pickle": np.array([{"a": 1}], dtype=object)}[damage], allow_pickle=True)
    again = world.render("test", 6, tmp_path)
    assert np.array_equal(again, good) and again.dtype == np.uint8
    assert "again" in capsys.readouterr().out and path.read_bytes() == whole


def test_the_contact_sheet_is_written(tmp_path, capsys):
    world.main(tmp_path / "sheet.png")
    assert world.Image.open(tmp_path / "sheet.png").size[0] > 1000 and "sheet.png" in capsys.readouterr().out
