"""What several tests share."""
import json

import pytest
import torch

FROM_NOTHING = "--width 32 --heads 2 --layers 1 --vit-layers 1 --pretrain-steps 10".split()
FINE_TUNING = "--scenes 64 --batch-size 8 --sft-steps 10 --save-every 0 --device cpu".split()
TINY = FROM_NOTHING + FINE_TUNING


def sgd(model, rate):
    """In place of `train.make_optimizers`: Muon and Adam magnify rounding."""
    return [torch.optim.SGD(model.parameters(), lr=0.1)]


# What replaces the names of train.py in runs of few steps.
SMALL = {"LOG_EVERY": 2, "EVAL_EVERY": 4, "VAL_SCENES": 4,
         "autocast": lambda device: torch.autocast(device.type, enabled=False)}


def write_lines(path, lines):
    """Dicts, or texts as they are, as the lines of a file."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))


def refused(says, call, *arguments):
    """The call ends the program with one line, which says so; returns the line."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    line = stop.value.code
    assert isinstance(line, str) and line.isprintable() and says in line
    return line
