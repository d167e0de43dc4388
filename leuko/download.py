"""`python -m leuko.download`: fetch weights that others trained, by the names of ``weights/registry.yaml``.

Nothing else in leuko reaches for the network. A file appears under its own name only when it is whole and its SHA-256
is the one that the registry states; until then it is ``.NAME.part``, from which a later call goes on.
"""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("download")

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from .config import DownloadOptions
from .errors import LeukoError
from .io import check_readable, io_errors_as
from .registry import DOWNLOADS, Entry, find, registry

ATTEMPTS = 5  # in a row that bring nothing, before a broken connection is given up
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18


def download(entry: Entry, folder: Path = DOWNLOADS, mirror: str = "", carried: str = "") -> Path:
    """Bring a file into ``folder`` and return its path, at once if it is there and whole.

    ``mirror`` is an http(s) URL under which the file lies by its name; ``carried`` a file brought by hand. Raises
    LeukoError where it cannot be had or its hash is wrong; what came of it is kept, so that the next call goes on.
    """
    if mirror and not mirror.startswith(("http://", "https://")):
        raise LeukoError(f"--mirror {mirror}: is no URL; begin it with http:// or https://")
    path, part = entry.path(folder), folder / f".{entry.file}.part"
    with io_errors_as("written", path):
        if path.is_file():
            check(path, entry, remedy="remove it and download it again")
            print(f"{path} is there and whole")
            return path
        folder.mkdir(parents=True, exist_ok=True)
        if carried:
            if not Path(carried).exists():
                raise LeukoError(f"{carried}: no such file; name the file that was carried in")
            check_readable(carried, entry.most_bytes / 1e6)
            shutil.copyfile(carried, part)
        else:
            url = f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.url
            fetch(url, part, entry.file, entry.most_bytes)
        try:
            check(part, entry, remedy="get it again" if carried else "try again, or another --mirror", shown=carried)
        except LeukoError:
            part.unlink()
            raise
        os.replace(part, path)
    known = len(entry.sha256)
    proof = "SHA-256 as stated" if known == 64 else f"only {known} of 64 digits of its SHA-256 are known, and they fit"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {proof} ({entry.licence}; {entry.source})")
    return path


def check(path: Path, entry: Entry, remedy: str, shown: str = "") -> None:
    """LeukoError if a file's SHA-256 is not, or does not begin with, the one of its entry."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(entry.sha256):
        stated = entry.sha256 + ("..." if len(entry.sha256) < 64 else "")
        raise LeukoError(f"{shown or path}: its SHA-256 is {digest.hexdigest()}, not {stated}; {remedy}")


def fetch(url: str, part: Path, name: str, most: int) -> None:
    """Download ``url`` into ``part``, going on from what is there, also after a connection that breaks; LeukoError,
    and nothing is kept, where more than ``most`` bytes come."""
    failures = 0
    with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1000, initial=size_of(part)) as bar:
        while True:
            before = size_of(part)
            try:
                if _go_on(url, part, bar, most):
                    return
                problem = "the connection broke"
            except urllib.error.HTTPError as e:
                if e.code == 416 and before:  # there is no more of it: the hash tells whether it is whole
                    return
                if e.code < 500:
                    raise LeukoError(
                        f"{url}: {e.code} {e.reason}; give a --mirror, or the file with --from-file"
                    ) from e
                problem = f"{e.code} {e.reason}"
            except (OSError, HTTPException) as e:
                problem = str(getattr(e, "reason", e)) or type(e).__name__
            failures = 0 if size_of(part) > before else failures + 1
            if failures >= ATTEMPTS:
                kept = f"{size_of(part) / 1e6:.1f} MB are kept, and the same command goes on from there"
                raise LeukoError(
                    f"{url}: cannot be reached ({problem}); {kept}; or give a --mirror, or --from-file FILE"
                )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, or within http; to nothing else."""

    def redirect_request(self, request: urllib.request.Request, *response: Any) -> urllib.request.Request | None:
        new_url = response[-1]
        if urlsplit(new_url).scheme not in ("https", request.type):
            raise LeukoError(f"{request.full_url}: leads to {new_url:.200}, which is not https; give a --mirror")
        return super().redirect_request(request, *response)


_opener = urllib.request.build_opener(_Redirects)


def _go_on(url: str, part: Path, bar: tqdm, most: int) -> bool:
    """One connection: append what follows ``part``; whether the file is whole now, as far as the server tells."""
    start = size_of(part)
    request = urllib.request.Request(
        url, headers={"User-Agent": "leuko", **({"Range": f"bytes={start}-"} if start else {})}
    )
    with _opener.open(request, timeout=TIMEOUT) as response:
        if response.status != 206:
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() and len(length) < 20 else None
        bar.total, bar.n = total, start
        with open(part, "ab" if start else "wb", buffering=0) as file:
            while chunk := response.read(CHUNK):
                if max(file.tell(), total or 0) > most:
                    part.unlink()
                    raise LeukoError(
                        f"{url}: sends more than the {most / 1e6:.0f} MB that it can have; give a --mirror"
                    )
                with io_errors_as("written", part):  # a full disk is no broken connection
                    file.write(chunk)
                bar.update(len(chunk))
    return total is None or size_of(part) >= total


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
    if options.from_file and [entry.comes_with_leuko for entry in entries] != [False]:
        raise LeukoError("--from-file FILE: give the one name whose file it is, of weights that do not come with leuko")
    folder, mirror = Path(options.to), options.mirror or os.environ.get("LEUKO_MIRROR", "")
    for entry in entries:
        if entry.comes_with_leuko:
            size = size_of(path := entry.present()) / 1e6
            print(f"{path}: comes with leuko, {size:.1f} MB ({entry.licence}; {entry.source})")
        else:
            download(entry, folder, mirror, options.from_file)
    if not entries:
        print(listing(folder))
