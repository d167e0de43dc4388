"""Which detection matches which cell: COCO's greedy matching, done once, from which all other measures are counted.

``match`` gives what COCO's evaluator does not return: whether each detection is a true positive at each IoU threshold.
From that follow precision and recall at any score, and average precision on any bootstrap sample of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from ..detections import MAX_DETECTIONS, Detections
from ..ops.box_iou import box_iou

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


def match(dataset: Dataset, predictions: Sequence[Detections], max_detections: int = MAX_DETECTIONS) -> list[Matches]:
    """Match the detections of each type, the ``max_detections`` best of each image, with its cells: one ``Matches`` per
    type of the data set."""
    result = []
    for k, cells in enumerate(dataset.counts_per_image().T):
        parts = []
        for i, (sample, detections) in enumerate(zip(dataset.samples, predictions, strict=True)):
            best = detections[detections.labels == k]
            best = best[np.argsort(-best.scores, kind="stable")[:max_detections]]
            of_type = sample.labels == k
            matched = _match_image(best.boxes, sample.boxes[of_type], sample.crowd[of_type])
            parts.append((np.full(len(best), i), best.scores, *matched))
        images, scores, tp, ignored = (np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True))
        order = np.argsort(-scores, kind="stable")
        result.append(Matches(images[order], scores[order], tp[:, order], ignored[:, order], cells))
    return result


def _match_image(boxes: np.ndarray, gt_boxes: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching for one image and type: true positives and ignored, [10, D] bool each.

    Boxes [D, 4] in descending order of score, gt_boxes [M, 4], crowd [M] bool. Each detection takes the free cell of
    the largest IoU, of equal ones the last.
    """
    tp, ignored = np.zeros((2, len(IOUS), len(boxes)), dtype=bool)
    crowd = crowd[::-1]
    overlap = box_iou(boxes, gt_boxes[::-1], crowd)
    with_cells = np.where(crowd, 0, overlap)
    candidates = np.flatnonzero(with_cells.max(1, initial=0) >= IOUS[0])
    for t, threshold in enumerate(IOUS):
        free = with_cells.copy()
        for d in candidates:
            cell = free[d].argmax()
            if free[d, cell] >= threshold:
                tp[t, d] = True
                free[:, cell] = 0
        ignored[t] = (overlap >= threshold).any(1, where=crowd) & ~tp[t]
    return tp, ignored


def pooled(matches: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [D] of all types' detections, and which are true positives, and which count, [D] bool each, at IoU .50."""
    parts = [(m.scores, m.tp[0], ~m.ignored[0]) for m in matches]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # type: ignore[return-value]


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
