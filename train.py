"""Train the model from nothing in two stages. Read `data.py` before, `eval_pope.py` after.

    pretrain  pictures -> captions, causal attention: ViT, projector and decoder learn to see
    sft       pictures + questions -> answers, under --attention: the one place where MMA comes in

`python train.py` runs both and leaves runs/NAME/ with model.pt, pretrained.pt (the same before
fine-tuning) and metrics.jsonl. `torchrun --nproc_per_node=N train.py` uses N processes.
"""
import json
import os
import time
import zipfile
from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import Dataset, make_world, read_folder
from mma import KINDS
from model import (PATCH, Config, MultimodalGPT, Tokenizer, answer, autocast, make_optimizers,
                   pick_device, save)

LOG_EVERY = 25  # steps between two losses in the log; the run is saved only there
EVAL_EVERY = 100  # steps between two validations
VAL_SCENES = 128
VAL_TEXTS = 1500  # of a validation, at most
RANK = int(os.environ.get("RANK", 0))  # under torchrun: the number of this process
WORLD = int(os.environ.get("WORLD_SIZE", 1))  # and how many there are
WARMUP = 20  # steps in which the learning rate rises
COOLDOWN = 0.3  # last share of a stage, in which it falls to 0
SIZES = ("width", "heads", "layers", "vit_layers", "image_size")
NUMBERS = {  # option: (default, meaning)
    "--seed": (0, "of the weights, the questions and the batches"),
    "--width": (128, "width of the ViT and of the decoder"),
    "--heads": (4, "attention heads"),
    "--layers": (4, "blocks of the decoder"),
    "--vit-layers": (3, "blocks of the ViT"),
    "--image-size": (64, "pixels a side of a picture"),
    "--scenes": (20_000, "training scenes of the picture world"),
    "--batch-size": (64, "pictures in a batch; sft: a quarter"),
    "--questions": (8, "questions about each picture of a batch"),
    "--pretrain-steps": (900, "steps of the first stage"),
    "--sft-steps": (700, "steps of the second stage"),
    "--pretrain-lr": (0.02, "highest rate of Muon in pretrain"),
    "--sft-lr": (0.02, "highest rate of Muon in sft"),
    "--save-every": (60.0, "seconds between two checkpoints"),
}
BASE = dict(width=512, heads=8, layers=8, vit_layers=6, image_size=128, batch_size=128,
            pretrain_steps=2000, sft_steps=1500)  # the numbers of --preset base


def parse(arguments=None):
    """The command line, or a list of its words -> a namespace of options."""
    parser = ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--attention", choices=KINDS, default="mma", help="mask of fine-tuning (default: mma)")
    add("--order", choices=("image-first", "text-first"), default="image-first",
        help="of picture and question in a row (default: image-first)")
    add("--data", metavar="FOLDER", help="your own pictures (default: the picture world)")
    add("--pretrained", metavar="FILE", help="fine-tune this pretrained.pt, in its sizes")
    add("--resume", metavar="RUN", help="go on with an interrupted run; takes no other option")
    add("--name", help="folder under runs/ (default: ATTENTION-seedSEED)")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add("--preset", choices=("tiny", "base"), default="tiny", help="base: sizes for a GPU")
    add("--train-vit", action="store_true", help="train the ViT in fine-tuning, too")
    for name, (default, meaning) in NUMBERS.items():
        add(name, type=type(default), default=default, help=meaning + " (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.resume and options != parser.parse_args(["--resume", options.resume]):
        parser.error("--resume takes no other option: a run goes on with those it was started with")
    if options.preset == "base":
        parser.set_defaults(**BASE)
        options = parser.parse_args(arguments)
    if min(options.scenes, options.batch_size, options.questions) < 1:
        parser.error("--scenes, --batch-size and --questions must be at least 1")
    if options.width % options.heads or options.image_size % PATCH:
        parser.error(f"--width must be a multiple of --heads, and --image-size of {PATCH}")
    return options


def load(path, device="cpu", model_class=MultimodalGPT):
    """A checkpoint, or the run with it -> (model on `device`, Tokenizer, checkpoint dict).

    weights_only: the file runs no code. SystemExit, with one line, if it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        path /= "model.pt"
    if not path.is_file():
        raise SystemExit(f"{path}: no such checkpoint; `python train.py` makes one")
    try:
        if zipfile.ZipFile(path).testzip():  # torch.load does not look at checksums
            raise ValueError("wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        tokenizer = Tokenizer(checkpoint["words"])
        config = checkpoint["config"] | {"vocab_size": len(tokenizer.pieces)}
        with torch.device("meta"):  # takes no memory: the weights come from the file
            model = model_class(Config(**config))
        attention = checkpoint["options"]["attention"]
        if attention not in KINDS:
            raise ValueError("unknown attention")
        if checkpoint["stage"] == "sft":  # else it is causal
            model.attention = attention
        model.load_state_dict(checkpoint["weights"], assign=True)
    except Exception as error:  # damaged files raise nearly every kind there is
        raise SystemExit(f"{path}: damaged, or no checkpoint of this model ({error!r:.200})")
    return model.to(device).eval(), tokenizer, checkpoint


def accuracy_by_kind(examples, answers):
    """-> dict of question kind -> share of answers that are exactly right."""
    right = {}
    for example, given in zip(examples, answers):
        right.setdefault(example.kind, []).append(given == example.answer)
    return {kind: fmean(found) for kind, found in right.items()}


def percents(shares):
    """dict of name -> share, as text: "exist 97.5  color 88.0"."""
    texts = [f"{name} {100 * share:.1f}" for name, share in shares.items()]
    return "  ".join(texts)


class Trainer:
    """One run: model, data, and where it stands. `train` goes on from there to the end."""
    model_class, dataset_class = MultimodalGPT, Dataset  # a subclass may name others

    def __init__(self, options, folder, model, tokenizer, splits):
        """splits: the two `data.Split`s to train and to validate on."""
        self.options = options
        self.folder = Path(folder)
        self.splits = splits
        self.device = pick_device(options.device)
        self.model = model.to(self.device)
        self.tokenizer = tokenizer
        self.log = []
        # On a CPU two halves of a batch side by side are faster than operations on all cores.
        # Not more than two: then it does not matter to the sum which of them ends first.
        self.threads = 2 if self.device.type == "cpu" and WORLD == 1 else 1
        cores = max(1, torch.get_num_threads() // self.threads)  # of each thread
        self.pool = ThreadPoolExecutor(self.threads, "half", torch.set_num_threads, [cores])

    def begin(self, stage):
        """The start of a stage: its data, its mask, fresh optimizers."""
        options = self.options
        train, val = self.splits
        self.stage, self.step = stage, 0
        if stage == "pretrain":
            self.steps, rate = options.pretrain_steps, options.pretrain_lr
            self.batch_shape = options.batch_size, 1  # pictures, and rows about each
            examples, held_out = train.captions, val.captions
            self.model.attention = "causal"
        else:
            self.steps, rate = options.sft_steps, options.sft_lr
            self.batch_shape = max(1, options.batch_size // 4), options.questions
            examples, held_out = train.questions, val.questions
            self.model.attention = options.attention
        shared = self.tokenizer, self.model.config, options.order
        self.data = self.dataset_class(examples, train.images, *shared)
        held_out = Random(0).sample(held_out, min(VAL_TEXTS, len(held_out)))
        self.val = self.dataset_class(held_out, val.images, *shared)
        # Short answers are a noisy signal that would undo what captions taught the ViT.
        self.model.vit.requires_grad_(stage == "pretrain" or options.train_vit)
        self.optimizers = make_optimizers(self.model, rate)

    def train(self):
        """Both stages, from where the run stands to the end."""
        if self.stage == "pretrain":
            self.run_stage("pretrained.pt")
            self.begin("sft")
            self.save()
        self.run_stage("model.pt")

    def run_stage(self, result):
        """The steps that are left of the stage. A run is saved only where its log is written."""
        losses, saved = [], time.monotonic()
        self.bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, disable=RANK > 0)
        while self.step < self.steps:
            losses.append(self.train_step())
            self.step += 1
            self.bar.update()
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                self.write_log(losses)
                losses = []
                if time.monotonic() - saved >= self.options.save_every:
                    self.save()
                    saved = time.monotonic()
        self.bar.close()
        self.save(result, finished=True)

    def train_step(self):
        """One batch, one update; returns the loss as a tensor."""
        seed = f"{self.options.seed} {self.step}"
        indices = self.data.sample(*self.batch_shape, seed)
        loss = self.backward(indices)
        rising = (self.step + 1) / WARMUP
        falling = (1 - self.step / self.steps) / COOLDOWN
        factor = min(1, rising, falling)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = factor * optimizer.defaults["lr"]
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        self.model.zero_grad()
        return loss

    def backward(self, indices):
        """Set the gradients of the loss, the mean over the generated tokens of a batch; returns it.
        Each process and each thread takes some rows, and the gradients of all are added up."""
        tokens = self.data.generated_tokens(indices)

        def backward_some(rows):
            loss = self.loss(self.data, rows) * (self.data.generated_tokens(rows) / tokens)
            loss.backward()
            return loss.detach()

        mine = np.array_split(indices, WORLD)[RANK]
        parts = np.array_split(mine, min(self.threads, len(mine)))
        loss = sum(self.pool.map(backward_some, parts))
        if WORLD > 1:
            gradients = [p.grad for p in self.model.parameters() if p.requires_grad]
            for tensor in (loss, *gradients):
                dist.all_reduce(tensor)
        return loss

    def loss(self, dataset, indices):
        with autocast(self.device):
            return self.model(**dataset.batch(indices, self.device), with_loss=True)[1]

    def write_log(self, losses):
        """Add a line to the log, which is part of the checkpoint; metrics.jsonl is a copy of it."""
        loss = torch.stack(losses).mean()
        if not loss.isfinite():
            raise SystemExit(f"the loss is {loss} at step {self.step}: lower --{self.stage}-lr")
        if RANK > 0:
            return
        loss = loss.item()
        self.bar.set_postfix(loss=f"{loss:.3f}")
        line = {"stage": self.stage, "step": self.step, "loss": loss}
        if self.step % EVAL_EVERY == 0 or self.step == self.steps:
            line |= self.evaluate()
        self.log.append(line)
        lines = [json.dumps(line) + "\n" for line in self.log]
        (self.folder / "metrics.jsonl").write_text("".join(lines))

    def evaluate(self):
        """Show and return the loss of held-out captions, or the accuracy of each question kind."""
        if self.stage == "pretrain" and self.val.rows:
            rows = range(len(self.val.rows))[:VAL_SCENES]
            with torch.no_grad():
                loss = self.loss(self.val, rows).item()
            self.bar.write(f"pretrain {self.step}: loss of held-out captions {loss:.3f}")
            return {"val_loss": loss}
        accuracy = accuracy_by_kind(self.val.examples, answer(self.model, self.val))
        self.bar.write(f"{self.stage} {self.step}: {percents(accuracy)}")
        return {"accuracy": accuracy}

    def save(self, name="model.pt", finished=False):
        """Write a checkpoint; an unfinished one carries all that is needed to go on."""
        if RANK > 0:
            return
        optimizers = [] if finished else self.optimizers
        save(self.folder / name, {
            "config": vars(self.model.config), "words": self.tokenizer.words,
            "weights": self.model.state_dict(), "options": vars(self.options),
            "finished": finished, "stage": self.stage, "step": self.step,
            "log": self.log, "optimizers": [o.state_dict() for o in optimizers]})


def load_splits(options):
    """The two `data.Split`s to train and to validate on."""
    if options.data:
        return read_folder(options.data, options.image_size, options.seed)
    train = make_world("train", options.scenes, options.seed, options.image_size)
    return train, make_world("val", VAL_SCENES, 0, options.image_size)


def start(options, splits=None, trainer_class=Trainer):
    """A Trainer for a new run. splits: in place of those that the options name."""
    folder = Path("runs", options.name or f"{options.attention}-seed{options.seed}")
    if (folder / "model.pt").exists() and RANK == 0:
        raise SystemExit(f"{folder} exists: give another --name, or go on with --resume {folder}")
    if options.pretrained:
        model, tokenizer, _ = load(options.pretrained, model_class=trainer_class.model_class)
        options.pretrain_steps = 0
        for name in SIZES:
            setattr(options, name, getattr(model.config, name))
    train, val = splits or load_splits(options)
    if not train.captions:  # and no questions, which would be captions
        raise SystemExit(f"{options.data}: no captions, no questions, nothing to train on")
    if not train.questions:
        print("no questions: no fine-tuning")
        options.sft_steps = 0
    if not options.pretrained:
        texts = []
        for example in train.captions + train.questions:
            texts += [example.prompt or "", example.answer]
        tokenizer = Tokenizer.build(texts)
        sizes = {name: getattr(options, name) for name in SIZES}
        torch.manual_seed(options.seed)
        model = trainer_class.model_class(Config(len(tokenizer.pieces), **sizes))
    trainer = trainer_class(options, folder, model, tokenizer, (train, val))
    trainer.begin("pretrain" if options.pretrain_steps else "sft")
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save()  # from now on there is something to resume
    return trainer


def resume(folder, splits=None, trainer_class=Trainer):
    """A Trainer for a run that was interrupted, as it was when it was saved; see `start`."""
    model, tokenizer, checkpoint = load(Path(folder, "model.pt"), "cpu", trainer_class.model_class)
    options = Namespace(**checkpoint["options"])
    trainer = trainer_class(options, folder, model, tokenizer, splits or load_splits(options))
    trainer.begin(checkpoint["stage"])
    trainer.step, trainer.log = checkpoint["step"], checkpoint["log"]
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizers"]):
        optimizer.load_state_dict(state)
    return trainer


def main():
    """The command line."""
    options = parse()
    if WORLD > 1:
        if pick_device(options.device).type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
    trainer = resume(options.resume) if options.resume else start(options)
    try:
        trainer.train()
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; to go on: python train.py --resume {trainer.folder}")
    if RANK == 0:
        print(f"next: python eval_pope.py {trainer.folder}", flush=True)
    if WORLD > 1:
        os._exit(0)  # threads of torch that still hold a tensor would abort a normal end


if __name__ == "__main__":
    main()
