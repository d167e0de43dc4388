"""The run folder: made once and never overwritten, its files whole or not there at all."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import itertools
import json
import math
import os
import platform
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from leuko.data.sample import Dataset
from leuko.errors import LeukoError
from leuko.metrics.coco import Evaluation

REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


def new_run(project: str | Path, name: str, *inside: str) -> Path:
    """Make and return the folder ``project/name``, or ``name-2``, ``name-3`` ... where runs of that name exist, with
    the folders ``inside`` it.

    Two processes that ask at once get two folders, since making a folder either succeeds or finds it there.
    """
    project = Path(project)
    if name in ("", ".", "..") or Path(name).name != name:
        raise LeukoError(f'run name "{name}": not a plain folder name; put the folder above it into the project')
    with explained(project / name):
        project.mkdir(parents=True, exist_ok=True)
        folders = (project / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
        folder = next(folder for folder in folders if _made(folder))
        for child in inside:
            (folder / child).mkdir()
        return folder


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to; at the end of the block it takes the place of ``path``.

    If the block fails, ``path`` is left as it was and the temporary file is removed. Raises LeukoError where the
    system refuses to write.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained(path):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process left of the files it was writing (see ``replacing``)."""
    for leftover in Path(folder).rglob(".*.tmp"):
        leftover.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or none (see ``replacing``)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; what is no text in a file's name as an escape, ``\\udcff``."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON. Arrays become lists, paths strings, and numbers that JSON does not know (nan, inf) null."""
    write_text(path, json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: str | Path, value: Any) -> None:
    """Write YAML, keys in the order given. Unlike JSON it knows nan and inf."""
    write_text(path, yaml.safe_dump(plain(value, finite=False), sort_keys=False, allow_unicode=True))


def write_csv(path: str | Path, rows: Sequence[dict], columns: Sequence[str] = ()) -> None:
    """Write rows under ``columns`` and whatever else they have; what is missing, None or nan is left empty."""
    columns = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(row) for row in rows)
    write_text(path, text.getvalue())


def log(folder: str | Path, event: str, **fields: Any) -> None:
    """Append one line to the folder's ``log.jsonl``: ``{"time": ..., "event": event, **fields}``."""
    path = Path(folder) / "log.jsonl"
    record = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event, **fields}
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"
    with explained(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line  # the line before was cut off by a crash
        file.write(line.encode("utf-8", "backslashreplace"))


def write_evaluation(folder: str | Path, evaluation: Evaluation, results: list[dict], **more: Any) -> None:
    """Write what a validation measured: ``metrics.json``, ``per_class.csv`` and ``predictions.json``.

    ``results`` are the predictions in COCO's results format (see ``to_coco_results``); ``more`` is added to
    ``metrics.json``: the model's parameters, its speed, what it was measured on.
    """
    folder = Path(folder)
    measures = dataclasses.asdict(evaluation)
    per_class = measures.pop("per_class")
    by_type = {row["type"]: {key: value for key, value in row.items() if key != "type"} for row in per_class}
    write_json(folder / "metrics.json", {**measures, **more, "per_class": by_type})
    write_csv(folder / "per_class.csv", per_class)
    write_json(folder / "predictions.json", results, indent=None)


def write_flaws(folder: str | Path, *datasets: Dataset) -> None:
    """Write ``flaws.txt``, a line for each flaw that was mended in the data; no file where there is none."""
    if lines := [str(flaw) for dataset in datasets for flaw in dataset.flaws]:
        write_text(Path(folder) / "flaws.txt", "\n".join(lines) + "\n")


def environment() -> dict[str, Any]:
    """Describe what a run ran on: versions, the processor and its threads, the GPU (None without one)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in ("leuko", "torch", "torchvision", "timm", "numpy")},
        "opencv": cv2.__version__,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def plain(value: Any, finite: bool = True) -> Any:
    """Return ``value`` made of dicts, lists, strings, numbers, booleans and None only; nan and inf become None where
    numbers must be ``finite``."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(plain(key)): plain(item, finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, finite) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist(), finite)
    if isinstance(value, float):
        return value if math.isfinite(value) or not finite else None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value), finite)
    return value


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into one line that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the folder, or choose another one")
        raise LeukoError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


def _made(folder: Path) -> bool:
    """Make a folder; return False where there is one already."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")  # Linux only, where platform.processor() is empty or just "x86_64"
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
