"""FSAF, feature selective anchor-free (Zhu et al. 2019): each box is learned on the pyramid level where the network
currently fits it best. The anchor-free branch alone, as in MMDetection."""

from __future__ import annotations

from torch import Tensor, nn

from .base import ModelOptions
from .criterion import FSAFCriterion
from .dense import STRIDES, DenseHead, OneStage
from .matcher import CoreMatcher

UNIT = 4.0  # strides: the unit of the predicted distances
START = 1.5  # units: the distances of an untrained head; from .25 many sides would fall below 0 and stay there
SMALLEST = 1e-4  # units, in training, so that no box is empty


class FSAFHead(DenseHead):
    """Towers without norm; a map [N, C, H, W] -> class logits [N, K, H, W] and distances [N, 4, H, W] in pixels."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__(channels, num_classes, groups=0)
        nn.init.constant_(self.bbox_pred.bias, START)

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor]:
        distances = self.bbox_pred(self.box_tower(feature)).float()
        return (distances.clamp(min=SMALLEST if self.training else 0.0) * (UNIT * STRIDES[level]),)


class FSAF(OneStage):
    """FSAF on P3 to P7; a point lies at the top left corner of its cell."""

    extra = "input"
    default_clip = 10.0  # as in MMDetection; nothing else limits towers without norm
    offset = 0.0

    def __init__(self, *, num_classes: int, options: ModelOptions, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.head = FSAFHead(options.channels, num_classes)
        self.criterion = FSAFCriterion(matcher=CoreMatcher(), levels=len(STRIDES), class_weights=options.class_weights)
