"""Which detection matches which cell: COCO's greedy matching, done once, from which all other measures are counted.

``match`` gives what COCO's evaluator does not return: whether each detection is a true positive at each IoU threshold.
From that follow precision and recall at any score, and average precision on any bootstrap sample of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from ..detections import Detections
from ..ops.boxes import box_iou
from .coco import MAX_DETECTIONS

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Matches:
    """The D detections of one type on all images, in descending order of score, at COCO's ten IoU thresholds.

    ``images`` [D] int are indices of the images, ``scores`` [D] float32 in 0..1; ``tp`` [10, D] bool marks true
    positives, ``ignored`` [10, D] bool detections on a crowd. ``cells`` [images] int are the type's cells per image,
    without crowds.
    """

    images: np.ndarray
    scores: np.ndarray
    tp: np.ndarray
    ignored: np.ndarray
    cells: np.ndarray


def match(dataset: Dataset, predictions: Sequence[Detections]) -> list[Matches]:
    """Match the detections of each type with its cells: one ``Matches`` per type of the data set."""
    none = (np.zeros(0, int), np.zeros(0, np.float32), *np.zeros((2, len(IOUS), 0), bool))
    parts: list[list[tuple]] = [[none] for _ in dataset.types]
    cells = np.zeros((len(dataset.types), len(dataset)), dtype=int)
    for i, (sample, detections) in enumerate(zip(dataset.samples, predictions, strict=True)):
        for k in np.union1d(detections.labels, sample.labels):
            of_type = sample.labels == k
            cells[k, i] = (of_type & ~sample.crowd).sum()
            best = detections[detections.labels == k]
            best = best[np.argsort(-best.scores, kind="stable")[:MAX_DETECTIONS]]
            tp, ignored = _match_image(best.boxes, sample.boxes[of_type], sample.crowd[of_type])
            parts[k].append((np.full(len(best), i), best.scores, tp, ignored))
    result = []
    for k, of_type in enumerate(parts):
        images, scores, tp, ignored = (np.concatenate(arrays, axis=-1) for arrays in zip(*of_type, strict=True))
        order = np.argsort(-scores, kind="stable")
        result.append(Matches(images[order], scores[order], tp[:, order], ignored[:, order], cells[k]))
    return result


def _match_image(boxes: np.ndarray, gt_boxes: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching for one image and type: true positives and ignored, [10, D] bool each.

    Boxes [D, 4] in descending order of score, gt_boxes [M, 4], crowd [M] bool. Each detection takes the free cell of
    the largest IoU, of equal ones the last.
    """
    tp, ignored = np.zeros((2, len(IOUS), len(boxes)), dtype=bool)
    crowd = crowd[::-1]
    overlap = box_iou(boxes, gt_boxes[::-1], crowd)
    if not overlap.size:
        return tp, ignored
    with_cells = np.where(crowd, 0, overlap)
    candidates = np.flatnonzero(with_cells.max(1) >= IOUS[0])
    for t, threshold in enumerate(IOUS):
        free = with_cells.copy()
        for d in candidates:
            cell = free[d].argmax()
            if free[d, cell] >= threshold:
                tp[t, d] = True
                free[:, cell] = 0
        ignored[t] = (overlap >= threshold).any(1, where=crowd) & ~tp[t]
    return tp, ignored


def precision_recall(matches: Matches, threshold: int) -> tuple[np.ndarray, float]:
    """COCO's interpolated precision [101] at the recalls of ``RECALLS``, and the largest recall; nan without cells.
    ``threshold`` is an index into ``IOUS``."""
    cells = matches.cells.sum()
    if not cells:
        return np.full(len(RECALLS), np.nan), float("nan")
    tp = np.cumsum(matches.tp[threshold])
    precision = tp / np.maximum(np.cumsum(~matches.ignored[threshold]), 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = tp / cells
    return np.append(envelope, 0)[np.searchsorted(recall, RECALLS)], float(recall[-1]) if len(recall) else 0.0


def trimmed(matches: Matches) -> Matches:
    """Without the detections below the last true positive, which change no average precision, on any sample."""
    at = np.flatnonzero(matches.tp.any(0))
    end = at[-1] + 1 if len(at) else 0
    return Matches(
        matches.images[:end], matches.scores[:end], matches.tp[:, :end], matches.ignored[:, :end], matches.cells
    )
