"""BatchNorm with fixed statistics as a part of the convolution before it: one pass over the map instead of two.

With fixed statistics a norm only scales and shifts channels, which the convolution can do with its weights and bias.
In training the weights are scaled anew in each forward pass, so that the convolution's weights and the norm's scale
and shift all learn; for inference the result is kept. Parameters keep their names and places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn


class FoldedConv(nn.Conv2d):
    """A convolution that does the work of ``norm`` too."""

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.pads_itself = isinstance(conv, Conv2dSame)  # TensorFlow's padding depends on the input's size
        self.norm = (norm,)  # in a tuple, so that the norm's parameters stay in its own place

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with the norm in them."""
        if not self.norm:
            return self.weight, self.bias
        norm = self.norm[0]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        centre = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        return self.weight * scale[:, None, None, None], norm.bias - centre * scale

    def keep(self) -> None:
        """Make the folded weight and bias the convolution's own; it can no longer be trained."""
        with torch.no_grad():
            weight, bias = self.folded()
        self.weight, self.bias, self.norm = nn.Parameter(weight, False), nn.Parameter(bias, False), ()

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_itself:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, *self.folded(), self.stride, self.padding, self.dilation, self.groups)


class FoldedNorm(nn.BatchNorm2d):
    """Holds the parameters of a norm whose work a convolution does; only the activation is left, if there is one."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.act = getattr(norm, "act", nn.Identity())  # timm's BatchNorm may hold an activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


IMAGE = (3, 128, 128)


def fold(network: nn.Module, shape: tuple[int, int, int] = IMAGE) -> None:
    """Fold, in place, each BatchNorm that directly follows a convolution; the network takes maps [N, *shape]."""
    places = {m: (parent, name) for parent in network.modules() for name, m in parent.named_children()}
    for conv, norm in _pairs(network, shape):
        folded = FoldedNorm(norm)
        for module, replacement in ((norm, folded), (conv, FoldedConv(conv, folded))):
            parent, name = places[module]
            setattr(parent, name, replacement)


def keep(network: nn.Module, shape: tuple[int, int, int] = IMAGE) -> None:
    """Make all folded weights of the network permanent, for inference; what is not folded yet is folded first."""
    fold(network, shape)
    for module in network.modules():
        if isinstance(module, FoldedConv):
            module.keep()


@torch.no_grad()
def _pairs(network: nn.Module, shape: tuple[int, int, int]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the norms that take their output, as seen in a run on a map of zeros."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def remember(conv: nn.Conv2d, _: tuple, output: Tensor) -> None:
        outputs[id(output)] = (conv, output)  # the tensor is kept, so that its id stays its own

    def look_up(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if norm.affine and id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    hooks = [m.register_forward_hook(remember) for m in network.modules() if type(m) in (nn.Conv2d, Conv2dSame)]
    hooks += [
        m.register_forward_pre_hook(look_up)
        for m in network.modules()
        if isinstance(m, nn.BatchNorm2d) and not isinstance(m, FoldedNorm)
    ]
    if not hooks:
        return []
    was_training = network.training
    network.eval()
    network(torch.zeros(1, *shape, device=next(network.parameters()).device))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return pairs
