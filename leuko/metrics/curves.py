"""Precision against recall, and precision, recall and F1 against the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coco import IOUS, Matches, pooled, precision_recall

PANELS = ("0.50", "0.75", "0.80", "0.85", "0.90", "0.95", "mean")
"""The IoU thresholds of the paper's Figure 3, and the mean over all ten."""
SCORES = np.arange(101) / 100


def precision_curves(matches: Sequence[Matches]) -> np.ndarray:
    """Precision at 101 recalls, [types + 1, 7, 101]: each type and the mean of the types, at each IoU of ``PANELS``;
    nan for a type without cells."""
    by_type = np.array([precision_recall(m)[0] for m in matches])  # [types, 10, 101]
    known = by_type[np.isfinite(by_type).all((1, 2))]
    mean = known.mean(0) if len(known) else np.full(by_type.shape[1:], np.nan)
    curves = np.concatenate([by_type, mean[None]])
    shown = [int(np.abs(IOUS - float(iou)).argmin()) for iou in PANELS[:-1]]
    return np.concatenate([curves[:, shown], curves.mean(1, keepdims=True)], axis=1)


@dataclass(frozen=True)
class ScoreCurve:
    """Precision, recall and F1 [101] of all detections of at least each score of ``SCORES``, over all types together,
    and the score of the best F1; nan without cells."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_score: float = np.nan
    best_f1: float = np.nan


def score_curve(matches: Sequence[Matches]) -> ScoreCurve:
    """The curve over all types together, at IoU .50."""
    scores, tp, counted = pooled(matches)
    cells = sum(m.cells.sum() for m in matches)
    order = np.argsort(scores)
    # In float32, the type of the scores: as float64 the threshold .7 is above the float32 score .7.
    first = np.searchsorted(scores[order], SCORES.astype(np.float32))
    tp_above = tp.sum() - np.append(0, np.cumsum(tp[order]))[first]
    all_above = counted.sum() - np.append(0, np.cumsum(counted[order]))[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = tp_above / np.where(all_above, all_above, np.nan)
        if not cells:
            return ScoreCurve(precision, *np.full((2, len(SCORES)), np.nan))
        f1 = 2 * tp_above / (all_above + cells)
    best = int(f1.argmax())
    return ScoreCurve(precision, tp_above / cells, f1, float(SCORES[best]), float(f1[best]))
