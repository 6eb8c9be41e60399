"""What lies under runs/: checkpoints that survive a crash and a stranger. Read when `train.py` sends you here.

A run is a folder: `model.pt` (weights and all that is needed to use them), `pretrained.pt` (the same, as
it was before fine-tuning), `metrics.jsonl`, and `lock`, which is empty: the training process holds it.
"""
import argparse
import os
import re
import reprlib
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from data import ORDERS, Tokenizer
from mma import KINDS
from model import Config, MultimodalGPT

FORMAT = 1  # raised when a checkpoint of an older program can no longer be read
HELD = {}  # the `lock` files that this process holds: (inode, device) -> open file


def save(path, checkpoint):
    """Write a checkpoint (a dict) so that `path` is at every moment the whole old or the whole new file.

    Raises OSError where that fails, as on a full disk: the old file stays, and nothing is left beside it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")  # one name: what a killed save leaves, the next one writes over
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before the rename, or a power cut leaves a new name with no content
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # a disk that fills up: torch trips over the OSError that it met
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"{path}: not saved ({cause.strerror}); what was saved there before, if anything, is whole: "
                      "make room, then go on with --resume") from None
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some network disks know no such thing
            os.fsync(folder)  # the name is on the disk when the folder is
        os.close(folder)


def pack(model, tokenizer, **about):
    """The checkpoint of a model: configuration, vocabulary and weights, and whatever `about` adds."""
    return {"format": FORMAT, "config": asdict(model.config), "words": tokenizer.words,
            "weights": model.state_dict(), **about}


def load(path, device="cpu"):
    """Read a checkpoint -> (model on `device`, Tokenizer, the checkpoint as dict).

    `path` is a checkpoint file or a run's folder. Only tensors and plain values are read (weights_only), and only
    if every checksum is right; the configuration is checked, and the shapes compared, before memory is taken for
    a model: never more than a few times the file's length.
    Raises FileNotFoundError, or ValueError with one line that says what is wrong with the file.
    """
    path = Path(path)
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; `python train.py` makes one")
    try:
        with open(path, "rb") as file:  # once: while it is read, a training process may put a new one in its place
            length = check_archive(file)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds for damaged files, and some are only a RuntimeError
        raise ValueError(f"{path}: not a whole checkpoint (cut off, damaged, or holding code): "
                         f"{one_line(error, 100)}") from None
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else type(checkpoint).__name__
    if type(found) is not int or found != FORMAT:
        raise ValueError(f"{path}: checkpoint format {FORMAT} is wanted, but this is {reprlib.repr(found)}")
    try:
        if not all(type(value) is int for value in checkpoint["config"].values()):
            raise ValueError("the configuration must be whole numbers")
        config, tokenizer = Config(**checkpoint["config"]), Tokenizer(checkpoint["words"])
        if config.vocab_size != len(tokenizer):
            raise ValueError(f"configuration says vocab_size {config.vocab_size}, the vocabulary has {len(tokenizer)}")
        with torch.device("meta"):
            wanted = {name: tuple(t.shape) for name, t in MultimodalGPT(config).state_dict().items()}
        for name, known in (("attention", KINDS), ("order", ORDERS), ("stage", ("pretrain", "sft"))):
            if checkpoint[name] not in known:
                raise ValueError(f"{name} {reprlib.repr(checkpoint[name])} is unknown")
        if not isinstance(checkpoint["training"], dict | None):
            raise ValueError("training must be a dict or None")
        weights = checkpoint["weights"]
        given = {name: tuple(t.shape) for name, t in weights.items()}
        for name in sorted(wanted.keys() | given.keys()):
            if wanted.get(name) != given.get(name):
                raise ValueError(f"weight {name}: the configuration wants {wanted.get(name)}, the file holds "
                                 f"{given.get(name)}")
        if not all(t.is_floating_point() and t.is_contiguous() and t.isfinite().all() for t in weights.values()):
            raise ValueError("weights must be finite floating-point numbers, in contiguous tensors")
        if sum(t.nbytes for t in weights.values()) > length:
            raise ValueError("weights share memory: together they are more than the file holds")
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        wrong = ("it has no " if isinstance(error, KeyError) else "") + one_line(error)
        raise ValueError(f"{path}: checkpoint does not fit this program: {wrong}") from None
    model = MultimodalGPT(config)
    model.load_state_dict(weights)
    return model.to(device).eval(), tokenizer, checkpoint


def check_archive(file):
    """Refuse wrong bytes, which torch.load would not notice, and files that swell when read; returns the length."""
    length = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > length:
            raise ValueError("compressed, or parts that overlap")
        if wrong := archive.testzip():
            raise ValueError(f"the checksum of {wrong} is wrong")
    return length


def new_folder(name, default, root="runs"):
    """Make and return the folder of a new run. A `name` that exists is refused; a `default` gets a number."""
    folder = root = Path(root)
    try:
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
    except OSError as error:
        raise ValueError(f"{folder.absolute()} cannot be made ({error.strerror}); start in another folder") from None
    raise ValueError(f"{root}: too many runs called {default}; choose a --name")


def lock(folder):
    """Keep other processes from writing into a run's folder, until this one ends, in whatever way.

    ValueError if another process holds it. Does nothing where the system or the disk has no such locks.
    """
    if os.name != "posix":
        return
    import fcntl  # Windows has none
    file = open(Path(folder) / "lock", "a")
    key = os.fstat(file.fileno())[1:3]
    if key in HELD:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        HELD[key] = file
    except BlockingIOError:
        raise ValueError(f"{folder}: another process is training there; wait for its end, or stop it") from None
    except OSError:
        pass


def newest(root="runs"):
    """The folder of the run whose checkpoint is the newest."""
    found = sorted(Path(root).glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{root}/: no trained model here; `python train.py` makes one")
    return found[-1].parent


def pick_device(name=None):
    """A torch.device: the named one (ValueError if it is not here), or the best there is: CUDA, then MPS, then CPU."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
        torch.ones(1, device=device).item()  # `meta` is on every machine, but computes nothing
        return device
    except Exception as error:  # nearly every kind of device has a kind of error of its own
        raise ValueError(f"--device {name}: not on this machine ({one_line(error, 80)}); "
                         "leave the option out to take the best there is") from None


def threads(device, most=2):
    """A ThreadPoolExecutor for work that can be halved: on a CPU two threads, each with half of the cores.

    That is as fast as one thread with all cores, and much faster where another program runs beside: operations
    that are spread over all cores wait for the slowest at every step. Elsewhere, or with most=1, one thread.
    """
    workers = min(most, 2) if device.type == "cpu" else 1
    cores = max(1, torch.get_num_threads() // workers)

    def start():
        """What each new thread does first."""
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


def number(kind, least, most=10**9):
    """An argparse type: a number of some kind (int or float) from `least` to `most`."""
    def parse_number(text):
        """Text -> number; what argparse prints if it is none names the bound."""
        value = kind(text)
        if not least <= value <= most:
            wrong = f"below {least}" if value < least else f"above {most:,}" if value > most else "no number"
            raise argparse.ArgumentTypeError(f"{text[:40]} is {wrong}")
        return value
    parse_number.__name__ = "number"  # so that argparse says "invalid number value"
    return parse_number


def command_line(main):
    """Run a program's main(): a mistake of the user is one line on stderr and exit code 1, never a traceback."""
    program = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        text = f"{error.strerror}: {error.filename}" if getattr(error, "filename", None) else error
        if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error)):
            text = f"not enough memory ({one_line(error, 150)}); smaller numbers need less, such as --batch-size"
        elif isinstance(error, RuntimeError):
            raise  # a mistake of the program
        print(f"{program}: {one_line(text, 1000)}", file=sys.stderr)
        sys.exit(1)


def one_line(error, most=300):
    """What an error (or a string) says, in one line of at most `most` characters that a terminal can safely print."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:most])
