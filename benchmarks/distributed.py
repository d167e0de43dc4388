"""Two processes against one, at the same global batch: training images per second, and their ratio.

    python benchmarks/distributed.py --repeats 3

Each process has one thread and no loader process. Both sides train the same steps of the same detector on the same
rendered images, kept in memory, and are started by turns, since a machine is never quite idle; a side's first step is
left out. With two cores, 2 is the most that can be reached.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from leuko.config import TrainOptions
from leuko.data import source
from leuko.data.tools.draw import synth
from leuko.engine import distributed
from leuko.engine.train import compute_losses, set_up
from leuko.models import create

CPU = torch.device("cpu")


def images_per_second(options: argparse.Namespace) -> float:
    """Of the steps of an epoch but the first; what each process measures."""
    torch.set_num_threads(1)
    train_set = source.load(options.data, "train")
    torch.manual_seed(0)
    model = create(options.model, len(train_set.types), options.backbone, image_size=options.imgsz)
    recipe = {"imgsz": options.imgsz, "batch": options.batch, "lr": 0.001, "augment": "none", "cache": "ram"}
    loop = set_up(TrainOptions(**recipe, workers=0), model, train_set, CPU, fresh=False)
    for i, batch in enumerate(loop.loader.epoch(0)):
        if i == 1:
            start = time.perf_counter()
        sum(compute_losses(loop.network, batch, "none", CPU).values()).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=True)
    return (loop.loader.bounds[-1] - loop.loader.bounds[1]) / (time.perf_counter() - start)


def measured(processes: int, words: list[str]) -> float:
    """Images per second of so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [*launcher, __file__, *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    """The command, and what torchrun starts of it where ``--data`` is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="fcos")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8, help="images of a step, over all processes")
    parser.add_argument("--data", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data:
        with distributed.together(CPU):
            speed = images_per_second(options)
            if distributed.leads():
                print(speed)
        return
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        synth(data, images=options.batch * (options.steps + 1) + 2, size=options.imgsz, val=0, test=0, workers=1)
        words = ["--data", str(data)]
        for name in ("model", "backbone", "imgsz", "batch"):
            words += [f"--{name}", str(getattr(options, name))]
        for _ in range(options.repeats):
            for processes, speeds in found.items():
                speeds.append(measured(processes, words))
                print(f"{processes} of 1 thread: {speeds[-1]:.2f} images/s", flush=True)
    one, two = (statistics.median(speeds) for speeds in found.values())
    print(f"{options.model}, {options.backbone}, {options.imgsz} px, batch {options.batch}, medians: two processes")
    print(f"{two:.2f} images/s, one {one:.2f}, ratio {two / one:.2f}; load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
