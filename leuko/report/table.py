"""Tables as text: the paper's Table 2, the measures per type, and the differential count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

from ..data.dataset import Dataset
from ..metrics.coco import Evaluation
from ..metrics.differential import Share


@dataclass(frozen=True)
class Row:
    """One model of a table: its measures, its number of parameters, and its images a second (nan: not known)."""

    name: str
    evaluation: Evaluation
    parameters: float = nan
    fps: float = nan


def table2(rows: Sequence[Row], types: Sequence[str]) -> list[list[str]]:
    """Return the cells of the paper's Table 2: two lines of head, the second with the number of cells of each type,
    then a line a model. For :func:`aligned` or :func:`markdown`.

    All rows must be measured on one data set, whose types are ``types``; the supports are taken from the first.
    """
    cells = {t.type: t.cells for t in rows[0].evaluation.per_class} if rows else {}
    head = ["model", "mAP", "mAP50", "mAP75", "mAR", *types, "params (M)", "FPS"]
    support = ["cells", "", "", "", "", *(f"({cells.get(name, 0):,})" for name in types), "", ""]
    lines = [head, support]
    for row in rows:
        measures = [v for key, v in record(row).items() if key not in ("model", "parameters", "fps")]
        lines.append([row.name, *map(rate, measures), _number(row.parameters / 1e6, 1), _number(row.fps, 1)])
    return lines


def record(row: Row) -> dict[str, str | float]:
    """A row as numbers: model, mAP, mAP50, mAP75, mAR, AP of each type under the type's name, parameters, fps."""
    e = row.evaluation
    measures = {name: getattr(e, name) for name in ("mAP", "mAP50", "mAP75", "mAR")}
    ap = {t.type: t.AP for t in e.per_class}
    return {"model": row.name, **measures, **ap, "parameters": row.parameters, "fps": row.fps}


def per_class(evaluation: Evaluation) -> str:
    """Return a line a type, and one for all of them: AP, AP50, AP75, AR, cells, images."""
    lines = [["type", "AP", "AP50", "AP75", "AR", "cells", "images"]]
    for t in evaluation.per_class:
        lines.append([t.type, *map(rate, (t.AP, t.AP50, t.AP75, t.AR)), f"{t.cells:,}", f"{t.images:,}"])
    e = evaluation
    lines.append(["all", *map(rate, (e.mAP, e.mAP50, e.mAP75, e.mAR)), f"{e.cells:,}", f"{e.images:,}"])
    return aligned(lines, head=1)


def differential(shares: Sequence[Share], threshold: float) -> str:
    """Return the differential count: a line a type, with cells, percent and its 95 % interval."""
    lines = [["type", "cells", "percent", "95 % interval"]]
    for s in shares:
        interval = "-" if isnan(s.low) else f"{s.low:.1f} to {s.high:.1f}"
        lines.append([s.type, f"{s.cells:,}", _number(s.percent, 1), interval])
    lines.append(["all", f"{sum(s.cells for s in shares):,}", "", ""])
    return aligned(lines, head=1) + f"\ncells with score >= {threshold:g}"


def table1(datasets: dict[str, Dataset]) -> list[list[str]]:
    """The lines of the paper's Table 1: of each split the cells of each type and, in brackets, the images that hold
    any; then the cells in all, and all images, those without cells too."""
    types = next(iter(datasets.values())).types
    lines = [["cells (images)", *types, "total"]]
    for split, dataset in datasets.items():
        of_types = [sum((s.labels[~s.crowd] == k).any() for s in dataset.samples) for k in range(len(types))]
        counts = dataset.counts()
        cells = [f"{n} ({images})" for n, images in zip(counts, of_types, strict=True)]
        lines.append([split, *cells, f"{counts.sum()} ({len(dataset)})"])
    return lines


def warnings(split: str, dataset: Dataset, at_most: int = 3) -> str:
    """Return how much of a split was mended or left out, with the first few warnings; "" where nothing was."""
    lines = [
        f"{split}: {n} cells of the class {name} left out, as the data YAML says" for name, n in dataset.ignored.items()
    ]
    if dataset.warnings:
        lines += [f"{split}: {len(dataset.warnings)} warnings mended, listed in warnings.txt, such as:"]
        lines += [f"  {warning}" for warning in dataset.warnings[:at_most]]
    return "\n".join(lines)


def rate(value: float) -> str:
    """Write a rate (0..1) as the paper does: three decimals without the zero before the point; nan as "-"."""
    return "-" if isnan(value) else f"{value:.3f}".removeprefix("0")


def aligned(lines: Sequence[Sequence[str]], head: int) -> str:
    """Join cells to columns, the first aligned left and the others right, with a rule under ``head`` lines."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]
    text.insert(head, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(text)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Join cells to a Markdown table whose head is the first line."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows.insert(1, "|---|" + "--:|" * (len(lines[0]) - 1))
    return "\n".join(rows)


def _number(value: float, decimals: int) -> str:
    return "-" if isnan(value) else f"{value:.{decimals}f}"
