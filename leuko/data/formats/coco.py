"""COCO: one JSON file per split, with ``images``, ``annotations`` and ``categories``; the images lie near it.

Category and image ids are kept, so that results files fit the labels they came from. Further keys that leuko reads:
``factors`` of images and annotations (lists of interference factors), ``group``, ``smear`` or ``patient`` of images.
Masks and areas are not kept: leuko's cells are boxes, and an area is its box's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import LeukoError
from ...io import io_errors_as, make_folder, read_json, write_text
from ..dataset import Dataset
from ..images import is_hidden
from .files import ImageFinder
from .place import place_images
from .records import Annotation, Labels, Problems, ReadOptions, Record
from .sidecar import SIDECAR

IMAGES, PART = "images", "{split}.json"
_GROUPS = ("group", "smear", "patient")
_OWN = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "factors")  # no attributes
_RESERVED = "reserved"  # the key for attributes that have the name of one of those
_NO_CATEGORY = ("none", "", None)
_FAR, _NEAR = 1.1, 1.02  # times the image's side: a box beyond the first leaves it, one within the second fits
_MANY, _ENOUGH = 0.3, 4  # of the boxes: as corners mistaken for sizes, those in three of four quarters leave the image
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
    """``train.json`` and ``instances_train2017.json`` hold the split ``train``; what a tool calls its only file
    (Roboflow, Label Studio, FiftyOne) is ``all``."""
    if file.stem.startswith("_annotations") or file.stem in ("result", "labels", "annotations"):
        return "all"
    return re.sub(r"^instances_|(?<=[a-z])20\d\d$", "", file.stem)


def is_coco(file: Path) -> bool:
    """Whether the start of a file looks like COCO labels: a results file is a list, and Label Studio's ``notes.json``
    has categories only."""
    if file.suffix.lower() != ".json" or file.name == SIDECAR or is_hidden(file.name) or not file.is_file():
        return False
    with io_errors_as("read", file), open(file, "rb") as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and any(f'"{key}"'.encode() in start for key in ("images", "annotations"))


def parse(part: Path, problems: Problems, options: ReadOptions) -> Labels:
    """Read a COCO file; raises LeukoError where it is broken as a whole, and adds single errors to ``problems``."""
    reader = _Reader(part)
    finder = ImageFinder(options.root)
    reader.each("image", partial(reader.add_image, finder), problems)
    reader.each("annotation", reader.add_annotation, problems)
    labels = Labels(list(reader.records.values()), notes=finder.notes())
    labels.categories = {name: number for number, name in sorted(reader.names.items())}
    form = options.bbox or _bbox_form(part, labels.records)
    if form == "xyxy":
        for record in labels.records:
            record.annotations = [a._replace(box=_as_corners(a.box)) for a in record.annotations]
    if form != options.bbox and form == "xyxy":
        labels.notes.append(f'{part}: its boxes are corners (x0 y0 x1 y1), as "bbox: xyxy" in a data YAML would say')
    return labels


def class_names(parts: Iterable[Path]) -> set[str]:
    """The names of all categories of the files."""
    return {name for file in parts for name in _Reader(file).names.values()}


def _as_corners(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """What was taken for x, y, width and height as the corners that it is."""
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0


def _bbox_form(part: Path, records: Sequence[Record]) -> str:
    """Whether the boxes of a file are COCO's ``xywh`` or, as some tools write them, ``xyxy``; LeukoError where both may
    be meant: no box is wrong as corners, but a few leave their image as COCO's."""
    boxes = np.array([a.box for r in records for a in r.annotations if r.size]).reshape(-1, 4)
    sizes = np.array([r.size for r in records for a in r.annotations if r.size]).reshape(-1, 2)
    corners = boxes.copy()
    corners[:, 2:] -= boxes[:, :2]
    leaves = (boxes[:, 2:] > _FAR * sizes).any(1)
    fits = (corners[:, :2] < corners[:, 2:]).all(1) & (corners[:, 2:] <= _NEAR * sizes).all(1)
    if not fits.all() or not leaves.any():
        return "xywh"
    if leaves.mean() >= _MANY and len(boxes) >= _ENOUGH:
        return "xyxy"
    raise LeukoError(
        f"{part}: {leaves.sum()} of {len(boxes)} boxes leave their image as [x, y, width, height], and all fit as "
        'corners [x0, y0, x1, y1]; write "bbox: xywh" or "bbox: xyxy" in a data YAML'
    )


class _Reader:
    """The content of a COCO file: ``names`` of the categories and ``records`` of the images, both by id."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: dict[int, str] = {}
        self.records: dict[int, Record] = {}
        self.content = read_json(file)
        for key in _LISTS.values():
            if not isinstance(self.content, dict) or not isinstance(self.content.get(key), list):
                raise LeukoError(f'{file}: no list "{key}"; a COCO file has {", ".join(_LISTS.values())}')
        split, stem, here = split_name(file), file.stem.removeprefix("instances_"), file.parent
        self.folders = [  # where the images may lie
            root / place
            for root in (here, *([here.parent] if here.name == "annotations" else []))
            for place in (".", "images", "data", f"images/{split}", split, stem)
        ]
        problems = Problems()
        self.each("category", self.add_category, problems)
        problems.stop()
        self._drop_root_category()

    def _drop_root_category(self) -> None:
        """Forget a category that is only the supercategory of the others (Roboflow), and that no cell has."""
        categories = self.content["categories"]
        above = {entry.get("supercategory") for entry in categories if entry.get("supercategory") != entry["name"]}
        used = {str(entry.get("category_id")) for entry in self.content["annotations"] if isinstance(entry, dict)}
        roots = [entry for entry in categories if entry["name"] in above and entry.get("supercategory") in _NO_CATEGORY]
        for entry in roots:
            if str(entry["id"]) not in used:
                del self.names[_whole(entry, "id")]

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
        self.names[_whole(entry, "id")] = name.strip()

    def add_image(self, finder: ImageFinder, where: str, entry: dict) -> None:
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise LeukoError(f'"file_name" is {name!r}; name the image')
        try:
            image = finder.find(name, self.folders)
        except LeukoError as error:
            raise LeukoError(f"file_name {error}") from None
        is_stated = entry.get("width") is not None and entry.get("height") is not None
        number = _whole(entry, "id")
        self.records[number] = Record(
            self.file,
            image,
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
        corners, crowd = (x, y, x + width, y + height), _crowd(entry)
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
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)  # some exporters write ids as texts
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        raise LeukoError(f'"{key}" is {value!r:.40}, not a whole number; correct it')
    return int(value)


def _crowd(entry: dict) -> bool:
    value = entry.get("iscrowd")
    if value not in (None, False, True, "0", "1"):
        raise LeukoError(f'"iscrowd" is {value!r:.40}, neither 0 nor 1; correct it')
    return value in (True, "1")


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
