"""How many cells the mutated label files of `mutations.py` hold, counted without leuko.

Each function takes the bytes of the first image's label file, or of a list, and returns the cells of the whole data
set; None where they are no longer to be told.
"""

from __future__ import annotations

import json
from xml.etree import ElementTree

BOXES = ([[3, 4, 20, 30], [25, 5, 60, 40], [10, 42, 30, 63]], [[5, 5, 40, 40]], [[2, 2, 20, 20], [30, 30, 60, 60]])
CELLS = sum(map(len, BOXES))  # of the three images of the data set


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def same(data: bytes) -> int:
    """All cells: the file holds none."""
    return CELLS


def voc(data: bytes) -> int | None:
    """Elements that have corners, at any depth and under any name, beside those of the other two files."""
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError):
        return None
    corners = {"xmin", "ymin", "xmax", "ymax"}
    boxes = sum(corners <= {str(child.tag).lower() for child in element} for element in root.iter())
    objects = sum(str(element.tag).lower() in ("object", "objects") for element in root.iter())
    return max(boxes, objects) + CELLS - len(BOXES[0])


def coco(data: bytes) -> int | None:
    """Entries of every list of annotations, even of those that a second key of that name hides."""
    lists: list[int] = []

    def note(pairs: list[tuple[str, object]]) -> dict:
        lists.extend(len(v) for k, v in pairs if k.strip().lower() == "annotations" and isinstance(v, list))
        return dict(pairs)

    try:
        json.loads(_text(data) or "", object_pairs_hook=note)
    except (ValueError, RecursionError):
        return None
    return sum(lists)


def yolo(data: bytes) -> int | None:
    """Lines that are not blank, beside those of the other two files."""
    text = _text(data)
    return None if text is None else sum(map(bool, map(str.strip, text.splitlines()))) + CELLS - len(BOXES[0])


def listed(data: bytes) -> int | None:
    """The cells of the images that are listed; None where a line is no longer one of them."""
    numbers = {f"{folder}{i}{end}": i for i in range(3) for folder, end in (("", ""), ("images/train/", ".jpg"))}
    lines = [line.strip() for line in (_text(data) or "?").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    known = all(line in numbers for line in lines)
    return sum(len(BOXES[numbers[line]]) for line in lines) if known else None
