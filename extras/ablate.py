"""What each choice of the recipe is worth: undo one, train again, compare. Read after `compare.py`.

    python -m extras.ablate --rows "mma: default" "mma: ViT trained, too" --seeds 100 101
    python -m extras.ablate --seeds 100 -- --sft-steps 400    options after -- go to train.py
    python -m extras.ablate --table                           the table of all finished runs

Works as `compare.py` does and shares its runs: what differs in fine-tuning alone starts from the
same pre-trained model. Each mask has the learning rate that was best for it in the search there.
Asks validation scenes. A finished run adds a line to results/ablations.jsonl.
"""
from pathlib import Path

from data import FIRST_SEED, PLACES, make_scene, read_lines
from extras.compare import RUNS, Row, arguments, at_rate, best_rate, queue, tables
from extras.variants import both_ways
from train import load_splits


def retold(options, tell):
    """The splits with captions that tell of the objects of a scene in another way."""
    told = []
    for part, split in zip(("train", "val"), load_splits(options)):
        captions = []
        for i, example in enumerate(split.captions):
            objects = make_scene(FIRST_SEED[part] + i).objects
            captions.append(example._replace(answer=", ".join(tell(objects))))
        told.append(split._replace(captions=captions))
    return told


def told_both_ways(options):
    """What is at a place and where a thing is, in turn."""
    return retold(options, both_ways)


def in_order(options):
    """As usual, but from the top left to the bottom right."""
    def tell(objects):
        for o in sorted(objects, key=lambda o: PLACES.index(o.place)):
            yield f"{o.place} {o.color} {o.name}"
    return retold(options, tell)


def once(options, kind):
    """The splits with at most one question of a kind about each picture."""
    splits = []
    for split in load_splits(options):
        questions, asked = [], set()
        for e in split.questions:
            if e.kind != kind or e.picture not in asked:
                questions.append(e)
            if e.kind == kind:
                asked.add(e.picture)
        splits.append(split._replace(questions=questions))
    return splits


def one_existence(options):
    """One existence question about each picture in place of two."""
    return once(options, "exist")


def one_exist_color(options):
    """One question after an object with its color in place of two."""
    return once(options, "exist_color")


CHANGES = {  # name -> what undoes one choice
    "default": Row(),
    "one existence question": Row(splits=one_existence),
    "one exist_color question": Row(splits=one_exist_color),
    "four questions a picture": Row(["--questions", "4"]),
    "ViT trained, too": Row(["--train-vit"]),
    "captions told both ways": Row(splits=told_both_ways),
    "captions from top left to bottom right": Row(splits=in_order),
}
ABLATIONS = {f"{mask}: {name}": row._replace(options=["--attention", mask, *row.options])
             for mask in ("causal", "mma") for name, row in CHANGES.items()}
LINES = Path("results/ablations.jsonl")


def main():
    """The command line."""
    options = arguments(__doc__.split("\n")[0], ABLATIONS, can_search=False).parse_args()
    if not options.table:
        searched = [run for _, run in read_lines(RUNS)] if RUNS.exists() else []
        rows = []
        for name in options.rows:
            rate = best_rate(name.split(":")[0], searched)
            rows.append((name, at_rate(ABLATIONS[name], rate)))
        queue(rows, options.seeds, options.train, LINES, "search")
    lines = [run for _, run in read_lines(LINES)] if LINES.exists() else []
    print(tables(lines, ABLATIONS))


if __name__ == "__main__":
    main()
