"""Images to learn from: decoding, augmentation, rare types, and batches in an order that the seed fixes.

A training image is ``(image, target, index)``: uint8 [3, H, W] RGB, ``{"boxes": float32 [N, 4], "labels": int64 [N]}``
and the number of its sample. It depends on (seed, epoch, index) alone: not on the number of workers or processes, nor
on where a run was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..errors import LeukoError
from .dataset import AugmentedSample, Dataset
from .images import load_image
from .loader import started, to_tensor, worker_loader
from .tools.builder import in_threads
from .transforms.compose import Step, augment

TrainingItem = tuple[Tensor, dict[str, Tensor], int]


class TrainingImages(TorchDataset):
    """The samples of a data set, scaled to ``image_size`` and augmented; indexed by (epoch, index, repeat).

    With the ``cache`` "ram" they are decoded once, before workers are forked, which then share them."""

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
        numbers = range(len(self.samples))
        self.kept = in_threads(self._decoded, numbers, "caching images", progress=True) if cache == "ram" else []

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

    def _decoded(self, index: int) -> np.ndarray:
        return load_image(self.samples[index].image, self.image_size)

    def plain(self, index: int) -> AugmentedSample:
        """A sample as it is before augmentation."""
        sample, image = self.samples[index], self.kept[index] if self.kept else self._decoded(index)
        scale = np.array([image.shape[1] / sample.width, image.shape[0] / sample.height] * 2, dtype=np.float32)
        return AugmentedSample(image, sample.boxes[~sample.crowd] * scale, sample.labels[~sample.crowd])

    def another(self, rng: np.random.Generator, rare: bool) -> AugmentedSample:
        """A sample drawn at random; if ``rare``, in proportion to 1 / cells of its rarest type, with only its cells."""
        sample = self.plain(int(rng.choice(len(self.samples), p=self.rarity if rare else None)))
        if rare and len(sample.labels):
            rarest = sample.labels == sample.labels[self.cells_per_type[sample.labels].argmin()]
            sample = replace(sample, boxes=sample.boxes[rarest], labels=sample.labels[rarest])
        return sample


@dataclass
class TrainingBatch:
    """The images of one step, uint8, as one tensor [N, 3, H, W] where they have one size; the ``targets`` of each, and
    the ``indices`` of the samples. It iterates over :data:`TrainingItem`."""

    images: Tensor | list[Tensor]
    targets: list[dict[str, Tensor]]
    indices: list[int]

    @classmethod
    def of(cls, items: Sequence[TrainingItem]) -> TrainingBatch:
        """From single images."""
        images, targets, indices = zip(*items, strict=True)
        alike = len({image.shape for image in images}) == 1
        return cls(torch.stack(images) if alike else list(images), list(targets), list(indices))

    def pin_memory(self) -> TrainingBatch:
        """The same in memory from which a GPU copies while the CPU goes on."""
        return replace(self, images=self.images.pin_memory()) if isinstance(self.images, Tensor) else self

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[TrainingItem]:
        return zip(self.images, self.targets, self.indices, strict=True)


class TrainingLoader:
    """The batches of one epoch after the other, read by worker processes that stay.

    Of each batch, rank r of ``share`` = (r, W) gets the images r, r + W, r + 2W ... ``pinned``: see
    :meth:`TrainingBatch.pin_memory`. Raises LeukoError where a batch has fewer images than there are ranks.
    """

    def __init__(
        self,
        images: TrainingImages,
        batch: int,
        workers: int = 0,
        pinned: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        self.images, self.share, self.bounds = images, share, batch_bounds(len(images), batch)
        if (least := min(b - a for a, b in pairwise(self.bounds))) < share[1]:
            raise LeukoError(
                f"--batch {batch}: {share[1]} processes share a batch, and the smallest of an epoch has {least} "
                "images; raise it, or start fewer processes"
            )
        self._keys: list[list[tuple[int, int, int]]] = []
        self._loader = worker_loader(images, self._keys, _training_batch, workers, pin_memory=pinned)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.bounds) - 1

    def keys(self, epoch: int) -> list[list[tuple[int, int, int]]]:
        """The (epoch, index, repeat) of the images of each batch (see :func:`batch_bounds`), for all ranks; each image
        comes once in the epoch, or by its repeat factor."""
        order = epoch_order(self.images.factors, np.random.default_rng((self.images.seed, epoch)))
        return [[(epoch, *entry) for entry in order[a:b]] for a, b in pairwise(self.bounds)]

    def paths(self, epoch: int, batch: int) -> list[str]:
        """The image files of a batch."""
        return [str(self.images.samples[index].image) for _, index, _ in self.keys(epoch)[batch]]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """This rank's share of each batch from ``start`` on. Raises LeukoError for an image that cannot be read."""
        rank, ranks = self.share
        self._keys[:] = [keys[rank::ranks] for keys in self.keys(epoch)[start:]]
        for batch in started(self._loader):
            if isinstance(batch, LeukoError):
                raise batch
            yield batch


def _training_batch(items: list[TrainingItem | LeukoError]) -> TrainingBatch | LeukoError:
    return next((item for item in items if isinstance(item, LeukoError)), None) or TrainingBatch.of(items)


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
