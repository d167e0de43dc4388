"""Consensus errors (Li et al. 2022, Figure 6): where independent models agree with each other, but not with the label.

On review, many of these labels are wrong. A ``Suspect`` is one of them: a label whose cell the models give another
type, a cell that they find where there is no label, or a label that none of them finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset
from ..detections import Detections
from ..ops.boxes import box_iou

AGREE_IOU = 0.5  # of the votes with each other, and with the label
LEAST_SCORE = 0.3  # of a vote
MOST_VOTES = 1000  # votes of one model per image, those of the highest scores: no field holds more leukocytes

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Vote:
    """What one model finds at a place: the model's name, the type ("" for nothing), score and box."""

    model: str
    type: str
    score: float
    box: Box | None = None


@dataclass(frozen=True)
class Suspect:
    """A doubtful label. ``kind``: ``type`` (found with another type), ``unlabelled`` (found by models only) or
    ``missed`` (found by no model). ``image`` and ``cell`` are indices into the data set and the image's cells (-1 if
    unlabelled); ``label`` and ``says`` are types, by label and by the models ("" for none); ``sure`` is the mean score
    of the votes that agree, for ``missed`` 1 minus the highest score there."""

    image: int
    kind: str
    cell: int
    label: str
    says: str
    box: Box
    sure: float
    votes: tuple[Vote, ...]


def suspects(
    dataset: Dataset, members: Sequence[Sequence[Detections]], names: Sequence[str], at_least: int | None = None
) -> list[Suspect]:
    """All suspects, in descending order of ``sure``.

    ``members[m][i]`` are model m's detections on image i; ``at_least`` of the models must agree (default: all but one,
    and at least two). Raises ValueError with fewer than two models.
    """
    if len(members) < 2:
        raise ValueError("consensus needs at least two models")
    needed = at_least or max(2, len(members) - 1)
    result: list[Suspect] = []
    for i in range(len(dataset)):
        predictions = [m[i] for m in members]
        votes = [_strongest(p) for p in predictions]
        result += _labelled(dataset, i, votes, predictions, names, needed)
        result += _unlabelled(dataset, i, votes, names, needed)
    return sorted(result, key=lambda s: -s.sure)


def _strongest(detections: Detections) -> Detections:
    """One model's votes: detections above ``LEAST_SCORE`` in descending order of score, one per place."""
    detections = detections.above(LEAST_SCORE)
    detections = detections[np.argsort(-detections.scores, kind="stable")[:MOST_VOTES]]
    overlap = box_iou(detections.boxes, detections.boxes)
    kept: list[int] = []
    for d in range(len(detections)):
        if not kept or overlap[d, kept].max() < AGREE_IOU:
            kept.append(d)
    return detections[kept]


def _vote(model: str, types: Sequence[str], detections: Detections, d: int | None) -> Vote:
    """A model's vote by its detection ``d``; for nothing if that is None."""
    if d is None:
        return Vote(model, "", 0.0)
    return Vote(model, types[detections.labels[d]], float(detections.scores[d]), _rounded(detections.boxes[d]))


def _labelled(
    dataset: Dataset,
    i: int,
    votes: Sequence[Detections],
    predictions: Sequence[Detections],
    names: Sequence[str],
    needed: int,
) -> list[Suspect]:
    """Labels of image i that no model finds, or that enough models find with one other type."""
    sample, types = dataset.samples[i], dataset.types
    result = []
    for cell in np.flatnonzero(~sample.crowd):
        box, label = sample.boxes[cell], types[sample.labels[cell]]
        at_cell = []
        for name, of_model in zip(names, votes, strict=True):
            overlap = np.append(box_iou(of_model.boxes, box)[:, 0], 0)
            best = int(overlap.argmax())
            at_cell.append(_vote(name, types, of_model, best if overlap[best] >= AGREE_IOU else None))
        called = [v.type for v in at_cell if v.type]
        if not called:
            scores = [p.scores[box_iou(p.boxes, box)[:, 0] >= AGREE_IOU] for p in predictions]
            sure = 1 - float(np.concatenate(scores).max(initial=0.0))
            result.append(Suspect(i, "missed", int(cell), label, "", _rounded(box), sure, tuple(at_cell)))
            continue
        most = max(set(called), key=lambda t: (called.count(t), t))
        if most != label and called.count(most) >= needed:
            sure = float(np.mean([v.score for v in at_cell if v.type == most]))
            result.append(Suspect(i, "type", int(cell), label, most, _rounded(box), sure, tuple(at_cell)))
    return result


def _unlabelled(
    dataset: Dataset, i: int, votes: Sequence[Detections], names: Sequence[str], needed: int
) -> list[Suspect]:
    """Places of image i without a label where enough models find a cell of one type."""
    sample, types = dataset.samples[i], dataset.types
    free = []  # (score, model, detection) away from all labels, crowds too
    for m, of_model in enumerate(votes):
        near = box_iou(of_model.boxes, sample.boxes, sample.crowd).max(1, initial=0)
        free += [(float(of_model.scores[d]), m, int(d)) for d in np.flatnonzero(near < AGREE_IOU / 2)]
    free.sort(reverse=True)
    result = []
    while free:
        _, m, d = free[0]
        box, label = votes[m].boxes[d], votes[m].labels[d]
        at_place = {m: d}  # model -> its detection there
        for _, other, e in free[1:]:
            if other not in at_place and box_iou(votes[other].boxes[e], box)[0, 0] >= AGREE_IOU:
                at_place[other] = e
        free = [f for f in free if at_place.get(f[1]) != f[2]]
        agreeing = [(votes[j].boxes[e], votes[j].scores[e]) for j, e in at_place.items() if votes[j].labels[e] == label]
        if len(agreeing) >= needed:
            boxes, scores = zip(*agreeing, strict=True)
            each_vote = tuple(_vote(name, types, votes[j], at_place.get(j)) for j, name in enumerate(names))
            place, sure = _rounded(np.mean(boxes, axis=0)), float(np.mean(scores))
            result.append(Suspect(i, "unlabelled", -1, "", types[label], place, sure, each_vote))
    return result


def _rounded(box: np.ndarray) -> Box:
    return tuple(round(float(v), 2) for v in box)  # type: ignore[return-value]
