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

import torch
from tqdm import tqdm

import runs
import scenes
from data import EOS_ID, Examples, Item, scene_items

SPLITS = ("random", "popular", "adversarial")
METRICS = ("accuracy", "precision", "recall", "f1", "yes-ratio")


def build(objects, split, seed=0, images=500, least=3, each=3):
    """Build the POPE questions of one split, as the official builder does.

    objects: for each picture the set or list of the kinds in it.
    The first `images` pictures (in seeded order) with at least `least` kinds get `each` questions about
    kinds that are there and as many about kinds that are not.
    Returns a list of (picture index, kind, "yes" or "no"), yes and no in turn.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown POPE split {split!r}: choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{seed} {split}")
    objects = [sorted(set(kinds)) for kinds in objects]
    frequency = Counter(kind for kinds in objects for kind in kinds)
    popular = sorted(frequency, key=lambda kind: (-frequency[kind], kind))
    together = defaultdict(Counter)
    for kinds in objects:
        for a in kinds:
            together[a].update(b for b in kinds if b != a)
    chosen = [i for i, kinds in enumerate(objects) if len(kinds) >= least]
    random.Random(seed).shuffle(chosen)  # the same pictures for all three splits
    questions = []
    for i in sorted(chosen[:images]):
        present = rng.sample(objects[i], each)
        absent = []
        for kind in present:
            if split == "random":
                candidates = rng.sample(popular, len(popular))
            elif split == "popular":
                candidates = popular
            else:  # what most often stands together with this very object
                candidates = sorted(popular, key=lambda other: -together[kind][other])
            absent.append(next((c for c in candidates if c not in objects[i] and c not in absent), None))
        for kind, other in zip(present, absent):
            questions.append((i, kind, "yes"))
            if other is not None:  # a picture that shows everything leaves nothing to ask for
                questions.append((i, other, "no"))
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


def answer(model, examples, rows, kind, max_new_tokens=8, batch_size=384, progress=None):
    """Let the model answer the prompts of some examples, greedily.

    rows: indices into `examples`; keep the questions of a picture together, they share its ViT pass.
    kind: the mask, see `mma.KINDS`. progress: a tqdm bar to move on, or None.
    Returns the answers as text, in the order of `rows`.
    """
    device, texts = model.token.weight.device, []
    for start in range(0, len(rows), batch_size):
        batch = examples.batch(rows[start:start + batch_size], prompts_only=True).to(device)
        with runs.autocast(device):
            ids = model.generate(batch.images, batch.ids, batch.modality, max_new_tokens, EOS_ID, kind, batch.image_index)
        texts += [examples.tokenizer.decode(row) for row in ids.tolist()]
        if progress is not None:
            progress.update(len(ids))
    return texts


def accuracy_by_kind(examples, rows, answers):
    """-> dict of question kind -> share of exactly right answers."""
    right = defaultdict(list)
    for row, given in zip(rows, answers):
        right[examples.items[row].kind].append(given == examples.items[row].answer)
    return {kind: mean(hits) for kind, hits in right.items()}
