"""Files of tensors: safetensors, and what ``torch.save`` wrote. They are read without running code in them, and take no
more memory than the file has bytes."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LeukoError
from ..io import check_readable, io_errors_as

HEADER_LIMIT = 4  # megabytes of names, shapes and metadata in a safetensors file; those of a ResNet-50 take .03
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; LeukoError unless it is whole and its numbers are finite."""
    check_readable(path)
    with io_errors_as("read", path), open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    try:
        if header > HEADER_LIMIT * 1e6:
            raise SafetensorError(f"a header of {header:,} bytes")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as e:
        raise LeukoError(
            f"{path}: not a whole safetensors file ({str(e)[:100]}); leuko reads only these, because other formats can "
            "run code: train or copy it again"
        ) from e
    check_tensors(path, state)
    return state, metadata


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights by name in a file of another library, safetensors or ``torch.save``'s; raises LeukoError."""
    if not path.exists():
        raise LeukoError(f"{path}: no such file of weights; check the path")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    state = read_archive(path, "get it again")
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise LeukoError(f"{path}: holds no weights by name; name a file of a timm network's weights")
    state = {str(name): value for name, value in state.items()}
    check_tensors(path, state)
    return state


def read_archive(path: Path, remedy: str) -> Any:
    """What ``torch.save`` wrote; LeukoError with the ``remedy`` where it is broken, or needs code to be read."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises errors of many kinds on a broken or hostile file
        reason = (
            "broken, or in need of code" if isinstance(e, pickle.UnpicklingError) else (str(e).splitlines() or [""])[0]
        )
        raise LeukoError(f"{path}: cannot be read ({type(e).__name__}: {reason:.120}); {remedy}") from e


def check_archive(path: Path) -> None:
    """LeukoError for a file that unpacks to more than its size; ``torch.save`` does not compress."""
    check_readable(path)
    try:
        with io_errors_as("read", path):
            if not zipfile.is_zipfile(path):
                return  # the form of torch before 1.6, or broken
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        raise LeukoError(f"{path}: a broken archive ({e}); get it again") from e
    if unpacked > path.stat().st_size:
        raise LeukoError(
            f"{path}: its {path.stat().st_size:,} bytes unpack to {unpacked:,}, but torch.save does not compress; do "
            "not use this file"
        )


def check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """LeukoError where tensors share bytes, so that a copy takes more memory than the file has, or hold numbers that
    no training gives."""
    if sum(value.nbytes for value in state.values()) > path.stat().st_size:
        raise LeukoError(f"{path}: its tensors are larger than the file; do not use this file")
    for name, value in state.items():
        if value.dtype not in DTYPES or value.layout != torch.strided:
            raise LeukoError(f"{path}: {name:.80}: is of type {value.dtype}; save the weights as float32")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise LeukoError(
                f"{path}: {name:.80}: holds nan or inf, as after a training that diverged; use other weights"
            )
