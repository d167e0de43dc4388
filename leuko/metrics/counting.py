"""Counting: one cell, one type, from a score at which counts are right.

COCO's measures keep a detection of each type for one cell, and so must the detectors. A count must not: here the best
detection of a cell gives its type, and the scores of its other types tell how sure that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..cells import UNCLASSIFIED
from ..data.dataset import Dataset
from ..detections import Detections
from ..ops.pairs import overlapping_pairs
from .binomial import percent_of

SAME_CELL = 0.5  # IoU above which two detections are of one cell
DOUBTFUL = 0.5  # times the threshold: cells from there on are seen, but not classified
MARGIN = 0.002  # of the image's shorter side (at least a pixel): a box as near to the border is cut by it

BORDER, BELOW, DOUBLE = "at the border", "below the threshold", "on another field, too"
"""Why a cell is left unclassified, as cell analysers do."""


def one_type(detections: Detections, types: int, iou: float = SAME_CELL) -> Detections:
    """One detection for each cell: the best, without those of any type that overlap it by more than ``iou``.

    No two of the rest overlap by more. Their ``type_scores`` [N, types] are each type's best score for the cell, 0 for
    a type that was not found there.
    """
    order = np.argsort(-detections.scores, kind="stable")
    detections = detections[order]
    cell = np.arange(len(detections))  # the detection whose cell each is of
    for better, worse in overlapping_pairs(detections.boxes, iou).tolist():
        if cell[better] == better and cell[worse] == worse:
            cell[worse] = better
    scores = np.zeros((len(detections), types), np.float32)
    np.maximum.at(scores, (cell, detections.labels), detections.scores)
    best = np.flatnonzero(cell == np.arange(len(detections)))
    return replace(detections[best], type_scores=scores[best])


def at_border(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which sides (x0, y0, x1, y1) of boxes [N, 4] lie on the border of an image of ``size`` (width, height), [N, 4]
    bool: it cuts the cells there."""
    margin = border_margin(size)
    return np.concatenate([boxes[:, :2] <= margin, boxes[:, 2:] >= np.array(size) - margin], axis=1)


def border_margin(size: tuple[int, int]) -> float:
    """How near to the border of an image of ``size`` a box is cut by it, in pixels."""
    return max(1.0, MARGIN * min(size))


def classify(cells: Detections, size: tuple[int, int], threshold: float) -> Detections:
    """The cells to count of an image of ``size`` (width, height), with ``why`` some of them stay unclassified: those
    that the border cuts, and those whose score is below ``threshold``, but not far. ``cells`` are of :func:`one_type`.
    """
    cells = cells.above(threshold * DOUBTFUL)
    is_cut = at_border(cells.boxes, size).any(1)
    why = np.where(cells.scores < threshold, BELOW, np.where(is_cut, BORDER, ""))
    return replace(cells, why=why.astype(object))


@dataclass(frozen=True)
class Differential:
    """The cells of a slide: of each type, and unclassified by reason. Percents are of the classified."""

    types: tuple[str, ...]
    cells: tuple[int, ...]
    unclassified: dict[str, int]

    @classmethod
    def of(cls, images: Iterable[Detections], types: Sequence[str]) -> Differential:
        """Of cells as :func:`classify` gives them for each image."""
        cells, reasons = np.zeros(len(types), int), Counter()
        for found in images:
            cells += np.bincount(found.labels[found.why == ""], minlength=len(types))
            reasons.update(reason for reason in found.why if reason)
        unclassified = {reason: reasons[reason] for reason in (BELOW, BORDER, DOUBLE) if reasons[reason]}
        return cls(tuple(types), tuple(cells.tolist()), unclassified)

    @property
    def classified(self) -> int:
        """The number of cells that have a type."""
        return sum(self.cells)

    def rows(self) -> list[dict]:
        """A row per type and reason: type, why, cells, percent of the classified, and its exact 95 % limits."""
        rows = []
        for name, number in zip(self.types, self.cells, strict=True):
            percent, low, high = percent_of(number, self.classified)
            rows.append({"type": name, "why": "", "cells": number, "percent": percent, "low95": low, "high95": high})
        return rows + [{"type": UNCLASSIFIED, "why": why, "cells": n} for why, n in self.unclassified.items()]


def best_threshold(dataset: Dataset, predictions: Sequence[Detections]) -> float | None:
    """The score from which counts are best on a data set; None where nothing, or nothing right, was found.

    ``predictions`` are of :func:`one_type`. Best is the least sum of two errors in cells: of each type on each image,
    where a missed and an extra cell of two images do not cancel, and of each type in all. Between neighbouring scores
    of the same error the middle is taken.
    """
    left = dataset.counts_per_image()  # cells that are not counted yet, [images, types]
    in_all = left.sum(0)
    rows = [(i, d.labels[k], d.scores[k]) for i, d in enumerate(predictions) for k in range(len(d))]
    rows.sort(key=lambda row: -row[2])
    scores = np.array([score for *_, score in rows], dtype=np.float64)
    errors = np.zeros(len(rows) + 1)
    errors[0] = 2 * in_all.sum()
    for k, (image, label, _) in enumerate(rows):
        errors[k + 1] = errors[k] + sum(-1 if rest > 0 else 1 for rest in (left[image, label], in_all[label]))
        left[image, label] -= 1
        in_all[label] -= 1
    ends = np.append(scores[1:] < scores[:-1], True) if len(rows) else np.zeros(0, bool)  # equal scores count together
    if not ends.any() or errors[1:][ends].min() >= errors[0]:
        return None
    best = np.flatnonzero(ends & (errors[1:] == errors[1:][ends].min()))
    lower = np.append(scores, 0)[best + 1]
    widest = int(np.argmax(scores[best] - lower))
    return float((scores[best] + lower)[widest] / 2)


def second_types(cells: Detections) -> tuple[np.ndarray, np.ndarray]:
    """The next likely type of each cell of :func:`one_type`: labels [N], -1 where no other was found there, and its
    scores [N], 0 there."""
    if cells.type_scores is None:
        return np.full(len(cells), -1), np.zeros(len(cells), np.float32)
    others = cells.type_scores.copy()
    others[np.arange(len(cells)), cells.labels] = 0
    scores = others.max(1, initial=0)
    return np.where(scores > 0, others.argmax(1), -1), scores


def doubt(cells: Detections) -> np.ndarray:
    """How doubtful the type of each cell is, [N] in 0..1: 1 minus the margin of its score over that of the next type.
    A low score is doubtful, too, where there is no other type."""
    return 1 - (cells.scores - second_types(cells)[1])
