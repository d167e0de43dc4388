"""The page of a prediction, for slides without labels: the differential with its limits, cells by type in order of
doubt, and the fields.

Too many fields for one page are divided by slide (folder): ``report.html`` then lists the pages in ``report/``. Images
are read one by one, reduced, and only those that are shown.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from ..cells import colour
from ..config import MAX_PIXELS
from ..data.images import fit
from ..detections import Detections
from ..errors import LeukoError
from ..io import io_errors_as, make_folder, write_text
from ..metrics.counting import doubt, second_types
from ..metrics.differential import Share, count
from . import pictures
from .html import data_uri, environment
from .style import css_colours

MAX_FIELDS, MAX_CELLS = 300, 600  # that a page shows; the cells are divided among the types
LEAST_CELLS = 12  # that are shown of each type, however many types there are
MAX_LISTED = 100  # files that were not read
THUMBNAIL, CROP = 220, 112  # pixels
GREY = (96, 96, 96)  # of unclassified cells

Field = tuple[Path, tuple[int, int], Detections]
"""An image's file, its (width, height), and its cells of ``counting.one_type``, perhaps with ``why``."""


@dataclass
class Slide:
    """The fields of one folder, or of all of them."""

    name: str
    fields: list[Field]
    types: Sequence[str]
    page: str = ""  # link to the slide's own page, if it has one

    @cached_property
    def shares(self) -> list[Share]:
        """The differential of the classified cells."""
        return count((cells for *_, cells in self.fields), self.types, threshold=0)

    @cached_property
    def unclassified(self) -> Counter[str]:
        """Numbers of cells by the reason for which they are left unclassified."""
        return Counter(why for *_, cells in self.fields for why in _why(cells) if why)


def prediction_page(
    folder: Path,
    fields: Iterable[Field],
    types: Sequence[str],
    threshold: float,
    threshold_from: str,
    notes: Sequence[str] = (),
    errors: Sequence[str] = (),
    max_pixels: float = MAX_PIXELS,
) -> Path:
    """Write ``report.html`` into the folder of a prediction, and return its path.

    ``notes`` are lines about what was not taken as it is, ``errors`` about files that were not read; ``max_pixels`` are
    the megapixels of the largest image to read. Raises LeukoError where a page cannot be written.
    """
    whole = Slide(folder.resolve().name, list(fields), types)
    by_folder: dict[str, list[Field]] = {}
    for each in whole.fields:
        by_folder.setdefault(str(each[0].parent), []).append(each)
    slides = [Slide(name, of_slide, types) for name, of_slide in sorted(by_folder.items())]
    pages, is_divided = folder / "report", len(slides) > 1 and len(whole.fields) > MAX_FIELDS
    if pages.exists():
        with io_errors_as("removed", pages):
            shutil.rmtree(pages)  # of an earlier prediction that was not finished
    about = {"rule": f"one type per cell, score >= {threshold:.3g} ({threshold_from})", "MAX_LISTED": MAX_LISTED}
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
    shares, types = slide.shares, [*slide.types, "unclassified"]
    rows = [{"type": s.type, "found": s.cells, "percent": s.percent, "low95": s.low, "high95": s.high} for s in shares]
    total = sum(s.cells for s in shares)
    shades = [*css_colours(slide.types), f"rgb{GREY}"]
    in_all = {"type": "classified", "found": total} | dict.fromkeys(("percent", "low95", "high95"))
    unclassified = slide.unclassified
    numbers = [*(s.cells for s in shares), unclassified.total()]
    galleries, thumbnails = _pictures(slide, max_pixels) if max_pixels else ([[] for _ in types], [])
    about = {"back": "", "slides": [], "notes": [], "errors": []} | about
    return (
        environment()
        .get_template("prediction.html.j2")
        .render(
            title=slide.name,
            fields=len(slide.fields),
            rows=[*rows, in_all],
            shades=shades,
            classified=total,
            unclassified=dict(unclassified.most_common()),
            galleries=list(zip(types, shades, numbers, galleries, strict=True)) if max_pixels else [],
            thumbnails=thumbnails,
            **about,
        )
    )


def _pictures(slide: Slide, max_pixels: float) -> tuple[list[list[tuple]], list[tuple]]:
    """The crops of the most doubtful cells of each type, and last of those unclassified; and the fields, those with the
    most doubtful cells if not all are shown. Each is a picture, the name of its image, a title and a text."""
    doubts = [doubt(cells) for *_, cells in slide.fields]
    groups: list[list[tuple[float, int, int]]] = [[] for _ in (*slide.types, "")]
    for i, (*_, cells) in enumerate(slide.fields):
        for k, (label, why) in enumerate(zip(cells.labels.tolist(), _why(cells), strict=True)):
            groups[-1 if why else label].append((float(doubts[i][k]), i, k))
    most = max(MAX_CELLS // len(groups), LEAST_CELLS)
    groups = [sorted(group, key=lambda c: -c[0])[:most] for group in groups]
    fields = sorted(range(len(slide.fields)), key=lambda i: -doubts[i].max(initial=-1))[:MAX_FIELDS]
    wanted: dict[int, list[int]] = {i: [] for i in sorted(fields)}
    for _, i, k in (each for group in groups for each in group):
        wanted.setdefault(i, []).append(k)
    crops: dict[tuple[int, int], str] = {}
    thumbnails = {}
    for i, chosen in wanted.items():
        crops_of_field, thumbnails[i] = _pictures_of(slide.fields[i], slide.types, chosen, max_pixels)
        crops |= {(i, k): crop for k, crop in zip(chosen, crops_of_field, strict=True)}
    paths, cells = [path.name for path, *_ in slide.fields], [cells for *_, cells in slide.fields]
    galleries = [[(crops[i, k], paths[i], *_said(cells[i], k, slide.types)) for _, i, k in group] for group in groups]
    return galleries, [(thumbnails[i], paths[i], paths[i], _number(cells[i])) for i in sorted(fields)]


def _pictures_of(field: Field, types: Sequence[str], chosen: Sequence[int], max_pixels: float) -> tuple[list[str], str]:
    """The crops of the chosen cells of a field, and its thumbnail; "" where the image can no longer be read."""
    path, (width, height), cells = field
    whole = [
        (0, 0, max(width, height) * CROP / THUMBNAIL / pictures.CONTEXT, 0)
    ]  # whose crop is as fine as the thumbnail
    try:
        image, _ = pictures.read_for_crops(path, [*cells.boxes[chosen].tolist(), *whole], CROP, max_pixels)
    except LeukoError:
        return [""] * len(chosen), ""
    boxes = cells.boxes * (np.array(image.shape[1::-1] * 2) / (width, height, width, height))
    shades = [GREY if w else colour(types[n], n) for n, w in zip(cells.labels.tolist(), _why(cells), strict=True)]
    crops = [_uri(pictures.crop(image, boxes[k], CROP, shades[k])) for k in chosen]
    small = fit(image, THUMBNAIL).copy()
    scale = max(small.shape[:2]) / max(image.shape[:2])
    for box, shade in zip((boxes * scale).round().astype(int).tolist(), shades, strict=True):
        cv2.rectangle(small, box[:2], box[2:], shade, 2)
    return crops, _uri(small)


def _uri(image: np.ndarray) -> str:
    return data_uri(np.ascontiguousarray(image[:, :, ::-1]), quality=80)


def _why(cells: Detections) -> list[str]:
    """Why each cell is left unclassified, "" where it is not."""
    return [""] * len(cells) if cells.why is None else [str(reason) for reason in cells.why]


def _said(cells: Detections, k: int, types: Sequence[str]) -> tuple[str, str]:
    """What stands under a cell: its type and score, and the next type with its, or why it is unclassified."""
    (second,), (score,) = second_types(cells[[k]])
    then = f"then {types[second]} {score:.2f}" if second >= 0 else ""
    return f"{types[cells.labels[k]]} {cells.scores[k]:.2f}", ", ".join(filter(None, [_why(cells)[k], then]))


def _number(cells: Detections) -> str:
    n, left = len(cells), sum(map(bool, _why(cells)))
    return f"{n} cell{'' if n == 1 else 's'}" + (f", {left} unclassified" if left else "")
