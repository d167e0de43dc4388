"""Faster R-CNN (Ren et al. 2015) on an FPN: proposals, then one head of two fully-connected layers."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.boxes import Found
from ..ops.roi_align import RoIs
from .base import ModelOptions, Targets
from .roi_heads import TwoFCHead, TwoStage


class FasterRCNN(TwoStage):
    """One RoI stage at IoU .5; the box is moved separately for each class."""

    def __init__(self, *, num_classes: int, options: ModelOptions, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.head = TwoFCHead(options.channels, options.fc_channels, num_classes, class_agnostic=False)
        self.criterion = self.roi_criterion()

    def roi_losses(
        self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        samples = self.criterion.match_and_sample(proposals, targets)
        cls_logits, deltas = self.head(pyramid, RoIs.of(samples.boxes))
        return self.criterion(cls_logits, deltas, samples)

    def roi_detect(self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor) -> Found:
        cls_logits, deltas = self.head(pyramid, RoIs.of(proposals))
        deltas = deltas.reshape(*proposals.shape[:2], self.num_classes, 4)  # [N, P, K, 4]
        return self.select_rois(cls_logits, self.criterion.coder.decode(proposals[:, :, None], deltas), sizes)
