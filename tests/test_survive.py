"""Nothing is lost: runs that are killed, stopped, starved of disk, or started twice.

Runs are processes of their own here, and they are really killed. To start one quickly, a driver imports torch once
and forks for every run; the slow tests start a new interpreter each time, as a user does.
"""
import os
import random
import shutil
import signal
import stat
import time

import pytest
import torch

import runs
from driving import COMMON, driver, errors_of, pytestmark, same, whole  # noqa: F401  driver and whole are fixtures


def kill_until_done(driver, whole, name, kills, seed, fresh=False):
    """Kill one run again and again, `kills` times, then let it end as `whole` did.

    Returns where the kills met it, as a dict.
    """
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
            same(folder, whole)  # it came to its end between two kills: once more from the start
            shutil.rmtree(folder)
            known = False
        process = driver.start(*(["--resume", folder] if known else [*COMMON, "--name", name]), fresh=fresh)
        moment = rng.choice(("starting", "training", "save"))
        if moment == "starting":
            time.sleep(rng.uniform(0, 3.0 if fresh else 0.2))
        else:  # after so many saves: the run gets on, however slow the machine is
            letters, nth = "s" if moment == "save" else "dp", rng.randint(1, 4)
            process.until(lambda events: sum(map(events.partition("t")[2].count, letters)) >= nth)
            time.sleep(rng.uniform(0, 0.005 if moment == "save" else 0.05))
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
    same(folder, whole)
    print(met)
    return met


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(driver, whole):
    met = kill_until_done(driver, whole, "killed", 12, seed=0)
    assert min(met["in a save"], met["temporary file left"], met["pretrain"], met["sft"]) >= 2, met


@pytest.mark.slow
def test_a_run_of_fresh_interpreters_that_is_killed_ends_as_one_that_never_was(driver, whole):
    met = kill_until_done(driver, whole, "killed-fresh", 20, seed=1, fresh=True)
    assert min(met["in a save"], met["starting"], met["pretrain"], met["sft"]) >= 2, met


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fifty_kills_change_nothing(driver, whole, seed):
    met = kill_until_done(driver, whole, f"killed-{seed}", 50, seed=100 + seed)


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


def test_a_save_is_on_the_disk_before_its_name_is_and_then_the_name_is(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def told_fsync(fd):
        done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), replace(old, new)))
    runs.save(tmp_path / "model.pt", {"a": torch.ones(3)})
    assert done == ["file", "rename", "folder"] and [p.name for p in tmp_path.iterdir()] == ["model.pt"]


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
    first = driver.start(*COMMON, "--name", "shared", "--sft-steps", 500)
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


@pytest.mark.parametrize("at", [1, 20, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 11, 12, 13))])
def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(driver, whole, at):
    """At the first save, in pre-training, around its end, in fine-tuning."""
    name = f"full-{at}"
    folder = driver.folder / "runs" / name
    code, _, errors = driver.run(*COMMON, "--name", name, disk_full_at=at)
    [line] = errors_of("train", errors)
    assert code == 1 and f"runs/{name}/" in line and "not saved (File too large)" in line, errors
    if at == 1:
        assert not folder.exists()  # the name is free
        return
    assert not list(folder.glob("*.tmp"))
    runs.load(folder)
    assert driver.run("--resume", f"runs/{name}")[0] == 0  # there is room again
    same(folder, whole)


def test_one_thread_or_two_give_the_very_same_run(driver, whole):
    code, _, errors = driver.run(*COMMON, "--name", "one-thread", threads=1)  # `whole` had two
    assert code == 0, errors
    same(driver.folder / "runs" / "one-thread", whole)


@pytest.mark.slow
def test_omp_num_threads_of_one_or_two_gives_the_very_same_run(driver, whole):
    for threads in ("1", "2"):
        process = driver.start(*COMMON, "--name", f"omp-{threads}", fresh=True,
                               environment={"OMP_NUM_THREADS": threads})
        assert process.wait() == 0, process.text(".err")
        same(driver.folder / "runs" / f"omp-{threads}", whole)


@pytest.mark.parametrize("step, stage, rate", [pytest.param(4, "pretrain", 0.004, marks=pytest.mark.slow),
                                               (20, "sft", 0.01 * 0.1 / 0.3)])
def test_a_loss_that_is_not_finite_names_step_stage_and_learning_rate(driver, whole, step, stage, rate):
    """And the saved run, which is older, goes on as if nothing had been."""
    nth = step - 10 * (stage == "sft")
    code, _, errors = driver.run(*COMMON, "--name", f"nan-{step}", nan_at=nth, stage=stage)
    [line] = errors_of("train", errors)
    assert code == 1 and f"the loss is nan at step {nth} of {stage} (learning rate {rate:.2g})" in line
    assert driver.run("--resume", f"runs/nan-{step}")[0] == 0
    same(driver.folder / "runs" / f"nan-{step}", whole)


def test_a_weight_that_is_not_finite_is_never_saved(driver, whole):
    code, _, errors = driver.run(*COMMON, "--name", "inf", inf_weight_at=10)
    [line] = errors_of("train", errors)
    assert code == 1 and "a weight is not a finite number at step 10 of pretrain" in line
    assert runs.load(driver.folder / "runs" / "inf")[2]["training"]["step"] == 9
