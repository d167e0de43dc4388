"""``leuko predict``: find the leukocytes on new images, and count them by type."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("predict")

import glob
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import __version__
from .cells import UNCLASSIFIED
from .config import PredictOptions
from .data.formats.sidecar import original_of
from .data.images import IMAGE_SUFFIXES, image_size, is_hidden, list_images
from .data.slides import SLIDE_SUFFIXES, is_slide
from .data.tools.found import of_images, write_labels
from .detections import Detections
from .engine.predictor import ImagePrediction, Models, predict_images, without_doubles
from .engine.typing_stage import OFF
from .errors import LeukoError, one_line
from .io import digest, write_csv, write_json, write_yaml
from .metrics import counting
from .metrics.counting import Differential
from .ops.pairs import box_sides
from .registry import find_weights
from .report import plots, review, tables
from .report.journal import Journal
from .report.prediction import prediction_page


def predict(options: PredictOptions) -> Path:
    """Predict by these options and return the folder of results: pictures, ``cells.json``, ``cells.csv`` and the
    differential count per folder of images (a slide) and per image. Raises LeukoError for what the user can fix.

    What is found goes into a journal, image by image, of which the results are made in the end. Where the process ends
    before, the same options go on with it.
    """
    options.check()
    source = find_images(options.source)
    models = Models.of(options)
    originals = {path: original(path, options.max_pixels) for path in source.images} if options.originals else {}
    about = {"leuko": __version__, **asdict(options), "workers": None, "place": os.getcwd()}
    about["threshold"] = models.threshold.value
    weights = [digest(member.weights.path) for member in models.members]
    if options.typer and options.typer != OFF:
        weights.append(digest(find_weights(options.typer)))
    journal = Journal.open(options.save, options.name or models.name, about | {"digests": weights})
    write_yaml(journal.folder / "args.yaml", asdict(options))
    found = predict_images(models, source.images, originals, journal, options)
    errors = [str(each) for each in found if isinstance(each, LeukoError)]
    if len(errors) == len(found):
        shutil.rmtree(journal.folder)
        raise LeukoError(f"{options.source}: none of its {len(found)} files is a readable image ({errors[0]})")
    predictions = without_doubles([each for each in found if isinstance(each, ImagePrediction)])
    write(journal.folder, models, options, predictions, source, errors)
    if options.labels:
        images = of_images([(p.path, p.size) for p in predictions], models.types)
        cells = [p.cells[p.cells.why != counting.BELOW] for p in predictions]
        lines = write_labels(journal.folder / "labels", options.labels, images, cells, "predicted", models.name)
        print("\n".join(lines))
    journal.finish()
    print(f"\nresults: {one_line(str(journal.folder))} (report.html shows them; review.html is to correct and sign)")
    return journal.folder


# ---------------------------------------------------------------- images


class Source(NamedTuple):
    """The files that ``--source`` means: those taken for images, a folder's others, and hidden images."""

    images: list[Path]
    skipped: list[Path]
    hidden: list[Path]


def find_images(source: str) -> Source:
    """An image, the files of a folder named like images, or those of a pattern; LeukoError where there is none."""
    path = Path(source)
    remedy = "check the path, and put a pattern in quotes"
    hidden: list[Path] = []
    skipped: list[Path] = []
    if path.is_dir():
        found = list_images(path, recursive=True, hidden=hidden, suffixes=IMAGE_SUFFIXES + SLIDE_SUFFIXES)
        others = {p for p in path.rglob("*") if p.is_file()} - {*found, *hidden}
        skipped = sorted(p for p in others if not any(map(is_hidden, p.relative_to(path).parts)))
        remedy = "put images into it"
    elif path.exists():
        found = [path]
    else:
        named = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(p)]
        hidden = [p for p in named if any(is_hidden(part) and part not in path.parts for part in p.parts)]
        found = [p for p in named if p not in set(hidden)]
    if not found:
        passed_over = f" but {len(hidden)} hidden ones" if hidden else ""
        raise LeukoError(f"{source}: no image there{passed_over}; {remedy}")
    return Source(found, skipped, hidden)


def original(path: Path, max_pixels: float) -> Path:
    """The original of a resized image; LeukoError where none is noted, or it is not there as it was."""
    link = original_of(path)
    if link is None:
        raise LeukoError(f"{path}: no original is noted for it; --originals is for what leuko data resize made")
    found, width, height = link
    if image_size(found, max_pixels) != (width, height):
        raise LeukoError(f"{found}: is no longer {width}x{height} pixels as when it was resized; resize it anew")
    return found


# ---------------------------------------------------------------- results


def rows_of(path: Path, cells: Detections) -> list[dict]:
    """One row per cell: image, type (or ``unclassified``), the best type and its score, the second one's, why it is
    unclassified, and the box in pixels."""
    rows = []
    for cell, label, score, why in zip(cells, *counting.second_types(cells), cells.why, strict=True):
        row = {"image": str(path), "type": UNCLASSIFIED if why else cell.type}
        row |= {"best": cell.type, "score": round(cell.score, 4), "second": cells.types[label] if label >= 0 else ""}
        row |= {"second_score": round(float(score), 4), "why": why}
        rows.append(row | dict(zip(("x0", "y0", "x1", "y1"), (round(v, 2) for v in cell.box), strict=True)))
    return rows


def notes(predictions: Sequence[ImagePrediction], source: Source, models: Models, options: PredictOptions) -> list[str]:
    """What a user may not expect of the images: a line of each kind, with its count."""
    turned = [p.path for p in predictions if p.header.orientation != 1]
    stacks = [p for p in predictions if p.header.pages > 1]
    stretched = [p for p in predictions if p.bits < p.header.depth]
    bits = ", ".join(str(bits) for bits in sorted({p.bits for p in stretched}))
    kinds = {
        f"skipped: {len(source.skipped)} files not named like images": source.skipped,
        f"passed over: {len(source.hidden)} images that are hidden or in hidden folders": source.hidden,
        f"not turned: {len(turned)} images with an EXIF orientation, cells lie on the pixels as stored": turned,
        f"pages left out: {sum(p.header.pages - 1 for p in stacks)}, all but the first of {len(stacks)} TIFFs": [
            p.path for p in stacks
        ],
        f"brightened: {len(stretched)} images of 16 bits use only {bits}, and are scaled by these": [
            p.path for p in stretched
        ],
    }
    full = tables.at_cap([p.path for p in predictions if p.is_full], options.max_detections)
    tiny = tables.tiny_cells([(p.path, models.at_network(p.size)) for p in predictions])
    sides = [box_sides(p.cells.boxes[p.cells.why == ""]) for p in predictions if not is_slide(p.path)]
    odd = tables.odd_cells(np.concatenate([[], *sides]), models.members[0].cell) if options.tiles else ""
    return [
        *filter(None, [full, tiny, odd]),
        *(one_line(f"{text}, such as {paths[0]}") for text, paths in kinds.items() if paths),
    ]


def write(
    folder: Path,
    models: Models,
    options: PredictOptions,
    predictions: Sequence[ImagePrediction],
    source: Source,
    errors: Sequence[str],
) -> None:
    """The files of a prediction; on the terminal the count, and what was not read or not taken as it is."""
    types, threshold = models.types, models.threshold
    cells = [row for p in predictions for row in rows_of(p.path, p.cells)]
    groups: dict[str, list[Detections]] = {}
    for p in predictions:
        groups.setdefault(str(p.path.parent), []).append(p.cells)
        groups[str(p.path)] = [p.cells]
    counts = [
        {"of": of, "images": len(found), **row}
        for of, found in sorted(groups.items())
        for row in Differential.of(found, types).rows()
    ]
    noted = notes(predictions, source, models, options)
    document = {"threshold": threshold, "types": list(types), "cells": cells, "unreadable": errors}
    document |= {"skipped": source.skipped, "hidden": source.hidden, "notes": noted}
    write_json(folder / "cells.json", document)
    columns = ("image", "type", "best", "score", "second", "second_score", "why", "x0", "y0", "x1", "y1")
    write_csv(folder / "cells.csv", cells, columns)
    write_csv(folder / "differential.csv", counts)
    total = Differential.of([p.cells for p in predictions], types)
    plots.differential_chart(total, folder / "differential.png", str(threshold))
    fields = [(p.path, p.size, p.cells) for p in predictions]
    prediction_page(folder, fields, types, str(threshold), noted, errors, options.max_pixels)
    reviewed = (review.field_of(*each) for each in fields)
    about = {"title": options.source, "threshold": str(threshold), "max_pixels": options.max_pixels}
    review.write_pages(folder, types, reviewed, **about)
    print(f"{len(predictions)} images, {len(cells)} cells\n\n{tables.slide_count(total, str(threshold))}")
    if cells and total.unclassified.get(counting.BELOW) == len(cells):
        best = max(row["score"] for row in cells)
        remedy = "give a lower --threshold, or train the detector for longer"
        noted = [f"no cell has a score of {threshold.value:g} or more, the highest is {best:g}; {remedy}", *noted]
    for line in [*(f"not read: {error}" for error in errors), *noted]:
        print(line, file=sys.stderr)
