"""From one format to another, with all that a ``Dataset`` holds: ``leuko.data convert``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import yaml
from tqdm import tqdm

from ...errors import LeukoError, nearest
from ...io import one_line, write_text
from .. import source
from ..dataset import Dataset
from ..formats import coco, voc, yolo
from ..formats.sidecar import SIDE_FILE
from .folder import building

WRITERS = {"voc": voc.write, "coco": coco.write, "yolo": yolo.write}


def load_all(src: str | Path) -> dict[str, Dataset]:
    """All splits of a data set by name, checked, with one list of types. Raises LeukoError."""
    names = source.splits(src)
    datasets = {names[0]: source.load(src, names[0])}
    for name in names[1:]:
        datasets[name] = source.load(src, name)
        if datasets[name].types != datasets[names[0]].types:
            types = list(dict.fromkeys([*datasets[names[0]].types, *datasets[name].types]))
            return {split: source.load(src, split, types=types) for split in names}
    return datasets


def convert(
    src: str | Path, dst: str | Path, to: str, *, voc_origin: int = 0, force: bool = False, progress: bool = False
) -> dict[str, Dataset]:
    """Write all splits of a data set in another format (or the same), and return them as they were read.

    Boxes come back bit for bit, with class names and ids, splits, factors, groups, crowds and attributes; images are
    linked or copied, never encoded anew. What reading mends is written mended, and listed in ``warnings.txt``.

    Args:
        src: the data set; a folder, a COCO file or a data YAML.
        dst: the folder to make. It appears when all is done, or not at all.
        to: ``voc``, ``coco`` or ``yolo``.
        voc_origin: 0 writes VOC as LabelImg does, 1 by the official convention, with a data YAML that says so.
        force: replace a data set that is in ``dst``.
        progress: show a bar on the terminal.

    Raises:
        LeukoError: the data set has errors, ``dst`` exists, it lies in ``src``, or it cannot be written.
    """
    if to not in WRITERS:
        raise LeukoError(f"--to {to}: is no format{nearest(to, WRITERS)}; give {', '.join(WRITERS)}")
    if voc_origin and to != "voc":
        raise LeukoError(f"--voc-origin: is about VOC, not {to}; leave it out")
    datasets = load_all(src)
    check_names(datasets, to)
    check_apart(src, dst, datasets)
    write = partial(voc.write, voc_origin=1) if voc_origin else WRITERS[to]
    with building(dst, force) as folder:
        for split, dataset in tqdm(datasets.items(), desc="writing", unit="split", disable=not progress):
            write(dataset, folder, split)
        if voc_origin:
            write_text(folder / "data.yaml", _yaml(datasets))
        list_warnings(folder, datasets)
    return datasets


def check_names(names: Iterable[str], to: str) -> None:
    """Raise LeukoError for a split's name that is no file's name, or that would read back as another."""
    for name in names:
        if name.startswith(".") or not name.strip() or re.search(r"[/\\\x00-\x1f]", name):
            raise LeukoError(f'split "{one_line(name)}": cannot be a file\'s name; rename it')
        file = Path(f"{name}.json")
        if to == "coco" and (coco.split_name(file) != name or file.name == SIDE_FILE):
            raise LeukoError(f'split "{name}": a COCO file {file} would not read back as that split; rename it')


def list_warnings(folder: Path, datasets: dict[str, Dataset]) -> None:
    """Write what was mended as ``warnings.txt``, a line each, if anything was."""
    if warnings := dict.fromkeys(str(warning) for dataset in datasets.values() for warning in dataset.warnings):
        write_text(folder / "warnings.txt", "\n".join(warnings) + "\n")


def check_apart(src: str | Path, dst: str | Path, datasets: dict[str, Dataset]) -> None:
    """Refuse a destination that is the source, lies in it or holds any of it, as that would be changed or replaced."""
    here, there = Path(src).resolve(), Path(dst).resolve()
    parts = {part.resolve() for parts in source.find(src).splits.values() for part in parts}
    parts |= {folder.resolve() for dataset in datasets.values() for folder in {s.image.parent for s in dataset.samples}}
    inside = here.is_dir() and here in (there, *there.parents)
    if inside or any(there in (part, *part.parents) for part in (here, *parts)):
        raise LeukoError(f"{dst}: is the source, lies in it or holds it; name another folder")


def _yaml(datasets: dict[str, Dataset]) -> str:
    """The data YAML of a VOC folder in the official convention."""
    lists = {split: f"ImageSets/Main/{split}.txt" for split in datasets}
    content = {"path": ".", **{split: lists.pop(split) for split in ("train", "val", "test") if split in lists}}
    content |= {"splits": lists} if lists else {}
    content |= {"names": next(iter(datasets.values())).types, "format": "voc", "voc_origin": 1}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
