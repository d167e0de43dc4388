"""Grid R-CNN (Lu et al. 2019): a box is found as a grid of 3x3 points, each by a heat map of its own.

Letters: R RoIs, G = 9 grid points, D channels a point, S = 28 cells along a heat map. Points run down the columns:
point i lies in column i // 3 and row i % 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from .base import Detection, ModelOptions, Target
from .preprocess import Preprocess, Size
from .roi_heads import ClassHead, RoIStage, TwoStage, pool

GRID = 3  # points along a side
POINTS = [(i // GRID, i % GRID) for i in range(GRID * GRID)]  # column, row
NEIGHBOURS = [[j for j, q in enumerate(POINTS) if abs(p[0] - q[0]) + abs(p[1] - q[1]) == 1] for p in POINTS]

SIDE = 14  # cells of a pooled RoI
WHOLE = 4 * SIDE  # cells of the map on which a box twice the RoI's sides lies
PART = WHOLE // 2  # cells of a heat map: a point has the part of the map in which it can lie (Grid R-CNN Plus)
CONVS = 8
GROUPS = 36  # of the group norm
RADIUS = 1  # cells about a point's place that its heat map is to mark
WEIGHT = 15.0  # of the grid loss
JITTER = 0.15  # of a RoI's sides, in training
AT_MOST = 192  # RoIs of a batch that the grid is learned from


class Fusion(nn.Module):
    """Every point's features [R, D, 7, 7] plus what its up to four neighbours send (section 3.2): a 5x5 convolution of
    each channel by itself, then a 1x1 one."""

    def __init__(self, channels: int):
        super().__init__()
        self.messages = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.Conv2d(channels, channels, 1)
                )
                for _ in neighbours
            )
            for neighbours in NEIGHBOURS
        )

    def forward(self, own: list[Tensor], sent: list[Tensor]) -> list[Tensor]:
        return [
            sum((message(sent[j]) for message, j in zip(messages, neighbours, strict=True)), start=x)
            for x, messages, neighbours in zip(own, self.messages, NEIGHBOURS, strict=True)
        ]


class GridHead(nn.Module):
    """Pooled RoIs [R, C, 14, 14] -> heat-map logits [R, G, S, S], from features that the points have exchanged over two
    steps of the grid and, second, from the features before."""

    def __init__(self, channels: int, point_channels: int):
        super().__init__()
        points = len(POINTS)
        width = point_channels * points
        self.point_channels = point_channels
        layers: list[nn.Module] = []
        for i in range(CONVS):
            layers.append(nn.Conv2d(width if i else channels, width, 3, stride=1 if i else 2, padding=1))
            layers += [nn.GroupNorm(GROUPS, width), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.first, self.second = Fusion(point_channels), Fusion(point_channels)
        self.deconv1 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, groups=points)
        self.norm = nn.GroupNorm(points, width)
        self.deconv2 = nn.ConvTranspose2d(width, points, 4, stride=2, padding=1, groups=points)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.deconv2.bias, -math.log(99))  # heat of .01 everywhere

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """The second, unfused logits are None in eval mode, where they have no use."""
        x = self.convs(pooled)  # [R, G * D, 7, 7]
        points = list(x.split(self.point_channels, dim=1))
        fused = self.second(points, self.first(points, points))
        return self.heat(torch.cat(fused, dim=1)), self.heat(x) if self.training else None

    def heat(self, x: Tensor) -> Tensor:
        """[R, G * D, 7, 7] -> [R, G, S, S]."""
        return self.deconv2(F.relu(self.norm(self.deconv1(x)))).float()


def part_corners(like: Tensor) -> Tensor:
    """First cell (x, y) of each point's part of the whole map: [G, 2]; 0, a quarter or a half of its side."""
    return like.new_tensor(POINTS) * (WHOLE // 4)


def heat_targets(rois: Tensor, truth: Tensor) -> Tensor:
    """What the heat maps are to be: 1 within :data:`RADIUS` of each point's cell, else 0.

    rois [R, 4] and the ground truth of each [R, 4], in pixels -> [R, G, S, S]. A RoI too small to hold the grid has no
    point in it at all.
    """
    field = box_ops.scaled(rois, 2.0)
    corner, side = field[:, None, :2], (field[:, 2:] - field[:, :2])[:, None]  # [R, 1, 2]
    share = truth.new_tensor(POINTS) / (GRID - 1)  # [G, 2]
    points = truth[:, None, :2] + share * (truth[:, 2:] - truth[:, :2])[:, None]  # [R, G, 2]
    at = ((points - corner) / side.clamp(min=box_ops.EPS) * WHOLE).trunc() - part_corners(rois)
    squared = (torch.arange(PART, device=rois.device) - at[..., None]).square()  # [R, G, 2, S]
    marked = squared[:, :, 1, :, None] + squared[:, :, 0, None, :] <= RADIUS**2  # [R, G, S (y), S (x)]
    return (marked & (side > GRID).all(2)[..., None, None]).float()


def boxes_of_grid(rois: Tensor, logits: Tensor) -> Tensor:
    """Boxes [R, 4] from heat-map logits [R, G, S, S]: every side is the mean of its three points' places, weighted by
    their heat (eq. 3)."""
    heat, cell = logits.sigmoid().flatten(2).max(dim=2)  # [R, G]
    at = torch.stack([cell % PART, cell // PART], dim=2) + part_corners(rois) + 0.5  # [R, G, 2]
    field = box_ops.scaled(rois, 2.0)[:, None]
    points = field[..., :2] + at / WHOLE * (field[..., 2:] - field[..., :2])
    points, heat = points.unflatten(1, (GRID, GRID)), heat.unflatten(1, (GRID, GRID))  # [R, columns, rows(, 2)]

    def mean(place: Tensor, weight: Tensor) -> Tensor:
        return (place * weight).sum(1) / weight.sum(1)

    left, right = (mean(points[:, i, :, 0], heat[:, i]) for i in (0, -1))
    top, bottom = (mean(points[:, :, i, 1], heat[:, :, i]) for i in (0, -1))
    return torch.stack([left, top, right, bottom], dim=1)


class GridRCNN(TwoStage):
    """A class head on the proposals, whose best, after NMS, the grid head moves."""

    border = 0
    rpn_beta = 1 / 9
    proposals = 2000
    default_score_threshold = 0.03
    nms_threshold = 0.3
    votes = False  # its boxes come after NMS, from the grid

    def __init__(self, *, preprocess: Preprocess, backbone: nn.Module, num_classes: int, options: ModelOptions):
        super().__init__(preprocess=preprocess, backbone=backbone, num_classes=num_classes, options=options)
        self.head = ClassHead(options.channels, options.fc_channels, num_classes)
        self.grid_head = GridHead(options.channels, options.channels // 4)
        self.stage = RoIStage(num_classes, rois=options.rois, class_weights=options.class_weights, low_quality=True)
        self.jitter = JITTER

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        drawn = self.stage.sample(proposals, targets)
        logits = self.head(pyramid, [d.boxes for d in drawn])
        rois = [self._jittered(d.positives, size) for d, size in zip(drawn, sizes, strict=True)]
        wanted = heat_targets(torch.cat(rois), torch.cat([d.truth for d in drawn]))
        return {"class": self.stage.class_loss(logits, drawn), "grid": self.grid_loss(pyramid, rois, wanted)}

    def grid_loss(self, pyramid: list[Tensor], rois: list[Tensor], wanted: Tensor) -> Tensor:
        """Mean cross entropy of fused and unfused heat maps, of at most :data:`AT_MOST` RoIs."""
        if not len(wanted):
            return pyramid[0].new_zeros(())
        chosen = torch.randperm(len(wanted), device=wanted.device)[:AT_MOST]
        pooled = pool(pyramid, rois, SIDE)[chosen]
        return WEIGHT * sum(F.binary_cross_entropy_with_logits(m, wanted[chosen]) for m in self.grid_head(pooled))

    @torch.no_grad()
    def _jittered(self, boxes: Tensor, size: Size) -> Tensor:
        """Boxes [P, 4] moved and stretched at random, so that the grid learns from more than the few there are."""
        offset = (2 * torch.rand_like(boxes) - 1) * self.jitter
        side = boxes[:, 2:] - boxes[:, :2]
        centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + side * offset[:, :2]
        half = side * (1 + offset[:, 2:]) * 0.5
        return box_ops.clip(torch.cat([centre - half, centre + half], dim=1), size)

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        probabilities = self.head(pyramid, proposals).softmax(1).split([len(p) for p in proposals])
        found = [self.select(p, b[:, None], s) for p, b, s in zip(probabilities, proposals, sizes, strict=True)]
        rois = [f["boxes"] for f in found]
        if sum(len(r) for r in rois):
            logits, _ = self.grid_head(pool(pyramid, rois, SIDE))
            parts = logits.split([len(r) for r in rois])
            for f, roi, part, size in zip(found, rois, parts, sizes, strict=True):
                f["boxes"] = box_ops.clip(boxes_of_grid(roi, part), size)
        return found
