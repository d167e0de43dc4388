"""What a model costs: its parameters, operations, time per image and memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn


def parameters(model: nn.Module) -> int:
    """Count the parameters of a model, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def gflops(model: nn.Module, size: int, device: torch.device) -> float:
    """The floating-point operations of one image [3, size, size] in eval mode, in 10^9, a multiplication and an
    addition counting as two; counted by torch as they run, on a grey image. Needs a model that is not fused."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([torch.full((3, size, size), 0.5, device=device)])
    return counter.get_total_flops() / 1e9


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    """Median, 95th and 99th percentile of times, in milliseconds."""
    return {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 2) for p in (50, 95, 99)}


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory` count from now on; where /proc is read-only, it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(refs := Path("/proc/self/clear_refs"), os.W_OK):
        refs.write_text("5")  # Linux: the peak of the resident memory begins anew


def peak_memory(device: torch.device) -> float:
    """The most memory in MiB since the last reset: allocated on the GPU, or resident in the process (with Linux; nan
    elsewhere, where the peak of one model cannot be told from that of the process)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not sys.platform.startswith("linux"):
        return float("nan")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))
