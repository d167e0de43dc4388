"""Results by interference factor (Li et al. 2022, Figure 4 and Supplementary Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cells import CELL_FACTORS, FACTORS
from ..data.dataset import Dataset, Sample
from ..detections import Detections
from .confusion import Pairing, correct_cells
from .differential import percent_of

IMPURITIES = ("dye_residue", "cell_debris", "dust")


@dataclass(frozen=True)
class Rate:
    """A rate: ``hits`` of ``total``, in percent, with its 95 % Wilson interval."""

    factor: str
    measure: str
    hits: int
    total: int
    percent: float
    low: float
    high: float


def rate(factor: str, measure: str, hits: int, total: int) -> Rate:
    """A rate from its counts; nan where the total is 0."""
    return Rate(factor, measure, hits, total, *percent_of(hits, total))


def by_factor(dataset: Dataset, predictions: Sequence[Detections], pairings: Sequence[Pairing]) -> list[Rate]:
    """The rates of each factor that the data set notes; [] if it notes none.

    Cell accuracy: correct cells of those with the factor (a factor of cells), or of those on images with it (a factor
    of images). Image accuracy: images with every cell correct and no extra detection, of the images with the factor (on
    the image or on a cell). Impurity ratio: images with an extra detection, of those with an impurity (``impurity`` is
    the three of them together); lower is better.
    """
    correct = correct_cells(dataset, predictions, pairings)
    extra = np.array([(p.of_detection == -1).any() for p in pairings], dtype=bool)
    right = np.array([c[~s.crowd].all() for c, s in zip(correct, dataset.samples, strict=True)], dtype=bool) & ~extra
    noted = [set(s.factors).union(*s.cell_factors) for s in dataset.samples]
    rows = []
    for name in [*FACTORS, *sorted(set().union(*noted) - set(FACTORS))]:
        images = [i for i, factors in enumerate(noted) if name in factors]
        if not images:
            continue
        with_factor = {i: _cells_with(name, dataset.samples[i]) for i in images}
        of_cells = name in CELL_FACTORS or (name not in FACTORS and any(m.any() for m in with_factor.values()))
        counted = with_factor if of_cells else {i: ~dataset.samples[i].crowd for i in images}
        cells = np.concatenate([correct[i][mask] for i, mask in counted.items()])
        rows.append(rate(name, "cell accuracy", int(cells.sum()), len(cells)))
        rows.append(rate(name, "image accuracy", int(right[images].sum()), len(images)))
        if name in IMPURITIES:
            rows.append(rate(name, "impurity ratio", int(extra[images].sum()), len(images)))
    if images := [i for i, factors in enumerate(noted) if factors & set(IMPURITIES)]:
        rows.append(rate("impurity", "impurity ratio", int(extra[images].sum()), len(images)))
    return rows


def _cells_with(factor: str, sample: Sample) -> np.ndarray:
    """Which cells of a sample have the factor, [cells] bool, crowds left out."""
    return np.array([factor in factors for factors in sample.cell_factors], dtype=bool) & ~sample.crowd
