"""How fast is it, and where does the time go? Read after everything else.

`python bench.py` prints one table in under two minutes; every figure is the median of several repetitions,
with the smallest and the largest in brackets. Ratios are measured in turn (A B A B) in one run, since
machines are noisy. Nothing is written but, with --json, the figures.
"""
import argparse
import json
import platform
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

import model as model_module
import runs
import scenes
import train
from eval_pope import TestSet, markdown
from mma import IMAGE, PAD, TEXT, attention_mask, mask_mod
from options import new_file


class Clock:
    """Adds up the seconds of named parts of a step, each thread on its own."""

    def __init__(self, device):
        self.device, self.seconds = device, defaultdict(float)

    def now(self):
        """Seconds, after all that the device was given has been done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name):
        """Count what happens inside as `name`."""
        start = self.now()
        yield
        self.seconds[threading.get_ident(), name] += self.now() - start

    def take(self):
        """Seconds by name, the mean over the threads that worked side by side; starts again from zero."""
        threads = len({thread for thread, _ in self.seconds})
        total = defaultdict(float)
        for (_, name), seconds in self.seconds.items():
            total[name] += seconds / threads
        self.seconds.clear()
        return total


def repeat(clock, functions, repetitions, warmup=2):
    """Run functions in turn, A B A B ...; returns for each the list of its seconds."""
    times = [[] for _ in functions]
    for repetition in range(warmup + repetitions):
        for function, taken in zip(functions, times):
            start = clock.now()
            function()
            if repetition >= warmup:
                taken.append(clock.now() - start)
    return times


def show(values, unit="", scale=1.0, digits=1):
    """Figures -> "median unit (smallest to largest)"."""
    values = [scale * v for v in values]
    return f"{median(values):,.{digits}f}{unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


class Bench:
    """Collects rows of the table; `figures` is what --json writes."""

    def __init__(self, options):
        self.options, self.rows, self.figures = options, [], {}
        self.device = runs.pick_device(options.device)
        self.clock = Clock(self.device)
        self.folder = tempfile.TemporaryDirectory()
        arguments = ["--preset", options.preset, "--scenes", str(options.scenes), "--cache", options.cache]
        self.trainer = train.Trainer(train.parse([*arguments, "--val-scenes", "8"]), self.folder.name, self.device)
        self.model = self.trainer.model

    def add(self, name, values, unit="", scale=1.0, digits=1):
        """One row of the table."""
        self.rows.append([name, show(values, unit, scale, digits)])
        self.figures[name] = {"unit": unit.strip(), "values": [scale * v for v in values]}
        print(f"  {name}: {self.rows[-1][1]}", file=sys.stderr, flush=True)

    def matmul_rate(self):
        """FLOP/s of the matrix products that the blocks make, at their sizes and in their dtype."""
        D, rows = self.model.config.width, self.tokens
        with runs.autocast(self.device):
            dtype = (torch.ones(1, 1, device=self.device) @ torch.ones(1, 1, device=self.device)).dtype
        make = {"device": self.device, "dtype": dtype}
        pairs = [(torch.randn(rows, k, **make), torch.randn(n, k, **make))
                 for k, n in ((D, 3 * D), (D, D), (D, 4 * D), (4 * D, D))]

        def products():
            """The matrix multiplications of one block, and nothing else."""
            for x, w in pairs:
                F.linear(x, w)

        flops = sum(2 * rows * w.numel() for _, w in pairs)
        [taken] = repeat(self.clock, [products], 15)
        self.sizes = f"({rows}, {D}) by ({D}, {3 * D}, {D} or {4 * D}) and ({rows}, {4 * D}) by ({4 * D}, {D}), {dtype}"
        return [flops / t for t in taken]

    def stage(self, stage):
        """Steps a second of one stage, their parts, and the share of the machine's rate that they reach."""
        trainer, clock = self.trainer, self.clock
        trainer.begin(stage)
        batch = trainer.examples[stage].batch(trainer.batches[stage][0])
        self.tokens = batch.ids.numel()
        kind = "mma" if stage == "sft" else "causal"

        def count(rows):
            """The model's FLOP for one step, batch by batch, as lengths and so padding vary between steps."""
            with FlopCounterMode(display=False) as counter, runs.autocast(self.device):
                for part in np.array_split(rows, trainer.halves):
                    inputs = trainer.examples[stage].batch(part).to(self.device).inputs()
                    self.model(**inputs, kind=kind)[1].backward()
            self.model.zero_grad(set_to_none=True)
            return counter.get_total_flops()

        rows, parts, whole = [], [], []
        rates = self.matmul_rate()
        with timed_parts(trainer, clock):
            for step in range(2 + self.options.steps):
                start = clock.now()
                trainer.train_step(0.5)
                seconds, part = clock.now() - start, clock.take()
                trainer.step += 1
                if step >= 2:
                    whole.append(seconds)
                    rows.append(trainer.batches[stage][step])
                    part["decoder forward"] = part.pop("forward") - part["mask"] - part["ViT forward"]
                    part["everything else"] = seconds - sum(part.values())
                    parts.append(part)
        rates += self.matmul_rate()
        flops = [count(r) for r in rows]
        self.add(f"{stage}: steps a second", [1 / t for t in whole], digits=2)
        self.add(f"{stage}: samples a second", [len(r) / t for r, t in zip(rows, whole)], digits=0)
        for name in ("data", "mask", "ViT forward", "decoder forward", "backward", "optimizer", "everything else"):
            self.add(f"{stage}: share of {name}", [p[name] / t for p, t in zip(parts, whole)], " %", 100)
        self.add(f"{stage}: model FLOP a step", flops, " GFLOP", 1e-9)
        self.add(f"{stage}: model FLOP/s", [f / t for f, t in zip(flops, whole)], " GFLOP/s", 1e-9)
        self.add(f"{stage}: matrix-multiply rate", rates, " GFLOP/s", 1e-9)
        self.add(f"{stage}: MFU", [f / t / median(rates) for f, t in zip(flops, whole)], " %", 100)

    def step_ratio(self):
        """The time of a step under mma as a multiple of that under causal, as forward and backward in turn."""
        trainer = self.trainer
        examples, rows = trainer.examples["sft"], trainer.batches["sft"][0]
        batch = examples.batch(rows).to(self.device)

        def step(kind):
            """Forward and backward under a mask of this kind."""
            with runs.autocast(self.device):
                self.model(**batch.inputs(), kind=kind)[1].backward()
            self.model.zero_grad(set_to_none=True)

        def is_causal():
            """A step with the kernel that a causal mask alone could use."""
            attend = F.scaled_dot_product_attention
            with patch.object(F, "scaled_dot_product_attention",
                              lambda q, k, v, attn_mask: attend(q, k, v, is_causal=attn_mask is not None)):
                step("causal")

        steps = lambda: step("mma"), lambda: step("causal"), is_causal
        mma, causal, kernel = repeat(self.clock, steps, self.options.steps)
        self.add("step time, mma / causal (same dense-mask kernel)", [a / b for a, b in zip(mma, causal)], digits=3)
        self.add("step time, mma / causal (is_causal=True kernel)", [a / b for a, b in zip(mma, kernel)], digits=3)

    def kernels(self, sizes=(256, 1024, 4096)):
        """Forward and backward of one attention layer, the dense mask against FlexAttention's block mask."""
        heads, d = self.model.config.heads, self.model.config.width // self.model.config.heads
        flex = torch.compile(flex_attention)
        for T in sizes:
            B = max(1, 16384 // T)
            modality = torch.full((B, T), TEXT, device=self.device)
            modality[:, 1:T // 2] = IMAGE
            generated = torch.zeros_like(modality, dtype=torch.bool)
            generated[:, -T // 8:] = True
            q, k, v = torch.randn(3, B, heads, T, d, device=self.device, dtype=torch.bfloat16, requires_grad=True).unbind()
            dense = attention_mask(modality, generated, "mma")
            block = create_block_mask(mask_mod(modality, generated, "mma"), B, None, T, T, device=self.device)
            dense_times, flex_times = repeat(self.clock, [
                lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=dense).sum().backward(),
                lambda: flex(q, k, v, block_mask=block).sum().backward()], 15, warmup=3)
            ratios = [a / b for a, b in zip(dense_times, flex_times)]
            self.add(f"attention of {B} x {T} positions: dense / flex time", ratios, digits=2)

    def mask(self):
        """Building the mask of 64 rows of 512 positions, against the double loop that one writes first."""
        modality = torch.full((64, 512), TEXT)
        modality[:, 1:257], modality[::4, 500:] = IMAGE, PAD
        generated = torch.zeros(64, 512, dtype=torch.bool)
        generated[:, 400:500] = True
        moved = modality.to(self.device), generated.to(self.device)
        [taken] = repeat(self.clock, [lambda: attention_mask(*moved, "mma")], 15)
        self.add("mask of 64 x 512 positions", taken, " µs", 1e6, 0)
        m, g = modality[0].tolist(), generated[0].tolist()

        def loop():
            """The mask of one row; 64 of them would take minutes."""
            for q in range(512):
                for k in range(512):
                    m[q] != PAD and m[k] != PAD and (k <= q or m[q] > TEXT and m[k] != m[q] and not g[k])

        [looped] = repeat(self.clock, [loop], 3, warmup=1)
        self.add("the same by a double loop", [64 * t for t in looped], " µs", 1e6, 0)

    def generation(self):
        """Tokens a second for 48 new tokens, with the cache and by recomputing the whole row each time."""
        examples, model, new = self.trainer.examples["sft"], self.model.eval(), 48
        for B in (1, 64):
            batch = examples.batch(range(B), prompts_only=True).to(self.device)

            @torch.inference_mode()
            def uncached():
                """Each new token by a pass over the whole row."""
                ids, modality = batch.ids, batch.modality
                for _ in range(new):
                    generated = torch.zeros_like(ids, dtype=torch.bool)
                    generated[:, batch.ids.shape[1]:] = True
                    logits = model(batch.images, ids, modality, generated, None, "mma", batch.image_index)[0]
                    ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
                    modality = F.pad(modality, (0, 1), value=TEXT)

            def cached():
                """The same tokens with the KV cache."""
                model.generate(batch.images, batch.ids, batch.modality, new, -1, "mma", batch.image_index)

            with runs.autocast(self.device, B > 1):  # one row alone is faster in float32; `sample.py` asks so
                fast, slow = repeat(self.clock, [cached, uncached], 5, warmup=1)
            self.add(f"generation, batch {B}: tokens a second", [B * new / t for t in fast], digits=0)
            self.add(f"generation, batch {B}: uncached", [B * new / t for t in slow], digits=0)
            self.add(f"generation, batch {B}: cached / uncached", [s / f for f, s in zip(fast, slow)], " x")

    def pope(self):
        """Questions a second. The untrained model's answers are cut at two tokens, the length of trained ones."""
        test = TestSet.of_scenes(self.options.cache, 100)
        checkpoint = {"attention": "mma", "order": "image-first"}
        generate = self.model.generate

        def two_tokens(images, ids, modality, max_new_tokens, *rest):
            """`generate`, cut after two tokens: "yes" or "no" and the end."""
            return generate(images, ids, modality, 2, *rest)

        with patch.object(self.model, "generate", two_tokens):
            [taken] = repeat(self.clock, [lambda: test.evaluate(self.model, self.trainer.tokenizer, checkpoint)], 3, 1)
        self.add("POPE: questions a second", [len(test) / t for t in taken], digits=0)

    def rendering(self):
        """Scenes drawn a second, one core."""
        seeds = iter(scenes.split_seeds("val", 10_000))
        [taken] = repeat(self.clock, [lambda: [scenes.draw(scenes.make_scene(next(seeds))) for _ in range(500)]], 5)
        self.add("rendering: scenes a second", [500 / t for t in taken], digits=0)

    def run(self):
        """All of it; returns the table as Markdown."""
        for stage in train.STAGES:
            self.stage(stage)
        if self.device.type == "cuda":  # FlexAttention has no backward pass on a CPU
            self.kernels()
        for part in (self.step_ratio, self.mask, self.generation, self.pope, self.rendering):
            part()
        peak = (torch.cuda.max_memory_allocated() if self.device.type == "cuda" else
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        self.add("peak memory", [peak], " MB", 1e-6, 0)
        return markdown(["figure", "median (smallest to largest)"], self.rows)


@contextmanager
def timed_parts(trainer, clock):
    """While open, every train_step adds the seconds of its parts to the clock."""
    def timed(owner, attribute, name):
        """A patch that times each call of owner.attribute as the part `name`."""
        function = getattr(owner, attribute)

        def wrapper(*args, **kwargs):
            """The function itself, timed."""
            with clock.part(name):
                return function(*args, **kwargs)
        return patch.object(owner, attribute, wrapper)

    def optimizers():
        """They run side by side too, so that their mean over the threads is the time that passes."""
        for optimizer in trainer.optimizers:
            yield timed(optimizer, "step", "optimizer")

    patches = [timed(trainer.examples[stage], "batch", "data") for stage in train.STAGES]
    patches += [timed(model_module, "attention_mask", "mask"), timed(trainer.model.vit, "forward", "ViT forward"),
                timed(trainer, "parallel", "forward"), timed(torch.Tensor, "backward", "backward"), *optimizers()]
    for p in patches:
        p.start()
    try:
        yield
    finally:
        for p in patches:
            p.stop()


def machine(device):
    """The machine in one line."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{name}, {threads} CPU threads, {capability}, torch {torch.__version__}"


def main():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: CUDA, then MPS, then CPU)")
    p.add_argument("--preset", choices=train.PRESETS, default="tiny", help="size of the model (default: tiny)")
    p.add_argument("--steps", type=runs.number(int, 1), default=15, help="counted training steps a stage (default: 15)")
    p.add_argument("--scenes", type=runs.number(int, 64, 2_000_000), default=2000,
                   help="training scenes to draw for it (default: 2000)")
    p.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there too")
    p.add_argument("--cache", default="cache", help="folder of the rendered scenes (default: cache)")
    bench = Bench(p.parse_args())
    table = bench.run()
    where = machine(bench.device)
    print(f"\n{where}\nmatrix-multiply rate at the blocks' sizes: {bench.sizes}\n\n{table}")
    if bench.options.json:
        figures = {"machine": where, "sizes": bench.sizes, "figures": bench.figures}
        Path(bench.options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    runs.command_line(main)
