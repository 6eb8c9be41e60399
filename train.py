"""Train the model from nothing in two stages. Read `data.py` before, `eval_pope.py` after.

    pretrain  pictures -> captions, causal attention: ViT, projector and decoder learn to see
    sft       pictures + questions -> answers, under --attention: the one place where MMA comes in

`python train.py` runs both and leaves runs/NAME/ with model.pt, pretrained.pt (the same before
fine-tuning) and metrics.jsonl. `torchrun --nproc_per_node=N train.py` shares each batch between N
processes; but for rounding, the result stays the same.
"""
import argparse
import json
import math
import os
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import ORDERS, Dataset, make_world, read_folder
from mma import KINDS
from model import (Config, MultimodalGPT, Tokenizer, answer, autocast, make_optimizers, pick_device,
                   threads)

STAGES = ("pretrain", "sft")
LOG_EVERY = 20  # steps between two losses in the log; the run is saved only there
EVAL_EVERY = 100  # steps between two validations
VAL_SCENES = 128
VAL = 1000  # questions of a validation, at most
ADAM_SHARE = 0.3  # Adam's learning rate as a share of Muon's
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # of torchrun
WARMUP = 20  # steps in which the learning rate rises
SIZES = ("width", "heads", "layers", "vit_layers", "image_size", "patch_size", "window")
PRESETS = {
    "tiny": {},  # what the options below say: for two CPU cores
    "base": dict(width=768, heads=12, layers=12, vit_layers=6, image_size=192, batch_size=256,
                 pretrain_steps=3000, sft_steps=3000),
}


def at_least(least, number=int):
    """An argparse type: a number that is not below `least`."""
    def parse_number(text):
        if number(text) >= least:
            return number(text)
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return parse_number


def parse(arguments=None):
    """The command line -> a namespace of options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add, count, share = parser.add_argument, at_least(1), at_least(0, float)
    add("--attention", choices=KINDS, default="mma", help="mask of fine-tuning")
    add("--order", choices=ORDERS, default="image-first", help="of picture and question in a row")
    add("--data", metavar="FOLDER", help="your own pictures (default: the picture world)")
    add("--pretrained", metavar="FILE", help="fine-tune this pretrained.pt of another run")
    add("--resume", metavar="RUN", help="go on with an interrupted run; takes no other option")
    add("--name", help="folder under runs/ (default: ATTENTION-seedSEED)")
    add("--seed", type=at_least(0), default=0, help="of the weights, the questions and the batches")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add("--preset", choices=PRESETS, default="tiny", help="sizes for two CPU cores, or one GPU")
    add("--width", type=count, default=128, help="width of the ViT and of the decoder")
    add("--heads", type=count, default=4, help="attention heads")
    add("--layers", type=count, default=4, help="blocks of the decoder")
    add("--vit-layers", type=count, default=3, help="blocks of the ViT")
    add("--image-size", type=count, default=64, help="pixels a side of a picture")
    add("--patch-size", type=count, default=16, help="pixels a side that become one image token")
    add("--window", type=count, default=32, help="pixels a side that are seen to make it")
    add("--scenes", type=count, default=20_000, help="training scenes of the picture world")
    add("--batch-size", type=at_least(2), default=64, help="pictures in a batch, half of it in sft")
    add("--questions", type=count, default=4, help="questions about each picture of a batch")
    add("--pretrain-steps", type=at_least(0), default=750, help="steps of the first stage")
    add("--sft-steps", type=at_least(0), default=800, help="steps of the second stage")
    add("--pretrain-lr", type=share, default=0.02, help="highest learning rate of Muon in pretrain")
    add("--sft-lr", type=share, default=0.01, help="highest learning rate of Muon in sft")
    add("--cooldown", type=at_least(0.01, float), default=0.3,
        help="last share of a stage, in which the learning rate falls to 0")
    add("--train-vit", action="store_true", help="train the ViT in fine-tuning, too")
    add("--float32", action="store_true", help="no bfloat16, even where that is faster")
    add("--save-every", type=share, default=60, help="seconds between two checkpoints")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    resume = options.resume
    if resume and given not in (["--resume", resume], [f"--resume={resume}"]):
        parser.error("--resume takes no other option: a run goes on with those it was started with")
    parser.set_defaults(**PRESETS[options.preset])
    return parser.parse_args(arguments)


# Checkpoints.

def save(path, checkpoint):
    """Write a dict so that `path` is at every moment the whole old or the whole new file."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # on the disk before it gets its name
    os.replace(temporary, path)


def load(path, device="cpu"):
    """A checkpoint, or the run with it -> (MultimodalGPT on `device`, Tokenizer, checkpoint dict).

    weights_only: the file runs no code. SystemExit, with one line, if it is no whole checkpoint.
    """
    path = Path(path)
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"{path}: no such checkpoint; `python train.py` makes one")
    try:
        if damaged := zipfile.ZipFile(path).testzip():  # torch.load does not look at checksums
            raise ValueError(f"wrong checksum of {damaged}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):  # takes no memory: the weights come from the file
            model = MultimodalGPT(Config(**checkpoint["config"]))
        model.attention = KINDS[KINDS.index(checkpoint["options"]["attention"])]
        model.load_state_dict(checkpoint["weights"], assign=True)
        tokenizer = Tokenizer(checkpoint["words"])
        if len(tokenizer.pieces) != model.config.vocab_size:
            raise ValueError("vocabulary and configuration differ")
    except Exception as error:  # damaged files raise nearly every kind there is
        reason = repr(str(error))[:200]
        raise SystemExit(f"{path}: damaged, or no checkpoint of this program ({reason})")
    return model.to(device).eval(), tokenizer, checkpoint


# Training.

class Batches:
    """Which rows form the batch at any step: a pure function of (seed, step).

    There is no state to save, so a resumed run goes on with the very same batches. As in nanoGPT
    there are no epochs: each batch is drawn anew.
    """

    def __init__(self, dataset, pictures, per_picture, seed):
        """pictures: how many there are in a batch; per_picture: rows about each, at most."""
        self.pictures, self.per_picture, self.seed = pictures, per_picture, seed
        by_picture = {}
        for i, example in enumerate(dataset.examples):
            by_picture.setdefault(example.picture, []).append(i)
        self.by_picture = list(by_picture.values())

    def __getitem__(self, step):
        """step -> list of indices into the dataset's rows; those about a picture are neighbors."""
        rng, rows = Random(f"{self.seed} {step}"), []
        for own in rng.sample(self.by_picture, min(self.pictures, len(self.by_picture))):
            rows += rng.sample(own, min(self.per_picture, len(own)))
        return rows


def accuracy_by_kind(examples, answers):
    """-> dict of question kind -> share of answers that are exactly right."""
    right = {}
    for example, given in zip(examples, answers):
        right.setdefault(example.kind, []).append(given == example.answer)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


class Trainer:
    """One run: model, data, and where it stands. `train` goes on from there to the end."""

    def __init__(self, options, folder, model, tokenizer, splits):
        """splits: the two `data.Split`s to train and to validate on."""
        self.options, self.folder, self.splits = options, Path(folder), splits
        self.device = pick_device(options.device)
        self.model, self.tokenizer = model.to(self.device), tokenizer
        self.log, self.pool = [], threads(self.device)
        # A batch is halved between two threads, exactly two: a gradient a + b is the same number
        # as b + a, whichever half comes first, so the same seed gives the same run.
        self.halves = 2 if self.device.type == "cpu" and WORLD == 1 else 1

    def begin(self, stage):
        """The start of a stage: its data, its mask, fresh optimizers."""
        options, pretrain = self.options, stage == "pretrain"
        self.stage, self.step = stage, 0
        self.steps = options.pretrain_steps if pretrain else options.sft_steps
        self.rate = options.pretrain_lr if pretrain else options.sft_lr
        train, val = [split.captions if pretrain else split.questions for split in self.splits]
        shared = self.tokenizer, self.model.config
        self.data = Dataset(train, self.splits[0].images, *shared, options.order)
        asked = options.order.replace("dual", "image-first")
        self.val = Dataset(val[:VAL], self.splits[1].images, *shared, asked)
        pictures = options.batch_size if pretrain else options.batch_size // 2
        per_picture = 1 if pretrain else options.questions
        self.batches = Batches(self.data, pictures, per_picture, options.seed)
        self.model.attention = "causal" if pretrain else options.attention
        # One or two answer tokens a row are a noisy signal: they would undo what the captions
        # taught the ViT. LLaVA freezes its vision encoder too.
        self.model.vit.requires_grad_(pretrain or options.train_vit)
        self.parallel = DistributedDataParallel(self.model) if WORLD > 1 else self.model
        self.optimizers = make_optimizers(self.model, self.rate, ADAM_SHARE * self.rate)

    def train(self):
        """Both stages, from where the run stands to the end."""
        if self.stage == "pretrain":
            self.run_stage()
            self.save("pretrained.pt", finished=True)
            self.begin("sft")
        self.run_stage()
        self.save(finished=True)

    def run_stage(self):
        """The steps that are left of the stage. A run is saved only where its log is written."""
        losses, saved = [], time.monotonic()
        bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, disable=RANK > 0)
        while self.step < self.steps:
            losses.append(self.train_step())
            self.step += 1
            bar.update()
            last = self.step == self.steps
            if self.step % LOG_EVERY == 0 or last:
                self.write_log(losses, bar)
                losses = []
                if time.monotonic() - saved >= self.options.save_every or last:
                    self.save()
                    saved = time.monotonic()
        bar.close()

    def train_step(self):
        """One batch, one update; returns the loss as a tensor, without waiting for the device."""
        indices = self.batches[self.step]
        tokens = self.data.generated_tokens(indices)
        mine = np.array_split(indices, WORLD)[RANK]
        halves = [half for half in np.array_split(mine, self.halves) if len(half)]
        losses = list(self.pool.map(lambda half: self.backward(half, tokens), halves))
        left = 1 - self.step / self.steps
        factor = min(1, (self.step + 1) / WARMUP, left / self.options.cooldown)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = factor * optimizer.defaults["lr"]
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return sum(losses)

    def backward(self, indices, tokens):
        """Add the gradients of some rows of a batch; returns their share of its loss.

        The loss is the mean over the generated `tokens` of the whole batch, however that is shared:
        each part is weighed by its own number of them.
        """
        batch = {name: x.to(self.device) for name, x in self.data.batch(indices).items()}
        with autocast(self.device, not self.options.float32):
            _, loss = self.parallel(**batch)
        loss = loss * (self.data.generated_tokens(indices) / tokens)
        (loss * WORLD).backward()  # DistributedDataParallel averages the processes' gradients
        return loss.detach()

    def write_log(self, losses, bar):
        """Add a line to the log, which is part of the checkpoint; metrics.jsonl is a copy of it."""
        mean = torch.stack(losses).mean()
        if WORLD > 1:
            dist.all_reduce(mean)
        loss, rate = mean.item(), self.optimizers[0].param_groups[0]["lr"]
        if not math.isfinite(loss):
            raise SystemExit(f"the loss is {loss} at step {self.step} of {self.stage}, learning "
                             f"rate {rate:.2g}; the checkpoint of an earlier step stays")
        bar.set_postfix(loss=f"{loss:.3f}")
        line = {"stage": self.stage, "step": self.step, "loss": loss, "lr": rate}
        if RANK == 0:
            if self.step % EVAL_EVERY == 0 or self.step == self.steps:
                line["accuracy"] = self.evaluate(bar)
            self.log.append(line)
            lines = [json.dumps(line) + "\n" for line in self.log]
            (self.folder / "metrics.jsonl").write_text("".join(lines))

    def evaluate(self, bar):
        """Show and return the accuracy of each question kind on held-out pictures."""
        answers = answer(self.model, self.val, 64 if self.stage == "pretrain" else 8)
        accuracy = accuracy_by_kind(self.val.examples, answers)
        shares = "  ".join(f"{kind} {100 * share:.1f}%" for kind, share in accuracy.items())
        bar.write(f"{self.stage} {self.step}: {shares}")
        if answers:
            shown = self.step // EVAL_EVERY % len(answers)
            bar.write(f"    {self.val.examples[shown].prompt or 'caption:'} -> {answers[shown]}")
        return accuracy

    def save(self, name="model.pt", finished=False):
        """Write a checkpoint; an unfinished one carries all that is needed to go on."""
        optimizers = [] if finished else [optimizer.state_dict() for optimizer in self.optimizers]
        if RANK == 0:
            save(self.folder / name, {
                "config": asdict(self.model.config), "words": self.tokenizer.words,
                "weights": self.model.state_dict(), "options": vars(self.options),
                "finished": finished, "stage": self.stage, "step": self.step, "log": self.log,
                "optimizers": optimizers})


def load_splits(options):
    """The two Splits to train and to validate on."""
    if options.data:
        return read_folder(options.data, options.image_size, options.seed)
    return (make_world("train", options.scenes, options.seed, options.image_size),
            make_world("val", VAL_SCENES, 0, options.image_size))


def start(options):
    """A Trainer for a new run."""
    folder = Path("runs") / (options.name or f"{options.attention}-seed{options.seed}")
    if (folder / "model.pt").exists() and RANK == 0:
        raise SystemExit(f"{folder} exists: give another --name, or go on with --resume {folder}")
    splits = train, _ = load_splits(options)
    if not train.captions:
        print("no captions: no pre-training, and the ViT is trained in fine-tuning")
        options.pretrain_steps, options.train_vit = 0, True
    if not train.questions:
        print("no questions: no fine-tuning")
        options.sft_steps = 0
    if options.pretrained:
        options.pretrain_steps = 0
        model, tokenizer, _ = load(options.pretrained)
        if model.config.image_size != options.image_size:
            raise SystemExit(f"--pretrained {options.pretrained}: it sees pictures of "
                             f"{model.config.image_size} pixels, not {options.image_size}")
    else:
        examples = train.captions + train.questions
        tokenizer = Tokenizer.build(text for e in examples for text in (e.prompt or "", e.answer))
        sizes = {name: getattr(options, name) for name in SIZES}
        torch.manual_seed(options.seed)
        try:
            model = MultimodalGPT(Config(len(tokenizer.pieces), **sizes))
        except ValueError as error:
            raise SystemExit(f"these sizes do not fit together: {error}")
    trainer = Trainer(options, folder, model, tokenizer, splits)
    trainer.begin("pretrain" if options.pretrain_steps else "sft")
    if RANK == 0:
        folder.mkdir(parents=True, exist_ok=True)
    trainer.save()  # from now on there is something to resume
    return trainer


def resume(folder):
    """A Trainer for a run that was interrupted, as it was when it was saved."""
    model, tokenizer, checkpoint = load(folder)
    if checkpoint["finished"]:
        raise SystemExit(f"{folder} is finished; next: python eval_pope.py {folder}")
    options = argparse.Namespace(**checkpoint["options"])
    trainer = Trainer(options, folder, model, tokenizer, load_splits(options))
    trainer.begin(checkpoint["stage"])
    trainer.step, trainer.log = checkpoint["step"], checkpoint["log"]
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return trainer


def main():
    """The command line."""
    options = parse()
    if WORLD > 1:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
    trainer = resume(options.resume) if options.resume else start(options)
    try:
        trainer.train()
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; to go on: python train.py --resume {trainer.folder}")
    if RANK == 0:
        print(f"\nnext: python eval_pope.py {trainer.folder}")
    if WORLD > 1:
        del trainer  # DistributedDataParallel must be gone before its group
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
