"""The folder of a new data set: it appears when all is done, or not at all, and replaces only a data set."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...errors import LeukoError
from ...io import io_errors_as, one_line, write_text
from .. import source
from ..dataset import Dataset
from ..formats import coco
from ..formats.sidecar import SIDECAR
from ..images import IMAGE_SUFFIXES

_FOLDERS = ("images", "labels", "JPEGImages", "Annotations", "ImageSets")
_FILES = ("classes.txt", "data.yaml", "warnings.txt", "reviewed.csv", SIDECAR)
_SUFFIXES = (*IMAGE_SUFFIXES, ".xml", ".txt", ".json", ".csv", ".cache")  # of files in a data set's folders


def read_source(
    src: str | Path, dst: str | Path, form: str = "", names: Sequence[str] = ()
) -> tuple[str, dict[str, Dataset]]:
    """The format to write, ``form`` or else the source's own, and all splits of the source.

    Raises LeukoError where ``dst`` is the source, lies in it or holds any of it, since that would be changed, or where
    the name of a split (the source's own, or ``names``) is not a file's name or would be read back as another.
    """
    found = source.find(src)
    form = form or found.format
    for name in names or found.splits:
        if name.startswith(".") or not name.strip() or re.search(r"[/\\\x00-\x1f]", name):
            raise LeukoError(f'split "{one_line(name)}": cannot be a file\'s name; rename it')
        file = Path(f"{name}.json")
        if form == "coco" and (coco.split_name(file) != name or file.name == SIDECAR):
            raise LeukoError(f'split "{name}": a COCO file {file} would not read back as that split; rename it')
    datasets = source.load_all(src)
    here, there = Path(src).resolve(), Path(dst).resolve()
    parts = {here, *(part.resolve() for parts in found.splits.values() for part in parts)}
    parts |= {folder.resolve() for dataset in datasets.values() for folder in {s.image.parent for s in dataset.samples}}
    lies_in_source = here.is_dir() and here in (there, *there.parents)
    if lies_in_source or any(there in (part, *part.parents) for part in parts):
        raise LeukoError(f"{dst}: is the source, lies in it or holds it; name another folder")
    return form, datasets


def write_warnings(folder: Path, datasets: dict[str, Dataset]) -> None:
    """Write ``warnings.txt``, a line for each thing that was fixed or left out, if anything was."""
    lines = [str(warning) for dataset in datasets.values() for warning in dataset.warnings]
    for split, dataset in datasets.items():
        for name, number in dataset.ignored.items():
            lines.append(f"{split}: class {name}: {number} cells; left out, as the data YAML says")
    if lines:
        write_text(folder / "warnings.txt", "\n".join(dict.fromkeys(lines)) + "\n")


@contextmanager
def building(dst: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``dst`` to build a data set in, which takes the place of ``dst`` at the end.

    If the block fails, ``dst`` is left as it was. Raises LeukoError where ``dst`` is a file, holds a data set and
    ``force`` is not given, holds anything else, or cannot be written.
    """
    dst = Path(dst).resolve()  # so that behind a symbolic link the folder itself is replaced
    _check_free(dst, force)
    folder = dst.with_name(f".{dst.name}.leuko-{os.getpid()}")
    old = folder.with_name(folder.name + "-old")
    try:
        with io_errors_as("written", dst):
            folder.mkdir(parents=True)
            yield folder
            if dst.exists():
                dst.rename(old)
            folder.rename(dst)
    finally:
        if old.exists() and not dst.exists():
            old.rename(dst)
        for leftover in (folder, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_free(dst: Path, force: bool) -> None:
    """Refuse a destination that would be overwritten without consent, or that holds more than a data set."""
    if dst.exists() and not dst.is_dir():
        raise LeukoError(f"{dst}: is a file; name a folder")
    content = sorted(dst.iterdir()) if dst.is_dir() else []
    if not content:
        return
    if not force:
        raise LeukoError(f"{dst}: exists and is not empty; choose another folder, or replace its data set with --force")
    foreign = [p for p in content if p.name not in (*_FOLDERS, *_FILES)]
    foreign = [p for p in foreign if not coco.is_coco(p) and not re.fullmatch(r"fold\d+\.yaml", p.name)]
    inside = (p for top in content for p in sorted(top.rglob("*")))
    foreign += [p for p in inside if p.is_file() and p.suffix.lower() not in _SUFFIXES]
    if foreign:
        name = foreign[0].relative_to(dst)
        raise LeukoError(f'{dst}: holds "{name}", which is no part of a data set; choose another folder')
    try:
        source.find(dst)
    except LeukoError as error:
        raise LeukoError(f"{dst}: holds no data set to replace ({error}); choose another folder") from error
