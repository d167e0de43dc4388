"""Several processes that train and validate as one, started by torchrun.

This file is also what torchrun starts: ``torchrun tests/test_distributed.py FOLDER`` trains two steps of each detector
and validates, and rank 0 writes what came of it.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import FCOS, ROOT, TINY
from safetensors.torch import load_file
from test_training import events, rows, wait_for_states

from leuko import val
from leuko.cli import stored
from leuko.config import TrainOptions, ValOptions
from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.training import TrainingImages, TrainingLoader
from leuko.engine import distributed
from leuko.engine.run import Run
from leuko.engine.stop import Stop
from leuko.engine.train import Loop, train_one_epoch
from leuko.errors import LeukoError
from leuko.models import DETECTORS, create
from leuko.train import build

CPU = torch.device("cpu")
SIZES = ((80, 80), (80, 48), (48, 80))  # so that images are padded to the largest of a batch
FOLLOWING = ("fcos", "faster_rcnn")  # the backbone's BatchNorm follows the batches


def fields(folder: Path) -> Dataset:
    """Seven images of noise with none to three cells; the batches are of four and three."""
    rng, samples = np.random.default_rng(0), []
    for i, cells in enumerate((2, 0, 3, 0, 1, 0, 2)):
        width, height = SIZES[i % len(SIZES)]
        path = folder / f"{i}.png"
        if not path.exists():
            cv2.imwrite(str(path), np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8))
        corners, sides = rng.uniform(0, 20, (cells, 2)), rng.uniform(16, 28, (cells, 2))
        samples.append(Sample(path, width, height, np.hstack([corners, corners + sides]), np.arange(cells), i + 1))
    return Dataset(["NG", "BG", "EG"], samples, split="train")


def trained(name: str, data: Dataset, **more: float) -> dict[str, dict]:
    """A detector after an epoch of two steps: by how much its weights have changed, and its losses."""
    torch.manual_seed(0)
    small = {"image_size": 80, "channels": 64, "fc_channels": 32, "proposals": 40, "rois": 24}
    norm = "train" if name in FOLLOWING else "frozen"
    model = create(name, 3, "mobilenetv3_small_050", norm=norm, freeze=False, **small)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = {"imgsz": 80, "batch": 4, "epochs": 1, "lr": 0.01, "clip": 10, "augment": "none", "workers": 0}
    options = TrainOptions(**recipe | {"warmup": 0} | more)
    loop = Loop(options, model, data, CPU, fresh=False)
    run = Run(data.samples[0].image.parent, options, data, data, CPU)
    losses = train_one_epoch(loop, run, Stop(), lambda: None)
    changes = {key: value - before[key] for key, value in model.state_dict().items()}
    return {"changes": changes, "losses": losses}


def main(folder: Path) -> None:
    """What each of torchrun's processes does."""
    torch.set_num_threads(1)
    with distributed.together(CPU):
        data = fields(folder)
        results = {name: trained(name, data) for name in DETECTORS}
        with pytest.raises(LeukoError, match="not finite at step 1"):  # by all, or one would wait for the other
            trained("fcos", data, lr=2e9, clip=math.inf)
        distributed.led(val._val, validation(folder, "shared"), CPU)
        if distributed.leads():
            torch.save(results, folder / "results.pt")


def validation(folder: Path, name: str) -> ValOptions:
    about = json.loads((folder / "val.json").read_text())
    return ValOptions(**about, save=str(folder), name=name, draws=0, workers=0, device="cpu", batch=2)


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start two processes by torchrun."""
    started = []

    def run(*words: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        keywords = {"env": environment, "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*command, *map(str, words)], **keywords))
        return started[-1]

    yield run
    for process in started:
        process.terminate()
        process.communicate()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The changes of weights are the same, up to rounding of the weights themselves."""
    for key, change in ours.items():
        difference = (change - theirs[key]).double().norm()
        assert difference <= 2e-3 * change.double().norm() + 5e-7 * change.numel() ** 0.5, key


def workers(process: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, by rank."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_two_processes_train_and_validate_what_one_does(torchrun, data, tmp_path):
    about = {"weights": "leuko-small", "data": str(data), "split": "train"}  # with a typing stage
    (tmp_path / "val.json").write_text(json.dumps(about))
    images = TrainingImages(fields(tmp_path), 80, [], 0)
    shares = [
        [[len(t["boxes"]) for t in b.targets] for b in TrainingLoader(images, 4, share=(rank, 2)).epoch(0)]
        for rank in (0, 1)
    ]
    assert any(sum(cells) == 0 for share in shares for cells in share), "no rank is without a cell in any step"
    process = torchrun(__file__, tmp_path)
    alone = {name: trained(name, fields(tmp_path)) for name in DETECTORS}
    val._val(validation(tmp_path, "alone"), CPU)
    assert process.wait(timeout=300) == 0, process.communicate()[1]
    together = torch.load(tmp_path / "results.pt", weights_only=True)
    for name in DETECTORS:
        ours, theirs = (results[name] for results in (alone, together))
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4), name
        assert_same(ours["changes"], theirs["changes"])
    assert [event["event"] for event in events(tmp_path)] == ["diverged"]  # one writes
    assert len(json.loads((tmp_path / "alone/predictions.json").read_text())) > 50
    for file in ("predictions.json", "per_class.csv"):
        assert (tmp_path / "shared" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the processes of torchrun are found in /proc")
def test_killed_and_stopped_processes_go_on_in_another_number(torchrun, data, tmp_path, leuko):
    """kill -9 of one of two, SIGTERM to both, and the rest by one; the reference had one."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    # A detector that samples nothing, at a low rate: others from scratch are chaotic, and rounding alone (1e-7 of the
    # weights, in one process) changes where they end.
    words = ["--data", data, "--project", tmp_path, *TINY, *FCOS, "--batch", "3", "--lr", "0.0002", "--epochs", "3"]
    words += ["--save-minutes", "0.0001", "--ema", "0.9", "--name"]
    assert leuko("train", *words, "whole").code == 0
    killed = torchrun("-m", "leuko.train", *words, "run")
    wait_for_states(run, 3, killed)
    start = time.monotonic()
    os.kill(random.choice(workers(killed)), signal.SIGKILL)
    assert killed.wait(timeout=60) != 0 and time.monotonic() - start < 60
    assert not (run / "results.csv").exists() or len(rows(run)) < 3, "the run was over before it was killed"

    stopped = torchrun("-m", "leuko.train", "--resume", run)
    wait_for_states(run, 3, stopped)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=60)
    assert err.count(f"go on with: leuko train --resume {run}") == 1 and out.count("training on 9 images") == 1, err
    assert len(events(run)) < 6, "the run was over before it was stopped"

    assert leuko("train", "--resume", run).code == 0 and len(rows(run)) == 3
    ours, theirs = (load_file(folder / "weights/last.safetensors") for folder in (run, whole))
    options = stored(TrainOptions, whole / "args.yaml")
    start = build(options, source.load(data, "train")).state_dict()
    assert_same({key: theirs[key] - start[key] for key in theirs}, {key: ours[key] - start[key] for key in ours})


def test_a_batch_is_shared_by_no_more_processes_than_it_has_images(data):
    images = TrainingImages(source.load(data, "train"), 64, [], 0)  # 9 images
    TrainingLoader(images, 4, share=(2, 3))
    with pytest.raises(LeukoError, match=r"--batch 2: 2 processes share a batch.* has 1 images"):
        TrainingLoader(images, 2, share=(0, 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
