"""`python -m leuko.download`: fetch weights that others trained, by the names of ``weights/registry.yaml``.

Nothing else in leuko reaches for the network. A file appears under its own name only when it is whole and its SHA-256
is the one that the registry states.
"""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("download")

import os
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from .config import DownloadOptions
from .errors import LeukoError
from .io import digest, io_errors_as, make_folder
from .registry import DOWNLOADS, Entry, find, registry

TIMEOUT = 30.0  # seconds without a byte


def download(entry: Entry, folder: Path = DOWNLOADS, mirror: str = "") -> Path:
    """Bring a file into ``folder`` and return its path, at once if it is there and whole, as where it was carried in.

    ``mirror`` is an http(s) URL under which the file lies by its name. Raises LeukoError where it cannot be had or its
    hash is wrong.
    """
    if mirror and not mirror.startswith(("http://", "https://")):
        raise LeukoError(f"--mirror {mirror}: is no URL; begin it with http:// or https://")
    path, stated = entry.path(folder), entry.sha256
    if path.is_file():
        if not (found := digest(path)).startswith(stated):
            raise LeukoError(f"{path}: its SHA-256 is {found}, not {stated}; remove it and download it again")
        print(f"{path} is there and whole")
        return path
    _fetch(f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.url, make_folder(folder) / entry.file, stated)
    known = len(stated)
    proof = "SHA-256 as stated" if known == 64 else f"only {known} of 64 digits of its SHA-256 are known, and they fit"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {proof} ({entry.licence}; {entry.source})")
    return path


def _fetch(url: str, path: Path, sha256: str) -> None:
    """Download a file whose SHA-256 begins like this; LeukoError where it cannot be had, or is another."""
    from torch.hub import download_url_to_file  # not before: it takes seconds

    remedy = f"try again, give a --mirror, or carry the file into {path.parent}"
    with io_errors_as("written", path):
        try:
            download_url_to_file(url, str(path), sha256)
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            raise LeukoError(f"{url}: cannot be reached ({str(error) or type(error).__name__}); {remedy}") from error
        except RuntimeError as error:  # a wrong hash, of a file that was cut off, too
            raise LeukoError(f"{url}: {error}; {remedy}") from error


def listing(folder: Path) -> str:
    """What there is: one line per entry."""
    rows = []
    for entry in registry().values():
        is_here = (path := entry.path(folder)).is_file()
        size = f"{path.stat().st_size / 1e6:.1f}" if is_here else entry.size
        rows.append((entry.name, entry.model, size, "here" if is_here else "", entry.licence, entry.source))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, model, size, here, licence, source in rows:
        columns = (name.ljust(wide[0]), model.ljust(wide[1]), f"{size.rjust(wide[2])} MB", here.ljust(4))
        lines.append("  ".join((*columns, licence.ljust(wide[4]), source)))
    return "\n".join(lines)


def run(options: DownloadOptions) -> None:
    """The command: list the registry, or bring the files of some of its names."""
    socket.setdefaulttimeout(TIMEOUT)
    entries = [find(name) for name in options.names]
    folder, mirror = Path(options.to), options.mirror or os.environ.get("LEUKO_MIRROR", "")
    for entry in entries:
        if entry.comes_with_leuko:
            size = (path := entry.present()).stat().st_size / 1e6
            print(f"{path}: comes with leuko, {size:.1f} MB ({entry.licence}; {entry.source})")
        else:
            download(entry, folder, mirror)
    if not entries:
        print(listing(folder))
