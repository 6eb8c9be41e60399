"""Nothing is lost: runs that are killed, stopped, starved of disk, started twice, or started with nonsense.

Runs are processes of their own here, and they are really killed. To start one quickly, a driver imports torch once
and forks for every run; the slow tests start a new interpreter each time, as a user does.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
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
    begin(trainer)

torch.save, os.replace, train.Trainer.train = slow_save, slow_replace, told_train

def run():
    os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(job["output"] + ".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.chdir(job.get("folder", "."))
    sys.argv = [job["program"] + ".py", *job["arguments"]]
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
        self.process = subprocess.Popen([sys.executable, str(self.program)], cwd=folder, text=True, env=self.environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

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


def kill_until_done(driver, name, kills, seed, fresh=False):
    """Kill one run again and again, `kills` times, then let it end. Returns where the kills met it, as a dict."""
    rng, folder = random.Random(seed), driver.folder / "runs" / name
    met = dict.fromkeys(("starting", "training", "in a save", "pretrain", "sft", "temporary file left"), 0)
    done = 0
    while done < kills:
        known = (folder / "model.pt").exists()
        if folder.exists() and not known:  # killed before the first save
            code, _, errors = driver.run("--resume", folder)
            [line] = errors_of("train", errors)
            assert code == 1 and "has no model.pt" in line and "start it again" in line
            shutil.rmtree(folder)
        if known and runs.load(folder)[2]["training"] is None:
            shutil.rmtree(folder)  # it came to its end between two kills: once more from the start
            known = False
        process = driver.start(*(["--resume", folder] if known else [*COMMON, "--name", name]), fresh=fresh)
        moment = rng.choice(("starting", "training", "save", "save"))
        if moment == "starting":
            time.sleep(rng.uniform(0, 3.0 if fresh else 0.2))
        else:
            process.until(lambda events: "t" in events)
            if moment == "training":
                time.sleep(rng.uniform(0, 0.15))
            else:  # the third save from now, say
                nth = rng.randint(1, 4)
                process.until(lambda events: events.partition("t")[2].count("s") >= nth)
                time.sleep(rng.uniform(0, 0.01))
        if process.send(signal.SIGKILL) != -signal.SIGKILL:
            continue  # it was faster
        done += 1
        events = process.events()
        met["in a save" if events.endswith("s") else "training" if "t" in events else "starting"] += 1
        met["sft" if (folder / "pretrained.pt").exists() else "pretrain"] += 1
        met["temporary file left"] += any(folder.glob("*.tmp"))
        if (folder / "model.pt").exists():
            runs.load(folder)  # whole at every moment
    if not (folder / "model.pt").exists():
        shutil.rmtree(folder, ignore_errors=True)
    finish = ["--resume", folder] if folder.exists() else [*COMMON, "--name", name]
    if not folder.exists() or runs.load(folder)[2]["training"]:
        assert driver.run(*finish)[0] == 0
    return met


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(driver, whole):
    met = kill_until_done(driver, "killed", 24, seed=0)
    same(driver.folder / "runs" / "killed", whole)
    assert met["in a save"] >= 4 and met["temporary file left"] >= 1 and met["pretrain"] >= 3 and met["sft"] >= 3, met
    print(met)


@pytest.mark.slow
def test_a_run_of_fresh_interpreters_that_is_killed_ends_as_one_that_never_was(driver, whole):
    met = kill_until_done(driver, "killed-fresh", 20, seed=1, fresh=True)
    same(driver.folder / "runs" / "killed-fresh", whole)
    assert met["in a save"] >= 2 and met["pretrain"] >= 2 and met["sft"] >= 2, met
    print(met)


def test_a_run_killed_before_its_first_checkpoint_says_so_in_one_line(driver, whole):
    process = driver.start(*COMMON, "--name", "unborn")
    process.until(lambda events: "s" in events)
    assert process.send(signal.SIGKILL) == -signal.SIGKILL
    folder = driver.folder / "runs" / "unborn"
    assert folder.exists() and not (folder / "model.pt").exists()
    code, _, errors = driver.run("--resume", "runs/unborn")
    [line] = errors_of("train", errors)
    assert code == 1 and line.startswith("train.py: --resume runs/unborn: no run to go on with")
    assert "delete the folder and start it again" in line


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_saves_and_says_how_to_go_on(driver, whole, fresh):
    name = f"stopped-{fresh}"
    folder = driver.folder / "runs" / name
    arguments = [*COMMON[:-4], "--save-every", "1000", "--cache", "cache", "--name", name]  # no save but this
    process = driver.start(*arguments, fresh=fresh)
    process.until(lambda events: "t" in events and (folder / "metrics.jsonl").read_bytes())
    assert process.send(signal.SIGINT) == 130
    assert f"stopped; go on with: python train.py --resume runs/{name}\n" in process.text(".err")
    assert "Traceback" not in process.text(".err")
    assert runs.load(folder)[2]["training"]["step"] >= 3
    for left in ("model.pt.tmp", "pretrained.pt.tmp"):
        (folder / left).write_bytes(b"of a save that was killed")
    assert driver.run("--resume", f"runs/{name}")[0] == 0
    same(folder, whole)


def test_two_processes_never_train_in_one_folder(driver, whole):
    first = driver.start(*COMMON, "--name", "shared", "--sft-steps", 5000)
    first.until(lambda events: events.count("d") > 2)
    code, _, errors = driver.run("--resume", "runs/shared")
    assert code == 1 and errors_of("train", errors) == [
        "train.py: runs/shared: another process is training there; wait for its end, or stop it"]
    with pytest.raises(ValueError, match="another process is training there"):
        runs.lock(driver.folder / "runs" / "shared")
    assert first.send(signal.SIGKILL) == -signal.SIGKILL
    second = driver.start("--resume", "runs/shared")  # the killed one holds nothing any more
    second.until(lambda events: "t" in events)
    assert "t" in second.events()
    second.send(signal.SIGKILL)


def test_a_process_may_go_on_in_a_folder_that_it_holds(tmp_path):
    runs.lock(tmp_path)
    runs.lock(tmp_path)
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.parametrize("at", [1, 2, 9, 11, 15])  # the first; in pre-training; around its end; in fine-tuning
def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(driver, whole, at):
    name = f"full-{at}"
    folder = driver.folder / "runs" / name
    code, _, errors = driver.run(*COMMON, "--name", name, disk_full_at=at)
    [line] = errors_of("train", errors)
    assert code == 1 and f"runs/{name}/" in line and "not saved (File too large)" in line, errors
    if at == 1:
        return  # nothing was begun, so that
    assert not list(folder.glob("*.tmp"))
    runs.load(folder)
    assert driver.run("--resume", f"runs/{name}")[0] == 0  # there is room again
    same(folder, whole)


def test_a_run_that_could_not_be_saved_once_leaves_its_name_free(driver, whole):
    driver.run(*COMMON, "--name", "nameless", disk_full_at=1)
    assert not (driver.folder / "runs" / "nameless").exists()


def test_the_number_of_threads_changes_nothing(driver, whole):
    for threads in (1, 2, 4):
        code, _, errors = driver.run(*COMMON, "--name", f"threads-{threads}", threads=threads)
        assert code == 0, errors
        same(driver.folder / "runs" / f"threads-{threads}", whole)


@pytest.mark.slow
def test_omp_num_threads_changes_nothing(driver, whole):
    for threads in ("1", "2", "4"):
        process = driver.start(*COMMON, "--name", f"omp-{threads}", fresh=True, environment={"OMP_NUM_THREADS": threads})
        assert process.wait() == 0, process.text(".err")
        same(driver.folder / "runs" / f"omp-{threads}", whole)
