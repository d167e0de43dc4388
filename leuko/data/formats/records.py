"""What label files contain, before it is checked against the images.

The readers of VOC, COCO and YOLO turn files into ``Labels``; ``validate`` turns these into a checked ``Dataset``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import LeukoError
from ...io import one_line
from ..dataset import LabelWarning


class Annotation(NamedTuple):
    """One object of a label file: its place in the file (``object 3``), class name and box."""

    where: str
    name: str
    box: tuple[float, float, float, float]  # xyxy, in pixels or, where the record is relative, in fractions
    crowd: bool = False
    factors: tuple[str, ...] = ()
    attributes: dict = {}  # noqa: RUF012  never changed


@dataclass
class Record:
    """One image as its label file describes it.

    ``file`` is the label file and ``where`` the entry for the image in it (COCO's ``image 7``, else ""). ``size`` is
    the stated (width, height), or None. ``relative``: boxes are fractions of the image, as in YOLO.
    """

    file: Path
    image: Path
    annotations: list[Annotation]
    where: str = ""
    id: int | None = None
    size: tuple[int, int] | None = None
    relative: bool = False
    factors: tuple[str, ...] = ()
    group: str = ""

    def place(self, annotation: Annotation | None = None) -> str:
        """The file and the object, for a message."""
        parts = (str(self.file), self.where, annotation.where if annotation else "")
        return ": ".join(part for part in parts if part)


@dataclass
class Labels:
    """The content of one folder, list or COCO file. ``names`` are its classes in order, where a ``classes.txt`` lists
    them; ``categories`` maps class names to ids, where there are ids."""

    records: list[Record] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)
    warnings: list[LabelWarning] = field(default_factory=list)


class Problems:
    """Errors met while a data set is read. One of them is raised, with the number of others of its kind.

    With ``collect`` none is raised, and what can be read is read (for ``leuko data check``).
    """

    def __init__(self, collect: bool = False) -> None:
        self.by_kind: dict[str, list[str]] = {}
        self.collect = collect

    def add(self, kind: str, message: str) -> None:
        """Remember an error; errors of one ``kind`` are counted together."""
        self.by_kind.setdefault(kind, []).append(message)

    def stop(self) -> None:
        """Raise LeukoError if there was an error."""
        for messages in () if self.collect else self.by_kind.values():
            more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
            raise LeukoError(one_line(messages[0]) + more)
