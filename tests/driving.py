"""Runs of train.py as processes of their own, which a test can kill.

A "forkserver" imports torch once and then forks for every run, which takes milliseconds; "spawn"
starts a new interpreter, as a user does. Either way the exit code is that of `python train.py`.
"""
import io
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch

import train

TINY = ("--width 32 --heads 2 --layers 1 --vit-layers 1 --scenes 64 --batch-size 8 "
        "--pretrain-steps 10 --sft-steps 10 --save-every 0 --device cpu").split()
OFTEN = {"LOG_EVERY": 2, "EVAL_EVERY": 4, "VAL_SCENES": 4}  # for runs of few steps
SLOW_IMPORTS = ["torch._dynamo", "torch.distributed", "PIL.ImageOps", "tqdm", "pytest"]


def float32(device):
    """In place of `model.autocast`, where two ways to compute the same are compared."""
    return torch.autocast(device.type, enabled=False)


class Run:
    """`python train.py ARGUMENTS` in a folder: stop it, wait for it, read what it printed."""
    count = 0

    def __init__(self, folder, *arguments, method="forkserver", **tweaks):
        """tweaks: see `in_process`."""
        Run.count += 1
        self.output = Path(folder) / f"run-{Run.count}"
        context = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(SLOW_IMPORTS)
        job = folder, self.output, [str(argument) for argument in arguments]
        self.process = context.Process(target=in_process, args=job, kwargs=tweaks, daemon=True)
        self.process.start()

    def wait(self):
        """The exit code; None if it has not ended after a minute."""
        self.process.join(60)
        return self.process.exitcode

    def send(self, signal):
        """Send a signal, unless it has ended, and wait; returns the exit code."""
        if self.process.is_alive():
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.process.pid, signal)
        return self.wait()

    def events(self):
        """A letter for each event so far: a save begins (s), a save is done (d)."""
        path = self.output.with_suffix(".events")
        return path.read_text() if path.exists() else ""

    def until(self, event, times):
        """Wait until an event happened so many times, or until the run has ended."""
        while self.events().count(event) < times and self.process.is_alive():
            time.sleep(0.001)

    def printed(self):
        """Everything it printed, stdout and stderr."""
        return self.output.with_suffix(".txt").read_text()


def in_process(folder, output, arguments, rank=None, port=None, sgd=False):
    """What the process of a Run does.

    rank, port: it is one of two, as torchrun would start them. sgd: it trains with plain SGD.
    """
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    if rank is not None:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        train.RANK, train.WORLD = rank, 2  # read when the module was imported
    printed = os.open(output.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    torch.set_num_threads(2)
    for name, value in OFTEN.items():
        setattr(train, name, value)
    train.autocast = float32
    slow_down_saves(os.open(output.with_suffix(".events"), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    if sgd:
        train.make_optimizers = lambda model, *_: [torch.optim.SGD(model.parameters(), lr=0.1)]
    sys.argv = ["train.py", *arguments]
    train.main()


def slow_down_saves(events):
    """Each save rests in the middle, and before it gets its name: time to be killed there."""
    save, replace = torch.save, os.replace

    def slow_save(checkpoint, path):
        os.write(events, b"s")
        whole = io.BytesIO()
        save(checkpoint, whole)
        half = len(whole.getvalue()) // 2
        with open(path, "wb") as file:
            file.write(whole.getvalue()[:half])
            file.flush()
            time.sleep(0.005)
            file.write(whole.getvalue()[half:])

    def slow_replace(old, new):
        time.sleep(0.002)
        replace(old, new)
        os.write(events, b"d")

    torch.save, os.replace = slow_save, slow_replace
