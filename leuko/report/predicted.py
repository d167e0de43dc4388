"""The files of a prediction: all cells, the differential count, pages, labels. Made of what was found on each image,
which is read from the disk image by image, so that memory does not grow with their number."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..cells import UNCLASSIFIED
from ..config import PredictOptions
from ..data.tools.found import of_images, write_labels
from ..detections import Detections
from ..errors import one_line
from ..io import write_csv, write_json_rows
from ..metrics import counting
from ..metrics.counting import Differential
from ..ops.pairs import box_sides
from . import plots, review, tables
from .prediction import prediction_page
from .predictions import ImagePrediction, Lazy, Predictions

CELL_COLUMNS = ("image", "type", "best", "score", "second", "second_score", "why", "x0", "y0", "x1", "y1")
COUNT_COLUMNS = ("of", "images", "type", "why", "cells", "percent", "low95", "high95")


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

    def record(self) -> dict:
        """The same in numbers and texts, as files keep it."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict) -> About:
        """From a :meth:`record`."""
        return cls(**record | {"options": PredictOptions(**record["options"])})


def write(folder: Path, about: About, predictions: Predictions, with_review: bool) -> None:
    """Write the files of a prediction; on the terminal the count, and what was not read or not taken as it is. The page
    for review is made where it is asked for."""
    types, options = list(about.types), about.options
    total = Differential.of((p.cells for p in predictions), types)
    number = total.classified + sum(total.unclassified.values())
    noted = notes(predictions, about)
    document = {"threshold": {"value": about.threshold, "origin": about.origin}, "types": types}
    document |= {"unreadable": predictions.errors, "skipped": about.skipped, "hidden": about.hidden, "notes": noted}
    write_json_rows(folder / "cells.json", document, "cells", cell_rows(predictions))
    write_csv(folder / "cells.csv", cell_rows(predictions), CELL_COLUMNS)
    write_csv(folder / "differential.csv", count_rows(predictions, types), COUNT_COLUMNS)
    plots.differential_chart(total, folder / "differential.png", about.score)
    fields = Lazy(len(predictions), lambda i: predictions[i].field)
    prediction_page(folder, fields, types, about.score, noted, predictions.errors, options.max_pixels, with_review)
    if with_review:
        reviewed = Lazy(len(predictions), lambda i: review.field_of(*fields[i]))
        said = {"title": options.source, "threshold": about.score, "max_pixels": options.max_pixels}
        review.write_pages(folder, types, reviewed, **said)
    print(f"{len(predictions)} images, {number} cells\n\n{tables.slide_count(total, about.score)}")
    if number and total.unclassified.get(counting.BELOW) == number:
        best = max(p.cells.scores.max(initial=0) for p in predictions)
        remedy = "give a lower --threshold, or train the detector for longer"
        noted = [f"no cell has a score of {about.threshold:g} or more, the highest is {best:.4g}; {remedy}", *noted]
    for line in [*(f"not read: {error}" for error in predictions.errors), *noted]:
        print(line, file=sys.stderr)
    if options.labels:
        images = of_images(((p.path, p.size) for p in predictions), types)
        cells = Lazy(len(predictions), lambda i: _above(predictions[i].cells))
        lines = write_labels(folder / "labels", options.labels, images, cells, "predicted", about.model)
        print("\n".join(lines))


def _above(cells: Detections) -> Detections:
    return cells[cells.why != counting.BELOW]


def cell_rows(predictions: Predictions) -> Iterator[dict]:
    """One row per cell: image, type (or ``unclassified``), the best type and its score, the second one's, why it is
    unclassified, and the box in pixels."""
    for path, cells in ((str(p.path), p.cells) for p in predictions):
        for cell, label, score, why in zip(cells, *counting.second_types(cells), cells.why, strict=True):
            second = cells.types[label] if label >= 0 else ""
            row = {"image": path, "type": UNCLASSIFIED if why else cell.type, "best": cell.type}
            row |= {"score": round(cell.score, 4), "second": second, "second_score": round(float(score), 4)}
            yield row | {"why": why} | dict(zip(("x0", "y0", "x1", "y1"), (round(v, 2) for v in cell.box), strict=True))


def count_rows(predictions: Predictions, types: Sequence[str]) -> Iterator[dict]:
    """The rows of the differential of each slide and of each image, by name."""
    groups: dict[str, Sequence[int]] = {slide: images for slide, images in predictions.slides.items()}
    groups |= {str(p.path): [i] for i, p in enumerate(predictions)}
    for of, images in sorted(groups.items()):
        for row in Differential.of((predictions[i].cells for i in images), types).rows():
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
        f"passed over: {len(about.hidden)} images that are hidden or in hidden folders": about.hidden,
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
