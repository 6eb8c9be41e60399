"""What lies under runs/: checkpoints that survive a crash and a stranger. Read when `train.py` sends you here.

A run is a folder: `model.pt` (weights and all that is needed to use them), `pretrained.pt` (the same, as
it was before fine-tuning), `metrics.jsonl`.
"""
import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from data import ORDERS, Tokenizer
from mma import KINDS
from model import Config, MultimodalGPT

FORMAT = 1  # raised when a checkpoint of an older program can no longer be read


def save(path, checkpoint):
    """Write a checkpoint (a dict) so that `path` is at every moment the whole old or the whole new file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # on the disk before the rename, or a power cut leaves a new name with no content
    os.replace(temporary, path)


def pack(model, tokenizer, **about):
    """The checkpoint of a model: configuration, vocabulary and weights, and whatever `about` adds."""
    return {"format": FORMAT, "config": asdict(model.config), "words": tokenizer.words,
            "weights": model.state_dict(), **about}


def load(path, device="cpu"):
    """Read a checkpoint -> (model on `device`, Tokenizer, the checkpoint as dict).

    `path` is a checkpoint file or a run's folder. Only tensors and plain values are read (weights_only);
    the configuration is checked, and the shapes compared, before memory is taken for a model.
    Raises FileNotFoundError, or ValueError with one line that says what is wrong with the file.
    """
    path = Path(path)
    path = path / "model.pt" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; `python train.py` makes one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files, and some are only a RuntimeError
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: not a whole checkpoint (cut off, damaged, or holding code): {reason}") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        found = checkpoint.get("format") if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{path}: checkpoint format {FORMAT} is wanted, but this is {found!r}")
    try:
        config, tokenizer = Config(**checkpoint["config"]), Tokenizer(checkpoint["words"])
        if config.vocab_size != len(tokenizer):
            raise ValueError(f"configuration says vocab_size {config.vocab_size}, the vocabulary has {len(tokenizer)}")
        with torch.device("meta"):
            wanted = {name: t.shape for name, t in MultimodalGPT(config).state_dict().items()}
        if checkpoint["attention"] not in KINDS or checkpoint["order"] not in ORDERS:
            raise ValueError(f"attention {checkpoint['attention']!r} or order {checkpoint['order']!r} is unknown")
        checkpoint["stage"], checkpoint["training"]  # its readers count on them
        weights = checkpoint["weights"]
        given = {name: t.shape for name, t in weights.items()}
        for name in sorted(wanted.keys() | given.keys()):
            if wanted.get(name) != given.get(name):
                raise ValueError(f"weight {name}: the configuration wants "
                                 f"{shape(wanted.get(name))}, the file holds {shape(given.get(name))}")
        if not all(t.is_floating_point() and t.is_contiguous() for t in weights.values()):
            raise ValueError("weights must be contiguous floating-point tensors")
    except KeyError as error:
        raise ValueError(f"{path}: checkpoint does not fit this program: it has no {error}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: checkpoint does not fit this program: {error}") from None
    model = MultimodalGPT(config)
    model.load_state_dict(weights)
    return model.to(device).eval(), tokenizer, checkpoint


def shape(size):
    """A torch.Size or None, as a reader would say it."""
    return "nothing" if size is None else "x".join(map(str, size)) or "one number"


def new_folder(name, default, root="runs"):
    """Make and return the folder of a new run. A `name` that exists is refused; a `default` gets a number."""
    root = Path(root)
    root.mkdir(exist_ok=True, parents=True)
    for i in range(1, 10_000):
        folder = root / (name or (default if i == 1 else f"{default}-{i}"))
        try:
            folder.mkdir()  # fails if it exists, also when two runs start at the same moment
            return folder
        except FileExistsError:
            if name:
                raise ValueError(f"--name {name}: {folder} exists already; choose another name, "
                                 f"or continue that run with --resume {folder}") from None
    raise ValueError(f"{root}: too many runs called {default}; choose a --name")


def newest(root="runs"):
    """The folder of the run whose checkpoint is the newest."""
    found = sorted(Path(root).glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{root}/: no trained model here; `python train.py` makes one")
    return found[-1].parent


def pick_device(name=None):
    """A torch.device: the named one, or the best there is: CUDA, then MPS, then CPU.

    Raises ValueError for a device that this machine does not have.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: not on this machine ({str(error).splitlines()[0][:80]}); "
                         "leave the option out to take the best there is") from None


def threads(device, most=2):
    """A ThreadPoolExecutor for work that can be halved: on a CPU two threads, each with half of the cores.

    That is as fast as one thread with all cores, and much faster where another program runs beside: operations
    that are spread over all cores wait for the slowest at every step. Elsewhere, or with most=1, one thread.
    """
    workers = min(most, 2) if device.type == "cpu" else 1
    cores = max(1, torch.get_num_threads() // workers)

    def start():
        torch.set_num_threads(cores)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # every thread has a current device of its own

    return ThreadPoolExecutor(workers, initializer=start)


def autocast(device, wanted=True):
    """bfloat16 autocast where the hardware computes it faster than float32, else a context that does nothing.

    On CPUs that takes AMX or AVX512-BF16; without, bf16 matrix products ran at 0.6 times the float32 rate.
    """
    fast = (torch.cuda.is_bf16_supported() if device.type == "cuda"
            else torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() if device.type == "cpu"
            else False)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and fast)


def number(kind, least):
    """An argparse type: a number of some kind (int or float) that is not below `least`."""
    def parse_number(text):
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value
    parse_number.__name__ = "number"  # so that argparse says "invalid number value"
    return parse_number


def command_line(main):
    """Run a program's main(): a mistake of the user is one line on stderr and exit code 1, never a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else str(error)
        print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(1)
