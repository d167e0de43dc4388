"""`python -m leuko.download`: fetch weights that others trained, by the names of ``weights/registry.yaml``.

Nothing else in leuko reaches for the network. A file appears under its own name only when it is whole and its SHA-256
is the one that the registry states; until then it is ``.NAME.part``, from which a later call goes on.
"""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("download")

import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from .config import DownloadOptions
from .errors import LeukoError
from .io import digest, io_errors_as
from .registry import DOWNLOADS, Entry, find, registry

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18


def download(entry: Entry, folder: Path = DOWNLOADS, mirror: str = "") -> Path:
    """Bring a file into ``folder`` and return its path, at once if it is there and whole, as where it was carried in.

    ``mirror`` is an http(s) URL under which the file lies by its name. Raises LeukoError where it cannot be had or its
    hash is wrong; what came of it before a connection broke is kept, so that the next call goes on.
    """
    if mirror and not mirror.startswith(("http://", "https://")):
        raise LeukoError(f"--mirror {mirror}: is no URL; begin it with http:// or https://")
    path, part = entry.path(folder), folder / f".{entry.file}.part"
    if path.is_file():
        check(path, entry, remedy="remove it and download it again")
        print(f"{path} is there and whole")
        return path
    with io_errors_as("written", path):
        folder.mkdir(parents=True, exist_ok=True)
        fetch(f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.url, part, entry.most_bytes)
        try:
            check(part, entry, remedy="try again, or another --mirror")
        except LeukoError:
            part.unlink()
            raise
        os.replace(part, path)
    known = len(entry.sha256)
    proof = "SHA-256 as stated" if known == 64 else f"only {known} of 64 digits of its SHA-256 are known, and they fit"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {proof} ({entry.licence}; {entry.source})")
    return path


def check(path: Path, entry: Entry, remedy: str) -> None:
    """LeukoError if a file's SHA-256 is not, or does not begin with, the one of its entry."""
    if not (found := digest(path)).startswith(entry.sha256):
        stated = entry.sha256 + ("..." if len(entry.sha256) < 64 else "")
        raise LeukoError(f"{path}: its SHA-256 is {found}, not {stated}; {remedy}")


def fetch(url: str, part: Path, most: int) -> None:
    """Download ``url`` into ``part``, going on from what an earlier call has left there. LeukoError where it cannot be
    reached or the connection breaks, which keeps what came; and where more than ``most`` bytes come, which does not."""
    start = size_of(part)
    headers = {"User-Agent": "leuko"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            if urlsplit(response.url).scheme not in ("https", urlsplit(url).scheme):
                raise LeukoError(f"{url}: leads to {response.url:.200}, which is not https; give a --mirror")
            _append(response, part, start if response.status == 206 else 0, most)
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416 and start:
            return  # there is no more of it: the hash tells whether it is whole
        reason = str(error) or type(error).__name__
        kept = f"{size_of(part) / 1e6:.1f} MB are kept, from which the same command goes on"
        raise LeukoError(
            f"{url}: cannot be reached ({reason}); {kept}; or give a --mirror, or carry the file into {part.parent}"
        ) from error


def _append(response: HTTPResponse, part: Path, start: int, most: int) -> None:
    """Write what a server sends behind the first ``start`` bytes of a file."""
    whole = start + response.length if response.length else 0  # 0 where the server does not say
    progress = tqdm(initial=start, total=whole or None, unit="B", unit_scale=True)
    with open(part, "ab" if start else "wb") as file, progress:
        while chunk := response.read(CHUNK):
            if max(file.tell() + len(chunk), whole) > most:
                part.unlink()
                much = f"{most / 1e6:.0f} MB"
                raise LeukoError(f"{response.url}: sends more than the {much} that it can have; give a --mirror")
            with io_errors_as("written", part):  # a full disk is no broken connection
                file.write(chunk)
            progress.update(len(chunk))
        if file.tell() < whole:
            raise ConnectionError("the connection broke")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 without one."""
    return path.stat().st_size if path.is_file() else 0


def listing(folder: Path) -> str:
    """What there is: one line per entry."""
    rows = []
    for entry in registry().values():
        is_here = (path := entry.path(folder)).is_file()
        size = f"{size_of(path) / 1e6:.1f}" if is_here else entry.size
        rows.append((entry.name, entry.model, size, "here" if is_here else "", entry.licence, entry.source))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, model, size, here, licence, source in rows:
        columns = (name.ljust(wide[0]), model.ljust(wide[1]), f"{size.rjust(wide[2])} MB", here.ljust(4))
        lines.append("  ".join((*columns, licence.ljust(wide[4]), source)))
    return "\n".join(lines)


def run(options: DownloadOptions) -> None:
    """The command: list the registry, or bring the files of some of its names."""
    entries = [find(name) for name in options.names]
    folder, mirror = Path(options.to), options.mirror or os.environ.get("LEUKO_MIRROR", "")
    for entry in entries:
        if entry.comes_with_leuko:
            size = size_of(path := entry.present()) / 1e6
            print(f"{path}: comes with leuko, {size:.1f} MB ({entry.licence}; {entry.source})")
        else:
            download(entry, folder, mirror)
    if not entries:
        print(listing(folder))
