"""Training images, decoded and scaled: read each time, kept in memory, or kept in a file on disk.

A cache is indexed by a sample's number and gives [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
from tqdm import tqdm

from ..errors import LeukoError
from .dataset import Dataset
from .images import fit, read_image

Cache = Literal["none", "ram", "disk"]


class Images(Protocol):
    """What all of them are."""

    def __getitem__(self, index: int) -> np.ndarray: ...


class Reading:
    """No cache: an image is decoded whenever it is wanted."""

    def __init__(self, dataset: Dataset, image_size: int):
        self.samples, self.image_size = dataset.samples, image_size

    def __getitem__(self, index: int) -> np.ndarray:
        return fit(read_image(self.samples[index].image, self.image_size), self.image_size)


def in_memory(dataset: Dataset, image_size: int) -> list[np.ndarray]:
    """All images in memory, decoded before workers are forked, which then share them."""
    return list(_decoded(dataset, image_size))


class OnDisk:
    """All images, decoded, in one temporary file that is mapped to memory: the system keeps of it what fits, workers
    share it, and it is gone with the process. ``TMPDIR`` says where it lies. Raises LeukoError where it cannot."""

    def __init__(self, dataset: Dataset, image_size: int):
        self.shapes: list[tuple[int, int, int]] = []
        self.starts = [0]
        try:
            self.file = tempfile.TemporaryFile(prefix="leuko-cache-")  # noqa: SIM115  open as long as this
            for image in _decoded(dataset, image_size):
                self.file.write(np.ascontiguousarray(image).data)
                self.shapes.append(image.shape)
                self.starts.append(self.starts[-1] + image.size)
            self.file.flush()
        except OSError as error:
            remedy = "make room, set TMPDIR to another folder, or give --cache none"
            raise LeukoError(f"--cache disk: the images cannot be kept: {error.strerror}; {remedy}") from error
        self.pixels = np.memmap(self.file, dtype=np.uint8, mode="r", shape=(self.starts[-1],))

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self.pixels[self.starts[index] : self.starts[index + 1]]).reshape(self.shapes[index])


def _decoded(dataset: Dataset, image_size: int) -> Iterator[np.ndarray]:
    """All images in order, decoded by as many threads as there are cores, only a few ahead of what is taken."""
    reading = Reading(dataset, image_size)
    ahead = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor() as pool, tqdm(total=len(dataset), desc="caching images", unit="image") as bar:
        waiting = [pool.submit(reading.__getitem__, i) for i in range(min(ahead, len(dataset)))]
        for i in range(len(dataset)):
            yield waiting.pop(0).result()
            bar.update()
            if i + ahead < len(dataset):
                waiting.append(pool.submit(reading.__getitem__, i + ahead))


CACHES = {"none": Reading, "ram": in_memory, "disk": OnDisk}
