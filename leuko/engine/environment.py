"""What a run runs on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import torch

from .. import __version__


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Describe what a run runs on: versions, the processor and its threads, the GPU that ``device`` is (None for any
    other device) and whether products of float32 are rounded to TF32 there."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "leuko": __version__,
        **{name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "opencv": cv2.__version__,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "gpu": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")  # on Linux, platform.processor() is empty or just "x86_64"
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), platform.processor() or platform.machine())
