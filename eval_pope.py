"""POPE: how often does the model see objects that are not there? Read `train.py` before.

POPE ("Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355) asks
about each picture for three objects that are in it and three that are not. The absent ones are
drawn at random (`random`), are the most frequent (`popular`), or those that most often stand
together with one in the picture (`adversarial`).

    python eval_pope.py                            the newest run, about its own data
    python eval_pope.py runs/causal-* runs/mma-*   several, one after the other
    python eval_pope.py RUN --pope coco_pope_*.json --images val2014   the official files
"""
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict
from os.path import getmtime
from pathlib import Path
from random import Random

from data import (NO_YES, Dataset, Example, check_line, exist_question, load_pictures, make_world,
                  read_folder, read_lines)
from model import answer, pick_device
from train import accuracy_by_kind, load, percents

SPLITS = ("random", "popular", "adversarial")


def build(objects, split, seed=0, pictures=500, least=3, known=()):
    """The POPE questions of one split, made as by the official builder (AoiDragon/POPE, utils.py).

    objects: for each picture the names of the objects in it. `pictures` that show at least `least`
    of them are chosen, counted and asked about: each of the first three objects is followed by an
    absent one. known: further objects that may be asked for.
    Returns a list of (index of the picture, object, "yes" or "no").
    """
    enough = [i for i, names in enumerate(objects) if len(names) >= least]
    chosen = Random(seed).sample(enough, min(pictures, len(enough)))
    frequency = Counter(dict.fromkeys(known, 0))
    together = defaultdict(Counter)
    for i in chosen:
        frequency.update(objects[i])
        for name in objects[i]:
            together[name].update(objects[i])
    rng = Random(f"{seed} {split}")
    questions = []
    for i in chosen:
        used = set(objects[i])
        for name in objects[i][:3]:
            questions.append((i, name, "yes"))
            likely = {"random": Counter(), "popular": frequency, "adversarial": together[name]}
            ranked = [other for other, _ in likely[split].most_common()]
            ranked += rng.sample(sorted(frequency), len(frequency))
            if absent := [other for other in ranked if other not in used]:
                questions.append((i, absent[0], "no"))
                used.add(absent[0])
    return questions


def verdict(answer):
    """A free-text answer -> "yes" or "no", by the rule of the official evaluate.py.

    Up to the first full stop, without commas: "no" if a word is No, no or not, else "yes".
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(answers, labels):
    """Free-text answers and labels -> dict of shares; "yes" is positive, and x/0 is 0."""
    counts = Counter(zip(map(verdict, answers), labels))
    tp, fp = counts["yes", "yes"], counts["yes", "no"]  # true and false positives
    fn, tn = counts["no", "yes"], counts["no", "no"]
    asked = max(1, len(labels))
    return {
        "accuracy": (tp + tn) / asked,
        "precision": tp / max(1, tp + fp),
        "recall": tp / max(1, tp + fn),
        "f1": 2 * tp / max(1, 2 * tp + fp + fn),
        "yes_ratio": (tp + fp) / asked,
    }


def ask(run, images, examples, dataset_class=Dataset):
    """Let a run, as `train.load` returns it, answer some Examples -> list of texts."""
    model, tokenizer, checkpoint = run
    order = checkpoint["options"]["order"]
    dataset = dataset_class(examples, images, tokenizer, model.config, order)
    if left := set(examples) - set(dataset.examples):
        raise SystemExit(f"too long for the context: {left.pop().prompt!r:.99}; take it out")
    return answer(model, dataset)


def ask_own(run, scenes, part="test", dataset_class=Dataset):
    """-> the figures of a run about its own data, as in eval.json."""
    model, _, checkpoint = run
    options, size = checkpoint["options"], model.config.image_size
    known, least = [], 3
    if options["data"]:
        train, split = read_folder(options["data"], size, options["seed"])
        known, least = [name for names in train.objects for name in names], 1
    else:
        split = make_world(part, scenes, 0, size)
    figures = {}
    for name in SPLITS:
        pope = build(split.objects, name, least=least, known=known)
        if not any(label == "no" for _, _, label in pope):
            continue
        examples = [Example(i, exist_question(thing), label, name) for i, thing, label in pope]
        answers = ask(run, split.images, examples, dataset_class)
        figures[name] = score(answers, [e.answer for e in examples])
    if not figures:
        print("no POPE: pictures must name objects that others do not show")
    if split.questions:
        answers = ask(run, split.images, split.questions, dataset_class)
        right = [a == example.answer for a, example in zip(answers, split.questions)]
        figures["kinds"] = accuracy_by_kind(split.questions, answers)
        figures["accuracy"] = sum(right) / len(right)
    return figures


def ask_official(run, path, folder, out):
    """-> the figures of a run on an official POPE file; its answers go to the file `out`."""
    questions = []
    for where, question in read_lines(path):
        check_line(where, folder, question, ["text", "label"])
        if question["label"] not in NO_YES or "question_id" not in question:
            raise SystemExit(f'{where}: wanted are "label", yes or no, and "question_id"')
        questions.append(question)
    names = [q["image"] for q in questions if (folder / q["image"]).is_file()]
    images, index = load_pictures(folder, names, run[0].config.image_size)
    asked = [q for q in questions if q["image"] in index]
    if left_out := len(questions) - len(asked):
        print(f"{left_out} of {len(questions)} questions are left out: no picture in {folder}")
    examples = [Example(index[q["image"]], q["text"], q["label"], "pope") for q in asked]
    answers = ask(run, images, examples)
    with open(out, "w") as file:  # in the official format
        for q, text in zip(asked, answers):
            line = {"question_id": q["question_id"], "question": q["text"], "answer": text}
            file.write(json.dumps(line) + "\n")
    return score(answers, [q["label"] for q in asked])


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, help="run folders or checkpoints (default: the newest run)")
    add("--pope", metavar="FILE", nargs="+", type=Path, help="ask these official POPE files")
    add("--images", type=Path, metavar="DIR", default=".", help="folder of pictures (default: .)")
    add("--scenes", type=int, default=1000, help="test scenes to draw (default: 1000)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    newest = max(Path("runs").glob("*/model.pt"), key=getmtime, default=Path("runs/model.pt"))
    for path in options.runs or [newest.parent]:
        run = model, _, checkpoint = load(path, pick_device(options.device))
        out = path if path.is_dir() else path.with_suffix("")  # RUN/pretrained.pt -> RUN/pretrained
        out.mkdir(exist_ok=True)
        if options.pope:
            name, figures = "pope.json", {}
            for file in options.pope:
                answers = out / f"{file.stem}_answers.jsonl"
                figures[file.stem] = ask_official(run, file, options.images, answers)
        else:
            name, figures = "eval.json", ask_own(run, options.scenes)
        (out / name).write_text(json.dumps(figures, indent=1) + "\n")
        print(f"\n{path}: {model.attention}, {checkpoint['stage']} step {checkpoint['step']}")
        for name, shares in figures.items():
            if name == "accuracy":  # of all questions
                shares = {"of all questions": shares}
            print(f"{name:20}{percents(shares)}")


if __name__ == "__main__":
    main()
