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
from collections import Counter
from collections.abc import Iterable
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
_KEYS = ("images", "annotations", "categories")


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
    return start.startswith(b"{") and any(f'"{key}"'.encode() in start for key in _KEYS)


def parse(part: Path, problems: Problems, **_: object) -> Labels:
    """Read a COCO file; raises LeukoError where it is broken as a whole, and adds single errors to ``problems``."""
    content = _load(part)
    names = _categories(part, content["categories"])
    labels = Labels(categories={name: number for number, name in sorted(names.items())})
    records: dict[int, Record] = {}
    folders = _image_folders(part)
    for i, entry in enumerate(content["images"], 1):
        try:
            record = _record(part, i, entry, folders)
        except LeukoError as error:
            problems.add("image", str(error))
            continue
        if record.id in records:
            problems.add("image id", f"{record.place()}: the id is used twice; give every image an id of its own")
        records.setdefault(record.id, record)
        labels.records.append(record)
    ids: Counter[int | None] = Counter()
    for i, entry in enumerate(content["annotations"], 1):
        try:
            record, annotation, number = _annotation(part, i, entry, records, names)
        except LeukoError as error:
            problems.add("annotation", str(error))
            continue
        record.annotations.append(annotation)
        ids[number] += 1
        if number is not None and ids[number] == 2:
            remedy = "number the annotations anew"
            problems.add("annotation id", f"{part}: {annotation.where}: the id is used twice; {remedy}")
    return labels


def class_names(parts: Iterable[Path]) -> set[str]:
    """The names of all categories of the files."""
    return {name for file in parts for name in _categories(file, _load(file)["categories"]).values()}


def _load(file: Path) -> dict:
    text = read_text(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise LeukoError(f"{file}: line {error.lineno} column {error.colno}: broken JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise LeukoError(f"{file}: line 1: broken JSON: {error}") from error
    for key in _KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise LeukoError(f'{file}: no list "{key}"; a COCO file has {", ".join(_KEYS)}')
    return content


def _categories(file: Path, entries: list) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, entry in enumerate(entries, 1):
        place = f"{file}: category number {i}"
        number, name = _whole(entry, "id", place), entry.get("name")
        if not isinstance(name, str) or not name.strip():
            raise LeukoError(f'{place}: "name" is {name!r}; give the class a name')
        name = name.strip()
        if number in names or name in names.values():
            raise LeukoError(f"{file}: category {number} ({name}): id or name is used twice; keep one")
        names[number] = name
    return names


def _image_folders(file: Path) -> list[Path]:
    """Where the images of a COCO file may lie."""
    split, here = split_name(file), file.parent
    folders = [here, here / "images", here / "images" / split, here / split]
    if here.name == "annotations":
        root = here.parent
        folders += [root / "images", root, root / "images" / split, root / split]
        folders.append(root / file.stem.removeprefix("instances_"))
    return folders


def _image_path(name: str, folders: list[Path]) -> Path:
    """The path of an image; the folder that holds it is moved to the front, to be tried first for the next one."""
    for i, folder in enumerate(folders):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            folders.insert(0, folders.pop(i))
            return Path(path)
    return folders[0] / name


def _record(file: Path, number: int, entry: object, folders: list[Path]) -> Record:
    identity = _whole(entry, "id", f"{file}: image number {number}")
    place = f"{file}: image {identity}"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise LeukoError(f'{place}: "file_name" is {name!r}; name the image')
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if os.path.isabs(name) or parts[0] == "/" or ".." in parts:
        raise LeukoError(f'{place}: file_name "{name}" leaves the data set\'s folder; name it relative to the images')
    size = None
    if entry.get("width") is not None and entry.get("height") is not None:
        size = _whole(entry, "width", place), _whole(entry, "height", place)
    return Record(
        file,
        _image_path(os.path.join(*parts), folders),
        [],
        where=f"image {identity} ({name})",
        id=identity,
        size=size,
        factors=_factors(entry, place),
        group=str(next((entry[key] for key in _GROUPS if entry.get(key) is not None), "")),
    )


def _annotation(
    file: Path, number: int, entry: object, records: dict[int, Record], names: dict[int, str]
) -> tuple[Record, Annotation, int | None]:
    """The record that an annotation belongs to, the annotation, and its id or None where it has none."""
    where = f"annotation number {number}"
    if not isinstance(entry, dict):
        raise LeukoError(f"{file}: {where}: {entry!r:.40} is not an annotation; remove it")
    identity = _whole(entry, "id", f"{file}: {where}") if "id" in entry else None
    where = where if identity is None else f"annotation {identity}"
    place = f"{file}: {where}"
    image, category = _whole(entry, "image_id", place), _whole(entry, "category_id", place)
    if image not in records:
        raise LeukoError(f"{place}: image_id {image} is not among the images; correct it or remove the annotation")
    if category not in names:
        listed = ", ".join(f"{k} {v}" for k, v in names.items())
        raise LeukoError(f"{place}: unknown class, category_id {category}; the categories are {listed}; correct it")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise LeukoError(f"{place}: bbox {box!r:.60} is not [x, y, width, height]; correct or remove it")
    x, y, width, height = map(float, box)
    attributes = {key: value for key, value in entry.items() if key not in _OWN}
    if isinstance(attributes.get(_RESERVED), dict):
        attributes |= attributes.pop(_RESERVED)
    box, crowd = (x, y, x + width, y + height), entry.get("iscrowd") == 1
    return records[image], Annotation(where, names[category], box, crowd, _factors(entry, place), attributes), identity


def _is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _whole(entry: object, key: str, place: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        raise LeukoError(f'{place}: "{key}" is {value!r:.40}, not a whole number; correct it')
    return int(value)


def _factors(entry: dict, place: str) -> tuple[str, ...]:
    factors = entry.get("factors") or []
    if not isinstance(factors, list) or not all(isinstance(factor, str) for factor in factors):
        raise LeukoError(f'{place}: "factors" is {factors!r:.40}, not a list of names; correct it')
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
