"""What guessing reaches in the picture world: answers without a look at the objects.

    python -m extras.guess

For each question of the test scenes the answer that was right most often in training: for the same
question, or for the same question on the same background. What a model reaches beyond it, it sees.
"""
import argparse
from collections import Counter, defaultdict
from statistics import fmean

from data import FIRST_SEED, Example, exist_question, make_scene, make_world
from eval_pope import SPLITS, build
from extras.tables import table


def guessed(train, test):
    """Guess the answer that was right most often in training.

    train, test: yield (Example, background). Yields for each one of test (Example, whether it is
    right by the question alone, and by the question on the background if training had it there).
    """
    answers = defaultdict(Counter)
    for e, background in train:
        answers[e.prompt][e.answer] += 1
        answers[e.prompt, background][e.answer] += 1
    usual = {clue: max(counts, key=counts.get) for clue, counts in answers.items()}
    for e, background in test:
        alone = usual.get(e.prompt)
        precise = usual.get((e.prompt, background), alone)
        yield e, alone == e.answer, precise == e.answer


def percent_table(right):
    """Markdown of {(row, column): list of what is right}."""
    rows = defaultdict(dict)
    for (row, column), found in right.items():
        rows[row]["guessing, %"] = row
        rows[row][column] = f"{100 * fmean(found):.1f}"
    return table([*rows.values()])


def questions(part, n, splits=()):
    """Yields (Example, theme) for all questions about n scenes. splits: of POPE, to add."""
    world = make_world(part, n, size=16)  # nobody looks at the pictures
    themes = [make_scene(FIRST_SEED[part] + i).theme for i in range(n)]
    pope = [Example(i, exist_question(name), label, split)
            for split in splits for i, name, label in build(world.objects, split)]
    for e in pope + world.questions:
        yield e, themes[e.picture]


def main():
    """The command line."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    right = defaultdict(list)
    train, test = questions("train", 20_000), questions("test", 1000, SPLITS)
    for e, alone, precise in guessed(train, test):
        right[e.kind, "from the question"].append(alone)
        right[e.kind, "and the background"].append(precise)
    print(percent_table(right))


if __name__ == "__main__":
    main()
