"""What a prediction writes: all cells, the differential count, its page, the page for review, labels. Made of what was
found on each image, which is read from the disk image by image, so that memory does not grow with their number, but for
the cells of the page for review."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cells import UNCLASSIFIED, colour
from ..config import PredictOptions
from ..data.dataset import Sample
from ..data.tools.found import of_images, write_labels
from ..detections import Detections
from ..errors import LeukoError, one_line
from ..io import write_csv, write_json_rows, write_text
from ..metrics import counting
from ..metrics.counting import Differential
from ..ops.pairs import box_sides
from . import pictures, review, tables
from .html import css_colours, data_uri, render
from .records import ImagePrediction, Predictions, next_types

CELL_COLUMNS = ("image", "type", "best", "score", "second", "second_score", "why", "x0", "y0", "x1", "y1")
COUNT_COLUMNS = ("of", "images", "type", "why", "cells", "percent", "low95", "high95")
LabelsAndDoubts = tuple[list[np.ndarray], list[np.ndarray]]  # of each image's cells
MAX_CELLS, LEAST_CELLS = 300, 12  # that the page shows: in all, and of each type, however many types there are
MAX_FIELDS = 100  # of which it shows a picture
MAX_LISTED = 100  # files that were not read, on the page
CROP, THUMBNAIL = 112, 220  # pixels


@dataclass(frozen=True)
class About:
    """What a prediction was made with: its options, the model's name and types, the score from which cells count and
    where that comes from; ``least_cell``, the pixels of the network below which a cell is hardly found; the source's
    files that were ``skipped`` and the ``hidden`` images."""

    options: PredictOptions
    model: str
    types: Sequence[str]
    threshold: float
    origin: str
    least_cell: float
    skipped: Sequence[str]
    hidden: Sequence[str]

    @property
    def score(self) -> str:
        """The threshold in words."""
        return f"{self.threshold:.2f} ({self.origin})"

    @classmethod
    def of(cls, record: dict) -> About:
        """From what ``dataclasses.asdict`` makes of it."""
        return cls(**record | {"options": PredictOptions(**record["options"])})


def write(folder: Path, about: About, predictions: Predictions, with_review: bool) -> None:
    """Write the files of a prediction; on the terminal the count, and what was not read or not taken as it is. The page
    for review is made where it is asked for. Raises LeukoError where a file cannot be written."""
    types, options, total = list(about.types), about.options, predictions.count()
    number = total.classified + sum(total.unclassified.values())
    noted = notes(predictions, about)
    document = {"threshold": {"value": about.threshold, "origin": about.origin}, "types": types}
    document |= {"unreadable": predictions.errors, "skipped": about.skipped, "hidden": about.hidden, "notes": noted}
    write_json_rows(folder / "cells.json", document, "cells", cell_rows(predictions))
    write_csv(folder / "cells.csv", cell_rows(predictions), CELL_COLUMNS)
    write_csv(folder / "differential.csv", count_rows(predictions), COUNT_COLUMNS)
    write_text(folder / "report.html", page(folder.resolve().name, about, predictions, total, noted, with_review))
    if with_review:
        fields = [review.field_of(p.path, p.size, p.cells) for p in predictions]
        said = {"title": options.source, "threshold": about.score, "max_pixels": options.max_pixels}
        review.write_pages(folder, types, fields, **said)
    print(f"{len(predictions)} images, {number} cells\n\n{tables.slide_count(total, about.score)}")
    if number and total.unclassified.get(counting.BELOW) == number:
        best = max(p.cells.scores.max(initial=0) for p in predictions)
        remedy = "give a lower --threshold, or train the detector for longer"
        noted = [f"no cell has a score of {about.threshold:g} or more, the highest is {best:.4g}; {remedy}", *noted]
    for line in [*(f"not read: {error}" for error in predictions.errors), *noted]:
        print(line, file=sys.stderr)
    if options.labels:
        images = of_images(((p.path, p.size) for p in predictions), types)
        above = (p.cells[p.cells.why != counting.BELOW] for p in predictions)
        print("\n".join(write_labels(folder / "labels", options.labels, images, above, "predicted", about.model)))


def cell_rows(predictions: Predictions) -> Iterator[dict]:
    """One row per cell: image, type (or ``unclassified``), the best type and its score, the second one's, why it is
    unclassified, and the box in pixels."""
    for path, cells in ((str(p.path), p.cells) for p in predictions):
        for cell, label, score, why in zip(cells, *counting.second_types(cells), cells.why, strict=True):
            second = cells.types[label] if label >= 0 else ""
            row = {"image": path, "type": UNCLASSIFIED if why else cell.type, "best": cell.type}
            row |= {"score": round(cell.score, 4), "second": second, "second_score": round(float(score), 4)}
            yield row | {"why": why} | dict(zip(("x0", "y0", "x1", "y1"), (round(v, 2) for v in cell.box), strict=True))


def count_rows(predictions: Predictions) -> Iterator[dict]:
    """The rows of the differential of each slide and of each image, by name."""
    groups = predictions.slides | {str(p.path): [i] for i, p in enumerate(predictions)}
    for of, images in sorted(groups.items()):
        for row in predictions.count(images).rows():
            yield {"of": of, "images": len(images), **row}


def notes(predictions: Predictions, about: About) -> list[str]:
    """What a user may not expect of the images: a line of each kind, with its count."""

    def those(which: Callable[[ImagePrediction], bool]) -> list[Path]:
        return [p.path for p in predictions if which(p)]

    unsearched = predictions.unsearched
    turned = those(lambda p: p.header.orientation != 1)
    stacks = those(lambda p: p.header.pages > 1)
    pages = sum(p.header.pages - 1 for p in predictions)
    stretched = those(lambda p: p.bits < p.header.depth)
    bits = ", ".join(str(bits) for bits in sorted({p.bits for p in predictions if p.bits < p.header.depth}))
    kinds = {
        f"skipped: {len(about.skipped)} files not named like images": about.skipped,
        f"ignored: {len(about.hidden)} images that are hidden or in hidden folders": about.hidden,
        f"not turned: {len(turned)} images with an EXIF orientation, cells lie on the pixels as stored": turned,
        f"pages left out: {pages}, all but the first of {len(stacks)} TIFFs": stacks,
        f"brightened: {len(stretched)} images of 16 bits use only {bits}, and are scaled by these": stretched,
        f"cells on two fields: not looked for in {len(unsearched)} folders, too large for a slide": unsearched,
    }
    full = tables.at_cap(those(lambda p: p.is_full), about.options.max_detections)
    tiny = tables.tiny_cells(((p.path, p.cell[1]) for p in predictions if p.cell[1]), about.least_cell)
    odd = tables.odd_cells(relative_sides(predictions)) if about.options.tiles else ""
    return [
        *filter(None, [full, tiny, odd]),
        *(one_line(f"{text}, such as {paths[0]}") for text, paths in kinds.items() if paths),
    ]


def relative_sides(predictions: Predictions) -> list[tuple[float, float]]:
    """How wide each classified cell is in pixels of its image, and how wide it was taken to be."""
    return [(side, p.cell[0]) for p in predictions for side in box_sides(p.cells.boxes[p.cells.why == ""]).tolist()]


# ---------------------------------------------------------------- report.html


def page(
    title: str,
    about: About,
    predictions: Predictions,
    total: Differential,
    notes: Sequence[str],
    has_review: bool,
) -> str:
    """The page of a prediction: the differential with its limits, files that were not read, the ``notes``, the count of
    each slide, the most doubtful cells of each type, and the fields."""
    rows = [{**row, "found": row["cells"]} for row in total.rows() if not row["why"]]
    rows.append({"type": "classified", "found": total.classified} | dict.fromkeys(("percent", "low95", "high95")))
    types, most = [*about.types, UNCLASSIFIED], about.options.max_pixels
    shades, found = css_colours(types), _labels_and_doubts(predictions, len(about.types))
    slides = [(name, len(images), predictions.count(images)) for name, images in sorted(predictions.slides.items())]
    return render(
        "prediction.html.j2",
        title=title,
        fields=len(predictions),
        count=total,
        rows=rows,
        shades=shades,
        rule=f"one type per cell, score from {about.score}",
        slides=slides,
        notes=notes,
        errors=predictions.errors,
        max_listed=MAX_LISTED,
        galleries=[(shade, *of) for shade, of in zip(shades, galleries(predictions, found, types, most), strict=True)],
        thumbnails=thumbnails(predictions, found, types, most),
        has_review=has_review,
    )


def galleries(
    predictions: Predictions, found: LabelsAndDoubts, types: Sequence[str], max_pixels: float
) -> list[tuple[str, int, list[tuple]]]:
    """Of each of the ``types``, of which the last is unclassified, its name, how many cells it has, and the most
    doubtful of them. Each is a picture ("" where its image can no longer be read), the name of its image, the best type
    with its score, and the next likely type with its, or why it is unclassified."""
    most = max(MAX_CELLS // len(types), LEAST_CELLS)
    labels, doubts = found
    starts = np.cumsum([0, *map(len, labels)])
    labels, doubts = (np.concatenate([[], *each]) for each in (labels, doubts))
    chosen = [np.flatnonzero(labels == label) for label in range(len(types))]
    shown = [cells[np.argsort(-doubts[cells], kind="stable")[:most]] for cells in chosen]
    pictured: dict[int, tuple] = {}
    wanted = np.sort(np.concatenate(shown))
    for i in np.unique(np.searchsorted(starts, wanted, side="right") - 1).tolist():
        numbers = wanted[(starts[i] <= wanted) & (wanted < starts[i + 1])]
        path, cells = predictions[i].path, predictions[i].cells[numbers - starts[i]]
        about = zip(numbers.tolist(), _crops(path, cells, max_pixels), cells, next_types(cells), cells.why, strict=True)
        for number, picture, cell, second, why in about:
            said = ", ".join(filter(None, [why, second and f"then {second}"]))
            pictured[number] = picture, path.name, f"{cell.type} {cell.score:.2f}", said
    of_types = zip(types, chosen, shown, strict=True)
    return [(name, len(cells), [pictured[n] for n in best.tolist()]) for name, cells, best in of_types]


def _labels_and_doubts(predictions: Predictions, unclassified: int) -> LabelsAndDoubts:
    """Of each image the labels of its cells, with one for those unclassified, and how doubtful each cell is."""
    labels, doubts = [], []
    for p in predictions:
        labels.append(np.where(p.cells.why == "", p.cells.labels, unclassified))
        doubts.append(counting.doubt(p.cells))
    return labels, doubts


def thumbnails(
    predictions: Predictions, found: LabelsAndDoubts, types: Sequence[str], max_pixels: float
) -> list[tuple[str, str, str, str]]:
    """The fields with their boxes, those with the most doubtful cells where not all are shown: pictures with names and
    numbers of cells, as :func:`galleries` gives cells."""
    labels, doubts = found
    worst = np.argsort([-each.max(initial=-1) for each in doubts], kind="stable")[:MAX_FIELDS]
    shown = []
    for i in sorted(worst.tolist()):
        p = predictions[i]
        number, left = len(labels[i]), int((labels[i] == len(types) - 1).sum())
        said = f"{number} cell{'' if number == 1 else 's'}" + (f", {left} unclassified" if left else "")
        try:
            sample = Sample(p.path, *p.size, p.cells.boxes, labels[i], 0)
            picture = data_uri(pictures.labelled(sample, types, (), THUMBNAIL, max_pixels), quality=80)
        except LeukoError:
            picture = ""
        shown.append((picture, p.path.name, p.path.name, said))
    return shown


def _crops(path: Path, cells: Detections, max_pixels: float) -> list[str]:
    names = (UNCLASSIFIED if why else cells.types[n] for n, why in zip(cells.labels, cells.why, strict=True))
    shades = [colour(name, n) for name, n in zip(names, cells.labels.tolist(), strict=True)]
    try:
        crops = pictures.crops(path, cells.boxes.tolist(), shades, CROP, max_pixels)
    except LeukoError:
        return [""] * len(cells)
    return [data_uri(crop, quality=80) for crop in crops]
