"""YOLO: one text file per image, one line per cell: class index, then centre and size as fractions of the image.

The labels of ``.../images/a.jpg`` are in ``.../labels/a.txt``, or else beside the image. The class names are in
``data.yaml``, or in a ``classes.txt`` as LabelImg writes it. A line may be a polygon (class, then x y pairs): its
bounding box is taken, with a warning. The format has no place for crowds, factors, groups, attributes and ids: they go
into a file beside it (see ``sidecar``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import LeukoError
from ...io import make_folder, read_list, read_text, read_yaml, write_text, write_yaml
from ..dataset import Dataset, LabelWarning, Sample
from ..images import list_images
from . import sidecar
from .place import check_names, place_images
from .records import Annotation, Labels, Problems, Record, parse_names, read_names

IMAGES = PART = "images/{split}"
YAML_SPLITS = ("train", "val", "test")
_SNAP = 1e-9  # fractions nearer to the border than this are on it; the rest is the rounding of centre +- half


# ---------------------------------------------------------------- reading


def find(folder: Path) -> dict[str, Path]:
    """The splits that a folder holds as YOLO (``images/`` + ``labels/``, or images beside their labels).

    Raises LeukoError where images lie both beside and in the folders of splits.
    """
    images = folder / "images"
    if images.is_dir() and (folder / "labels").is_dir():
        folders = [p for p in sorted(images.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        parts = {p.name: p for p in folders if list_images(p, recursive=True)}
        if parts and (beside := list_images(images)):
            remedy = "write a data YAML that names the parts, or move them"
            raise LeukoError(
                f"{images}: {beside[0].name} lies beside the folders of images {', '.join(parts)}; {remedy}"
            )
        return parts or {"all": images}
    if any((label_folder(folder) / f"{image.stem}.txt").is_file() for image in list_images(folder)):
        return {"all": folder}
    return {}


def label_folder(images: Path) -> Path:
    """Where the labels of a folder of images are: its path with ``labels`` for the last ``images``, or itself."""
    parts = list(Path(os.path.abspath(images)).parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:at], "labels", *parts[at + 1 :])
        if labels.is_dir():
            return labels
    return images


def parse(part: Path, problems: Problems, *, names: dict[int, str] | None = None, **_: object) -> Labels:
    """Read the labels of a folder of images, or of the images that a text file lists.

    ``names`` are the class names by index; without them a ``classes.txt`` among the labels or above is read.
    """
    images = list_images(part, recursive=True) if part.is_dir() else [part.parent / line for line in read_list(part)]
    labels = Labels(names=names or _names_beside(part))
    if images and not labels.names:
        raise LeukoError(f'{part}: YOLO labels without class names; write a data.yaml with "names: [NG, BG, ...]"')
    folders = {folder: label_folder(folder) for folder in {image.parent for image in images}}
    sidecars = {folder: sidecar.read_near(folder) for folder in folders}
    files = [folders[image.parent] / f"{image.stem}.txt" for image in images]
    if images and not any(file.is_file() for file in files):
        raise LeukoError(f"{part}: none of the {len(images)} images has a label file in {files[0].parent}; add labels")
    for image, file in zip(images, files, strict=True):
        record = Record(file, image, [], relative=True)
        if file.is_file():
            record.annotations = _annotations(file, labels, problems)
        else:
            record.file, action = image, "taken as an image without cells"
            labels.warnings.append(LabelWarning(image, f"label file {file.name}", "missing", action))
        sidecar.add_to(record, *sidecars[image.parent], labels.warnings)
        labels.records.append(record)
    for root, content in sidecars.values():
        labels.categories |= sidecar.ids(root, content, "category_ids")
    if part.is_dir():
        found = {file for folder in {label_folder(part), *folders.values()} for file in folder.glob("*.txt")}
        for file in sorted(found.difference(files)):
            if file.name != "classes.txt":
                remedy = "add the image or remove the label file"
                problems.add("orphan", f"{file}: label file without image {file.stem}; {remedy}")
    return labels


def _names_beside(part: Path) -> dict[int, str]:
    images = part if part.is_dir() else part.parent
    folders = (label_folder(images), images, *images.parents[:2])
    return next((read_names(file) for folder in folders if (file := folder / "classes.txt").is_file()), {})


def _annotations(file: Path, labels: Labels, problems: Problems) -> list[Annotation]:
    annotations, polygons = [], []
    with problems.catch("text"):
        for number, line in enumerate(read_text(file).splitlines(), 1):
            fields = line.split()
            with problems.catch("line", f"{file}: line {number}"):
                if fields:
                    annotations.append(_annotation(f"line {number}", fields, labels.names))
                    polygons += [str(number)] if len(fields) > 5 else []
    if polygons:
        problem, action = "a polygon, not a box", "its bounding box is taken"
        labels.warnings.append(LabelWarning(file, f"line {', '.join(polygons)}", problem, action))
    return annotations


def _annotation(where: str, fields: list[str], names: dict[int, str]) -> Annotation:
    try:
        index, numbers = float(fields[0]), [float(field) for field in fields[1:]]
    except ValueError as error:
        raise LeukoError(f"{error}; a line is: class x_centre y_centre width height") from None
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise LeukoError(f"{len(fields)} numbers; a line is: class x_centre y_centre width height")
    if index not in names:
        listed = ", ".join(f"{k} {v}" for k, v in names.items())
        raise LeukoError(f"unknown class {fields[0]}; the data set's are {listed}; correct the line or the names")
    if len(numbers) == 4:
        x, y, width, height = numbers
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        xs, ys = numbers[0::2], numbers[1::2]
        box = (min(xs), min(ys), max(xs), max(ys))
    name = names[int(index)]
    return Annotation(f"{where} ({name})", name, tuple(0.0 if abs(value) < _SNAP else value for value in box))


# ---------------------------------------------------------------- writing


def write(dataset: Dataset, folder: str | Path, split: str) -> list[Path]:
    """Write one split as ``images/SPLIT`` (linked or copied) and ``labels/SPLIT``, and add it to ``data.yaml``.

    Coordinates of whole or at least a thousandth pixel come back bit for bit as float32. What the format has no place
    for goes into the sidecar. Returns the images' new paths; raises LeukoError.
    """
    folder = make_folder(Path(folder))
    file, info = folder / "data.yaml", {"path": "."}
    if file.is_file():
        info = read_yaml(file)
        check_names(file, list(parse_names(info.get("names"), file).values()), dataset.types)
    info["names"] = dataset.types
    splits = info if split in YAML_SPLITS else info.setdefault("splits", {})
    splits[split] = PART.format(split=split)
    home = folder / splits[split]
    images = place_images([sample.image for sample in dataset.samples], home)
    labels = make_folder(folder / "labels" / split)
    rank = {path: number for number, path in enumerate(list_images(home), 1)}
    pairs = list(zip(dataset.samples, images, strict=True))
    usual = all(sample.id == rank[image] for sample, image in pairs)
    about = {}
    for sample, image in pairs:
        cells = zip(sample.labels[~sample.crowd], sample.boxes[~sample.crowd].tolist(), strict=True)
        write_text(labels / f"{image.stem}.txt", "".join(_line(int(k), box, sample) for k, box in cells))
        of_image = {} if usual else {"id": sample.id}
        about[image.relative_to(folder).as_posix()] = of_image | sidecar.describe(sample, dataset.types)
    write_yaml(file, info)
    sidecar.update(folder, category_ids=sidecar.category_ids(dataset), images=about)
    return images


def _line(label: int, box: Sequence[float], sample: Sample) -> str:
    (x0, y0, x1, y1), width, height = box, sample.width, sample.height
    numbers = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    return " ".join([str(label), *map(repr, numbers)]) + "\n"
