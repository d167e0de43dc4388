"""Weighted Boxes Fusion (Solovyev, Wang and Gabruseva 2021): one prediction out of several models' predictions.

Boxes of one type are clustered greedily in order of score; a box joins the cluster whose fused box it overlaps most,
if by more than the IoU threshold. With M models, weights w (all 1 by default) and the boxes b_i with scores s_i, of
the models m_i, in a cluster:

    box   = sum(w_mi s_i b_i) / sum(w_mi s_i)
    score = min(1, sum(w_mi s_i) / sum(w_1 .. w_M))

so that a model that finds nothing there lowers the score. That holds only if a model has one vote per cell: two
overlapping boxes of one model would stand in for a model that is silent, and push the sum above M. So within a model
only the best of the boxes of one type that overlap by more than the IoU threshold is kept before fusion, and each score
is at most sum(w) / sum(w) = 1. The cap is for what remains: two boxes of a model that do not overlap that much, but
both overlap the box fused from them and others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..detections import MAX_DETECTIONS, Detections
from ..errors import LeukoError
from ..ops.pairs import nms


def fuse(
    predictions_per_member: Sequence[Sequence[Detections]],
    sizes: Sequence[tuple[int, int]],
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    max_detections: int = MAX_DETECTIONS,
) -> list[Detections]:
    """Fuse M members' predictions of the same N images: ``predictions_per_member[m][n]``, fused ``[n]``.

    ``sizes`` are the images' (width, height) in pixels, in which all boxes are given and returned. Boxes that score
    less than ``score_threshold``, or 0, have no vote, and neither has a box without area within its image. At most
    ``max_detections`` are returned per image, sorted by score. Raises LeukoError where the members do not fit together.
    """
    members = len(predictions_per_member)
    weights = np.ones(members) if weights is None else np.asarray(weights, dtype=np.float64)
    if not members:
        raise LeukoError("ensemble: no members; name at least one model")
    if len(weights) != members or not (np.isfinite(weights) & (weights > 0)).all():
        raise LeukoError(f"ensemble weights {weights.tolist()}: give {members} numbers above 0, one per model")
    for m, predictions in enumerate(predictions_per_member):
        if len(predictions) != len(sizes):
            raise LeukoError(
                f"ensemble member {m + 1}: {len(predictions)} predictions for {len(sizes)} images; predict each once"
            )
        for n, prediction in enumerate(predictions):
            if not np.isfinite(prediction.scores).all():
                raise LeukoError(
                    f"ensemble member {m + 1}: image {n}: a score is not a number; leave out this diverged model"
                )
    return [
        _fuse_image(
            [_votes(predictions[n], size, iou_threshold, score_threshold) for predictions in predictions_per_member],
            size,
            iou_threshold,
            weights,
            max_detections,
        )
        for n, size in enumerate(sizes)
    ]


def _votes(prediction: Detections, size: tuple[int, int], iou_threshold: float, score_threshold: float) -> Detections:
    """One member's detections with one vote per cell: boxes clipped to the image, overlapping ones suppressed."""
    boxes = prediction.boxes.astype(np.float64).clip(0, [*size, *size])
    scores, labels = prediction.scores.astype(np.float64), prediction.labels
    voting = (scores >= score_threshold) & (scores > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, labels = boxes[voting], scores[voting], labels[voting]
    kept = nms(boxes, scores, labels, iou_threshold)
    return Detections(boxes[kept], scores[kept], labels[kept])


def _fuse_image(
    votes: list[Detections], size: tuple[int, int], iou_threshold: float, weights: np.ndarray, max_detections: int
) -> Detections:
    try:  # not before: it imports numba, which takes a while that only ensembles need
        from ensemble_boxes import weighted_boxes_fusion
    except ImportError as error:
        raise LeukoError(f"a fusion needs ensemble-boxes: pip install ensemble-boxes ({error})") from error

    scale = np.array([*size, *size], dtype=np.float64)
    boxes, scores, labels = weighted_boxes_fusion(
        [v.boxes / scale for v in votes],
        [v.scores for v in votes],
        [v.labels for v in votes],
        weights=weights,
        iou_thr=iou_threshold,
        conf_type="avg",
        allows_overflow=True,  # else the sum is divided by the number of boxes where they are more than the models
    )
    order = np.argsort(-scores, kind="stable")[:max_detections]
    return Detections(np.minimum(boxes[order] * scale, scale), np.minimum(scores[order], 1), labels[order])
