"""``review.html``: pages on which a person corrects and signs what was found, with neither server nor network.

A page holds everything that it shows. What it says and does is in ``templates/review.html.j2``; it gives back a
``review.json``, which ``leuko.data.tools.review`` reads. A prediction that is too large for one page is divided by
slide: ``review.html`` then lists the pages in ``review/``.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .. import __version__
from ..cells import colour
from ..config import MAX_PIXELS
from ..data.dataset import Dataset
from ..data.fit import fit
from ..data.images import open_image
from ..data.tools.review import CONSENSUS, PREDICTION, page_digest
from ..detections import Detections
from ..errors import LeukoError
from ..io import io_errors_as, make_folder, write_text
from ..metrics import binomial
from ..metrics.consensus import Suspect
from .html import data_uri, environment
from .predictions import Chosen

MAX_CELLS, MAX_FIELDS = 5000, 400  # of a page
MOST_SUSPECTS = 5000
CROP = 112  # pixels of a cell's picture
CONTEXT = 1.6  # its side, in those of the cell
GREY = (205, 205, 205)  # beyond the border of an image
FIELD_SIDES = (1280, 960, 720, 540, 400, 280)  # pixels; the largest is taken that fits
FIELDS_MB = 12  # of all fields of a page together, as text
FIELD_MB = 0.4  # of one


@dataclass(frozen=True)
class ReviewCell:
    """One cell as it is laid before a person: its box (xyxy in pixels of the stored image) and type.

    A type is a name, "" (*unclassified*) or None (no leukocyte, as for a place that has no label). ``scores`` is the
    cell's distribution over the types, where it is known; ``why`` says why it is unclassified, or what models say;
    ``suggestion`` is the type that one key accepts, "" for none.
    """

    box: tuple[float, float, float, float]
    type: str | None
    score: float = math.nan
    scores: dict[str, float] = field(default_factory=dict)
    why: str = ""
    suggestion: str | None = ""

    @property
    def doubt(self) -> float:
        """0..1: how close the second type is to the first, or how sure a suggestion is of another type."""
        if self.scores:
            first, second, *_ = [*sorted(self.scores.values(), reverse=True), 0.0]
            return 1 - (first - second)
        score = self.score if math.isfinite(self.score) else 0.5
        return score if self.suggestion != "" else 1 - score


@dataclass(frozen=True)
class ReviewField:
    """One image with its cells; ``group`` is the slide or patient, the image's folder if empty. ``others`` are cells
    that are shown but not laid before the person, as (box, type)."""

    path: Path
    width: int
    height: int
    cells: Sequence[ReviewCell]
    group: str = ""
    others: Sequence[tuple[Sequence[float], str]] = ()


def field_of(path: Path, size: tuple[int, int], cells: Detections) -> ReviewField:
    """A field of this (width, height) with its cells of ``counting.one_type``, which know their types; those that say
    ``why`` are unclassified."""
    of_cells = []
    for i, cell in enumerate(cells):
        why = "" if cells.why is None else str(cells.why[i])
        scores = {name: score for name, score in cells.ranked(i) if score > 0}
        of_cells.append(ReviewCell(cell.box, "" if why else cell.type, cell.score, scores, why))
    return ReviewField(path, *size, of_cells)


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
    are labels that models doubt; ``max_pixels`` are the megapixels of the largest image to read. Fields are
    asked for several times, and their pixels read one after the other, so that memory holds one page. Raises LeukoError
    where a page cannot be written.
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
        write_text(files[i], _page(types, of_page, data, neighbours, max_pixels))
    if several:
        numbers = map(_numbers, pages)
        listed = [(f"review/{file.name}", *about) for file, *about in zip(files, names, numbers, strict=True)]
        text = environment().get_template("reviews.html.j2").render(title=title, digests=digests, pages=listed)
        write_text(folder / "review.html", text)
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
            cells.append(ReviewCell(s.box, s.label or None, s.sure, why=votes, suggestion=s.says or None))
        rest = set(range(len(sample.boxes))) - {s.cell for s in doubted}
        others = [(sample.boxes[cell], dataset.types[sample.labels[cell]]) for cell in sorted(rest)]
        fields.append(ReviewField(sample.image, sample.width, sample.height, cells, sample.group, others))
    return write_pages(folder, dataset.types, fields, title="Labels that the models doubt", kind=CONSENSUS)


def _numbers(page: tuple[str, Sequence[ReviewField]]) -> tuple[int, int, int]:
    cells = [cell for each in page[1] for cell in each.cells]
    return len(page[1]), len(cells), sum(cell.type == "" for cell in cells)


def _divide(fields: Sequence[ReviewField]) -> Iterator[tuple[str, Sequence[ReviewField]]]:
    """The pages as (slide, fields): all on one, or one per slide, or several for a slide that is larger."""
    sizes, slides = [], {}
    for i, each in enumerate(fields):
        sizes.append(len(each.cells))
        folder = each.path.resolve().parent
        of_slide = slides.setdefault(each.group or str(folder), (each.group or "/".join(folder.parts[-2:]), []))
        of_slide[1].append(i)
    if len(fields) <= MAX_FIELDS and sum(sizes) <= MAX_CELLS:
        yield "", fields
        return
    for slide, numbers in slides.values():
        parts: list[list[int]] = [[]]
        cells = 0
        for i in numbers:
            cells += sizes[i]
            if parts[-1] and (cells > MAX_CELLS or len(parts[-1]) == MAX_FIELDS):
                parts.append([])
                cells = sizes[i]
            parts[-1].append(i)
        for number, part in enumerate(parts, 1):
            yield slide + (f", part {number} of {len(parts)}" if len(parts) > 1 else ""), Chosen(fields, part)


# ---------------------------------------------------------------- one page


def _content(types: Sequence[str], threshold: str, fields: Sequence[ReviewField]) -> dict:
    """What ``review.json`` holds from the start: types, threshold, images, and cells in descending order of doubt."""
    images = [
        {"name": f.path.name, "path": str(f.path.resolve()), "width": f.width, "height": f.height, "group": f.group}
        | {"others": [[_rounded(box), kind] for box, kind in f.others]}
        for f in fields
    ]
    cells = [
        {"image": i, "box": _rounded(cell.box), "before": cell.type, **_about(cell)}
        for _, i, cell in sorted(
            ((cell.doubt, i, cell) for i, each in enumerate(fields) for cell in each.cells), key=lambda c: -c[0]
        )
    ]
    return {"types": list(types), "threshold": threshold, "images": images, "cells": cells}


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(v), 2) + 0.0 for v in box]  # no -0, which JavaScript writes as 0


def _about(cell: ReviewCell) -> dict:
    """What is said of a cell: its score, the next likely type, why it is unclassified, what is suggested."""
    if cell.suggestion != "":
        said = {"text": f"models: {cell.suggestion or 'nothing'}", "suggestion": cell.suggestion}
        return {"score": round(cell.score, 4), "why": cell.why, **said}
    ranked = sorted(cell.scores.items(), key=lambda item: -item[1])
    others = [f"{name} {score:.2f}" for name, score in ranked if name != cell.type]
    has_score = math.isfinite(cell.score)
    said = [*([f"{cell.score:.2f}"] if has_score and (cell.type or not others) else []), *others[:1]]
    suggestion = ranked[0][0] if cell.type == "" and ranked else ""
    score = round(cell.score, 4) if has_score else None
    return {"score": score, "text": " · ".join(said), "why": cell.why, "suggestion": suggestion}


def _page(
    types: Sequence[str],
    fields: Sequence[ReviewField],
    data: dict,
    neighbours: Sequence[tuple[str, str]],
    max_pixels: float,
) -> str:
    crops: list[str] = [""] * len(data["cells"])
    of_image: dict[int, list[int]] = {}
    for number, cell in enumerate(data["cells"]):
        of_image.setdefault(cell["image"], []).append(number)
    whole = []
    limit = min(FIELDS_MB / max(len(fields), 1), FIELD_MB) * 1e6
    for i, (each, about) in enumerate(zip(fields, data["images"], strict=True)):
        about["sha256"] = ""
        try:
            file = open_image(each.path, max_pixels)
            pixels = file.decode()
        except LeukoError:  # it has gone since: the page says so, and its review cannot be applied
            whole.append("")
            continue
        about["sha256"] = file.sha256
        whole.append(_field(pixels, limit))
        for number in of_image.get(i, ()):
            crops[number] = data_uri(_crop(pixels, data["cells"][number]["box"])[:, :, ::-1], quality=80)
    groups = ["", *types, None]
    galleries = [[n for n, cell in enumerate(data["cells"]) if cell["before"] == group] for group in groups]
    cells = [len(of_type) for of_type in galleries[1:-1]]
    shares = [binomial.percent_of(n, sum(cells)) for n in cells]
    names = ["unclassified", *types, "no leukocyte"]
    template = environment(csp_hash=_csp_hash).get_template("review.html.j2")
    return template.render(
        data=data,
        crops=crops,
        whole=whole,
        galleries=list(zip(names, galleries, strict=True)),
        shares=shares,
        classified=sum(cells),
        colours=[colour(name, i) for i, name in enumerate(types)],
        neighbours=neighbours,
        is_consensus=data["kind"] == CONSENSUS,
    )


def _field(pixels: np.ndarray, limit: float) -> str:
    """The field as the text of a link of at most ``limit`` characters, if that is possible at all."""
    longer = max(pixels.shape[:2])
    for side in (side for side in (min(longer, FIELD_SIDES[0]), *FIELD_SIDES[1:]) if side <= longer):
        uri = data_uri(fit(pixels, side)[:, :, ::-1], quality=75)
        if len(uri) <= limit:
            break
    return uri


def _crop(pixels: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A cell in the middle of its surroundings, [CROP, CROP, 3]; grey beyond the border of the image."""
    x0, y0, x1, y1 = box
    side = max(round(CONTEXT * max(x1 - x0, y1 - y0)), 8)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    height, width = pixels.shape[:2]
    part = pixels[max(top, 0) : top + side, max(left, 0) : left + side]
    if not part.size:  # the file has become another image
        return np.full((CROP, CROP, 3), GREY[0], np.uint8)
    beyond = max(-top, 0), max(top + side - height, 0), max(-left, 0), max(left + side - width, 0)
    square = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_CONSTANT, value=GREY)
    return cv2.resize(square, (CROP, CROP), interpolation=cv2.INTER_AREA if side > CROP else cv2.INTER_LINEAR)


def _csp_hash(text: str) -> str:
    """How a Content-Security-Policy names a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
