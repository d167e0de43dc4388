"""Which detection finds which cell: COCO's greedy matching, done once, from which everything else is counted.

``match`` gives what COCO's evaluator keeps to itself: for each detection and IoU threshold whether it is true. From
that follow precision and recall at any score, and average precision on any draw of the images, without matching anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from .coco import MAX_DETECTIONS

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Matches:
    """The detections of one type on all images, by falling score, at the ten IoU thresholds of COCO.

    ``image`` [D] int, ``score`` [D], ``true`` [10, D] bool, ``ignored`` [10, D] bool (they lie on a crowd),
    ``truth`` [images] int: cells of the type on each image, crowds left out.
    """

    image: np.ndarray
    score: np.ndarray
    true: np.ndarray
    ignored: np.ndarray
    truth: np.ndarray


def iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU [A, B] of boxes [A, 4] and [B, 4] xyxy; of a ``crowd`` [B] bool it is the share of ``a`` inside it."""
    a, b = np.asarray(a, dtype=np.float64).reshape(-1, 4), np.asarray(b, dtype=np.float64).reshape(-1, 4)
    side = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = side.clip(0).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    union = area_a[:, None] + area_b - both
    if crowd is not None:
        union = np.where(crowd, area_a[:, None], union)
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def match(dataset: Dataset, predictions: Sequence[dict]) -> list[Matches]:
    """Match the detections of each type, one ``Matches`` a type of the data set."""
    parts: list[list[tuple]] = [[] for _ in dataset.types]
    truth = np.zeros((len(dataset.types), len(dataset)), dtype=int)
    for i, (sample, found) in enumerate(zip(dataset.samples, predictions, strict=True)):
        for k in np.unique(np.concatenate([found.labels, sample.labels])).astype(int):
            mine, cells = found.labels == k, sample.labels == k
            truth[k, i] = (cells & ~sample.crowd).sum()
            order = np.argsort(-found.scores[mine], kind="mergesort")[:MAX_DETECTIONS]
            score, boxes = found.scores[mine][order], found.boxes[mine][order]
            parts[k].append((np.full(len(score), i), score, *_greedy(boxes, sample.boxes[cells], sample.crowd[cells])))
    result = []
    for k, of_type in enumerate(parts):
        empty = (np.zeros(0, int), np.zeros(0), np.zeros((len(IOUS), 0), bool), np.zeros((len(IOUS), 0), bool))
        image, score, true, ignored = (np.concatenate(arrays, axis=-1) for arrays in zip(empty, *of_type, strict=True))
        order = np.argsort(-score, kind="mergesort")
        result.append(Matches(image[order], score[order], true[:, order], ignored[:, order], truth[k]))
    return result


def _greedy(boxes: np.ndarray, cells: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching of one image and type: true and ignored, [10, D] each; detections by falling score."""
    true, ignored = np.zeros((2, len(IOUS), len(boxes)), dtype=bool)
    if not len(cells) or not len(boxes):
        return true, ignored
    order = np.argsort(crowd, kind="mergesort")  # cells before crowds
    overlap, crowd = iou(boxes, cells[order], crowd[order]), crowd[order]
    candidates = [(d, np.flatnonzero(overlap[d] >= IOUS[0] - 1e-9)) for d in range(len(boxes))]
    for t, threshold in enumerate(IOUS):
        taken = np.zeros(len(cells), dtype=bool)
        for d, near in candidates:
            best, chosen = min(threshold, 1 - 1e-10), -1
            for g in near:
                if taken[g] and not crowd[g]:
                    continue
                if chosen >= 0 and crowd[g] and not crowd[chosen]:
                    break
                if overlap[d, g] >= best:
                    best, chosen = overlap[d, g], g
            if chosen >= 0:
                taken[chosen] = True
                true[t, d], ignored[t, d] = not crowd[chosen], crowd[chosen]
    return true, ignored


def precision_recall(matches: Matches, threshold: int, weights: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """COCO's interpolated precision [101] at the recalls of ``RECALLS``, and the largest recall; nan without truth.

    ``threshold`` is a place in ``IOUS``. ``weights`` [images] say how often each image counts (a bootstrap's draw).
    """
    truth = matches.truth.sum() if weights is None else matches.truth @ weights
    if not truth:
        return np.full(len(RECALLS), np.nan), float("nan")
    of = np.ones(len(matches.score)) if weights is None else weights[matches.image]
    counted = np.cumsum(of * ~matches.ignored[threshold])
    at = np.flatnonzero(matches.true[threshold])
    return _interpolated(np.cumsum(of[at]), counted[at], truth)


def _interpolated(true: np.ndarray, counted: np.ndarray, truth: float) -> tuple[np.ndarray, float]:
    """Precision at the recalls, from the running numbers of true and of all detections at each true one."""
    if not len(true) or not true[-1]:
        return np.zeros(len(RECALLS)), 0.0
    recall = true / truth
    precision = true / np.maximum(counted, np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return np.append(envelope, 0.0)[place], float(recall[-1])


def mean_precision(matches: Sequence[Matches], weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """AP and largest recall, [types, 10 IoUs] each; nan for a type without truth."""
    ap, ar = np.full((2, len(matches), len(IOUS)), np.nan)
    for k, of_type in enumerate(matches):
        truth = of_type.truth.sum() if weights is None else of_type.truth @ weights
        if not truth:
            continue
        of = np.ones(len(of_type.score)) if weights is None else weights[of_type.image]
        all_counted = np.cumsum(of)
        for t in range(len(IOUS)):
            at = np.flatnonzero(of_type.true[t])
            counted = np.cumsum(of * ~of_type.ignored[t]) if of_type.ignored[t].any() else all_counted
            precision, ar[k, t] = _interpolated(np.cumsum(of[at]), counted[at], truth)
            ap[k, t] = precision.mean()
    return ap, ar


def trimmed(matches: Matches) -> Matches:
    """Without the detections below the last true one, which change no precision: AP stays the same on any draw."""
    at = np.flatnonzero(matches.true.any(0))
    end = at[-1] + 1 if len(at) else 0
    return Matches(
        matches.image[:end], matches.score[:end], matches.true[:, :end], matches.ignored[:, :end], matches.truth
    )
