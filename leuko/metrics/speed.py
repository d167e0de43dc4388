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


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
