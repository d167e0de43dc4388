"""Weights that have a name (``weights/registry.yaml``): those that come with leuko, and those that others trained and
``leuko download`` brings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import LeukoError, nearest
from .io import read_yaml

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE.parent / "weights", PACKAGE / "weights")  # of a clone, of an installed package
DEFAULT = "leuko-small"  # the detector where none is named
DOWNLOADS = Path("weights")
FOREIGN = ".pt"  # suffix of Ultralytics' weights, which are read and never written


@dataclass(frozen=True)
class Entry:
    """A file of weights in the registry; ``sha256`` is the hash in hexadecimal or its beginning, ``size`` in MB. Of
    weights that come with leuko these are not stated, and neither is a ``url``; but ``cell`` is, the width of a cell in
    their training in pixels of the network and of the images."""

    name: str
    model: str
    licence: str
    source: str
    url: str = ""
    sha256: str = ""
    size: str = "?"
    cell: str = ""

    @property
    def comes_with_leuko(self) -> bool:
        """Whether the file lies beside the registry."""
        return not self.url

    @property
    def file(self) -> str:
        """Name of the file, as its publisher calls it."""
        return self.url.rsplit("/", 1)[1] if self.url else f"{self.name}.safetensors"

    def path(self, folder: Path = DOWNLOADS) -> Path:
        """Where the file is to lie; ``folder`` is that of downloads."""
        return (home() if self.comes_with_leuko else folder) / self.file

    def present(self, folder: Path = DOWNLOADS) -> Path:
        """The file; LeukoError with the command that brings it if it is not there."""
        path = self.path(folder)
        if path.is_file():
            return path
        if self.comes_with_leuko:
            raise LeukoError(f"{path}: no such file, though {self.name} comes with leuko; install leuko again")
        raise LeukoError(f"{path}: not downloaded yet; run: leuko download {self.name}")


def home() -> Path:
    """The folder of the registry, and of the weights that come with leuko. Raises LeukoError where it is missing."""
    for folder in FOLDERS:
        if (folder / "registry.yaml").is_file():
            return folder
    raise LeukoError(f"{FOLDERS[0] / 'registry.yaml'}: no such file; install leuko from its repository")


def registry() -> dict[str, Entry]:
    """All weights that have a name, by it, in the order of the file; LeukoError where the registry is missing."""
    listed = read_yaml(home() / "registry.yaml")
    return {name: Entry(name, **{k: str(v) for k, v in entry.items()}) for name, entry in listed.items()}


def find(name: str) -> Entry:
    """The registry's entry of a name; LeukoError that names the nearest if there is none."""
    known = registry()
    if name not in known:
        raise LeukoError(f'"{name}" is not in the registry{nearest(name, known)} (leuko download lists it)')
    return known[name]


def find_weights(source: str | Path) -> Path:
    """The weights file that a run folder (its best weights, else its last), a file's own path or, where nothing lies at
    such a path, a name of the registry means."""
    path = Path(source)
    if path.is_dir():
        for name in ("best", "last"):
            if (file := path / "weights" / f"{name}.safetensors").is_file():
                return file
        hidden = registry().get(str(source))
        remedy = f"rename it, since it hides these weights, or name {hidden.path()}" if hidden else "name a run folder"
        raise LeukoError(f"{path}: no weights/best.safetensors or last.safetensors in it; {remedy}")
    if path.exists():
        return path
    known = registry()
    if str(source) in known:
        return known[str(source)].present()
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise LeukoError(f"{path}: no such run or weights file{nearest(path.name, [*known, *siblings])}")


def comes_with_leuko(path: Path) -> bool:
    """Whether a file is one of those that come with leuko, which are never written."""
    path = path.resolve()
    return any(entry.comes_with_leuko and entry.path().resolve() == path for entry in registry().values())


def licence_of(path: Path) -> str:
    """The licence of weights that are in the registry; "" for others, which is for their owner to say."""
    path = path.resolve()
    return next((entry.licence for entry in registry().values() if entry.path().resolve() == path), "")


def backbone_file(backbone: str) -> Path | None:
    """The file of a backbone's ImageNet weights, the first of the registry that was downloaded."""
    files = (entry.path() for entry in registry().values() if entry.model == backbone)
    return next((file for file in files if file.is_file()), None)
