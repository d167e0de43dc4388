"""COCO's measures, from the one evaluator that leuko uses everywhere.

Predictions are a list with one ``Detections`` per sample of a data set, in its order. The evaluator is
faster-coco-eval, which agrees with pycocotools to rounding. Areas are those of the boxes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval import COCOeval_faster as COCOeval

from ..data.dataset import Dataset, Sample
from ..detections import MAX_DETECTIONS, Detections
from ..errors import LeukoError

AP50, AP75 = 0, 5  # indices of .50 and .75 among COCO's ten IoU thresholds


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
    precision, recall = _precision_recall(dataset, predictions, max_detections)

    def measures(types: int | slice) -> list[float]:
        return [_mean(v[..., types]) for v in (precision, precision[AP50], precision[AP75], recall)]

    cells = dataset.counts_per_image()
    support = zip(dataset.types, cells.sum(0).tolist(), (cells > 0).sum(0).tolist(), strict=True)
    per_class = [TypeResult(name, *measures(k), *numbers) for k, (name, *numbers) in enumerate(support)]
    return Evaluation(*measures(slice(None)), int(cells.sum()), len(dataset), per_class, max_detections)


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


def _precision_recall(
    dataset: Dataset, predictions: Sequence[Detections], max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision [10 IoUs, 101 recalls, types] and recall [10 IoUs, types]; -1 for a type without cells."""
    crowds, scores = [s.crowd.astype(int) for s in dataset.samples], [p.scores for p in predictions]
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluator prints its progress
        gt = _index(dataset, dataset.samples, "iscrowd", crowds)
        evaluator = COCOeval(gt, _index(dataset, predictions, "score", scores), "bbox")
        evaluator.params.areaRng = [[0, float("inf")]]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.params.maxDets = [max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])[..., 0, 0], np.asarray(evaluator.eval["recall"])[..., 0, 0]


def _index(dataset: Dataset, cells: Sequence[Sample | Detections], key: str, values: Sequence[np.ndarray]) -> COCO:
    """The cells of each image, with one more value per cell under ``key``, as a COCO object. Images and types are
    numbered by their position, since a data set's own ids may repeat."""
    ids = itertools.count(1)  # id 0 would read as "not matched"
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": s.width, "height": s.height} for i, s in enumerate(dataset.samples)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.types)],
        "annotations": [
            {"id": next(ids), "image_id": i, "category_id": label, "bbox": box, "area": box[2] * box[3], key: value}
            for i, (c, of_image) in enumerate(zip(cells, values, strict=True))
            for box, label, value in zip(_xywh(c.boxes), c.labels.tolist(), of_image.tolist(), strict=True)
        ],
    }
    coco.createIndex()
    return coco


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _mean(values: np.ndarray) -> float:
    """Mean over the types that have cells; COCO marks the others by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
