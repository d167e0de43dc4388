"""From samples to batches: decoding, resizing, caching, augmentation, and batches whose order a seed fixes.

An item is ``{"image": uint8 [3, H, W] RGB, "boxes": float32 [N, 4], "labels": int64 [N], "index": int}``. What a training
item looks like depends on (seed, epoch, index) alone: not on the number of workers, nor on where a run was resumed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from .augment import Field, Step, augment
from .images import read_image
from .sample import Dataset, Sample

Item = dict[str, torch.Tensor | int]


def fit(image: np.ndarray, image_size: int) -> np.ndarray:
    """Scale the longer side of [H, W, 3] to ``image_size`` pixels."""
    height, width = image.shape[:2]
    scale = image_size / max(height, width)
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def fitted_field(sample: Sample, image: np.ndarray) -> Field:
    """The sample's cells (crowds left out) on its image, which has been scaled to another size."""
    height, width = image.shape[:2]
    factors = np.array([width / sample.width, height / sample.height] * 2, dtype=np.float32)
    return Field(image, sample.boxes[~sample.crowd] * factors, sample.labels[~sample.crowd])


def to_item(field: Field, index: int) -> Item:
    """Tensors of a field, in the layout that models take."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(field.image.transpose(2, 0, 1))),
        "boxes": torch.from_numpy(np.asarray(field.boxes, dtype=np.float32).reshape(-1, 4)),
        "labels": torch.from_numpy(np.asarray(field.labels, dtype=np.int64)),
        "index": index,
    }


class TrainingItems(torch.utils.data.Dataset):
    """Samples scaled to ``image_size`` and augmented; indexed by (epoch, index)."""

    def __init__(self, dataset: Dataset, image_size: int, steps: Sequence[Step], seed: int, cache: bool = False):
        self.samples, self.image_size, self.steps, self.seed = dataset.samples, image_size, steps, seed
        self.cache = _cached(dataset, image_size) if cache else None

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        sample = self.samples[index]
        image = self.cache[index] if self.cache else fit(read_image(sample.image), self.image_size)
        field = fitted_field(sample, image)
        return to_item(augment(field, self.steps, np.random.default_rng((self.seed, epoch, index))), index)


class PlainItems(torch.utils.data.Dataset):
    """Samples as they are stored, for evaluation."""

    def __init__(self, dataset: Dataset):
        self.samples = dataset.samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        return to_item(Field(read_image(sample.image), sample.boxes, sample.labels), index)


def training_batches(items: TrainingItems, epoch: int, batch: int, start: int = 0, workers: int = 0) -> DataLoader:
    """The batches (lists of items) of one epoch from batch ``start`` on; each image once, the last batch as it falls."""
    order = np.random.default_rng((items.seed, epoch)).permutation(len(items.samples)).tolist()
    keys = [[(epoch, i) for i in order[at : at + batch]] for at in range(start * batch, len(order), batch)]
    return DataLoader(items, batch_sampler=keys, collate_fn=list, **_workers(workers))


def plain_batches(dataset: Dataset, batch: int, workers: int = 0) -> DataLoader:
    """Batches of the samples in their order, as they are stored."""
    return DataLoader(PlainItems(dataset), batch_size=batch, collate_fn=list, **_workers(workers))


def default_workers() -> int:
    """Loader processes for this machine: one a core but for the one that trains, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) - 1)


def _workers(number: int) -> dict:
    return {"num_workers": number, "worker_init_fn": _start_worker} if number else {}


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle


def _cached(dataset: Dataset, image_size: int) -> list[np.ndarray]:
    """All images scaled to ``image_size`` in memory, before workers are forked, which then share them."""

    def images() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(lambda s: fit(read_image(s.image), image_size), dataset.samples)

    return list(tqdm(images(), total=len(dataset), desc="caching images", unit="image"))
