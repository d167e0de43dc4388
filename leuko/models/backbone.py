"""Backbones: any timm network with maps at strides 4, 8, 16 and 32, its norm layers, its frozen part, its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import timm
import torch
from torch import Tensor, nn

from ..errors import LeukoError, nearest
from .batch_norm import fuse_conv_bn
from .pretrained import copy_weights, imagenet_weights

STRIDES = (4, 8, 16, 32)
Norm = Literal["frozen", "train"]


class Backbone(nn.Module):
    """A timm network [N, 3, H, W] -> its maps C2 to C5, ``channels`` of them at strides 4, 8, 16, 32.

    ``norm``: ``"frozen"`` keeps BatchNorm's pretrained statistics (its scale and shift still learn); ``"train"``
    updates them with the batches. With ``freeze``, everything up to C2 (the stem and the first stage) is kept,
    statistics too.
    With ``normalize_features``, each map is divided by its standard deviation, which :meth:`init_scale` measures once.
    It is about 9 in networks that end their blocks without activation (EfficientNet) and below 1 in a ResNet; an FPN
    and heads without norm layers diverge on the former at learning rates that suit the latter.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen", freeze: bool = True, normalize_features: bool = False):
        super().__init__()
        if not timm.is_model(name):
            raise LeukoError(f'backbone "{name}" is unknown to timm{nearest(name, timm.list_models())}')
        try:
            self.body = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError, ValueError, TypeError) as e:
            raise LeukoError(
                f'backbone "{name}" gives no feature maps in timm ({e}); choose a convolutional one'
            ) from e
        reductions = self.body.feature_info.reduction()
        if not set(STRIDES) <= set(reductions):
            raise LeukoError(f'backbone "{name}" has maps at strides {reductions}; leuko needs 4, 8, 16 and 32')
        self.taken = [max(i for i, r in enumerate(reductions) if r == stride) for stride in STRIDES]
        self.channels = [self.body.feature_info.channels()[i] for i in self.taken]
        config = timm.get_pretrained_cfg(name)
        self.image_mean, self.image_std = tuple(config.mean), tuple(config.std)
        self.name, self.norm = name, norm
        self._try_size()
        if freeze:
            self._freeze()
        if norm == "frozen":
            fuse_conv_bn(self.body)
        self.normalize_features = normalize_features
        if normalize_features:
            self.register_buffer("std", torch.ones(len(STRIDES)))
        self.train()

    @torch.no_grad()
    def _try_size(self) -> None:
        """LeukoError if the network does not take images of any size."""
        try:
            self.body.eval()(torch.zeros(1, 3, 128, 160))
        except (AssertionError, RuntimeError, ValueError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise LeukoError(
                f'backbone "{self.name}" does not take images of any size ({reason}); choose a convolutional one'
            ) from e

    def _freeze(self) -> None:
        """Freeze all modules up to the one that gives C2 (timm registers them in the order of the forward pass)."""
        names = self.body.feature_info.module_name()[self.taken[0]]
        last = {names, names.replace(".", "_")}
        reached = False
        for name, module in self.body.named_modules():
            within = any(name == n or name.startswith(n + ".") for n in last)
            if reached and not within:
                break
            reached = reached or within
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                fixed = self.norm == "frozen" or (module.affine and not module.weight.requires_grad)
                module.train(mode and not fixed)
        return self

    def forward(self, batch: Tensor) -> list[Tensor]:
        maps = self.body(batch)
        maps = [maps[i] for i in self.taken]
        if maps[0].shape[1] != self.channels[0]:  # some transformers of timm put the channels last
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [m / s for m, s in zip(maps, self.std, strict=True)] if self.normalize_features else maps

    @torch.no_grad()
    def init_scale(self, batch: Tensor) -> None:
        """Measure the standard deviation of the maps of a normalised batch [N, 3, H, W], if they are divided by it.

        It is measured in training mode, where BatchNorm may follow the batch; on a copy, whose statistics that changes.
        """
        if self.normalize_features:
            self.std.fill_(1)
            maps = copy.deepcopy(self).train()(batch)
            self.std.copy_(torch.stack([m.std() for m in maps]).clamp(min=1e-3))

    def load_pretrained(self, source: str | Path | None = None) -> str:
        """Load ImageNet weights, from a file if one is named (see ``pretrained``), and return their source."""
        given, source = imagenet_weights(self.name, source)
        copy_weights(self.body, given, self.name, source)
        return source
