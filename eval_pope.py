"""POPE: how often does the model see objects that are not there? Read `pope.py` and `train.py` before.

    python eval_pope.py                           the newest run, on test scenes of the picture world
    python eval_pope.py runs/causal-* runs/mma-*  several, averaged over seeds
    python eval_pope.py --pope coco_pope_random.json coco_pope_popular.json --images val2014 runs/NAME
                                                  the official files, on photographs
    python eval_pope.py --build annotations/instances_val2017.json --out DIR
                                                  make such files from any COCO-format annotations
"""
import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from tqdm import tqdm

import coco
import pictures
import runs
import scenes
from data import EOS_ID, Examples, Item, scene_items
from options import new_file
from pope import SPLITS, build, pope_items, question_text, read, write

METRICS = ("accuracy", "precision", "recall", "f1", "yes-ratio")


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
        """a / b, and 0 for 0 / 0."""
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
        """The answers to `batch_size` rows from the start-th on."""
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


class TestSet:
    """POPE's questions about pictures, and questions of other kinds about them, made once for all runs.

    images: (N, size, size, 3) uint8; splits: split -> list of question dicts as in the official files; items: split ->
    list of Items, in the same order; kinds: further Items.
    """

    def __init__(self, images, splits, items, kinds=()):
        self.images, self.splits, self.questions, self.kinds = images, splits, items, list(kinds)

    @classmethod
    def of_scenes(cls, cache, number=500, seed=0):
        """Test scenes, `number` a split. Frequencies are counted over twice as many, as some have too few kinds."""
        test, seeds = scene_items("test", 2 * number, seed, cache), scenes.split_seeds("test", 2 * number)
        splits, items = {}, {}
        for split in SPLITS:
            asked = build(test.objects, split, seed, number)
            items[split] = pope_items(asked, split)
            splits[split] = [{"question_id": n, "image": f"scene-{seeds[i]}", "text": question_text(kind),
                              "label": label} for n, (i, kind, label) in enumerate(asked, 1)]
        shown = {item.pictures for item in items["random"]}
        return cls(test.images, splits, items, [item for item in test.questions if item.pictures in shown])

    @classmethod
    def of_files(cls, paths, folder, size, cache, strict=False):
        """Official POPE files about the pictures of a folder.

        Questions without their picture are counted and named on stderr; strict makes them an error.
        Raises ValueError also for what `pope.read` and `pictures.load_all` refuse, and if no picture is there.
        """
        splits, folder = {}, Path(folder)
        for path in map(Path, paths):
            split = next((s for s in SPLITS if path.stem.endswith(s)), path.stem)
            if split in splits:
                raise ValueError(f"--pope {path}: a second file called {split}; give files of different names")
            splits[split] = read(path)
        names = sorted({question["image"] for asked in splits.values() for question in asked})
        there = [name for name in names if pictures.inside(folder, name).is_file()]
        missing, total = set(names) - set(there), sum(map(len, splits.values()))
        if missing:
            left = sum(question["image"] in missing for asked in splits.values() for question in asked)
            line = (f"{folder}: {len(missing)} of {len(names)} pictures are not there (such as {min(missing)}): "
                    f"{left:,} of {total:,} questions are left out, {total - left:,} are asked")
            if strict or not there:
                raise ValueError(line)
            print(line, file=sys.stderr)
        images, bad = pictures.load_all(folder, there, size, cache)
        at = {name: i for i, name in enumerate(there) if i not in bad}
        for reason in bad.values():
            print(f"left out: {reason}", file=sys.stderr)
        splits = {split: [q for q in asked if q["image"] in at] for split, asked in splits.items()}
        items = {split: [Item((at[q["image"]],), q["text"], q["label"], split) for q in asked]
                 for split, asked in splits.items()}
        return cls(images, splits, items)

    def __len__(self):
        """The number of questions."""
        return sum(map(len, self.questions.values())) + len(self.kinds)

    def evaluate(self, model, tokenizer, checkpoint, progress=None):
        """Let one model answer everything.

        Returns (scores: split -> dict of METRICS, accuracy: question kind -> share right, answers: split ->
        list of texts in the order of `self.questions[split]`).
        """
        if self.images.shape[1] != model.config.image_size:
            raise ValueError(f"the pictures are {self.images.shape[1]} pixels a side, but the model was trained on "
                             f"{model.config.image_size}; a model of photographs is asked with --pope and --images")
        items = [item for asked in self.questions.values() for item in asked] + self.kinds
        examples = Examples(items, self.images, tokenizer, model.config, evaluation_order(checkpoint["order"]))
        rows = sorted(range(len(items)), key=lambda row: items[row].pictures)  # questions of a picture side by side
        answers = [None] * len(items)
        for row, text in zip(rows, answer(model, examples, rows, checkpoint["attention"], progress=progress)):
            answers[row] = text
        texts = {split: [text for item, text in zip(items, answers) if item.kind == split] for split in self.questions}
        scores = {split: score(texts[split], [item.answer for item in asked]) for split, asked in self.questions.items()}
        rest = range(len(items) - len(self.kinds), len(items))
        return scores, accuracy_by_kind(examples, rest, [answers[row] for row in rest]), texts

    def write(self, path, texts):
        """Questions and answers as JSON lines in the formats of the official files, beside the checkpoint `path`.

        `path` is a run's folder or a checkpoint; the files of one that is not model.pt carry its name.
        """
        folder, name = (path, "pope") if path.is_dir() else (path.parent, f"pope_{path.stem}")
        name = name.removesuffix("_model")
        for split, asked in self.splits.items():
            write(folder / f"{name}_{split}_questions.jsonl", asked)
            write(folder / f"{name}_{split}_answers.jsonl", [
                {"question_id": question["question_id"], "question": question["text"], "answer": text}
                for question, text in zip(asked, texts[split])])


def build_files(path, out, seed, number=500):
    """Build the three POPE files from an instances_*.json, as the official builder does; returns their paths.

    `number` pictures that show at least three kinds, six questions each; says on stderr if there are fewer.
    """
    names, objects, crowds = coco.read_objects(path)
    present = [set(objects[i]) | crowds[i] for i in names]
    files, paths, out = list(names.values()), [], Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        asked = build(present, split, seed, number)
        if not asked:
            raise ValueError(f"{path}: no picture shows three kinds of object; POPE asks about such pictures only")
        paths.append(out / f"coco_pope_{split}.json")
        write(paths[-1], [{"question_id": n, "image": files[i], "text": question_text(kind), "label": label}
                          for n, (i, kind, label) in enumerate(asked, 1)])
    found = len({i for i, _, _ in asked})
    if found < number:
        print(f"{path}: only {found} pictures show three kinds of object, not {number}", file=sys.stderr)
    return paths


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


def parse(arguments=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="*", type=Path, help="run folders or checkpoints (default: the newest run)")
    p.add_argument("--scenes", type=runs.number(int, 1, 1_000_000), default=500,
                   help="test scenes a split, six questions each; pictures a split for --build (default: 500)")
    p.add_argument("--seed", type=runs.number(int, 0), default=0, help="of the questions (default: 0)")
    p.add_argument("--sheet", type=new_file, metavar="FILE",
                   help="also draw some test scenes with questions and the model's answers")
    p.add_argument("--pope", metavar="FILE", nargs="+", help="answer these official POPE files instead; takes --images")
    p.add_argument("--images", metavar="DIR", help="folder of the pictures that --pope asks about")
    p.add_argument("--strict", action="store_true", help="with --pope: a missing picture is an error")
    p.add_argument("--build", metavar="FILE", help="build POPE files from this instances_*.json; takes --out")
    p.add_argument("--out", metavar="DIR", help="folder for the files of --build")
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: CUDA, then MPS, then CPU)")
    p.add_argument("--cache", default="cache", help="folder of rendered and decoded pictures (default: cache)")
    options = p.parse_args(arguments)
    if options.sheet and not options.sheet.endswith(".png"):
        p.error(f"--sheet {options.sheet}: the picture's name must end in .png")
    if options.strict and not options.pope:
        p.error("--strict goes with --pope")
    if bool(options.pope) != bool(options.images):
        p.error("--pope and --images go together: the question files, and the folder of their pictures")
    if bool(options.build) != bool(options.out):
        p.error("--build and --out go together: the annotations, and the folder for the files")
    return options


def main():
    """The command line."""
    options = parse()
    if options.build:
        print("wrote " + ", ".join(map(str, build_files(options.build, options.out, options.seed, options.scenes))))
        return
    device = runs.pick_device(options.device)
    paths = options.runs or [runs.newest()]
    loaded = [(path, *runs.load(path, device)) for path in paths]  # a bad one is refused before the long part
    if options.pope:
        test = TestSet.of_files(options.pope, options.images, loaded[0][1].config.image_size, options.cache, options.strict)
    else:
        for path, _, _, checkpoint in loaded:
            if checkpoint.get("options", {}).get("data") == "coco":
                raise ValueError(f"{path}: trained on photographs; ask it with --pope FILES --images DIR")
        test = TestSet.of_scenes(options.cache, options.scenes, options.seed)
    grouped = defaultdict(list)
    with tqdm(total=len(loaded) * len(test), unit="question") as bar:
        for path, model, tokenizer, checkpoint in loaded:
            bar.set_description(str(path))
            scores, accuracy, texts = test.evaluate(model, tokenizer, checkpoint, bar)
            test.write(path, texts)
            grouped[label_of(checkpoint)].append((scores, accuracy))
    if options.sheet:
        sheet(*loaded[0][1:], options.sheet)
    splits = list(test.questions)
    print("\nPOPE in percent; questions: " + ", ".join(f"{split} {len(test.questions[split]):,}" for split in splits)
          + f"; pictures: {len({item.pictures for asked in test.questions.values() for item in asked})}")
    if len(loaded) == 1:
        [(label, [(scores, accuracy)])] = grouped.items()
        print(f"{loaded[0][0]}: {label}\n")
        print(markdown(["split", *METRICS], [[s, *(percent([scores[s][m]]) for m in METRICS)] for s in splits]))
        if accuracy:
            print("\naccuracy by kind of question")
            print(markdown(list(accuracy), [[percent([a]) for a in accuracy.values()]]))
        return
    print("mean ± standard deviation over runs of the same attention\n")
    columns = [(s, m) for m in ("accuracy", "f1") for s in splits]
    print(markdown(["attention", "runs", *(f"{s} {m}" for s, m in columns)], [
        [label, str(len(found)), *(percent([scores[s][m] for scores, _ in found]) for s, m in columns)]
        for label, found in grouped.items()]))
    kinds = list(next(iter(grouped.values()))[0][1])
    if kinds:
        print("\naccuracy by kind of question")
        print(markdown(["attention", *kinds], [
            [label, *(percent([accuracy[kind] for _, accuracy in found]) for kind in kinds)]
            for label, found in grouped.items()]))


if __name__ == "__main__":
    runs.command_line(main)
