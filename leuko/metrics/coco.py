"""COCO's measures, from the one evaluator that leuko uses everywhere.

A *prediction* is what a detector found on one image: ``{"boxes": float32 [N, 4] xyxy in pixels of the image, "scores":
float32 [N] in 0..1, "labels": int64 [N] 0-based}``, sorted by score. A list of predictions has one for each sample of
a data set, in its order.

The evaluator is faster-coco-eval where it is installed and pycocotools otherwise; the two agree to rounding.
Areas are those of the boxes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from ..errors import LeukoError

MAX_DETECTIONS = 100  # an image and type, as in COCO's AP and AR@100
AP50, AP75 = 0, 5  # places of .50 and .75 among COCO's ten IoU thresholds


@dataclass(frozen=True)
class TypeResult:
    """The measures of one type (0..1; nan where there is no truth) and its support: cells, and images with any."""

    type: str
    AP: float
    AP50: float
    AP75: float
    AR: float
    cells: int
    images: int


@dataclass(frozen=True)
class Evaluation:
    """COCO's measures over all types (0..1; nan where there is no truth), the same per type, and the support.

    mAP is the mean over IoU .50 to .95; mAR the recall at 100 detections over the same thresholds. A type without
    any truth is left out of the means.
    """

    mAP: float
    mAP50: float
    mAP75: float
    mAR: float
    cells: int
    images: int
    per_class: list[TypeResult]


def evaluate(dataset: Dataset, predictions: Sequence[dict]) -> Evaluation:
    """Measure one prediction a sample against the truth; crowds are ignored as COCO does.

    Raises LeukoError if the predictions do not fit the data set (see ``check``).
    """
    check(dataset, predictions)
    precision, recall = _precision_recall(dataset, predictions)
    cells = dataset.counts()
    images = np.zeros(len(dataset.types), dtype=int)
    for sample in dataset.samples:
        images[np.unique(sample.labels[~sample.crowd])] += 1
    per_class = [
        TypeResult(
            type=name,
            AP=_mean(precision[:, :, k]),
            AP50=_mean(precision[AP50, :, k]),
            AP75=_mean(precision[AP75, :, k]),
            AR=_mean(recall[:, k]),
            cells=int(cells[k]),
            images=int(images[k]),
        )
        for k, name in enumerate(dataset.types)
    ]
    return Evaluation(
        mAP=_mean(precision),
        mAP50=_mean(precision[AP50]),
        mAP75=_mean(precision[AP75]),
        mAR=_mean(recall),
        cells=int(cells.sum()),
        images=len(dataset),
        per_class=per_class,
    )


def check(dataset: Dataset, predictions: Sequence[dict]) -> None:
    """Raise LeukoError unless there is one well-formed prediction a sample: finite, labels known, lengths equal."""
    if len(predictions) != len(dataset):
        raise LeukoError(
            f"predictions: {len(predictions)} for a data set of {len(dataset)} images; predict each of its images once"
        )
    for sample, p in zip(dataset.samples, predictions, strict=True):
        boxes, scores, labels = (np.asarray(p[key]) for key in ("boxes", "scores", "labels"))
        if not len(boxes) == len(scores) == len(labels):
            problem = f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels; pass one of each a detection"
        elif not np.isfinite(scores).all():
            first = int(np.flatnonzero(~np.isfinite(scores))[0])
            problem = f"detection {first}: its score is {scores[first]}; the weights have diverged, use other ones"
        elif not np.isfinite(boxes).all():
            first = int(np.argwhere(~np.isfinite(boxes))[0, 0])
            problem = (
                f"detection {first}: its box is {boxes[first].tolist()}; the weights have diverged, use other ones"
            )
        elif len(labels) and (labels.min() < 0 or labels.max() >= len(dataset.types)):
            first = int(np.flatnonzero((labels < 0) | (labels >= len(dataset.types)))[0])
            problem = (
                f"detection {first}: label {labels[first]} of {len(dataset.types)} types; use weights for these types"
            )
        else:
            continue
        raise LeukoError(f"{sample.image}: {problem}")


def to_coco_results(dataset: Dataset, predictions: Sequence[dict]) -> list[dict]:
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


def _precision_recall(dataset: Dataset, predictions: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return precision [10 IoUs, 101 recalls, types] and recall [10 IoUs, types]; -1 for a type without truth."""
    COCO, COCOeval = _evaluator()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(_truth(COCO, dataset), _detections(COCO, dataset, predictions), "bbox")
        evaluator.params.areaRng = [[0, float("inf")]]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
        evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])[..., 0, 0], np.asarray(evaluator.eval["recall"])[..., 0, 0]


def _evaluator() -> tuple[type, type]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval


def _truth(COCO: type, dataset: Dataset):
    """Index the truth. Images and types are numbered by their place, since a data set's own ids may repeat."""
    ids = itertools.count(1)  # id 0 would read as "not matched"
    return _index(
        COCO,
        dataset,
        [
            {
                "id": next(ids),
                "image_id": i,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for i, s in enumerate(dataset.samples)
            for box, label, crowd in zip(_xywh(s.boxes), s.labels.tolist(), s.crowd.astype(int).tolist(), strict=True)
        ],
    )


def _detections(COCO: type, dataset: Dataset, predictions: Sequence[dict]):
    ids = itertools.count(1)
    return _index(
        COCO,
        dataset,
        [
            {"id": next(ids), "image_id": i, "category_id": label, "bbox": box, "area": box[2] * box[3], "score": score}
            for i, p in enumerate(predictions)
            for box, score, label in zip(_xywh(p.boxes), p.scores.tolist(), p.labels.tolist(), strict=True)
        ],
    )


def _index(COCO: type, dataset: Dataset, annotations: list[dict]):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": s.width, "height": s.height} for i, s in enumerate(dataset.samples)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.types)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _mean(values: np.ndarray) -> float:
    """Mean over what has truth; COCO marks the rest by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
