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
from pathlib import Path

import numpy as np

from .. import cells
from ..errors import LeukoError, nearest
from .dataset import Dataset, LabelWarning, Note, Sample
from .formats.records import Annotation, Labels, Problems, ReadOptions, Record
from .header import ImageHeader, image_header, turn_boxes

MIN_SIDE = 1.0  # pixels; no leukocyte is as small as this, but slips of the mouse are
ROUNDING = 0.05  # pixels; beyond the border by less than this is the rounding of a file, and no warning


def validate(
    source: Path,
    labels: Labels,
    problems: Problems,
    options: ReadOptions,
    types: Sequence[str] | None = None,
    other_names: Iterable[str] = (),
) -> Dataset:
    """Check the content of one split's files and make it a data set.

    ``source`` is what the user named, for messages. Its classes are the names listed, else COCO's categories, or those
    found here and, as ``other_names``, in the source's other splits. ``types`` are the classes that the caller wants,
    matched by name. Classes in ``options.ignore`` are left out and counted. Raises LeukoError.
    """
    records, category_ids, ignore = labels.records, labels.categories, options.ignore
    names = list(dict.fromkeys(labels.names.values()))
    every = {*names, *other_names, *labels.class_names()}
    for name in ignore:
        if name not in every:
            raise LeukoError(f'{source}: ignore: no class is called "{name}"{nearest(name, every)}; correct the name')
    known = [name for name in names or category_ids or cells.in_order(every) if name not in ignore]
    types = list(known if types is None else types)
    for name in known:
        if name not in types:
            raise LeukoError(
                f'{source}: class "{name}" is not among the types asked for ({", ".join(types)})'
                f'{nearest(name, types)}; rename it, or list it under "ignore" in a data YAML'
            )
    _check_repeats(records, problems)
    ids = {record.id for record in records}
    if len(ids) < len(records) or None in ids:  # ids of several COCO files may clash
        for number, record in enumerate(records, 1):
            record.id = number
    dataset = Dataset(types, [], [], problems.warnings, dict.fromkeys(ignore, 0))
    checker = _Checker(known, dataset, problems, options)
    for record in records:
        with problems.catch("image", f"{_place(record)}: image"):
            dataset.samples.append(checker.sample(record))
    problems.stop()
    if not dataset.samples:
        raise LeukoError(f"{source}: no images; an empty data set cannot be used")
    free = max(category_ids.values(), default=0)
    for name in types:
        if name not in category_ids:
            category_ids[name] = free = free + 1
    dataset.category_ids = [category_ids[name] for name in types]
    dataset.notes = problems.notes + checker.notes()
    return dataset


def _counted(paths: Sequence[Path], what: str = "image") -> str:
    """How many images or files, and the first of them."""
    return f"1 {what} ({paths[0]})" if len(paths) == 1 else f"{len(paths)} {what}s (such as {paths[0]})"


def _place(record: Record, annotation: Annotation | None = None) -> str:
    """The file and the object, for a message."""
    return ": ".join(filter(None, (str(record.file), record.where, annotation.where if annotation else "")))


def _check_repeats(records: Iterable[Record], problems: Problems) -> None:
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(os.path.abspath(record.image), record)
        if other is not record:
            also = f" (also {_place(other)})" if _place(other) != _place(record) else ""
            problems.add("twice", f"{_place(record)}: image {record.image} is listed twice{also}; remove one of them")


class _Checker:
    """Compares records with their images; collects errors in ``problems``, what is fixed or ignored in ``dataset``."""

    def __init__(self, known: Sequence[str], dataset: Dataset, problems: Problems, options: ReadOptions) -> None:
        self.known, self.dataset, self.problems, self.options = known, dataset, problems, options
        self.turned: list[Path] = []  # images that EXIF turns, and nothing says whether the labels are turned, too
        self.paged: list[Path] = []

    def notes(self) -> list[Note]:
        """A line for each thing that a person should know of the split as a whole."""
        notes = [
            Note(f"{number} cells of the class {name} are left out, as the data YAML says")
            for name, number in self.dataset.ignored.items()
            if number
        ]
        if crowds := self.dataset.crowds():
            remedy = '"crowds: cells" in a data YAML takes each as a cell'
            text = f"{crowds} crowds (iscrowd 1) are left out of training, counts and measures; {remedy}"
            notes.append(Note(text, [s.image for s in self.dataset.samples if s.crowd.any()]))
        if self.turned:
            remedy = '"exif: turned" in a data YAML says that labels belong to the turned view, "exif: stored" that not'
            text = f"{_counted(self.turned)} with an EXIF orientation, which is ignored; {remedy}"
            notes.append(Note(text, self.turned))
        if hidden := self.problems.hidden:
            notes.append(Note(f"{_counted(hidden, 'file')} left out, as hidden or a system's own", hidden))
        if self.paged:
            text = f"{_counted(self.paged)} with more than one page, of which the first is read"
            notes.append(Note(text, self.paged))
        return notes

    def sample(self, record: Record) -> Sample:
        """The sample of a record; LeukoError where its image cannot be read."""
        header = image_header(record.image)
        size = header.width, header.height
        self.paged += [record.image] if header.pages > 1 else []
        is_plain = header.orientation == 1 or (header.quarter_turn and record.size == size != size[::-1])
        if not is_plain and not self.options.exif:
            self.turned.append(record.image)
        kept: dict[tuple, tuple[Annotation, np.ndarray]] = {}
        for annotation, corners in zip(record.annotations, self._corners(record, header).tolist(), strict=True):
            name = annotation.name
            if name in self.dataset.ignored:
                self.dataset.ignored[name] += 1
            elif name not in self.known:
                problem = f'unknown class "{name}", the data set\'s are {", ".join(self.known)}'
                remedy = 'correct the label or "names", or list it under "ignore" in the data YAML'
                self._error("class", record, annotation, f"{problem}{nearest(name, self.known)}; {remedy}")
            elif (box := self._box(record, annotation, corners, size)) is not None:
                annotation = annotation._replace(crowd=annotation.crowd and self.options.crowds == "regions")
                key = (name, annotation.crowd, box.tobytes())
                if key in kept:
                    self._warn(record, annotation, f"repeats another {name} box", "dropped", box.tolist())
                kept.setdefault(key, (annotation, box))
        annotations = [annotation for annotation, _ in kept.values()]
        return Sample(
            record.image,
            *size,
            boxes=[box for _, box in kept.values()],
            labels=[self.dataset.types.index(a.name) for a in annotations],
            id=record.id,
            crowd=[a.crowd for a in annotations],
            cell_factors=[a.factors for a in annotations],
            attributes=[dict(a.attributes) for a in annotations],
            factors=record.factors,
            group=record.group,
        )

    def _corners(self, record: Record, header: ImageHeader) -> np.ndarray:
        """The boxes [N, 4] float64 in pixels as they are stored, also those of the image as EXIF turns it."""
        is_turned = self.options.exif == "turned" and header.orientation > 1
        width, height = size = header.shown_size if is_turned else header[:2]
        if record.size not in (None, size):
            self._check_size(record, header, is_turned)
        boxes = np.array([a.box for a in record.annotations], dtype=np.float64).reshape(-1, 4)
        if record.relative:
            with np.errstate(over="ignore"):  # what is not finite is an error of its own
                boxes *= (width, height) * 2
        return turn_boxes(boxes, header, back=True) if is_turned else boxes

    def _check_size(self, record: Record, header: ImageHeader, is_turned: bool) -> None:
        """Replace a wrong stated size by the image's own, unless the boxes then belong to another image."""
        (width, height), (stated_width, stated_height) = header[:2], record.size
        stated = f"the size is given as {stated_width}x{stated_height}, the image's is {width}x{height}"
        if is_turned:
            remedy = 'correct it, or leave out "exif: turned"'
            self._error("turned", record, None, f"{stated} before EXIF turns it; {remedy}")
            return
        scale_x, scale_y = stated_width / width, stated_height / height
        if header.quarter_turn and (stated_width, stated_height) == header.shown_size:
            remedy = 'write "exif: turned" in a data YAML'
            problem = "the labels were made on the image as EXIF turns it"
            self._error("turned", record, None, f"{stated}: {problem}; {remedy}")
        elif scale_x > 0 and abs(scale_x - 1) > 0.02 and abs(scale_x - scale_y) < 0.01 * scale_x:
            remedy = "the labels belong to the image at another scale; use that image, or scale the boxes"
            self._error("scale", record, None, f"{stated}: {remedy}")
        else:
            action = "the image's own is taken"
            self.dataset.warnings.append(
                LabelWarning(record.file, record.where or "size", stated, action, record.image)
            )

    def _box(
        self, record: Record, annotation: Annotation, corners: Sequence[float], size: tuple[int, int]
    ) -> np.ndarray | None:
        """The box as [4] float32 pixels inside the image, or None where it is dropped or an error."""
        (width, height), (x0, y0, x1, y1) = size, corners
        shown = f"box [{', '.join(f'{value:.6g}' for value in corners)}]"
        box = np.array((max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)), dtype=np.float32)
        is_point = min(x1 - x0, y1 - y0) <= MIN_SIDE
        if not all(map(math.isfinite, corners)):
            self._error("number", record, annotation, f"{shown} is not finite; draw it again or remove it")
        elif x0 > x1 or y0 > y1:
            self._error("inverted", record, annotation, f"{shown} is inverted; exchange its corners or remove it")
        elif not is_point and (x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0):
            hint = "; YOLO's numbers are fractions of the image, not pixels" if record.relative else ""
            problem = f"{shown} lies outside the image ({width}x{height}); correct or remove it{hint}"
            self._error("outside", record, annotation, problem)
        elif is_point or (box[2:] - box[:2]).min() <= MIN_SIDE:
            problem = f"{annotation.name} {shown} is at most {MIN_SIDE:g} px wide or high"
            self._warn(record, annotation, problem, "dropped", corners)
        else:
            if max(-x0, -y0, x1 - width, y1 - height) > ROUNDING:
                problem = f"{annotation.name} {shown} leaves the image ({width}x{height})"
                self._warn(record, annotation, problem, "clipped", corners)
            return box
        return None

    def _error(self, kind: str, record: Record, annotation: Annotation | None, problem: str) -> None:
        self.problems.add(kind, f"{_place(record, annotation)}: {problem}")

    def _warn(self, record: Record, annotation: Annotation, problem: str, action: str, box: Sequence[float]) -> None:
        where = f"{record.where}: {annotation.where}" if record.where else annotation.where
        about = (record.image, annotation.name, tuple(box))
        self.dataset.warnings.append(LabelWarning(record.file, where, problem, action, *about))
