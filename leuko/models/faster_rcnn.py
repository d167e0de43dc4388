"""Faster R-CNN (Ren et al. 2015) on an FPN: proposals, then one head of two fully-connected layers."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Detection, ModelOptions, Target
from .preprocess import Size
from .roi_heads import TwoFCHead, TwoStage


class FasterRCNN(TwoStage):
    """One RoI stage at IoU .5; the box is moved separately for each class."""

    def __init__(self, *, num_classes: int, options: ModelOptions, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.head = TwoFCHead(options.channels, options.fc_channels, num_classes, class_agnostic=False)
        self.criterion = self.roi_criterion()

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        samples = self.criterion.sample(proposals, targets)
        cls_logits, deltas = self.head(pyramid, [s.boxes for s in samples])
        return self.criterion(cls_logits, deltas, samples)

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        cls_logits, deltas = self.head(pyramid, proposals)
        counts = [len(p) for p in proposals]
        per_image = zip(cls_logits.softmax(1).split(counts), proposals, deltas.split(counts), sizes, strict=True)
        return [self.select(p, self.criterion.coder.decode(boxes, d), size) for p, boxes, d, size in per_image]
