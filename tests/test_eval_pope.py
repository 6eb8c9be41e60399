"""POPE: the scorer against counting by hand, the builder against what the paper says of its three splits."""
from collections import Counter

import pytest

import eval_pope
import scenes
from eval_pope import SPLITS, build, score, verdict

OBJECTS = [{t.kind for t in scenes.make_scene(seed).things} for seed in scenes.split_seeds("test", 1500)]


@pytest.mark.parametrize("answer, said", [
    ("Yes, there is.", "yes"), ("No.", "no"), ("There is not a dog.", "no"), ("", "yes"), ("yes. no", "yes"),
    ("no", "no"), ("No, there is no dog", "no"), ("NO", "yes"), ("nothing", "yes"), ("I do not, see it", "no"),
    ("no, yes", "no"), ("yes,no", "yes"), (".no", "yes"), ("There is no", "no"), ("no\n", "yes"),
])
def test_answers_are_read_as_the_official_script_reads_them(answer, said):
    assert verdict(answer) == said


def test_score_is_the_confusion_matrix_counted_by_hand():
    answers = ["Yes, there is.", "No.", "There is not a dog.", "", "yes. no", "no", "yes"]
    labels = ["yes", "yes", "no", "no", "yes", "no", "no"]
    # yes/yes: 0 and 4 -> tp 2; said yes, is no: 3 and 6 -> fp 2; said no, is yes: 1 -> fn 1; tn: 2 and 5 -> 2
    assert score(answers, labels) == {"accuracy": 4 / 7, "precision": 2 / 4, "recall": 2 / 3,
                                      "f1": 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3), "yes-ratio": 4 / 7}


@pytest.mark.parametrize("answers, labels", [([], []), (["no"], ["no"]), (["no"], ["yes"])])
def test_a_division_by_zero_gives_zero(answers, labels):
    result = score(answers, labels)
    assert result["precision"] == result["recall"] == result["f1"] == result["yes-ratio"] == 0


@pytest.mark.parametrize("split", SPLITS)
def test_each_picture_gets_three_questions_of_each_answer_and_they_are_true(split):
    questions = build(OBJECTS, split)
    assert len(questions) == 3000
    assert [label for _, _, label in questions] == ["yes", "no"] * 1500
    for i, kind, label in questions:
        assert (kind in OBJECTS[i]) == (label == "yes")
    per_picture = Counter(i for i, _, _ in questions)
    assert len(per_picture) == 500 and set(per_picture.values()) == {6}
    assert len({(i, kind) for i, kind, _ in questions}) == 3000  # no question twice
    assert all(len(OBJECTS[i]) >= 3 for i in per_picture)


def test_splits_differ_in_the_absent_kinds_alone_and_are_seeded():
    there = [[question for question in build(OBJECTS, split) if question[2] == "yes"] for split in SPLITS]
    assert there[0] == there[1] == there[2]
    assert build(OBJECTS, "random", 1) == build(OBJECTS, "random", 1) != build(OBJECTS, "random", 2)


def test_popular_asks_for_the_most_frequent_absent_kinds():
    frequency = Counter(kind for kinds in OBJECTS for kind in kinds)
    asked = {}
    for i, kind, label in build(OBJECTS, "popular"):
        if label == "no":
            asked.setdefault(i, []).append(kind)
    for i, kinds in asked.items():
        absent = sorted((k for k in frequency if k not in OBJECTS[i]), key=lambda k: (-frequency[k], k))
        assert kinds == absent[:3]


def test_adversarial_asks_for_what_most_often_stands_together_with_each_object():
    def together(a, b):
        return sum(a in kinds and b in kinds for kinds in OBJECTS)

    questions = build(OBJECTS, "adversarial", images=40)
    for at in range(0, len(questions), 6):
        six, before = questions[at:at + 6], []
        for (i, present, _), (_, absent, _) in zip(six[::2], six[1::2]):
            best = max(together(present, k) for k in scenes.KINDS if k not in OBJECTS[i] and k not in before)
            assert together(present, absent) == best
            before.append(absent)


def test_absent_kinds_grow_harder_from_random_to_adversarial():
    def tempting(split):
        """Share of the absent kinds that belong to the theme of a kind in the picture."""
        theme = {kind: name for name, kinds in scenes.THEMES.items() for kind in kinds}
        no = [(i, kind) for i, kind, label in build(OBJECTS, split) if label == "no"]
        main = [Counter(theme[k] for k in kinds).most_common(1)[0][0] for kinds in OBJECTS]
        return sum(theme[kind] == main[i] for i, kind in no) / len(no)

    assert tempting("random") < tempting("adversarial") - 0.1


def test_fewer_pictures_or_kinds_give_fewer_questions():
    assert len(build([{"a", "b", "c"}, {"a", "d"}, {"c", "d", "e"}], "random")) == 2 * 3 + 2 * 2
    assert build([{"a", "b"}], "popular") == []
    with pytest.raises(ValueError, match="unknown POPE split 'easy'"):
        build([], "easy")


def test_questions_use_popes_wording():
    assert eval_pope.question_text("cup") == "Is there a cup in the image?"
    assert eval_pope.question_text("anchor") == "Is there an anchor in the image?"
