"""Tables as text: the paper's Tables 1 and 2, the measures per type, and the counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from math import isnan, nan
from pathlib import Path

import numpy as np

from ..cells import beside
from ..data.dataset import Dataset
from ..detections import MAX_DETECTIONS
from ..errors import one_line
from ..metrics.coco import Evaluation
from ..metrics.counting import Differential
from ..metrics.differential import Count

TINY = 16.0  # pixels of the network
ODD, LEAST_SIDES = 1.5, 5  # times the expected width; cells that tell
MEASURES = ("mAP", "mAP50", "mAP75", "mAR")


def record(model: str, e: Evaluation, parameters: float = nan, fps: float = nan) -> dict[str, str | float]:
    """A model's line of a table as numbers: model, mAP, mAP50, mAP75, mAR, AP of each type under its name (see
    ``ap_columns``), parameters, images per second; nan where these are not known."""
    measures = {name: getattr(e, name) for name in MEASURES}
    ap = dict(zip(ap_columns([t.type for t in e.per_class]), (t.AP for t in e.per_class), strict=True))
    return {"model": model, **measures, **ap, "parameters": parameters, "fps": fps}


def ap_columns(types: Sequence[str]) -> list[str]:
    """The keys under which :func:`record` has the AP of types: their names, "type mAP" for a type called mAP."""
    return beside(types, ("model", *MEASURES, "parameters", "fps"))


def table2(records: Sequence[dict], cells: dict[str, int]) -> list[list[str]]:
    """The cells of the paper's Table 2: two lines of head, the second with the number of ``cells`` of each type, then a
    line per model, of what :func:`record` returns (None, which JSON has for nan, is read as nan). For :func:`aligned`
    or :func:`markdown`. All must be measured on one data set."""
    lines = [["model", *MEASURES, *cells, "params (M)", "FPS"]]
    lines.append(["cells", *[""] * len(MEASURES), *(f"({n:,})" for n in cells.values()), "", ""])
    for r in records:
        millions = None if r["parameters"] is None else r["parameters"] / 1e6
        measures = [rate(r[name]) for name in (*MEASURES, *ap_columns(list(cells)))]
        lines.append([str(r["model"]), *measures, _number(millions), _number(r["fps"])])
    return lines


def table1(datasets: dict[str, Dataset]) -> list[list[str]]:
    """The lines of the paper's Table 1: of each split the cells per type and, in brackets, the images with any; in the
    last column all cells, and all images, also those without cells."""
    lines = [["cells (images)", *next(iter(datasets.values())).types, "total"]]
    for split, dataset in datasets.items():
        counts = dataset.counts_per_image()
        cells = zip([*counts.sum(0), counts.sum()], [*(counts > 0).sum(0), len(dataset)], strict=True)
        lines.append([split, *(f"{n} ({images})" for n, images in cells)])
    return lines


def per_class(e: Evaluation) -> list[list[str]]:
    """A line per type, and one for all of them: AP, AP50, AP75, AR, cells, images; the first line is the head."""
    rows = [*map(astuple, e.per_class), ("all", e.mAP, e.mAP50, e.mAP75, e.mAR, e.cells, e.images)]
    head = ["type", "AP", "AP50", "AP75", "AR", "cells", "images"]
    return [head, *([name, *map(rate, m), f"{cells:,}", f"{images:,}"] for name, *m, cells, images in rows)]


def count(of: Count) -> str:
    """Return a count against the labels': the verdict, and a line per type."""
    head = ["type", "labelled", "found", "difference", "labelled %", "found %", "95 % limits"]
    lines = [[*head, "sensitivity", "95 % limits", "PPV", "95 % limits"]]
    for row in of.rows:
        line = [row["type"], f"{row['labelled']:,}", f"{row['found']:,}", signed(row["difference"])]
        line += [_number(row["labelled_percent"]), _number(row["percent"]), _limits(row["low95"], row["high95"])]
        for key in ("sensitivity", "ppv"):
            line += [_number(row[key]), _limits(row[f"{key}_low95"], row[f"{key}_high95"])]
        lines.append(line)
    return f"{of.verdict}\n\n{aligned(lines, head=1)}\nCohen's kappa of the types of the found cells {rate(of.kappa)}"


def model_lines(models: Sequence[dict]) -> list[list[str]]:
    """The counts of several models (see ``count.json``) in lines, the first its head."""
    lines = [["model", "labelled", "found", "sum of differences", "kappa", "counted"]]
    for m in models:
        numbers = [f"{m[key]:,}" for key in ("labelled", "found", "difference")]
        lines.append([m["model"], *numbers, rate(m["kappa"]), m["rule"]])
    return lines


def cost_lines(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """The costs of ``cost.csv`` in lines, the first its head: in the units of the paper's Table 2."""
    units = {"parameters": ("params (M)", 1e-6), "fps": ("FPS", 1)}
    columns = [key for key in (rows[0] if rows else ()) if any(row[key] for row in rows)]
    lines = [[units.get(key, (key.replace("_", " "), 1))[0] for key in columns]]
    for row in rows:
        lines.append([_number(float(row[k] or nan) * units[k][1]) if k in units else row[k] for k in columns])
    return lines


def slide_count(differential: Differential, threshold: str) -> str:
    """Return a slide's differential count: a line per type with cells, percent of the classified and its exact 95 %
    limits, and the unclassified by reason."""
    lines = [["type", "cells", "percent", "95 % limits"]]
    for row in differential.rows():
        if row["why"]:
            lines.append([f"{row['type']}, {row['why']}", f"{row['cells']:,}", "", ""])
        else:
            limits = _limits(row["low95"], row["high95"])
            lines.append([row["type"], f"{row['cells']:,}", _number(row["percent"]), limits])
    without = sum(differential.unclassified.values())
    lines.append(["all", f"{differential.classified + without:,}", "", ""])
    note = f"percents are of the {differential.classified:,} classified cells, with scores from {threshold}"
    return f"{aligned(lines, head=1)}\n{note}"


def warnings(split: str, dataset: Dataset, max_detections: int = MAX_DETECTIONS, max_shown: int = 3) -> str:
    """Return what was fixed or left out in a split, with the first few warnings, and which images have more cells than
    are detected; "" if there is nothing to say."""
    lines = [f"{split}: {note}" for note in dataset.notes]
    if dataset.warnings:
        lines += [f"{split}: {len(dataset.warnings)} warnings, all in warnings.txt, such as:"]
        lines += [f"  {warning}" for warning in dataset.warnings[:max_shown]]
    cells = dataset.counts_per_image().sum(1)
    if crowded := [s.image for s, n in zip(dataset.samples, cells, strict=True) if n > max_detections]:
        problem = f"{len(crowded)} images have more than {max_detections} cells (up to {cells.max()})"
        remedy = "no more are detected per image, unless --max-detections is raised"
        lines.append(one_line(f"{split}: {problem}, such as {crowded[0]}; {remedy}"))
    return "\n".join(lines)


def at_cap(images: Sequence[Path], max_detections: int) -> str:
    """Return a line about the images that have as many detections as there may be; "" if there are none."""
    if not images:
        return ""
    problem = f"{len(images)} images have as many detections as the cap of {max_detections}, such as {images[0]}"
    return one_line(f"{problem}: cells may be missing there; --max-detections raises it")


def tiny_cells(images: Iterable[tuple[Path, float]], least: float = TINY) -> str:
    """Return a line about the images on which a cell is hardly found, by how many pixels of the network it has on each,
    fewer than ``least``; "" if there are none."""
    tiny = [(side, path) for path, side in images if side < least]
    if not tiny:
        return ""
    side, path = min(tiny)
    problem = f"{len(tiny)} images are shrunk so far that a cell has less than {least:.0f} pixels at the network"
    return one_line(f"{problem}, such as {path} ({side:.0f}): cells are missed there; cut them by --tiles")


def odd_cells(sides: Sequence[tuple[float, float]]) -> str:
    """Return a line where the found cells are not as wide as tiles were made for, by both widths of each in pixels of
    its image; "" where they are, or are too few to tell."""
    if len(sides) < LEAST_SIDES:
        return ""
    found, expected = np.median(sides, axis=0)
    if 1 / ODD <= found / expected <= ODD:
        return ""
    problem = f"the found cells are {found:.0f} pixels wide in the median, and tiles were made for {expected:.0f}"
    return f"{problem}; if {found:.0f} is right, --cell-size {found:.0f} shows them as in training"


def rate(value: float | None) -> str:
    """Write a rate (0..1) as the paper does: three decimals without the zero before the point; nan as "-"."""
    return _number(value, 3).removeprefix("0")


def aligned(lines: Sequence[Sequence[str]], head: int) -> str:
    """Align cells to columns, the first to the left and the others to the right, with a rule under ``head`` lines."""
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


def signed(difference: int) -> str:
    """Write a difference of counts: "+3", "-3", "0"."""
    return f"{difference:+,}" if difference else "0"


def _limits(low: float, high: float) -> str:
    return "-" if isnan(low) else f"{low:.1f} to {high:.1f}"


def _number(value: float | None, decimals: int = 1) -> str:
    return "-" if value is None or isnan(value) else f"{value:.{decimals}f}"
