"""Trainings that are killed (SIGKILL) at random moments and resumed: do they end in the weights of one that was not?

    python benchmarks/kills.py --kills 100

Short trainings on rendered images, with no, one and two loader processes by turns. Each start is killed after a random
time of up to the length of a whole training, until one lives to the end or was killed four times. Faults: a resumed
training that fails, other weights or results than those of the uninterrupted one, a file too many or too few in the run
folder, and a loader process that outlives its training. Moments depend on the seed, and on how busy the machine is.
Prints a line per training; exits with status 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from leuko import cli
from leuko import train as _train  # noqa: F401  imported once, so that each training starts at once
from leuko.data.tools.draw import synth

WORKERS = (0, 1, 2)
OPTIONS = "--model faster_rcnn --backbone tf_efficientnet_lite0 --no-pretrained --imgsz 64 --batch 2 --channels 32"
OPTIONS += " --fc-channels 32 --proposals 20 --rois 16 --epochs 3 --ema 0.9 --accumulate 2 --save-minutes 0.0001"
KILLS = 4  # of one training at most
PATIENCE = 10  # seconds in which a killed training's loader processes must end


def start(words: list[str], log: Path) -> int:
    """Run `leuko ...` in a process and a process group of its own, and return its id."""
    if pid := os.fork():
        return pid
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        cli.main(words)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(1)


def group_lives(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def finish(pid: int, seconds: float = float("inf")) -> int | None:
    """Wait for a training, and kill it after ``seconds``: its exit status, or None where it was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return None if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else os.waitstatus_to_exitcode(status)


def differences(run: Path, whole: Path) -> list[str]:
    """How a run folder differs from that of the uninterrupted training."""
    found = []
    files, expected = ({p.relative_to(f).as_posix() for p in f.rglob("*")} for f in (run, whole))
    if files != expected:
        found.append(f"files {', '.join(sorted(files ^ expected))}")
    for name in ("best", "last"):
        one, other = (folder / f"weights/{name}.safetensors" for folder in (run, whole))
        if not one.is_file():
            continue  # it is among the files that are missing
        a, b = load_file(one), load_file(other)
        with safe_open(one, "pt") as first, safe_open(other, "pt") as second:
            same = first.metadata() == second.metadata()
        if not same or a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            found.append(f"{name} weights")
    if "results.csv" in files and rows(run) != rows(whole):
        found.append("results.csv")
    return found


def rows(run: Path) -> list[dict]:
    """results.csv without its seconds."""
    with open(run / "results.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def one_training(
    run: Path, words: list[str], longest: float, most: int, rng: np.random.Generator
) -> tuple[Counter, str]:
    """Train, killed up to ``most`` times; what happened how often, and what is wrong in the end."""
    events: Counter[str] = Counter()
    while True:
        if not (run / "args.yaml").is_file():
            shutil.rmtree(run, ignore_errors=True)  # it had not begun: there is nothing to resume
            command = words
        else:
            command = ["train", "--resume", str(run)]
        log = run.with_suffix(".log")
        pid = start(command, log)
        status = finish(pid, rng.uniform(0, longest) if events["kills"] < most else float("inf"))
        if status is None:
            events["kills"] += 1
            events["of them before the first state"] += not (run / "resume.pt").is_file()
            events["of them while a file was written"] += any(run.rglob(".*.tmp"))
        end = time.monotonic() + PATIENCE
        while group_lives(pid) and time.monotonic() < end:
            time.sleep(0.02)
        if group_lives(pid):
            os.killpg(pid, signal.SIGKILL)
            return events, "a loader process outlived its training"
        if status:
            return events, f"exit status {status}: {log.read_text(errors='replace').strip()[-300:]}"
        if status == 0:
            return events, ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    total, faults, number = Counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        data, project = Path(folder) / "data", Path(folder) / "runs"
        synth(data, images=14, size=80, seed=3, val=0.15, test=0.2, workers=1)
        common = ["train", "--data", str(data), "--project", str(project), *OPTIONS.split()]
        began = time.monotonic()
        whole = project / "whole"
        project.mkdir()
        if finish(start([*common, "--workers", "0", "--name", "whole"], whole.with_suffix(".log"))) != 0:
            print(whole.with_suffix(".log").read_text())
            return 1
        longest = time.monotonic() - began
        print(f"uninterrupted: {longest:.1f} s", flush=True)
        while total["kills"] < options.kills:
            workers = WORKERS[number % len(WORKERS)]
            run = project / f"run{number}"
            words = [*common, "--workers", str(workers), "--name", run.name]
            events, fault = one_training(run, words, longest, min(KILLS, options.kills - total["kills"]), rng)
            fault = fault or "; ".join(differences(run, whole))
            faults, number, total = faults + bool(fault), number + 1, total + events
            verdict = f"FAULT: {fault}" if fault else "the same weights, results and files"
            print(
                f"training {number}, {workers} loader processes: killed {events['kills']} times: {verdict}", flush=True
            )
            if not fault:
                shutil.rmtree(run)
    print(f"{number} trainings; {', '.join(f'{name}: {n}' for name, n in total.items())}; faults: {faults}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
