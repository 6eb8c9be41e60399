"""POPE: how often does the model see objects that are not there? Read `train.py` before.

POPE ("Evaluating Object Hallucination in Large Vision-Language Models", Li et al. 2023, arXiv 2305.10355)
asks about each picture for three objects that are in it and three that are not. The absent ones are
drawn at random (`random`), from the most frequent kinds (`popular`), or from the kinds that most often
stand together with those in the picture (`adversarial`): the better a model knows what usually is there,
the harder not to say yes.

    python eval_pope.py                           the newest run
    python eval_pope.py runs/causal-* runs/mma-*  several, averaged over seeds
"""
import argparse
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from tqdm import tqdm

import runs
import scenes
from data import EOS_ID, Examples, Item, scene_items

SPLITS = ("random", "popular", "adversarial")
METRICS = ("accuracy", "precision", "recall", "f1", "yes-ratio")


def build(objects, split, seed=0, images=500, least=3, each=3):
    """Build the POPE questions of one split, as the official builder does.

    objects: for each picture the set or list of the kinds in it.
    `images` pictures (in seeded order) with at least `least` kinds get `each` questions about kinds that are
    there, the same in every split, each followed by one about a kind that is not.
    Returns a list of (picture index, kind, "yes" or "no"). Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown POPE split {split!r}: choose one of {', '.join(SPLITS)}")
    shared, rng = random.Random(seed), random.Random(f"{seed} {split}")
    objects = [sorted(set(kinds)) for kinds in objects]
    frequency = Counter(kind for kinds in objects for kind in kinds)
    popular = sorted(frequency, key=lambda kind: (-frequency[kind], kind))
    together = defaultdict(Counter)
    for kinds in objects:
        for a in kinds:
            together[a].update(b for b in kinds if b != a)
    chosen = [i for i, kinds in enumerate(objects) if len(kinds) >= least]
    shared.shuffle(chosen)
    questions = []
    for i in sorted(chosen[:images]):
        asked = set()
        for kind in shared.sample(objects[i], each):
            questions.append((i, kind, "yes"))
            if split == "random":
                candidates = rng.sample(popular, len(popular))
            elif split == "popular":
                candidates = popular
            else:  # what most often stands together with this very object
                candidates = sorted(popular, key=lambda other: -together[kind][other])
            absent = next((c for c in candidates if c not in objects[i] and c not in asked), None)
            if absent is not None:  # a picture that shows everything leaves nothing to ask for
                questions.append((i, absent, "no"))
                asked.add(absent)
    return questions


def question_text(kind):
    """POPE's wording."""
    return f"Is there {scenes.a_or_an(kind)} in the image?"


def verdict(answer):
    """A free-text answer -> "yes" or "no", by the rule of the official evaluate.py.

    Up to the first full stop, commas removed: "no" if one of the words is No, no or not, else "yes".
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(answers, labels):
    """Free-text answers and labels ("yes"/"no") -> dict of METRICS, "yes" being positive; 0 for x/0."""
    said = [verdict(answer) == "yes" for answer in answers]
    true = [label == "yes" for label in labels]
    tp = sum(s and t for s, t in zip(said, true))
    fp = sum(s and not t for s, t in zip(said, true))
    fn = sum(t and not s for s, t in zip(said, true))
    tn = len(said) - tp - fp - fn

    def ratio(a, b):
        return a / b if b else 0.0

    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    return {"accuracy": ratio(tp + tn, len(said)), "precision": precision, "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall), "yes-ratio": ratio(tp + fp, len(said))}


def answer(model, examples, rows, kind, max_new_tokens=8, batch_size=256, progress=None):
    """Let the model answer the prompts of some examples, greedily.

    rows: indices into `examples`; keep the questions of a picture together, they share its ViT pass.
    kind: the mask, see `mma.KINDS`. progress: a tqdm bar to move on, or None.
    Returns the answers as text, in the order of `rows`.
    """
    device = model.token.weight.device

    def one_batch(start):
        batch = examples.batch(rows[start:start + batch_size], prompts_only=True).to(device)
        with runs.autocast(device):
            ids = model.generate(batch.images, batch.ids, batch.modality, max_new_tokens, EOS_ID, kind,
                                 batch.image_index)
        if progress is not None:
            progress.update(len(ids))
        return [examples.tokenizer.decode(row) for row in ids.tolist()]

    with runs.threads(device) as pool:
        return [text for texts in pool.map(one_batch, range(0, len(rows), batch_size)) for text in texts]


def accuracy_by_kind(examples, rows, answers):
    """-> dict of question kind -> share of exactly right answers."""
    right = defaultdict(list)
    for row, given in zip(rows, answers):
        right[examples.items[row].kind].append(given == examples.items[row].answer)
    return {kind: mean(hits) for kind, hits in right.items()}


def objects_of(world):
    """For each Scene of a list the set of the kinds in it, as `build` wants them."""
    return [{thing.kind for thing in scene.things} for scene in world]


def pope_items(questions, kind):
    """The questions of `build` as Items for `data.Examples`."""
    return [Item((i,), question_text(name), label, kind) for i, name, label in questions]


class TestSet:
    """The three splits and the questions of every kind about the same test scenes, made once for all runs."""

    def __init__(self, cache, images=500, seed=0):
        """images: pictures a split. Frequencies are counted over twice as many scenes, as some have too few kinds."""
        self.images, _, kinds = scene_items("test", 2 * images, seed, cache)
        world = [scenes.make_scene(s) for s in scenes.split_seeds("test", 2 * images)]
        self.names = [f"scene-{scene.seed}" for scene in world]
        self.questions = {split: build(objects_of(world), split, seed, images) for split in SPLITS}
        shown = {i for i, _, _ in self.questions["random"]}
        self.kinds = [item for item in kinds if item.pictures[0] in shown]

    def evaluate(self, model, tokenizer, checkpoint, progress=None):
        """Let one model answer everything.

        Returns (scores: split -> dict of METRICS, accuracy: question kind -> share right, answers: split ->
        list of texts in the order of `self.questions[split]`).
        """
        items = [item for split in SPLITS for item in pope_items(self.questions[split], split)] + self.kinds
        examples = Examples(items, self.images, tokenizer, model.config, evaluation_order(checkpoint["order"]))
        rows = sorted(range(len(items)), key=lambda row: items[row].pictures)  # questions of a picture side by side
        answers = [None] * len(items)
        for row, text in zip(rows, answer(model, examples, rows, checkpoint["attention"], progress=progress)):
            answers[row] = text
        texts = {split: [text for item, text in zip(items, answers) if item.kind == split] for split in SPLITS}
        scores = {split: score(texts[split], [label for _, _, label in self.questions[split]]) for split in SPLITS}
        rest = range(len(items) - len(self.kinds), len(items))
        return scores, accuracy_by_kind(examples, rest, [answers[row] for row in rest]), texts

    def write(self, path, texts):
        """Questions and answers as JSON lines in the formats of the official files, beside the checkpoint `path`.

        `path` is a run's folder or a checkpoint; the files of one that is not model.pt carry its name.
        """
        folder, name = (path, "pope") if path.is_dir() else (path.parent, f"pope_{path.stem}")
        name = name.removesuffix("_model")
        for split in SPLITS:
            with open(folder / f"{name}_{split}_questions.jsonl", "w") as asked, \
                    open(folder / f"{name}_{split}_answers.jsonl", "w") as given:
                for n, ((i, kind, label), text) in enumerate(zip(self.questions[split], texts[split]), 1):
                    question = {"question_id": n, "image": self.names[i], "text": question_text(kind), "label": label}
                    print(json.dumps(question), file=asked)
                    print(json.dumps({"question_id": n, "question": question["text"], "answer": text}), file=given)


def sheet(model, tokenizer, checkpoint, path):
    """Draw twelve test scenes with three questions each and the model's answers, wrong ones in red."""
    world = [scenes.make_scene(s) for s in scenes.split_seeds("test", 12)]
    images = np.stack([scenes.draw(scene) for scene in world])
    asked = [questions[i % 2::2][:3] for i, questions in enumerate(scenes.ask(world, 0))]
    items = [Item((i,), q.text, q.answer) for i, questions in enumerate(asked) for q in questions]
    examples = Examples(items, images, tokenizer, model.config, evaluation_order(checkpoint["order"]))
    lines = [[] for _ in world]
    black, green, red = (40, 40, 40), (20, 120, 60), (200, 30, 30)
    for item, text in zip(items, answer(model, examples, range(len(items)), checkpoint["attention"])):
        given = (f"    {text}", green) if text == item.answer else (f"    {text}   (right: {item.answer})", red)
        lines[item.pictures[0]] += [(item.prompt, black), given]
    scenes.sheet(world, lines, path)


def evaluation_order(order):
    """Every order of training is evaluated image-first, but the one that never saw it."""
    return "text-first" if order == "text-first" else "image-first"


def percent(values):
    """Shares of one or several runs -> "97.1" or "97.1 ± 0.4" (mean and sample standard deviation), in percent."""
    text = f"{100 * mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * stdev(values):.1f}"


def markdown(header, rows):
    """A Markdown table whose columns line up in a terminal too."""
    table = [header, ["-" * max(len(row[c]) for row in [header, *rows]) for c in range(len(header))], *rows]
    widths = [max(len(row[c]) for row in table) for c in range(len(header))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in table)


def label_of(checkpoint):
    """How a run is called in a table: its mask, its order if that is not the usual one, and what it lacks."""
    label = checkpoint["attention"] + ("" if checkpoint["order"] == "image-first" else f" {checkpoint['order']}")
    if checkpoint["stage"] != "sft":
        return f"{label} (NEVER FINE-TUNED)"
    return label + (" (UNFINISHED)" if checkpoint["training"] else "")


def main():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="*", type=Path, help="run folders or checkpoints (default: the newest run)")
    p.add_argument("--images", type=runs.number(int, 1), default=500, help="test scenes a split, six questions each (default: 500)")
    p.add_argument("--seed", type=runs.number(int, 0), default=0, help="of the questions (default: 0)")
    p.add_argument("--sheet", metavar="FILE", help="also draw some test scenes with questions and the model's answers")
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: CUDA, then MPS, then CPU)")
    p.add_argument("--cache", default="cache", help="folder of the rendered scenes (default: cache)")
    options = p.parse_args()
    device = runs.pick_device(options.device)
    paths = options.runs or [runs.newest()]
    loaded = [(path, *runs.load(path, device)) for path in paths]  # a bad one is refused before the long part
    test = TestSet(options.cache, options.images, options.seed)
    total = len(loaded) * (sum(map(len, test.questions.values())) + len(test.kinds))
    grouped = defaultdict(list)
    with tqdm(total=total, unit="question") as bar:
        for path, model, tokenizer, checkpoint in loaded:
            bar.set_description(str(path))
            scores, accuracy, texts = test.evaluate(model, tokenizer, checkpoint, bar)
            test.write(path, texts)
            grouped[label_of(checkpoint)].append((scores, accuracy))
    if options.sheet:
        sheet(*loaded[0][1:], options.sheet)
    pictures, split = len({i for i, _, _ in test.questions["random"]}), test.questions["random"]
    print(f"\nPOPE on {pictures} test scenes, {len(split)} questions a split, in percent")
    if len(loaded) == 1:
        [(label, [(scores, accuracy)])] = grouped.items()
        print(f"{loaded[0][0]}: {label}\n")
        print(markdown(["split", *METRICS], [[s, *(percent([scores[s][m]]) for m in METRICS)] for s in SPLITS]))
        print("\naccuracy by kind of question")
        print(markdown(list(accuracy), [[percent([a]) for a in accuracy.values()]]))
        return
    print("mean ± standard deviation over runs of the same attention\n")
    columns = [(s, m) for m in ("accuracy", "f1") for s in SPLITS]
    print(markdown(["attention", "runs", *(f"{s} {m}" for s, m in columns)], [
        [label, str(len(found)), *(percent([scores[s][m] for scores, _ in found]) for s, m in columns)]
        for label, found in grouped.items()]))
    print("\naccuracy by kind of question")
    kinds = list(next(iter(grouped.values()))[0][1])
    print(markdown(["attention", *kinds], [
        [label, *(percent([accuracy[kind] for _, accuracy in found]) for kind in kinds)]
        for label, found in grouped.items()]))


if __name__ == "__main__":
    runs.command_line(main)
