"""HTML pages: ``report.html`` of a run or validation folder, several of them side by side, and a data set's check.

A page is one file that opens without a network. It is made from the folder's other files alone, so that it can be made
again at any time. What a page says is in ``templates``; here are the numbers and the pictures that they ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ReportOptions
from ..data.dataset import Dataset, Sample
from ..data.images import image_size, is_image
from ..data.tools.findings import LEVELS, Finding, TypedBox, grouped, shortened
from ..data.tools.review import Review, named, read_reviews
from ..errors import LeukoError
from ..io import make_folder, read_bytes, read_json, read_text, write_text
from ..metrics import differential
from ..metrics.confusion import CONFUSED, EXTRA, MISSED
from . import pictures
from .comparison import compare
from .html import css_colours, data_uri, link, render
from .run import RESULTS_LIMIT, read_count, read_evaluation, read_rows, results_of
from .tables import cost_lines, model_lines, per_class, rate, table2

THUMBNAIL = 280  # pixels
MAX_SHOWN = 12  # pictures of a group of findings
MAX_PICTURES = 240  # of a page, about 4 MB
MAX_LISTED = 100  # findings of a group that are listed; all are in report.json
ERRORS = {
    EXTRA: ("Extra cells", "Found where nothing is labelled, of the highest scores first."),
    MISSED: ("Missed cells", "Labelled and not found; below, what was seen there under the threshold."),
    CONFUSED: ("Confusions", "The label, the type that was found with its score, and the next likely type."),
}
REVIEWED = ["type", "before", "after", "kept", "of those before", "of those after"]


def run(options: ReportOptions) -> None:
    """``leuko report``: make the page of one folder again, or put several on one page. Raises LeukoError."""
    if not options.runs:
        raise LeukoError("name the folder of a run or of a validation, or several")
    folders = [Path(folder) for folder in options.runs]
    alone = len(folders) == 1
    own = "report.html" if (folders[0] / "metrics.json").is_file() else "reviewed.html"  # of a prediction
    out = Path(options.out or (folders[0] / own if alone else "runs/report/comparison.html"))
    content = build(folders[0]) if alone else render("comparison.html.j2", **compare(folders), **OF_FILES)
    make_folder(out.parent)
    write_text(out, content)
    print(f"report: {out}")


def build(folder: str | Path) -> str:
    """The page of one run or validation folder, or of a prediction that a person has reviewed; LeukoError if it holds
    no results, or broken ones."""
    folder = Path(folder)
    review = _agreement(folder)
    if review and not (folder / "metrics.json").is_file():  # of a prediction
        return render("reviewed.html.j2", folder=folder, review=review)
    evaluation, about = read_evaluation(folder)
    with results_of(folder):
        table, head = per_class(evaluation), 1
        if (folder / "table.json").is_file():
            content = read_json(folder / "table.json", RESULTS_LIMIT)
            table, head = table2(content["rows"], content["cells"]), 2
        count = read_count(folder)
        return render(
            "run.html.j2",
            folder=folder,
            about=about,
            evaluation=evaluation,
            table=table,
            head=head,
            count=count,
            models=model_lines(count["models"]) if count else [],
            shades=css_colours([row["type"] for row in count["rows"]]) if count else [],
            errors=_errors(folder),
            review=review,
            **OF_FILES,
        )


def _errors(folder: Path) -> list[tuple[str, str, list[tuple], int]]:
    """Of each kind of error its title, a text, the cells that are shown, and how many there are more."""
    rows = read_rows(folder / "errors.csv")
    galleries = []
    for kind, (title, text) in ERRORS.items():
        of_kind = [row for row in rows if row["error"] == kind]
        cells = [_error(folder, row) for row in of_kind if row["crop"]]
        if of_kind:
            galleries.append((f"{title} ({len(of_kind):,})", text, cells, len(of_kind) - len(cells)))
    return galleries


def _error(folder: Path, row: dict[str, str]) -> tuple[str, str, str, str]:
    """A cell of a gallery: its picture, its image, what it is and was found as, and with which scores."""
    second = f"{row['second']} {float(row['second_score']):.2f}" if row["second"] else ""
    title, text = f"{row['labelled']} not found", second and f"seen as {second}"
    if row["found"]:
        title = f"{row['labelled']} found as {row['found']}" if row["labelled"] else row["found"]
        text = f"{float(row['score']):.2f}{second and f', then {second}'}"
    crop = folder / "errors" / Path(row["crop"]).name
    return _picture(crop)[0], Path(row["image"]).name, title, text


def _agreement(folder: Path) -> dict[str, Any] | None:
    """What the reviews in a folder changed, and how far the model agrees with the person (see ``agreement.html.j2``);
    None where there is no review. Raises LeukoError for a broken one."""
    if not any(folder.glob("review*.json")):
        return None
    reviews = read_reviews(folder)
    types = reviews[0].types
    number = {name: i for i, name in enumerate(types)}
    matrix = np.zeros((len(types) + 1, len(types) + 1), dtype=int)  # rows: after; columns: before; last: neither
    for review in reviews:
        for cell in review.cells:
            matrix[number.get(cell.after, -1), number.get(cell.before, -1)] += 1
    table = [REVIEWED]
    for name, after, before, kept in zip(types, matrix.sum(1), matrix.sum(0), np.diag(matrix), strict=False):
        shares = [rate(kept / n) if n else "-" for n in (before, after)]
        table.append([name, *(f"{n:,}" for n in (before, after, kept)), *shares])
    return {
        "signatures": [_signature(review) for review in reviews],
        "cells": sum(len(review.cells) for review in reviews),
        "kappa": rate(differential.kappa(matrix)),
        "table": table,
        "changes": [
            (review.images[cell.image]["name"], named(cell.before), named(cell.after))
            for review in reviews
            for cell in review.changes()
        ],
    }


def _signature(review: Review) -> str:
    """The history of a review in words."""
    steps = [f"{event['event']} by {event['by']} at {event['at']}" for event in review.events]
    return f"{review.file.name}: {'; '.join(steps) or 'not signed'}"


def check_page(
    src: str | Path, datasets: dict[str, Dataset], findings: Sequence[Finding], lines: Sequence[Sequence[str]]
) -> str:
    """The page of a data set's check (see ``leuko.data.tools.check``). ``lines`` is its Table 1, which may be empty.

    It is bounded: each group has ``MAX_SHOWN`` pictures and ``MAX_LISTED`` lines, the page ``MAX_PICTURES`` pictures.
    """
    samples = {sample.image: (sample, d.types) for d in reversed(datasets.values()) for sample in d.samples}
    left, sections = MAX_PICTURES, []
    for group in grouped(findings):
        cells: dict[tuple[Path, ...], list[TypedBox]] = {}  # of each image, or pair of images, its findings' boxes
        for finding in group.findings:
            images = [image for image in finding.images if is_image(image) and image.is_file()]
            for together in [tuple(images)] if len(images) == 2 else [(image,) for image in images]:
                cells.setdefault(together, []).extend(finding.cells)
        shown = list(cells)[: min(left, MAX_SHOWN)]
        left -= len(shown)
        figures = [[_labelled(image, samples.get(image), cells[images]) for image in images] for images in shown]
        sections.append((group, figures, len(group.images) - len({image for images in shown for image in images})))
    types = list(dict.fromkeys(name for dataset in datasets.values() for name in dataset.types))
    return render(
        "check.html.j2",
        src=src,
        images=len(samples),
        splits=len(datasets),
        numbers={level: sum(f.level == level for f in findings) for level in LEVELS},
        table=lines,
        sections=sections,
        colours=list(zip(types, css_colours(types), strict=True)),
        max_listed=MAX_LISTED,
        shortened=lambda text: shortened(text, src),
    )


def _picture(path: Path) -> tuple[str, int]:
    """An image file as the text of a link, and its width; ("", 0) if it cannot be read."""
    try:
        width, _ = image_size(path)
        return link(read_bytes(path), "png" if path.suffix == ".png" else "jpeg"), width
    except LeukoError:
        return "", 0


def _labelled(path: Path, about: tuple[Sample, list[str]] | None, cells: Sequence[TypedBox]) -> tuple[str, str, str]:
    """A small picture of a data set's image as the text of a link, "" if it cannot be read; its name; and what is
    labelled on it. ``about`` is its sample with the list of types; ``cells`` are emphasised."""
    sample, types = about or (Sample(path, 1, 1, [], [], 0), [])
    counts = zip(np.bincount(sample.labels, minlength=len(types)), types, strict=True)
    labels = ", ".join(f"{number} {name}" for number, name in counts if number)
    try:
        picture = data_uri(pictures.labelled(sample, types, cells, THUMBNAIL))
    except LeukoError:
        return "", path.name, "cannot be read"
    return picture, path.name, labels or "no label"


def _csv_lines(path: Path) -> list[list[str]]:
    """The lines of a CSV file, numbers with at most three decimals, and paths without their folders; those of costs in
    the units of the terminal's table."""
    rows = read_rows(path)
    if path.name == "cost.csv":
        return cost_lines(rows)
    return [list(rows[0]), *([_short(value) for value in row.values()] for row in rows)] if rows else []


def _short(value: str) -> str:
    try:
        number = float(value)
        return value.removesuffix(".0") if number == int(number) else f"{number:.3f}".rstrip("0").rstrip(".")
    except (ValueError, OverflowError):  # text, nan, inf
        return Path(value).name if "/" in value else value


OF_FILES = {"picture": _picture, "csv_lines": _csv_lines, "text_of": lambda path: read_text(path, RESULTS_LIMIT)}
"""What templates ask of a folder's files."""
