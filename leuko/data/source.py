"""Find out what a path holds, VOC, COCO or YOLO, and read one split of it.

load("slides/", "train")  a folder: Annotations/, *.json, images/ + labels/, or sub-folders train/, valid/, ...
load("test.json", "test")  one COCO file
load("slides.yaml", "val")  a data YAML:

    path: slides                # relative to the YAML's folder, like everything below it
    train: images/train         # a folder, COCO file, ImageSets list or list of image paths, or several of them
    val: [a/val.json, b/val.json]
    names: [NG, BG, EG, L, M]   # or a mapping of index to name
    format: coco                # voc, coco or yolo, where it cannot be told
    ignore: [Platelets]         # classes to leave out and count
    voc_origin: 1               # VOC in the official convention: pixels counted from 1
    splits: {extra: more.json}  # splits of other names
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import LeukoError, nearest
from ..io import io_errors_as, read_list, read_yaml
from .dataset import Dataset
from .formats import coco, voc, yolo
from .formats.names import by_index
from .formats.records import Labels, Problems
from .images import is_image, list_images
from .validate import validate

FORMATS = {"voc": voc, "coco": coco, "yolo": yolo}
_ORDER = ("train", "val", "test")
_ALIASES = {"valid": "val", "validation": "val"}
_KEYS = ("path", "train", "val", "test", "splits", "names", "nc", "format", "ignore", "voc_origin")
_FOREIGN_KEYS = ("download", "roboflow", "channels")  # other tools' keys that mean nothing here
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

    def own_name(self, split: str) -> str:
        """The name of the split that is given by it or by an alias; raises LeukoError where there is none."""
        name = split if split in self.splits else _ALIASES.get(split, split)
        if name not in self.splits:
            raise LeukoError(f'{self.file}: no split "{split}"; it has: {", ".join(self.splits)}')
        return name


def splits(data: str | Path) -> list[str]:
    """Return the names of the splits, train, val and test first; ``["all"]`` for a set that is not split."""
    return list(find(data).splits)


def split_name(data: str | Path, split: str) -> str:
    """Return a data set's own name of a split: ``val`` for ``valid`` and ``validation``. Raises LeukoError."""
    return find(data).own_name(split)


@io_errors_as("read")
def load(data: str | Path, split: str, types: Sequence[str] | None = None, problems: Problems | None = None) -> Dataset:
    """Read and check one split of a data set.

    ``data`` is a folder, a COCO file or a data YAML. With ``types`` the classes are matched to these by name, and a
    class without counterpart is an error. What was mended is listed in ``Dataset.warnings``. Raises LeukoError; with
    ``problems`` that collect, only where nothing can be read.
    """
    source = find(data)
    parts, names, problems = source.splits[source.own_name(split)], source.names, problems or Problems()
    if source.format == "yolo":
        names = names or yolo.names_beside(parts[0])
    elif source.format == "voc":
        names = names or dict(enumerate(voc.names_beside(parts[0])))
    labels = [_parse(source, part, names, problems) for part in parts]
    found: set[str] = set()
    every = (part for each in source.splits.values() for part in each)
    if source.format == "voc" and (source.ignore or not (names or types)):
        problems.stop()
        found = voc.class_names(every, skip_broken=problems.collect)
    elif source.format == "coco" and source.ignore:  # a class to leave out may stand in another split's file alone
        found = coco.class_names(every)
    wanted = {"names": list(names.values()), "types": types, "ignore": source.ignore, "found": found}
    named = parts[0] if source.file.is_dir() and len(parts) == 1 else source.file
    return validate(named, labels, problems, **wanted)


@io_errors_as("read")
def groups(data: str | Path, split: str) -> set[str]:
    """Return the groups (smears, patients) that a split's label files name; its images need not be there."""
    source = find(data)
    parts = source.splits.get(split) or source.splits.get(_ALIASES.get(split, split), [])
    names = source.names or (yolo.names_beside(parts[0]) if source.format == "yolo" and parts else {})
    records = (r for part in parts for r in _parse(source, part, names, Problems()).records)
    return {record.group for record in records if record.group}


def _parse(source: Source, part: Path, names: dict[int, str], problems: Problems) -> Labels:
    if source.format == "voc":
        return voc.parse(part, problems, source.voc_origin)
    if source.format == "yolo":
        return yolo.parse(part, problems, names)
    return coco.parse(part, problems)


@io_errors_as("read")
def find(data: str | Path) -> Source:
    """Find out what a folder, COCO file or data YAML holds; raises LeukoError."""
    path = Path(data)
    if path.is_dir():
        for name in ("data.yaml", "data.yml"):
            if (path / name).is_file():
                return _from_yaml(path / name)
        return _from_folder(path)
    if not path.is_file():
        raise LeukoError(f"{path}: no such file or folder; name a folder, a COCO .json or a data YAML")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(path)
    if path.suffix.lower() == ".json":
        return Source(path, "coco", {_ALIASES.get(coco.split_name(path), coco.split_name(path)): [path]})
    raise LeukoError(f"{path}: not a data set; name a folder, a COCO .json or a data YAML")


def _from_folder(folder: Path) -> Source:
    for name, module in FORMATS.items():
        if parts := module.find(folder):
            return Source(folder, name, _in_order({split: [part] for split, part in parts.items()}, folder))
    parts = {}
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for name, module in FORMATS.items():
            if found := module.find(child):
                parts[child.name] = (name, _only(child, found))
                break
    if not parts:
        raise LeukoError(f"{folder}: a folder without annotations; {_EXPECTED}")
    formats = {name for name, _ in parts.values()}
    if len(formats) > 1:
        listed = ", ".join(f"{split} {name}" for split, (name, _) in parts.items())
        raise LeukoError(f"{folder}: its folders hold different formats ({listed}); name one of them")
    return Source(folder, formats.pop(), _in_order({split: [part] for split, (_, part) in parts.items()}, folder))


def _in_order(parts: dict[str, list[Path]], file: Path) -> dict[str, list[Path]]:
    """Call ``valid`` or ``validation`` ``val``, and put the usual splits first; having both raises LeukoError."""
    if "val" not in parts and len(both := [name for name in parts if name in _ALIASES]) > 1:
        remedy = "write a data YAML that names the one to take, or both in a list"
        raise LeukoError(f"{file}: {' and '.join(both)} are both the split val; {remedy}")
    parts = {_ALIASES.get(name, name) if _ALIASES.get(name) not in parts else name: p for name, p in parts.items()}
    rank = {name: i for i, name in enumerate(_ORDER)}
    return dict(sorted(parts.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def _from_yaml(file: Path) -> Source:
    keys = read_yaml(file)
    for key in keys:
        if key not in _KEYS + _FOREIGN_KEYS:
            raise LeukoError(f'{file}: unknown key "{key}"{nearest(str(key), _KEYS)}; the keys are {", ".join(_KEYS)}')
    names = by_index(keys.get("names"), file)
    if names and keys.get("nc") not in (None, len(names)):
        raise LeukoError(f"{file}: nc: {keys['nc']}, but {len(names)} names; correct one of them")
    extra = keys.get("splits") or {}
    if not isinstance(extra, dict):
        raise LeukoError(f"{file}: splits: {extra!r:.60} is not a mapping of split names to files or folders")
    if twice := [name for name in _ORDER if keys.get(name) and extra.get(name)]:
        raise LeukoError(f"{file}: {twice[0]}: stands there and under splits; leave one out, or give both in a list")
    root = file.parent / str(keys.get("path") or ".")
    stated = {name: value for name, value in ({key: keys.get(key) for key in _ORDER} | extra).items() if value}
    parts = {str(name): [_locate(file, root, name, v) for v in _as_list(value)] for name, value in stated.items()}
    if not parts:
        raise LeukoError(f'{file}: no split; write "train: FOLDER" and "val: FOLDER"')
    name = str(keys.get("format") or _tell_format(file, parts))
    if name not in FORMATS:
        raise LeukoError(f'{file}: format: "{name}" is not one of {", ".join(FORMATS)}{nearest(name, FORMATS)}')
    if keys.get("voc_origin", 0) not in (0, 1):
        raise LeukoError(f"{file}: voc_origin: {keys['voc_origin']!r} is neither 0 (LabelImg) nor 1 (official VOC)")
    parts = {split: [_inside(part, name) for part in paths] for split, paths in parts.items()}
    ignore = [str(value) for value in _as_list(keys.get("ignore") or [])]
    return Source(file, name, _in_order(parts, file), names, ignore, int(keys.get("voc_origin", 0)))


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _locate(file: Path, root: Path, split: str, value: object) -> Path:
    """Find what a split names; Roboflow writes ``../train/images`` for a folder beside its YAML."""
    for text in (str(value), str(value).removeprefix("../")):
        if os.path.exists(root / text):  # unlike Path.exists, also where the name is too long
            return root / text
    raise LeukoError(f"{file}: {split}: there is no {root / str(value)}; correct the path (it is relative to {root})")


def _tell_format(file: Path, parts: dict[str, list[Path]]) -> str:
    """Tell the format of a YAML's splits, which must be one."""
    told = {part: _format_of(part) for paths in parts.values() for part in paths}
    formats = {name for name in told.values() if name}
    if len(formats) != 1:
        listed = ", ".join(f"{part} {name or 'unknown'}" for part, name in told.items())
        raise LeukoError(f'{file}: the format cannot be told ({listed}); write "format: voc", "coco" or "yolo"')
    return formats.pop()


def _format_of(part: Path) -> str:
    """Return the format of one folder or file of a split, or ""."""
    if part.is_dir():
        found = next((name for name, module in FORMATS.items() if module.find(part)), "")
        return found or ("yolo" if list_images(part, recursive=True) else "")
    if part.suffix.lower() == ".json":
        return "coco"
    lines = read_list(part)
    has_xml = any(file.is_file() for file, _ in voc.annotations(part))
    return "voc" if has_xml or not all(map(is_image, lines)) else "yolo"


def _inside(part: Path, name: str) -> Path:
    """Return the one part that a folder holds: its COCO file, or the images in it."""
    if part.is_file():
        return part
    found = FORMATS[name].find(part)
    return _only(part, found) if found else part


def _only(folder: Path, found: dict[str, Path]) -> Path:
    """Return the one part that was found in a folder; LeukoError if there are several."""
    if len(found) > 1:
        remedy = "name one of them, or what is wanted in a data YAML"
        raise LeukoError(f"{folder}: the folder holds several splits ({', '.join(found)}); {remedy}")
    return next(iter(found.values()))
