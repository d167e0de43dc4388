"""Weighted Boxes Fusion (Solovyev, Wang and Gabruseva 2021): one prediction out of several models' predictions.

Boxes of one type are clustered greedily in order of score; a box joins the cluster whose fused box it overlaps most,
if by more than the IoU threshold. With M models, and the boxes b_i with scores s_i in a cluster:

    box   = sum(s_i b_i) / sum(s_i)
    score = min(1, sum(s_i) / M)

so that a model that finds nothing there lowers the score. That holds only if a model has one vote per cell: two
overlapping boxes of one model would stand in for a model that is silent, and push the sum above M. So within a model
only the best of the boxes of one type that overlap by more than the IoU threshold is kept before fusion, and each score
is at most M / M = 1. The cap is for what remains: two boxes of a model that do not overlap that much, but both overlap
the box fused from them and others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..detections import MAX_DETECTIONS, Detections
from ..errors import LeukoError
from ..ops.pairs import nms


@dataclass(frozen=True)
class Fusion:
    """How members are fused: boxes that overlap by more than ``iou`` are one cell. Scores of 0 or below ``score``
    have no vote, and neither has a box without area within its image."""

    iou: float = 0.55
    score: float = 0.0

    def __call__(
        self,
        predictions_per_member: Sequence[Sequence[Detections]],
        sizes: Sequence[tuple[int, int]],
        max_detections: int = MAX_DETECTIONS,
    ) -> list[Detections]:
        """Fuse M members' predictions of the same N images: ``predictions_per_member[m][n]``, fused ``[n]``.

        ``sizes`` are the images' (width, height) in pixels, in which all boxes are given and returned. At most
        ``max_detections`` are returned per image, in descending order of score. Raises LeukoError for a score that is
        not a number.
        """
        fused = []
        for *of_members, size in zip(*predictions_per_member, sizes, strict=True):
            votes = [self._votes(found, size) for found in of_members]
            fused.append(self._fused(votes, size)[:max_detections])
        return fused

    def _votes(self, prediction: Detections, size: tuple[int, int]) -> Detections:
        """One member's detections with one vote per cell: boxes clipped to the image, overlapping ones suppressed."""
        boxes = prediction.boxes.astype(np.float64).clip(0, [*size, *size])
        scores, labels = prediction.scores.astype(np.float64), prediction.labels
        if not np.isfinite(scores).all():
            raise LeukoError("a member of the ensemble gives a score that is not a number; leave out the diverged one")
        voting = (scores >= self.score) & (scores > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[voting], scores[voting], labels[voting]
        kept = nms(boxes, scores, labels, self.iou)
        return Detections(boxes[kept], scores[kept], labels[kept])

    def _fused(self, votes: Sequence[Detections], size: tuple[int, int]) -> Detections:
        try:  # not before: it imports numba, which takes a while that only ensembles need
            from ensemble_boxes import weighted_boxes_fusion
        except ImportError as error:
            raise LeukoError(f"a fusion needs ensemble-boxes: pip install ensemble-boxes ({error})") from error

        scale = np.array([*size, *size], dtype=np.float64)
        boxes, scores, labels = weighted_boxes_fusion(
            [v.boxes / scale for v in votes],
            [v.scores for v in votes],
            [v.labels for v in votes],
            iou_thr=self.iou,
            conf_type="avg",
            allows_overflow=True,  # else the sum is divided by the number of boxes where they are more than the models
        )
        order = np.argsort(-scores, kind="stable")
        return Detections(np.minimum(boxes[order] * scale, scale), np.minimum(scores[order], 1), labels[order])
