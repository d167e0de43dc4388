"""Where a dense head predicts: the points of FCOS and the anchors of an RPN, level by level.

R is the number of points or anchors of a level, in row-major order of the feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def points(feature: Tensor, stride: int, offset: float = 0.5) -> Tensor:
    """Image coordinates (x, y) of the cells of ``feature`` [..., H, W]: [H*W, 2], ``(column + offset) * stride``."""
    height, width = feature.shape[-2:]
    y = (torch.arange(height, device=feature.device, dtype=torch.float32) + offset) * stride
    x = (torch.arange(width, device=feature.device, dtype=torch.float32) + offset) * stride
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)


def anchors(feature: Tensor, stride: int, scale: float, ratios: tuple[float, ...]) -> Tensor:
    """Anchors of one level, [H*W*A, 4]: A = len(ratios) boxes per cell, centred on ``(column, row) * stride``.

    An anchor covers ``(scale * stride) ** 2`` square pixels; its ratio is height / width.
    """
    ratio = torch.tensor(ratios, device=feature.device, dtype=torch.float32)
    side = float(scale * stride)
    half = torch.stack([side / ratio.sqrt(), side * ratio.sqrt()], dim=1) * 0.5
    centre = points(feature, stride, offset=0.0)[:, None]
    return torch.cat([centre - half, centre + half], dim=2).reshape(-1, 4)
