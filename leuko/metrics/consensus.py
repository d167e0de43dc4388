"""Consensus errors (Li et al. 2022, Figure 6): where independent models agree with each other, not with the label.

On review, many of these labels turn out to be wrong. A ``Suspect`` is one of them: a label that models call another
type, a cell that they find where no label is, or a label that none of them finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from .matching import iou

AGREE_IOU = 0.5  # of the votes with each other, and with the label
LEAST_SCORE = 0.3  # of a vote
MOST_VOTES = 1000  # of one model on one image, the surest: no field holds more leukocytes


@dataclass(frozen=True)
class Vote:
    """What one model says of the place: its name, the type ("" where it finds nothing), score and box."""

    model: str
    type: str
    score: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Suspect:
    """A doubtful label. ``kind``: ``type`` (called another), ``unlabelled`` (found by models alone) or ``missed`` (no
    model finds it). ``cell`` is its number among the image's cells, -1 if unlabelled; ``label`` and ``says`` are types,
    "" for none; ``sure`` is the mean score of the votes that agree, for ``missed`` 1 less the best score there."""

    image: int
    kind: str
    cell: int
    label: str
    says: str
    box: tuple[float, float, float, float]
    sure: float
    votes: tuple[Vote, ...]


def suspects(
    dataset: Dataset, members: Sequence[Sequence[dict]], names: Sequence[str], at_least: int | None = None
) -> list[Suspect]:
    """All suspects, the surest first.

    ``members[m][i]`` are model m's detections on image i; ``at_least`` of the models must agree (default: all but one,
    at least two). Raises ValueError with fewer than two models.
    """
    if len(members) < 2:
        raise ValueError("consensus needs at least two models")
    needed = at_least or max(2, len(members) - 1)
    found: list[Suspect] = []
    for i in range(len(dataset)):
        votes = [_votes(m[i]) for m in members]
        found += _of_labels(dataset, i, votes, [m[i] for m in members], names, needed)
        found += _unlabelled(dataset, i, votes, names, needed)
    return sorted(found, key=lambda s: -s.sure)


def _votes(found: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A model's boxes, labels and scores above ``LEAST_SCORE``, by falling score; of those on one place the best."""
    order = np.argsort(-found.scores, kind="mergesort")
    order = order[found.scores[order] >= LEAST_SCORE][:MOST_VOTES]
    boxes, labels, scores = (found[key][order] for key in ("boxes", "labels", "scores"))
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for d in range(len(boxes)):
        if not kept or overlap[d, kept].max() < AGREE_IOU:
            kept.append(d)
    return boxes[kept], labels[kept], scores[kept]


def _of_labels(
    dataset: Dataset, i: int, votes: list[tuple], found: list[dict], names: Sequence[str], needed: int
) -> list[Suspect]:
    sample, types = dataset.samples[i], dataset.types
    result = []
    for cell in np.flatnonzero(~sample.crowd):
        box, label = sample.boxes[cell], int(sample.labels[cell])
        said: list[Vote] = []
        for name, (boxes, labels, scores) in zip(names, votes, strict=True):
            overlap = iou(boxes, box[None])[:, 0]
            best = int(overlap.argmax()) if len(overlap) else -1
            if best < 0 or overlap[best] < AGREE_IOU:
                said.append(Vote(name, "", 0.0))
            else:
                said.append(Vote(name, types[labels[best]], float(scores[best]), _tuple(boxes[best])))
        called = [v.type for v in said if v.type]
        if not called:
            there = [f.scores[iou(f.boxes, box[None])[:, 0] >= AGREE_IOU] for f in found]
            sure = 1 - float(max((s.max() for s in there if len(s)), default=0.0))
            result.append(Suspect(i, "missed", int(cell), types[label], "", _tuple(box), sure, tuple(said)))
            continue
        most = max(set(called), key=lambda t: (called.count(t), t))
        if most != types[label] and called.count(most) >= needed:
            sure = float(np.mean([v.score for v in said if v.type == most]))
            result.append(Suspect(i, "type", int(cell), types[label], most, _tuple(box), sure, tuple(said)))
    return result


def _unlabelled(dataset: Dataset, i: int, votes: list[tuple], names: Sequence[str], needed: int) -> list[Suspect]:
    """Places without a label that enough models find, with one type."""
    sample, types = dataset.samples[i], dataset.types
    free = []  # (score, model, detection) away from all labels, crowds too
    for m, (boxes, _, scores) in enumerate(votes):
        near = iou(boxes, sample.boxes, sample.crowd).max(1) if len(sample.boxes) else np.zeros(len(boxes))
        free += [(float(scores[d]), m, d) for d in np.flatnonzero(near < AGREE_IOU / 2)]
    result = []
    while free:
        free.sort(reverse=True)
        _, m, d = free[0]
        box, label = votes[m][0][d], votes[m][1][d]
        same = {m: d}
        for _, other, e in free[1:]:
            if other not in same and iou(votes[other][0][e][None], box[None])[0, 0] >= AGREE_IOU:
                same[other] = e
        free = [f for f in free if same.get(f[1]) != f[2]]
        agreeing = [j for j, e in same.items() if votes[j][1][e] == label]
        if len(agreeing) >= needed:
            said = tuple(
                Vote(name, types[votes[j][1][same[j]]], float(votes[j][2][same[j]]), _tuple(votes[j][0][same[j]]))
                if j in same
                else Vote(name, "", 0.0)
                for j, name in enumerate(names)
            )
            place = np.mean([votes[j][0][same[j]] for j in agreeing], axis=0)
            sure = float(np.mean([votes[j][2][same[j]] for j in agreeing]))
            result.append(Suspect(i, "unlabelled", -1, "", types[label], _tuple(place), sure, said))
    return result


def _tuple(box: np.ndarray) -> tuple[float, float, float, float]:
    return tuple(round(float(v), 2) for v in box)  # type: ignore[return-value]
