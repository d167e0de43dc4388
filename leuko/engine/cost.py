"""What a model costs: its parameters, and its time an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def parameters(model: torch.nn.Module) -> int:
    """Count the parameters of a model, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def seconds_per_image(run: Callable[[Any], Any], images: Sequence[Any], warmup: int = 3) -> np.ndarray:
    """Time ``run(image)`` on each image: seconds, [len(images)].

    The first calls allocate memory and choose kernels, so ``warmup`` of them go before, untimed. A GPU's work is
    waited for.
    """
    if not len(images):
        raise ValueError("no images to time")
    for i in range(warmup):
        run(images[i % len(images)])
    seconds = np.empty(len(images))
    for i, image in enumerate(images):
        _wait()
        start = time.perf_counter()
        run(image)
        _wait()
        seconds[i] = time.perf_counter() - start
    return seconds


def frames_per_second(run: Callable[[Any], Any], images: Sequence[Any], warmup: int = 3) -> float:
    """Return the images a second that ``run(image)`` handles one by one: the inverse of the median time."""
    return float(1 / np.median(seconds_per_image(run, images, warmup)))


def gflops(model: torch.nn.Module, size: int, device: torch.device) -> float:
    """The floating-point operations of one image [3, size, size] in eval mode, in 10^9, a multiplication and an
    addition counting as two; counted by torch as they run, on a grey image. Needs a plain model, not a prepared one."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([torch.full((3, size, size), 0.5, device=device)])
    return counter.get_total_flops() / 1e9


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    """Median, 95th and 99th percentile of times, in milliseconds."""
    return {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 2) for p in (50, 95, 99)}


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use, in MiB: of the GPU since the process began, or of the process itself."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
