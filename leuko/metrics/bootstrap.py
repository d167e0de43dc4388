"""How certain a measure is: intervals over bootstrap samples of the images, or of whole groups.

The matching is done once; a bootstrap sample only changes how often each image counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.dataset import Dataset
from .coco import IOUS, RECALLS, Matches

DRAWS = 1000
CHUNK = 50  # bootstrap samples that are computed together


def resample(dataset: Dataset, draws: int, seed: int = 0) -> np.ndarray:
    """How often each image counts in each bootstrap sample, [draws, images] int; groups are drawn as a whole.

    With fewer than two groups (or images without one) all samples would be the same, and [0, images] is returned.
    """
    keys = [s.group or f"\0{i}" for i, s in enumerate(dataset.samples)]
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    n = len(index)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws if n > 1 else 0)
    return times[:, [index[key] for key in keys]]


def mean_measures(matches: Sequence[Matches], times: np.ndarray) -> np.ndarray:
    """mAP and mAR of each bootstrap sample of ``resample``, [draws, 2]; the means leave out types of which a sample has
    no cell."""
    result = []
    for chunk in np.split(times.astype(np.float32), range(CHUNK, len(times), CHUNK)):
        by_type = np.array([_ap_ar(m, chunk) for m in matches])  # [types, 2, draws]
        known = np.isfinite(by_type)
        with np.errstate(invalid="ignore"):
            result.append((np.where(known, by_type, 0).sum(0) / known.sum(0)).T)
    return np.concatenate(result)


def _ap_ar(matches: Matches, times: np.ndarray) -> np.ndarray:
    """AP and recall of one type, means over the IoU thresholds, [2, draws]; nan where a sample has no cell.

    ``coco.precision_recall`` for all samples at once. Only the columns of true positives are computed, since
    precision is interpolated from them; what is below the last one changes nothing.
    """
    cells = times @ matches.cells.astype(np.float32)
    end = 1 + np.flatnonzero(matches.tp.any(0)).max(initial=-1)
    weights = times[:, matches.images[:end]]  # [draws, D]
    ap, ar = np.zeros((2, len(IOUS), len(times)))
    for t, (hit, ignored) in enumerate(zip(matches.tp[:, :end], matches.ignored[:, :end], strict=True)):
        if not hit.any():
            continue
        tp = np.cumsum(weights[:, hit], axis=1)
        precision = tp / np.maximum(np.cumsum(weights * ~ignored, axis=1)[:, hit], 1e-9)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        envelope = np.pad(envelope, ((0, 0), (0, 1)))
        recall = tp.astype(np.float64) / np.maximum(cells, 1e-9)[:, None]
        ap[t] = [e[np.searchsorted(r, RECALLS)].mean() for e, r in zip(envelope, recall, strict=True)]
        ar[t] = recall[:, -1]
    return np.where(cells > 0, np.stack([ap.mean(0), ar.mean(0)]), np.nan)


def interval(value: float, samples: np.ndarray) -> dict[str, float]:
    """A measure's ``value`` and its 95 % percentile interval, ``low`` to ``high``, from its values on n bootstrap
    samples; nan where none is finite.

    The ends are the samples of rank (n + 1) / 40 from below and from above, rounded down, so that the interval of a
    difference leaves out 0 just where its p is at most .05. Of fewer than 39 samples they are the first and the last.
    """
    known = np.sort(samples[np.isfinite(samples)])
    rank = max(1, (len(known) + 1) // 40)
    low, high = (known[rank - 1], known[-rank]) if len(known) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def difference(a: np.ndarray, b: np.ndarray, value: float) -> dict[str, float]:
    """The :func:`interval` of the paired difference ``a - b`` of a measure on the same bootstrap samples; ``p`` is the
    two-sided p value of no difference: twice the smaller share of samples on either side of 0, nan without samples.

    The share is (k + 1) / (n + 1), so that n samples never give a p of 0 (Phipson and Smyth 2010).
    """
    gaps = a - b
    gaps = gaps[np.isfinite(gaps)]
    smaller = min((gaps <= 0).sum(), (gaps >= 0).sum())
    p = min(1.0, 2 * (smaller + 1) / (len(gaps) + 1)) if len(gaps) else np.nan
    return {**interval(value, gaps), "p": float(p)}
