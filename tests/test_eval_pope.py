"""POPE against dull copies of the official builder and scorer, and what eval_pope.py writes."""
import json
from collections import Counter

import pytest
from PIL import Image

import eval_pope
import train
from data import OBJECTS, exist_question, make_scene, make_world
from eval_pope import SPLITS, build, score, verdict

SHOWN = [list(dict.fromkeys(o.name for o in make_scene(seed).objects)) for seed in range(900)]
QUESTION = {"question_id": 7, "image": "0.png", "text": "Is there a dog?", "label": "no"}
TINY = ("--width 32 --heads 2 --layers 1 --vit-layers 1 --scenes 20 --batch-size 4 --device cpu "
        "--pretrain-steps 1 --sft-steps 1").split()


@pytest.mark.parametrize("answer, wanted", [
    ("yes", "yes"), ("no", "no"), ("No", "no"), ("NO", "yes"), ("Yes, there is.", "yes"),
    ("There is not a dog.", "no"), ("", "yes"), ("nothing", "yes"), ("yes. no", "yes"),
    ("yes, no", "no"), ("n,o", "no"), ("no\n", "yes"), ("yes,no", "yes"), ("I do not, see", "no")])
def test_answers_are_read_as_the_official_script_reads_them(answer, wanted):
    assert verdict(answer) == wanted


def official_score(answers, labels):
    """The official evaluate.py."""
    said = []
    for answer in answers:
        words = answer.split(".")[0].replace(",", "").split(" ")
        said.append("no" if "No" in words or "not" in words or "no" in words else "yes")
    pairs = list(zip(said, labels))
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {"accuracy": (tp + tn) / len(pairs), "precision": precision, "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes_ratio": (tp + fp) / len(pairs)}


def test_score_is_the_confusion_matrix_counted_by_hand():
    answers = ["Yes, there is.", "No.", "There is not a dog.", "", "yes. no", "no", "yes"]
    labels = ["yes", "yes", "no", "no", "yes", "no", "no"]  # tp 1, 5; fn 2; tn 3, 6; fp 4, 7
    assert score(answers, labels) == pytest.approx(
        {"accuracy": 4 / 7, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 4 / 7})


def test_a_division_by_zero_gives_zero():
    nothing = {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    assert score([], []) == score(["no"], ["yes"]) == nothing
    assert score(["no"], ["no"]) == {**nothing, "accuracy": 1}


def official_builder(pictures, split, drawn):
    """The official utils.py. drawn: questions; what it chooses at random is taken from there."""
    frequency, together = {}, {}
    for objects in pictures:
        for name in objects:
            frequency[name] = frequency.get(name, 0) + 1
            counts = together.setdefault(name, {})
            for other in objects:
                if other != name:
                    counts[other] = counts.get(other, 0) + 1
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
@pytest.mark.parametrize("objects, pictures", [
    (SHOWN, 500), (SHOWN, 40), (SHOWN[:50], 500),
    ([["a", "b", "c"], ["d", "e", "f"], ["a", "d", "e", "g"]], 9),  # nothing is left of `together`
    ([["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c", "d"]], 9),  # hardly anything is absent
])
def test_questions_are_the_official_builders(objects, pictures, split):
    built = build(objects, split, seed=3, pictures=pictures)
    asked = chosen(built)
    official = official_builder([objects[i] for i in asked], split, built)
    assert [(asked[i], name, label) for i, name, label in official] == built
    enough = [i for i, names in enumerate(objects) if len(names) >= 3]
    assert set(asked) <= set(enough) and len(asked) == min(pictures, len(enough))


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_true_and_nothing_is_asked_twice(split):
    built = build(SHOWN, split)
    assert [label for _, _, label in built] == ["yes", "no"] * 1500
    assert all((name in SHOWN[i]) == (label == "yes") for i, name, label in built)
    assert len({(i, name) for i, name, _ in built}) == 3000


def test_the_seed_picks_the_pictures_alike_for_all_splits_and_what_is_absent_in_random():
    assert build(SHOWN, "random", 1) == build(SHOWN, "random", 1) != build(SHOWN, "random", 2)
    assert len({tuple(chosen(build(SHOWN, split, 1, 90))) for split in SPLITS}) == 1
    denied = Counter(name for _, name, label in build(SHOWN, "random") if label == "no")
    assert len(denied) == len(OBJECTS) and max(denied.values()) < 4 * min(denied.values())


def test_pictures_with_fewer_objects_are_asked_about_only_if_wanted():
    objects = [["a"], ["b", "c"], [], ["d", "e", "f"]]
    assert set(chosen(build(objects, "popular"))) == {3}
    assert set(chosen(build(objects, "popular", least=1))) == {0, 1, 3}
    assert build([["a", "b"], []], "random") == []


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """make(name, arguments) starts a tiny run and returns its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "VAL_SCENES", 2)  # each validation takes a second otherwise

    def make(name, *arguments, finish=False):
        trainer = train.start(train.parse([*TINY, "--name", name, *map(str, arguments)]))
        if finish:
            trainer.train()
        return trainer.folder
    return make


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """evaluate(arguments) runs eval_pope.py and returns what it prints."""
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["eval_pope.py", *map(str, arguments), "--device", "cpu"])
        eval_pope.main()
        return capsys.readouterr().out
    return run


def figures(folder, file="eval.json"):
    return json.loads((folder / file).read_text())


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_eval_json_of_the_picture_world_has_shares_of_1(runs, evaluate, monkeypatch):
    world = make_world("test", 30)
    there = [[exist_question(name) for name in names] for names in world.objects]

    def say(example):  # what a model says that sees all objects, and nothing else
        return "yes" if example.prompt in there[example.picture] else "no"

    monkeypatch.setattr(eval_pope, "ask", lambda _, images, asked, dataset: list(map(say, asked)))
    folder = runs("world")
    evaluate(folder, "--scenes", 30)
    found = figures(folder)
    assert list(found) == [*SPLITS, "kinds", "accuracy"]
    assert set(found["kinds"]) == {example.kind for example in world.questions}
    perfect = {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5}
    assert found["random"] == found["popular"] == found["adversarial"] == perfect
    for kind, share in [*found["kinds"].items(), ("all", found["accuracy"])]:
        asked = [example for example in world.questions if kind in ("all", example.kind)]
        assert share == sum(say(example) == example.answer for example in asked) / len(asked)


def write_folder(folder, **about):
    """A folder for --data with 12 pictures, and the same line about each of them."""
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(folder / f"{i}.png")
    lines = [{"image": f"{i}.png", **about} for i in range(12)]
    if about == {"objects": None}:  # two of three objects
        pairs = [["dog", "cat"], ["cat", "cup"]]
        lines = [{**line, "objects": pairs[i % 2]} for i, line in enumerate(lines)]
    write_lines(folder / "train.jsonl", lines)
    return folder


@pytest.mark.parametrize("about, wanted", [
    ({"question": "Is it red?", "answer": "yes", "kind": "color"}, ["kinds", "accuracy"]),
    ({"caption": "A red picture."}, []),
    ({"objects": ["dog", "cat"]}, []),  # nothing is absent
    ({"objects": None}, [*SPLITS, "kinds", "accuracy"])])  # see write_folder
def test_a_run_is_asked_what_its_own_pictures_allow(runs, evaluate, tmp_path, about, wanted):
    folder = runs("own", "--data", write_folder(tmp_path / "data", **about))
    evaluate(folder)
    assert list(figures(folder)) == wanted


def test_runs_are_asked_in_turn_and_say_how_far_they_are(runs, evaluate):
    first, second = runs("first"), runs("second", "--attention", "causal", finish=True)
    assert "runs/second: causal, sft step 1\n" in evaluate("--scenes", 5)  # the newest
    assert not (first / "eval.json").exists()
    printed = evaluate(second, first, second / "pretrained.pt", "--scenes", 5)
    assert [line for line in printed.splitlines() if line.startswith("runs/")] == [
        "runs/second: causal, sft step 1", "runs/first: causal, pretrain step 0",
        "runs/second/pretrained.pt: causal, pretrain step 1"]


def test_without_any_run_it_says_how_to_make_one(evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^runs: no such checkpoint; `python train.py` makes one$"):
        evaluate()


@pytest.fixture
def official(tmp_path):
    """A folder of pictures and three official files with 24 questions each."""
    write_folder(tmp_path / "pictures", caption="")
    paths = [tmp_path / f"coco_pope_{split}.json" for split in SPLITS]
    for path in paths:
        write_lines(path, [{**QUESTION, "question_id": 3 * i, "image": f"{i // 2}.png",
                            "label": "yes" if i % 3 else "no"} for i in range(24)])
    return tmp_path / "pictures", paths


def test_official_files_are_answered_in_the_official_format(runs, evaluate, official, monkeypatch):
    def answer_color(run, images, examples):  # of a picture: 20 times the number in its name
        reds = [int(images[example.picture][32, 32, 0]) for example in examples]
        return [f"No, {red}" if red % 40 else str(red) for red in reds]

    monkeypatch.setattr(eval_pope, "ask", answer_color)
    folder, (pictures, paths) = runs("run"), official
    evaluate(folder, "--pope", *paths, "--images", pictures)
    assert list(figures(folder, "pope.json")) == [*SPLITS]
    for split, path in zip(SPLITS, paths):
        asked, given = read_lines(path), read_lines(folder / f"pope_{split}_answers.jsonl")
        assert [(list(line), line["question_id"], line["question"]) for line in given] == [
            (["question_id", "question", "answer"], q["question_id"], q["text"]) for q in asked]
        assert all(int(line["answer"].removeprefix("No, ")) == 20 * int(q["image"][:-4])
                   for line, q in zip(given, asked))
        assert figures(folder, "pope.json")[split] == pytest.approx(official_score(
            [line["answer"] for line in given], [q["label"] for q in asked]))


def test_missing_pictures_are_left_out_and_counted(runs, evaluate, official):
    folder, (pictures, paths) = runs("run"), official
    (pictures / "3.png").unlink()
    printed = evaluate(folder, "--pope", *paths, "--images", pictures)
    assert printed.count("2 of 24 questions are left out") == 3 and str(pictures) in printed
    given = [line["question_id"] for line in read_lines(folder / "pope_random_answers.jsonl")]
    assert given == [3 * i for i in range(24) if i not in (6, 7)]
    with pytest.raises(SystemExit, match="not enough pictures"):
        evaluate(folder, "--pope", *paths, "--images", pictures.parent)


@pytest.mark.parametrize("line", ["[", '{"image": "0.p'] + [json.dumps(line) for line in (
    {**QUESTION, "label": "maybe"}, {**QUESTION, "label": None}, {**QUESTION, "image": "../x.png"},
    {**QUESTION, "text": 3}, {"image": "0.png", "text": "?", "label": "no"}, [QUESTION])])
def test_a_wrong_line_of_an_official_file_is_named(runs, evaluate, official, line):
    folder, (pictures, paths) = runs("run"), official
    paths[1].write_text(json.dumps(QUESTION) + "\n\n" + line + "\n")
    with pytest.raises(SystemExit, match=f"^{paths[1]}, line 3: [^\n]*$"):
        evaluate(folder, "--pope", *paths, "--images", pictures)
