"""BatchNorm: with fixed statistics, fused into the convolution before it, and with statistics that processes share.

With fixed statistics a norm only scales and shifts channels, which the convolution can do with its weights and bias:
one pass over the map instead of two. In training the fused weights are computed in each forward pass, so that the
convolution's weights and the norm's scale and shift all learn; for inference they are computed once. Parameters keep
their names and places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from ..ops import ranks

IMAGE = (3, 128, 128)  # the shape of an input on which convolutions and their norms are found


# ---------------------------------------------------------------- fused into convolutions


class FusedConv(nn.Conv2d):
    """A convolution that applies ``norm`` too."""

    def __init__(self, conv: nn.Conv2d, norm: FusedNorm):
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)  # its settings and parameters
        self.pads_itself = isinstance(conv, Conv2dSame)  # TensorFlow's padding depends on the input's size
        self.norm = (norm,)  # in a tuple, so that the norm's parameters are registered in its own place only
        self.affine: tuple[Tensor, ...] = ()  # scale and shift [K] of the pass to come, if they are computed already

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight [K, C, kh, kw] and bias [K] that include the norm."""
        if not self.norm:
            return self.weight, self.bias
        (scale, shift), self.affine = self.affine or _affine([self])[0], ()
        return self.weight * scale[:, None, None, None], shift

    def make_permanent(self) -> None:
        """Store the fused weight and bias; the convolution can no longer be trained."""
        with torch.no_grad():
            weight, bias = self.fused()
        self.weight, self.bias, self.norm = nn.Parameter(weight, False), nn.Parameter(bias, False), ()

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_itself:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, *self.fused(), self.stride, self.padding, self.dilation, self.groups)


class FusedNorm(nn.BatchNorm2d):
    """Holds the parameters of a norm that a convolution applies; only its activation remains, if it has one."""

    def __init__(self, norm: nn.BatchNorm2d):
        nn.Module.__init__(self)
        self.__dict__.update(norm.__dict__)  # its settings, parameters and, in timm, its activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if hasattr(self, "act") else x


def _affine(convs: list[FusedConv]) -> list[tuple[Tensor, Tensor]]:
    """Scale and shift [K] of each convolution's norm, for all together; all of them have a bias, or none has."""
    norms = [conv.norm[0] for conv in convs]
    weight, bias, mean, var = (
        torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias", "running_mean", "running_var")
    )
    if convs[0].bias is not None:
        mean = mean - torch.cat([conv.bias for conv in convs])
    scale = weight * (var + norms[0].eps).rsqrt()
    shift, sizes = bias - mean * scale, [norm.num_features for norm in norms]
    return list(zip(scale.split(sizes), shift.split(sizes), strict=True))


@dataclass
class _AffineAhead:
    """Before a pass of a network computes the scales and shifts of its norms: a few operators for all convolutions
    instead of a few for each."""

    convs: list[FusedConv]

    def __call__(self, network: nn.Module, inputs: tuple) -> None:
        groups: dict[tuple, list[FusedConv]] = {}
        for conv in self.convs:
            if conv.norm:  # what is frozen stays apart, so that no gradient is computed for it
                (norm,) = conv.norm
                groups.setdefault((norm.eps, norm.weight.requires_grad, conv.bias is None), []).append(conv)
        for convs in groups.values():
            for conv, affine in zip(convs, _affine(convs), strict=True):
                conv.affine = affine


def fuse_conv_bn(network: nn.Module, shape: tuple[int, int, int] = IMAGE, for_inference: bool = False) -> None:
    """Fuse, in place, each BatchNorm that directly follows a convolution; the network takes maps [N, *shape].

    With ``for_inference`` the fused weights are stored, and the network can no longer be trained.
    """
    places = {m: (parent, name) for parent in network.modules() for name, m in parent.named_children()}
    for conv, norm in _pairs(network, shape):
        fused = FusedNorm(norm)
        for module, replacement in ((norm, fused), (conv, FusedConv(conv, fused))):
            parent, name = places[module]
            setattr(parent, name, replacement)
    convs = [module for module in network.modules() if isinstance(module, FusedConv)]
    if not for_inference:
        network.register_forward_pre_hook(_AffineAhead(convs))
        return
    for conv in convs:
        conv.make_permanent()


@torch.no_grad()
def _pairs(network: nn.Module, shape: tuple[int, int, int]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the norms that take their output, as observed in a run on a map of zeros."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def remember(conv: nn.Conv2d, _: tuple, output: Tensor) -> None:
        outputs[id(output)] = (conv, output)  # the tensor is kept, so that its id is not reused

    def look_up(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if norm.affine and id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    hooks = [m.register_forward_hook(remember) for m in network.modules() if type(m) in (nn.Conv2d, Conv2dSame)]
    hooks += [
        m.register_forward_pre_hook(look_up)
        for m in network.modules()
        if isinstance(m, nn.BatchNorm2d) and not isinstance(m, FusedNorm)
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


# ---------------------------------------------------------------- shared by processes


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics, in training, are those of all ranks' maps; an empty batch changes none."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> BatchNorm:
        """In place of another, with its parameters and, in timm, its activation."""
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        own.__dict__.update(norm.__dict__)
        return own

    def forward(self, x: Tensor) -> Tensor:
        usual = not self.training or (ranks.place()[1] == 1 and len(x))
        x = super().forward(x) if usual else self._over_ranks(x.float()).to(x.dtype)
        return self.act(x) if hasattr(self, "act") else x

    def _over_ranks(self, x: Tensor) -> Tensor:
        def shaped(value: Tensor) -> Tensor:
            return value[:, None, None]

        cells = ranks.total(x.new_tensor(x[:, 0].numel()))
        mean = ranks.total(x.sum((0, 2, 3))) / cells.clamp(min=1)
        centred = x - shaped(mean)
        var = ranks.total(centred.square().sum((0, 2, 3))) / cells.clamp(min=1)
        with torch.no_grad():
            momentum = self.momentum * (cells > 0)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * cells / (cells - 1).clamp(min=1), momentum)
            self.num_batches_tracked += cells > 0
        return centred * shaped((var + self.eps).rsqrt() * self.weight) + shaped(self.bias)


def over_ranks(network: nn.Module) -> None:
    """Let each BatchNorm that follows the batches, in place, follow those of all ranks."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and child.training and not isinstance(child, BatchNorm):
                setattr(parent, name, BatchNorm.of(child))
