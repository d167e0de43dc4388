"""The differential count (cells of each type, and their share of all), and how well it agrees with the labels'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from ..data.dataset import Dataset
from ..detections import Detections

NEAR = 0.1  # a score this close to the threshold is doubtful


# ---------------------------------------------------------------- the count


@dataclass(frozen=True)
class Share:
    """One type's cells and their percentage of all cells, with the 95 % Wilson interval (nan if there is no cell)."""

    type: str
    cells: int
    percent: float
    low: float
    high: float


def count(predictions: Iterable[Detections], types: Sequence[str], threshold: float = 0.5) -> list[Share]:
    """Count the detections with score >= ``threshold`` of many images together (a folder, a smear, a patient): one
    Share per type, in the order of ``types``."""
    cells = _cells(predictions, threshold, len(types)).sum(0).tolist()
    return [Share(name, n, *percent_of(n, sum(cells))) for name, n in zip(types, cells, strict=True)]


def percent_of(n: int, total: int) -> tuple[float, float, float]:
    """``n`` of ``total`` in percent, and its 95 % Wilson score interval; nan if ``total`` is 0."""
    if total == 0:
        return nan, nan, nan
    p, z = n / total, 1.959963984540054
    centre = p + z * z / (2 * total)
    spread = z * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # With none or all of them the bound is exactly 0 or 1, which rounding would miss.
    low = 0.0 if n == 0 else (centre - spread) / scale
    high = 1.0 if n == total else (centre + spread) / scale
    return 100 * n / total, 100 * low, 100 * high


def _cells(predictions: Iterable[Detections], threshold: float, types: int) -> np.ndarray:
    """Detections with score >= ``threshold`` per image and type, [images, types] int."""
    counts = [np.bincount(p.above(threshold).labels, minlength=types) for p in predictions]
    return np.array(counts, dtype=int).reshape(-1, types)


# ---------------------------------------------------------------- agreement of counts


def group_counts(
    dataset: Dataset, predictions: Sequence[Detections], score: float
) -> tuple[dict[str, int], np.ndarray]:
    """The groups of images, in the order of their first image, with their numbers of images; and their cells of each
    type by label and by prediction, [groups, 2, types] int. An image without a group is one of its own."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(dataset.samples):
        groups.setdefault(sample.group or str(sample.image), []).append(i)
    cells = np.stack([dataset.counts_per_image(), _cells(predictions, score, len(dataset.types))], axis=1)
    return {name: len(at) for name, at in groups.items()}, np.array([cells[at].sum(0) for at in groups.values()])


def shares(cells: np.ndarray) -> np.ndarray:
    """Each type's share of the cells [..., types] in percent; nan if there is no cell."""
    total = cells.sum(-1, keepdims=True)
    return 100 * cells / np.where(total, total, nan)


def bland_altman(cells: np.ndarray, types: Sequence[str]) -> list[dict]:
    """How the shares of each type agree over the groups that have cells by label and by prediction, ``cells`` [groups,
    2, types]: a row per type of type, bias (mean difference, prediction minus label, in percentage points), low and
    high (the limits of agreement, bias -+ 1.96 standard deviations), Pearson's correlation, and the number of groups;
    nan where there are too few."""
    percent = shares(cells)
    percent = percent[np.isfinite(percent).all((1, 2))]
    n = len(percent)
    rows = []
    for name, (labelled, predicted) in zip(types, percent.transpose(2, 1, 0), strict=True):
        gap = predicted - labelled
        bias, limit = gap.mean() if n else nan, 1.96 * gap.std(ddof=1) if n > 1 else nan
        varies = n > 2 and labelled.std() > 0 and predicted.std() > 0
        correlation = np.corrcoef(labelled, predicted)[0, 1] if varies else nan
        limits = {"bias": bias, "low": bias - limit, "high": bias + limit}
        rows.append({"type": name, **limits, "correlation": correlation, "groups": n})
    return rows


def kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa of the types of the cells that were found, from a confusion matrix [types + 1, types + 1]; nan if
    there is none."""
    table = confusion[:-1, :-1].astype(float)
    n = table.sum()
    if not n:
        return nan
    agreed, chance = np.trace(table) / n, (table.sum(0) @ table.sum(1)) / n**2
    return float((agreed - chance) / (1 - chance)) if chance < 1 else nan


def review_queue(
    dataset: Dataset,
    predictions: Sequence[Detections],
    members: Sequence[Sequence[Detections]],
    thresholds: Sequence[float],
    score: float = 0.5,
) -> list[dict]:
    """Images that a person should look at, the most doubtful first: image, group, doubt (0..1), why.

    Doubtful is a detection whose score is near ``score``, and a number of cells of a type on which the members of an
    ensemble disagree. A member's detections count above a threshold of its own, since members' scores differ in scale.
    """
    counts = [_cells(m, t, len(dataset.types)) for m, t in zip(members, thresholds, strict=True)]
    spreads = np.ptp(counts, axis=0).sum(1) if counts else np.zeros(len(dataset), int)
    rows = []
    for sample, detections, spread in zip(dataset.samples, predictions, spreads.tolist(), strict=True):
        distances = np.append(np.abs(detections.scores - score), NEAR)
        nearest = int(distances.argmin())
        by_score = round(float(1 - distances[nearest] / NEAR), 3)
        why = [f"a score of {detections.scores[nearest]:.2f}"] if by_score > 0 else []
        why += [f"members differ by {spread} cell{'s' * (spread > 1)}"] if spread else []
        if why:
            doubt = max(by_score, round(spread / (spread + 1), 3))
            rows.append({"image": str(sample.image), "group": sample.group, "doubt": doubt, "why": "; ".join(why)})
    return sorted(rows, key=lambda row: -row["doubt"])
