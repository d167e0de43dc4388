"""Find out what a path holds, VOC, COCO or YOLO, and read one split of it.

load("slides/", "train")  a folder: Annotations/, *.json, images/ + labels/, or sub-folders train/, valid/, ...
load("test.json", "test")  one COCO file
load("slides.yaml", "val")  a data YAML:

    path: slides                # relative to the YAML's folder, like everything below it
    train: images/train         # a folder, COCO file, ImageSets list or list of image paths, or several of them
    val: [a/val.json, b/val.json]
    names: [NG, BG, EG, L, M]   # or a mapping of index to name
    format: coco                # voc, coco or yolo, where it is not clear
    ignore: [Platelets]         # classes to leave out and count
    voc_origin: 1               # VOC in the official convention: pixels counted from 1
    splits: {extra: more.json}  # splits of other names
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from ..errors import LeukoError, nearest
from ..io import io_errors_as, read_list, read_yaml
from .dataset import Dataset
from .formats import FORMATS, coco, voc
from .formats.records import Labels, Problems, parse_names
from .images import is_image, list_images
from .validate import validate

_ORDER = ("train", "val", "test")
_ALIASES = {"valid": "val", "validation": "val"}
_KEYS = ("path", "train", "val", "test", "splits", "names", "nc", "format", "ignore", "voc_origin")
_FOREIGN_KEYS = ("download", "roboflow", "channels")  # keys of other tools that have no meaning here
_EXPECTED = "expected Annotations/ (VOC), a COCO .json, images/ + labels/ (YOLO), or a data YAML"


@dataclass
class Source:
    """A data set that was found: its format, and its splits as lists of folders, lists or COCO files."""

    file: Path
    format: str
    splits: dict[str, list[Path]]
    names: dict[int, str] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    voc_origin: int = 0

    def __post_init__(self) -> None:
        """Call ``valid`` or ``validation`` ``val``, and put the usual splits first; raises LeukoError for both names."""
        if "val" not in self.splits and len(both := [name for name in self.splits if name in _ALIASES]) > 1:
            remedy = "write a data YAML that names the one to take, or both in a list"
            raise LeukoError(f"{self.file}: {' and '.join(both)} are both the split val; {remedy}")
        names = {name if _ALIASES.get(name, name) in self.splits else _ALIASES[name]: name for name in self.splits}
        usual = [name for name in _ORDER if name in names]
        self.splits = {name: self.splits[names[name]] for name in dict.fromkeys([*usual, *sorted(names)])}

    def split_name(self, split: str) -> str:
        """The name of the split that is given by it or by an alias; raises LeukoError where there is none."""
        name = split if split in self.splits else _ALIASES.get(split, split)
        if name not in self.splits:
            raise LeukoError(f'{self.file}: no split "{split}"; it has: {", ".join(self.splits)}')
        return name

    def parse(self, split: str, problems: Problems) -> list[Labels]:
        """Read the label files of a split; where the first part lists the classes, that list is for all."""
        labels: list[Labels] = []
        for part in self.splits[split]:
            names = self.names or (labels[0].names if labels else {})
            labels.append(FORMATS[self.format].parse(part, problems, names=names, voc_origin=self.voc_origin))
        return labels


def splits(data: str | Path) -> list[str]:
    """The names of the splits, train, val and test first; ``["all"]`` for a data set that is not split."""
    return list(find(data).splits)


def split_name(data: str | Path, split: str) -> str:
    """A data set's own name of a split: ``val`` for ``valid`` and ``validation``. Raises LeukoError."""
    return find(data).split_name(split)


@io_errors_as("read")
def load(data: str | Path, split: str, types: Sequence[str] | None = None, problems: Problems | None = None) -> Dataset:
    """Read and check one split of a data set.

    ``data`` is a folder, a COCO file or a data YAML. With ``types`` the classes are matched to these by name, and a
    class without counterpart is an error. What was fixed is listed in ``Dataset.warnings``. Raises LeukoError; with
    ``problems`` that collect, only where nothing can be read.
    """
    source = find(data)
    split = source.split_name(split)
    problems = problems or Problems()
    labels = source.parse(split, problems)
    names = list((source.names or labels[0].names).values())
    # The types are the same in every split, and a class to ignore may occur in another split only.
    are_unknown = not (names or types or labels[0].categories)
    other_names: Collection[str] = ()
    if source.format != "yolo" and (source.ignore or are_unknown):
        others = (part for name, parts in source.splits.items() if name != split for part in parts)
        other_names = FORMATS[source.format].class_names(others)
    parts = source.splits[split]
    named = parts[0] if source.file.is_dir() and len(parts) == 1 else source.file
    return validate(named, labels, problems, names=names, types=types, ignore=source.ignore, other_names=other_names)


def load_all(data: str | Path) -> dict[str, Dataset]:
    """All splits of a data set by name, checked, with one list of types. Raises LeukoError."""
    names = splits(data)
    datasets = {name: load(data, name) for name in names}
    types = list(dict.fromkeys(name for dataset in datasets.values() for name in dataset.types))
    if all(dataset.types == types for dataset in datasets.values()):
        return datasets
    return {name: load(data, name, types) for name in names}


@io_errors_as("read")
def groups(data: str | Path, split: str) -> set[str]:
    """The groups (smears, patients) in a split's label files; its images need not be there. Empty without the split."""
    source = find(data)
    name = split if split in source.splits else _ALIASES.get(split, split)
    labels = source.parse(name, Problems()) if name in source.splits else []
    return {record.group for part in labels for record in part.records if record.group}


def check_groups(groups_by_split: dict[str, set[str]], data: str | Path) -> None:
    """Raise LeukoError where a group has images in two splits, since a model then is measured on what it learned."""
    for (a, groups_a), (b, groups_b) in combinations(groups_by_split.items(), 2):
        if shared := sorted(groups_a & groups_b):
            raise LeukoError(
                f"{data}: {len(shared)} groups have images in {a} and in {b}, such as {shared[0]}; divide the data "
                "again by leuko data split, or give --allow-leaks"
            )


# ---------------------------------------------------------------- what a path holds


@io_errors_as("read")
def find(data: str | Path) -> Source:
    """Find out what a folder, COCO file or data YAML holds; raises LeukoError."""
    path = Path(data)
    if path.is_dir():
        yaml = next((path / name for name in ("data.yaml", "data.yml") if (path / name).is_file()), None)
        return _from_yaml(yaml) if yaml else _from_folder(path)
    if not path.is_file():
        raise LeukoError(f"{path}: no such file or folder; name a folder, a COCO .json or a data YAML")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(path)
    if path.suffix.lower() == ".json":
        return Source(path, "coco", {coco.split_name(path): [path]})
    raise LeukoError(f"{path}: not a data set; name a folder, a COCO .json or a data YAML")


def _from_folder(folder: Path) -> Source:
    form, parts = _splits_in(folder)
    if parts:
        return Source(folder, form, {split: [part] for split, part in parts.items()})
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {child.name: _part(child) for child in inside}
    found = {name: (form, part) for name, (form, part) in found.items() if form}
    formats = {form for form, _ in found.values()}
    if not formats:
        raise LeukoError(f"{folder}: a folder without annotations; {_EXPECTED}")
    if len(formats) > 1:
        listed = ", ".join(f"{split} {form}" for split, (form, _) in found.items())
        raise LeukoError(f"{folder}: its folders hold different formats ({listed}); name one of them")
    return Source(folder, formats.pop(), {name: [part] for name, (_, part) in found.items()})


def _splits_in(folder: Path, form: str = "") -> tuple[str, dict[str, Path]]:
    """The format, if not given the first, in which a folder holds splits, and these; ("", {}) where there is none."""
    found = ((name, FORMATS[name].find(folder)) for name in ([form] if form else FORMATS))
    return next(((name, parts) for name, parts in found if parts), (form, {}))


def _part(path: Path, form: str = "") -> tuple[str, Path]:
    """The format of a folder, list or COCO file, ``form`` if that is given and "" if it is not clear, and the one part
    that it holds: the COCO file, list or folder of images in it."""
    if path.is_dir():
        form, parts = _splits_in(path, form)
        if len(parts) > 1:
            remedy = "name one of them, or what is wanted in a data YAML"
            raise LeukoError(f"{path}: the folder holds several splits ({', '.join(parts)}); {remedy}")
        return form, next(iter(parts.values()), path)
    if not form and path.suffix.lower() == ".json":
        form = "coco"
    elif not form:
        has_xml = any(file.is_file() for file, _ in voc.annotation_files(path))
        form = "voc" if has_xml or not all(map(is_image, read_list(path))) else "yolo"
    return form, path


def _from_yaml(file: Path) -> Source:
    keys = read_yaml(file)
    for key in keys:
        if key not in _KEYS + _FOREIGN_KEYS:
            raise LeukoError(f'{file}: unknown key "{key}"{nearest(str(key), _KEYS)}; the keys are {", ".join(_KEYS)}')
    names = parse_names(keys.get("names"), file)
    if names and keys.get("nc") not in (None, len(names)):
        raise LeukoError(f"{file}: nc: {keys['nc']}, but {len(names)} names; correct one of them")
    form = str(keys.get("format") or "")
    if form and form not in FORMATS:
        raise LeukoError(f'{file}: format: "{form}" is not one of {", ".join(FORMATS)}{nearest(form, FORMATS)}')
    if keys.get("voc_origin", 0) not in (0, 1):
        raise LeukoError(f"{file}: voc_origin: {keys['voc_origin']!r} is neither 0 (LabelImg) nor 1 (official VOC)")
    extra = keys.get("splits") or {}
    if not isinstance(extra, dict):
        raise LeukoError(f"{file}: splits: {extra!r:.60} is not a mapping of split names to files or folders")
    stated = {key: keys[key] for key in _ORDER if keys.get(key)}
    if both := [name for name in stated if extra.get(name)]:
        remedy = "leave one out, or give both in a list"
        raise LeukoError(f"{file}: {both[0]}: is given on its own and under splits; {remedy}")
    root = file.parent / str(keys.get("path") or ".")
    found: dict[str, list[tuple[str, Path]]] = {}
    for split, value in (stated | extra).items():
        for path in (_locate(file, root, split, text) for text in _as_list(value)):
            kind, part = _part(path, form)
            if not kind and list_images(path, recursive=True):
                kind = "yolo"  # images whose labels are missing
            found.setdefault(str(split), []).append((kind, part))
    if not found:
        raise LeukoError(f'{file}: no split; write "train: FOLDER" and "val: FOLDER"')
    formats = {name for parts in found.values() for name, _ in parts if name}
    if len(formats) != 1:
        listed = ", ".join(f"{part} {name or 'unknown'}" for parts in found.values() for name, part in parts)
        raise LeukoError(f'{file}: the format is not clear ({listed}); write "format: voc", "coco" or "yolo"')
    parts = {split: [part for _, part in parts] for split, parts in found.items()}
    ignore = [str(value) for value in _as_list(keys.get("ignore"))]
    return Source(file, formats.pop(), parts, names, ignore, int(keys.get("voc_origin", 0)))


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value] if value else []


def _locate(file: Path, root: Path, split: str, value: object) -> Path:
    """The path that a data YAML names; Roboflow writes ``../train/images`` for a folder beside its YAML."""
    for text in (str(value), str(value).removeprefix("../")):
        if os.path.exists(root / text):  # unlike Path.exists, also where the name is too long
            return root / text
    raise LeukoError(f"{file}: {split}: there is no {root / str(value)}; correct the path (it is relative to {root})")
