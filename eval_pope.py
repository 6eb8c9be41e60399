"""POPE: how often does the model see objects that are not there? Read `train.py` before.

POPE ("Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355) asks
about each picture for three objects that are in it and three that are not. The absent ones are
drawn at random (`random`), are the most frequent (`popular`), or those that most often stand
together with one in the picture (`adversarial`): where there is a fork, is there a knife?

    python eval_pope.py                            the newest run, about its own data
    python eval_pope.py runs/causal-* runs/mma-*   several, one after the other
    python eval_pope.py RUN --pope coco_pope_*.json --images val2014   the official files
"""
import json
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from statistics import median

from data import (NO_YES, Dataset, Example, check_line, digest, exist_question, file_hash,
                  load_pictures, make_part, make_world, read_folder, read_lines)
from train import accuracy_by_kind, answer, load, percents, pick_device

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
        "n": len(labels),
    }


def guesses(examples, usual, pope=False):
    """What one answers who knows what is usual in training, `data.usual`, and does not look.

    To questions of POPE: yes for the half that asks for what most pictures show. To others: their
    usual answer, or that of their kind.
    """
    if pope:
        shown = [usual["shown"].get(e.prompt, 0) for e in examples]
        middle = median(shown)
        return [NO_YES[n > middle] for n in shown]
    answers = usual["answers"]
    return [answers.get(e.prompt, answers.get(f"kind {e.kind}")) for e in examples]


def ask(run, part, dataset_class=Dataset):
    """Let a run, as `train.load` returns it, answer the questions of a `data.Part`.

    Left out are those about pictures that the run was trained on, and those that are too long.
    Returns a list of (Example, text).
    """
    model, tokenizer, checkpoint = run
    known = {*checkpoint["trained_on"]} & {*part.hashes}
    if known:
        print(f"left out: {len(known)} of {len(part.images)} pictures, which it was trained on")
    examples = [e for e in part.questions if not known or part.hashes[e.picture] not in known]
    order = checkpoint["options"]["order"]
    dataset = dataset_class(examples, part.images, tokenizer, model.config, order)
    return list(zip(dataset.examples, answer(model, dataset)))


def score_beside_guess(given, usual):
    """`score` of a list of (Example, text), and as `guess` the accuracy of a guess, if `usual`.

    Or of the opposite, if that is right more often: in `popular` it is frequent things that are
    absent.
    """
    examples, texts = zip(*given)
    labels = [e.answer for e in examples]
    figures = score(texts, labels)
    if usual:
        guess = score(guesses(examples, usual, pope=True), labels)["accuracy"]
        figures = {"accuracy": figures["accuracy"], "guess": max(guess, 1 - guess)} | figures
    return figures


def ask_own(run, part, dataset_class=Dataset):
    """-> the figures of a run about a data.Part, as in eval.json."""
    least = 1 if part.hashes else 3  # objects in a picture: of one's own, of a scene
    examples, kinds = list(part.questions), [("POPE", split) for split in SPLITS]
    for kind in kinds:
        for i, name, label in build(part.objects, kind[1], least=least, known=part.names):
            examples.append(Example(i, exist_question(name), label, kind))
    given = ask(run, part._replace(questions=examples), dataset_class)
    figures, usual = {}, run[2].get("usual")
    for kind in kinds:
        pope = [(e, text) for e, text in given if e.kind == kind]
        if any(e.answer == "no" for e, _ in pope):
            figures[kind[1]] = score_beside_guess(pope, usual)
        else:
            print(f"no POPE, {kind[1]}: pictures must name objects that others do not show")
    if own := [(e, text) for e, text in given if e.kind not in kinds]:
        examples, texts = zip(*own)
        figures["kinds"], figures["n"] = accuracy_by_kind(examples, texts)
        if usual:
            figures["guess"] = accuracy_by_kind(examples, guesses(examples, usual))[0]
        figures["accuracy"] = sum(text == e.answer for e, text in own) / len(own)
    return figures


def own_part(run, scenes):
    """The data.Part that a run of the picture world, or of one's own pictures, is asked about."""
    model, _, checkpoint = run
    options, size = checkpoint["options"], model.config.image_size
    if not options["data"]:
        return make_world("test", scenes, 0, size)
    [part] = read_folder(options["data"], size, options["seed"], ["test"])
    if not Path(options["data"], "test.jsonl").exists():
        print("no test.jsonl: asked about the pictures that the training was validated on")
        if digest(part) != checkpoint["data"][1]:
            print(f"{options['data']} has changed since the training")
    return part


def ask_official(run, path, folder, out):
    """-> the figures of a run on an official POPE file; its answers go to the file `out`."""
    entries, path_of = [], {}
    for where, q in read_lines(path):
        check_line(where, q, ["text", "label"])
        if q["label"] not in NO_YES or "question_id" not in q:
            raise SystemExit(f'{where}: wanted are "label", yes or no, and "question_id"')
        entries.append({"hash": file_hash(folder / q["image"]), "objects": [],
                        "question": q["text"], "answer": q["label"], "kind": q["question_id"]})
        path_of[entries[-1]["hash"]] = folder / q["image"]
    missing = [path_of.pop(key) for key in list(path_of) if key.startswith("~")]
    if not path_of:
        raise SystemExit(f"{path}: there is none of its pictures, such as {missing[:1]}")
    part = make_part(load_pictures(path_of, run[0].config.image_size), entries, (), 0)
    given = ask(run, part)
    left_out = len(entries) - len(given)
    if left_out:
        print(f"{left_out} of {len(entries)} questions are left out; pictures that are missing: "
              f"{len(missing)} {missing[:1]}")
    with open(out, "w") as file:  # in the official format
        for e, text in given:
            line = {"question_id": e.kind, "question": e.prompt, "answer": text}
            file.write(json.dumps(line) + "\n")
    return score_beside_guess(given, run[2].get("usual")) | {"left_out": left_out}


def main():
    """The command line."""
    sys.stdout.reconfigure(errors="backslashreplace")  # no name of a file ends a run
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, help="run folders or checkpoints (default: the newest run)")
    add("--pope", metavar="FILE", nargs="+", type=Path, help="ask these official POPE files")
    add("--images", type=Path, metavar="DIR", help="folder of their pictures (default: .)")
    add("--scenes", type=int, default=1000, help="test scenes to draw (default: 1000)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    options = parser.parse_args()
    files = {file.stem: file for file in options.pope or []}
    if len(files) < len(options.pope or []):
        parser.error("--pope: two files of one name: rename one")
    if options.images and not files or options.scenes < 1:
        parser.error("--images goes with --pope, and --scenes must be at least 1")
    saved = sorted(Path("runs").glob("*/model.pt"), key=os.path.getmtime)
    for path in options.runs or [saved[-1].parent if saved else Path("runs")]:
        run = load(path, pick_device(options.device))
        out = path if path.is_dir() else path.with_suffix("")  # RUN/pretrained.pt -> RUN/pretrained
        report = out / ("pope.json" if files else "eval.json")
        if not os.access(path if path.is_dir() else path.parent, os.W_OK):  # before all the work
            raise SystemExit(f"{report}: this folder may not be written")
        out.mkdir(exist_ok=True)
        if files:
            figures = json.loads(report.read_text()) if report.exists() else {}  # of other files
            for stem, file in files.items():
                answers = out / f"{stem}_answers.jsonl"
                figures[stem] = ask_official(run, file, options.images or Path(), answers)
        else:
            figures = ask_own(run, own_part(run, options.scenes))
        report.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"\n{path}: {run[0].attention}, {run[2]['stage']} step {run[2]['step']}")
        for name, shares in figures.items():
            if name == "accuracy":
                name, shares = "all questions", {name: shares}
            print(f"{name:20} {percents(shares)}")


if __name__ == "__main__":
    main()
