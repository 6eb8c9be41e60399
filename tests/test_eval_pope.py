"""POPE is built and scored as by the official scripts; what eval_pope.py asks and writes."""
import json
import re
from collections import Counter, defaultdict

import pytest

import eval_pope
from data import OBJECTS, Example, Part, exist_question, make_world, usual
from driving import refused, write_lines
from eval_pope import SPLITS, build, score, verdict
from train import load

YES = ["yes", "Yes, there is.", "NO", "", "nothing", "yes. no", "no\n", "yes,no"]
NO = ["no", "No", "There is not a dog.", "yes, no", "n,o", "I do not, see"]


def test_answers_are_read_and_counted_as_by_the_official_script():
    assert [verdict(answer) for answer in YES + NO] == ["yes"] * 8 + ["no"] * 6
    labels = ["yes"] * 5 + ["no"] * 3 + ["yes"] * 2 + ["no"] * 4  # tp 5, fp 3, fn 2, tn 4
    names = "accuracy", "precision", "recall", "f1", "yes_ratio", "n"
    for answers, labels, figures in (
            (YES + NO, labels, (9 / 14, 5 / 8, 5 / 7, 10 / 15, 8 / 14, 14)),
            (["no"], ["yes"], (0, 0, 0, 0, 0, 1)),  # x/0 is 0
            (["no"], ["no"], (1, 0, 0, 0, 0, 1)), ([], [], (0, 0, 0, 0, 0, 0))):
        assert score(answers, labels) == pytest.approx(dict(zip(names, figures)))


def told(questions):
    """The questions as text: a letter for an object that is there, a capital for an absent one."""
    pictures = defaultdict(str)
    for i, name, label in questions:
        pictures[i] += name if label == "yes" else name.upper()
    return list(pictures.values())


@pytest.mark.parametrize("split, official", [  # what the official utils.py asks; ?: drawn by it
    ("random", "a?b?c? b?c?d? e?f?a? c?b?g? d?b?e? h?f?a?"),
    ("popular", "aDbEcF bAcEdF eBfCaD cAbDgE dAbCeF hBfCaD"),
    ("adversarial", "aFbDcG bAcGdE eDfHaB cAbDg? dCbAeF hCfEaB")])
def test_questions_are_the_official_builders(split, official):
    pictures = ["abc", "bcd", "ab", "efa", "cbgh", "dbe", "hfa"]  # two are not enough
    built = build(pictures, split, seed=379)  # it leaves the pictures in this order
    assert re.fullmatch(official.replace("?", "[A-H]"), " ".join(told(built)))
    assert all((name in pictures[i]) == (label == "yes") for i, name, label in built)
    assert len({*built}) == len(built)
    # The official builder never ends where too little is absent.
    assert sorted(told(build(["abc", "cba", "abcd"], split))) == ["aDbc", "abc", "cDba"]


def test_the_seed_picks_the_pictures_for_all_splits_and_fewer_objects_will_do_if_wanted():
    shown = make_world("val", 400, size=16).objects
    assert build(shown, "random", 1) == build(shown, "random", 1) != build(shown, "random", 2)
    asked = [[i for i, _, _ in build(shown, split, 1, 90)] for split in SPLITS]
    assert asked[0] == asked[1] == asked[2] and len({*asked[0]}) == 90
    assert {name for _, name, label in build(shown, "random") if label == "no"} == {*OBJECTS}
    assert sorted(told(build(["a", "b", ""], "popular", least=1))) == ["aB", "bA"]
    assert told(build(["a"], "random", least=1, known=["b"])) == ["aB"]


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


def test_a_guess_knows_how_usual_things_and_answers_are_and_not_the_picture():
    part = Part(None, [], [], [["cat", "dog"], ["cat"], ["cup"], ["cat", "dog"]])
    colors = [("the cat", "red"), ("the cat", "black"), ("the cat", "black"), ("the cup", "red")]
    for picture, (prompt, color) in enumerate(colors):
        part.questions.append(Example(picture, prompt, color, "color"))
    known = usual(part)
    asked = [Example(0, exist_question(name), "yes", "") for name in ("cat", "cow", "cup", "dog")]
    assert eval_pope.guesses(asked, known, pope=True) == ["yes", "no", "no", "yes"]
    asked = [Example(0, prompt, "?", kind)
             for prompt, kind in (("the cat", "color"), ("the cow", "color"), ("why", "reason"))]
    assert eval_pope.guesses(asked, known) == ["black", "red", None]


def test_eval_json_of_the_picture_world_has_shares_of_1_and_numbers(tiny, evaluate, monkeypatch):
    world = make_world("test", 30)
    there = [[exist_question(name) for name in names] for names in world.objects]

    def say(example):  # what a model says that sees all objects, and nothing else
        return "yes" if example.prompt in there[example.picture] else "no"

    monkeypatch.setattr(eval_pope, "answer", lambda _, dataset: list(map(say, dataset.examples)))
    run = tiny().folder
    printed = evaluate(run, "--scenes", 30)
    n = len(build(world.objects, "popular"))
    assert len(re.findall(rf"(random|popular|adversarial) +accuracy 100.*\b{n}\b", printed)) == 3
    perfect = {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5, "n": n}
    asked = Counter(e.kind for e in world.questions)
    right = Counter(e.kind for e in world.questions if say(e) == e.answer)
    figures = read(run / "eval.json")
    guess = figures.pop("guess")
    assert guess.keys() == asked.keys() and guess["color"] < 0.5
    assert [0.5 <= figures[split].pop("guess") < 0.8 for split in SPLITS] == [True] * 3
    assert figures == {
        **dict.fromkeys(SPLITS, perfect), "n": asked, "accuracy": right.total() / asked.total(),
        "kinds": {kind: right[kind] / asked[kind] for kind in asked}}


# A line of one's own data that is one of an official file, too.
QUESTION = {"question": "Is it red?", "answer": "yes", "kind": "color",
            "question_id": 7, "text": "Is it red?", "label": "yes"}


def write_train(folder, numbers, *about):
    """Write train.jsonl with a line about each of these pictures; returns its lines."""
    lines = [{"image": f"{i}.png", **about[i % len(about)]} for i in numbers]
    write_lines(folder / "train.jsonl", lines)
    return lines


def test_a_run_is_asked_what_its_own_pictures_allow(tiny, evaluate, folder):
    own = ["kinds", "n", "guess", "accuracy"]
    for i, (wanted, *about) in enumerate([
            (own, QUESTION), ([], {"caption": "Two.", "objects": ["dog", "cat"]}),
            ([*SPLITS, *own], {"objects": ["dog", "cat"]}, {"objects": ["cat", "cup"]})]):
        write_train(folder, range(80), *about)
        run = tiny("--data", folder, "--name", i).folder
        assert ("no POPE" in evaluate(run)) == ("random" not in wanted)
        assert list(read(run / "eval.json")) == wanted


def test_no_run_is_asked_about_pictures_that_it_was_trained_on(tiny, evaluate, folder):
    lines = write_train(folder, range(12), QUESTION)
    run = tiny("--data", folder).folder
    printed = evaluate(run)
    n = read(run / "eval.json")["n"]["color"]
    assert 0 < n < 12 and "left out" not in printed and "changed" not in printed
    (folder / "other.png").symlink_to(folder / "0.png")  # a picture is known by any name
    lines[0]["image"] = "other.png"
    new = {**QUESTION, "image": "99.png"}
    lines += new, {**new, "question": "w" * 300, "text": "w" * 300}
    for name, *words in (("val.jsonl",), ("test.jsonl",),
                         ("x.json", "--pope", folder / "x.json", "--images", folder)):
        write_lines(folder / name, lines)
        printed = evaluate(run, *words)
        assert f"left out: {12 - n} of 13 pictures" in printed
        assert f"1 of {n + 2} texts are left out" in printed
        assert (f"{folder} has changed" in printed) == (name == "val.jsonl")
    assert read(run / "eval.json")["n"]["color"] == read(run / "pope.json")["x"]["n"] == n + 1


def test_each_run_is_asked_and_knows_the_pictures_of_its_pre_training(tiny, evaluate, folder):
    refused("runs: no such checkpoint; `python train.py` makes one", evaluate)
    write_train(folder, range(9), QUESTION)
    old = tiny("--data", folder, "--name", "old", "--pretrain-steps", 1, "--sft-steps", 2)
    old.train()
    path = old.folder / "pretrained.pt"
    write_train(folder, range(9, 50), QUESTION)
    new = tiny("--data", folder, "--name", "new", "--attention", "causal", "--pretrained", path)
    assert "runs/new: causal, sft step 0\n" in evaluate()  # the newest
    printed = evaluate(new.folder, old.folder, path)
    assert [line for line in printed.splitlines() if line.startswith("runs/")] == [
        "runs/new: causal, sft step 0", "runs/old: mma, sft step 2",
        "runs/old/pretrained.pt: causal, pretrain step 1"]
    assert (old.folder / "eval.json").exists() and (old.folder / "pretrained/eval.json").exists()
    pictures = [{*load(run.folder)[2]["trained_on"]} for run in (old, new)]
    assert pictures[0] < pictures[1]


def test_official_files_are_answered_in_the_official_format(tiny, evaluate, folder, monkeypatch):
    def answer_red(_, dataset):  # "no 3" about 3.png
        return [f"no {dataset.images[e.picture][32, 32, 0]}" for e in dataset.examples]

    monkeypatch.setattr(eval_pope, "answer", answer_red)
    questions, answers = [], []
    for i, picture in enumerate(["0", "none/1", "x" * 300, "3", "5", "5"]):
        questions.append({"question_id": 3 * i, "image": f"{picture}.png", "text": f"A dog {i}?",
                          "label": "yes" if i == 4 else "no"})
        if picture.isdigit():
            line = {"question_id": 3 * i, "question": f"A dog {i}?", "answer": f"no {picture}"}
            answers.append(json.dumps(line) + "\n")
    names = "coco_pope_random", "coco_pope_popular", "a_name_that_is_longer_than_twenty_letters"
    run, paths = tiny().folder, [folder / f"{name}.json" for name in names]
    for path in paths:
        write_lines(path, questions)
    evaluate(run, "--pope", paths[0], "--images", folder)
    printed = evaluate(run, "--pope", *paths[1:], "--images", folder)
    assert "2 of 6 questions are left out" in printed and "none/1.png" in printed
    assert len(re.findall(r"^\w+(_popular|_letters) +accuracy 75.*\b4\b", printed, re.M)) == 2
    assert all((run / f"{name}_answers.jsonl").read_text() == "".join(answers) for name in names)
    figures = {"accuracy": 0.75, "guess": 0.75, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0,
               "n": 4}
    assert read(run / "pope.json") == dict.fromkeys(names, {**figures, "left_out": 2})  # added to
    refused("0.png", evaluate, run, "--pope", *paths, "--images", run)


def test_wrong_official_lines_and_wrong_options_are_refused(tiny, evaluate, folder, capsys):
    run, path = tiny().folder, folder / "official.json"
    good = {"question_id": 7, "image": "0.png", "text": "Is there a dog?", "label": "no"}
    for bad in ({"label": "maybe"}, {"image": "../x.png"}, {"text": 3}, {"question_id": None}):
        write_lines(path, [good, "", {**good, **bad}])
        refused(f"{path}, line 3: ", evaluate, run, "--pope", path, "--images", folder)
    for options, says in ((["--pope", "a/x.json", "b/x.json"], "two files of one name"),
                          (["--images", "."], "--pope"), (["--scenes", 0], "at least 1")):
        with pytest.raises(SystemExit):
            evaluate(*options)
        assert says in capsys.readouterr().err
