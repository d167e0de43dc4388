"""The typing network: which type a cell is, by a crop of it, whatever detector has found it.

A detector that was trained at one centre finds nearly every cell at another, but takes many for another type
(docs/travel.md). A classifier of crops travels better: each cell has the same size in it, its stain is brought to a
reference first (``synth.stain``), and it can learn from crops of single cells, of which there are far more than fields.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ..errors import LeukoError, nearest
from .batch_norm import fuse_conv_bn
from .pretrained import copy_weights, imagenet_weights

AT_ONCE = 64  # crops that go through the network together


class Typer(nn.Module):
    """A timm network for crops [N, 3, S, S], RGB in 0..1, -> logits [N, K + 1] of the K types and, last, of none."""

    def __init__(self, backbone: str, num_types: int, side: int):
        super().__init__()
        if not timm.is_model(backbone):
            raise LeukoError(f'typing network "{backbone}" is unknown to timm{nearest(backbone, timm.list_models())}')
        self.net = timm.create_model(backbone, num_classes=num_types + 1)
        self.recipe = {"backbone": backbone, "num_types": num_types, "side": side}
        self.side = side
        config = timm.get_pretrained_cfg(backbone)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)
        self._check()

    def load_pretrained(self, source: str | Path | None = None) -> str:
        """Load ImageNet weights into all but the last layer, and return their source."""
        given, source = imagenet_weights(self.recipe["backbone"], source)
        last = self.net.pretrained_cfg["classifier"]
        copy_weights(self.net, given, self.recipe["backbone"], source, without=(f"{last}.",))
        return source

    @property
    def last(self) -> nn.Linear:
        """The layer from features to logits."""
        return self.net.get_classifier()

    def features(self, crops: Tensor) -> Tensor:
        """What the last layer sees of crops: [N, F]."""
        crops = ((crops - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.net.forward_head(self.net.forward_features(crops), pre_logits=True)

    def forward(self, crops: Tensor) -> Tensor:
        return self.last(self.features(crops))

    # Crops as they are cut out, [N, S, S, 3] uint8 RGB in numpy.

    def tensor(self, crops: np.ndarray) -> Tensor:
        """Crops as the network takes them, on its device."""
        return torch.from_numpy(crops).to(self.mean.device).permute(0, 3, 1, 2).float() / 255

    @torch.no_grad()
    def features_of(self, crops: np.ndarray) -> Tensor:
        """What the last layer sees of any number of crops: [N, F] on the CPU."""
        parts = [self.features(self.tensor(crops[i : i + AT_ONCE])).cpu() for i in range(0, len(crops), AT_ONCE)]
        return torch.cat(parts) if parts else torch.zeros(0, self.last.in_features)

    @torch.inference_mode()
    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Of each type and, last, of none, [N, K + 1] float32, for as many crops as fit into memory."""
        return self(self.tensor(crops)).float().softmax(1).cpu().numpy()

    def _check(self) -> None:
        """LeukoError for one of timm's networks that is made for images of another size, or ends in another way."""
        try:
            with torch.no_grad():
                fits = self.eval()(torch.zeros(1, 3, self.side, self.side, device=self.mean.device)).ndim == 2
        except Exception:  # of many kinds
            fits = False
        if not fits:
            raise LeukoError(
                f'typing network "{self.recipe["backbone"]}" does not take crops of {self.side} pixels, or does not '
                "end in one linear layer; choose another --backbone or --side"
            )
        self.train()

    def fuse(self) -> None:
        """Fuse the norms into the convolutions before them; it can no longer be trained."""
        fuse_conv_bn(self.net, (3, self.side, self.side), for_inference=True)
