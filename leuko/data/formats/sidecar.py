"""``leuko.json`` beside VOC and YOLO labels: what these formats have no place for.

Category ids for both; for YOLO also each image's id, group and factors, and each cell's factors and attributes, in the
order of the lines of its label file. Crowds, which YOLO would take for cells, stand only here, with boxes in fractions
of the image. The file is written only where there is something to keep.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...errors import LeukoError
from ...io import read_text, write_text
from ..dataset import Dataset, LabelWarning, Sample
from .records import Cell, Record

SIDE_FILE = "leuko.json"


def category_ids(folder: Path) -> dict[str, int]:
    """Class names and their ids in COCO files, as the side file of a data set's folder states them; {} without one."""
    ids = _mapping(folder, "category_ids")
    if not all(isinstance(i, int) for i in ids.values()):
        raise LeukoError(f'{folder / SIDE_FILE}: "category_ids" does not map names to numbers; restore or remove it')
    return ids


def keep(folder: Path, dataset: Dataset, images: Sequence[Path] = (), numbered: Sequence[int] = ()) -> None:
    """Enter a split's category ids and, of the ``images`` written for its samples, what YOLO labels cannot hold.

    ``numbered`` are the ids that the images would get without it.
    """
    content = _load(folder)
    if dataset.category_ids != list(range(1, len(dataset.types) + 1)):
        content["category_ids"] = dict(zip(dataset.types, dataset.category_ids, strict=True))
    ids_differ = [s.id for s in dataset.samples] != list(numbered)
    for sample, image in zip(dataset.samples, images, strict=bool(images)):
        about = {"id": sample.id} if ids_differ else {}
        if about := about | _about(sample, dataset.types):
            content.setdefault("images", {})[image.relative_to(folder).as_posix()] = about
    if content:
        write_text(folder / SIDE_FILE, json.dumps(content, ensure_ascii=False) + "\n")


def keep_originals(folder: Path, links: dict[str, dict]) -> None:
    """Enter the original (its path from the folder, width and height) of each image, by the image's path in it."""
    write_text(folder / SIDE_FILE, json.dumps({**_load(folder), "originals": links}, ensure_ascii=False) + "\n")


def original_of(image: Path) -> tuple[Path, int, int] | None:
    """The original of an image of a resized data set, its width and its height; None where none is noted.

    Raises LeukoError where the note is broken.
    """
    image = image.resolve()
    for root in list(image.parents)[:3]:
        about = _mapping(root, "originals").get(image.relative_to(root).as_posix())
        if about is not None:
            try:
                return (root / str(about["image"])).resolve(), int(about["width"]), int(about["height"])
            except (KeyError, OverflowError, TypeError, ValueError) as error:
                raise LeukoError(
                    f"{root / SIDE_FILE}: originals: {image.name}: broken ({error}); resize anew"
                ) from error
    return None


def _about(sample: Sample, types: Sequence[str]) -> dict:
    cells, crowds = [], []
    for i, (factors, attributes) in enumerate(zip(sample.cell_factors, sample.attributes, strict=True)):
        about = ({"factors": list(factors)} if factors else {}) | ({"attributes": attributes} if attributes else {})
        if sample.crowd[i]:
            size = (sample.width, sample.height) * 2
            box = [value / side for value, side in zip(sample.boxes[i].tolist(), size, strict=True)]
            crowds.append({"name": types[sample.labels[i]], "box": box, **about})
        else:
            cells.append(about)
    found = {"group": sample.group, "factors": list(sample.factors), "cells": cells if any(cells) else []}
    return {key: value for key, value in (found | {"crowds": crowds}).items() if value}


class Side:
    """The side files near a split's images, read once each."""

    def __init__(self) -> None:
        self._folders: dict[Path, tuple[Path, dict]] = {}

    def add_to(self, record: Record, warnings: list[LabelWarning]) -> None:
        """Add to a YOLO record what a side file in a folder above its image says of it."""
        root, images = self._of(record.image.parent)
        about = images.get(record.image.relative_to(root).as_posix())
        if about is None:
            return
        try:
            record.id, record.group = about.get("id"), str(about.get("group", ""))
            if record.id is not None and type(record.id) is not int:
                raise ValueError(f"id {record.id!r:.40} is no whole number")
            record.factors = tuple(map(str, about.get("factors", ())))
            cells = [(tuple(c.get("factors", ())), dict(c.get("attributes", {}))) for c in about.get("cells", ())]
            crowds = [_crowd(i, c) for i, c in enumerate(about.get("crowds", ()), 1)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LeukoError(
                f"{root / SIDE_FILE}: {record.image.name}: broken ({error}); restore or remove it"
            ) from error
        if cells and len(cells) != len(record.cells):
            problem = f"tells of {len(cells)} cells, the label file of {len(record.cells)}"
            warnings.append(
                LabelWarning(root / SIDE_FILE, record.image.name, problem, "their factors and attributes are left out")
            )
            cells = []
        for i, (factors, attributes) in enumerate(cells):
            record.cells[i] = record.cells[i]._replace(factors=factors, attributes=attributes)
        record.cells += crowds

    def _of(self, folder: Path) -> tuple[Path, dict]:
        if folder not in self._folders:
            near = (folder, *list(folder.parents)[:2])
            root = next((p for p in near if (p / SIDE_FILE).is_file()), folder)
            self._folders[folder] = root, _mapping(root, "images")
        return self._folders[folder]


def _crowd(number: int, about: dict) -> Cell:
    x0, y0, x1, y1 = map(float, about["box"])
    factors, attributes = tuple(about.get("factors", ())), dict(about.get("attributes", {}))
    return Cell(f"crowd {number} in {SIDE_FILE}", str(about["name"]), (x0, y0, x1, y1), True, factors, attributes)


def _mapping(folder: Path, key: str) -> dict:
    """What the side file of a folder says under a key; {} where it says nothing."""
    value = _load(folder).get(key, {})
    if not isinstance(value, dict):
        raise LeukoError(f'{folder / SIDE_FILE}: "{key}" is no mapping; restore or remove it')
    return value


def _load(folder: Path) -> dict:
    file = folder / SIDE_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise LeukoError(f"{file}: broken JSON ({error}); restore or remove it") from error
    if not isinstance(content, dict):
        raise LeukoError(f"{file}: no mapping; restore or remove it")
    return content
