"""A network that ``leuko export`` has written, run by onnxruntime (``.onnx``) or OpenVINO (``.xml``)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LeukoError, one_line

SUFFIXES = (".onnx", ".xml")
KEY = "leuko"  # of the metadata, whose value is JSON
AGAIN = "export it again by leuko export"

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


@dataclass
class Graph:
    """A network: what its file says of it, and how to run it: arrays by the names of its inputs -> its outputs."""

    path: Path
    about: dict[str, Any]
    run: Run

    @classmethod
    def open(cls, path: Path) -> Graph:
        """Read a file of :data:`SUFFIXES`. LeukoError where it is missing, broken or of another program, or the package
        that runs it is not installed."""
        if not path.is_file():
            raise LeukoError(f"{path}: no such file; {AGAIN}")
        text, run = _OPENERS[path.suffix](path)
        try:
            about = json.loads(text)
            if not isinstance(about, dict):
                raise ValueError("no mapping")
        except ValueError as error:
            raise LeukoError(
                f"{path}: holds no metadata of leuko's, or broken ones ({error}); use a file that leuko export wrote"
            ) from error
        return cls(path, about, run)


def threads() -> int:
    """The number of threads that ``OMP_NUM_THREADS`` names, as for torch; 0, as many as there are cores, without it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else 0


def _open_onnx(path: Path) -> tuple[str, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(path, "onnxruntime", "runtime", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads(), 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises errors of many kinds on a broken file
        raise _unreadable(path, f"onnxruntime {onnxruntime.__version__}", error) from error
    return session.get_modelmeta().custom_metadata_map.get(KEY, ""), lambda inputs: session.run(None, inputs)


def _open_openvino(path: Path) -> tuple[str, Run]:
    try:
        import openvino
    except ImportError as error:
        raise _missing(path, "openvino", "openvino", error) from error
    # On many processors OpenVINO computes in bfloat16 unless it is told not to: of 50 boxes, 8 were then the same.
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads()}
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else ""
        compiled = core.compile_model(model, "CPU", config)
    except Exception as error:  # as above
        raise _unreadable(path, f"openvino {openvino.__version__.split('-')[0]}", error) from error

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(compiled(inputs).values())

    return text, run


_OPENERS: dict[str, Callable[[Path], tuple[str, Run]]] = {".onnx": _open_onnx, ".xml": _open_openvino}


def _missing(path: Path, package: str, extra: str, error: ImportError) -> LeukoError:
    return LeukoError(f"{path}: needs {package}: pip install {package}, or 'leuko[{extra}]' ({error})")


def _unreadable(path: Path, reader: str, error: Exception) -> LeukoError:
    reason = one_line(str(error)).strip()[-160:]
    return LeukoError(f"{path}: not a whole file that {reader} can read ({reason}); {AGAIN}, or update that package")
