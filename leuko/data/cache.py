"""Training images, decoded and scaled: read each time, kept in memory, or kept in a file on disk.

A cache is indexed by an image's number and gives [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import LeukoError
from .images import load_image


class Reading:
    """No cache: an image is decoded whenever it is needed."""

    def __init__(self, paths: Sequence[Path], image_size: int):
        self.paths, self.image_size = paths, image_size

    def __getitem__(self, index: int) -> np.ndarray:
        return load_image(self.paths[index], self.image_size)


def in_memory(paths: Sequence[Path], image_size: int) -> list[np.ndarray]:
    """All images in memory, decoded before workers are forked, which then share them."""
    return list(_decoded(paths, image_size))


class OnDisk:
    """All images, decoded, in one temporary file that is mapped to memory: the system keeps as much of it as fits,
    workers share it, and it disappears with the process. ``TMPDIR`` chooses its folder. Raises LeukoError."""

    def __init__(self, paths: Sequence[Path], image_size: int):
        self.shapes: list[tuple[int, int, int]] = []
        self.starts = [0]
        try:
            self.file = tempfile.TemporaryFile(prefix="leuko-cache-")  # noqa: SIM115  open as long as this object
            for image in _decoded(paths, image_size):
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


def _decoded(paths: Sequence[Path], image_size: int) -> Iterator[np.ndarray]:
    """All images in order, decoded by one thread per core, only a few ahead of what is taken."""
    ahead = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), desc="caching images", unit="image") as bar:
        waiting = [pool.submit(load_image, path, image_size) for path in paths[:ahead]]
        for i in range(len(paths)):
            yield waiting.pop(0).result()
            bar.update()
            if i + ahead < len(paths):
                waiting.append(pool.submit(load_image, paths[i + ahead], image_size))


CACHES = {"none": Reading, "ram": in_memory, "disk": OnDisk}
