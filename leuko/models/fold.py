"""Fold BatchNorm into the convolution before it: at test time one pass over the map instead of two."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .base import DetectionModel


@torch.no_grad()
def fold_norm(model: DetectionModel) -> DetectionModel:
    """Fold every BatchNorm of the backbone that directly follows a convolution, in place; returns the model.

    Which follow which is seen in a run on a small image, so that it works for any timm network. The outputs stay the
    same to rounding. The model can no longer be trained.
    """
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def remember(conv: nn.Conv2d, _: tuple, output: Tensor) -> None:
        outputs[id(output)] = (conv, output)  # the tensor is kept, so that its id stays its own

    def look_up(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    hooks = [m.register_forward_hook(remember) for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(look_up) for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    model.backbone(torch.zeros(1, 3, 64, 64, device=model.preprocess.mean.device))
    for hook in hooks:
        hook.remove()

    parents = {child: (parent, name) for parent in model.backbone.modules() for name, child in parent.named_children()}
    for conv, norm in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, name = parents[norm]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))  # timm's BatchNorm may hold an activation
    return model
