"""Differential counts by machine and by label held against each other, as laboratories compare methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset

NEAR = 0.1  # a score this close to the threshold is doubtful


@dataclass(frozen=True)
class BlandAltman:
    """Differences (prediction less truth, in percent points) of one type's share over the groups: bias, limits of
    agreement (bias -+ 1.96 deviations), Pearson's correlation, and the number of groups."""

    type: str
    bias: float
    low: float
    high: float
    correlation: float
    groups: int


@dataclass(frozen=True)
class GroupCount:
    """Cells of each type in one group of images: by label and by the machine, [types] each; ``lowest`` is the lowest
    score among the detections that count (nan without any)."""

    group: str
    images: int
    truth: np.ndarray
    found: np.ndarray
    lowest: float


def group_counts(
    dataset: Dataset, predictions: Sequence[dict], keys: Sequence[str], score: float = 0.5
) -> list[GroupCount]:
    """A count a group, in the order in which groups first occur; ``keys`` names each image's group."""
    k = len(dataset.types)
    counts: dict[str, list] = {}
    for sample, found, key in zip(dataset.samples, predictions, keys, strict=True):
        good = found.scores >= score
        truth = np.bincount(sample.labels[~sample.crowd], minlength=k)
        mine = np.bincount(found.labels[good].astype(int), minlength=k)
        lowest = float(found.scores[good].min()) if good.any() else np.inf
        old = counts.setdefault(key, [0, np.zeros(k, int), np.zeros(k, int), np.inf])
        counts[key] = [old[0] + 1, old[1] + truth, old[2] + mine, min(old[3], lowest)]
    return [
        GroupCount(key, n, truth, found, lowest if np.isfinite(lowest) else float("nan"))
        for key, (n, truth, found, lowest) in counts.items()
    ]


def bland_altman(counts: Sequence[GroupCount], types: Sequence[str]) -> list[BlandAltman]:
    """Agreement of the shares (percent of a group's cells) a type, over the groups where both found cells."""
    both = [c for c in counts if c.truth.sum() and c.found.sum()]
    if not both:
        return [BlandAltman(name, *[float("nan")] * 4, 0) for name in types]
    truth = 100 * np.array([c.truth / c.truth.sum() for c in both])
    found = 100 * np.array([c.found / c.found.sum() for c in both])
    rows = []
    for k, name in enumerate(types):
        difference = found[:, k] - truth[:, k]
        bias, spread = difference.mean(), difference.std(ddof=1) if len(both) > 1 else np.nan
        varies = len(both) > 2 and truth[:, k].std() > 0 and found[:, k].std() > 0
        correlation = np.corrcoef(truth[:, k], found[:, k])[0, 1] if varies else np.nan
        rows.append(
            BlandAltman(name, *map(float, (bias, bias - 1.96 * spread, bias + 1.96 * spread, correlation)), len(both))
        )
    return rows


def kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa of the cells that both found, from a confusion matrix [types + 1, types + 1]; nan of none."""
    table = confusion[:-1, :-1].astype(float)
    n = table.sum()
    if not n:
        return float("nan")
    agreed, chance = np.trace(table) / n, (table.sum(0) @ table.sum(1)) / n**2
    return float((agreed - chance) / (1 - chance)) if chance < 1 else float("nan")


def review_queue(
    dataset: Dataset,
    predictions: Sequence[dict],
    members: Sequence[Sequence[dict]],
    thresholds: Sequence[float],
    score: float = 0.5,
) -> list[dict]:
    """Images that a person should look at, the most doubtful first: image, doubt (0..1), why.

    Doubtful is a detection whose score lies near ``score``, and a cell count a type on which members disagree. A
    member's count is that of its detections above a threshold of its own, since members' scores differ in scale.
    """
    rows = []
    k = len(dataset.types)
    for i, (sample, found) in enumerate(zip(dataset.samples, predictions, strict=True)):
        near = np.abs(found.scores - score) < NEAR
        by_score = float(1 - np.abs(found.scores[near] - score).min() / NEAR) if near.any() else 0.0
        votes = [
            np.bincount(m[i].labels[m[i].scores >= t].astype(int), minlength=k)
            for m, t in zip(members, thresholds, strict=True)
        ]
        spread = int(np.ptp(votes, axis=0).sum()) if len(votes) > 1 else 0
        doubt = max(by_score, spread / (spread + 1))
        if doubt > 0:
            why = [f"a score of {found['scores'][np.abs(found['scores'] - score).argmin()]:.2f}"] if near.any() else []
            why += [f"members differ by {spread} cell{'s' * (spread > 1)}"] if spread else []
            rows.append(
                {"image": str(sample.image), "group": sample.group, "doubt": round(doubt, 3), "why": "; ".join(why)}
            )
    return sorted(rows, key=lambda row: -row["doubt"])


def group_keys(dataset: Dataset) -> list[str]:
    """Each image's group; its own path where it has none."""
    return [s.group or str(s.image) for s in dataset.samples]
