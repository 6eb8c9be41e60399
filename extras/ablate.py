"""What each choice of the recipe is worth: undo one, train again, compare. Read after `compare.py`.

    python -m extras.ablate --rows default "ViT trained, too" --seeds 0 1
    python -m extras.ablate --seeds 0 -- --sft-steps 400    options after -- go to train.py
    python -m extras.ablate --table                         the table of all finished runs

Works as `compare.py` does and shares its runs: what differs in fine-tuning alone starts from the
same pre-trained model. Asks validation scenes. A finished run adds a line to
results/ablations.jsonl.
"""
import argparse
from pathlib import Path

from data import FIRST_SEED, PLACES, make_scene, read_lines
from extras.compare import Row, queue, tables


def retold(splits, order):
    """The splits with captions that name what is at each place, in an order of the objects."""
    told = []
    for part, split in zip(("train", "val"), splits):
        captions = []
        for i, example in enumerate(split.captions):
            objects = order(make_scene(FIRST_SEED[part] + i).objects)
            text = ", ".join(f"{o.place} {o.color} {o.name}" for o in objects)
            captions.append(example._replace(answer=text))
        told.append(split._replace(captions=captions))
    return told


def place_first(splits):
    """Every phrase says what is at a place, in random order."""
    return retold(splits, order=list)


def in_order(splits):
    """The same from the top left to the bottom right."""
    def order(objects):
        return sorted(objects, key=lambda o: PLACES.index(o.place))
    return retold(splits, order)


ABLATIONS = {  # name -> what undoes one choice
    "default": Row(),
    "captions: place, then thing": Row(change=place_first),
    "the same from top left to bottom right": Row(change=in_order),
    "ViT trained, too": Row(["--train-vit"]),
}
LINES = Path("results/ablations.jsonl")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ABLATIONS, default=ABLATIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--table", action="store_true", help="print the table, train nothing")
    parser.add_argument("train", nargs="*", help="after --: options of train.py")
    options = parser.parse_args()
    if not options.table:
        rows = [(name, ABLATIONS[name]) for name in options.rows]
        queue(rows, options.seeds, options.train, LINES, "search")
    lines = [run for _, run in read_lines(LINES)] if LINES.exists() else []
    print(tables(lines, ABLATIONS))


if __name__ == "__main__":
    main()
