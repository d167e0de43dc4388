"""COCO: one JSON file per split, with ``images``, ``annotations`` and ``categories``; the images lie near it.

Category and image ids are kept, so that results files fit the labels they came from. Further keys that leuko reads:
``factors`` of images and annotations (lists of interference factors), ``group``, ``smear`` or ``patient`` of images.
Masks and areas are not kept: leuko's cells are boxes, and an area is its box's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from ...errors import LeukoError
from ...io import make_folder, read_text, write_text
from ..dataset import Dataset
from .place import place_images
from .records import Annotation, Labels, Problems, Record
from .sidecar import SIDECAR

IMAGES, PART = "images", "{split}.json"
_GROUPS = ("group", "smear", "patient")
_OWN = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "factors")  # no attributes
_RESERVED = "reserved"  # the key for attributes that have the name of one of those
_LISTS = {"image": "images", "annotation": "annotations", "category": "categories"}


# ---------------------------------------------------------------- reading


def find(folder: Path) -> dict[str, Path]:
    """The splits that a folder holds as COCO files, directly or in ``annotations/``, by name.

    Raises LeukoError where two files hold the same split.
    """
    for place in (folder, folder / "annotations"):
        files = [p for p in sorted(place.iterdir()) if is_coco(p)] if place.is_dir() else []
        parts: dict[str, Path] = {}
        for file in files:
            if (other := parts.setdefault(split_name(file), file)) is not file:
                both = f"{other.name} and {file.name} are both the split {split_name(file)}"
                raise LeukoError(f"{place}: {both}; write a data YAML that names the one to take, or both in a list")
        if parts:
            return parts
    return {}


def split_name(file: Path) -> str:
    """``train.json`` and ``instances_train2017.json`` hold the split ``train``; Roboflow's only file is ``all``."""
    if file.stem.startswith("_annotations"):
        return "all"
    return re.sub(r"^instances_|(?<=[a-z])20\d\d$", "", file.stem)


def is_coco(file: Path) -> bool:
    """Whether the start of a file looks like COCO labels (a results file is a list, and does not)."""
    if file.suffix.lower() != ".json" or file.name == SIDECAR or not file.is_file():
        return False
    with open(file, "rb") as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and any(f'"{key}"'.encode() in start for key in _LISTS.values())


def parse(part: Path, problems: Problems, **_: object) -> Labels:
    """Read a COCO file; raises LeukoError where it is broken as a whole, and adds single errors to ``problems``."""
    reader = _Reader(part)
    reader.each("image", reader.add_image, problems)
    reader.each("annotation", reader.add_annotation, problems)
    categories = {name: number for number, name in sorted(reader.names.items())}
    return Labels(list(reader.records.values()), categories=categories)


def class_names(parts: Iterable[Path]) -> set[str]:
    """The names of all categories of the files."""
    return {name for file in parts for name in _Reader(file).names.values()}


class _Reader:
    """The content of a COCO file: ``names`` of the categories and ``records`` of the images, both by id."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: dict[int, str] = {}
        self.records: dict[int, Record] = {}
        text = read_text(file)
        try:
            self.content = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise LeukoError(f"{file}: broken JSON: {error}") from error
        for key in _LISTS.values():
            if not isinstance(self.content, dict) or not isinstance(self.content.get(key), list):
                raise LeukoError(f'{file}: no list "{key}"; a COCO file has {", ".join(_LISTS.values())}')
        split, stem, here = split_name(file), file.stem.removeprefix("instances_"), file.parent
        self.folders = [  # where the images may lie
            root / place
            for root in (here, *([here.parent] if here.name == "annotations" else []))
            for place in (".", "images", f"images/{split}", split, stem)
        ]
        problems = Problems()
        self.each("category", self.add_category, problems)
        problems.stop()

    def each(self, kind: str, add: Callable[[str, dict], None], problems: Problems) -> None:
        """Call ``add(where, entry)`` for the entries of a list; ``where`` is, for example, ``image 7 (a.jpg)``."""
        seen = set()
        for i, entry in enumerate(self.content[_LISTS[kind]], 1):
            where = f"{kind} number {i}"
            try:
                if not isinstance(entry, dict):
                    raise LeukoError(f"{entry!r:.40} is not a mapping; remove it")
                if "id" in entry or kind != "annotation":
                    number, name = _whole(entry, "id"), entry.get("file_name", entry.get("name"))
                    where = f"{kind} {number} ({name})" if isinstance(name, str) else f"{kind} {number}"
                    if number in seen:
                        raise LeukoError("its id is used twice; give it one of its own")
                    seen.add(number)
                add(where, entry)
            except LeukoError as error:
                problems.add(kind, f"{self.file}: {where}: {error}")

    def add_category(self, _: str, entry: dict) -> None:
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            raise LeukoError(f'"name" is {name!r}; give the class a name')
        if name.strip() in self.names.values():
            raise LeukoError("its name is used twice; keep one")
        self.names[int(entry["id"])] = name.strip()

    def add_image(self, where: str, entry: dict) -> None:
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name:
            raise LeukoError(f'"file_name" is {name!r}; name the image')
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if os.path.isabs(name) or parts[0] == "/" or ".." in parts:
            raise LeukoError(f'file_name "{name}" leaves the data set\'s folder; name it relative to the images')
        paths = [folder.joinpath(*parts) for folder in self.folders]
        is_stated = entry.get("width") is not None and entry.get("height") is not None
        number = int(entry["id"])
        self.records[number] = Record(
            self.file,
            next(filter(os.path.isfile, paths), paths[0]),
            [],
            where=where,
            id=number,
            size=(_whole(entry, "width"), _whole(entry, "height")) if is_stated else None,
            factors=_factors(entry),
            group=str(next((entry[key] for key in _GROUPS if entry.get(key) is not None), "")),
        )

    def add_annotation(self, where: str, entry: dict) -> None:
        image, category, box = _whole(entry, "image_id"), _whole(entry, "category_id"), entry.get("bbox")
        if image not in self.records:
            raise LeukoError(f"image_id {image} is not among the images; correct it or remove the annotation")
        if category not in self.names:
            listed = ", ".join(f"{number} {name}" for number, name in self.names.items())
            raise LeukoError(f"unknown class, category_id {category}; the categories are {listed}; correct it")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise LeukoError(f"bbox {box!r:.60} is not [x, y, width, height]; correct or remove it")
        x, y, width, height = map(float, box)
        corners, crowd = (x, y, x + width, y + height), entry.get("iscrowd") == 1
        attributes = {key: value for key, value in entry.items() if key not in _OWN}
        if isinstance(attributes.get(_RESERVED), dict):
            attributes |= attributes.pop(_RESERVED)
        annotation = Annotation(where, self.names[category], corners, crowd, _factors(entry), attributes)
        self.records[image].annotations.append(annotation)


def _is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _whole(entry: dict, key: str) -> int:
    value = entry.get(key)
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        raise LeukoError(f'"{key}" is {value!r:.40}, not a whole number; correct it')
    return int(value)


def _factors(entry: dict) -> tuple[str, ...]:
    factors = entry.get("factors") or []
    if not isinstance(factors, list) or not all(isinstance(factor, str) for factor in factors):
        raise LeukoError(f'"factors" is {factors!r:.40}, not a list of names; correct it')
    return tuple(factors)


# ---------------------------------------------------------------- writing


def write(dataset: Dataset, folder: str | Path, split: str) -> list[Path]:
    """Write one split as ``SPLIT.json`` beside ``images/`` (linked or copied). Boxes come back bit for bit.

    Attributes of cells become keys of their annotations. Returns the images' new paths; raises LeukoError.
    """
    folder = make_folder(Path(folder))
    images = place_images([sample.image for sample in dataset.samples], folder / IMAGES)
    entries, annotations = [], []
    for sample, image in zip(dataset.samples, images, strict=True):
        entry = {"id": sample.id, "file_name": image.name, "width": sample.width, "height": sample.height}
        entry |= {"group": sample.group} if sample.group else {}
        entries.append(entry | ({"factors": list(sample.factors)} if sample.factors else {}))
        for i, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
            attributes = sample.attributes[i]
            reserved = {key: value for key, value in attributes.items() if key in (*_OWN, _RESERVED)}
            annotation = {key: value for key, value in attributes.items() if key not in reserved} | {
                "id": len(annotations) + 1,
                "image_id": sample.id,
                "category_id": dataset.category_ids[sample.labels[i]],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": int(sample.crowd[i]),
            }
            annotation |= {"factors": list(sample.cell_factors[i])} if sample.cell_factors[i] else {}
            annotations.append(annotation | ({_RESERVED: reserved} if reserved else {}))
    categories = [{"id": i, "name": name} for i, name in zip(dataset.category_ids, dataset.types, strict=True)]
    content = {"images": entries, "categories": categories, "annotations": annotations}
    write_text(folder / f"{split}.json", json.dumps(content, ensure_ascii=False), errors="strict")
    return images
