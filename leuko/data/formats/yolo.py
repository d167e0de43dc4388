"""YOLO: a text file an image, a line a cell: class index, then centre and size as fractions of the image.

The labels of ``.../images/a.jpg`` are in ``.../labels/a.txt``, or else beside the image. The class names are in
``data.yaml``, or in a ``classes.txt`` as LabelImg writes it. A line may be a polygon (class, then x y pairs): its
bounding box is taken, and listed as a warning. The format holds no crowds, factors, groups, attributes or ids: they go
into a file beside it (see ``side``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from ...errors import LeukoError
from ...io import make_folder, read_list, read_text, read_yaml, write_text
from ..dataset import Dataset, LabelWarning
from ..images import list_images
from ..validate import validate
from .names import by_index, check_same, names_in
from .place import place_images
from .records import Cell, Labels, Problems, Record
from .sidecar import Side, category_ids, keep

YAML_SPLITS = ("train", "val", "test")
_SNAP = 1e-9  # fractions nearer to the border than this are on it; what remains is the rounding of centre +- half


def find(folder: Path) -> dict[str, Path]:
    """Return the splits that a folder holds as YOLO (``images/`` + ``labels/``, or images beside their labels).

    Raises LeukoError where images lie both beside and in the folders of splits.
    """
    images = folder / "images"
    if images.is_dir() and (folder / "labels").is_dir():
        folders = [p for p in sorted(images.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        parts = {p.name: p for p in folders if list_images(p, recursive=True)}
        if parts and (beside := list_images(images)):
            listed = ", ".join(parts)
            remedy = "write a data YAML that names the parts, or move them"
            raise LeukoError(f"{images}: {beside[0].name} lies beside the folders of images {listed}; {remedy}")
        return parts or {"all": images}
    if any((label_folder(folder) / f"{image.stem}.txt").is_file() for image in list_images(folder)):
        return {"all": folder}
    return {}


def label_folder(images: Path) -> Path:
    """Return where the labels of a folder of images are: ``images`` in its path made ``labels``, else the folder."""
    parts = list(Path(os.path.abspath(images)).parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:at], "labels", *parts[at + 1 :])
        if labels.is_dir():
            return labels
    return images


def names_beside(part: Path) -> dict[int, str]:
    """Return the classes of a ``classes.txt`` among the labels or in a folder above, by index; {} where none is."""
    images = part if part.is_dir() else part.parent
    for folder in (label_folder(images), images, *images.parents[:2]):
        if (file := folder / "classes.txt").is_file():
            return names_in(file)
    return {}


def read(part: str | Path, names: Sequence[str] | dict[int, str] = (), types: Sequence[str] | None = None) -> Dataset:
    """Read and check one split: a folder of images or a list of image paths.

    ``names`` are the class names by index; without them a ``classes.txt`` must tell. Raises LeukoError.
    """
    part, problems = Path(part), Problems()
    classes = dict(names if isinstance(names, dict) else enumerate(names)) or names_beside(part)
    labels = parse(part, problems, classes)
    return validate(part, [labels], problems, names=list(classes.values()), types=types)


def parse(part: Path, problems: Problems, names: dict[int, str]) -> Labels:
    """Read the labels of a folder of images or of the images that a text file lists."""
    labels = Labels()
    images = list_images(part, recursive=True) if part.is_dir() else [part.parent / line for line in read_list(part)]
    if images and not names:
        raise LeukoError(f'{part}: YOLO labels without class names; write a data.yaml with "names: [NG, BG, ...]"')
    folders = {folder: label_folder(folder) for folder in {image.parent for image in images}}
    side = Side()
    files = [folders[image.parent] / f"{image.stem}.txt" for image in images]
    if images and not any(file.is_file() for file in files):
        raise LeukoError(f"{part}: none of the {len(images)} images has a label file in {files[0].parent}; add labels")
    for image, file in zip(images, files, strict=True):
        if file.is_file():
            labels.records.append(Record(file, image, _cells(file, names, labels.warnings, problems), relative=True))
        else:
            labels.records.append(Record(image, image, [], relative=True))
            labels.warnings.append(
                LabelWarning(image, f"label file {file.name}", "missing", "taken as an image without cells")
            )
        side.add_to(labels.records[-1], labels.warnings)
    for root in dict.fromkeys(root for folder in folders for root in (folder, *list(folder.parents)[:2])):
        labels.categories = labels.categories or category_ids(root)
    if part.is_dir():
        _check_orphans({label_folder(part), *folders.values()}, files, problems)
    return labels


def _check_orphans(folders: Iterable[Path], known: Iterable[Path], problems: Problems) -> None:
    """Find label files whose image is missing."""
    known = set(known)
    for folder in sorted(folders):
        for file in sorted(folder.glob("*.txt")):
            if file not in known and file.name != "classes.txt":
                remedy = "add the image or remove the label file"
                problems.add("orphan", f"{file}: label file without image {file.stem}; {remedy}")


def _cells(file: Path, names: dict[int, str], warnings: list[LabelWarning], problems: Problems) -> list[Cell]:
    try:
        lines = read_text(file).splitlines()
    except LeukoError as error:
        problems.add("text", str(error))
        return []
    cells, polygons = [], []
    for number, line in enumerate(lines, 1):
        if not (fields := line.split()):
            continue
        try:
            cells.append(_cell(f"line {number}", fields, names))
        except LeukoError as error:
            problems.add("line", f"{file}: line {number}: {error}")
            continue
        if len(fields) > 5:
            polygons.append(str(number))
    if polygons:
        warnings.append(
            LabelWarning(file, f"line {', '.join(polygons)}", "a polygon, not a box", "its bounding box is taken")
        )
    return cells


def _cell(where: str, fields: list[str], names: dict[int, str]) -> Cell:
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
    return Cell(f"{where} ({name})", name, tuple(0.0 if abs(value) < _SNAP else value for value in box))


def write(dataset: Dataset, folder: str | Path, split: str) -> None:
    """Write one split as ``images/SPLIT`` (linked or copied) and ``labels/SPLIT``, and enter it in ``data.yaml``.

    Coordinates of whole or at least a thousandth pixel come back bit for bit as float32. What the format cannot hold
    goes into the side file. Raises LeukoError.
    """
    folder = make_folder(Path(folder))
    info = _info(folder / "data.yaml", dataset.types)
    place = info if split in YAML_SPLITS else info.setdefault("splits", {})
    place[split] = f"images/{split}"
    images = place_images([sample.image for sample in dataset.samples], folder / "images" / split)
    labels = make_folder(folder / "labels" / split)
    for sample, image in zip(dataset.samples, images, strict=True):
        size = (sample.width, sample.height)
        cells = zip(sample.labels[~sample.crowd], sample.boxes[~sample.crowd].tolist(), strict=True)
        lines = [_line(int(k), box, size) for k, box in cells]
        write_text(labels / f"{image.stem}.txt", "".join(lines))
    write_text(folder / "data.yaml", yaml.safe_dump(info, sort_keys=False, allow_unicode=True))
    rank = {path: number for number, path in enumerate(list_images(folder / "images" / split), 1)}
    keep(folder, dataset, images, [rank[image] for image in images])


def _info(file: Path, types: Sequence[str]) -> dict:
    """Return the content of the data YAML that is to be kept up to date, or a new one's."""
    info = {"path": "."}
    if file.is_file():
        info = read_yaml(file)
        check_same(file, list(by_index(info.get("names"), file).values()), types)
    return {**info, "names": dict(enumerate(types))}


def _line(label: int, box: Sequence[float], size: tuple[int, int]) -> str:
    (x0, y0, x1, y1), (width, height) = box, size
    numbers = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    return " ".join([str(label), *map(repr, numbers)]) + "\n"
