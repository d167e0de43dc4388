"""Counting: one cell, one type, from a score at which counts are right.

COCO's measures keep a detection of each type for one cell, and so must the detectors. A count must not: here the best
detection of a cell gives its type, and the scores of its other types tell how sure that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.dataset import Dataset
from ..detections import Detections
from ..ops.boxes import box_iou

SAME_CELL = 0.5  # IoU above which two detections are of one cell


def one_type(detections: Detections, types: int, iou: float = SAME_CELL) -> Detections:
    """One detection for each cell: the best, without those of any type that overlap it by more than ``iou``.

    No two of the rest overlap by more. Their ``type_scores`` [N, types] are each type's best score for the cell, 0 for
    a type that was not found there.
    """
    order = np.argsort(-detections.scores, kind="stable")
    detections = detections[order]
    overlap = box_iou(detections.boxes, detections.boxes) > iou
    cell = np.full(len(detections), -1)  # the detection whose cell each is of
    for i in range(len(detections)):
        if cell[i] < 0:
            cell[i:][overlap[i, i:] & (cell[i:] < 0)] = i
            cell[i] = i  # also a box without area, which overlaps nothing, not even itself
    scores = np.zeros((len(detections), types), np.float32)
    np.maximum.at(scores, (cell, detections.labels), detections.scores)
    best = np.flatnonzero(cell == np.arange(len(detections)))
    return replace(detections[best], type_scores=scores[best])


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
