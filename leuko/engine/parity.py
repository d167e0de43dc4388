"""Whether an exported detector says the same as the one that it was made of: on fields that show cells, in batches of
different sizes, and at two image sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.fit import fit
from ..detections import Detections
from ..errors import LeukoError
from ..runtime import ExportedDetector
from ..synth.dataset import random_picture
from .ensemble import EnsembleMember

LEAST = 0.05  # score of a box that is compared
BOX, SCORE = 0.05, 1e-4  # how far sides (in pixels of the scaled image) and scores may lie apart
BATCHES = (1, 4)
OTHER_SIZE = 1.25  # times the image size, at which parity is shown, too


@dataclass(frozen=True)
class Parity:
    """What was compared, and the largest differences."""

    fields: int
    boxes: int
    box: float
    score: float

    def __str__(self) -> str:
        batches = " and ".join(map(str, BATCHES))
        return (
            f"parity on {self.fields} fields, in batches of {batches}, at two image sizes: {self.boxes} boxes of both "
            f"from {LEAST:g} on, sides within {self.box:.1e} pixels, scores within {self.score:.1e}"
        )


def rendered(number: int, size: int) -> list[np.ndarray]:
    """Fields [H, W, 3] uint8 RGB to compare on, every second one less high than wide."""
    fields = [random_picture(0, i, size).image for i in range(number)]
    return [field if i % 2 else field[: size * 3 // 4] for i, field in enumerate(fields)]


def check(member: EnsembleMember, path: Path, fields: Sequence[np.ndarray]) -> Parity:
    """Compare an exported file with the member that it was made of. LeukoError where they differ, or where the fields
    cannot show whether they do."""
    exported = ExportedDetector.load(path)
    found, size = [], member.sizes[0]
    for size in (member.sizes[0], round(OTHER_SIZE * member.sizes[0])):
        views = [fit(field, size) for field in fields]
        for batch in BATCHES:
            for start in range(0, len(views), batch):
                part = views[start : start + batch]
                pairs = zip(member.model.detect(part), exported.detect(part), strict=True)
                found += [(*pair, f"field {start + k + 1} at {size} pixels") for k, pair in enumerate(pairs)]
    theirs = [detections for _, detections, _ in found[: len(fields)]]
    boxes = sum(len(each.above(LEAST)) for pair in found for each in pair[:2])
    if not boxes:
        raise LeukoError(
            f"{path.name}: no cell is found on {len(fields)} fields, which proves nothing; give fields with cells by "
            "--data, or train the detector for longer"
        )
    if all(np.array_equal(theirs[0].boxes, other.boxes) for other in theirs[1:]):
        raise LeukoError(f"{path.name}: gives the same boxes on {len(fields)} different fields; it is not left there")
    largest = np.zeros(2)
    for mine, other, where in found:
        for pair in ((mine, other), (other, mine)):
            largest = np.maximum(largest, _apart(*pair, f"{path.name}: {where}"))
    if member.typing:
        largest[1] = max(largest[1], _of_typing(member, exported, fields, theirs))
    return Parity(len(fields), boxes, *largest.tolist())


def _apart(mine: Detections, theirs: Detections, where: str) -> np.ndarray:
    """The largest differences [2] of sides and of scores between boxes and their counterparts; LeukoError where one has
    no counterpart."""
    largest = np.zeros(2)
    for box, score, label in zip(mine.boxes, mine.scores, mine.labels, strict=True):
        if score < LEAST + SCORE:  # its counterpart may lie below
            continue
        same = theirs.labels == label
        apart = np.stack([np.abs(theirs.boxes[same] - box).max(1), np.abs(theirs.scores[same] - score)])  # [2, M]
        near = apart[:, (apart[0] <= BOX) & (apart[1] <= SCORE)]
        if not near.size:
            raise LeukoError(
                f"{where}: does not agree with the detector: a box of score {score:.3f} has no counterpart of its type "
                f"within {BOX:g} pixels and {SCORE:g} of the score; it is not left there"
            )
        largest = np.maximum(largest, near[:, near[0].argmin()])
    return largest


def _of_typing(
    member: EnsembleMember,
    exported: ExportedDetector,
    fields: Sequence[np.ndarray],
    found: Sequence[Detections],
) -> float:
    """The largest difference of the probabilities that both typing stages give to the same crops; LeukoError where it
    is out of bounds."""
    crops = []
    for field, detections in zip(fields, found, strict=True):
        view = fit(field, member.sizes[0])
        crops.append(member.typing.crops(view, detections.boxes, detections))
    crops = np.concatenate(crops)
    apart = np.abs(member.typing.net(crops) - exported.typing.net(crops)).max(initial=0)
    if apart > SCORE:
        raise LeukoError(
            f"the probabilities of types are up to {apart:.1e} apart from the detector's, where {SCORE:g} is "
            "allowed; the export is not left there"
        )
    return float(apart)
