"""What guessing reaches in the picture world: answers without a look at the objects.

    python -m extras.guess

For each question of the test scenes the answer that was right most often in training: for the same
question, or for the same question on the same background. What a model reaches beyond it, it sees.
"""
import argparse
from collections import Counter, defaultdict

from data import FIRST_SEED, exist_question, make_scene, questions_about
from eval_pope import SPLITS, build
from extras.tables import table


def scenes_of(part, n):
    """The first n scenes of "train", "val" or "test"."""
    return [make_scene(FIRST_SEED[part] + i) for i in range(n)]


def fit(scenes):
    """-> the most frequent answer in training, by question and by (question, theme)."""
    counts = defaultdict(Counter)
    for scene, questions in zip(scenes, questions_about(scenes, seed=0)):
        for question, answer, _ in questions:
            counts[question][answer] += 1
            counts[question, scene.theme][answer] += 1
    return {key: answers.most_common(1)[0][0] for key, answers in counts.items()}


def held_out(scenes):
    """Yields (name of a POPE split or question kind, theme, question, answer)."""
    objects = [list(dict.fromkeys(o.name for o in scene.objects)) for scene in scenes]
    for split in SPLITS:
        for i, name, label in build(objects, split):
            yield split, scenes[i].theme, exist_question(name), label
    for scene, questions in zip(scenes, questions_about(scenes, seed=0)):
        for question, answer, kind in questions:
            yield kind, scene.theme, question, answer


def shares(train, test):
    """-> {name: (share right from the question alone, and from question and background)}."""
    best, hits = fit(train), defaultdict(list)
    for name, theme, question, answer in held_out(test):
        alone = best.get(question)
        seen = best.get((question, theme), alone)
        hits[name].append((alone == answer, seen == answer))
    return {name: [sum(column) / len(column) for column in zip(*pairs)]
            for name, pairs in hits.items()}


def main():
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter
                            ).parse_args()
    found = shares(scenes_of("train", 20_000), scenes_of("test", 1000))
    rows = []
    for name, (alone, seen) in found.items():
        rows.append({"guessing, %": name, "from the question": f"{100 * alone:.1f}",
                     "and the background": f"{100 * seen:.1f}"})
    print(table(rows))


if __name__ == "__main__":
    main()
