"""Cascade R-CNN (Cai and Vasconcelos 2018): three heads in a row, each trained at a higher IoU on the boxes that the
one before it has moved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.boxes import clip
from .base import Detection, ModelOptions, Target
from .preprocess import Preprocess, Size
from .roi_heads import RoIStage, SampledRoIs, TwoFCHead, TwoStage

IOUS = (0.5, 0.6, 0.7)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
WEIGHTS = (1.0, 0.5, 0.25)


class CascadeRCNN(TwoStage):
    """Class-agnostic boxes; at test time the mean of the three stages' logits, and the third stage's boxes."""

    border = 0
    rpn_beta = 1 / 9
    proposals = 2000

    def __init__(self, *, preprocess: Preprocess, backbone: nn.Module, num_classes: int, options: ModelOptions):
        super().__init__(preprocess=preprocess, backbone=backbone, num_classes=num_classes, options=options)
        self.heads = nn.ModuleList(
            TwoFCHead(options.channels, options.fc_channels, num_classes, class_agnostic=True) for _ in IOUS
        )
        self.stages = [
            RoIStage(num_classes, rois=options.rois, class_weights=options.class_weights, iou=iou, std=std, beta=1.0)
            for iou, std in zip(IOUS, STDS, strict=True)
        ]

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        result = {}
        for i, (head, stage, weight) in enumerate(zip(self.heads, self.stages, WEIGHTS, strict=True)):
            drawn = stage.sample(proposals, targets)
            logits, deltas = head(pyramid, [d.boxes for d in drawn])
            result |= {f"stage{i + 1}_{k}": weight * v for k, v in stage.losses(logits, deltas, drawn).items()}
            if i + 1 < len(self.stages):
                proposals = self._refine(stage, drawn, deltas, sizes)
        return result

    @torch.no_grad()
    def _refine(self, stage: RoIStage, drawn: list[SampledRoIs], deltas: Tensor, sizes: list[Size]) -> list[Tensor]:
        """The next stage's proposals: this stage's RoIs, moved, without the ground truth that was added to them."""
        moved = deltas.split([len(d.boxes) for d in drawn])
        return [
            clip(stage.coder.decode(d.boxes, m[:, 0]), size)[~d.is_truth]
            for d, m, size in zip(drawn, moved, sizes, strict=True)
        ]

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        counts = [len(p) for p in proposals]
        boxes, total = proposals, 0.0
        for head, stage in zip(self.heads, self.stages, strict=True):
            logits, deltas = head(pyramid, boxes)
            total = total + logits
            boxes = [
                clip(stage.coder.decode(b, d[:, 0]), size)
                for b, d, size in zip(boxes, deltas.split(counts), sizes, strict=True)
            ]
        probabilities = (total / len(self.stages)).softmax(1).split(counts)
        return [self.select(p, b[:, None], size) for p, b, size in zip(probabilities, boxes, sizes, strict=True)]
