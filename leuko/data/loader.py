"""From samples to batches: decoding, caching, augmentation, rare types, and an order that the seed fixes.

A training image is ``(image, target, index)``: uint8 [3, H, W] RGB, ``{"boxes": float32 [N, 4], "labels": int64 [N]}``
and the number of its sample. It depends on (seed, epoch, index) alone: not on the number of workers, nor on where a run
was resumed.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from ..config import MAX_PIXELS
from ..errors import LeukoError
from .cache import CACHES
from .dataset import AugmentedSample, Dataset
from .header import ImageHeader, image_header
from .images import fit
from .slides import Slide, is_slide, open_image
from .transforms.compose import Step, augment

K, R = TypeVar("K"), TypeVar("R")
TrainingItem = tuple[Tensor, dict[str, Tensor], int]


def to_tensor(image: np.ndarray) -> Tensor:
    """An image [H, W, 3] uint8 as a tensor [3, H, W]."""
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(image), list(planes))  # into place, several times faster than a transpose
    return torch.from_numpy(planes)


# ---------------------------------------------------------------- images to learn from


class TrainingImages(TorchDataset):
    """The samples of a data set, scaled to ``image_size`` and augmented; indexed by (epoch, index, repeat)."""

    def __init__(
        self,
        dataset: Dataset,
        image_size: int,
        steps: Sequence[Step],
        seed: int,
        cache: str = "none",
        repeat_factor: float = 0.0,
    ):
        self.samples, self.image_size, self.steps, self.seed = dataset.samples, image_size, steps, seed
        self.factors = repeat_factors(dataset, repeat_factor)
        self.cells_per_type, self.rarity = dataset.counts(), _rarity(dataset)
        self.pixels = CACHES[cache]([sample.image for sample in dataset.samples], image_size)

    def __len__(self) -> int:
        """Images per epoch, repeated ones counted."""
        return round(float(self.factors.sum()))

    def __getitem__(self, key: tuple[int, int, int]) -> TrainingItem:
        epoch, index, repeat = key
        rng = np.random.default_rng((self.seed, epoch, index, *([repeat] if repeat else [])))
        sample = augment(self.plain(index), self.steps, rng, self.another)
        target = {
            "boxes": torch.from_numpy(np.asarray(sample.boxes, dtype=np.float32).reshape(-1, 4)),
            "labels": torch.from_numpy(np.asarray(sample.labels, dtype=np.int64)),
        }
        return to_tensor(sample.image), target, index

    def plain(self, index: int) -> AugmentedSample:
        """A sample as it is before augmentation."""
        sample, image = self.samples[index], self.pixels[index]
        scale = np.array([image.shape[1] / sample.width, image.shape[0] / sample.height] * 2, dtype=np.float32)
        return AugmentedSample(image, sample.boxes[~sample.crowd] * scale, sample.labels[~sample.crowd])

    def another(self, rng: np.random.Generator, rare: bool) -> AugmentedSample:
        """A sample drawn at random; if ``rare``, in proportion to 1 / cells of its rarest type, with only its cells."""
        sample = self.plain(int(rng.choice(len(self.samples), p=self.rarity if rare else None)))
        if rare and len(sample.labels):
            rarest = sample.labels == sample.labels[self.cells_per_type[sample.labels].argmin()]
            sample = replace(sample, boxes=sample.boxes[rarest], labels=sample.labels[rarest])
        return sample


def training_batches(
    images: TrainingImages, epoch: int, batch: int, start: int = 0, workers: int = 0
) -> Iterator[list[TrainingItem]]:
    """The batches of one epoch from batch ``start`` on (see :func:`batch_bounds`), each image once or by its repeat
    factor. Raises LeukoError for an image that cannot be read."""
    order = epoch_order(images.factors, np.random.default_rng((images.seed, epoch)))
    bounds = batch_bounds(len(order), batch)[start:]
    for items in _batches(images, [[(epoch, *entry) for entry in order[a:b]] for a, b in pairwise(bounds)], workers):
        for item in items:
            if isinstance(item, LeukoError):
                raise item
        yield items


def batch_bounds(images: int, batch: int) -> list[int]:
    """Where an epoch's batches begin, and where the last ends: as few as possible of at most ``batch`` images, whose
    sizes differ by one at most. (A short last batch, of 385 images in eights one image, would move the weights as far
    as a whole one.)"""
    batches = math.ceil(images / batch)
    return [i * images // batches for i in range(batches + 1)]


# ---------------------------------------------------------------- rare types


def repeat_factors(dataset: Dataset, threshold: float) -> np.ndarray:
    """How often each image is shown per epoch, on average: [samples] of at least 1 (Gupta et al. 2019, LVIS, 5.1).

    A type on a share f of the images has the factor max(1, sqrt(threshold / f)); an image has its types' largest.
    """
    present = dataset.counts_per_image() > 0
    factor = np.sqrt(threshold / np.maximum(present.mean(0), 1e-9)).clip(1)
    return np.where(present, factor, 1).max(1)


def epoch_order(factors: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """One epoch as (sample, how often it came before in it), in random order.

    The number is the same in every epoch, round(sum of the factors); each sample comes as often as its factor says,
    rounded up or down at random (systematic sampling).
    """
    total = round(float(factors.sum()))
    ends = np.cumsum(factors) * (total / factors.sum())
    marks = np.arange(total) + rng.random()
    samples = np.searchsorted(ends, marks, side="right").clip(max=len(factors) - 1)
    repeats = np.arange(total) - np.searchsorted(samples, samples)
    return [(int(samples[i]), int(repeats[i])) for i in rng.permutation(total)]


def loss_weights(dataset: Dataset) -> tuple[float, ...]:
    """A weight per type in proportion to 1 / sqrt(cells), with mean 1 over all cells; a type without cells counts as
    one with a single cell."""
    cells = np.maximum(dataset.counts(), 1).astype(float)
    weights = cells**-0.5
    return tuple((weights * cells.sum() / (weights * cells).sum()).round(4).tolist())


def cells_per_epoch(dataset: Dataset, factors: np.ndarray) -> list[float]:
    """Cells of each type that an epoch shows, on average."""
    return (dataset.counts_per_image() * factors[:, None]).sum(0).tolist()


def _rarity(dataset: Dataset) -> np.ndarray:
    """How often a sample is drawn for its rare types, in proportion to 1 / cells of its rarest: [samples], sum 1."""
    cells = dataset.counts()
    rarest = [cells[s.labels[~s.crowd]].min() if (~s.crowd).any() else np.inf for s in dataset.samples]
    weight = 1 / np.array(rarest, dtype=float)
    return weight / weight.sum() if weight.any() else np.full(len(weight), 1 / len(weight))


# ---------------------------------------------------------------- images to detect on


LARGE = 16  # megapixels above which an image is decoded on its own


@dataclass
class LoadedImage:
    """An image as detectors see it: ``views`` holds it at each image size asked for, uint8 [3, h, w]; ``size`` is the
    (width, height) of the stored image, ``pixels`` [H, W, 3] uint8 the stored image itself, if asked for. Of a file,
    ``header`` is its header, and ``bits`` are those that its channels use."""

    path: Path
    size: tuple[int, int]
    views: dict[int, Tensor] = field(default_factory=dict)
    pixels: np.ndarray | Slide | None = None
    header: ImageHeader | None = None
    bits: int = 8

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, image_sizes: Sequence[int]) -> LoadedImage:
        """From an image [H, W, 3] uint8 RGB that is no file."""
        views = {size: to_tensor(fit(pixels, size)) for size in image_sizes}
        return cls(Path(), (pixels.shape[1], pixels.shape[0]), views, pixels)

    @classmethod
    def of_file(
        cls,
        path: Path,
        image_sizes: Sequence[int],
        with_pixels: bool = False,
        max_pixels: float = MAX_PIXELS,
        data: bytes = b"",
    ) -> LoadedImage:
        """From a file, read once, or from its bytes; or a slide, whose ``pixels`` are read as they are asked for.
        Raises LeukoError as :func:`~leuko.data.slides.open_image` does."""
        file = open_image(path, max_pixels, data)
        pixels = file.decode() if with_pixels else None
        views = {size: to_tensor(file.view(size, pixels)) for size in image_sizes}
        return cls(path, file.header[:2], views, pixels, file.header, file.bits)


def is_left_to_main(path: Path) -> bool:
    """Whether a worker process leaves an image to the main process, since several large ones at once are more than a
    machine holds. Raises LeukoError."""
    if not get_worker_info() or is_slide(path):
        return False
    header = image_header(path, math.inf)
    return header.width * header.height > LARGE * 1e6


class _Images(TorchDataset):
    """Images by their number; None for one that is left to the main process."""

    def __init__(self, paths: Sequence[Path], *how: object):
        self.paths, self.how = paths, how

    def __getitem__(self, index: int) -> LoadedImage | None:
        path = self.paths[index]
        return None if is_left_to_main(path) else LoadedImage.of_file(path, *self.how)


def sample_batches(
    dataset: Dataset, image_sizes: Sequence[int], batch: int = 1, workers: int = 0, with_pixels: bool = False
) -> Iterator[list[LoadedImage]]:
    """Batches of a data set's images in their order; raises LeukoError for an image that cannot be read."""
    images = _Images([sample.image for sample in dataset.samples], image_sizes, with_pixels)
    for items in _in_order(images, batch, workers):
        for item in items:
            if isinstance(item, LeukoError):
                raise item
        yield items


def file_images(
    paths: Sequence[Path], image_sizes: Sequence[int], workers: int = 0, max_pixels: float = MAX_PIXELS
) -> Iterator[LoadedImage | LeukoError]:
    """Image files in their order, with their stored pixels; in place of one that cannot be read, the error."""
    for (item,) in _in_order(_Images(paths, image_sizes, True, max_pixels), 1, workers):
        yield item


def _in_order(images: _Images, batch: int, workers: int) -> Iterator[list]:
    keys = [list(range(at, min(at + batch, len(images.paths)))) for at in range(0, len(images.paths), batch)]
    for numbers, items in zip(keys, _batches(images, keys, workers), strict=True):
        yield [_ErrorsAsItems(images)[i] if item is None else item for i, item in zip(numbers, items, strict=True)]


# ---------------------------------------------------------------- worker processes


class _Results(TorchDataset):
    """What a function makes of each key."""

    def __init__(self, function: Callable[[K], R]):
        self.function = function

    def __getitem__(self, key: K) -> R:
        return self.function(key)


def in_workers(function: Callable[[K], R], keys: Sequence[K], workers: int = 0) -> Iterator[R | LeukoError]:
    """``function(key)`` of each key in their order, or its LeukoError, by so many processes of one thread each; by this
    process without any. No more than two results per process wait."""
    for (result,) in _batches(_Results(function), [[key] for key in keys], workers):
        yield result


class _ErrorsAsItems(TorchDataset):
    """Items, or in place of an item its LeukoError: a worker process passes exceptions on as tracebacks only."""

    def __init__(self, items: TorchDataset):
        self.items = items

    def __getitem__(self, key: object) -> object:
        try:
            return self.items[key]
        except LeukoError as error:
            return error


def _batches(items: TorchDataset, keys: list[list], workers: int) -> Iterator[list]:
    processes = {"num_workers": workers, "worker_init_fn": _start_worker} if workers else {}
    with _signals_waiting():
        return iter(DataLoader(_ErrorsAsItems(items), batch_sampler=keys, collate_fn=list, **processes))


@contextmanager
def _signals_waiting() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: of an exception in what Python does at a fork it prints a
    traceback, and nobody else hears of it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_count(workers: int) -> int:
    """The ``--workers`` option as a number: -1 is one process per core but one, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1) if workers < 0 else workers


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # Ctrl-C and a scheduler's SIGTERM reach all processes of a job; only the one that trains may stop, after its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
