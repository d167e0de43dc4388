"""Rare types: images shown more often, and weights for the loss."""

from __future__ import annotations

import numpy as np

from .dataset import Dataset


def repeat_factors(dataset: Dataset, threshold: float) -> np.ndarray:
    """How often each image is shown an epoch, on average: [samples] of at least 1 (Gupta et al. 2019, LVIS, 5.1).

    A type on a share f of the images has the factor max(1, sqrt(threshold / f)); an image has its types' largest.
    """
    has = np.array([np.bincount(s.labels[~s.crowd], minlength=len(dataset.types)) > 0 for s in dataset.samples])
    share = has.mean(0)
    factor = np.sqrt(threshold / np.maximum(share, 1e-9)).clip(1)
    return np.where(has, factor, 1).max(1)


def epoch_order(factors: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """One epoch as (sample, how often it came before in it), in random order.

    The number is the same in every epoch, round(sum of the factors); each sample comes as often as its factor says,
    rounded up or down at random (systematic sampling).
    """
    total = round(float(factors.sum()))
    ends = np.cumsum(factors) * (total / factors.sum())
    marks = np.arange(total) + rng.random()
    samples = np.searchsorted(ends, marks, side="right").clip(max=len(factors) - 1)
    times = np.arange(total) - np.searchsorted(samples, samples)
    return [(int(samples[i]), int(times[i])) for i in rng.permutation(total)]


def loss_weights(dataset: Dataset) -> tuple[float, ...]:
    """A weight a type, by 1 / sqrt(cells), whose mean over all cells is 1; a type without cells has that of one."""
    cells = np.maximum(dataset.counts(), 1).astype(float)
    weights = cells**-0.5
    return tuple((weights * cells.sum() / (weights * cells).sum()).round(4).tolist())


def shown(dataset: Dataset, factors: np.ndarray) -> list[float]:
    """Cells of each type that an epoch shows, on average."""
    counts = [np.bincount(s.labels[~s.crowd], minlength=len(dataset.types)) for s in dataset.samples]
    return (np.array(counts) * factors[:, None]).sum(0).tolist()
