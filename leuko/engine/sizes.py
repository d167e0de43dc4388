"""A detector at other image sizes than its own: at one, or at several whose detections are fused (test-time
augmentation), for smears whose cells are much smaller or larger in pixels than those it was trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models import DetectionModel
from ..models.base import Detection
from . import fusion


def resized(model: DetectionModel, size: int) -> DetectionModel:
    """The same detector, sharing all weights, for images whose longer side is scaled to ``size`` pixels."""
    other = copy.copy(model)
    other._modules = dict(model._modules)  # a shallow copy shares the table of modules, too
    other.preprocess = copy.copy(model.preprocess)
    other.preprocess.image_size = size
    return other


class AtSizes(nn.Module):
    """A detector that looks at each image in several sizes: one vote a size, by Weighted Boxes Fusion."""

    def __init__(self, model: DetectionModel, sizes: Sequence[int]):
        super().__init__()
        self.looks = nn.ModuleList(resized(model, size) for size in sizes)

    def forward(self, images: list[Tensor]) -> list[Detection]:
        """Images [3, H, W], RGB in 0..1 -> detections of each, in its pixels, by falling score."""
        found = [[{k: v.cpu() for k, v in f.items()} for f in look(images)] for look in self.looks]
        fused = fusion.fuse(found, [(image.shape[2], image.shape[1]) for image in images])
        return [{k: torch.from_numpy(v).to(images[0].device) for k, v in f.items()} for f in fused]


def at_sizes(model: DetectionModel, sizes: Sequence[int]) -> nn.Module:
    """The detector at these sizes; itself where none is named."""
    if not sizes:
        return model
    return resized(model, sizes[0]) if len(sizes) == 1 else AtSizes(model, sizes)
