"""Where a dense head predicts: the points of FCOS and the anchors of an RPN, level by level.

R is the number of points or anchors of a level, in row-major order of the feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def points(feature: Tensor, stride: int, offset: float = 0.5) -> Tensor:
    """Image coordinates (x, y) of the cells of ``feature`` [..., H, W]: [H*W, 2], ``(column + offset) * stride``."""
    y, x = (
        torch.arange(offset * stride, side * stride, stride, device=feature.device, dtype=torch.float32)
        for side in feature.shape[-2:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def half_sides(scale: float, ratios: tuple[float, ...]) -> Tensor:
    """Half the width and height, in strides, of anchors that cover ``scale ** 2`` square strides: [A, 2]. A ratio is
    height / width."""
    ratio = torch.tensor(ratios, dtype=torch.float32)
    return torch.stack([scale / ratio.sqrt(), scale * ratio.sqrt()], dim=1) * 0.5


def anchors(feature: Tensor, stride: int, half_sides: Tensor) -> Tensor:
    """Anchors of one level, [H*W*A, 4]: boxes of ``half_sides`` [A, 2] strides about ``(column, row) * stride``."""
    centre, half = points(feature, stride, offset=0.0)[:, None], half_sides * stride
    return torch.cat([centre - half, centre + half], dim=2).reshape(-1, 4)
