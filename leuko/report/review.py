"""``review.html``: pages on which a person corrects and signs what was found, with neither server nor network.

A page holds everything that it shows. What it says and does is in ``templates/review.html.j2``; it gives back a
``review.json``, which ``leuko.data.tools.review`` reads. A prediction that is too large for one page is divided by
slide: ``review.html`` then lists the pages in ``review/``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..cells import colour
from ..config import MAX_PIXELS
from ..data.dataset import Dataset
from ..data.fit import fit
from ..data.images import open_image
from ..data.slides import Slide
from ..data.tools.review import CONSENSUS, PREDICTION, page_digest
from ..detections import Detections
from ..errors import LeukoError
from ..io import io_errors_as, make_folder, write_text
from ..metrics import binomial, counting
from ..metrics.consensus import Suspect
from . import pictures
from .html import data_uri, render
from .records import next_types

MAX_CELLS, MAX_FIELDS = 5000, 400  # of a page
MOST_SUSPECTS = 5000
CROP = 112  # pixels of a cell's picture
FIELD_SIDES = (1280, 960, 720, 540, 400, 280)  # pixels; the largest is taken that fits
FIELDS_MB = 12  # of all fields of a page together, as text
FIELD_MB = 0.4  # of one


@dataclass(frozen=True)
class ReviewCell:
    """One cell as it is laid before a person: its box (xyxy in pixels of the stored image) and type.

    A type is a name, "" (*unclassified*) or None (no leukocyte, as for a place that has no label). ``doubt`` (0..1)
    gives the cells their order; ``text`` and ``why`` stand below its picture; ``suggestion`` is the type that one key
    accepts, "" for none.
    """

    box: Sequence[float]
    type: str | None
    score: float
    doubt: float
    text: str
    why: str = ""
    suggestion: str | None = ""


@dataclass(frozen=True)
class ReviewField:
    """One image of ``size`` (width, height) with its cells; ``group`` is the slide or patient, the image's folder if
    empty. ``others`` are cells that are shown but not laid before the person, as (box, type)."""

    path: Path
    size: tuple[int, int]
    cells: Sequence[ReviewCell]
    group: str = ""
    others: Sequence[tuple[Sequence[float], str]] = ()


def field_of(path: Path, size: tuple[int, int], cells: Detections) -> ReviewField:
    """A field with its cells of ``counting.classify``, which know their types."""
    of_cells = []
    about = zip(cells, cells.why, counting.doubt(cells).tolist(), next_types(cells), strict=True)
    for cell, why, doubt, second in about:
        if why:
            text = f"{cell.type} {cell.score:.2f}"
            of_cells.append(ReviewCell(cell.box, "", cell.score, doubt, text, str(why), suggestion=cell.type))
        else:
            text = " · ".join(filter(None, [f"{cell.score:.2f}", second]))
            of_cells.append(ReviewCell(cell.box, cell.type, cell.score, doubt, text))
    return ReviewField(path, size, of_cells)


def write_pages(
    folder: Path,
    types: Sequence[str],
    fields: Sequence[ReviewField],
    *,
    title: str,
    threshold: str = "",
    kind: str = PREDICTION,
    max_pixels: float = MAX_PIXELS,
) -> list[Path]:
    """Write ``review.html``, and the pages in ``review/`` where there are several; returns all of them.

    ``threshold`` says in words which cells were counted; ``kind`` is ``PREDICTION``, or ``CONSENSUS`` where the cells
    are labels that models doubt; ``max_pixels`` are the megapixels of the largest image to read. Images are read one
    after the other, so that memory holds the pictures of one page. Raises LeukoError where a page cannot be written.
    """
    pages = list(_divide(fields))
    digests = [page_digest(_content(types, threshold, of_page)) for _, of_page in pages]
    several = len(pages) > 1
    with io_errors_as("removed"):
        for old in (folder / "review").glob("*.html"):  # of an earlier prediction that was not finished
            old.unlink()
    files = [folder / (f"review/{i:03}.html" if several else "review.html") for i in range(1, len(pages) + 1)]
    names = [f"{title}: {slide}" if slide else title for slide, _ in pages]
    for i, (_, of_page) in enumerate(pages):
        about = {"leuko": __version__, "kind": kind, "title": names[i], "digests": digests, "page": i}
        file = f"review-{i + 1:03}.json" if several else "review.json"
        neighbours = [(files[n].name, names[n]) for n in (i - 1, i + 1) if 0 <= n < len(pages)]
        make_folder(files[i].parent)
        data = _content(types, threshold, of_page) | about | {"file": file}
        write_text(files[i], _page(data, neighbours, max_pixels))
    if several:
        numbers = ((len(of_page), [cell.type for each in of_page for cell in each.cells]) for _, of_page in pages)
        listed = [
            (f"review/{file.name}", name, fields, len(types), types.count(""))
            for file, name, (fields, types) in zip(files, names, numbers, strict=True)
        ]
        write_text(folder / "review.html", render("reviews.html.j2", title=title, digests=digests, pages=listed))
    return [*([folder / "review.html"] if several else []), *files]


def write_suspects(folder: Path, dataset: Dataset, suspects: Sequence[Suspect]) -> list[Path]:
    """Write the pages for labels that models doubt (see :func:`write_pages`), of the first ``MOST_SUSPECTS``."""
    of_image: dict[int, list[Suspect]] = {}
    for suspect in suspects[:MOST_SUSPECTS]:
        of_image.setdefault(suspect.image, []).append(suspect)
    fields = []
    for i, doubted in sorted(of_image.items()):
        sample = dataset.samples[i]
        cells = []
        for s in doubted:
            votes = ", ".join(f"{v.type} {v.score:.2f}" if v.type else "nothing" for v in s.votes)
            text = f"models: {s.says or 'nothing'}"
            cells.append(ReviewCell(s.box, s.label or None, s.sure, s.sure, text, votes, s.says or None))
        rest = set(range(len(sample.boxes))) - {s.cell for s in doubted}
        others = [(sample.boxes[cell], dataset.types[sample.labels[cell]]) for cell in sorted(rest)]
        fields.append(ReviewField(sample.image, (sample.width, sample.height), cells, sample.group, others))
    return write_pages(folder, dataset.types, fields, title="Labels that the models doubt", kind=CONSENSUS)


def _divide(fields: Sequence[ReviewField]) -> Iterator[tuple[str, Sequence[ReviewField]]]:
    """The pages as (slide, fields): all on one, or one per slide, or several for a slide that is larger."""
    if len(fields) <= MAX_FIELDS and sum(len(each.cells) for each in fields) <= MAX_CELLS:
        yield "", fields
        return
    slides: dict[str, tuple[str, list[ReviewField]]] = {}
    for each in fields:
        folder = each.path.resolve().parent
        of_slide = slides.setdefault(each.group or str(folder), (each.group or "/".join(folder.parts[-2:]), []))
        of_slide[1].append(each)
    for slide, of_slide in slides.values():
        parts: list[list[ReviewField]] = [[]]
        cells = 0
        for each in of_slide:
            cells += len(each.cells)
            if parts[-1] and (cells > MAX_CELLS or len(parts[-1]) == MAX_FIELDS):
                parts.append([])
                cells = len(each.cells)
            parts[-1].append(each)
        for number, part in enumerate(parts, 1):
            yield slide + (f", part {number} of {len(parts)}" if len(parts) > 1 else ""), part


# ---------------------------------------------------------------- one page


def _content(types: Sequence[str], threshold: str, fields: Sequence[ReviewField]) -> dict:
    """What ``review.json`` holds from the start: types, threshold, images, and cells in descending order of doubt."""
    images = [
        {"name": f.path.name, "path": str(f.path.resolve()), "width": f.size[0], "height": f.size[1], "group": f.group}
        | {"others": [[_rounded(box), kind] for box, kind in f.others]}
        for f in fields
    ]
    in_order = sorted(((i, cell) for i, f in enumerate(fields) for cell in f.cells), key=lambda item: -item[1].doubt)
    cells = [
        {"image": i, "box": _rounded(cell.box), "before": cell.type, "score": round(cell.score, 4)}
        | {"text": cell.text, "why": cell.why, "suggestion": cell.suggestion}
        for i, cell in in_order
    ]
    return {"types": list(types), "threshold": threshold, "images": images, "cells": cells}


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(v), 2) + 0.0 for v in box]  # no -0, which JavaScript writes as 0


def _page(data: dict, neighbours: Sequence[tuple[str, str]], max_pixels: float) -> str:
    crops: list[str] = [""] * len(data["cells"])
    of_image: dict[int, list[int]] = {}
    for number, cell in enumerate(data["cells"]):
        of_image.setdefault(cell["image"], []).append(number)
    whole = []
    limit = min(FIELDS_MB / max(len(data["images"]), 1), FIELD_MB) * 1e6
    for i, about in enumerate(data["images"]):
        about["sha256"] = ""
        try:
            file = open_image(about["path"], max_pixels)
            pixels = file.decode()
        except LeukoError:  # it has gone since: the page says so, and its review cannot be applied
            whole.append("")
            continue
        about["sha256"] = file.sha256
        whole.append(_field(pixels, limit))
        for number in of_image.get(i, ()):
            crops[number] = data_uri(pictures.crop(pixels, data["cells"][number]["box"], CROP), quality=80)
    groups = ["", *data["types"], None]
    galleries = [[n for n, cell in enumerate(data["cells"]) if cell["before"] == group] for group in groups]
    cells = [len(of_type) for of_type in galleries[1:-1]]
    names = ["unclassified", *data["types"], "no leukocyte"]
    return render(
        "review.html.j2",
        data=data,
        crops=crops,
        whole=whole,
        galleries=list(zip(names, galleries, strict=True)),
        shares=[binomial.percent_of(n, sum(cells)) for n in cells],
        classified=sum(cells),
        colours=[colour(name, i) for i, name in enumerate(data["types"])],
        neighbours=neighbours,
        is_consensus=data["kind"] == CONSENSUS,
        csp_hash=_csp_hash,
    )


def _field(pixels: np.ndarray | Slide, limit: float) -> str:
    """The field as the text of a link of at most ``limit`` characters, if that is possible at all."""
    longer = max(pixels.shape[:2])
    for side in (side for side in (min(longer, FIELD_SIDES[0]), *FIELD_SIDES[1:]) if side <= longer):
        uri = data_uri(fit(pixels, side), quality=75)
        if len(uri) <= limit:
            break
    return uri


def _csp_hash(text: str) -> str:
    """How a Content-Security-Policy names a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
