"""The differential count: how many leukocytes of each type, and what share of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np


@dataclass(frozen=True)
class Share:
    """One type's cells and its percent of all cells, with the 95 % Wilson interval (nan where there is no cell)."""

    type: str
    cells: int
    percent: float
    low: float
    high: float


def count(labels: np.ndarray, scores: np.ndarray, types: Sequence[str], threshold: float = 0.5) -> list[Share]:
    """Count the detections with score >= ``threshold``: one Share a type, in the order of ``types``.

    ``labels`` [N] int are 0-based indices into ``types``; ``scores`` [N] are in 0..1.
    """
    kept = np.asarray(labels, dtype=np.int64)[np.asarray(scores) >= threshold]
    cells = np.bincount(kept, minlength=len(types)).tolist()
    total = sum(cells)
    shares = []
    for name, n in zip(types, cells, strict=True):
        low, high = wilson(n, total)
        shares.append(Share(name, n, 100 * n / total if total else nan, 100 * low, 100 * high))
    return shares


def count_all(predictions: Sequence[dict], types: Sequence[str], threshold: float = 0.5) -> list[Share]:
    """Count the cells of many images together: those of a folder, a smear or a patient."""
    labels = np.concatenate([np.zeros(0, int), *(p.labels for p in predictions)])
    scores = np.concatenate([np.zeros(0, np.float32), *(p.scores for p in predictions)])
    return count(labels, scores, types, threshold)


def wilson(successes: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return Wilson's score interval (0..1) of a proportion, by default at 95 %; (nan, nan) of nothing."""
    if total == 0:
        return nan, nan
    p = successes / total
    centre = p + z * z / (2 * total)
    spread = z * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At 0 and at all of them the bound is exactly 0 or 1, which rounding would miss by a hair.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == total else (centre + spread) / scale
    return low, high
