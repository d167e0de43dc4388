"""From what label files say to a checked ``Dataset``: errors stop, warnings that can be mended are mended and listed.

Errors: an image that is missing or unreadable or listed twice, a class that is not known, a box that is inverted, not
a number or wholly outside its image, sizes that tell of labels made on an image of another scale or turned by EXIF.
Mended: a box that sticks out is clipped, a box of at most one pixel's side is dropped, a repeated cell is dropped, a
wrong size in a label file gives way to the image's own.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import cells
from ..errors import LeukoError, nearest
from .dataset import Dataset, LabelWarning, Sample
from .formats.records import Cell, Labels, Problems, Record
from .images import image_size, is_turned

MIN_SIDE = 1.0  # pixels; no leukocyte is as small as this, but slips of the mouse are
ROUNDING = 0.05  # pixels; beyond the border by less than this is a file's rounding and no warning


def validate(
    source: Path,
    labels: Sequence[Labels],
    problems: Problems,
    *,
    names: Sequence[str] = (),
    types: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    found: Iterable[str] = (),
) -> Dataset:
    """Check what the files of one split say, and make it a data set.

    ``source`` is what the user named, for messages. ``names`` are the classes in order, where a data YAML or the whole
    source tells them; otherwise they are COCO's categories, or the classes found. ``types`` are the classes that the
    caller wants, matched by name. ``ignore`` lists classes to leave out and count. ``found`` are classes that other
    splits of the source hold. Raises LeukoError.
    """
    records = [record for part in labels for record in part.records]
    warnings = [warning for part in labels for warning in part.warnings]
    found = {*found, *(cell.name for record in records for cell in record.cells)}
    declared = _categories(labels)
    known = list(names) or list(declared) or cells.in_order(found)
    _check_ignored(source, ignore, {*known, *declared, *found})
    known = [name for name in known if name not in ignore]
    sizes = _sizes(records, problems)
    _check_images(records, problems)
    _number(records)
    index = {name: i for i, name in enumerate(known)}
    ignored: Counter[str] = Counter({name: 0 for name in ignore})
    samples = []
    for record, size in zip(records, sizes, strict=True):
        for cell in record.cells:
            if cell.name not in index and cell.name not in ignored:
                problems.add("class", _unknown_class(record, cell, known))
        if size is not None:
            samples.append(_sample(record, size, index, ignored, warnings, problems))
    problems.stop()
    if not samples:
        raise LeukoError(f"{source}: no images; an empty data set cannot be used")
    ids = _category_ids(known, declared)
    dataset = Dataset(known, samples, ids, warnings, dict(ignored))
    return dataset if types is None else match_types(dataset, types, source)


def match_types(dataset: Dataset, types: Sequence[str], source: Path) -> Dataset:
    """Re-index labels by class name to ``types``; a class of the data set that is not there raises LeukoError."""
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


def _categories(labels: Iterable[Labels]) -> dict[str, int]:
    """Merge the categories of several COCO files; the first file's ids stay, later ones are kept where free."""
    merged: dict[str, int] = {}
    for part in labels:
        for name, number in part.categories.items():
            if name not in merged:
                merged[name] = number if number not in merged.values() else max(merged.values()) + 1
    return merged


def _category_ids(names: Sequence[str], known: dict[str, int]) -> list[int]:
    """Give each class its known id, and the classes without one the ids after the highest, or 1, 2, ..."""
    free = max(known.values(), default=0)
    ids = []
    for name in names:
        if name not in known:
            free += 1
        ids.append(known.get(name, free))
    return ids


def _check_ignored(source: Path, ignore: Iterable[str], known: set[str]) -> None:
    for name in ignore:
        if name not in known:
            raise LeukoError(f'{source}: ignore: no class is called "{name}"{nearest(name, known)}; correct the name')


def _unknown_class(record: Record, cell: Cell, known: Sequence[str]) -> str:
    return (
        f'{record.place(cell)}: unknown class "{cell.name}", the data set\'s are {", ".join(known)}'
        f'{nearest(cell.name, known)}; correct the label or "names", or list it under "ignore" in the data YAML'
    )


def _sizes(records: Sequence[Record], problems: Problems) -> list[tuple[int, int] | None]:
    """Read all images' sizes from their headers; None where the image is missing or unreadable."""

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


def _check_images(records: Iterable[Record], problems: Problems) -> None:
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(os.path.abspath(record.image), record)
        if other is not record:
            at = f" (also {other.place()})" if other.place() != record.place() else ""
            problems.add("twice", f"{record.place()}: image {record.image} is listed twice{at}; remove one of them")


def _number(records: Sequence[Record]) -> None:
    """Keep the ids that the files give where they are unique (several COCO files may clash), else number from 1."""
    ids = {record.id for record in records}
    if len(ids) < len(records) or None in ids:
        for number, record in enumerate(records, 1):
            record.id = number


def _sample(
    record: Record,
    size: tuple[int, int],
    index: dict[str, int],
    ignored: Counter[str],
    warnings: list[LabelWarning],
    problems: Problems,
) -> Sample:
    """Hold one record against its image."""
    if record.size is not None and record.size != size:
        _mend_size(record, size, warnings, problems)
    boxes: list[np.ndarray] = []
    kept: list[Cell] = []
    seen: set[tuple] = set()
    for cell in record.cells:
        if cell.name in ignored:
            ignored[cell.name] += 1
            continue
        box = _box(record, cell, size, warnings, problems)
        if box is None or cell.name not in index:
            continue
        if (key := (cell.name, cell.crowd, box.tobytes())) in seen:
            warnings.append(_flaw(record, cell, f"repeats another {cell.name} box", "dropped"))
            continue
        seen.add(key)
        boxes.append(box)
        kept.append(cell)
    return Sample(
        record.image,
        *size,
        boxes=np.array(boxes, dtype=np.float32),
        labels=np.array([index[cell.name] for cell in kept], dtype=np.int64),
        id=record.id,
        crowd=np.array([cell.crowd for cell in kept], dtype=bool),
        cell_factors=[cell.factors for cell in kept],
        attributes=[dict(cell.attributes) for cell in kept],
        factors=record.factors,
        group=record.group,
    )


def _mend_size(record: Record, size: tuple[int, int], warnings: list[LabelWarning], problems: Problems) -> None:
    """Take the image's own size for a stated one, unless that would leave the boxes in another frame."""
    (width, height), (stated_width, stated_height) = size, record.size
    stated = f"the size is given as {stated_width}x{stated_height}, the image's is {width}x{height}"
    scale_x, scale_y = stated_width / width, stated_height / height
    if (stated_height, stated_width) == size and is_turned(record.image):
        remedy = "the labels were made on the image as EXIF turns it; store it turned, without the EXIF orientation"
        problems.add("turned", f"{record.place()}: {stated}: {remedy}")
    elif scale_x > 0 and abs(scale_x - 1) > 0.02 and abs(scale_x - scale_y) < 0.01 * scale_x:
        remedy = "the labels belong to the image at another scale; use that image, or scale the boxes"
        problems.add("scale", f"{record.place()}: {stated}: {remedy}")
    else:
        warnings.append(LabelWarning(record.file, record.where or "size", stated, "the image's own is taken"))


def _box(
    record: Record, cell: Cell, size: tuple[int, int], warnings: list[LabelWarning], problems: Problems
) -> np.ndarray | None:
    """Return the box as [4] float32 pixels inside the image, or None where it is dropped or an error."""
    width, height = size
    x0, y0, x1, y1 = cell.box
    if record.relative:
        x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        problems.add("number", f"{record.place(cell)}: box {_text(cell.box)} is not finite; draw it anew or remove it")
        return None
    shown = _text((x0, y0, x1, y1))
    if x0 > x1 or y0 > y1:
        problems.add("inverted", f"{record.place(cell)}: box {shown} is inverted; exchange its corners or remove it")
        return None
    if _is_small(x1 - x0, y1 - y0):
        warnings.append(_too_small(record, cell, shown))
        return None
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        hint = "; YOLO's numbers are fractions of the image, not pixels" if record.relative else ""
        problems.add(
            "outside",
            f"{record.place(cell)}: box {shown} lies outside the image ({width}x{height}); correct or remove it{hint}",
        )
        return None
    box = np.array((max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)), dtype=np.float32)
    if _is_small(*(box[2:] - box[:2])):
        warnings.append(_too_small(record, cell, shown))
        return None
    if max(-x0, -y0, x1 - width, y1 - height) > ROUNDING:
        warnings.append(_flaw(record, cell, f"{cell.name} box {shown} leaves the image ({width}x{height})", "clipped"))
    return box


def _is_small(width: float, height: float) -> bool:
    return width <= MIN_SIDE or height <= MIN_SIDE


def _too_small(record: Record, cell: Cell, shown: str) -> LabelWarning:
    return _flaw(record, cell, f"{cell.name} box {shown} is at most {MIN_SIDE:g} px wide or high", "dropped")


def _flaw(record: Record, cell: Cell, problem: str, action: str) -> LabelWarning:
    where = f"{record.where}: {cell.where}" if record.where else cell.where
    return LabelWarning(record.file, where, problem, action)


def _text(box: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"
