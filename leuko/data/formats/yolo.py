"""YOLO: one text file per image, one line per cell: class index, then centre and size as fractions of the image.

The labels of ``.../images/a.jpg`` are in ``.../labels/a.txt``, or else beside the image. The class names are in the
data YAML, in a ``classes.txt`` as LabelImg and Label Studio write it, or in Darknet's ``obj.names`` (CVAT). A line with
more numbers is a polygon or a box with key points; its box is taken, with a warning. The format has no place for
crowds, factors, groups, attributes and ids: they go into a file beside it (see ``sidecar``).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ...errors import LeukoError
from ...io import io_errors_as, make_folder, read_list, read_text, read_yaml, write_text, write_yaml
from ..dataset import Dataset, LabelWarning, Sample
from ..images import is_hidden, is_image, list_images
from . import sidecar
from .files import ImageFinder, check_names, place_images, spelled
from .records import Annotation, Labels, Problems, ReadOptions, Record, parse_names, read_names

IMAGES = PART = "images/{split}"
YAML_SPLITS = ("train", "val", "test")
LABELS_LIMIT = 4  # megabytes of one label file
_DARKNET = "obj.names"  # beside it the lists of the splits' images
_CLASS_FILES = ("classes.txt", _DARKNET, "_darknet.labels")
_MARGIN = 0.01  # by which a key point may lie outside its box, as a fraction of the image
_MOST = 0.9  # of the lines
_FILLED = 0.3  # of the bounding box; an ellipse fills .79 of it
_SNAP = 1e-9  # fractions nearer to the border than this are on it; the rest is the rounding of centre +- half


# ---------------------------------------------------------------- reading


def find(folder: Path) -> dict[str, Path]:
    """The splits that a folder holds as YOLO: ``images/`` + ``labels/``, images beside labels, or Darknet's lists.

    Raises LeukoError where images lie both beside and in the folders of splits.
    """
    if (folder / _DARKNET).is_file():
        lists = [p for p in sorted(folder.glob("*.txt")) if any(map(is_image, read_list(p)))]
        return {p.stem: p for p in lists}
    images = folder / "images"
    if images.is_dir() and (folder / "labels").is_dir():
        folders = [p for p in sorted(images.iterdir()) if p.is_dir() and not is_hidden(p.name)]
        parts = {p.name: p for p in folders if list_images(p, recursive=True)}
        if parts and (beside := list_images(images)):
            remedy = "write a data YAML that names the parts, or move them"
            raise LeukoError(
                f"{images}: {beside[0].name} lies beside the folders of images {', '.join(parts)}; {remedy}"
            )
        return parts or {"all": images}
    if _label_files(folder).keys() & {spelled(image.stem) for image in list_images(folder)}:
        return {"all": folder}
    return {}


def label_folder(images: Path) -> Path:
    """Where the labels of a folder of images are: its path with ``labels`` for the last ``images``, or itself."""
    parts = images.parts if "images" in images.parts else Path(os.path.abspath(images)).parts
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:at], "labels", *parts[at + 1 :])
        if labels.is_dir():
            return labels
    return images


def _label_files(images: Path, hidden: list[Path] | None = None) -> dict[str, list[Path]]:
    """The text files that may be labels of the images in a folder, by stem: in its folder of labels, and beside. Hidden
    ones are appended to ``hidden``, if it is given."""
    by_stem = defaultdict(list)
    with io_errors_as("read", images):
        for folder in dict.fromkeys((label_folder(images), images)):
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if file.suffix.lower() != ".txt" or file.name in _CLASS_FILES:
                    continue
                if not is_hidden(file.name):
                    by_stem[spelled(file.stem)].append(file)
                elif hidden is not None:
                    hidden.append(file)
    return by_stem


def parse(part: Path, problems: Problems, options: ReadOptions) -> Labels:
    """Read the labels of a folder of images, or of the images that a text file lists.

    ``options.names`` are the class names by index; without them a ``classes.txt`` among the labels or above is read.
    """
    labels = Labels(names=options.names or _names_beside(part))
    images = _images(part, problems, options)
    if images and not labels.names:
        raise LeukoError(f'{part}: YOLO labels without class names; write a data.yaml with "names: [NG, BG, ...]"')
    folders = dict.fromkeys(image.parent for image in images)
    files = {folder: _label_files(folder, problems.hidden) for folder in folders}
    sidecars = {folder: sidecar.read_near(folder) for folder in folders}
    if images and not any(spelled(image.stem) in files[image.parent] for image in images):
        where = label_folder(images[0].parent)
        raise LeukoError(f"{part}: none of the {len(images)} images has a label file in {where}; add labels")
    image_of: dict[Path, Path] = {}
    rows: list[_Row] = []
    for image in images:
        with problems.catch("label files", str(image)):
            file = _one_of(files[image.parent].get(spelled(image.stem), []))
            record = Record(file or image, image, [], relative=True)
            if file is None:
                action = "taken as an image without cells"
                problems.warnings.append(LabelWarning(image, f"label file {image.stem}.txt", "missing", action))
            elif (other := image_of.setdefault(file, image)) is not image:
                raise LeukoError(f"shares the labels {file} with {other.name}; keep one of them, or rename it")
            else:
                rows += _rows(record, labels.names, problems)
            labels.records.append(record)
    _add_annotations(part, rows, problems, options)
    for record in labels.records:
        sidecar.add_to(record, *sidecars[record.image.parent], problems.warnings)
    for _, content in sidecars.values():
        labels.categories |= content.get("category_ids", {})
    if part.is_dir():
        for file in _orphans(part, folders, image_of):
            remedy = "add the image or remove the label file"
            problems.add("orphan", f"{file}: label file without image {file.stem}; {remedy}")
    return labels


def _images(part: Path, problems: Problems, options: ReadOptions) -> list[Path]:
    if part.is_dir():
        return list_images(part, recursive=True, hidden=problems.hidden)
    finder = ImageFinder(options.root)
    images = []
    for line in read_list(part):
        try:
            images.append(finder.find(line, dict.fromkeys((part.parent, options.root))))
        except LeukoError as error:
            raise LeukoError(f"{part}: {error}") from None
    problems.notes += finder.notes()
    return images


def _one_of(files: Sequence[Path]) -> Path | None:
    """The label file of an image; LeukoError where several say different things."""
    texts = {read_text(file, LABELS_LIMIT) for file in files[1:] and files}
    if len(texts) > 1:
        raise LeukoError(f"has several label files ({', '.join(map(str, files))}); keep one")
    return files[0] if files else None


def _orphans(part: Path, folders: Iterable[Path], known: dict[Path, Path]) -> list[Path]:
    """Label files of a folder of images that belong to none of them."""
    own = label_folder(part)
    files = {file for folder in {own, *map(label_folder, folders)} for file in folder.glob("*")}
    if own != part:
        files |= {*own.rglob("*"), *(own.parent.glob("*") if own.parent.name == "labels" else ())}
    return sorted(file for file in files if file not in known and _is_label(file))


def _is_label(file: Path) -> bool:
    """Whether a file is text whose first line is one of labels, or has none; a list, a README or names are not."""
    if file.suffix.lower() != ".txt" or file.name in _CLASS_FILES or is_hidden(file.name) or not file.is_file():
        return False
    first = next(filter(None, map(str.split, read_text(file, LABELS_LIMIT).splitlines())), [])
    return not first or (len(first) > 4 and re.fullmatch(r"[\d.eE+-]+", "".join(first)) is not None)


def _names_beside(part: Path) -> dict[int, str]:
    images = part if part.is_dir() else part.parent
    folders = (label_folder(images), images, *images.parents[:2])
    files = (folder / name for folder in folders for name in _CLASS_FILES)
    return next((read_names(file) for file in files if file.is_file()), {})


# ---------------------------------------------------------------- lines


class _Row(NamedTuple):
    """A line of a label file: class name and the numbers behind the class."""

    record: Record
    line: int
    name: str
    numbers: list[float]


def _rows(record: Record, names: dict[int, str], problems: Problems) -> list[_Row]:
    rows = []
    with problems.catch("text"):
        for line, text in enumerate(read_text(record.file, LABELS_LIMIT).splitlines(), 1):
            with problems.catch("line", f"{record.file}: line {line}"):
                if fields := text.split():
                    rows.append(_Row(record, line, *_parsed(fields, names)))
    return rows


def _parsed(fields: list[str], names: dict[int, str]) -> tuple[str, list[float]]:
    try:
        index, *numbers = map(float, fields)
    except ValueError as error:
        raise LeukoError(f"{error}; a line is: class x_centre y_centre width height") from None
    if len(numbers) == 5:
        problem = "six numbers; the sixth looks like a score, as predictions have it"
        raise LeukoError(f"{problem}; labels have none: leave out the last column")
    if len(numbers) < 4:
        raise LeukoError(f"{len(fields)} numbers; a line is: class x_centre y_centre width height")
    if index not in names:
        listed = ", ".join(f"{k} {v}" for k, v in names.items())
        raise LeukoError(f"unknown class {fields[0]}; the data set's are {listed}; correct the line or the names")
    return names[int(index)], numbers


def _add_annotations(part: Path, rows: Sequence[_Row], problems: Problems, options: ReadOptions) -> None:
    """Turn lines into the annotations of their records; what more than four numbers mean is the same in all."""
    long = [row for row in rows if len(row.numbers) > 4]
    meaning = (options.rows or _meaning(part, rows, long)) if long else ""
    for row in rows:
        if len(row.numbers) > 4 and meaning == "polygons":
            if len(row.numbers) % 2:
                problem = f"{len(row.numbers) + 1} numbers; behind the class, a polygon has pairs of x and y"
                raise LeukoError(f"{row.record.file}: line {row.line}: {problem}; correct the line")
            xs, ys = row.numbers[0::2], row.numbers[1::2]
            box = (min(xs), min(ys), max(xs), max(ys))
        else:
            x, y, width, height = row.numbers[:4]
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        box = tuple(0.0 if abs(value) < _SNAP else value for value in box)
        row.record.annotations.append(Annotation(f"line {row.line} ({row.name})", row.name, box))
    problem, action = {
        "polygons": ("a polygon, not a box", "its bounding box is taken"),
        "keypoints": ("a box with key points", "the box is taken"),
        "": ("", ""),
    }[meaning]
    lines: dict[Path, list[int]] = {}
    for row in long:
        lines.setdefault(row.record.file, []).append(row.line)
    problems.warnings += [
        LabelWarning(file, f"line {', '.join(map(str, numbers))}", problem, action) for file, numbers in lines.items()
    ]


def _meaning(part: Path, rows: Sequence[_Row], long: Sequence[_Row]) -> str:
    """Whether lines of more than four numbers are polygons or boxes with key points.

    Polygons fill a good part of the box around them, and are rarely all of one length. Key points lie in their boxes.
    Raises LeukoError where a person must say what they are.
    """
    if odd := next((row for row in long if len(row.numbers) % 2 and (len(row.numbers) - 4) % 3), None):
        problem = f"{len(odd.numbers) + 1} numbers, neither a box (4 behind the class) nor a polygon (x y pairs)"
        raise LeukoError(f"{odd.record.file}: line {odd.line}: {problem}; correct the line")
    have_one_length = len({len(row.numbers) for row in rows}) == 1
    are_even = all(len(row.numbers) % 2 == 0 for row in long)
    if are_even and not have_one_length:
        return "polygons"
    are_keypoints = have_one_length and any(all(_has_keypoints(row.numbers, k) for row in long) for k in (2, 3))
    are_polygons = are_even and np.mean([_is_outline(row.numbers) for row in long]) >= _MOST
    if are_keypoints == are_polygons:
        problem = f"its lines have {len(long[0].numbers) + 1} numbers, which may be polygons, or boxes with key points"
        raise LeukoError(f'{part}: {problem}; write "rows: polygons" or "rows: keypoints" in a data YAML')
    return "polygons" if are_polygons else "keypoints"


def _has_keypoints(numbers: Sequence[float], each: int) -> bool:
    """Whether numbers can be a box in the image and points of ``each`` numbers in it; (0, 0) is a point not seen."""
    (x, y, width, height), points = numbers[:4], numbers[4:]
    if len(points) % each or not (0 < width <= 1 and 0 < height <= 1):
        return False
    xs, ys = np.array(points).reshape(-1, each)[:, :2].T
    is_in = (abs(xs - x) <= width / 2 + _MARGIN) & (abs(ys - y) <= height / 2 + _MARGIN)
    return bool((is_in | ((xs == 0) & (ys == 0))).all()) and max(abs(x - 0.5), abs(y - 0.5)) <= 0.5


def _is_outline(numbers: Sequence[float]) -> bool:
    """Whether a polygon fills as much of its bounding box as the outline of a cell does."""
    points = np.array(numbers, dtype=np.float32).reshape(-1, 2)
    return bool(cv2.contourArea(points) >= _FILLED * np.ptp(points, axis=0).prod() > 0)


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
