"""Train the model from nothing in two stages. Read `data.py` before, `eval_pope.py` after.

    pretrain  pictures -> captions, causal attention: ViT and projector learn to see. The small
              decoder that writes the captions is thrown away.
    sft       pictures + questions -> answers, under --attention, the one place where MMA comes in:
              a new decoder learns to answer. One that writes captions already looks things up
              without the question, and learns more slowly to use it. (--keep-decoder keeps it, as
              --preset photos does: there it has learned to name what is asked for.)

`python train.py` runs both and leaves runs/NAME/ with model.pt, pretrained.pt (as it was before
fine-tuning) and metrics.jsonl.
"""
import json
import sys
import time
import zipfile
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from data import (EOS_ID, NO_YES, Dataset, Tokenizer, augment, digest, make_world, read_folder,
                  usual)
from mma import KINDS
from model import PATCH, Config, MultimodalGPT

LOG_EVERY = 25  # steps from one line of the log to the next; a run is saved only at such a step
EVAL_EVERY = 100  # steps from one validation to the next
VAL_SCENES = 128
VAL_TEXTS = 1500  # of a validation, at most
CAPTION_LAYERS = 2  # blocks of the decoder of pretrain: with four it learns captions later
WARMUP = 20  # steps in which the learning rate rises
COOLDOWN = 0.3  # last share of a stage, in which it falls to 0
SIZES = "width", "heads", "vit_layers", "image_size", "context"  # of both stages
OPTIONS = {  # name: (default, meaning)
    "attention": ("mma", "mask of fine-tuning"),
    "order": ("image-first", "of picture and question; text-twice: the question on both sides"),
    "data": (None, "folder of your own pictures, in place of the picture world"),
    "pretrained": (None, "fine-tune this pretrained.pt, in its sizes"),
    "resume": (None, "go on with this interrupted run, with its options"),
    "name": (None, "folder under runs/, in place of ATTENTION-seedSEED"),
    "device": (None, "cpu, cuda, mps, ... in place of the best there is"),
    "preset": ("tiny", "base: sizes for a GPU; photos: for photographs in --data"),
    "keep-decoder": (False, "one decoder in both stages, in place of a new one in sft"),
    "train-vit": (False, "train the ViT in fine-tuning, too"),
    "augment": (False, "flip and crop pictures at random in pretrain"),
    "seed": (0, "of the weights, the questions and the batches"),
    "width": (Config.width, "width of the ViT and of the decoder"),
    "heads": (Config.heads, "attention heads"),
    "layers": (Config.layers, "blocks of the decoder"),
    "vit-layers": (Config.vit_layers, "blocks of the ViT"),
    "image-size": (Config.image_size, "pixels a side of a picture"),
    "context": (Config.context, "longest row in tokens, image tokens included"),
    "scenes": (20_000, "training scenes of the picture world"),
    "batch-size": (64, "pictures in a batch of pretrain; sft takes a quarter of them"),
    "questions": (8, "questions about each picture of a batch"),
    "pretrain-steps": (1200, "steps of the first stage"),
    "sft-steps": (600, "steps of the second stage"),
    "pretrain-lr": (0.02, "highest learning rate of Muon in pretrain"),
    "sft-lr": (0.03, "the same in sft; 0.005 if image tokens do not see the question, 0.02 with "
               "--keep-decoder"),
    "save-every": (60.0, "seconds from one checkpoint to the next"),
}
PRESETS = {
    "tiny": {},
    "base": dict(width=512, heads=8, layers=8, vit_layers=6, image_size=128, batch_size=128,
                 pretrain_steps=2000, sft_steps=1500),
    # Photographs take longer to see.
    "photos": dict(augment=True, keep_decoder=True, layers=2, pretrain_steps=2400, sft_steps=600),
}
CHOICES = {"attention": KINDS, "order": ("image-first", "text-first", "text-twice"),
           "preset": PRESETS}


def parse(words=None):
    """The command line, or a list of its words -> a namespace of options."""
    parser = ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                            argument_default=SUPPRESS)
    for name, (default, meaning) in OPTIONS.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=meaning)
        elif default is None:
            parser.add_argument(f"--{name}", help=meaning)
        else:
            parser.add_argument(f"--{name}", type=type(default), choices=CHOICES.get(name),
                                help=f"{meaning} (default: {default})")
    given = vars(parser.parse_args(words))
    defaults = {name.replace("-", "_"): default for name, (default, _) in OPTIONS.items()}
    options = defaults | PRESETS[given.get("preset", "tiny")] | given
    if "sft_lr" not in given:
        options["sft_lr"] = best_rate(**options)
    if "resume" in given and given.keys() - {"resume", "device", "data"}:
        parser.error("--resume takes only --device and --data, where these have moved")
    fixed = [*SIZES, "layers"] if options["keep_decoder"] else SIZES
    if "pretrained" in given and given.keys() & {*fixed, "preset", "pretrain_steps"}:
        parser.error("--pretrained: the sizes are those of the file, and its pre-training is done")
    for name, default in defaults.items():
        least = 0 if name == "seed" or "steps" in name or type(default) is float else 1
        if type(default) in (int, float) and not least <= options[name] < 2 ** 31:
            parser.error(f"--{name.replace('_', '-')} must be from {least} to 2 ** 31")
    options = Namespace(**options)
    if options.width % options.heads or options.width < 4 * options.heads:
        parser.error("--width must be a multiple of --heads, and at least 4 times as large")
    if options.image_size % PATCH:
        parser.error(f"--image-size must be a multiple of {PATCH}")
    return options


def best_rate(attention, order, keep_decoder, **_):
    """The default of --sft-lr: the best one in the default sizes (results/*-rates.jsonl)."""
    if keep_decoder:
        return 0.02
    image_tokens_see_question = order != "image-first" or attention not in ("causal", "image")
    return 0.03 if image_tokens_see_question else 0.005


def pick_device(name=None):
    """A torch.device: the named one, or the best there is."""
    device = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.ones(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on the device
        raise SystemExit(f"--device {name}: not on this machine ({error!r:.100})")


def autocast(device):
    """bfloat16 where the hardware is faster in it: GPUs, and CPUs with AVX512-BF16."""
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum, made orthogonal before each step. As torch.optim.Muon,
    but in float32 where `autocast` is: on CPUs that know no bfloat16 a step takes a quarter."""

    @torch.no_grad()
    def step(self):
        [group] = self.param_groups
        with autocast(group["params"][0].device):
            for p in group["params"]:
                if p.grad is not None:  # else it is of a frozen ViT
                    self.update(p, group["lr"])

    def update(self, p, lr):
        if not self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum"].lerp_(p.grad, 0.05)
        x, tall = p.grad.lerp(momentum, 0.95), len(p) > p.shape[1]
        x = (x.T if tall else x) / x.norm().clamp(min=1e-7)
        for _ in range(5):  # Newton and Schulz: all singular values of x approach 1
            gram = x @ x.T
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
        p.add_(x.T if tall else x, alpha=-lr * max(1, len(p) / p.shape[1]) ** 0.5)


def make_optimizers(model, lr):
    """Muon for the matrices of all nn.Linear, AdamW for everything else."""
    matrices = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [
        Muon(matrices[::2], {"lr": lr}),  # two, to run side by side
        Muon(matrices[1::2], {"lr": lr}),
        torch.optim.AdamW(rest, 0.3 * lr, betas=(0.9, 0.95), weight_decay=0, fused=True),
    ]


def load(path, device="cpu", model_class=MultimodalGPT):
    """A checkpoint, or the run with it -> (model on `device`, Tokenizer, checkpoint dict).

    weights_only: the file runs no code. SystemExit, with one line, if it is damaged.
    """
    path = Path(path, "model.pt") if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise SystemExit(f"{path}: no such checkpoint; `python train.py` makes one")
    try:
        if zipfile.ZipFile(path).testzip():  # torch.load does not look at checksums
            raise ValueError("wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        tokenizer = Tokenizer(checkpoint["words"])
        config = Config(**checkpoint["config"] | {"vocab_size": len(tokenizer.pieces)})
        attention = KINDS[KINDS.index(checkpoint["attention"])]
        weights = dict(checkpoint["weights"])
    except Exception as error:  # damaged files raise nearly every kind there is
        raise SystemExit(f"{path}: damaged, or no checkpoint ({error!r:.200})")
    model = model_class(config, attention)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise SystemExit(f"{path}: damaged, or of another model ({error!r:.200})")
    return model.float().to(device).eval(), tokenizer, checkpoint


def answer(model, dataset, batch_size=256):
    """Let a model answer all prompts of a `data.Dataset`, greedily -> list of texts.

    In float32 everywhere: in bfloat16 some answers would be others.
    """
    device = model.token.weight.device
    longest = max([8, *(len(ids) for _, ids in dataset.rows)])  # a wrong answer is cut off there
    texts = []
    for start in range(0, len(dataset.rows), batch_size):
        indices = range(start, len(dataset.rows))[:batch_size]
        batch = dataset.batch(indices, device, prompts_only=True)
        new = model.generate(**batch, max_new_tokens=longest, end=EOS_ID)
        texts += [dataset.tokenizer.decode(ids) for ids in new.tolist()]
    return texts


def accuracy_by_kind(examples, answers):
    """How often answers are exactly right -> (dict of question kind -> share, kind -> number)."""
    asked = Counter(example.kind for example in examples)
    right = Counter(e.kind for e, text in zip(examples, answers) if text == e.answer)
    return {kind: right[kind] / asked[kind] for kind in asked}, dict(asked)


def percents(shares):
    """Shares of 1 in percent, and numbers as they are: "exist 97.5  color 88.0  n 250"."""
    texts = {name: x if type(x) is int else f"{100 * x:.1f}" for name, x in shares.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())


class Trainer:
    """One run: model, data, and where it stands. `train` goes on from there to the end."""
    model_class, dataset_class = MultimodalGPT, Dataset  # a subclass may name others

    def __init__(self, options, folder, model, tokenizer, parts):
        """parts: the two `data.Part`s to train and to validate on."""
        self.options = options
        self.folder = Path(folder)
        self.device = pick_device(options.device)
        self.model = model.to(self.device)
        self.tokenizer = tokenizer
        self.parts = parts
        self.digests = [digest(part) for part in parts]
        self.trained_on = [*parts[0].hashes]
        self.usual = usual(parts[0])
        self.log = []
        # Both stages' data at once: what is wrong with them is said before the first step.
        self.data_of = {"pretrain": self.datasets("captions"), "sft": self.datasets("questions")}
        # On a CPU two halves of a batch, and of the weights, side by side are 1.2 times as fast as
        # operations on all cores (two cores of an EPYC). Not more than two: then it does not matter
        # to the sum which of them ends first.
        self.threads = 2 if self.device.type == "cpu" else 1
        cores = max(1, torch.get_num_threads() // self.threads)  # of each thread
        self.pool = ThreadPoolExecutor(self.threads, "half", torch.set_num_threads, [cores])

    def datasets(self, texts):
        """"captions" or "questions" -> all to train on, and some of those that are held out."""
        train, held_out = (getattr(part, texts) for part in self.parts)
        held_out = Random(0).sample(held_out, min(VAL_TEXTS, len(held_out)))
        shared = self.tokenizer, self.model.config, self.options.order
        return [self.dataset_class(examples, part.images, *shared)
                for examples, part in zip((train, held_out), self.parts)]

    def begin(self, stage):
        """The start of a stage: its data, its mask, fresh optimizers."""
        options = self.options
        self.stage, self.step = stage, 0
        self.data, self.val = self.data_of[stage]
        if stage == "pretrain":
            self.steps, rate = options.pretrain_steps, options.pretrain_lr
            self.model.attention = "causal"
            self.batch_shape = options.batch_size, 1  # pictures, rows each
        else:
            self.steps, rate = options.sft_steps, options.sft_lr
            self.model.attention = options.attention
            self.batch_shape = max(1, options.batch_size // 4), options.questions
        # Short answers are a noisy signal that would undo what captions taught the ViT.
        self.model.vit.requires_grad_(stage == "pretrain" or options.train_vit)
        self.optimizers = make_optimizers(self.model, rate)
        lengths = [len(prompt + answer) for prompt, answer in self.data.rows]
        print(f"{stage}: {len(lengths):,} rows of {median(lengths or [0]):.0f} tokens about "
              f"{len(self.data.rows_of):,} pictures")

    def train(self):
        """Both stages, from where the run stands to the end."""
        if self.stage == "pretrain":
            self.run_stage("pretrained.pt")
            self.begin_sft()
            self.save()
        self.run_stage("model.pt")

    def begin_sft(self):
        """The start of the second stage: a new decoder, unless it is kept or learns no more."""
        if self.options.sft_steps and not self.options.keep_decoder:
            torch.manual_seed(self.options.seed)  # the same one for every attention
            self.model.new_decoder(self.options.layers, scale=0.5)  # it has fewer steps to learn
            self.model.to(self.device)
        self.begin("sft")

    def run_stage(self, name):
        """The steps that are left of the stage; then its checkpoint `name`."""
        losses, saved = [], time.monotonic()
        self.bar = tqdm(total=self.steps, initial=self.step, desc=self.stage)
        while self.step < self.steps:
            losses.append(self.train_step())
            self.step += 1
            self.bar.update()
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                self.write_log(losses)
                losses = []
                if time.monotonic() - saved >= self.options.save_every:
                    self.save()  # here alone, so that a resumed run has the same lines in its log
                    saved = time.monotonic()
        self.bar.close()
        self.save(name, finished=True)

    def train_step(self):
        """One batch, one update; returns the loss as a tensor."""
        seed = f"{self.options.seed} {self.step}"
        indices = self.data.sample(*self.batch_shape, seed)
        loss = self.backward(indices)
        rising = (self.step + 1) / WARMUP
        falling = (1 - self.step / self.steps) / COOLDOWN
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = min(1, rising, falling) * optimizer.defaults["lr"]
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        self.model.zero_grad()
        return loss

    def backward(self, indices):
        """Set the gradients of the loss, the mean over the generated tokens of a batch; returns it.
        In one thread this is `self.loss(self.data, indices).backward()`; else each thread takes
        some of the rows, and all gradients are added up."""
        tokens = self.data.generated_tokens(indices)

        def backward_some(rows):
            share = self.data.generated_tokens(rows) / tokens
            loss = self.loss(self.data, rows) * share
            loss.backward()
            return loss.detach()

        parts = np.array_split(indices, min(self.threads, len(indices)))
        return sum(self.pool.map(backward_some, parts))

    def loss(self, dataset, indices):
        batch = dataset.batch(indices, self.device)
        if self.options.augment and self.stage == "pretrain" and dataset is self.data:
            seed = f"{self.options.seed} {self.step} {indices[0]}"
            batch["images"] = augment(batch["images"], seed)
        with autocast(self.device):
            return self.model.loss(**batch)

    def write_log(self, losses):
        """Add a line to the log, which is part of the checkpoint; metrics.jsonl is a copy of it."""
        loss = torch.stack(losses).mean().item()
        if not np.isfinite(loss):
            raise SystemExit(f"the loss is {loss} at step {self.step}: lower --{self.stage}-lr")
        self.bar.set_postfix(loss=f"{loss:.3f}")
        line = {"stage": self.stage, "step": self.step, "loss": loss}
        if self.val.rows and (self.step % EVAL_EVERY == 0 or self.step == self.steps):
            line |= self.evaluate()
        self.log.append(line)
        lines = [json.dumps(line) + "\n" for line in self.log]
        (self.folder / "metrics.jsonl").write_text("".join(lines))

    def evaluate(self):
        """Show and return the loss of held-out texts, or the accuracy of each question kind."""
        if self.stage == "pretrain":
            with torch.no_grad():
                loss = self.loss(self.val, range(len(self.val.rows))[:VAL_SCENES]).item()
            self.bar.write(f"pretrain {self.step}: loss of held-out texts {loss:.3f}")
            return {"val_loss": loss}
        texts = answer(self.model, self.val)
        accuracy, asked = accuracy_by_kind(self.val.examples, texts)
        self.bar.write(f"sft {self.step}: {percents(accuracy)} (of {percents(asked)})")
        # And one question, always the same, that yes or no does not answer, if there is one.
        given = list(zip(self.val.examples, texts))
        e, text = next((pair for pair in given if pair[0].answer not in NO_YES), given[0])
        self.bar.write(f"    {e.prompt} {text} (right: {e.answer})")
        return {"accuracy": accuracy, "n": asked}

    def save(self, name="model.pt", finished=False):
        """Write a checkpoint; an unfinished one carries all that is needed to go on."""
        content = {
            "config": vars(self.model.config), "words": self.tokenizer.words,
            "attention": self.model.attention, "weights": self.model.state_dict(),
            "options": vars(self.options), "finished": finished, "stage": self.stage,
            "step": self.step, "log": self.log, "data": self.digests,
            "trained_on": self.trained_on, "usual": self.usual,
            "optimizers": [o.state_dict() for o in self.optimizers if not finished]}
        # The file `name` is at every moment the whole old or the whole new one.
        with open(self.folder / "model.tmp", "wb") as file:
            torch.save(content, file)
        Path(file.name).replace(self.folder / name)


def load_parts(options):
    """The two `data.Part`s to train and to validate on."""
    if options.data:
        return read_folder(options.data, options.image_size, options.seed)
    return [make_world("train", options.scenes, options.seed, options.image_size),
            make_world("val", VAL_SCENES, 0, options.image_size)]


def start(options, parts=None, trainer_class=Trainer):
    """A Trainer for a new run. parts: in place of those that the options name."""
    folder = Path("runs", options.name or f"{options.attention}-seed{options.seed}")
    leftover = folder.exists()  # a run may have ended before its first checkpoint
    taken = f"{folder} exists: give another --name, or go on with --resume {folder}"
    if (folder / "model.pt").exists():
        raise SystemExit(taken)
    if options.pretrained:
        model, tokenizer, checkpoint = load(options.pretrained, "cpu", trainer_class.model_class)
        if checkpoint["stage"] != "pretrain" or not checkpoint["finished"]:
            raise SystemExit(f"{options.pretrained}: no finished pre-training (a pretrained.pt)")
        options.pretrain_steps = 0
        vars(options).update({name: getattr(model.config, name) for name in SIZES})
        if options.keep_decoder:
            options.layers = model.config.layers
    train, val = parts or load_parts(options)
    if not train.captions:  # and no questions, which would be captions
        raise SystemExit(f"{options.data}: no captions, no questions, nothing to train on")
    if not train.questions:
        print("no questions: no fine-tuning")
        options.sft_steps = 0
    if not options.pretrained:
        examples = train.captions + train.questions
        tokenizer = Tokenizer.build(t for e in examples for t in (e.prompt or "", e.answer))
        sizes = {name: getattr(options, name) for name in SIZES}
        sizes["layers"] = options.layers if options.keep_decoder else CAPTION_LAYERS
        torch.manual_seed(options.seed)
        model = trainer_class.model_class(Config(len(tokenizer.pieces), **sizes))
    trainer = trainer_class(options, folder, model, tokenizer, (train, val))
    if options.pretrained:
        trainer.trained_on += checkpoint["trained_on"]
    if options.pretrain_steps:
        trainer.begin("pretrain")
    else:
        trainer.begin_sft()
    try:
        folder.mkdir(parents=True, exist_ok=leftover)
        if (folder / "model.pt").exists():  # of a run that was started meanwhile
            raise SystemExit(taken)
        trainer.save()  # from now on there is something to resume
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written ({error}): give another --name")
    return trainer


def resume(path, parts=None, trainer_class=Trainer, **moved):
    """A Trainer for a run that was interrupted, as it was when it was saved; see `start`.
    moved: a new `device`, or a new place of the `data`."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    model, tokenizer, checkpoint = load(folder / "model.pt", "cpu", trainer_class.model_class)
    moved = {name: str(value) for name, value in moved.items()}
    options = Namespace(**checkpoint["options"] | moved)
    trainer = trainer_class(options, folder, model, tokenizer, parts or load_parts(options))
    if trainer.digests != checkpoint["data"]:
        raise SystemExit(f"{folder}: its data ({options.data or 'picture world'}) have changed")
    trainer.begin(checkpoint["stage"])
    trainer.step, trainer.log = checkpoint["step"], checkpoint["log"]
    trainer.trained_on = checkpoint["trained_on"]
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizers"]):
        optimizer.load_state_dict(state)
    return trainer


def main():
    """The command line."""
    # No name of a file ends a run, and a log shows each line at once.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    options = parse()
    if options.resume:
        moved = {name: vars(options)[name] for name in ("device", "data") if vars(options)[name]}
        trainer = resume(options.resume, **moved)
    else:
        trainer = start(options)
    print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters on "
          f"{trainer.device}; a picture is {trainer.model.config.image_tokens} image tokens")
    try:
        trainer.train()
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; to go on: python train.py --resume {trainer.folder}")
    except OSError as error:
        raise SystemExit(f"{trainer.folder} cannot be written ({error})")
    print(f"ask it:      python -m extras.sample {trainer.folder}\n"
          f"measure it:  python eval_pope.py {trainer.folder}")


if __name__ == "__main__":
    main()
