"""From files to batches: images to detect on, and the worker processes that read these and training images alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from .dataset import Dataset
from .fit import fitted_size
from .images import LoadedImage, is_large
from .workers import signals_waiting, start_worker

K, R = TypeVar("K"), TypeVar("R")


def to_tensor(image: np.ndarray) -> Tensor:
    """An image [H, W, 3] uint8 as a tensor [3, H, W]."""
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(image), list(planes))  # into place, several times faster than a transpose
    return torch.from_numpy(planes)


class _Images(TorchDataset):
    """Images by their number; None for one that is left to the main process."""

    def __init__(self, paths: Sequence[Path], *how: object):
        self.paths, self.how = paths, how

    def __getitem__(self, index: int) -> LoadedImage | None:
        path = self.paths[index]
        return None if get_worker_info() and is_large(path) else LoadedImage.of_file(path, *self.how)


def equal_batches(dataset: Dataset, image_size: int, batch: int) -> list[list[int]]:
    """Numbers of samples in batches of at most ``batch`` images, all of which have the same size at ``image_size``: no
    image is then padded for another, and each is detected on as if it were alone."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, sample in enumerate(dataset.samples):
        by_size.setdefault(fitted_size((sample.width, sample.height), image_size), []).append(i)
    return [alike[at : at + batch] for alike in by_size.values() for at in range(0, len(alike), batch)]


def sample_batches(
    dataset: Dataset,
    image_sizes: Sequence[int],
    batches: Sequence[Sequence[int]],
    workers: int = 0,
    with_pixels: bool = False,
) -> Iterator[list[LoadedImage]]:
    """Batches of a data set's images, each by the numbers of its samples; raises LeukoError for an image that cannot be
    read."""
    images = _Images([sample.image for sample in dataset.samples], image_sizes, with_pixels)
    for items in _in_order(images, batches, workers):
        for item in items:
            if isinstance(item, LeukoError):
                raise item
        yield items


def file_images(
    paths: Sequence[Path], image_sizes: Sequence[int], workers: int = 0, max_pixels: float = MAX_PIXELS
) -> Iterator[LoadedImage | LeukoError]:
    """Image files in their order, with their stored pixels; in place of one that cannot be read, the error."""
    alone = [[i] for i in range(len(paths))]
    for (item,) in _in_order(_Images(paths, image_sizes, True, max_pixels), alone, workers):
        yield item


def _in_order(images: _Images, batches: Sequence[Sequence[int]], workers: int) -> Iterator[list]:
    for numbers, items in zip(batches, started(worker_loader(images, batches, list, workers)), strict=True):
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
    for (result,) in started(worker_loader(_Results(function), [[key] for key in keys], list, workers)):
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


def worker_loader(
    items: TorchDataset, keys: Sequence, collate: Callable[[list], object], workers: int, **more: bool
) -> DataLoader:
    """A loader of batches of items by their ``keys``, of which ``collate`` makes a batch. In place of an item that
    raises LeukoError comes the error. Its worker processes stay from one pass to the next."""
    if workers:
        more |= {"num_workers": workers, "worker_init_fn": start_worker, "persistent_workers": True}
    return DataLoader(_ErrorsAsItems(items), batch_sampler=keys, collate_fn=collate, **more)


def started(loader: DataLoader) -> Iterator:
    """A pass over a loader; signals wait while its worker processes are started, and while they end with the pass,
    where nobody else has the loader: Python loses what is raised at that."""
    with signals_waiting():
        items = iter(loader)
    try:
        yield from items
    finally:
        with signals_waiting():
            del items, loader
