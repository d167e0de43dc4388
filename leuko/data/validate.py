"""From the content of label files to a checked ``Dataset``: errors stop; what can be fixed is fixed and listed.

Errors: an image that is missing, unreadable or listed twice, an unknown class, a box that is inverted, not finite or
wholly outside its image, a size which shows that the labels were made on an image of another scale or turned by EXIF.
Fixed: a box that sticks out is clipped, a box of at most one pixel's side is dropped, a repeated cell is dropped, a
wrong size in a label file is replaced by the image's own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import cells
from ..errors import LeukoError, nearest
from .dataset import Dataset, LabelWarning, Sample
from .formats.records import Annotation, Labels, Problems, Record
from .images import image_size, is_turned

MIN_SIDE = 1.0  # pixels; no leukocyte is as small as this, but slips of the mouse are
ROUNDING = 0.05  # pixels; beyond the border by less than this is the rounding of a file, and no warning


def validate(
    source: Path,
    labels: Sequence[Labels],
    problems: Problems,
    *,
    names: Sequence[str] = (),
    types: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    other_names: Iterable[str] = (),
) -> Dataset:
    """Check the content of one split's files and make it a data set.

    ``source`` is what the user named, for messages. ``names`` are the classes in order, where they are listed;
    otherwise they are COCO's categories, or the classes found here and, as ``other_names``, in the source's other
    splits. ``types`` are the classes that the caller wants, matched by name. Classes in ``ignore`` are left out and
    counted. Raises LeukoError.
    """
    records = [record for part in labels for record in part.records]
    declared = _merged_categories(labels)
    every = {*names, *declared, *other_names, *(a.name for record in records for a in record.annotations)}
    for name in ignore:
        if name not in every:
            raise LeukoError(f'{source}: ignore: no class is called "{name}"{nearest(name, every)}; correct the name')
    known = [name for name in names or declared or cells.in_order(every) if name not in ignore]
    sizes = _image_sizes(records, problems)
    _check_repeats(records, problems)
    ids = {record.id for record in records}
    if len(ids) < len(records) or None in ids:  # ids of several COCO files may clash
        for number, record in enumerate(records, 1):
            record.id = number
    check = _Check(known, ignore, problems, [warning for part in labels for warning in part.warnings])
    samples = [check.sample(record, size) for record, size in zip(records, sizes, strict=True)]
    samples = [sample for sample in samples if sample]
    problems.stop()
    if not samples:
        raise LeukoError(f"{source}: no images; an empty data set cannot be used")
    dataset = Dataset(known, samples, _category_ids(known, declared), check.warnings, check.ignored)
    return dataset if types is None else match_types(dataset, types, source)


def match_types(dataset: Dataset, types: Sequence[str], source: Path) -> Dataset:
    """Re-index labels by class name to ``types``; a class of the data set that is not among them raises LeukoError."""
    for name in dataset.types:
        if name not in types:
            raise LeukoError(
                f'{source}: class "{name}" is not among the types asked for ({", ".join(types)})'
                f'{nearest(name, types)}; rename it, or list it under "ignore" in a data YAML'
            )
    new_index = np.array([types.index(name) for name in dataset.types], dtype=np.int64)
    for sample in dataset.samples:
        sample.labels = new_index[sample.labels]
    ids = _category_ids(types, dict(zip(dataset.types, dataset.category_ids, strict=True)))
    return Dataset(list(types), dataset.samples, ids, dataset.warnings, dataset.ignored)


def _merged_categories(labels: Iterable[Labels]) -> dict[str, int]:
    """The categories of several COCO files; the first file's ids are kept, later ones where they are free."""
    merged: dict[str, int] = {}
    for part in labels:
        for name, number in part.categories.items():
            if name not in merged:
                merged[name] = number if number not in merged.values() else max(merged.values()) + 1
    return merged


def _category_ids(names: Sequence[str], known: dict[str, int]) -> list[int]:
    """Each class's known id; classes without one get the ids after the highest."""
    first = max(known.values(), default=0) + 1
    new = {name: first + i for i, name in enumerate(name for name in names if name not in known)}
    return [(known | new)[name] for name in names]


def _image_sizes(records: Sequence[Record], problems: Problems) -> list[tuple[int, int] | None]:
    """The (width, height) of all images from their headers; None where the image is missing or unreadable."""

    def size(record: Record) -> tuple[int, int] | LeukoError:
        try:
            return image_size(record.image)
        except LeukoError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(size, records))
    for record, result in zip(records, sizes, strict=True):
        if isinstance(result, LeukoError):
            problems.add("image", f"{record.place()}: image {result}")
    return [None if isinstance(result, LeukoError) else result for result in sizes]


def _check_repeats(records: Iterable[Record], problems: Problems) -> None:
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(os.path.abspath(record.image), record)
        if other is not record:
            also = f" (also {other.place()})" if other.place() != record.place() else ""
            problems.add("twice", f"{record.place()}: image {record.image} is listed twice{also}; remove one of them")


class _Check:
    """Compares records with their images; collects errors in ``problems``, fixes in ``warnings``."""

    def __init__(
        self, types: Sequence[str], ignore: Sequence[str], problems: Problems, warnings: list[LabelWarning]
    ) -> None:
        self.types = types
        self.index = {name: i for i, name in enumerate(types)}
        self.ignored = dict.fromkeys(ignore, 0)
        self.problems = problems
        self.warnings = warnings

    def sample(self, record: Record, size: tuple[int, int] | None) -> Sample | None:
        """The sample of a record whose image has this size; None where the image cannot be read."""
        for annotation in record.annotations:
            if annotation.name not in self.index and annotation.name not in self.ignored:
                self.problems.add("class", self._unknown_class(record, annotation))
        if size is None:
            return None
        if record.size not in (None, size):
            self._check_size(record, size)
        kept: dict[tuple, tuple[Annotation, np.ndarray]] = {}
        for annotation in record.annotations:
            name = annotation.name
            if name in self.ignored:
                self.ignored[name] += 1
                continue
            box = self._box(record, annotation, size)
            if box is None or name not in self.index:
                continue
            key = (name, annotation.crowd, box.tobytes())
            if key in kept:
                self._warn(record, annotation, f"repeats another {name} box", "dropped")
            kept.setdefault(key, (annotation, box))
        annotations = [annotation for annotation, _ in kept.values()]
        return Sample(
            record.image,
            *size,
            boxes=np.array([box for _, box in kept.values()], dtype=np.float32),
            labels=np.array([self.index[a.name] for a in annotations], dtype=np.int64),
            id=record.id,
            crowd=np.array([a.crowd for a in annotations], dtype=bool),
            cell_factors=[a.factors for a in annotations],
            attributes=[dict(a.attributes) for a in annotations],
            factors=record.factors,
            group=record.group,
        )

    def _check_size(self, record: Record, size: tuple[int, int]) -> None:
        """Replace a wrong stated size by the image's own, unless the boxes then belong to another image."""
        (width, height), (stated_width, stated_height) = size, record.size
        stated = f"the size is given as {stated_width}x{stated_height}, the image's is {width}x{height}"
        scale_x, scale_y = stated_width / width, stated_height / height
        if (stated_height, stated_width) == size and is_turned(record.image):
            remedy = "the labels were made on the image as EXIF turns it; store it turned, without the EXIF orientation"
            self.problems.add("turned", f"{record.place()}: {stated}: {remedy}")
        elif scale_x > 0 and abs(scale_x - 1) > 0.02 and abs(scale_x - scale_y) < 0.01 * scale_x:
            remedy = "the labels belong to the image at another scale; use that image, or scale the boxes"
            self.problems.add("scale", f"{record.place()}: {stated}: {remedy}")
        else:
            action = "the image's own is taken"
            self.warnings.append(LabelWarning(record.file, record.where or "size", stated, action))

    def _box(self, record: Record, annotation: Annotation, size: tuple[int, int]) -> np.ndarray | None:
        """The box as [4] float32 pixels inside the image, or None where it is dropped or an error."""
        width, height = size
        x0, y0, x1, y1 = annotation.box
        if record.relative:
            x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
        shown, place = _text((x0, y0, x1, y1)), record.place(annotation)
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            problem = f"box {_text(annotation.box)} is not finite; draw it again or remove it"
            self.problems.add("number", f"{place}: {problem}")
            return None
        if x0 > x1 or y0 > y1:
            self.problems.add("inverted", f"{place}: box {shown} is inverted; exchange its corners or remove it")
            return None
        box = np.array((max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)), dtype=np.float32)
        is_point = min(x1 - x0, y1 - y0) <= MIN_SIDE
        if not is_point and (x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0):
            hint = "; YOLO's numbers are fractions of the image, not pixels" if record.relative else ""
            problem = f"box {shown} lies outside the image ({width}x{height}); correct or remove it{hint}"
            self.problems.add("outside", f"{place}: {problem}")
            return None
        if is_point or (box[2:] - box[:2]).min() <= MIN_SIDE:
            problem = f"{annotation.name} box {shown} is at most {MIN_SIDE:g} px wide or high"
            self._warn(record, annotation, problem, "dropped")
            return None
        if max(-x0, -y0, x1 - width, y1 - height) > ROUNDING:
            problem = f"{annotation.name} box {shown} leaves the image ({width}x{height})"
            self._warn(record, annotation, problem, "clipped")
        return box

    def _warn(self, record: Record, annotation: Annotation, problem: str, action: str) -> None:
        where = f"{record.where}: {annotation.where}" if record.where else annotation.where
        self.warnings.append(LabelWarning(record.file, where, problem, action))

    def _unknown_class(self, record: Record, annotation: Annotation) -> str:
        return (
            f'{record.place(annotation)}: unknown class "{annotation.name}", the data set\'s are '
            f"{', '.join(self.types)}{nearest(annotation.name, self.types)}; "
            'correct the label or "names", or list it under "ignore" in the data YAML'
        )


def _text(box: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"
