"""Lets the tests import the files of the folder above, and fixes what varies between machines."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same random state. Small operations need no second thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
