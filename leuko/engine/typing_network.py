"""The typing network of a weights file, ready for use by torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import LeukoError
from ..registry import find_weights
from ..runtime import ExportedDetector
from ..runtime.graph import SUFFIXES as EXPORTED
from ..runtime.typing_stage import OFF, TypingStage
from .checkpoint import StoredTyper, Weights, load_weights
from .metadata import BOX_FACTORS


class TypingNetwork:
    """A typing network on its device, its norms fused: crops [N, S, S, 3] uint8 RGB -> probabilities [N, K + 1]."""

    def __init__(self, stored: StoredTyper, path: Path, device: torch.device):
        module = stored.build(path)
        module.fuse()
        self.module = module.to(device=device, memory_format=torch.channels_last)
        self.device = device

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255
        return self.module(batch).float().softmax(1).cpu().numpy()


def load_detector(source: str | Path, max_detections: int = 0) -> Weights | ExportedDetector:
    """Read weights, or what ``leuko export`` has made of them, which must give as many detections; raises
    LeukoError."""
    path = find_weights(source)
    return ExportedDetector.load(path, max_detections) if path.suffix in EXPORTED else load_weights(path)


def stage_of(stored: StoredTyper, path: Path, device: torch.device) -> TypingStage:
    """The stage that the weights file ``path`` holds; LeukoError where they do not fit the network."""
    factors = tuple(stored.about.get(BOX_FACTORS, (1.0, 1.0)))
    net = TypingNetwork(stored, path, device)
    return TypingStage(net, stored.recipe["side"], tuple(stored.types), stored.view, factors)


def load(weights: Weights | ExportedDetector, typer: str, device: torch.device) -> tuple[TypingStage | None, str]:
    """The typing stage that ``--typer`` means for a model, and whose it is: "" its own, if it has one; "off" none; else
    that of other weights, told by the beginning of their digest. Raises LeukoError."""
    if typer == OFF:
        return None, OFF if weights.typer else ""
    keeper = load_detector(typer) if typer else weights
    if keeper.typer is None:
        if typer:
            raise LeukoError(f"{keeper.path}: holds no typing stage; train one by leuko type")
        return None, ""
    exported = isinstance(keeper, ExportedDetector)
    stage = keeper.typing if exported else stage_of(keeper.typer, keeper.path, device)
    if keeper is weights or keeper.identity == weights.identity:
        return stage, ""
    return replace(stage, box_factors=(1.0, 1.0)), keeper.identity[:12]  # factors are of its own detector's boxes
