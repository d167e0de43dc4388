"""3x3 convolutions of large maps, or many small ones, by Winograd's F(4x4, 3x3) (Lavin and Gray 2016), for inference
on a CPU.

A 4x4 patch of the output takes 36 multiplications a channel pair instead of 144: the 6x6 patch of the input and the
kernel are transformed, multiplied, and the product transformed back. All three steps are matrix products. The result
differs from the direct one by rounding, about 1e-5 of the map's values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 48 * 48  # cells of all maps from which on it is faster
WIDE = 128  # channels, likewise
PATCHES = 192  # patches worked on at once, so that they stay in the processor's cache

_INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0]]
_INPUT += [[0, 4, 0, -5, 0, 1]]
_KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # in 24ths
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _twice(rows: list[list[int]], unit: int = 1) -> Tensor:
    """The transform along y and x as one matrix."""
    matrix = torch.tensor(rows, dtype=torch.float64) / unit
    return torch.kron(matrix, matrix).float()


INPUT, KERNEL, OUTPUT = _twice(_INPUT), _twice(_KERNEL, 24), _twice(_OUTPUT)  # [36, 36], [36, 9], [16, 36]


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` of x [N, C, H, W] with weight [K, C, 3, 3]: [N, K, H, W]."""
    number, channels, height, width = x.shape
    out = len(weight)
    down, across = -(-height // 4), -(-width // 4)  # patches of the output
    kernel = (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, out)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * across + 1 - width, 1, 4 * down + 1 - height))
    result = x.new_empty(number, 4 * down, 4 * across, out)
    strip = min(down, max(1, PATCHES // across))  # rows of patches
    group = max(1, PATCHES // (strip * across))  # images
    for first in range(0, number, group):
        images, targets = padded[first : first + group], result[first : first + group]
        for top in range(0, down, strip):
            rows = min(strip, down - top)
            patches = images[:, 4 * top : 4 * (top + rows) + 2].unfold(1, 6, 4).unfold(2, 6, 4)
            patches = INPUT @ patches.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)  # [36, images * rows * across * C]
            product = torch.bmm(patches.view(36, -1, channels), kernel).view(36, -1)
            back = (OUTPUT @ product).view(4, 4, -1, rows, across, out).permute(2, 3, 0, 4, 1, 5)
            targets[:, 4 * top : 4 * (top + rows)] = back.reshape(-1, 4 * rows, 4 * across, out)
    result = result[:, :height, :width]
    if bias is not None:
        result += bias
    return result.permute(0, 3, 1, 2)


class WinogradConv(nn.Module):
    """Stands in for a 3x3 convolution: large maps by Winograd's way, small ones directly."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        if len(x) * x.shape[-2] * x.shape[-1] >= LARGE and x.dtype == torch.float32:
            return conv3x3(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, padding=1)


def use_winograd(network: nn.Module) -> None:
    """Put, in place, a :class:`WinogradConv` where a wide 3x3 convolution with stride 1 is. For inference on a CPU."""
    for parent in list(network.modules()):
        for name, conv in parent.named_children():
            if isinstance(conv, nn.Conv2d) and _suits(conv):
                setattr(parent, name, WinogradConv(conv))


def _suits(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and min(conv.in_channels, conv.out_channels) >= WIDE
