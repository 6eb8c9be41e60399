"""Runs as processes of their own, started quickly: a driver imports torch once and forks for every run."""
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import runs

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the driver forks and needs Linux's /proc")
ROOT = Path(runs.__file__).parent

DRIVER = '''
import importlib, io, json, os, resource, sys, time
sys.path.insert(0, ROOT)
import torch, torch._dynamo, options, runs, train  # optimizers import _dynamo when they are made, which takes seconds

train.PRESETS["tiny"] = options.Preset(width=32, heads=2, layers=1, vit_layers=1, scenes=48, batch_size=8,
                                       pretrain_steps=10, sft_steps=10, muon_lr=0.02, adam_lr=0.003)
events = os.open("events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
tell = lambda letter: os.write(events, letter.encode())
torch_save, replace, begin = torch.save, os.replace, train.Trainer.train
saves = [0]

def slow_save(checkpoint, file):
    """Writes one half, rests, and writes the other."""
    tell("s")  # a save begins
    saves[0] += 1
    if saves[0] == job.get("disk_full_at"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))  # a larger file fails while it is written
        return torch_save(checkpoint, file)
    whole = io.BytesIO()
    torch_save(checkpoint, whole)
    half = len(whole.getvalue()) // 2
    file.write(whole.getvalue()[:half])
    file.flush()
    time.sleep(0.004)
    file.write(whole.getvalue()[half:])

def slow_replace(old, new):
    if str(new).endswith(".pt"):
        time.sleep(0.002)
    replace(old, new)
    if str(new).endswith(".pt"):
        time.sleep(0.002)
        tell("p" if "pretrained" in str(new) else "d")  # a save is done

def told_train(trainer):
    tell("t")  # training begins
    step = trainer.train_step

    def train_step(progress):
        loss = step(progress)
        if trainer.step + 1 == job.get("nan_at") and trainer.stage == job.get("stage"):
            return loss * float("nan")
        if trainer.step + 1 == job.get("inf_weight_at"):
            with torch.no_grad():
                trainer.model.norm.weight[0] = float("inf")
        return loss

    trainer.train_step = train_step
    begin(trainer)

torch.save, os.replace, train.Trainer.train = slow_save, slow_replace, told_train

def run():
    os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(job["output"] + ".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.chdir(job.get("folder", "."))
    sys.argv = [job["program"] + ".py", *job["arguments"]]
    if job.get("most_bytes"):  # of a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], -1))
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    runs.command_line(importlib.import_module(job["program"]).main)

if len(sys.argv) > 1:
    job = json.loads(sys.argv[1])
    run()
    sys.exit()
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 70
        else:
            code = 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
'''

COMMON = ["--device", "cpu", "--float32", "--val-scenes", "4", "--log-every", "3", "--eval-every", "5", "--save-every",
          "0", "--cache", "cache"]


class Driver:
    """Starts programs of the project in a folder of its own; `fresh` starts an interpreter for each."""

    def __init__(self, folder):
        self.folder, self.count, self.program = folder, 0, folder / "driver.py"
        self.program.write_text(f"ROOT = {str(ROOT)!r}\n{DRIVER}")
        self.environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen([sys.executable, str(self.program)], cwd=folder, env=self.environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments, program="train", fresh=False, environment=(), **job):
        self.count += 1
        job = {"program": program, "arguments": [str(a) for a in arguments], "output": f"output-{self.count}", **job}
        return Run(self, job, fresh, environment)

    def run(self, *arguments, **job):
        """Start, wait, return (exit code, stdout, stderr)."""
        process = self.start(*arguments, **job)
        return process.wait(), process.text(), process.text(".err")

    def events(self):
        return (self.folder / "events").read_text()


class Run:
    """One process: `pid`, `wait`, and what it printed."""

    def __init__(self, driver, job, fresh, environment):
        self.driver, self.job, self.before = driver, job, len(driver.events())
        self.process = self.code = None
        if fresh:
            self.process = subprocess.Popen([sys.executable, str(driver.program), json.dumps(job)], cwd=driver.folder,
                                            env={**driver.environment, **dict(environment)})
        self.pid = self.process.pid if fresh else driver.tell(**job)

    def wait(self):
        if self.code is None:
            self.code = self.process.wait() if self.process else self.driver.tell(wait=self.pid)
        return self.code

    def send(self, which):
        os.kill(self.pid, which)  # not yet waited for: the number is still this process's
        return self.wait()

    def ended(self):
        """Whether it is only waiting to be waited for."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def events(self):
        return self.driver.events()[self.before:]

    def until(self, happened):
        """Wait until happened(events of this run), or until it ends."""
        while not happened(self.events()) and not self.ended():
            time.sleep(0.001)

    def text(self, which=""):
        path = self.driver.folder / (self.job["output"] + which)
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    made = Driver(tmp_path_factory.mktemp("driver"))
    (made.folder / "events").touch()
    yield made
    made.process.stdin.close()
    made.process.wait()


@pytest.fixture(scope="module")
def whole(driver):
    """The folder of a run that nobody disturbed."""
    code, _, errors = driver.run(*COMMON, "--name", "whole")
    assert code == 0, errors
    return driver.folder / "runs" / "whole"


def errors_of(program, text):
    """The lines of stderr that the program itself wrote: without progress bars and argparse's usage."""
    assert "Traceback" not in text, text
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith(f"{program}.py: ")]


def same(folder, whole):
    """The very same result: metrics byte for byte, weights bit for bit, and nothing else in the folder."""
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("model.pt", "pretrained.pt"):
        one, other = (runs.load(path / name) for path in (folder, whole))
        assert one[2]["training"] is other[2]["training"] is None and one[2]["data"] == other[2]["data"]
        for key, weight in one[0].state_dict().items():
            assert torch.equal(weight, other[0].state_dict()[key]), (name, key)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole.iterdir())
