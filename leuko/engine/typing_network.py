"""The typing network of a weights file, ready for use by torch."""

from __future__ import annotations

import numpy as np
import torch

from ..models.typer import Typer
from . import cost


class TypingNetwork:
    """A typing network on a device, its norms fused: crops [N, S, S, 3] uint8 RGB -> probabilities [N, K + 1]."""

    def __init__(self, module: Typer, device: torch.device):
        module.fuse()
        self.module = module.to(device=device, memory_format=torch.channels_last)
        self.parameters = cost.parameters(module)

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        device = next(self.module.parameters()).device
        batch = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
        return self.module(batch).float().softmax(1).cpu().numpy()
