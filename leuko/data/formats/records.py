"""What label files contain, before it is checked against the images, and the errors in them.

The readers of VOC, COCO and YOLO turn files into ``Labels``; ``validate`` turns these into a checked ``Dataset``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ...errors import LeukoError
from ...io import read_text
from ..dataset import LabelWarning, Note


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


@dataclass
class Labels:
    """The content of folders, lists or COCO files. ``names`` are the classes by index, where a ``classes.txt`` lists
    them; ``categories`` maps class names to ids, where there are ids."""

    records: list[Record] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)

    def add(self, other: Labels) -> None:
        """Add the records and categories of another part; its ids are kept where they are free."""
        self.records += other.records
        for name, number in other.categories.items():
            taken = self.categories.values()
            self.categories.setdefault(name, number if number not in taken else max(taken) + 1)

    def class_names(self) -> set[str]:
        """The names of its categories and of its objects' classes."""
        return {*self.categories, *(a.name for record in self.records for a in record.annotations)}

    def rename(self, new_name: Callable[[str], str]) -> None:
        """Give all classes other names; several may become one."""
        for record in self.records:
            record.annotations = [a._replace(name=new_name(a.name)) for a in record.annotations]
        self.names = {index: new_name(name) for index, name in self.names.items()}
        categories: dict[str, int] = {}
        for name, number in self.categories.items():
            categories.setdefault(new_name(name), number)
        self.categories = categories


@dataclass
class ReadOptions:
    """How the labels of a data set are to be read: what a data YAML says (see ``source``).

    ``root`` is the data set's folder, which no name in a label file or list may leave.
    """

    root: Path
    names: dict[int, str] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    voc_origin: Literal[0, 1] = 0
    bbox: Literal["", "xywh", "xyxy"] = ""  # of COCO; found out if empty
    rows: Literal["", "polygons", "keypoints"] = ""  # of YOLO, what more than four numbers are; found out if empty
    exif: Literal["", "turned", "stored"] = ""  # "turned" where labels belong to the image as EXIF turns it
    crowds: Literal["regions", "cells"] = "regions"  # what COCO's iscrowd marks


class Problems:
    """What is met while a data set is read: errors, of which one is raised, with the number of others of its kind;
    ``warnings`` of what was fixed or left out, ``notes`` of what holds for a whole split, and ``hidden`` images, which
    were ignored (see ``images.is_hidden``).

    With ``collect`` no error is raised, and what can be read is read (for ``leuko data check``).
    """

    def __init__(self, collect: bool = False) -> None:
        self.by_kind: dict[str, list[str]] = {}
        self.warnings: list[LabelWarning] = []
        self.notes: list[Note] = []
        self.hidden: list[Path] = []
        self.collect = collect

    def add(self, kind: str, message: str) -> None:
        """Remember an error; errors of one ``kind`` are counted together."""
        self.by_kind.setdefault(kind, []).append(message)

    @contextmanager
    def catch(self, kind: str, place: str = "") -> Iterator[None]:
        """Remember a LeukoError of the block, with the file and object that it is about in front."""
        try:
            yield
        except LeukoError as error:
            self.add(kind, f"{place}: {error}" if place else str(error))

    def stop(self) -> None:
        """Raise LeukoError if there was an error."""
        for messages in () if self.collect else self.by_kind.values():
            more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
            raise LeukoError(messages[0] + more)


def parse_names(names: object, file: Path) -> dict[int, str]:
    """A data YAML's ``names``, a list or a mapping of index to name, in the order of the indices.

    Raises LeukoError where a name occurs twice or is not a name: YAML reads an unquoted NO as "false".
    """
    if not isinstance(names, dict | list | None):
        raise LeukoError(f"{file}: names: {names!r:.60} is neither a list nor a mapping of index to name")
    pairs = names.items() if isinstance(names, dict) else enumerate(names or [])
    result: dict[int, str] = {}
    for index, name in sorted(pairs, key=lambda pair: str(pair[0]).zfill(9)):
        if isinstance(index, bool) or not str(index).isdecimal():
            raise LeukoError(f"{file}: names: {index!r} is not an index; write 0, 1, 2, ... before the names")
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise LeukoError(f"{file}: names: {index}: {name!r} is not a name; write one, in quotes if it is YAML")
        if str(name).strip() in result.values():
            raise LeukoError(f'{file}: names: "{name}" is listed twice; keep one')
        result[int(index)] = str(name).strip()
    return result


def read_names(file: Path) -> dict[int, str]:
    """The classes of a ``classes.txt`` by index, one per line; an empty line is an error, except at the end."""
    return parse_names(read_text(file).rstrip().splitlines(), file)
