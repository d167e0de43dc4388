"""What a person corrected on ``review.html`` (see ``leuko.report.review``): ``leuko data apply-review``.

``review.json`` holds the pages of the prediction by their digests, the images by name and SHA-256, each cell with its
type before and after, and the events of signing. A type is a name, "" (unclassified) or null (no leukocyte).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import LeukoError, nearest
from ...io import check_readable, digest, io_errors_as, read_json, write_csv
from ...kinds import misfit
from ..config import ReviewOptions
from ..dataset import Dataset, LabelWarning, Note, Sample
from ..images import image_size, list_images
from .builder import building, check_format, read_source, with_cells, write_splits

PREDICTION, CONSENSUS = "prediction", "consensus"
COLUMNS = ("image", "before", "after", "x0", "y0", "x1", "y1", "score", "reviewed_by", "reviewed_at")
ROUNDING = 0.02  # pixels by which a cell's box may differ from the review's, which is rounded to .01
SPLIT = "all"  # of the labels of a prediction


_Type = str | None
_REVIEW = {"leuko": str, "kind": Literal["prediction", "consensus"], "title": str, "digests": list[str], "page": int}
_REVIEW |= {"types": list[str], "threshold": str, "images": list[dict], "cells": list[dict], "events": list[dict]}
_ITEMS = {
    "images": {"name": str, "path": str, "sha256": str, "width": int, "height": int, "group": str},
    "cells": {"image": int, "box": list[float], "before": _Type, "after": _Type}
    | {"score": float | None, "checked": bool, "added": bool},
    "events": {"event": Literal["signed", "reopened"], "by": str, "at": str},
}


@dataclass(frozen=True)
class ReviewedCell:
    """A cell before and after the review, by the image's index; ``added`` by the person, where there was none."""

    image: int
    box: tuple[float, float, float, float]
    before: str | None
    after: str | None
    score: float | None = None
    added: bool = False


@dataclass(frozen=True)
class Review:
    """The content of a ``review.json``. ``digests`` are those of all pages, ``page`` is the index of this one; ``by``
    and ``at`` are the signature, empty without one; ``images`` hold name, path, width, height, group and sha256."""

    file: Path
    kind: str
    types: list[str]
    digests: list[str]
    page: int
    images: list[dict]
    cells: list[ReviewedCell]
    by: str
    at: str
    events: list[dict]

    def changes(self) -> list[ReviewedCell]:
        """The cells whose type is another now."""
        return [cell for cell in self.cells if cell.before != cell.after]


def named(kind: str | None) -> str:
    """A type in words."""
    return "no leukocyte" if kind is None else kind or "unclassified"


def page_digest(content: dict) -> str:
    """The SHA-256 of what a page showed at first: types, threshold, the images' names, and the cells."""
    cells = [[c["image"], [f"{v:.2f}" for v in c["box"]], c["before"]] for c in content["cells"] if not c.get("added")]
    shown = [content["types"], content["threshold"], [image["name"] for image in content["images"]], cells]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


# ---------------------------------------------------------------- reading


def read_reviews(path: str | Path) -> list[Review]:
    """The review in a file, or those of a folder (``review*.json``); LeukoError where one is broken, or they are not of
    one prediction, or not of the prediction whose ``review.html`` lies beside them."""
    path = Path(path)
    files = sorted(path.glob("review*.json")) if path.is_dir() else [path]
    if not files:
        raise LeukoError(f"{path}: no review*.json there; download it from review.html by Sign or Download")
    reviews = [read_review(file) for file in files]
    remedy = "keep those of one"
    expected = reviews[0].digests
    if (page := files[0].parent / "review.html").is_file():
        with io_errors_as("read", page), open(page, encoding="utf-8", errors="replace") as text:
            found = re.search('name="prediction" content="([0-9a-f ]+)"', text.read(1_000_000))
        expected, remedy = (found[1].split() if found else expected), "put it where its own page is"
    for i, review in enumerate(reviews):
        if review.digests != expected:
            raise LeukoError(f"{review.file}: is the review of another prediction than {page.parent}; {remedy}")
        if twice := next((r for r in reviews[:i] if r.page == review.page), None):
            raise LeukoError(f"{review.file}: reviews the same page as {twice.file}; keep one of them")
    return reviews


def read_review(file: Path) -> Review:
    """A review, checked to be whole and as its page wrote it; raises LeukoError."""
    content = read_json(file)
    problem = misfit(content, _REVIEW)
    for key, kinds in () if problem else _ITEMS.items():
        found = ((number, misfit(item, kinds)) for number, item in enumerate(content[key], 1))
        problem = problem or next((f"{key} {number}: {wrong}" for number, wrong in found if wrong), "")
    if not problem and content["page"] not in range(len(content["digests"])):
        problem = f"page {content['page']} of {len(content['digests'])}"
    if problem:
        raise LeukoError(f"{file}: not a review ({problem}); download it from review.html again")
    if page_digest(content) != content["digests"][content["page"]]:
        raise LeukoError(f"{file}: its cells are not those of its prediction; download it from the page again")
    cells = [
        ReviewedCell(c["image"], tuple(c["box"]), c["before"], c["after"], c["score"], c["added"])
        for c in content["cells"]
    ]
    for number, cell in enumerate(cells, 1):
        _check_cell(cell, content["images"], content["types"], f"{file}: cell {number}")
    is_signed = content["events"] and content["events"][-1]["event"] == "signed"
    by, at = (content["events"][-1][key] if is_signed else "" for key in ("by", "at"))
    if is_signed and not (by.strip() and by.isprintable() and at.isprintable()):
        raise LeukoError(f"{file}: signed by {by!r:.40}, which is no name; sign it again")
    about = {key: content[key] for key in ("kind", "types", "digests", "page", "images", "events")}
    return Review(file, cells=cells, by=by, at=at, **about)


def _check_cell(cell: ReviewedCell, images: Sequence[dict], types: Sequence[str], place: str) -> None:
    """Raise LeukoError unless a cell lies on its image and has types that there are."""
    for kind in (cell.before, cell.after):
        if kind and kind not in types:
            raise LeukoError(f'{place}: the type "{kind}" is unknown{nearest(kind, types)} ({", ".join(types)})')
    if cell.image not in range(len(images)):
        raise LeukoError(f"{place}: there is no image {cell.image}; download the review again")
    width, height = images[cell.image]["width"], images[cell.image]["height"]
    x0, y0, x1, y1 = cell.box if len(cell.box) == 4 else (0, 0, 0, 0)
    if not (-ROUNDING <= x0 < x1 <= width + ROUNDING and -ROUNDING <= y0 < y1 <= height + ROUNDING):
        raise LeukoError(f"{place}: its box {cell.box} is not inside the image; download the review again")


# ---------------------------------------------------------------- applying


def apply_review(review: str | Path, dst: str | Path, **options: object) -> tuple[list[dict], dict[str, Dataset]]:
    """Write the labels that a person corrected as a data set; returns a row per change, and the data set.

    ``options`` are those of ``ReviewOptions``. Of a prediction these are the labels of all its images; of labels that
    models doubt, the data set ``data`` with those changes. Cells keep their old type and score and who reviewed them as
    the attributes ``label_before``, ``score`` and ``reviewed_by``, and ``reviewed.csv`` lists the changes. Raises
    LeukoError.
    """
    o = ReviewOptions(review=str(review), dst=str(dst), **options)
    if o.format:
        check_format("--format", o.format)
    reviews = read_reviews(review)
    if waiting := [each.file for each in reviews if not each.by and not o.unsigned]:
        raise LeukoError(f"{waiting[0]}: is not signed; sign it on its page, or give --unsigned")
    is_consensus = reviews[0].kind == CONSENSUS
    if is_consensus != bool(o.data):
        problem = "is about the labels of a data set" if is_consensus else "is of a prediction, not of a data set"
        raise LeukoError(f"{reviews[0].file}: {problem}; {'name it by' if is_consensus else 'leave out'} --data")
    if is_consensus:
        form, datasets = read_source(o.data, dst, o.format)
        places = [_places(datasets, each) for each in reviews]
    else:
        form, datasets = o.format or "coco", {SPLIT: Dataset(reviews[0].types, [])}
        there = _by_name(list_images(o.images, recursive=True)) if o.images else None
        places = [_add_images(datasets[SPLIT], each, there) for each in reviews]
    for each, of_images in zip(reviews, places, strict=True):
        _correct(datasets, each, of_images, o.data)
    if (number := len(reviews)) < (pages := len(reviews[0].digests)):
        note = Note(f"{number} of {pages} pages of the prediction: the others are left out")
        next(iter(datasets.values())).notes.append(note)
    rows = [_row(each, cell) for each in reviews for cell in each.changes()]
    with building(dst, o.force) as folder:
        write_splits(folder, form, datasets)
        write_csv(folder / "reviewed.csv", rows, COLUMNS)
    return rows, datasets


def _row(review: Review, cell: ReviewedCell) -> dict:
    who = {"reviewed_by": review.by, "reviewed_at": review.at}
    box = dict(zip(COLUMNS[3:7], cell.box, strict=True))
    about = {"before": named(cell.before), "after": named(cell.after), "score": cell.score, **who}
    return {"image": review.images[cell.image]["path"], **about, **box}


def _attributes(review: Review, cell: ReviewedCell) -> dict:
    """What a label keeps of its review."""
    about = {"label_before": named(cell.before)} if cell.before != cell.after else {}
    about |= {} if cell.score is None else {"score": cell.score}
    return about | ({"reviewed_by": review.by} if review.by else {})


def _by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    return by_name


def _located(review: Review, image: dict, there: dict[str, list[Path]]) -> list[Path]:
    """Those of some paths, by name, that are a review's image, byte for byte; LeukoError where none is."""
    same_name = [path for path in there.get(image["name"], ()) if path.is_file()]
    for path in same_name:
        check_readable(path)
    if same := [path for path in same_name if digest(path) == image["sha256"]]:
        return same
    if same_name:
        remedy = "bring back the image, or review it anew"
        raise LeukoError(f"{same_name[0]}: has changed since its review {review.file}; {remedy}")
    remedy = "say by --images or --data where it is now"
    raise LeukoError(f"{review.file}: its image {image['path']} is not there; {remedy}")


Places = list[list[tuple[str, int]]]
"""Of each image of a review the splits that hold it, and its indices there."""


def _places(datasets: dict[str, Dataset], review: Review) -> Places:
    """Where the images of a review are in the data set that it is about."""
    held: dict[Path, list[tuple[str, int]]] = {}
    for split, dataset in datasets.items():
        for i, sample in enumerate(dataset.samples):
            held.setdefault(sample.image, []).append((split, i))
    there = _by_name(held)
    return [[place for path in _located(review, image, there) for place in held[path]] for image in review.images]


def _add_images(dataset: Dataset, review: Review, there: dict[str, list[Path]] | None) -> Places:
    """Add the images of a prediction, with the cells that it found and that have a type after the review."""
    places: Places = []
    for i, about in enumerate(review.images):
        path = _located(review, about, _by_name([Path(about["path"])]) if there is None else there)[0]
        cells = [cell for cell in review.cells if cell.image == i and cell.before and cell.after != ""]
        boxes, labels = [cell.box for cell in cells], [review.types.index(cell.before) for cell in cells]
        places.append([(SPLIT, len(dataset))])
        dataset.samples.append(Sample(path, *image_size(path), boxes, labels, len(dataset) + 1, group=about["group"]))
    return places


def _correct(datasets: dict[str, Dataset], review: Review, places: Places, data: str) -> None:
    """Put the changes of a review into every split that holds the image; one that lacks the cell keeps its labels, with
    a warning. A cell that was left unclassified keeps its label, or has none in a prediction, with a warning, too."""
    types = next(iter(datasets.values())).types
    for number, cell in enumerate(review.cells, 1):
        if cell.after and cell.after not in types:
            raise LeukoError(f'{review.file}: cell {number}: the type "{cell.after}" is not among {", ".join(types)}')
        changed = 0
        for split, i in places[cell.image]:
            dataset, sample = datasets[split], datasets[split].samples[i]
            if cell.after == "":
                action = "keeps its label" if data else "left out, which leaves a leukocyte without a label"
                about = f"cell {number} of the review at {cell.box}", "is unclassified", action
            elif (at := _find(sample, cell, types)) is not None:
                dataset.samples[i] = _changed(sample, at, cell, types, _attributes(review, cell))
                changed += 1
                continue
            else:
                about = f"cell {number} of the review", f"is not in split {split}", "left out"
            dataset.warnings.append(LabelWarning(sample.image, *about))
        if not changed and cell.after != "":
            problem = f"cell {number}, {named(cell.before)} on {review.images[cell.image]['name']}, is not in {data}"
            raise LeukoError(f"{review.file}: {problem}; name the data that was validated, not corrected already")


def _find(sample: Sample, cell: ReviewedCell, types: Sequence[str]) -> int | None:
    """The index of a reviewed cell among the labels, the next free one where it had none; None where it is gone, or a
    new one is there already."""
    near = np.isclose(sample.boxes, cell.box, rtol=0, atol=ROUNDING).all(1)
    if not cell.before:
        return None if cell.before is None and near.any() else len(sample.boxes)
    return next((i for i in np.flatnonzero(near).tolist() if types[sample.labels[i]] == cell.before), None)


def _changed(sample: Sample, at: int, cell: ReviewedCell, types: Sequence[str], attributes: dict) -> Sample:
    """The sample with a cell as the review has it: of another type, gone, or new."""
    is_new = at == len(sample.boxes)
    if cell.after is None:
        return sample if is_new else with_cells(sample, np.delete(np.arange(len(sample.boxes)), at))
    if is_new:
        sample = replace(
            sample,
            boxes=[*sample.boxes, cell.box],
            labels=[*sample.labels, 0],
            crowd=[*sample.crowd, False],
            cell_factors=[*sample.cell_factors, ()],
            attributes=[*sample.attributes, {}],
        )
    sample.labels[at] = types.index(cell.after)
    sample.attributes[at] = {**sample.attributes[at], **attributes}
    return sample
