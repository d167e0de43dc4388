"""Cascade R-CNN (Cai and Vasconcelos 2018): three heads in a row, each trained at a higher IoU on the boxes that the
previous one has moved."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.boxes import Found, clip
from ..ops.roi_align import RoIs
from .base import ModelOptions, Targets
from .roi_heads import BBOX_STD, TwoFCHead, TwoStage

IOUS = (0.5, 0.6, 0.7)
STDS = (BBOX_STD, (0.05, 0.1), (0.033, 0.067))
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
        self.criteria = nn.ModuleList(self.roi_criterion(*stage, beta=1.0) for stage in zip(IOUS, STDS, strict=True))

    def roi_losses(
        self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        losses = {}
        for stage, weight in enumerate(WEIGHTS):
            samples = self.criteria[stage].match_and_sample(proposals, targets)  # at the stage's own IoU
            cls_logits, deltas, moved = self._run_stage(stage, pyramid, samples.boxes, sizes)
            stage_losses = self.criteria[stage](cls_logits, deltas, samples)
            losses |= {f"stage{stage + 1}_{name}": weight * loss for name, loss in stage_losses.items()}
            # The next stage adds the ground truth itself.
            proposals = moved * (~samples.is_gt & (samples.labels >= 0))[..., None]
        return losses

    def roi_detect(self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor) -> Found:
        boxes, total = proposals, 0.0
        for stage in range(len(self.heads)):
            cls_logits, _, boxes = self._run_stage(stage, pyramid, boxes, sizes)
            total = total + cls_logits
        return self.select_rois(total / len(self.heads), boxes[:, :, None], sizes)

    def _run_stage(
        self, stage: int, pyramid: list[Tensor], boxes: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [N * S, K + 1] and deltas [N * S, 1, 4] of boxes [N, S, 4], and the moved boxes, detached."""
        cls_logits, deltas = self.heads[stage](pyramid, RoIs.of(boxes))
        moved = self.criteria[stage].coder.decode(boxes, deltas.detach().view_as(boxes))
        return cls_logits, deltas, clip(moved, sizes)
