"""What a detector finds on a laboratory's own fields, with and without labels: what ``leuko adapt`` learns from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from ..data.dataset import Dataset, Sample
from ..data.images import LoadedImage
from ..data.loader import sample_batches
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import calibration, coco, counting
from ..ops.pairs import box_iou
from ..runtime.typing_stage import TypingStage, resized
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
        cells, cut = member.typing.cut(image.pixels, *member.find([image]))
        crops.append(cut[cells.scores >= DOUBTFUL * threshold])
    return np.concatenate(crops), errors


@dataclass(frozen=True)
class LabelledField:
    """A field with labels: its cells' ``boxes`` [N, 4], their ``labels`` [N] in the typing stage's types, and ``crops``
    [N, S, S, 3]; the cells that the detector has ``found`` (one detection for each, whatever its type, in the size that
    the stage gives it so far), and their ``found_crops``; for each labelled cell, the index of the found one that it is
    (``of_cell`` [N]; -1: missed)."""

    sample: Sample
    boxes: np.ndarray
    labels: np.ndarray
    crops: np.ndarray
    found: Detections
    found_crops: np.ndarray
    of_cell: np.ndarray


def labelled_fields(member: EnsembleMember, dataset: Dataset, workers: int) -> list[LabelledField]:
    """Run the detector on a data set's fields. A labelled cell is cut out as it was found, or, where it was missed, as
    it is labelled."""
    fields = []
    alone = [[i] for i in range(len(dataset))]
    batches = sample_batches(dataset, member.sizes, alone, workers, with_pixels=True)
    pairs = zip(dataset.samples, batches, strict=True)
    for sample, (image,) in tqdm(pairs, "fields with labels", len(dataset), unit="image", leave=False):
        cells, found_crops = member.typing.cut(image.pixels, *member.find([image]))
        boxes = sample.boxes[~sample.crowd]
        found = replace(cells, boxes=resized(cells.boxes, member.typing.box_factors, image.size))
        of_cell = _matched(boxes, found.boxes)
        shown = np.where(of_cell[:, None] >= 0, cells.boxes[of_cell] if len(cells) else boxes, boxes)
        around = cells if len(cells) else Detections(boxes, np.ones(len(boxes)), np.zeros(len(boxes)))
        crops = member.typing.crops(image.pixels, shown, around)
        labels = sample.labels[~sample.crowd]
        fields.append(LabelledField(sample, boxes, labels, crops, found, found_crops, of_cell))
    return fields


def box_factors(fields: Sequence[LabelledField]) -> tuple[float, float]:
    """How much wider and higher boxes are labelled than found, the median over cells, drawn towards 1 where these are
    few."""
    logs = []
    for field in fields:
        is_found = field.of_cell >= 0
        own, found = field.boxes[is_found], field.found.boxes[field.of_cell[is_found]]
        logs.append(np.log((own[:, 2:] - own[:, :2]) / np.maximum(found[:, 2:] - found[:, :2], 1)))
    ratios = np.concatenate(logs)
    if len(ratios) < LEAST_BOXES:
        return 1.0, 1.0
    width, height = np.exp(np.median(ratios, axis=0) * len(ratios) / (len(ratios) + SHRINK))
    return tuple(float(np.clip(factor, LEAST_FACTOR, MOST_FACTOR)) for factor in (width, height))


def scores(
    fields: Sequence[LabelledField], stage: TypingStage, chances: np.ndarray, of_found: Sequence[np.ndarray]
) -> tuple[float | None, calibration.Scaling | None]:
    """The score from which counts are best on these fields, and the calibration of scores; None where there is too
    little to find them by. ``chances`` [cells, K + 1] are those of all labelled cells, by a network that has not
    learned them, and ``of_found`` those of what was found on each field."""
    predictions = []
    ends = np.cumsum([len(field.labels) for field in fields])[:-1]
    for field, own, found in zip(fields, np.split(chances, ends), of_found, strict=True):
        found, is_found = found.copy(), field.of_cell >= 0
        found[field.of_cell[is_found]] = own[is_found]
        predictions.append(stage.typed(field.found, found[:, :-1], (field.sample.width, field.sample.height)))
    dataset = Dataset(list(stage.types), [field.sample for field in fields])
    cells = [counting.one_type(each, len(stage.types)) for each in predictions]
    fit = calibration.fit(*calibration.outcomes(coco.match(dataset, predictions)))
    return counting.best_threshold(dataset, cells), fit


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
