"""Which type is taken for which (Li et al. 2022, Figure 5), and which cells are correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset, Sample
from ..detections import Detections
from ..ops.boxes import box_iou


@dataclass(frozen=True)
class Pairing:
    """One image: for each cell the index of its detection (-1: missed), for each detection the index of its cell (-1:
    extra; -2: on a crowd or below the threshold, not counted). The types of a pair may differ."""

    sample: Sample
    detections: Detections
    of_cell: np.ndarray
    of_detection: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The label that each cell was found with, [cells] int; -1 where it was missed."""
        return np.append(self.detections.labels, -1)[self.of_cell]

    @property
    def correct(self) -> np.ndarray:
        """Which cells are found with their own type, [cells] bool."""
        return self.predicted == self.sample.labels

    @property
    def extra(self) -> np.ndarray:
        """The labels of the extra detections."""
        return self.detections.labels[self.of_detection == -1]


def pair(sample: Sample, detections: Detections, score: float, min_iou: float) -> Pairing:
    """Pair cells and detections of at least ``score`` that overlap by ``min_iou``, one to one, in order of score.

    First within each type, which is what *detected correctly* means (so that the diagonal of the confusion matrix is
    recall); then the rest, across types: a cell that is found with another type is a confusion, not a miss and an
    extra detection.
    """
    good = np.flatnonzero(detections.scores >= score)
    good = good[np.argsort(-detections.scores[good], kind="stable")]
    of_cell = np.full(len(sample.boxes), -1)
    of_detection = np.full(len(detections), -2)
    of_detection[good] = -1
    overlap = box_iou(detections.boxes, sample.boxes, sample.crowd)
    overlap = np.where(overlap >= min_iou, overlap, 0)
    for same_type in (True, False):
        for d in good[of_detection[good] == -1]:
            free = (of_cell == -1) & ~sample.crowd & (overlap[d] > 0)
            if same_type:
                free &= sample.labels == detections.labels[d]
            if free.any():
                cell = int((free * overlap[d]).argmax())
                of_cell[cell], of_detection[d] = d, cell
    of_detection[(of_detection == -1) & overlap.any(1, where=sample.crowd)] = -2
    return Pairing(sample, detections, of_cell, of_detection)


def pair_all(
    dataset: Dataset, predictions: Sequence[Detections], score: float = 0.5, min_iou: float = 0.5
) -> list[Pairing]:
    """One pairing per image."""
    return [pair(s, detections, score, min_iou) for s, detections in zip(dataset.samples, predictions, strict=True)]


def matrix(pairings: Sequence[Pairing], types: int) -> np.ndarray:
    """Counts [types + 1, types + 1]: rows are labels, the last *extra*; columns are predictions, the last *missed*."""
    counts = np.zeros((types + 1, types + 1), dtype=int)
    for p in pairings:
        cells = ~p.sample.crowd
        np.add.at(counts, (p.sample.labels[cells], p.predicted[cells]), 1)  # -1 is the last column
        np.add.at(counts, (-1, p.extra), 1)
    return counts
