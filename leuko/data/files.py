"""Text read with an error that names the file, text written whole or not at all, images linked or copied."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml

from leuko.errors import LeukoError


@contextmanager
def refusals_told() -> Iterator[None]:
    """What the system refuses to read (no permission, a name too long) raises LeukoError; also a decorator."""
    try:
        yield
    except OSError as error:
        raise LeukoError(f"{error.filename or 'the data'}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text (a byte-order mark is left out); raises LeukoError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LeukoError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LeukoError(f"{path}: byte {error.start}: not UTF-8 text; save the file as UTF-8") from error


def read_list(path: Path) -> list[str]:
    """Return the lines of a list, stripped, without blank lines and ``#`` comments; raises LeukoError."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a short file expand without end."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*NAME) are not accepted", problem_mark=mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict:
    """Return the mapping that a YAML file holds; raises LeukoError."""
    text = read_text(path)
    try:
        content = yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise LeukoError(f"{path}: {line}broken YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise LeukoError(f"{path}: broken YAML: {one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise LeukoError(f"{path}: not a mapping of keys to values; a data YAML has train, val and names")
    return content


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename, so that a file is never half-written."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(text.encode("utf-8"))
        os.replace(temporary, path)
    except UnicodeEncodeError as error:  # a file name that is no text, in what is to be written
        named = error.object[max(error.start - 20, 0) : error.end + 20].encode("utf-8", "backslashreplace").decode()
        raise LeukoError(f"{path}: cannot be written: ...{one_line(named)}... is no UTF-8; rename the file") from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LeukoError(f"{path}: cannot be written: {error.strerror}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".leuko-{os.getpid()}.tmp")


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and return it; raises LeukoError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LeukoError(f"{path}: cannot be made: {error.strerror}") from error
    return path


def place_images(
    images: Sequence[Path], folder: Path, fits: Callable[[int, Path], bool] = lambda number, there: True
) -> list[Path]:
    """Bring images into one folder, byte for byte, under names whose stems are unique there; return their new paths.

    An image that is there already keeps its place, if ``fits(number of the image, its path there)``. Another image of
    the same name goes beside it as ``NAME-2``. Files are hard-linked, or copied where the file system cannot link.
    Raises LeukoError.
    """
    make_folder(folder)
    there = {p.stem.casefold(): p for p in folder.iterdir()}
    placed: dict[Path, None] = {}
    for number, image in enumerate(images):
        try:
            placed[_place(image, folder, there, placed, partial(fits, number))] = None
        except OSError as error:
            raise LeukoError(f"{image}: cannot be copied to {folder}: {error.strerror}") from error
    return list(placed)


def _place(
    image: Path, folder: Path, there: dict[str, Path], placed: Container[Path], fits: Callable[[Path], bool]
) -> Path:
    number, stem = 1, image.stem
    while (old := there.get(stem.casefold())) is not None:
        if old not in placed and old.suffix == image.suffix and _same(old, image) and fits(old):
            return old
        number += 1
        stem = f"{image.stem}-{number}"
    new = there[stem.casefold()] = folder / (stem + image.suffix)
    _link_or_copy(image, new)
    return new


def _same(a: Path, b: Path) -> bool:
    return a.samefile(b) or filecmp.cmp(a, b, shallow=False)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # resolved, because a symbolic link would be linked itself
    except OSError:
        temporary = _temporary(target)
        try:
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def one_line(text: str) -> str:
    """Replace control characters, which a name in a file may hold, so that a message stays on one line."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)
