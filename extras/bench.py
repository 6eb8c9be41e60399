"""How fast is it, and where does the time go? Read after everything else.

    python -m extras.bench                                   one table, in under two minutes
    python -m extras.bench --device cuda -- --preset base    options after -- go to train.py

Close other programs: timings are noisy. What is compared is measured in turn, A B A B.
"""
import argparse
import json
import resource
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import get_ident
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import train
from data import draw, make_scene
from extras.compare import machine, table
from mma import IMAGE, TEXT, attention_mask
from model import MultimodalGPT, answer, autocast, pick_device

PARTS = ("data", "mask", "ViT forward", "decoder forward", "backward", "optimizer")
WARMUP = 2  # repetitions that are not counted
NEW = 32  # tokens that are generated


def now(device):
    """Seconds, after the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter()


def in_turn(device, functions, repetitions, warmup=WARMUP):
    """Run functions A B A B ... -> for each the list of its seconds."""
    seconds = [[] for _ in functions]
    for repetition in range(warmup + repetitions):
        for function, taken in zip(functions, seconds):
            started = now(device)
            function()
            taken.append(now(device) - started)
    return [taken[warmup:] for taken in seconds]


class TimedModel(MultimodalGPT):
    """A model that tells its trainer how long its masks take."""

    def mask(self, modality, generated, layer):
        self.lap("decoder forward")
        mask = super().mask(modality, generated, layer)
        self.lap("mask")
        return mask


class TimedTrainer(train.Trainer):
    """A copy of a Trainer that measures the parts of a step; slower, as it waits for the device."""

    def __init__(self, trainer):
        model = TimedModel(trainer.model.config)
        super().__init__(trainer.options, trainer.folder, model, trainer.tokenizer, trainer.splits)
        self.last, self.laps, model.lap = {}, [], self.lap
        model.register_forward_pre_hook(lambda *_: self.lap("data"))
        model.vit.register_forward_pre_hook(lambda *_: self.lap("decoder forward"))
        model.vit.register_forward_hook(lambda *_: self.lap("ViT forward"))
        model.register_forward_hook(lambda *_: self.lap("decoder forward"))

    def lap(self, part):
        """Give the time since this thread's last lap to a part; None: to no part."""
        thread, this = get_ident(), now(self.device)
        self.laps.append((part, this - self.last.get(thread, this)))
        self.last[thread] = this

    def begin(self, stage):
        super().begin(stage)
        for optimizer in self.optimizers:
            optimizer.register_step_pre_hook(lambda *_: self.lap(None))
            optimizer.register_step_post_hook(lambda *_: self.lap("optimizer"))

    def backward(self, indices, tokens):
        self.lap(None)
        loss = super().backward(indices, tokens)
        self.lap("backward")
        return loss

    def timed_step(self):
        """A training step -> part -> its share of the step in percent, the mean of the threads."""
        self.laps = []
        [[whole]] = in_turn(self.device, [self.train_step], 1, warmup=0)
        percent = 100 / (self.halves * whole)
        return {part: percent * sum(s for name, s in self.laps if name == part) for part in PARTS}


def batch(trainer, step):
    """The rows of a training step."""
    return trainer.data.sample(*trainer.batch_shape, seed=step)


def count_flop(trainer, indices):
    """FLOP of forward and backward for some rows, halved as in a training step."""
    name, aten = "_scaled_dot_product_flash_attention_for_cpu", torch.ops.aten
    formulas = {  # that torch lacks
        getattr(aten, name): lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        getattr(aten, name + "_backward"): lambda *x, **_: sdpa_backward_flop_count(*x[:4])}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        for half in np.array_split(indices, trainer.halves):
            trainer.backward(half, tokens=1)
    trainer.model.zero_grad()
    return counter.get_total_flops()


def matmul_rates(trainer):
    """FLOP/s of the MLP's matrix product alone, in halves side by side as in a step -> list."""
    rows, D = trainer.data.batch(batch(trainer, 0))["ids"].numel(), trainer.model.config.width
    x, w = (torch.randn(size, device=trainer.device)
            for size in ((rows // trainer.halves, D), (D, 4 * D)))
    with autocast(trainer.device):
        dtype = (x @ w).dtype
    x, w = x.to(dtype), w.to(dtype)
    halves = [lambda: [x @ w for _ in range(20)]] * trainer.halves
    side_by_side = [lambda: list(trainer.pool.map(lambda half: half(), halves))]
    return [20 * 2 * rows * w.numel() / s for s in in_turn(trainer.device, side_by_side, 10)[0]]


def stage_figures(trainer, timed, stage, steps):
    """Yields (name, unit, values). MFU: the share of the machine's own rate."""
    trainer.begin(stage)
    timed.begin(stage)
    rates, whole, flop, shares = matmul_rates(trainer), [], [], []
    for step in range(WARMUP + steps):
        trainer.step = timed.step = step
        whole += in_turn(trainer.device, [trainer.train_step], 1, warmup=0)[0]
        shares.append(timed.timed_step())
        flop.append(count_flop(trainer, batch(trainer, step)))
    del whole[:WARMUP], shares[:WARMUP], flop[:WARMUP]
    rates += matmul_rates(trainer)  # before and after, as other programs may come and go
    yield f"{stage}: steps a second", "", [1 / s for s in whole]
    for part in PARTS:
        yield f"{stage}: share of {part}", "%", [parts[part] for parts in shares]
    yield f"{stage}: share of everything else", "%", [100 - sum(p.values()) for p in shares]
    yield f"{stage}: model FLOP a step", "GFLOP", [f / 1e9 for f in flop]
    yield f"{stage}: matrix-multiply rate", "GFLOP/s", [rate / 1e9 for rate in rates]
    yield f"{stage}: MFU", "%", [100 * f / s / max(rates) for f, s in zip(flop, whole)]


@torch.inference_mode()
def generate_uncached(model, images, ids, modality, image_index, generated):
    """What `model.generate` returns, by a pass over the whole row for each of NEW tokens."""
    prompt = ids.shape[1]
    for _ in range(NEW):
        logits, _ = model(images, ids, modality, generated, image_index=image_index)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        modality = F.pad(modality, (0, 1), value=TEXT)
        generated = F.pad(generated, (0, 1), value=True)
    return ids[:, prompt:]


def other_figures(trainer, steps):
    """What the mask costs, generation, evaluation, drawing, memory: yields (name, unit, values)."""
    model, device = trainer.model, trainer.device

    def step(attention):
        model.attention = attention
        trainer.train_step()

    causal, mma = in_turn(device, [lambda: step("causal"), lambda: step("mma")], steps)
    yield "step time, mma / causal", "", [m / c for c, m in zip(causal, mma)]
    modality = torch.tensor([TEXT] + 256 * [IMAGE] + 255 * [TEXT], device=device).repeat(64, 1)
    generated = torch.arange(512, device=device).repeat(64, 1) >= 400
    [taken] = in_turn(device, [lambda: attention_mask(modality, generated)], 15)
    yield "mask of 64 x 512 positions", "ms", [1000 * s for s in taken]
    for rows in (1, 64):
        prompt = trainer.data.batch(range(rows), device, prompts_only=True)
        with autocast(device):
            cached, uncached = in_turn(device, [
                lambda: model.generate(**prompt, max_new_tokens=NEW, end=-1),
                lambda: generate_uncached(model, **prompt)], 3)
        yield f"generation, batch {rows}: tokens a second", "", [rows * NEW / s for s in cached]
        yield f"generation, batch {rows}: uncached", "", [rows * NEW / s for s in uncached]
        yield f"generation, batch {rows}: ratio", "", [u / c for u, c in zip(uncached, cached)]
    [taken] = in_turn(device, [lambda: answer(model, trainer.val)], 3)
    yield "POPE: questions a second", "", [len(trainer.val.examples) / s for s in taken]
    [taken] = in_turn(device, [lambda: [draw(make_scene(seed)) for seed in range(500)]], 5)
    yield "drawing: scenes a second", "", [500 / s for s in taken]
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * kib
    yield "peak memory", "MB", [peak / 1e6]


def show(unit, values):
    """-> "median unit (smallest to largest)", in three digits or without a fraction."""
    middle, small, large = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}"
                            for v in (median(values), min(values), max(values)))
    return " ".join(filter(None, (middle, unit, f"({small} to {large})")))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add("--steps", type=int, default=15, help="training steps a stage (default: 15)")
    add("--json", metavar="FILE", type=Path, help="write every value there, too")
    add("train", nargs="*", help="after --: options of train.py, such as -- --preset base")
    options = parser.parse_args()
    device = pick_device(options.device)
    with TemporaryDirectory() as folder:
        own = ["--device", str(device), "--name", f"{folder}/bench"]
        trainer = train.start(train.parse(["--scenes", "1000", *options.train, *own]))
    timed, steps, where = TimedTrainer(trainer), options.steps, machine(device)
    figures = [*stage_figures(trainer, timed, "pretrain", steps),
               *stage_figures(trainer, timed, "sft", steps), *other_figures(trainer, steps)]
    print(f"{where}\n\n" + table([{"figure": name, "median (min to max)": show(unit, values)}
                                   for name, unit, values in figures]))
    if options.json:
        options.json.write_text(json.dumps({"machine": where, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
