"""The run folder: made once and never overwritten; each of its files is complete or does not exist."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from math import nan
from pathlib import Path
from typing import Any

from ..detections import MAX_DETECTIONS
from ..errors import LeukoError
from ..io import io_errors_as, plain, read_json, read_text, write_csv, write_json
from ..kinds import misfit
from ..metrics.coco import Evaluation, TypeResult


def new_run(project: str | Path, name: str, *inside: str) -> Path:
    """Make and return the folder ``project/name``, or ``name-2``, ``name-3`` ... if runs of that name exist, with the
    folders ``inside`` it. Two processes that ask at the same time get two folders."""
    project = Path(project)
    if name in ("", ".", "..") or Path(name).name != name:
        raise LeukoError(f'run name "{name}": not a plain folder name; put the folder above it into the project')
    with io_errors_as("written", project / name):
        project.mkdir(parents=True, exist_ok=True)
        for i in itertools.count(1):
            folder = project / (name if i == 1 else f"{name}-{i}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
        for child in inside:
            (folder / child).mkdir()
        return folder


@contextlib.contextmanager
def whole_run(project: str | Path, name: str, *inside: str) -> Iterator[Path]:
    """The folder of :func:`new_run` for the block to fill; it is removed where the block fails or is stopped."""
    folder = new_run(project, name, *inside)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def log(folder: str | Path, event: str, **fields: Any) -> None:
    """Append one line to the folder's ``log.jsonl``: ``{"time": ..., "event": event, **fields}``."""
    path = Path(folder) / "log.jsonl"
    record = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event, **fields}
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"
    with io_errors_as("written", path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line  # a crash cut off the line before
        file.write(line.encode("utf-8", "backslashreplace"))


def write_evaluation(folder: str | Path, evaluation: Evaluation, results: list[dict], **more: Any) -> None:
    """Write what a validation measured: ``metrics.json``, ``per_class.csv`` and ``predictions.json``.

    ``results`` are the predictions in COCO's results format (see ``to_coco_results``); ``more`` is added to
    ``metrics.json``: the model's parameters, its speed, the data that it was measured on.
    """
    folder = Path(folder)
    measures = dataclasses.asdict(evaluation)
    per_class = measures.pop("per_class")
    write_csv(folder / "per_class.csv", per_class)
    by_type = {row.pop("type"): row for row in per_class}
    write_json(folder / "metrics.json", {**measures, **more, "per_class": by_type})
    write_json(folder / "predictions.json", results, indent=None)


def read_evaluation(folder: str | Path) -> tuple[Evaluation, dict[str, Any]]:
    """Read ``metrics.json``: the evaluation, and all that the file holds. Raises LeukoError."""
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        inside = next(iter(sorted(path.parent.glob("*/metrics.json"))), None)
        such = f", such as {inside.parent}" if inside else "; of a prediction, put its review.json there first"
        raise LeukoError(f"{path}: no such file; name the folder of a run or of a validation{such}")
    with results_of(path):
        content = read_json(path, RESULTS_LIMIT)
        if problem := misfit(content, METRICS, optional=("model", "data"), more=True):
            raise ValueError(problem)
        per_class = [_from_json(TypeResult, {"type": name, **row}) for name, row in content["per_class"].items()]
        whole = {"max_detections": MAX_DETECTIONS, **content, "per_class": per_class}  # older files lack that number
        return _from_json(Evaluation, whole), content


RESULTS_LIMIT = 8  # megabytes of results; a type takes 200 bytes
MEASURE = float | None  # null is nan
TYPE_METRICS = {**dict.fromkeys(("AP", "AP50", "AP75", "AR"), MEASURE), "cells": int, "images": int}
METRICS = {**dict.fromkeys(("mAP", "mAP50", "mAP75", "mAR"), MEASURE), "cells": int, "images": int} | {
    "per_class": dict[str, TYPE_METRICS],
    "model": str,
    "data": str,
}


_LIMITS = [f"{of}{end}" for of in ("", "sensitivity_", "ppv_") for end in ("low95", "high95")]
COUNT_ROW = {"type": str, **dict.fromkeys(("labelled", "found", "difference"), int)}
COUNT_ROW |= dict.fromkeys(("labelled_percent", "percent", "sensitivity", "ppv", *_LIMITS), MEASURE)
COUNT_MODEL = {"model": str, "rule": str, "kappa": MEASURE, **dict.fromkeys(("labelled", "found", "difference"), int)}
COUNT = {"rule": str, "verdict": str, "agrees": bool, "kappa": MEASURE, "left_out": str}
COUNT |= {"rows": list[COUNT_ROW], "models": list[COUNT_MODEL]}


def read_count(folder: Path) -> dict[str, Any] | None:
    """What ``count.json`` holds; None where there is none. Raises LeukoError."""
    path = folder / "count.json"
    if not path.is_file():
        return None
    with results_of(path):
        content = read_json(path, RESULTS_LIMIT)
        if problem := misfit(content, COUNT, more=True) or ("" if content["rows"] else "no rows"):
            raise ValueError(problem)
    return content


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file of results; [] where there is none. Raises LeukoError."""
    return list(csv.DictReader(io.StringIO(read_text(path, RESULTS_LIMIT)))) if path.is_file() else []


@contextlib.contextmanager
def results_of(path: Path) -> Iterator[None]:
    """Raise LeukoError where what the block reads of ``path`` is not what leuko wrote."""
    try:
        yield
    except LeukoError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, csv.Error) as error:
        raise LeukoError(f"{path}: its results are broken ({error!r:.120}); validate again") from error


def _from_json(cls: type, values: dict[str, Any]) -> Any:
    """A dataclass from JSON, where null is nan."""
    given = {f.name: values[f.name] for f in dataclasses.fields(cls)}
    return cls(**{name: nan if value is None else value for name, value in given.items()})
