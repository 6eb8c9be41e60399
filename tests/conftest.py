"""Lets the tests import the files of the folder above, and fixes what varies between machines."""
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
import driving
import train


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same random state. Small operations need no second thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures 0.png to 219.png; the red of each is its number."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(220):
        Image.new("RGB", (6, 6), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """tiny(options) starts a tiny run in an empty folder; the caller trains it."""
    monkeypatch.chdir(tmp_path)
    for name, value in driving.SMALL.items():
        monkeypatch.setattr(train, name, value)

    def start(*options):
        words = driving.FINE_TUNING if "--pretrained" in options else driving.TINY
        return train.start(train.parse([*words, *map(str, options)]))

    return start
