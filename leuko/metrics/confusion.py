"""Which type is taken for which, and which cells are correct (Li et al. 2022, Figure 5): in all, and by interference
factor (Figure 4 and Supplementary Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cells import CELL_FACTORS, FACTORS
from ..data.dataset import Dataset, Sample
from ..detections import Detections
from ..ops.pairs import box_iou
from .binomial import percent_of
from .counting import SAME_CELL, second_types

EXTRA, MISSED, CONFUSED = KINDS = "extra", "missed", "confused"
"""The kinds of errors, in the order in which they are shown."""
BOX = ("x0", "y0", "x1", "y1")
IMPURITIES = ("dye_residue", "cell_debris", "dust")


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


def errors(pairings: Sequence[Pairing], types: Sequence[str]) -> list[dict]:
    """Every extra cell, missed cell and confusion, kind by kind and the worst first: error, image, labelled, found,
    score, second, second_score, and the box x0, y0, x1, y1 (the label's, where there is one).

    The worst are extra cells and confusions of high scores, and missed cells of which nothing was seen: their
    ``second`` is the best that was found there below the threshold. The detections are of ``counting.one_type``.
    """
    rows = []
    for p in pairings:
        wrong = np.flatnonzero(~p.correct & ~p.sample.crowd)
        rows += [_error(p, -1, d, types) for d in np.flatnonzero(p.of_detection == -1)]
        rows += [_error(p, cell, p.of_cell[cell], types) for cell in wrong]
    return sorted(rows, key=lambda r: (KINDS.index(r["error"]), -r["score"] if r["found"] else r["second_score"]))


def _error(p: Pairing, cell: int, d: int, types: Sequence[str]) -> dict:
    """The row of a cell and a detection, one of which may be -1."""
    found, names = p.detections, [*types, ""]  # -1 is none
    box = (p.sample.boxes[cell] if cell >= 0 else found.boxes[d]).round(2).tolist()
    row = {"error": EXTRA if cell < 0 else MISSED if d < 0 else CONFUSED, "image": str(p.sample.image)}
    row["labelled"] = names[p.sample.labels[cell]] if cell >= 0 else ""
    if d >= 0:
        second, scores = second_types(found[[d]])
        row |= {"found": names[found.labels[d]], "score": found.scores[d]}
        row |= {"second": names[second[0]], "second_score": scores[0]}
    else:
        is_here = (p.of_detection == -2) & (box_iou(found.boxes, p.sample.boxes[cell])[:, 0] >= SAME_CELL)
        best = int(np.where(is_here, found.scores, -1).argmax()) if is_here.any() else -1
        row |= {"found": "", "score": np.nan, "second": names[found.labels[best]] if best >= 0 else ""}
        row["second_score"] = found.scores[best] if best >= 0 else 0
    row |= {key: round(float(row[key]), 4) for key in ("score", "second_score")}
    return row | dict(zip(BOX, box, strict=True))


def rate(factor: str, measure: str, hits: Sequence[bool] | np.ndarray) -> dict:
    """A row: how many of ``hits`` [total] bool are true, in percent, and its exact 95 % limits; nan without any."""
    n = int(np.sum(hits))
    percent, low, high = percent_of(n, len(hits))
    about = {"factor": factor, "measure": measure, "hits": n, "total": len(hits)}
    return {**about, "percent": percent, "low": low, "high": high}


def by_factor(pairings: Sequence[Pairing]) -> list[dict]:
    """The rates of each factor that the data set notes; [] if it notes none.

    Cell accuracy: correct cells of those with the factor (a factor of cells), or of those on images with it (a factor
    of images). Image accuracy: images with every cell correct and no extra detection, of the images with the factor (on
    the image or on a cell). Impurity ratio: images with an extra detection, of those with an impurity (``impurity`` is
    the three of them together); lower is better.
    """
    noted = [set(p.sample.factors).union(*p.sample.cell_factors) for p in pairings]
    found = set().union(*noted)
    rows = []
    for name in [f for f in FACTORS if f in found] + sorted(found - set(FACTORS)):
        images = [p for p, names in zip(pairings, noted, strict=True) if name in names]
        cells = [~p.sample.crowd for p in images]
        tagged = [~p.sample.crowd & np.array([name in f for f in p.sample.cell_factors], dtype=bool) for p in images]
        if name in CELL_FACTORS or (name not in FACTORS and np.concatenate(tagged).any()):
            cells = tagged
        correct = [p.correct[of_image] for p, of_image in zip(images, cells, strict=True)]
        right = [p.correct[~p.sample.crowd].all() and not p.extra.size for p in images]
        rows.append(rate(name, "cell accuracy", np.concatenate(correct)))
        rows.append(rate(name, "image accuracy", right))
        if name in IMPURITIES:
            rows.append(rate(name, "impurity ratio", [p.extra.size > 0 for p in images]))
    impure = [p.extra.size > 0 for p, names in zip(pairings, noted, strict=True) if names & set(IMPURITIES)]
    return rows + ([rate("impurity", "impurity ratio", impure)] if impure else [])
