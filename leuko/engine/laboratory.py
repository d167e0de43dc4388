"""What a detector finds on a laboratory's own fields, with and without labels: what ``leuko adapt`` learns from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.images import LoadedImage
from ..data.loader import sample_batches
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import calibration, counting, matching
from ..ops.box_iou import box_iou
from ..runtime.typing_stage import resized, typed
from .adaptation import LabelledCells
from .detect import detect
from .ensemble import EnsembleMember
from .metadata import LEAST_FACTOR, MOST_FACTOR

SAME_CELL = 0.5  # IoU of a labelled and a found box
DOUBTFUL = 0.5  # of the score from which cells count: from there on, cells without labels are learned from
SHRINK = 5  # labelled cells: factors of boxes are those of as many cells without a change, too
LEAST_BOXES = 5  # labelled cells that are found, below which boxes stay as they are


def unlabelled_crops(
    member: EnsembleMember,
    images: Iterable[LoadedImage | LeukoError],
    number: int,
    threshold: float,
) -> tuple[np.ndarray, list[str]]:
    """Crops [N, S, S, 3] uint8 of the cells on images without labels, and the errors of images that are not read."""
    side = member.typing.side
    crops, errors = [np.zeros((0, side, side, 3), dtype=np.uint8)], []
    for image in tqdm(images, "fields without labels", number, unit="image", disable=not number, leave=False):
        if isinstance(image, LeukoError):
            errors.append(str(image))
            continue
        (cells,), (cut,) = member.typing.cut([image], detect(member.model, [image]))
        crops.append(cut[cells.scores >= DOUBTFUL * threshold])
    return np.concatenate(crops), errors


@dataclass(frozen=True)
class LabelledFields:
    """Fields with labels, in the typing stage's types. Of each: the cells that the detector has found (one detection
    per cell, whatever its type, in the size that the stage gives it so far) and their crops; for each labelled cell,
    its crop and the index of the found cell that it is (-1: missed)."""

    dataset: Dataset
    found: list[Detections]
    found_crops: list[np.ndarray]
    crops: list[np.ndarray]
    of_cell: list[np.ndarray]

    @classmethod
    def of(cls, member: EnsembleMember, dataset: Dataset, workers: int) -> LabelledFields:
        """Run the detector on a data set's fields. A labelled cell is cut out as it was found, or, where it was missed,
        as it is labelled."""
        parts: list[tuple] = []
        alone = [[i] for i in range(len(dataset))]
        batches = sample_batches(dataset, member.sizes, alone, workers, with_pixels=True)
        pairs = zip(dataset.samples, batches, strict=True)
        for sample, images in tqdm(pairs, "fields with labels", len(dataset), unit="image", leave=False):
            (cells,), (cut,) = member.typing.cut(images, detect(member.model, images))
            own = sample.boxes[~sample.crowd]
            drawn = replace(cells, boxes=resized(cells.boxes, member.typing.box_factors, images[0].size))
            of_cell = _matched(own, drawn.boxes)
            boxes = np.where(of_cell[:, None] >= 0, cells.boxes[of_cell] if len(cells) else own, own)
            around = cells if len(cells) else Detections(own, np.ones(len(own)), np.zeros(len(own)))
            parts.append((drawn, cut, member.typing.crops(images[0].pixels, boxes, around), of_cell))
        return cls(dataset, *(list(part) for part in zip(*parts, strict=True)))

    def cells(self) -> LabelledCells:
        """The labelled cells, to learn from."""
        labels = [sample.labels[~sample.crowd] for sample in self.dataset.samples]
        fields = np.repeat(np.arange(len(labels)), [len(each) for each in labels])
        return LabelledCells(np.concatenate(self.crops), np.concatenate(labels), fields)

    def box_factors(self) -> tuple[float, float]:
        """How much wider and higher boxes are labelled than found, the median over cells, drawn towards 1 where these
        are few."""
        logs = []
        for sample, found, of_cell in zip(self.dataset.samples, self.found, self.of_cell, strict=True):
            own, pairs = sample.boxes[~sample.crowd], of_cell >= 0
            sides = [boxes[:, 2:] - boxes[:, :2] for boxes in (own[pairs], found.boxes[of_cell[pairs]])]
            logs.append(np.log(sides[0] / np.maximum(sides[1], 1)))
        ratios = np.concatenate(logs)
        if len(ratios) < LEAST_BOXES:
            return 1.0, 1.0
        width, height = np.exp(np.median(ratios, axis=0) * len(ratios) / (len(ratios) + SHRINK))
        return tuple(float(np.clip(factor, LEAST_FACTOR, MOST_FACTOR)) for factor in (width, height))

    def scores(
        self, member: EnsembleMember, chances: np.ndarray, other: list[np.ndarray], factors: tuple[float, float]
    ) -> tuple[float | None, calibration.Scaling | None]:
        """The score from which counts are best on these fields, and the calibration of scores; None where there is too
        little to find them by. ``chances`` [cells, K + 1] are those of the labelled cells, by a stage that has not
        learned them, and ``other`` those of what was found on each field."""
        types = member.typing.types
        ends = np.cumsum([len(of_cell) for of_cell in self.of_cell])[:-1]
        predictions = []
        parts = zip(self.dataset.samples, self.found, np.split(chances, ends), self.of_cell, other, strict=True)
        for sample, found, own, of_cell, each in parts:
            each = each.copy()
            each[of_cell[of_cell >= 0]] = own[of_cell >= 0]
            predictions.append(typed(found, each[:, :-1], types, factors, (sample.width, sample.height)))
        cells = [counting.one_type(p, len(types)) for p in predictions]
        fit = calibration.fit(*calibration.outcomes(matching.match(self.dataset, predictions)))
        return counting.best_threshold(self.dataset, cells), fit


def in_types(dataset: Dataset, types: Sequence[str], path: object) -> Dataset:
    """A data set with labels in the order of ``types``; LeukoError where it has another type."""
    for name in dataset.types:
        if name not in types:
            raise LeukoError(
                f'{path}: has the type "{name}", which the typing stage does not know ({", ".join(types)}); map it in '
                "a data YAML, or train a stage on it by leuko type"
            )
    label = np.array([list(types).index(name) for name in dataset.types], dtype=np.int64)
    samples = [replace(sample, labels=label[sample.labels]) for sample in dataset.samples]
    return replace(dataset, types=list(types), samples=samples, category_ids=[])


def _matched(own: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For each labelled box [N, 4] the index of the found box that it overlaps most, one to one; -1 without one."""
    overlap = box_iou(own, found)
    of_cell = np.full(len(own), -1)
    for _ in range(min(overlap.shape)):
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[i, j] < SAME_CELL:
            break
        of_cell[i] = j
        overlap[i], overlap[:, j] = 0, 0
    return of_cell
