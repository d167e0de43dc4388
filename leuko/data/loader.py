"""From samples to batches: decoding, resizing, caching, augmentation, and batches whose order a seed fixes.

An item is ``{"image": uint8 [3, H, W] RGB, "boxes": float32 [N, 4], "labels": int64 [N], "index": int}``. What a
training item looks like depends on (seed, epoch, index) alone: not on the number of workers, nor on where a run was
resumed.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from ..errors import LeukoError
from .balance import epoch_order, repeat_factors
from .cache import CACHES, Cache
from .dataset import Dataset, Sample
from .images import read_image
from .transforms.compose import Step, augment
from .transforms.sample import AugmentedSample

Item = dict[str, torch.Tensor | int]


def fitted_field(sample: Sample, image: np.ndarray) -> AugmentedSample:
    """The sample's cells (crowds left out) on its image, which has been scaled to another size."""
    height, width = image.shape[:2]
    factors = np.array([width / sample.width, height / sample.height] * 2, dtype=np.float32)
    return AugmentedSample(image, sample.boxes[~sample.crowd] * factors, sample.labels[~sample.crowd])


def to_item(field: AugmentedSample, index: int) -> Item:
    """Tensors of a field, in the layout that models take."""
    height, width = field.image.shape[:2]
    planes = np.empty((3, height, width), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(field.image), list(planes))  # into place, several times faster than a transpose
    return {
        "image": torch.from_numpy(planes),
        "boxes": torch.from_numpy(np.asarray(field.boxes, dtype=np.float32).reshape(-1, 4)),
        "labels": torch.from_numpy(np.asarray(field.labels, dtype=np.int64)),
        "index": index,
    }


class TrainingItems(torch.utils.data.Dataset):
    """Samples scaled to ``image_size`` and augmented; indexed by (epoch, index)."""

    def __init__(
        self,
        dataset: Dataset,
        image_size: int,
        steps: Sequence[Step],
        seed: int,
        cache: Cache = "none",
        repeat_factor: float = 0.0,
    ):
        self.samples, self.image_size, self.steps, self.seed = dataset.samples, image_size, steps, seed
        self.factors = repeat_factors(dataset, repeat_factor)
        self.cells, self.rarity = dataset.counts(), _rarity(dataset)
        self.cache = CACHES[cache](dataset, image_size)

    def __len__(self) -> int:
        """Images an epoch, repeated ones counted."""
        return round(float(self.factors.sum()))

    def __getitem__(self, key: tuple[int, int, int]) -> Item:
        epoch, index, time = key
        rng = np.random.default_rng((self.seed, epoch, index, *([time] if time else [])))
        return to_item(augment(self.field(index), self.steps, rng, self.another), index)

    def field(self, index: int) -> AugmentedSample:
        """A sample as it is before augmentation."""
        sample = self.samples[index]
        return fitted_field(sample, self.cache[index])

    def another(self, rng: np.random.Generator, rare: bool) -> AugmentedSample:
        """A sample drawn at random; if ``rare``, the more often the rarer its rarest type, with cells of that alone."""
        field = self.field(int(rng.choice(len(self.samples), p=self.rarity if rare else None)))
        if rare and len(field.labels):
            of_it = field.labels == field.labels[self.cells[field.labels].argmin()]
            field = replace(field, boxes=field.boxes[of_it], labels=field.labels[of_it])
        return field


def _rarity(dataset: Dataset) -> np.ndarray:
    """How often a sample is drawn for its rare types: by 1 / cells of its rarest one; [samples], of sum 1."""
    cells = dataset.counts()
    least = [cells[s.labels[~s.crowd]].min() if (~s.crowd).any() else np.inf for s in dataset.samples]
    weight = 1 / np.array(least, dtype=float)
    return weight / weight.sum() if weight.any() else np.full(len(weight), 1 / len(weight))


class PlainItems(torch.utils.data.Dataset):
    """Samples as they are stored, for evaluation."""

    def __init__(self, dataset: Dataset):
        self.samples = dataset.samples

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        return to_item(AugmentedSample(read_image(sample.image), sample.boxes, sample.labels), index)


class _Told(torch.utils.data.Dataset):
    """Items, or in place of an item the LeukoError met: a worker process hands exceptions over as tracebacks only."""

    def __init__(self, items: TrainingItems | PlainItems):
        self.items = items

    def __getitem__(self, key: object) -> Item | LeukoError:
        try:
            return self.items[key]
        except LeukoError as error:
            return error


def training_batches(
    items: TrainingItems, epoch: int, batch: int, start: int = 0, workers: int = 0
) -> Iterator[list[Item]]:
    """The batches of one epoch from batch ``start`` on (see :func:`batch_bounds`); each image once, or by its repeat
    factor.

    Raises LeukoError for an image that cannot be read.
    """
    order = epoch_order(items.factors, np.random.default_rng((items.seed, epoch)))
    bounds = batch_bounds(len(order), batch)[start:]
    keys = [[(epoch, *entry) for entry in order[first:end]] for first, end in pairwise(bounds)]
    return _batches(items, keys, workers)


def batch_bounds(images: int, batch: int) -> list[int]:
    """Where an epoch's batches begin, and where the last one ends: as few as can be of at most ``batch`` images, their
    sizes differing by one at most. A short last batch would move the weights as far as the others do, by what few
    images say: of 385 images in batches of 8, by one."""
    batches = math.ceil(images / batch)
    return [i * images // batches for i in range(batches + 1)]


def plain_batches(dataset: Dataset, batch: int, workers: int = 0) -> Iterator[list[Item]]:
    """Batches of the samples in their order, as they are stored; raises LeukoError for an image that cannot be read."""
    keys = [list(range(at, min(at + batch, len(dataset)))) for at in range(0, len(dataset), batch)]
    return _batches(PlainItems(dataset), keys, workers)


def _batches(items: TrainingItems | PlainItems, keys: list[list], workers: int) -> Iterator[list[Item]]:
    in_processes = {"num_workers": workers, "worker_init_fn": _start_worker} if workers else {}
    for batch in DataLoader(_Told(items), batch_sampler=keys, collate_fn=list, **in_processes):
        for item in batch:
            if isinstance(item, LeukoError):
                raise item
        yield batch


def default_workers() -> int:
    """Loader processes for this machine: one a core but for the one that trains, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) - 1)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
