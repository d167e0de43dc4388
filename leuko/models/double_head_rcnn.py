"""Double-Head R-CNN (Wu et al. 2020): fully-connected layers classify a RoI, convolutions locate its box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from ..ops.boxes import Found, has_area
from ..ops.roi_align import RoIs
from .base import ModelOptions, Targets
from .batch_norm import BatchNorm
from .roi_heads import SIZE, ClassHead, TwoStage, output_layer, pool

BOX_SCALE = 1.3  # of the RoI that the convolutions see, about its centre
BOTTLENECKS = 4


class ResidualBlock(nn.Module):
    """The residual block that widens RoIs [R, C, 7, 7] to [R, D, 7, 7] (section 4.2, figure 5a)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = BatchNorm(width)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False)
        self.shortcut_bn = BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut_bn(self.shortcut(x)))


class BoxConvs(nn.Sequential):
    """RoIs [R, C, 7, 7] -> features [R, D]: a residual block, bottlenecks, and the mean over the cells."""

    def __init__(self, channels: int, width: int):
        inner = width // Bottleneck.expansion
        blocks = [Bottleneck(width, inner, norm_layer=BatchNorm) for _ in range(BOTTLENECKS)]
        super().__init__(ResidualBlock(channels, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # Each block starts as the identity (Goyal et al. 2017, 5.1). Else the features add up over the blocks,
                # and the box layer on them oscillates at the R-CNNs' learning rate.
                nn.init.zeros_(module.bn3.weight)


class BoxHead(nn.Module):
    """Deltas [R, K, 4] from convolutions on each RoI and its surroundings."""

    def __init__(self, channels: int, width: int, num_classes: int):
        super().__init__()
        self.per_class = {"bbox_pred": 4}  # layers with outputs per class, and how many per class
        self.convs = BoxConvs(channels, width)
        self.bbox_pred = output_layer(width, 4 * num_classes, std=0.001)

    def forward(self, pyramid: list[Tensor], rois: RoIs) -> Tensor:
        deltas = self.bbox_pred(self.convs(pool(pyramid, rois, SIZE, BOX_SCALE))).float()
        return deltas.reshape(-1, self.bbox_pred.out_features // 4, 4)


class DoubleHeadRCNN(TwoStage):
    """One RoI stage at IoU .5; both of its losses count twice.

    The convolutions are the cost, so they see only the RoIs whose box matters: in training the positives (from which
    alone their BatchNorm then learns its statistics; the reference takes all RoIs), in eval mode those with a class
    score above the threshold, which changes nothing.
    """

    # Losses that count twice make steps twice as long; at .01 the small preset does not learn the types.
    default_lr = 0.005

    def __init__(self, *, num_classes: int, options: ModelOptions, box_channels: int = 0, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.head = ClassHead(options.channels, options.fc_channels, num_classes)
        self.box_head = BoxHead(options.channels, box_channels or 4 * options.channels, num_classes)
        self.criterion = self.roi_criterion(beta=1.0)

    def fusible(self) -> list[tuple[nn.Module, tuple[int, int, int]]]:
        return [*super().fusible(), (self.box_head.convs, (self.options.channels, SIZE, SIZE))]

    def roi_losses(
        self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        samples = self.criterion.match_and_sample(proposals, targets)
        cls_logits = self.head(pyramid, RoIs.of(samples.boxes))
        deltas = self.box_head(pyramid, samples.positive_rois)
        return {
            "class": 2 * self.criterion.class_loss(cls_logits, samples),
            "box": 2 * self.criterion.box_loss(deltas, samples),
        }

    def roi_detect(self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor) -> Found:
        rois = RoIs.of(proposals)
        cls_logits = self.head(pyramid, rois)
        possible = (cls_logits.softmax(1)[:, :-1] > self.score_threshold).any(1) & has_area(rois.boxes)
        chosen = torch.nonzero(possible)[:, 0]
        rois = rois.at(chosen)
        moved = self.criterion.coder.decode(rois.boxes[:, None], self.box_head(pyramid, rois))  # [R, K, 4]
        boxes = moved.new_zeros(cls_logits.shape[0], *moved.shape[1:]).index_copy(0, chosen, moved)
        return self.select_rois(cls_logits, boxes.reshape(*proposals.shape[:2], self.num_classes, 4), sizes)
