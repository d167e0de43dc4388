"""Which type is taken for which (Li et al. 2022, Figure 5), and which cells are correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from .matching import iou


@dataclass(frozen=True)
class Pairing:
    """One image: for each cell the detection that found it (-1: missed), for each detection the cell that it found (-1:
    extra, -2: on a crowd or below the threshold, not counted). A pair may be of two types."""

    of_cell: np.ndarray
    of_detection: np.ndarray


def pair(
    boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, found: dict, score: float, min_iou: float
) -> Pairing:
    """Pair cells and detections of at least ``score`` that overlap by ``min_iou``, one to one, in order of score.

    First within each type, which is what *detected correctly* means (so that recall by the confusion matrix is
    recall); then what is left, across types: a cell that is found but called another type is a confusion, not a miss
    and an extra.
    """
    good = np.flatnonzero(found.scores >= score)
    good = good[np.argsort(-found.scores[good], kind="mergesort")]
    of_cell = np.full(len(boxes), -1)
    of_detection = np.full(len(found.scores), -2)
    of_detection[good] = -1
    overlap = iou(found.boxes, boxes, crowd) if len(boxes) else np.zeros((len(found.scores), 0))
    for same_type in (True, False):
        for d in good:
            if of_detection[d] != -1:
                continue
            free = (of_cell == -1) & ~crowd & (overlap[d] >= min_iou)
            if same_type:
                free &= labels == found.labels[d]
            if free.any():
                cell = int(np.where(free, overlap[d], -1).argmax())
                of_cell[cell], of_detection[d] = d, cell
    for d in good:
        if of_detection[d] == -1 and (crowd & (overlap[d] >= min_iou)).any():
            of_detection[d] = -2
    return Pairing(of_cell, of_detection)


def pair_all(dataset: Dataset, predictions: Sequence[dict], score: float = 0.5, min_iou: float = 0.5) -> list[Pairing]:
    """A pairing an image."""
    return [
        pair(s.boxes, s.labels, s.crowd, found, score, min_iou)
        for s, found in zip(dataset.samples, predictions, strict=True)
    ]


def matrix(dataset: Dataset, predictions: Sequence[dict], pairings: Sequence[Pairing]) -> np.ndarray:
    """Counts [types + 1, types + 1]: rows truth, the last one *extra*; columns prediction, the last one *missed*."""
    k = len(dataset.types)
    counts = np.zeros((k + 1, k + 1), dtype=int)
    for sample, found, pairing in zip(dataset.samples, predictions, pairings, strict=True):
        for cell in np.flatnonzero(~sample.crowd):
            by = pairing.of_cell[cell]
            counts[sample.labels[cell], found.labels[by] if by >= 0 else k] += 1
        for label in found.labels[pairing.of_detection == -1]:
            counts[k, label] += 1
    return counts


def correct_cells(dataset: Dataset, predictions: Sequence[dict], pairings: Sequence[Pairing]) -> list[np.ndarray]:
    """For each image, which of its cells are found and called by their type, [cells] bool."""
    result = []
    for sample, found, pairing in zip(dataset.samples, predictions, pairings, strict=True):
        by = pairing.of_cell
        called = found.labels[by] if len(found.labels) else np.full(len(by), -1)
        result.append((by >= 0) & (called == sample.labels))
    return result
