"""Double-Head R-CNN (Wu et al. 2020): fully-connected layers say what a RoI is, convolutions say where its box lies."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from .base import Detection, ModelOptions, Target
from .preprocess import Preprocess, Size
from .roi_heads import SIDE, ClassHead, RoIStage, TwoStage, output_layer, pool

BOX_SCALE = 1.3  # of the RoI that the convolutions see, about its centre
BOTTLENECKS = 4


class ResidualBlock(nn.Module):
    """The residual block that takes RoIs [R, C, 7, 7] to [R, D, 7, 7] (section 4.2, figure 5a)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False)
        self.shortcut_bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut_bn(self.shortcut(x)))


class BoxConvs(nn.Sequential):
    """RoIs [R, C, 7, 7] -> features [R, D]: a widening block, bottlenecks, and the mean over the cells."""

    def __init__(self, channels: int, width: int):
        blocks = [Bottleneck(width, width // Bottleneck.expansion) for _ in range(BOTTLENECKS)]
        super().__init__(ResidualBlock(channels, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # Each block begins as the identity (Goyal et al. 2017, 5.1). Else the features add up over the blocks,
                # and the box layer on them swings at the R-CNNs' learning rate.
                nn.init.zeros_(module.bn3.weight)


class BoxHead(nn.Module):
    """Deltas [R, K, 4] from convolutions on a surround of each RoI."""

    def __init__(self, channels: int, width: int, num_classes: int):
        super().__init__()
        self.per_class = {"deltas": 4}  # rows a class
        self.convs = BoxConvs(channels, width)
        self.deltas = output_layer(width, 4 * num_classes, std=0.001)

    def forward(self, pyramid: list[Tensor], boxes: list[Tensor]) -> Tensor:
        if not sum(len(b) for b in boxes):  # BatchNorm cannot learn from nothing
            return pyramid[0].new_zeros(0, self.deltas.out_features // 4, 4)
        return self.deltas(self.convs(pool(pyramid, boxes, SIDE, BOX_SCALE))).float().unflatten(1, (-1, 4))


class DoubleHeadRCNN(TwoStage):
    """One RoI stage at IoU .5; both of its losses count twice.

    The convolutions are the cost, so they see only the RoIs whose box matters: in training the positives (from which
    alone their BatchNorm then learns its statistics; the reference takes all RoIs), at test time those with a class
    score above the threshold, which changes nothing.
    """

    default_lr = (
        0.005  # losses that count twice take steps twice as long; at .01 the small preset does not learn the types
    )

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        num_classes: int,
        options: ModelOptions,
        box_channels: int = 0,
    ):
        super().__init__(preprocess=preprocess, backbone=backbone, num_classes=num_classes, options=options)
        self.head = ClassHead(options.channels, options.fc_channels, num_classes)
        self.box_head = BoxHead(options.channels, box_channels or 4 * options.channels, num_classes)
        self.stage = RoIStage(num_classes, rois=options.rois, class_weights=options.class_weights, beta=1.0)

    def foldable(self) -> list[tuple[nn.Module, tuple[int, int, int]]]:
        return [*super().foldable(), (self.box_head.convs, (self.options.channels, SIDE, SIDE))]

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        drawn = self.stage.sample(proposals, targets)
        logits = self.head(pyramid, [d.boxes for d in drawn])
        deltas = self.box_head(pyramid, [d.positives for d in drawn])
        return {"class": 2 * self.stage.class_loss(logits, drawn), "box": 2 * self.stage.box_loss(deltas, drawn)}

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        probabilities = self.head(pyramid, proposals).softmax(1).split([len(p) for p in proposals])
        above_threshold = [(p[:, :-1] > self.score_threshold).any(1) for p in probabilities]
        probabilities = [p[h] for p, h in zip(probabilities, above_threshold, strict=True)]
        boxes = [b[h] for b, h in zip(proposals, above_threshold, strict=True)]
        deltas = self.box_head(pyramid, boxes).split([len(b) for b in boxes])
        return [
            self.select(p, self.stage.coder.decode(b, d), size)
            for p, b, d, size in zip(probabilities, boxes, deltas, sizes, strict=True)
        ]
