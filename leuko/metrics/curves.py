"""Precision against recall, and precision, recall and F1 against the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .matching import IOUS, RECALLS, Matches, precision_recall

SHOWN_IOUS = (0.5, 0.75, 0.8, 0.85, 0.9, 0.95)  # of the paper's Figure 3
SCORES = np.linspace(0, 1, 101)


def precision_curves(matches: Sequence[Matches], types: Sequence[str]) -> list[dict]:
    """A line a type (and ``all``, the mean of the types), IoU (and ``mean``) and recall: precision."""
    by_type = np.array([[precision_recall(m, t)[0] for t in range(len(IOUS))] for m in matches])  # [K, 10, 101]
    with_truth = by_type[np.isfinite(by_type).all((1, 2))]
    everything = with_truth.mean(0) if len(with_truth) else np.full(by_type.shape[1:], np.nan)
    rows = []
    for name, curves in zip([*types, "all"], [*by_type, everything], strict=True):
        shown = [(f"{iou:.2f}", curves[int(np.abs(IOUS - iou).argmin())]) for iou in SHOWN_IOUS]
        for iou, curve in [*shown, ("mean", curves.mean(0))]:
            rows += [
                {"type": name, "iou": iou, "recall": round(r, 2), "precision": p}
                for r, p in zip(RECALLS.tolist(), curve.tolist(), strict=True)
            ]
    return rows


@dataclass(frozen=True)
class ScoreCurve:
    """Precision, recall and F1 [101] at IoU .5 of all detections of at least each score of ``SCORES``, over all types
    together, and the score of the best F1."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_score: float
    best_f1: float


def score_curve(matches: Sequence[Matches], threshold: int = 0) -> ScoreCurve:
    """The curve over all types together, at the IoU of this place in ``IOUS``; best values nan without truth."""
    score = np.concatenate([m.score for m in matches])
    true = np.concatenate([m.true[threshold] for m in matches])
    counted = np.concatenate([~m.ignored[threshold] for m in matches])
    truth = sum(m.truth.sum() for m in matches)
    order = np.argsort(score, kind="mergesort")
    at = np.searchsorted(score[order], SCORES - 1e-12)
    true_above = true.sum() - np.append(0, np.cumsum(true[order]))[at]
    all_above = counted.sum() - np.append(0, np.cumsum(counted[order]))[at]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(all_above > 0, true_above / all_above, np.nan)
        recall = true_above / truth if truth else np.full(len(SCORES), np.nan)
        f1 = 2 * true_above / (all_above + truth) if truth else np.full(len(SCORES), np.nan)
    best = int(np.nanargmax(f1)) if truth else -1
    return ScoreCurve(
        precision, recall, f1, float(SCORES[best]) if truth else np.nan, float(f1[best]) if truth else np.nan
    )
