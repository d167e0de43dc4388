"""Two processes against one, at the same global batch: training images per second, and their ratio.

    python benchmarks/distributed.py --repeats 3

Each process has one thread and no loader process. Both sides train the same steps of the same detector on the same
rendered images, kept in memory, and are started by turns, since a machine is never quite idle; a side's first step is
left out. With two cores, 2 is the most that can be reached. On a busy machine times say little; the processor time per
image says what the ratio would be where no process waits for the other: 2 x that of one / that of two.
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
from leuko.engine.train import Loop
from leuko.models import create
from leuko.ops import ranks

CPU = torch.device("cpu")


def measure(options: argparse.Namespace) -> tuple[float, float]:
    """Images per second, and seconds of processor time per image, of all processes together, over the steps of an epoch
    but the first."""
    torch.set_num_threads(1)
    train_set = source.load(options.data, "train")
    torch.manual_seed(0)
    model = create(options.model, len(train_set.types), options.backbone, image_size=options.imgsz)
    recipe = {"imgsz": options.imgsz, "batch": options.batch, "lr": 0.001, "augment": "none", "cache": "ram"}
    loop = Loop(TrainOptions(**recipe, workers=0), model, train_set, CPU, fresh=False)
    for i, batch in enumerate(loop.loader.epoch(0)):
        if i == 1:
            start, worked = time.perf_counter(), time.process_time()
        sum(loop.network(batch.images, batch.targets).values()).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=True)
    images = loop.loader.bounds[-1] - loop.loader.bounds[1]
    worked = ranks.total(torch.tensor(time.process_time() - worked))
    return images / (time.perf_counter() - start), float(worked) / images


def measured(processes: int, words: list[str]) -> tuple[float, float]:
    """What :func:`measure` gives for so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [*launcher, __file__, *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return tuple(map(float, done.stdout.split()))


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
            result = measure(options)
            if distributed.leads():
                print(*result)
        return
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        synth(data, images=options.batch * (options.steps + 1) + 2, size=options.imgsz, val=0, test=0, workers=1)
        words = ["--data", str(data)]
        for name in ("model", "backbone", "imgsz", "batch"):
            words += [f"--{name}", str(getattr(options, name))]
        for _ in range(options.repeats):
            for processes, results in found.items():
                results.append(measured(processes, words))
                speed, worked = results[-1]
                print(f"{processes} of 1 thread: {speed:.2f} images/s, {worked:.3f} s of work per image", flush=True)
    (one, alone), (two, shared) = ([statistics.median(v) for v in zip(*r, strict=True)] for r in found.values())
    print(f"{options.model}, {options.backbone}, {options.imgsz} px, batch {options.batch}, medians: two processes")
    print(f"{two:.2f} images/s, one {one:.2f}, ratio {two / one:.2f}, by processor time {2 * alone / shared:.2f};")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
