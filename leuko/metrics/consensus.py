"""Consensus errors (Li et al. 2022, Figure 6): where independent models agree with each other, but not with the label.

On review, many of these labels are wrong. A ``Suspect`` is one of them: a label whose cell the models give another
type, a cell that they find where there is no label, or a label that none of them finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset, Sample
from ..detections import Detections
from ..ops.pairs import box_iou

AGREE_IOU = 0.5  # of the votes with each other, and with the label
MOST_VOTES = 1000  # of one model per image, those of the highest scores: no field holds more leukocytes

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Vote:
    """What one model finds at a place: the model's name, the type ("" for nothing), score and box."""

    model: str
    type: str = ""
    score: float = 0.0
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
    dataset: Dataset, members: Sequence[Sequence[Detections]], names: Sequence[str], thresholds: Sequence[float]
) -> list[Suspect]:
    """All suspects, in descending order of ``sure``. ``members[m][i]`` are the cells (see ``counting.one_type``) of
    model m, called ``names[m]``, on image i; it votes for those of at least ``thresholds[m]``. All models but one must
    agree, and at least two."""
    needed, types = max(2, len(members) - 1), dataset.types
    result = []
    for i, (sample, *predictions) in enumerate(zip(dataset.samples, *members, strict=True)):
        strongest = [p.above(t)[:MOST_VOTES] for p, t in zip(predictions, thresholds, strict=True)]
        for cell in np.flatnonzero(~sample.crowd):
            box, label = sample.boxes[cell], types[sample.labels[cell]]
            overlaps = [box_iou(f.boxes, box)[:, 0] for f in strongest]
            at_cell = {m: o.argmax() for m, o in enumerate(overlaps) if o.max(initial=0) >= AGREE_IOU}
            votes = _votes(names, types, strongest, at_cell)
            called = [v.type for v in votes if v.type]
            most = max(set(called), key=lambda t: (called.count(t), t), default="")
            about = int(cell), label, most, _rounded(box)
            if not called:
                scores = [p.scores[box_iou(p.boxes, box)[:, 0] >= AGREE_IOU] for p in predictions]
                sure = 1 - float(np.concatenate(scores).max(initial=0))
                result.append(Suspect(i, "missed", *about, sure, votes))
            elif most != label and called.count(most) >= needed:
                sure = float(np.mean([v.score for v in votes if v.type == most]))
                result.append(Suspect(i, "type", *about, sure, votes))
        for label, at_place in _unlabelled(sample, strongest):
            agreeing = [(m, d) for m, d in at_place.items() if strongest[m].labels[d] == label]
            if len(agreeing) >= needed:
                place = _rounded(np.mean([strongest[m].boxes[d] for m, d in agreeing], axis=0))
                sure = float(np.mean([strongest[m].scores[d] for m, d in agreeing]))
                votes = _votes(names, types, strongest, at_place)
                result.append(Suspect(i, "unlabelled", -1, "", types[label], place, sure, votes))
    return sorted(result, key=lambda s: -s.sure)


def _unlabelled(sample: Sample, strongest: Sequence[Detections]) -> Iterator[tuple[int, dict[int, int]]]:
    """Places away from all labels, crowds too, by the best score there: its label, and {model: its detection there}."""
    free = []  # (score, model, detection)
    for m, of_model in enumerate(strongest):
        near = box_iou(of_model.boxes, sample.boxes, sample.crowd).max(1, initial=0)
        free += [(float(of_model.scores[d]), m, int(d)) for d in np.flatnonzero(near < AGREE_IOU / 2)]
    free.sort(reverse=True)
    while free:
        _, first, best = free[0]
        at_place = {first: best}
        for _, m, d in free[1:]:
            if m not in at_place and box_iou(strongest[m].boxes[d], strongest[first].boxes[best])[0, 0] >= AGREE_IOU:
                at_place[m] = d
        free = [f for f in free if at_place.get(f[1]) != f[2]]
        yield int(strongest[first].labels[best]), at_place


def _votes(names: Sequence[str], types: Sequence[str], strongest: Sequence[Detections], at: dict) -> tuple[Vote, ...]:
    """The vote of each model m by its detection ``at[m]``, for nothing where it has none."""
    of_models = [f[[at[m]] if m in at else []] for m, f in enumerate(strongest)]
    return tuple(
        Vote(name, types[f.labels[0]], float(f.scores[0]), _rounded(f.boxes[0])) if len(f) else Vote(name)
        for name, f in zip(names, of_models, strict=True)
    )


def _rounded(box: np.ndarray) -> Box:
    return tuple(round(float(v), 2) for v in box)  # type: ignore[return-value]
