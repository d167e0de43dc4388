"""COCO's measures: which detection matches which cell, precision and recall, average precision.

Predictions are a list with one ``Detections`` per sample of a data set, in its order. ``match`` assigns cells to
them; from the ``Matches`` follow COCO's measures, which are pycocotools' to rounding, the curves, the calibration, and
the measures on any bootstrap sample of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from ..detections import MAX_DETECTIONS, Detections
from ..errors import LeukoError
from ..ops.pairs import box_iou

IOUS = np.linspace(0.5, 0.95, 10)
AP50, AP75 = 0, 5  # indices of .50 and .75
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class TypeResult:
    """The measures of one type (0..1; nan where it has no cell) and its support: cells, and images with any."""

    type: str
    AP: float
    AP50: float
    AP75: float
    AR: float
    cells: int
    images: int


@dataclass(frozen=True)
class Evaluation:
    """COCO's measures over all types (0..1; nan where no type has a cell), the same per type, and the support.

    mAP is the mean over IoU .50 to .95; mAR the recall over the same thresholds. A type without cells is left out of
    the means. Of each image and type the ``max_detections`` best detections count, COCO's 100 if nothing else is asked.
    """

    mAP: float
    mAP50: float
    mAP75: float
    mAR: float
    cells: int
    images: int
    per_class: list[TypeResult]
    max_detections: int = MAX_DETECTIONS


def evaluate(dataset: Dataset, predictions: Sequence[Detections], max_detections: int = MAX_DETECTIONS) -> Evaluation:
    """Measure the predictions against the labels; crowds are ignored as COCO does.

    Raises LeukoError if the predictions do not fit the data set (see ``check``).
    """
    check(dataset, predictions)
    curves = [precision_recall(m) for m in match(dataset, predictions, max_detections)]
    precision, recall = (np.stack(of_types, axis=-1) for of_types in zip(*curves, strict=True))  # [10(, 101), types]

    def measures(types: int | slice) -> list[float]:
        return [_mean(v[..., types]) for v in (precision, precision[AP50], precision[AP75], recall)]

    cells = dataset.counts_per_image()
    support = zip(dataset.types, cells.sum(0).tolist(), (cells > 0).sum(0).tolist(), strict=True)
    per_class = [TypeResult(name, *measures(k), *numbers) for k, (name, *numbers) in enumerate(support)]
    return Evaluation(*measures(slice(None)), int(cells.sum()), len(dataset), per_class, max_detections)


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
    none = np.zeros((len(IOUS), 0), bool)
    parts = [[(np.zeros(0, int), np.zeros(0, np.float32), none, none)] for _ in dataset.types]
    for i, (sample, found) in enumerate(zip(dataset.samples, predictions, strict=True)):
        ranked = np.argsort(-found.scores, kind="stable")
        for k in np.unique(found.labels):
            best, of_type = ranked[found.labels[ranked] == k][:max_detections], sample.labels == k
            matched = _match_image(found.boxes[best], sample.boxes[of_type], sample.crowd[of_type])
            parts[k].append((np.full(len(best), i), found.scores[best], *matched))
    result = []
    for of_images, cells in zip(parts, dataset.counts_per_image().T, strict=True):
        images, scores, tp, ignored = (np.concatenate(arrays, axis=-1) for arrays in zip(*of_images, strict=True))
        order = np.argsort(-scores, kind="stable")
        result.append(Matches(images[order], scores[order], tp[:, order], ignored[:, order], cells))
    return result


def _match_image(boxes: np.ndarray, gt_boxes: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching for one image and type: true positives and ignored, [10, D] bool each.

    Boxes [D, 4] in descending order of score, gt_boxes [M, 4], crowd [M] bool. Each detection takes the free cell of
    the largest IoU, of equal ones the last.
    """
    tp = np.zeros((len(IOUS), len(boxes)), dtype=bool)
    if not len(gt_boxes):
        return tp, tp
    crowd = crowd[::-1]
    overlap = box_iou(boxes, gt_boxes[::-1], crowd)
    free = np.tile(~crowd, (len(IOUS), 1))  # [10, M]
    for d in np.flatnonzero((overlap * ~crowd).max(1, initial=0) >= IOUS[0]):
        with_free = overlap[d] * free
        cell = with_free.argmax(1)
        hit = np.flatnonzero(with_free.max(1) >= IOUS)
        tp[hit, d] = True
        free[hit, cell[hit]] = False
    on_crowd = (overlap >= IOUS[:, None, None]).any(2, where=crowd)
    return tp, on_crowd & ~tp


def pooled(matches: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [D] of all types' detections, and which are true positives, and which count, [D] bool each, at IoU .50."""
    parts = [(m.scores, m.tp[0], ~m.ignored[0]) for m in matches]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # type: ignore[return-value]


def precision_recall(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """COCO's interpolated precision at the recalls of ``RECALLS`` [10, 101], and the largest recall [10]; nan without
    cells."""
    cells = matches.cells.sum()
    if not cells:
        return np.full((len(IOUS), len(RECALLS)), np.nan), np.full(len(IOUS), np.nan)
    tp = np.pad(np.cumsum(matches.tp, axis=1), ((0, 0), (1, 0)))  # [10, 1 + D]
    precision = tp[:, 1:] / np.maximum(np.cumsum(~matches.ignored, axis=1), 1)
    envelope = np.pad(np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    recall = tp / cells
    at_recalls = [e[np.searchsorted(r[1:], RECALLS)] for e, r in zip(envelope, recall, strict=True)]
    return np.array(at_recalls), recall[:, -1]


def check(dataset: Dataset, predictions: Sequence[Detections]) -> None:
    """Raise LeukoError unless there is one well-formed prediction per sample: finite, labels known, lengths equal."""
    if len(predictions) != len(dataset):
        raise LeukoError(
            f"predictions: {len(predictions)} for a data set of {len(dataset)} images; predict each of its images once"
        )
    for sample, p in zip(dataset.samples, predictions, strict=True):
        if not len(p.boxes) == len(p.scores) == len(p.labels):
            lengths = f"{len(p.boxes)} boxes, {len(p.scores)} scores and {len(p.labels)} labels"
            raise LeukoError(f"{sample.image}: {lengths}; pass one of each per detection")
        for what, values in (("score", p.scores), ("box", p.boxes)):
            if len(wrong := np.argwhere(~np.isfinite(values))):
                where = f"{sample.image}: detection {wrong[0, 0]}: its {what} is {values[wrong[0, 0]].tolist()}"
                raise LeukoError(f"{where}; the weights have diverged, use other ones")
        if len(wrong := np.flatnonzero((p.labels < 0) | (p.labels >= len(dataset.types)))):
            where = f"{sample.image}: detection {wrong[0]}: label {p.labels[wrong[0]]} of {len(dataset.types)} types"
            raise LeukoError(f"{where}; use weights for these types")


def to_coco_results(dataset: Dataset, predictions: Sequence[Detections]) -> list[dict]:
    """Return the predictions in COCO's results format: image_id, category_id, bbox (xywh in pixels), score."""
    check(dataset, predictions)
    return [
        {
            "image_id": sample.id,
            "category_id": dataset.category_ids[label],
            "bbox": [round(v, 3) for v in box],
            "score": round(score, 8),
        }
        for sample, p in zip(dataset.samples, predictions, strict=True)
        for box, score, label in zip(_xywh(p.boxes), p.scores.tolist(), p.labels.tolist(), strict=True)
    ]


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _mean(values: np.ndarray) -> float:
    """Mean over the types that have cells."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
