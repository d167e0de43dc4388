"""The page of a prediction, for slides without labels: the differential with its limits, cells by type in order of
doubt, and the fields.

Too many fields for one page are divided by slide (folder): ``report.html`` then lists the pages in ``report/``. Images
are read one by one, reduced, and only those that are shown.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from ..cells import UNCLASSIFIED, colour
from ..config import MAX_PIXELS
from ..data.fit import fit
from ..detections import Detections
from ..errors import LeukoError
from ..io import io_errors_as, make_folder, write_text
from ..metrics.counting import Differential, doubt, second_types
from . import pictures
from .html import data_uri, environment
from .predictions import Chosen
from .style import css_colours

MAX_FIELDS, MAX_CELLS = 300, 600  # that a page shows; the cells are divided among the types
LEAST_CELLS = 12  # that are shown of each type, however many types there are
MAX_LISTED = 100  # files that were not read
THUMBNAIL, CROP = 220, 112  # pixels

Field = tuple[Path, tuple[int, int], Detections]
"""An image's file, its (width, height), and its cells of ``counting.classify``."""


@dataclass
class Slide:
    """The fields of one folder, or of all of them."""

    name: str
    fields: Sequence[Field]
    types: Sequence[str]
    page: str = ""  # link to the slide's own page, if it has one

    @cached_property
    def count(self) -> Differential:
        """The cells of each type, and those that are unclassified."""
        return Differential.of((cells for *_, cells in self.fields), self.types)


def prediction_page(
    folder: Path,
    fields: Sequence[Field],
    types: Sequence[str],
    threshold: str,
    notes: Sequence[str] = (),
    errors: Sequence[str] = (),
    max_pixels: float = MAX_PIXELS,
    has_review: bool = True,
) -> Path:
    """Write ``report.html`` into the folder of a prediction, and return its path.

    ``threshold`` is the score from which cells are classified, and where it comes from; ``notes`` are lines about what
    was not taken as it is, ``errors`` about files that were not read; ``max_pixels`` are the megapixels of the largest
    image to read; ``has_review`` tells whether there are pictures and a page for review, too. Raises LeukoError where a
    page cannot be written.
    """
    whole = Slide(folder.resolve().name, fields, types)
    by_folder: dict[str, list[int]] = {}
    for i, (path, *_) in enumerate(fields):
        by_folder.setdefault(str(path.parent), []).append(i)
    slides = [Slide(name, Chosen(fields, of_slide), types) for name, of_slide in sorted(by_folder.items())]
    pages, is_divided = folder / "report", len(slides) > 1 and len(whole.fields) > MAX_FIELDS
    if pages.exists():
        with io_errors_as("removed", pages):
            shutil.rmtree(pages)  # of an earlier prediction that was not finished
    about = {"rule": f"one type per cell, score from {threshold}", "MAX_LISTED": MAX_LISTED, "has_review": has_review}
    if is_divided:
        make_folder(pages)
        for number, slide in enumerate(slides, 1):
            slide.page = f"report/{number:03}.html"
            write_text(folder / slide.page, _page(slide, max_pixels, back="../report.html", **about))
    about |= {"slides": slides, "notes": notes, "errors": errors}
    write_text(folder / "report.html", _page(whole, 0 if is_divided else max_pixels, **about))
    return folder / "report.html"


def _page(slide: Slide, max_pixels: float, **about: object) -> str:
    """The page of one slide, or of all; with ``max_pixels`` 0, without pictures."""
    count, types = slide.count, [*slide.types, UNCLASSIFIED]
    rows = [{**row, "found": row["cells"]} for row in count.rows() if not row["why"]]
    rows.append({"type": "classified", "found": count.classified} | dict.fromkeys(("percent", "low95", "high95")))
    shades = css_colours(types)
    numbers = [*count.cells, sum(count.unclassified.values())]
    galleries, thumbnails = _pictures(slide, max_pixels) if max_pixels else ([], [])
    values = {"back": "", "slides": [], "notes": [], "errors": []} | about
    values |= {"title": slide.name, "fields": len(slide.fields), "count": count, "rows": rows, "shades": shades}
    values |= {"galleries": list(zip(types, shades, numbers, galleries, strict=False)), "thumbnails": thumbnails}
    return environment().get_template("prediction.html.j2").render(values)


def _pictures(slide: Slide, max_pixels: float) -> tuple[list[list[tuple]], list[tuple]]:
    """The crops of the most doubtful cells of each type, and last of those unclassified; and the fields, those with the
    most doubtful cells if not all are shown. Each is a picture, the name of its image, a title and a text."""
    number = len(slide.types) + 1
    most = max(MAX_CELLS // number, LEAST_CELLS)
    groups = [_Most(most) for _ in range(number)]
    doubtful = _Most(MAX_FIELDS)
    for i, (*_, cells) in enumerate(slide.fields):
        doubts = doubt(cells)
        doubtful.add(float(doubts.max(initial=-1)), i)
        for k, (label, why) in enumerate(zip(cells.labels.tolist(), cells.why, strict=True)):
            groups[-1 if why else label].add(float(doubts[k]), (i, k))
    fields = sorted(doubtful.items)
    wanted: dict[int, list[int]] = {i: [] for i in fields}
    for i, k in (each for group in groups for each in group.items):
        wanted.setdefault(i, []).append(k)
    crops, thumbnails = {}, {}
    for i, chosen in wanted.items():
        path, _, cells = field = slide.fields[i]
        crops_of_field, thumbnail = _pictures_of(field, slide.types, chosen, max_pixels)
        thumbnails[i] = thumbnail, path.name, path.name, _number(cells)
        for k, crop in zip(chosen, crops_of_field, strict=True):
            crops[i, k] = crop, path.name, *_said(cells, k, slide.types)
    return [[crops[each] for each in group.items] for group in groups], [thumbnails[i] for i in fields]


class _Most:
    """The ``number`` of those added whose value is largest, in descending order; of equals, those that came first."""

    def __init__(self, number: int):
        self._number, self._kept = number, []

    def add(self, value: float, item: object) -> None:
        """Add one."""
        self._kept.append((value, item))
        if len(self._kept) > 2 * self._number:
            self._cut()

    def _cut(self) -> None:
        self._kept = sorted(self._kept, key=lambda each: -each[0])[: self._number]

    @property
    def items(self) -> list:
        """Those."""
        self._cut()
        return [item for _, item in self._kept]


def _pictures_of(field: Field, types: Sequence[str], chosen: Sequence[int], max_pixels: float) -> tuple[list[str], str]:
    """The crops of the chosen cells of a field, and its thumbnail; "" where the image can no longer be read."""
    path, (width, height), cells = field
    as_thumbnail = [(0, 0, max(width, height) * CROP / THUMBNAIL / pictures.CONTEXT, 0)]  # whose crop is as fine
    try:
        image, _ = pictures.read_for_crops(path, [*cells.boxes[chosen].tolist(), *as_thumbnail], CROP, max_pixels)
    except LeukoError:
        return [""] * len(chosen), ""
    boxes = cells.boxes * (np.array(image.shape[1::-1] * 2) / (width, height, width, height))
    shades = [
        colour(UNCLASSIFIED if why else types[n], n) for n, why in zip(cells.labels.tolist(), cells.why, strict=True)
    ]
    crops = [_uri(pictures.crop(image, boxes[k], CROP, shades[k])) for k in chosen]
    small = fit(image, THUMBNAIL).copy()
    scale = max(small.shape[:2]) / max(image.shape[:2])
    for box, shade in zip((boxes * scale).round().astype(int).tolist(), shades, strict=True):
        cv2.rectangle(small, box[:2], box[2:], shade, 2)
    return crops, _uri(small)


def _uri(image: np.ndarray) -> str:
    return data_uri(np.ascontiguousarray(image[:, :, ::-1]), quality=80)


def _said(cells: Detections, k: int, types: Sequence[str]) -> tuple[str, str]:
    """What stands under a cell: its type and score, and the next type with its, or why it is unclassified."""
    (second,), (score,) = second_types(cells[[k]])
    then = f"then {types[second]} {score:.2f}" if second >= 0 else ""
    return f"{types[cells.labels[k]]} {cells.scores[k]:.2f}", ", ".join(filter(None, [cells.why[k], then]))


def _number(cells: Detections) -> str:
    n, left = len(cells), int((cells.why != "").sum())
    return f"{n} cell{'' if n == 1 else 's'}" + (f", {left} unclassified" if left else "")
