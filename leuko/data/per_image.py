"""A CSV file that says something of each image: its group, or the type of its cells.

The column ``image`` holds a path or the end of one, with or without the suffix.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path, PurePosixPath

from ..errors import LeukoError
from ..io import read_text


def read_column(file: Path, column: str) -> dict[tuple[str, ...], str]:
    """What the column says, by the parts of the images' paths; raises LeukoError."""
    reader = csv.DictReader(io.StringIO(read_text(file), newline=None))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise LeukoError(f"{file}: line {reader.reader.line_num}: broken CSV: {error}; save it again") from error
    if not rows or not {"image", column} <= set(rows[0]):
        raise LeukoError(f"{file}: has no columns image and {column}; give them in its first line")
    values: dict[tuple[str, ...], str] = {}
    for row in rows:
        path, value = PurePosixPath((row["image"] or "").replace("\\", "/")).parts, (row[column] or "").strip()
        if values.setdefault(path, value) != value:
            raise LeukoError(f"{file}: {row['image']} has two of {column}: {values[path]} and {value}; keep one")
    return values


def value_of(values: dict[tuple[str, ...], str], image: Path) -> str:
    """What is said of an image, by the longest path that fits; "" for nothing."""
    parts = image.absolute().parts
    ends = (end for i in range(len(parts)) for end in (parts[i:], (*parts[i:-1], image.stem)))
    return next((values[end] for end in ends if end in values), "")
