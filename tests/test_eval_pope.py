"""POPE against a dull copy of the official builder, and what eval_pope.py asks and writes."""
import json
from collections import Counter, defaultdict

import pytest

import eval_pope
from data import OBJECTS, exist_question, make_scene, make_world
from driving import refused, write_lines
from eval_pope import SPLITS, build, score, verdict

SHOWN = [list(dict.fromkeys(o.name for o in make_scene(seed).objects)) for seed in range(900)]


@pytest.mark.parametrize("answer, wanted", [
    ("yes", "yes"), ("no", "no"), ("No", "no"), ("NO", "yes"), ("Yes, there is.", "yes"),
    ("There is not a dog.", "no"), ("", "yes"), ("nothing", "yes"), ("yes. no", "yes"),
    ("yes, no", "no"), ("n,o", "no"), ("no\n", "yes"), ("yes,no", "yes"), ("I do not, see", "no")])
def test_answers_are_read_as_the_official_script_reads_them(answer, wanted):
    assert verdict(answer) == wanted


def test_score_is_the_confusion_matrix_counted_by_hand():
    answers = ["Yes, there is.", "No.", "There is not a dog.", "", "yes. no", "no", "yes"]
    labels = ["yes", "yes", "no", "no", "yes", "no", "no"]  # tp 1, 5; fn 2; tn 3, 6; fp 4, 7
    assert score(answers, labels) == pytest.approx(
        {"accuracy": 4 / 7, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 4 / 7})
    nothing = {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    assert score([], []) == score(["no"], ["yes"]) == nothing  # x/0 is 0
    assert score(["no"], ["no"]) == {**nothing, "accuracy": 1}


def official_builder(pictures, split, drawn):
    """The official utils.py. drawn: questions; what it chooses at random is taken from there."""
    frequency, together = Counter(), defaultdict(Counter)
    for objects in pictures:
        frequency.update(objects)
        for name in objects:
            together[name].update(other for other in objects if other != name)
    questions = []
    for i, objects in enumerate(pictures):
        history = []
        for name in objects[:3]:
            history.append(name)
            questions.append((i, name, "yes"))
            counts = {"random": {}, "popular": frequency, "adversarial": together[name]}[split]
            candidates = [o for o in frequency if o not in history and o not in objects]
            ranked = sorted(counts, key=lambda other: counts[other], reverse=True)
            ranked = [other for other in ranked if other in candidates]
            if candidates:  # the official builder never ends where there are none
                absent = ranked[0] if ranked else drawn[len(questions)][1]
                assert absent in candidates
                history.append(absent)
                questions.append((i, absent, "no"))
    return questions


def chosen(questions):
    """The pictures that are asked about, in their order."""
    return list(dict.fromkeys(i for i, _, _ in questions))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("objects, pictures", [  # a letter is an object, too
    (SHOWN, 500), (SHOWN, 40), (SHOWN[:50], 500),
    (["abc", "def", "adeg"], 9),  # nothing is left of `together`
    (["abc", "cba", "abcd"], 9),  # hardly anything is absent
])
def test_questions_are_the_official_builders(objects, pictures, split):
    built = build(objects, split, seed=3, pictures=pictures)
    asked = chosen(built)
    official = official_builder([objects[i] for i in asked], split, built)
    assert [(asked[i], name, label) for i, name, label in official] == built
    enough = [i for i, names in enumerate(objects) if len(names) >= 3]
    assert set(asked) <= set(enough) and len(asked) == min(pictures, len(enough))


def test_the_seed_picks_the_pictures_alike_for_all_splits_and_what_is_absent_in_random():
    assert build(SHOWN, "random", 1) == build(SHOWN, "random", 1) != build(SHOWN, "random", 2)
    assert len({tuple(chosen(build(SHOWN, split, 1, 90))) for split in SPLITS}) == 1
    denied = Counter(name for _, name, label in build(SHOWN, "random") if label == "no")
    assert len(denied) == len(OBJECTS) and max(denied.values()) < 4 * min(denied.values())


def test_fewer_objects_and_those_of_other_pictures_are_asked_about_if_wanted():
    objects = ["a", "bc", "", "def"]
    assert set(chosen(build(objects, "popular"))) == {3}
    assert set(chosen(build(objects, "popular", least=1))) == {0, 1, 3}
    assert build(["ab", ""], "random") == []
    assert build(["a"], "random", least=1, known=["b"]) == [(0, "a", "yes"), (0, "b", "no")]


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """evaluate(arguments) runs eval_pope.py and returns what it prints."""
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["eval_pope.py", *map(str, arguments), "--device", "cpu"])
        eval_pope.main()
        return capsys.readouterr().out
    return run


def read(path):
    return json.loads(path.read_text())


def test_eval_json_of_the_picture_world_has_shares_of_1(tiny, evaluate, monkeypatch):
    world = make_world("test", 30)
    there = [[exist_question(name) for name in names] for names in world.objects]

    def say(example):  # what a model says that sees all objects, and nothing else
        return "yes" if example.prompt in there[example.picture] else "no"

    monkeypatch.setattr(eval_pope, "ask", lambda _, images, asked, dataset: list(map(say, asked)))
    folder = tiny().folder
    evaluate(folder, "--scenes", 30)
    found = read(folder / "eval.json")
    assert list(found) == [*SPLITS, "kinds", "accuracy"]
    perfect = {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5}
    assert found["random"] == found["popular"] == found["adversarial"] == perfect
    asked = Counter(e.kind for e in world.questions)
    right = Counter(e.kind for e in world.questions if say(e) == e.answer)
    assert found["kinds"] == {kind: right[kind] / n for kind, n in asked.items()}
    assert found["accuracy"] == right.total() / asked.total()


@pytest.mark.parametrize("about, wanted", [
    ([{"question": "Is it red?", "answer": "yes", "kind": "color"}], ["kinds", "accuracy"]),
    ([{"caption": "A red picture."}], []),
    ([{"caption": "Two.", "objects": ["dog", "cat"]}], []),  # nothing is absent
    ([{"objects": ["dog", "cat"]}, {"objects": ["cat", "cup"]}], [*SPLITS, "kinds", "accuracy"]),
])
def test_a_run_is_asked_what_its_own_pictures_allow(tiny, evaluate, folder, about, wanted):
    lines = [{"image": f"{i}.png", **about[i % len(about)]} for i in range(12)]
    write_lines(folder / "train.jsonl", lines)
    run = tiny("--data", folder).folder
    assert ("no POPE: pictures must name objects" in evaluate(run)) == ("random" not in wanted)
    assert list(read(run / "eval.json")) == wanted


def test_a_question_that_is_too_long_is_named(tiny, evaluate, folder):
    lines = [{"image": f"{i}.png", "question": "Is it red?", "answer": "yes"} for i in range(12)]
    write_lines(folder / "train.jsonl", lines)
    write_lines(folder / "val.jsonl", [lines[0], {**lines[1], "question": "w" * 300}])
    refused("too long for the context: 'www", evaluate, tiny("--data", folder).folder)


def test_runs_are_asked_in_turn_and_say_how_far_they_are(tiny, evaluate):
    refused("runs: no such checkpoint; `python train.py` makes one", evaluate)
    old, new = tiny("--name", "old"), tiny("--name", "new", "--attention", "causal")
    new.train()
    assert "runs/new: causal, sft step 10\n" in evaluate("--scenes", 5)  # the newest
    assert not (old.folder / "eval.json").exists()
    own = read(new.folder / "eval.json")
    printed = evaluate(new.folder, old.folder, new.folder / "pretrained.pt", "--scenes", 5)
    assert read(new.folder / "eval.json") == own != read(new.folder / "pretrained/eval.json")
    assert [line for line in printed.splitlines() if line.startswith("runs/")] == [
        "runs/new: causal, sft step 10", "runs/old: causal, pretrain step 0",
        "runs/new/pretrained.pt: causal, pretrain step 10"]


def test_official_files_are_answered_in_the_official_format(tiny, evaluate, folder, monkeypatch):
    def say(red):  # the number in the picture's name
        return f"No, {red}" if red % 2 else f"{red}"

    def answer_red(run, images, examples):
        return [say(images[example.picture][32, 32, 0]) for example in examples]

    monkeypatch.setattr(eval_pope, "ask", answer_red)
    labels = ["no", "yes", "yes"] * 8
    questions = []
    for i, label in enumerate(labels):
        questions.append({"question_id": 3 * i, "image": f"{i // 2}.png",
                          "text": f"Is there a dog {i}?", "label": label})
    run, paths = tiny().folder, [folder / f"coco_pope_{split}.json" for split in SPLITS]
    for path in paths:
        write_lines(path, questions)
    (folder / "3.png").unlink()
    printed = evaluate(run, "--pope", *paths, "--images", folder)
    assert printed.count("2 of 24 questions are left out") == 3 and str(folder) in printed
    del questions[6:8], labels[6:8]
    answers = [say(int(q["image"][:-4])) for q in questions]
    wanted = [{"question_id": q["question_id"], "question": q["text"], "answer": answer}
              for q, answer in zip(questions, answers)]
    for split in SPLITS:
        lines = (run / f"coco_pope_{split}_answers.jsonl").read_text()
        assert lines == "".join(json.dumps(line) + "\n" for line in wanted)
    names = [f"coco_pope_{split}" for split in SPLITS]
    assert read(run / "pope.json") == dict.fromkeys(names, score(answers, labels))
    refused("no pictures", evaluate, run, "--pope", *paths, "--images", run)


GOOD = {"question_id": 7, "image": "0.png", "text": "Is there a dog?", "label": "no"}


@pytest.mark.parametrize("bad", [
    "[", '{"image": "0.p', {**GOOD, "label": "maybe"}, {**GOOD, "label": None},
    {**GOOD, "image": "../x.png"}, {**GOOD, "text": 3}, "[7]",
    {"image": "0.png", "text": "?", "label": "no"}], ids=str)
def test_a_wrong_line_of_an_official_file_is_named(tiny, evaluate, folder, bad):
    path = folder / "official.json"
    write_lines(path, [GOOD, "", bad])
    says = f"{path}, line 3: "
    refused(says, evaluate, tiny().folder, "--pope", path, "--images", folder)
