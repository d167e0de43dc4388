"""Whether an exported detector says the same as the one that it was made of: on fields that show cells, in batches of
different sizes, and at two image sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.dataset import Dataset
from ..data.fit import fit
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import coco
from ..runtime import ExportedDetector
from ..synth.dataset import random_picture
from .ensemble import EnsembleMember
from .evaluate import predict_by

LEAST = 0.05  # score of a box that is compared
BATCHES = (1, 4)
OTHER_SIZE = 1.25  # times the image size, at which parity is shown, too


@dataclass(frozen=True)
class Bounds:
    """How far boxes (in pixels of the scaled image) and scores may lie apart, the share of the boxes that must have a
    counterpart of their type that near, and how far mAP on labelled fields may be apart."""

    box: float = 0.05
    score: float = 1e-4
    share: float = 1.0
    mAP: float = 0.001


# Where weights are stored in 16 bits: two boxes that overlap just as much as NMS allows may then be one.
HALF = Bounds(box=1.0, score=0.02, share=0.95, mAP=0.002)


@dataclass(frozen=True)
class Parity:
    """What was compared, and the largest differences."""

    fields: int
    boxes: int
    missing: int
    box: float
    score: float

    def __str__(self) -> str:
        batches = " and ".join(map(str, BATCHES))
        missing = f", {self.missing} of them without a counterpart" if self.missing else ""
        return (
            f"parity on {self.fields} fields, in batches of {batches}, at two image sizes: {self.boxes} boxes of both "
            f"from {LEAST:g} on{missing}, sides within {self.box:.1e} pixels, scores within {self.score:.1e}"
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
    missing, largest = [], [0.0, 0.0]
    for mine, other, where in found:
        for pair in ((mine, other), (other, mine)):
            lonely, apart = _compare(*pair, bounds)
            missing += [f"{where}: {each}" for each in lonely]
            largest = np.maximum(largest, apart).tolist()
    if len(missing) > (1 - bounds.share) * boxes:
        raise LeukoError(
            f"{path.name}: does not agree with the detector: {len(missing)} of {boxes} boxes have no counterpart of "
            f"their type within {bounds.box:g} pixels and {bounds.score:g} of the score ({missing[0]}); it is not left"
        )
    if member.typing:
        largest[1] = max(largest[1], _of_typing(member, exported, fields, theirs, bounds))
    return Parity(len(fields), boxes, len(missing), *largest)


def check_mAP(member: EnsembleMember, path: Path, dataset: Dataset, bounds: Bounds) -> tuple[float, float]:
    """mAP on a data set, of the member and of its export; LeukoError where they differ."""
    exported = replace(EnsembleMember.load(path), new_name=member.new_name)
    found = [predict_by(each, dataset, workers=0).predictions for each in (member, exported)]
    mine, theirs = (coco.evaluate(dataset, each, member.max_detections).mAP for each in found)
    if not abs(mine - theirs) <= bounds.mAP:
        raise LeukoError(
            f"{path.name}: its mAP is {theirs:.4f}, that of the detector {mine:.4f}, where {bounds.mAP:g} is allowed "
            "between them; it is not left"
        )
    return mine, theirs


def _compare(mine: Detections, theirs: Detections, bounds: Bounds) -> tuple[list[str], tuple[float, float]]:
    """What has no counterpart within the bounds, and the largest difference of sides and of scores of what has one."""
    lonely, largest = [], (0.0, 0.0)
    for box, score, label in zip(mine.boxes, mine.scores, mine.labels, strict=True):
        if score < LEAST + bounds.score:  # its counterpart may lie below
            continue
        same = theirs.labels == label
        apart = np.stack([np.abs(theirs.boxes[same] - box).max(1), np.abs(theirs.scores[same] - score)])  # [2, M]
        near = apart[:, (apart[0] <= bounds.box) & (apart[1] <= bounds.score)]
        if near.size:
            largest = tuple(np.maximum(largest, near[:, near[0].argmin()]).tolist())
        else:
            lonely.append(f"one of score {score:.3f}")
    return lonely, largest


def _of_typing(
    member: EnsembleMember,
    exported: ExportedDetector,
    fields: Sequence[np.ndarray],
    found: Sequence[Detections],
    bounds: Bounds,
) -> float:
    """The largest difference of the probabilities that both typing stages give to the same crops; LeukoError where it
    is out of bounds."""
    crops = []
    for field, detections in zip(fields, found, strict=True):
        view = fit(field, member.sizes[0])
        crops.append(member.typing.crops(view, detections.boxes, detections))
    crops = np.concatenate(crops)
    apart = np.abs(member.typing.net(crops) - exported.typing.net(crops)).max(initial=0)
    if apart > bounds.score:
        raise LeukoError(
            f"the probabilities of types are up to {apart:.1e} apart from the detector's, where {bounds.score:g} is "
            "allowed; the export is not left there"
        )
    return float(apart)
