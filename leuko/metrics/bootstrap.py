"""How sure a measure is: intervals over draws of the images, or of whole groups, with replacement.

The matching is done once; a draw only counts images anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from .matching import IOUS, RECALLS, Matches, trimmed

DRAWS = 1000
LEVELS = (2.5, 97.5)
CHUNK = 50  # draws at once


@dataclass(frozen=True)
class Interval:
    """A measure and its 95 % interval."""

    value: float
    low: float
    high: float


def draws(dataset: Dataset, number: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image is drawn, [number, images] int; whole groups together where the data has them.
    No draw at all, [0, images], where there are fewer than two to draw from: all draws would be the same."""
    rng = np.random.default_rng(seed)
    keys = [s.group or f"\0{i}" for i, s in enumerate(dataset.samples)]
    index = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    group = np.array([index[key] for key in keys])
    number = number if len(index) > 1 else 0
    times = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=number)
    return times[:, group]


def measured(matches: Sequence[Matches], times: np.ndarray) -> np.ndarray:
    """mAP and mAR of each draw, [draws, 2]; a type that a draw holds no cell of is left out of its means."""
    short = [trimmed(m) for m in matches]
    result = [np.zeros((0, 2))]
    for start in range(0, len(times), CHUNK):
        some = times[start : start + CHUNK].astype(np.float32)
        by_type = np.array([_of_type(m, some) for m in short])  # [types, 2, draws]
        known = np.isfinite(by_type)
        sums = np.where(known, by_type, 0).sum(0)
        with np.errstate(invalid="ignore"):
            result.append((sums / known.sum(0)).T)
    return np.concatenate(result)


def _of_type(matches: Matches, times: np.ndarray) -> np.ndarray:
    """A type's AP and largest recall, means over the IoUs, of each draw: [2, draws]; nan without truth.

    The same as ``matching.mean_precision`` of each draw's weights, for all of them at once: only the rows of detections
    that are true at an IoU are looked at, since precision is interpolated from those.
    """
    truth = times @ matches.truth.astype(np.float32)
    weights = times[:, matches.image]  # [draws, detections]
    everything = np.cumsum(weights, axis=1)
    ap, ar = np.zeros((2, len(IOUS), len(times)))
    for t in range(len(IOUS)):
        rows, ignored = np.flatnonzero(matches.true[t]), matches.ignored[t]
        if not len(rows):
            continue
        counted = (np.cumsum(weights * ~ignored, axis=1) if ignored.any() else everything)[:, rows]
        true = np.cumsum(weights[:, rows], axis=1)
        precision = true / np.maximum(counted, 1e-9)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        envelope = np.hstack([envelope, np.zeros((len(times), 1), dtype=envelope.dtype)])
        recall = true.astype(np.float64) / np.maximum(truth, 1e-9)[:, None]
        for d in range(len(times)):
            ap[t, d] = envelope[d, np.searchsorted(recall[d], RECALLS)].mean()
        ar[t] = true[:, -1] / np.maximum(truth, 1e-9)
    return np.where(truth > 0, np.stack([ap.mean(0), ar.mean(0)]), np.nan)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """The percentile interval of a measure's draws."""
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, LEVELS) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def difference(one: np.ndarray, other: np.ndarray, value: float) -> tuple[Interval, float]:
    """The paired difference of a measure's draws (``one`` less ``other``) about its ``value``, and the two-sided p
    value of no difference: twice the smaller share of draws on either side of 0; nan without a draw that counts."""
    drawn = one - other
    drawn = drawn[np.isfinite(drawn)]
    below, above = ((drawn <= 0).mean(), (drawn >= 0).mean()) if len(drawn) else (np.nan, np.nan)
    return interval(value, drawn), float(np.minimum(1.0, 2 * min(below, above)))
