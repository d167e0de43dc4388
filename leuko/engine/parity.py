"""Whether an exported detector says the same as the one that it was made of: on fields that show cells, in batches of
different sizes, and at two image sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.fit import fit
from ..data.loader import to_tensor
from ..detections import Detections
from ..errors import LeukoError
from ..runtime import ExportedDetector
from ..synth.dataset import random_picture
from .ensemble import EnsembleMember
from .evaluate import at_size, to_unit

LEAST = 0.05  # score of a box that is compared
BATCHES = (1, 4)
OTHER_SIZE = 1.25  # times the image size, at which parity is shown, too


@dataclass(frozen=True)
class Bounds:
    """How far boxes (in pixels of the scaled image) and scores may lie apart."""

    box: float = 0.05
    score: float = 1e-4


HALF = Bounds(box=1.0, score=0.02)  # where weights are stored in 16 bits


@dataclass(frozen=True)
class Parity:
    """What was compared, and the largest differences."""

    fields: int
    boxes: int
    box: float
    score: float

    def __str__(self) -> str:
        return (
            f"parity on {self.fields} fields, in batches of {' and '.join(map(str, BATCHES))}, at two image sizes: "
            f"{self.boxes} boxes from {LEAST:g} on, sides within {self.box:.1e} pixels, scores within {self.score:.1e}"
        )


def rendered(number: int, size: int) -> list[np.ndarray]:
    """Fields [H, W, 3] uint8 RGB to compare on, every second one less high than wide."""
    fields = [random_picture(0, i, size).image for i in range(number)]
    return [field if i % 2 else field[: size * 3 // 4] for i, field in enumerate(fields)]


def check(member: EnsembleMember, path: Path, fields: Sequence[np.ndarray], bounds: Bounds) -> Parity:
    """Compare an exported file with the member that it was made of. LeukoError where they differ, or where the fields
    cannot show whether they do."""
    exported = ExportedDetector.load(path)
    found, size = [], member.sizes[0]
    for size in (member.sizes[0], round(OTHER_SIZE * member.sizes[0])):
        views = [fit(field, size) for field in fields]
        for batch in BATCHES:
            for start in range(0, len(views), batch):
                part = views[start : start + batch]
                pairs = zip(_by_torch(member, part, size), exported.detect(part), strict=True)
                found += [(*pair, f"field {start + k + 1} at {size} pixels") for k, pair in enumerate(pairs)]
    theirs = [detections for _, detections, _ in found[: len(fields)]]
    if not sum(len(each.above(LEAST)) for each in theirs):
        raise LeukoError(
            f"{path.name}: finds no cell on {len(fields)} fields, which proves nothing; give fields with cells by "
            "--data, or train the detector for longer"
        )
    if all(np.array_equal(theirs[0].boxes, other.boxes) for other in theirs[1:]):
        raise LeukoError(f"{path.name}: gives the same boxes on {len(fields)} different fields; it is not left there")
    differences = [_difference(*pair, bounds) for pair in found]
    if member.typing:
        differences += _of_typing(member, exported, fields, theirs, bounds)
    boxes = sum(len(mine.above(LEAST)) for mine, _, _ in found)
    box, score = np.max(differences, axis=0).tolist()
    return Parity(len(fields), boxes, box, score)


@torch.inference_mode()
def _by_torch(member: EnsembleMember, views: Sequence[np.ndarray], size: int) -> list[Detections]:
    outputs = at_size(member.model, size)([to_unit(to_tensor(view), torch.device("cpu")) for view in views])
    return [Detections.from_tensors(output) for output in outputs]


def _difference(mine: Detections, theirs: Detections, where: str, bounds: Bounds) -> tuple[float, float]:
    """The largest difference of sides and of scores of the same boxes; LeukoError where one is out of bounds, or a box
    of either has no counterpart of its type."""
    largest = [0.0, 0.0]
    for ours, others in ((mine, theirs), (theirs, mine)):
        for box, score, label in zip(ours.boxes, ours.scores, ours.labels, strict=True):
            if score < LEAST + bounds.score:  # its counterpart may lie below
                continue
            same = others.labels == label
            apart = np.abs(others.boxes[same] - box).max(1, initial=0)
            near = np.abs(others.scores[same] - score)[apart <= bounds.box]
            if not near.size or near.min() > bounds.score:
                problem = f"scores {near.min():.1e} apart" if near.size else "no counterpart"
                raise LeukoError(
                    f"{where}: the export and the detector do not agree: a box of score {score:.3f} has {problem}, "
                    f"where {bounds.box:g} pixels and {bounds.score:g} are allowed; the export is not left there"
                )
            best = near.argmin()
            largest = [max(largest[0], apart[apart <= bounds.box][best]), max(largest[1], near[best])]
    return largest[0], largest[1]


def _of_typing(
    member: EnsembleMember,
    exported: ExportedDetector,
    fields: Sequence[np.ndarray],
    found: Sequence[Detections],
    bounds: Bounds,
) -> list[tuple[float, float]]:
    """The same of the probabilities that both typing stages give to the same crops."""
    crops = []
    for field, detections in zip(fields, found, strict=True):
        view = fit(field, member.sizes[0])
        crops.append(member.typing.crops(view, detections.boxes, detections))
    crops = np.concatenate(crops)
    apart = np.abs(member.typing.net(crops) - exported.typing.net(crops)).max()
    if apart > bounds.score:
        raise LeukoError(
            f"the probabilities of types are up to {apart:.1e} apart from the detector's, where {bounds.score:g} is "
            "allowed; the export is not left there"
        )
    return [(0.0, float(apart))]
