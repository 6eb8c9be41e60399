"""What can be chosen when training: the presets and the command line of `train.py`."""
import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import runs
from data import ORDERS
from mma import KINDS


@dataclass(frozen=True)
class Preset:
    """The size of a run: of the model, of the data and of the training."""
    width: int
    heads: int
    layers: int
    vit_layers: int
    scenes: int  # training scenes
    batch_size: int  # pictures in a batch of captions; fine-tuning takes half as many
    pretrain_steps: int
    sft_steps: int
    muon_lr: float  # for the matrices inside the blocks
    adam_lr: float  # for everything else
    photo_size: int = 64  # pixels a side of a photograph (--data coco), and of its patches
    photo_patch: int = 8
    questions: int = 4  # asked about each picture of a fine-tuning batch


PRESETS = {
    "tiny": Preset(width=128, heads=4, layers=4, vit_layers=3, scenes=20_000, batch_size=64,
                   pretrain_steps=550, sft_steps=800, muon_lr=0.02, adam_lr=0.006),
    "base": Preset(width=768, heads=12, layers=12, vit_layers=6, scenes=200_000, batch_size=256,
                   pretrain_steps=3000, sft_steps=3000, muon_lr=0.02, adam_lr=0.001,
                   photo_size=224, photo_patch=16),
}


DESCRIPTION = """Train a small multimodal LLM from nothing, in two stages.

pretrain: pictures -> captions, causal attention
sft:      pictures + questions -> answers, under --attention
"""


def path(text):
    """An argparse type: a path, which cannot be empty."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("a path is wanted, but there is none")
    return text


def new_file(text):
    """An argparse type: a file to be written; that it cannot be is seen now, not after hours of work."""
    there = Path(path(text)).exists()
    try:
        open(text, "ab").close()
        if not there:
            Path(text).unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written ({error.strerror})") from None
    return text


def folder_name(text):
    """An argparse type: the name of one folder, which leads nowhere else."""
    if not re.fullmatch(r"\w[\w.-]*", text) or len(text.encode()) > 200:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no name of one folder under runs/: take letters, digits, "
                                         "'-', '_' and '.', at most 200, and begin with a letter or a digit")
    return text


def parse(arguments=None):
    """The options; those that a preset sets are filled in from it."""
    p = argparse.ArgumentParser(prog="train.py", description=DESCRIPTION, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    steps, count, scenes = runs.number(int, 0), runs.number(int, 1), runs.number(int, 1, 2_000_000)
    p.add_argument("--attention", choices=KINDS, default="mma", help="mask of the fine-tuning stage (default: mma)")
    p.add_argument("--order", choices=ORDERS, default="image-first",
                   help="what stands first in a fine-tuning prompt, the picture or the question; dual alternates")
    p.add_argument("--preset", choices=PRESETS, default="tiny", help="tiny: two CPU cores (default); base: one GPU")
    p.add_argument("--seed", type=runs.number(int, 0, 2**63 - 1), default=0,
                   help="of the weights, the questions and the batches (default: 0)")
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: CUDA, then MPS, then CPU)")
    p.add_argument("--pretrained", type=path, metavar="FILE",
                   help="start fine-tuning from this checkpoint, skip pre-training")
    p.add_argument("--pretrain-steps", type=steps, help="steps of the first stage (default: the preset's)")
    p.add_argument("--sft-steps", type=steps, help="steps of the second stage (default: the preset's)")
    p.add_argument("--batch-size", type=count, help="pictures in a batch of captions; fine-tuning takes half as many, "
                                                    "with 4 questions each (default: the preset's)")
    p.add_argument("--scenes", type=scenes, help="number of training scenes (default: the preset's)")
    p.add_argument("--val-scenes", type=scenes, default=128, help="number of validation pictures (default: 128)")
    p.add_argument("--data", choices=("scenes", "coco"), default="scenes",
                   help="the picture world, drawn on the spot (default), or photographs in COCO's format")
    p.add_argument("--coco-dir", metavar="DIR", help="with --data coco: the folder with val2017/ and annotations/")
    p.add_argument("--limit", type=count, help="with --data coco: the first so many pictures of train and val")
    p.add_argument("--name", type=folder_name,
                   help="folder under runs/ (default: ATTENTION-seedSEED, numbered if it is taken)")
    p.add_argument("--log-every", type=count, default=20, help="steps between two losses in the log (default: 20)")
    p.add_argument("--eval-every", type=count, default=100, help="steps between two validations (default: 100)")
    p.add_argument("--save-every", type=runs.number(float, 0), default=60,
                   help="seconds between two checkpoints (default: 60)")
    p.add_argument("--resume", type=path, metavar="FOLDER", help="go on with an interrupted run; takes no other option")
    p.add_argument("--float32", action="store_true",
                   help="train in float32 also where the hardware is faster in bfloat16")
    p.add_argument("--compile", action="store_true", help="torch.compile: a slow start, then faster; for GPUs")
    p.add_argument("--flex", action="store_true",
                   help="FlexAttention's block mask instead of a dense one; for long rows on CUDA, with --compile")
    p.add_argument("--cache", type=path, default="cache", help="folder of the rendered scenes (default: cache)")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = p.parse_args(given)
    if options.resume and given not in (["--resume", options.resume], [f"--resume={options.resume}"]):
        p.error("--resume takes no other option: the run goes on with those that it was started with")
    if (options.data == "coco") != bool(options.coco_dir):
        p.error("--data coco and --coco-dir DIR go together")
    if options.data == "coco" and options.scenes:
        p.error("--scenes is the number of scenes of the picture world; with --data coco give --limit")
    if options.data == "scenes" and options.limit:
        p.error("--limit goes with --data coco; for the picture world give --scenes")
    for name in ("pretrain_steps", "sft_steps", "batch_size", "scenes"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(PRESETS[options.preset], name))
    return options
