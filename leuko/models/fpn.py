"""Feature Pyramid Network (Lin et al. 2017), with the three ways of adding levels above it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 5


class FPN(nn.Module):
    """Maps C2 to C5 of a backbone [N, C_i, H_i, W_i] -> :data:`LEVELS` maps of ``channels`` channels each.

    ``extra`` says where the levels above the backbone's last come from: ``"pool"`` (every second cell of the last map),
    ``"output"`` (stride-2 convolutions on the last map, the second through a ReLU) or ``"input"`` (the first of them on
    the backbone's last map instead). The latter two leave C2 aside.
    """

    def __init__(self, in_channels: list[int], channels: int, extra: Literal["pool", "output", "input"] = "pool"):
        super().__init__()
        self.extra, self.start = extra, 0 if extra == "pool" else 1
        in_channels = in_channels[self.start :]
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra_convs = nn.ModuleList()
        if extra != "pool":
            first = in_channels[-1] if extra == "input" else channels
            for i in range(LEVELS - len(in_channels)):
                self.extra_convs.append(nn.Conv2d(channels if i else first, channels, 3, stride=2, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        merged = [conv(x) for conv, x in zip(self.lateral, features[self.start :], strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        pyramid = [conv(x) for conv, x in zip(self.output, merged, strict=True)]
        if self.extra == "pool":
            pyramid.append(F.max_pool2d(pyramid[-1], 1, stride=2))
        for i, conv in enumerate(self.extra_convs):
            below = features[-1] if i == 0 and self.extra == "input" else pyramid[-1]
            pyramid.append(conv(F.relu(below) if i and self.extra == "output" else below))
        return pyramid
