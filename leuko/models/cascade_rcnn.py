"""Cascade R-CNN (Cai and Vasconcelos 2018): three heads in a row, each trained at a higher IoU on the boxes that the
previous one has moved."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.boxes import clip
from .base import Detection, ModelOptions, Target
from .criterion import SampledRoIs
from .preprocess import Size
from .roi_heads import BBOX_STD, TwoFCHead, TwoStage

IOUS = (0.5, 0.6, 0.7)
STDS = (BBOX_STD, (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
WEIGHTS = (1.0, 0.5, 0.25)


class CascadeRCNN(TwoStage):
    """Class-agnostic boxes; detections have the mean of the three stages' logits, and the third stage's boxes."""

    allowed_border = 0
    rpn_beta = 1 / 9
    proposals = 2000

    def __init__(self, *, num_classes: int, options: ModelOptions, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.heads = nn.ModuleList(
            TwoFCHead(options.channels, options.fc_channels, num_classes, class_agnostic=True) for _ in IOUS
        )
        self.criteria = [self.roi_criterion(iou, std, beta=1.0) for iou, std in zip(IOUS, STDS, strict=True)]

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        losses = {}
        for stage, weight in enumerate(WEIGHTS):
            samples = self._match_and_sample(stage, proposals, targets)
            cls_logits, deltas, moved = self._run_stage(stage, pyramid, [s.boxes for s in samples], sizes)
            stage_losses = self.criteria[stage](cls_logits, deltas, samples)
            losses |= {f"stage{stage + 1}_{name}": weight * loss for name, loss in stage_losses.items()}
            # The next stage adds the ground truth itself.
            proposals = [boxes[~s.is_gt] for boxes, s in zip(moved, samples, strict=True)]
        return losses

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        boxes, total = proposals, 0.0
        for stage in range(len(self.heads)):
            cls_logits, _, boxes = self._run_stage(stage, pyramid, boxes, sizes)
            total = total + cls_logits
        probabilities = (total / len(self.heads)).softmax(1).split([len(p) for p in proposals])
        return [self.select(p, b[:, None], size) for p, b, size in zip(probabilities, boxes, sizes, strict=True)]

    def _match_and_sample(self, stage: int, proposals: list[Tensor], targets: list[Target]) -> list[SampledRoIs]:
        """The RoIs that a stage learns from, matched at its own IoU."""
        return self.criteria[stage].sample(proposals, targets)

    def _run_stage(
        self, stage: int, pyramid: list[Tensor], boxes: list[Tensor], sizes: list[Size]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Class logits [R, K + 1] and deltas [R, 1, 4] of the boxes, and the moved boxes of each image, detached."""
        cls_logits, deltas = self.heads[stage](pyramid, boxes)
        decode = self.criteria[stage].coder.decode
        per_image = zip(boxes, deltas.detach()[:, 0].split([len(b) for b in boxes]), sizes, strict=True)
        return cls_logits, deltas, [clip(decode(b, d), size) for b, d, size in per_image]
