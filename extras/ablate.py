"""What each choice of the recipe is worth: undo one, train again, compare. Read after `compare.py`.

    python -m extras.ablate --rows default "ViT trained, too" --seeds 0 1
    python -m extras.ablate --seeds 0 -- --sft-steps 400    options after -- go to train.py
    python -m extras.ablate --table                         the table of all finished runs

Works as `compare.py` does and shares its runs: what differs in fine-tuning alone starts from the
same pre-trained model. Asks validation scenes. A finished run adds a line to
results/ablations.jsonl.
"""
from pathlib import Path

from data import FIRST_SEED, PLACES, make_scene, read_lines
from extras.compare import Row, arguments, queue, tables
from train import load_splits


def retold(options, order):
    """The splits with captions that name what is at each place, in an order of the objects."""
    told = []
    for part, split in zip(("train", "val"), load_splits(options)):
        captions = []
        for i, example in enumerate(split.captions):
            objects = order(make_scene(FIRST_SEED[part] + i).objects)
            text = ", ".join(f"{o.place} {o.color} {o.name}" for o in objects)
            captions.append(example._replace(answer=text))
        told.append(split._replace(captions=captions))
    return told


def place_first(options):
    """Every phrase says what is at a place, in random order."""
    return retold(options, order=list)


def in_order(options):
    """The same from the top left to the bottom right."""
    def order(objects):
        return sorted(objects, key=lambda o: PLACES.index(o.place))
    return retold(options, order)


ABLATIONS = {  # name -> what undoes one choice
    "default": Row(),
    "captions: place, then thing": Row(splits=place_first),
    "the same from top left to bottom right": Row(splits=in_order),
    "ViT trained, too": Row(["--train-vit"]),
}
LINES = Path("results/ablations.jsonl")


def main():
    """The command line."""
    options = arguments(__doc__.split("\n")[0], ABLATIONS, can_search=False).parse_args()
    if not options.table:
        rows = [(name, ABLATIONS[name]) for name in options.rows]
        queue(rows, options.seeds, options.train, LINES, "search")
    lines = [run for _, run in read_lines(LINES)] if LINES.exists() else []
    print(tables(lines, ABLATIONS))


if __name__ == "__main__":
    main()
