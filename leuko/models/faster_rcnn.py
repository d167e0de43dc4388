"""Faster R-CNN (Ren et al. 2015) on an FPN: proposals, then one head of two fully-connected layers."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Detection, ModelOptions, Target
from .preprocess import Preprocess, Size
from .roi_heads import RoIStage, TwoFCHead, TwoStage


class FasterRCNN(TwoStage):
    """One RoI stage at IoU .5; the box is moved separately for each class."""

    def __init__(self, *, preprocess: Preprocess, backbone: nn.Module, num_classes: int, options: ModelOptions):
        super().__init__(preprocess=preprocess, backbone=backbone, num_classes=num_classes, options=options)
        self.head = TwoFCHead(options.channels, options.fc_channels, num_classes, class_agnostic=False)
        self.stage = RoIStage(num_classes, rois=options.rois, class_weights=options.class_weights)

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        drawn = self.stage.sample(proposals, targets)
        logits, deltas = self.head(pyramid, [d.boxes for d in drawn])
        return self.stage.losses(logits, deltas, drawn)

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        logits, deltas = self.head(pyramid, proposals)
        counts = [len(p) for p in proposals]
        return [
            self.select(probabilities, self.stage.coder.decode(boxes, moved), size)
            for probabilities, boxes, moved, size in zip(
                logits.softmax(1).split(counts), proposals, deltas.split(counts), sizes, strict=True
            )
        ]
