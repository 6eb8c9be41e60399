"""What can be chosen when training: the presets and the command line of `train.py`."""
import argparse
import sys
from dataclasses import dataclass

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
    questions: int = 4  # asked about each picture of a fine-tuning batch


PRESETS = {
    "tiny": Preset(width=128, heads=4, layers=4, vit_layers=3, scenes=20_000, batch_size=64,
                   pretrain_steps=550, sft_steps=800, muon_lr=0.02, adam_lr=0.006),
    "base": Preset(width=768, heads=12, layers=12, vit_layers=6, scenes=200_000, batch_size=256,
                   pretrain_steps=3000, sft_steps=3000, muon_lr=0.02, adam_lr=0.001),
}


DESCRIPTION = """Train a small multimodal LLM from nothing, in two stages.

pretrain: pictures -> captions, causal attention
sft:      pictures + questions -> answers, under --attention
"""


def parse(arguments=None):
    """The options; those that a preset sets are filled in from it."""
    p = argparse.ArgumentParser(prog="train.py", description=DESCRIPTION,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    steps, count = runs.number(int, 0), runs.number(int, 1)
    p.add_argument("--attention", choices=KINDS, default="mma", help="mask of the fine-tuning stage (default: mma)")
    p.add_argument("--order", choices=ORDERS, default="image-first",
                   help="what stands first in a fine-tuning prompt, the picture or the question; dual alternates")
    p.add_argument("--preset", choices=PRESETS, default="tiny", help="tiny: two CPU cores (default); base: one GPU")
    p.add_argument("--seed", type=steps, default=0, help="of the weights, the questions and the batches (default: 0)")
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: CUDA, then MPS, then CPU)")
    p.add_argument("--pretrained", metavar="FILE", help="start fine-tuning from this checkpoint, skip pre-training")
    p.add_argument("--pretrain-steps", type=steps, help="steps of the first stage (default: the preset's)")
    p.add_argument("--sft-steps", type=steps, help="steps of the second stage (default: the preset's)")
    p.add_argument("--batch-size", type=count, help="pictures in a batch of captions; fine-tuning takes half as many, "
                                                    "with 4 questions each (default: the preset's)")
    p.add_argument("--scenes", type=count, help="number of training scenes (default: the preset's)")
    p.add_argument("--val-scenes", type=count, default=128, help="number of validation scenes (default: 128)")
    p.add_argument("--name", help="folder under runs/ (default: ATTENTION-seedSEED, numbered if it is taken)")
    p.add_argument("--log-every", type=count, default=20, help="steps between two losses in the log (default: 20)")
    p.add_argument("--eval-every", type=count, default=100, help="steps between two validations (default: 100)")
    p.add_argument("--save-every", type=runs.number(float, 0), default=60,
                   help="seconds between two checkpoints (default: 60)")
    p.add_argument("--resume", metavar="FOLDER", help="go on with an interrupted run; takes no other option")
    p.add_argument("--float32", action="store_true",
                   help="train in float32 also where the hardware is faster in bfloat16")
    p.add_argument("--compile", action="store_true", help="torch.compile: a slow start, then faster; for GPUs")
    p.add_argument("--flex", action="store_true",
                   help="FlexAttention's block mask instead of a dense one; for long rows on CUDA, with --compile")
    p.add_argument("--cache", default="cache", help="folder of the rendered scenes (default: cache)")
    given = sys.argv[1:] if arguments is None else arguments
    options = p.parse_args(given)
    if options.resume and len(given) != (1 if given[0].startswith("--resume=") else 2):
        p.error("--resume takes no other option: the run goes on with those that it was started with")
    for name in ("pretrain_steps", "sft_steps", "batch_size", "scenes"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(PRESETS[options.preset], name))
    return options
