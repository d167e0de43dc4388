"""COCO: one JSON file per split, with ``images``, ``annotations`` and ``categories``; the images lie near it.

Category and image ids are kept, so that results files fit the labels they came from. Further keys that leuko reads:
``factors`` of images and annotations (lists of interference factors), ``group``, ``smear`` or ``patient`` of images.
Masks and areas are not kept: leuko's cells are boxes, and an area is its box's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import LeukoError
from ...io import io_errors_as, make_folder, read_json, write_text
from ...kinds import fits, misfit
from ..dataset import Dataset, Note
from ..images import is_hidden
from .files import ImageFinder, place_images
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
_OPTIONAL = ("iscrowd", "factors")
_KINDS = {  # what the entries must hold, beside whole numbers
    "category": {"name": str},
    "image": {"file_name": str, "factors": list[str] | None},
    "annotation": {"bbox": list[float], "iscrowd": object, "factors": list[str] | None},
}


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
    content = read_json(part)
    for key in _LISTS.values():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise LeukoError(f'{part}: no list "{key}"; a COCO file has {", ".join(_LISTS.values())}')
    names: dict[int, str] = {}
    categories: dict[int, dict] = {}
    for where, number, entry in _entries(part, content, "category", problems):
        with problems.catch("category", f"{part}: {where}"):
            name = entry["name"].strip()
            if not name or name in names.values():
                raise LeukoError("its name is empty or used twice; give it one of its own")
            names[number], categories[number] = name, entry
    for number in _root_categories(categories, content["annotations"]):
        del names[number]
    finder, folders = ImageFinder(options.root), _image_folders(part)
    records: dict[int, Record] = {}
    for where, number, entry in _entries(part, content, "image", problems):
        with problems.catch("image", f"{part}: {where}"):
            is_stated = entry.get("width") is not None and entry.get("height") is not None
            size = (_whole(entry, "width"), _whole(entry, "height")) if is_stated else None
            try:
                image = finder.find(entry["file_name"], folders)
            except LeukoError as error:
                raise LeukoError(f"file_name {error}") from None
            factors = tuple(entry.get("factors") or ())
            group = str(next((entry[key] for key in _GROUPS if entry.get(key) is not None), ""))
            records[number] = Record(part, image, [], where, number, size, factors=factors, group=group)
    for where, _, entry in _entries(part, content, "annotation", problems):
        with problems.catch("annotation", f"{part}: {where}"):
            if (image := _whole(entry, "image_id")) not in records:
                raise LeukoError(f"image_id {image} is not among the images; correct it or remove the annotation")
            records[image].annotations.append(_annotation(where, entry, names))
    problems.notes += finder.notes()
    labels = Labels(list(records.values()))
    labels.categories = {name: number for number, name in sorted(names.items())}
    form = options.bbox or _bbox_form(part, labels.records)
    if form == "xyxy":
        for record in labels.records:
            record.annotations = [a._replace(box=_as_corners(a.box)) for a in record.annotations]
        if not options.bbox:
            said = 'as "bbox: xyxy" in a data YAML would say'
            problems.notes.append(Note(f"{part}: its boxes are corners (x0 y0 x1 y1), {said}"))
    return labels


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


def _root_categories(categories: dict[int, dict], annotations: Sequence[object]) -> list[int]:
    """Categories that are only the supercategory of the others (Roboflow), and that no cell has."""
    above = {above for entry in categories.values() if isinstance(above := entry.get("supercategory"), str)}
    used = {str(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
    roots = (n for n, e in categories.items() if e["name"] in above and e.get("supercategory") in _NO_CATEGORY)
    return [number for number in roots if str(number) not in used]


def _image_folders(file: Path) -> list[Path]:
    """Where the images of a COCO file may lie."""
    split, stem, here = split_name(file), file.stem.removeprefix("instances_"), file.parent
    roots = (here, *([here.parent] if here.name == "annotations" else []))
    return [root / place for root in roots for place in (".", "images", "data", f"images/{split}", split, stem)]


def _entries(file: Path, content: dict, kind: str, problems: Problems) -> Iterator[tuple[str, int, dict]]:
    """The entries of a list that hold what they must: place, for example ``image 7 (a.jpg)``, id (annotations may have
    none), and entry."""
    seen = set()
    for i, entry in enumerate(content[_LISTS[kind]], 1):
        where, number = f"{kind} number {i}", -i
        try:
            if isinstance(entry, dict) and ("id" in entry or kind != "annotation"):
                number, name = _whole(entry, "id"), entry.get("file_name", entry.get("name"))
                where = f"{kind} {number} ({name})" if isinstance(name, str) else f"{kind} {number}"
            if problem := misfit(entry, _KINDS[kind], _OPTIONAL, finite=False, more=True):
                raise LeukoError(f"{problem}; correct or remove it")
            if number in seen:
                raise LeukoError("its id is used twice; give it one of its own")
        except LeukoError as error:
            problems.add(kind, f"{file}: {where}: {error}")
        else:
            seen.add(number)
            yield where, number, entry


def _annotation(where: str, entry: dict, names: dict[int, str]) -> Annotation:
    category, box = _whole(entry, "category_id"), entry["bbox"]
    if category not in names:
        listed = ", ".join(f"{number} {name}" for number, name in names.items())
        raise LeukoError(f"unknown class, category_id {category}; the categories are {listed}; correct it")
    if len(box) != 4:
        raise LeukoError(f"bbox: {box!r:.60} is not [x, y, width, height]; correct or remove it")
    if (crowd := entry.get("iscrowd")) not in (0, 1, "0", "1", None):
        raise LeukoError(f"iscrowd: {crowd!r:.40} is not 0 or 1; correct it")
    x, y, width, height = map(float, box)
    attributes = {key: value for key, value in entry.items() if key not in _OWN}
    if isinstance(attributes.get(_RESERVED), dict):
        attributes |= attributes.pop(_RESERVED)
    corners = (x, y, x + width, y + height)
    return Annotation(where, names[category], corners, crowd in (1, "1"), tuple(entry.get("factors") or ()), attributes)


def _whole(entry: dict, key: str) -> int:
    value = entry.get(key)
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)  # some exporters write ids as texts
    if not fits(value, float) or value != int(value) or abs(value) >= 2**63:
        raise LeukoError(f'"{key}" is {value!r:.40}, not a whole number of 64 bits; correct it')
    return int(value)


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
