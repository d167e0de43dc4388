"""The run folder: made once and never overwritten, its files whole or not there at all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import torch

from ..data.dataset import Dataset
from ..errors import LeukoError
from ..io import io_errors_as, plain, write_csv, write_json, write_text
from ..metrics.coco import Evaluation


def new_run(project: str | Path, name: str, *inside: str) -> Path:
    """Make and return the folder ``project/name``, or ``name-2``, ``name-3`` ... where runs of that name exist, with
    the folders ``inside`` it.

    Two processes that ask at once get two folders, since making a folder either succeeds or finds it there.
    """
    project = Path(project)
    if name in ("", ".", "..") or Path(name).name != name:
        raise LeukoError(f'run name "{name}": not a plain folder name; put the folder above it into the project')
    with io_errors_as("written", project / name):
        project.mkdir(parents=True, exist_ok=True)
        folders = (project / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
        folder = next(folder for folder in folders if _made(folder))
        for child in inside:
            (folder / child).mkdir()
        return folder


def log(folder: str | Path, event: str, **fields: Any) -> None:
    """Append one line to the folder's ``log.jsonl``: ``{"time": ..., "event": event, **fields}``."""
    path = Path(folder) / "log.jsonl"
    record = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event, **fields}
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"
    with io_errors_as("written", path), open(path, "ab+") as file:
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


def write_warnings(folder: str | Path, *datasets: Dataset) -> None:
    """Write ``warnings.txt``, a line for each warning that was mended in the data; no file where there is none."""
    if lines := [str(warning) for dataset in datasets for warning in dataset.warnings]:
        write_text(Path(folder) / "warnings.txt", "\n".join(lines) + "\n")


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
