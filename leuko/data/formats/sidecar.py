"""``leuko.json`` in the folder of a data set: what VOC and YOLO have no place for.

Its sections: ``category_ids`` by class name, where they are not 1, 2, ...; ``ids`` (VOC): the images' ids by split and
file name, where they are not 1, 2, ...; ``images`` (YOLO): by path in the folder each image's id, group and factors,
its cells' factors and attributes in the order of the label file's lines, and crowds with boxes in fractions of the
image, since YOLO would take them for cells. Other sections are ignored.
The file is written only where there is something to keep.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...errors import LeukoError
from ...io import read_json, write_text
from ...kinds import fits, misfit
from ..dataset import Dataset, LabelWarning, Sample
from .records import Annotation, Record

SIDECAR = "leuko.json"
_SECTIONS = {"category_ids": dict[str, int], "ids": dict[str, dict[str, int]], "images": dict[str, dict]}


def read(folder: Path) -> dict[str, dict]:
    """The sections of a folder's sidecar; {} without one. Raises LeukoError."""
    file = folder / SIDECAR
    content = read_json(file) if file.is_file() else {}
    if problem := misfit(content, _SECTIONS, optional=_SECTIONS, more=True):
        raise LeukoError(f"{file}: {problem}; restore or remove the file")
    return content


def read_near(folder: Path) -> tuple[Path, dict[str, dict]]:
    """The folder of a data set that holds the images in ``folder``, at most two levels up, and its sidecar."""
    root = next((p for p in (folder, *list(folder.parents)[:2]) if (p / SIDECAR).is_file()), folder)
    return root, read(root)


def update(folder: Path, **sections: dict) -> None:
    """Merge entries into the sections of a folder's sidecar; what is empty is removed."""
    content = read(folder)
    for key, entries in sections.items():
        content[key] = {name: entry for name, entry in {**content.get(key, {}), **entries}.items() if entry != {}}
    if any(content.values()) or (folder / SIDECAR).is_file():
        kept = {key: section for key, section in content.items() if section}
        write_text(folder / SIDECAR, json.dumps(kept, ensure_ascii=False) + "\n", errors="strict")


def category_ids(dataset: Dataset) -> dict[str, int]:
    """The section ``category_ids`` of a data set."""
    usual = dataset.category_ids == list(range(1, len(dataset.types) + 1))
    return {} if usual else dict(zip(dataset.types, dataset.category_ids, strict=True))


# ---------------------------------------------------------------- images of a YOLO data set


def describe(sample: Sample, types: Sequence[str]) -> dict:
    """What YOLO labels cannot hold of a sample, except for its id."""
    cells, crowds = [], []
    for i, (factors, attributes) in enumerate(zip(sample.cell_factors, sample.attributes, strict=True)):
        about = ({"factors": list(factors)} if factors else {}) | ({"attributes": attributes} if attributes else {})
        if sample.crowd[i]:
            size = (sample.width, sample.height) * 2
            box = [value / side for value, side in zip(sample.boxes[i].tolist(), size, strict=True)]
            crowds.append({"name": types[sample.labels[i]], "box": box, **about})
        else:
            cells.append(about)
    about = {"group": sample.group, "factors": list(sample.factors), "cells": cells if any(cells) else []}
    return {key: value for key, value in (about | {"crowds": crowds}).items() if value}


def add_to(record: Record, root: Path, content: dict[str, dict], warnings: list[LabelWarning]) -> None:
    """Add to a YOLO record what the sidecar ``content`` of the folder ``root`` holds about it."""
    about = content.get("images", {}).get(record.image.relative_to(root).as_posix())
    if about is None:
        return
    try:
        record.id, record.group = about.get("id"), str(about.get("group", ""))
        if not fits(record.id, int | None):
            raise TypeError(f"id {record.id!r:.40} is not a whole number")
        record.factors = tuple(map(str, about.get("factors", ())))
        cells = [_of_cell(cell) for cell in about.get("cells", ())]
        crowds = [_crowd(i, crowd) for i, crowd in enumerate(about.get("crowds", ()), 1)]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        place = f"{root / SIDECAR}: {record.image.name}"
        raise LeukoError(f"{place}: broken ({error}); restore or remove the file") from error
    if cells and len(cells) != len(record.annotations):
        problem = f"describes {len(cells)} cells, the label file {len(record.annotations)}"
        action = "their factors and attributes are left out"
        warnings.append(LabelWarning(root / SIDECAR, record.image.name, problem, action))
    elif cells:
        record.annotations = [a._replace(**cell) for a, cell in zip(record.annotations, cells, strict=True)]
    record.annotations += crowds


def _of_cell(about: dict) -> dict:
    return {"factors": tuple(about.get("factors", ())), "attributes": dict(about.get("attributes", {}))}


def _crowd(number: int, about: dict) -> Annotation:
    x0, y0, x1, y1 = map(float, about["box"])
    where = f"crowd {number} in {SIDECAR}"
    return Annotation(where, str(about["name"]), (x0, y0, x1, y1), crowd=True, **_of_cell(about))
