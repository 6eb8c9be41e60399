"""Train the model from nothing in two stages. Read `data.py` before, `eval_pope.py` after;
the options and presets stand in `options.py`.

    pretrain  pictures -> captions, causal attention: the ViT, the projector and the decoder learn to see
    sft       pictures + questions -> answers, under --attention: the one place where MMA comes in

`python train.py` runs both and leaves runs/<name>/ with model.pt, pretrained.pt and metrics.jsonl.
`torchrun --nproc_per_node=N train.py` shares each batch between N processes; but for rounding, the result
stays the same.
"""
import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import runs
from coco import fitting, load_coco
from data import Batches, Examples, Tokenizer, scene_items
from eval_pope import accuracy_by_kind, answer, evaluation_order
from model import Config, MultimodalGPT, make_optimizers
from options import PRESETS, parse
from pope import build, pope_items

STAGES = ("pretrain", "sft")
WARMUP = 20  # steps
PRETRAIN_ATTENTION = "causal"  # MMA would open nothing: there is no question yet (`compare.py` shows what would leak)
FREEZE_VIT = True  # in fine-tuning
COOLDOWN = 0.3  # last share of a stage, in which the learning rate falls to 0; plateaus want it high till then


class Trainer:
    """One run: data, model, optimizers, and where it stands. `train` goes on from there to the end."""

    def __init__(self, options, folder, device, resume_from=None):
        """options: the namespace of `parse`; resume_from: a checkpoint dict with "training", or None."""
        self.options, self.folder, self.device = options, Path(folder), device
        self.rank, self.world = rank(), dist.get_world_size() if dist.is_initialized() else 1
        self.preset = preset = PRESETS[options.preset]
        model = None
        if not 2 * self.world <= options.batch_size <= (options.scenes if options.data == "scenes" else 10**9):
            raise ValueError(f"--batch-size {options.batch_size}: must be {2 * self.world} or more here, and not more "
                             f"than there are pictures (--scenes {options.scenes})")
        if resume_from:
            model, self.tokenizer, _ = runs.load(self.folder)
        elif options.pretrained:
            try:
                model, self.tokenizer, checkpoint = runs.load(options.pretrained)
            except (ValueError, OSError) as error:
                raise ValueError(f"--pretrained: {error}") from None
            if checkpoint["stage"] != "pretrain" or checkpoint["training"]:
                raise ValueError(f"--pretrained {options.pretrained}: that model is not fresh from pre-training; "
                                 "give the file pretrained.pt of a run")
        if self.rank:
            dist.barrier()  # until the first process has drawn or decoded the pictures
        data, val = material(options)
        if self.world > 1 and not self.rank:
            dist.barrier()
        if model is None:
            self.tokenizer = Tokenizer.build(text for i in data.captions + data.questions for text in (i.prompt or "", i.answer))
            torch.manual_seed(options.seed)
            model = MultimodalGPT(Config(vocab_size=len(self.tokenizer), width=preset.width, heads=preset.heads,
                                         layers=preset.layers, vit_layers=preset.vit_layers,
                                         image_size=data.images.shape[1],
                                         patch_size=preset.photo_patch if options.data == "coco" else Config.patch_size))
        if model.config.image_size != data.images.shape[1]:
            raise ValueError(f"--pretrained {options.pretrained}: that model sees pictures of {model.config.image_size} "
                             f"pixels a side, the data has {data.images.shape[1]}; choose the --preset it was trained with")
        self.model = model.to(device)
        self.model.flex = options.flex
        config, order = model.config, options.order
        if options.data == "coco":
            data, val = (split._replace(captions=fitting(split.captions, self.tokenizer, config),
                                        questions=fitting(split.questions, self.tokenizer, config))
                         for split in (data, val))
        self.examples = {"pretrain": Examples(data.captions, data.images, self.tokenizer, config),
                         "sft": Examples(data.questions, data.images, self.tokenizer, config, order)}
        self.val = {"pretrain": Examples(val.captions[:32], val.images, self.tokenizer, config),
                    "sft": Examples(val.questions, val.images, self.tokenizer, config, evaluation_order(order))}
        self.batches = {"pretrain": Batches(self.examples["pretrain"], options.batch_size, 1, options.seed),
                        "sft": Batches(self.examples["sft"], max(1, options.batch_size // 2), preset.questions,
                                       options.seed)}
        self.steps = {"pretrain": 0 if options.pretrained else options.pretrain_steps, "sft": options.sft_steps}
        # A batch is halved between two threads, exactly two: a gradient a + b is the same number as b + a,
        # whichever half comes first, so the same seed gives the same run.
        self.halves = 2 if device.type == "cpu" and self.world == 1 else 1
        self.pool = runs.threads(device, self.halves)
        self.seconds, self.metrics_bytes, self.losses = dict.fromkeys(STAGES, 0.0), 0, []
        self.loss, self.stop = float("nan"), False
        if resume_from:
            self.restore(resume_from)
            return
        self.begin("pretrain")
        if self.rank == 0:
            (self.folder / "metrics.jsonl").touch()
            self.save()  # from the first moment on there is something to resume

    def begin(self, stage):
        """The start of a stage: fresh optimizers. Fine-tuning leaves the ViT as pre-training made it.

        One or two answer tokens a row are a noisy signal: it would undo what the captions taught the ViT.
        LLaVA freezes its vision encoder too.
        """
        self.stage, self.step = stage, 0
        self.model.vit.requires_grad_(stage == "pretrain" or not FREEZE_VIT)
        self.parallel = DistributedDataParallel(self.model) if self.world > 1 else self.model
        if self.options.compile:
            self.parallel = torch.compile(self.parallel, dynamic=True)
        self.optimizers = make_optimizers(self.model, self.preset.muon_lr, self.preset.adam_lr)

    def restore(self, checkpoint):
        """Go back to the moment at which a checkpoint was saved."""
        training, metrics = checkpoint["training"], self.folder / "metrics.jsonl"
        self.begin(checkpoint["stage"])
        for optimizer, state in zip(self.optimizers, training["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds, self.metrics_bytes = (training[k] for k in ("step", "seconds", "metrics_bytes"))
        self.losses = [torch.tensor(loss, device=self.device) for loss in training["losses"]]
        if self.rank == 0:
            if metrics.stat().st_size < self.metrics_bytes:
                raise ValueError(f"{metrics}: lines are missing that were there when the run was saved; put them back")
            os.truncate(metrics, self.metrics_bytes)  # lines after the save come again

    def save(self, name="model.pt", finished=False):
        """Write a checkpoint; an unfinished one carries all that is needed to go on, on a CPU bit for bit."""
        if self.rank:
            return
        if not all(weight.isfinite().all() for weight in self.model.state_dict().values()):
            raise ValueError(f"a weight is not a finite number at step {self.step} of {self.stage}; the checkpoint of an "
                             "earlier step stays")
        training = None if finished else {
            "step": self.step, "seconds": self.seconds, "metrics_bytes": self.metrics_bytes, "losses": self.finite(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        runs.save(self.folder / name, runs.pack(
            self.model, self.tokenizer, stage=self.stage, attention=self.options.attention, order=self.options.order,
            seed=self.options.seed, options=vars(self.options), seconds=self.seconds, training=training,
            data=self.batches[self.stage].fingerprint(self.steps[self.stage]) if finished else None))

    def log(self, line):
        """Append one line to metrics.jsonl. No clock times in it: on a CPU the same seed writes the same file."""
        if self.rank:
            return
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"stage": self.stage, "step": self.step, **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self.metrics_bytes = file.tell()

    def train(self):
        """Both stages, from where the run stands to the end; saves on the way."""
        done = self.step + (self.steps["pretrain"] if self.stage == "sft" else 0)

        def stop(*_):
            """Ctrl-C: end after the current step, in the middle of which weights are half updated; a second does not wait."""
            self.stop = True
            signal.signal(signal.SIGINT, handler)

        handler = signal.signal(signal.SIGINT, stop)
        try:
            with tqdm(total=sum(self.steps.values()), initial=done, disable=self.rank > 0, unit="step") as self.bar:
                if self.stage == "pretrain":
                    self.run_stage()
                    self.save("pretrained.pt", finished=True)
                    self.begin("sft")
                self.run_stage()
        finally:
            signal.signal(signal.SIGINT, handler)
        self.save(finished=True)

    def run_stage(self):
        """The steps that are left of the current stage."""
        options, steps = self.options, self.steps[self.stage]
        saved = time.monotonic()
        self.bar.set_description(self.stage)
        while self.step < steps:
            started = time.monotonic()
            self.losses.append(self.train_step(self.step / steps))
            self.step += 1
            self.seconds[self.stage] += time.monotonic() - started  # of training alone
            self.bar.update()
            last = self.step == steps
            if last or self.step % options.log_every == 0:
                self.loss, self.losses = float(np.mean(self.finite())), []
                self.bar.set_postfix(loss=f"{self.loss:.3f}")
                self.log({"loss": self.loss, "lr": self.optimizers[0].param_groups[0]["lr"]})
            if last or self.step % options.eval_every == 0:
                self.evaluate()
            if self.world > 1:
                if self.losses:
                    continue  # processes meet at the log's steps: only there can they save, or stop together
                stop = torch.tensor(float(self.stop), device=self.device)
                dist.all_reduce(stop, dist.ReduceOp.MAX)
                self.stop = bool(stop)
            stop = self.stop  # looked at once: if Ctrl-C comes from here on, the next step is the last
            if stop or time.monotonic() - saved > options.save_every:
                self.save()
                saved = time.monotonic()
            if stop:
                self.bar.close()
                if self.rank == 0:
                    print(f"\nstopped; go on with: python train.py --resume {self.folder}", file=sys.stderr)
                sys.exit(130)

    def train_step(self, progress):
        """One batch, one update; returns the loss as a tensor (no waiting for the device)."""
        examples = self.examples[self.stage]
        rows = self.batches[self.stage][self.step]
        answers = examples.answer_lengths[rows].sum()
        mine = np.array_split(rows, self.world)[self.rank]
        parts = [part for part in np.array_split(mine, self.halves) if len(part)]
        losses = list(self.pool.map(lambda part: self.backward(examples, part, answers), parts))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor(self.step, progress)
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return sum(losses)

    def backward(self, examples, rows, answers):
        """Add the gradients of some rows of a batch; returns their part of its loss.

        The loss is the mean over the `answers` generated tokens of the whole batch, however that is shared:
        each part is weighed by its own number of them, and DDP averages the gradients of the processes.
        Muon needs no special case: it comes after that, and works on equal gradients everywhere.
        """
        batch = examples.batch(rows).to(self.device)
        kind = self.options.attention if self.stage == "sft" else PRETRAIN_ATTENTION
        with runs.autocast(self.device, not self.options.float32):
            _, loss = self.parallel(**batch.inputs(), kind=kind, validate=self.device.type == "cpu")
        loss = loss * float(examples.answer_lengths[rows].sum() / answers)
        (loss * self.world).backward()
        return loss.detach()

    def finite(self):
        """The losses since the last line of the log; ValueError names the first that is not a finite number."""
        if not self.losses:
            return []
        values = torch.stack(self.losses)
        if self.world > 1:
            dist.all_reduce(values)
        values = values.tolist()
        for step, value in enumerate(values, self.step - len(values)):
            if not np.isfinite(value):
                rate = self.preset.muon_lr * factor(step, step / self.steps[self.stage])
                raise ValueError(f"the loss is {value} at step {step + 1} of {self.stage} (learning rate {rate:.2g}); "
                                 "the checkpoint of an earlier step stays")
        return values

    def evaluate(self):
        """Print and log the accuracy of each kind of question on validation scenes, and show one answer."""
        if self.rank == 0:
            examples, kind, new = self.val[self.stage], self.options.attention, 8
            if self.stage == "pretrain":
                kind, new = "causal", 64
            rows = range(len(examples))
            answers = answer(self.model, examples, rows, kind, new)
            accuracy = accuracy_by_kind(examples, rows, answers)
            self.log({"accuracy": accuracy})
            shown = self.step * 7 // self.options.eval_every % len(examples)
            item, text = examples.items[shown], answers[shown]
            shares = "  ".join(f"{kind} {100 * share:.1f}%" for kind, share in accuracy.items())
            self.bar.write(f"{self.stage} {self.step:5d}  loss {self.loss:.3f}  {shares}\n    {item.prompt or 'caption:'} -> "
                           + (text if text == item.answer else f"{text}   (right: {item.answer})"))
        if self.world > 1:
            dist.barrier()


def material(options):
    """What the options ask for as two `data.Material`, to train on and to validate on while training."""
    if options.data == "coco":
        data, val = load_coco(options.coco_dir, PRESETS[options.preset].photo_size, options.limit, options.seed, options.cache)
        few = [item for item in val.questions if item.pictures[0] < options.val_scenes and item.kind != "describe"]
        val = val._replace(questions=few or val.questions[:options.val_scenes], objects=val.objects[:options.val_scenes])
    else:
        data = scene_items("train", options.scenes, options.seed, options.cache)
        val = scene_items("val", options.val_scenes, 0, options.cache)
    return data, val._replace(questions=val.questions + pope_items(build(val.objects, "random"), "pope"))


def set_up(options):
    """The Trainer that the options ask for: of a new run in a folder of its own, or of one to resume."""
    if options.resume:
        folder = Path(options.resume)
        folder = folder.parent if folder.name == "model.pt" else folder
        if not (folder / "model.pt").is_file():
            raise ValueError(f"--resume {folder}: no run to go on with, it has no model.pt; if one was stopped there "
                             "before its first save, delete the folder and start it again")
        if rank() == 0:
            runs.lock(folder)
        checkpoint = runs.load(folder)[2]
        if not checkpoint["training"]:
            raise ValueError(f"--resume {folder}: that run is finished; next: python eval_pope.py {folder}")
        options = argparse.Namespace(**vars(parse([])) | checkpoint["options"])  # an older run lacks newer options
        return Trainer(options, folder, runs.pick_device(options.device), checkpoint)
    device = runs.pick_device(options.device)
    if options.flex and device.type != "cuda":
        raise ValueError(f"--flex: FlexAttention cannot train on {device.type}; leave the option out")
    folder = [runs.new_folder(options.name, f"{options.attention}-seed{options.seed}")] if rank() == 0 else [None]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)  # the first process names it
    try:
        if rank() == 0:
            runs.lock(folder[0])
        return Trainer(options, folder[0], device)
    except BaseException:
        if rank() == 0 and not (folder[0] / "model.pt").exists():
            shutil.rmtree(folder[0])  # a run that never began leaves its name free
        raise


def factor(step, progress):
    """The learning rate of a step, as a share of its peak; progress: the share of the stage that is done."""
    return min(1, (step + 1) / WARMUP) * min(1, (1 - progress) / COOLDOWN)


def rank():
    """This process's number among those that torchrun started; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def main():
    """The command line."""
    options = parse()
    if "RANK" in os.environ:  # started by torchrun
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    trainer = set_up(options)
    trainer.train()
    if rank() == 0:
        spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in trainer.seconds.items())
        files = "--pope FILES --images DIR " if trainer.options.data == "coco" else ""
        print(f"\ntrained ({spent}); next: python eval_pope.py {files}{trainer.folder}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    runs.command_line(main)
