"""Results by interference factor (Li et al. 2022, Figure 4 and Supplementary Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cells import CELL_FACTORS, FACTORS
from ..data.dataset import Dataset
from .confusion import Pairing, correct_cells
from .differential import wilson

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
    """A rate from its counts; nan of nothing."""
    low, high = wilson(hits, total)
    percent = 100 * hits / total if total else float("nan")
    return Rate(factor, measure, hits, total, percent, 100 * low, 100 * high)


def by_factor(dataset: Dataset, predictions: Sequence[dict], pairings: Sequence[Pairing]) -> list[Rate]:
    """The rates of each factor that the data set notes; of none there is no line.

    Cell accuracy: cells found and called by their type, of the cells with the factor, or on the images with it. Image
    accuracy: images with every cell correct and no extra detection, of the images with the factor (on the image or on a
    cell). Impurity ratio: images with a detection that finds no leukocyte, of those with an impurity (``impurity`` is
    the three of them together); lower is better.
    """
    correct = correct_cells(dataset, predictions, pairings)
    clean = [not (p.of_detection == -1).any() for p in pairings]
    samples = list(enumerate(dataset.samples))

    def images_with(*names: str) -> list[int]:
        return [i for i, s in samples if any(n in s.factors or any(n in c for c in s.cell_factors) for n in names)]

    rows = []
    for name in [*FACTORS, *_others(dataset)]:
        images = images_with(name)
        if not images:
            continue
        on_cells = [
            correct[i][j]
            for i in images
            for j, f in enumerate(dataset.samples[i].cell_factors)
            if name in f and not dataset.samples[i].crowd[j]
        ]
        if name in CELL_FACTORS or (name not in FACTORS and on_cells):
            cells = on_cells
        else:
            cells = [c for i in images for c in correct[i][~dataset.samples[i].crowd]]
        rows.append(rate(name, "cell accuracy", int(sum(cells)), len(cells)))
        good = sum(bool(correct[i][~dataset.samples[i].crowd].all()) and clean[i] for i in images)
        rows.append(rate(name, "image accuracy", good, len(images)))
        if name in IMPURITIES:
            rows.append(rate(name, "impurity ratio", sum(not clean[i] for i in images), len(images)))
    if images := images_with(*IMPURITIES):
        rows.append(rate("impurity", "impurity ratio", sum(not clean[i] for i in images), len(images)))
    return rows


def _others(dataset: Dataset) -> list[str]:
    """Factors that the data notes beside the nine."""
    noted = {f for s in dataset.samples for f in (*s.factors, *(f for c in s.cell_factors for f in c))}
    return sorted(noted - set(FACTORS))
