"""What a path holds: VOC, COCO or YOLO, in which splits, and how its labels are to be read.

A folder has Annotations/, *.json, images/ + labels/, or sub-folders train/, valid/, ...; or there is a data YAML, whose
keys docs/data.md explains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

from ..errors import LeukoError
from ..io import io_errors_as, read_list, read_yaml
from ..kinds import misfit
from .dataset import Note
from .formats import FORMATS, coco, voc
from .formats.records import Labels, Problems, ReadOptions, parse_names
from .images import is_hidden, is_image, list_images

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_ORDER = ("train", "val", "test")
_ALIASES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_ALIASES |= {"val": "val", "valid": "val", "validation": "val"}
_POSE = "kpt_shape"  # Ultralytics' key of key points
_NAME = str | int  # which YAML makes of a name of digits
_PATHS = _NAME | list[_NAME]
_CHOICES = {key: hint for key, hint in get_type_hints(ReadOptions).items() if get_origin(hint) is Literal}
_KINDS = {  # of the values of a data YAML
    "path": _NAME,
    **dict.fromkeys(_ORDER, _PATHS),
    "splits": dict[_NAME, _PATHS],
    "names": object,
    "nc": int,
    "ignore": _PATHS,
    "map": str | dict[_NAME, str],
    "types": _NAME,
    "format": Literal[tuple(FORMATS)],
    **_CHOICES,
    **dict.fromkeys(("download", "roboflow", "channels", "task"), object),  # of other tools
    **dict.fromkeys((_POSE, "flip_idx", "kpt_names"), object),
}
_EXPECTED = "expected Annotations/ (VOC), a COCO .json, images/ + labels/ (YOLO), or a data YAML"


@dataclass
class Source:
    """A data set that was found: its format, its splits as lists of folders, lists or COCO files, and how to read them.

    ``new_names`` are the names that the data YAML gives to classes, "" in it that of all others; ``types`` is its table
    of the images' types; ``missing`` says of splits that it names what is not there.
    """

    file: Path
    format: str
    splits: dict[str, list[Path]]
    options: ReadOptions
    new_names: dict[str, str] = field(default_factory=dict)
    types: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Call the usual splits ``train``, ``val`` and ``test``, whatever their case, and put them first; LeukoError
        where two have one of these names."""
        usual = {name: _ALIASES.get(name.casefold(), name) for name in self.splits}
        names: dict[str, str] = {}
        for name in self.splits:
            new = name if usual[name] in self.splits else usual[name]
            if new in names:
                remedy = "write a data YAML that names the one to take, or both in a list"
                raise LeukoError(f"{self.file}: {names[new]} and {name} are both the split {new}; {remedy}")
            names[new] = name
        order = dict.fromkeys([*(name for name in _ORDER if name in names), *sorted(names)])
        self.splits = {name: self.splits[names[name]] for name in order}

    def own_name(self, split: str) -> str:
        """The name that a split has here, if it is here."""
        return split if split in self.splits else _ALIASES.get(split.casefold(), split)

    def split_name(self, split: str) -> str:
        """The name of the split that is given by it or by an alias; raises LeukoError where there is none."""
        name = self.own_name(split)
        if name in self.missing:
            raise LeukoError(self.missing[name])
        if name not in self.splits:
            only = next(iter(self.splits)) if len(self.splits) == 1 else ""
            remedy = f"; name it, as in --train-split {only}, or divide the data by leuko data split" if only else ""
            raise LeukoError(f'{self.file}: no split "{split}"; it has: {", ".join(self.splits)}{remedy}')
        return name

    def new_name(self, name: str) -> str:
        """The name that the data YAML gives to a class."""
        return self.new_names.get(name, self.new_names.get("", name))

    def parse(self, split: str, problems: Problems) -> Labels:
        """Read the label files of a split, with the new names of classes; where the first part lists the classes, that
        list is for all."""
        whole = Labels(names=self.options.names)
        for number, part in enumerate(self.splits[split]):
            options = replace(self.options, names=whole.names, root=_root_of(part, self.options.root))
            labels = FORMATS[self.format].parse(part, problems, options)
            if number == 0:
                whole.names = whole.names or labels.names
            whole.add(labels)
        if self.new_names:
            whole.rename(self.new_name)
        if split == next(iter(self.splits)):
            problems.notes += [Note(f"{message}; the split is left out") for message in self.missing.values()]
        return whole


@io_errors_as("read")
def find(data: str | Path) -> Source:
    """Find out what a folder, COCO file or data YAML holds; raises LeukoError."""
    path = Path(data)
    if path.is_dir():
        yaml = next((path / name for name in YAML_FILES if (path / name).is_file()), None)
        return _from_yaml(yaml) if yaml else _from_folder(path)
    if not path.is_file():
        raise LeukoError(f"{path}: no such file or folder; name a folder, a COCO .json or a data YAML")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(path)
    if path.suffix.lower() == ".json":
        return Source(path, "coco", {coco.split_name(path): [path]}, ReadOptions(_root_of(path)))
    raise LeukoError(f"{path}: not a data set; name a folder, a COCO .json or a data YAML")


def _from_folder(folder: Path) -> Source:
    form, parts = _splits_in(folder)
    found = {split: [(form, part)] for split, part in parts.items()}
    if not found:
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
        found = {child.name: [place] for child in inside if (place := _part(child))[0]}
    if not found:
        raise LeukoError(f"{folder}: a folder without annotations; {_EXPECTED}")
    return _of_one_format(folder, found, ReadOptions(folder))


def _of_one_format(
    file: Path, found: dict[str, list[tuple[str, Path]]], options: ReadOptions, **about: object
) -> Source:
    """The source of parts whose formats are known; LeukoError where they differ, or none is."""
    formats = {name for parts in found.values() for name, _ in parts if name}
    if len(formats) != 1:
        listed = ", ".join(f"{part} {name or 'unknown'}" for parts in found.values() for name, part in parts)
        remedy = 'name one of them, or write "format: voc", "coco" or "yolo" in a data YAML'
        raise LeukoError(f"{file}: the format is not clear ({listed}); {remedy}")
    parts = {split: [part for _, part in parts] for split, parts in found.items()}
    return Source(file, formats.pop(), parts, options, **about)


def _root_of(part: Path, root: Path | None = None) -> Path:
    """The folder of the data set that a part belongs to: ``root``, if it is in that, or the part's own."""
    if root and Path(os.path.abspath(part)).is_relative_to(os.path.abspath(root)):
        return root
    folder = part if part.is_dir() else part.parent
    return folder.parent if folder.name == "annotations" else folder


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
        has_xml = any(file.is_file() for file in voc.annotation_files(path))
        form = "voc" if has_xml or not all(map(is_image, read_list(path))) else "yolo"
    return form, path


def _from_yaml(file: Path) -> Source:
    keys = {key: value for key, value in read_yaml(file).items() if value is not None}
    if problem := misfit(keys, _KINDS, optional=_KINDS):
        raise LeukoError(f"{file}: {problem}; its keys are in docs/data.md")
    names = parse_names(keys.get("names"), file)
    if names and keys.get("nc") not in (None, len(names)):
        raise LeukoError(f"{file}: nc: {keys['nc']}, but {len(names)} names; correct one of them")
    chosen = {key: keys[key] for key in _CHOICES if key in keys}
    if _POSE in keys:
        chosen["rows"] = "keypoints"
    form, extra = keys.get("format", ""), keys.get("splits", {})
    stated = {key: keys[key] for key in _ORDER if keys.get(key)}
    if both := [name for name in stated if extra.get(name)]:
        remedy = "leave one out, or give both in a list"
        raise LeukoError(f"{file}: {both[0]}: is given on its own and under splits; {remedy}")
    root = file.parent / str(keys.get("path") or ".")
    if os.path.isabs(str(keys.get("path"))) and not root.exists():
        root = file.parent  # the path on the machine that wrote the file
    found: dict[str, list[tuple[str, Path]]] = {}
    missing: dict[str, str] = {}
    for split, value in (stated | extra).items():
        for text in _as_list(value):
            if path := _locate(root, text):
                kind, part = _part(path, form)
                if not kind and list_images(path, recursive=True):
                    kind = "yolo"  # images whose labels are missing
                found.setdefault(str(split), []).append((kind, part))
            else:
                remedy = f"correct the path (it is relative to {root})"
                missing[str(split)] = f"{file}: {split}: there is no {root / str(text)}; {remedy}"
    found = {split: parts for split, parts in found.items() if split not in missing}
    if not found:
        raise LeukoError(next(iter(missing.values()), f'{file}: no split; write "train: FOLDER" and "val: FOLDER"'))
    ignore = [str(value) for value in _as_list(keys.get("ignore"))]
    types = file.parent / str(keys["types"]) if keys.get("types") else None
    new_names = keys.get("map", {})
    new_names = {"": new_names} if isinstance(new_names, str) else new_names
    new_names = {str(old): new.strip() for old, new in new_names.items()}
    if not all(new_names.values()):
        raise LeukoError(f"{file}: map: gives a class an empty name; write one")
    options = ReadOptions(root, names, ignore, **chosen)
    return _of_one_format(file, found, options, new_names=new_names, types=types, missing=missing)


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value] if value else []


def _locate(root: Path, value: object) -> Path | None:
    """The path that a data YAML names; Roboflow writes ``../train/images`` for a folder beside its YAML."""
    texts = (str(value), str(value).removeprefix("../"), str(value).replace("\\", "/"))
    return next((root / text for text in texts if os.path.exists(root / text)), None)  # even where a name is too long
