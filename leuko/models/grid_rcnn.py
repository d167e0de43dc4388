"""Grid R-CNN (Lu et al. 2019): a box is located by a grid of 3x3 points, each with a heat map of its own.

Letters: R RoIs, G = 9 grid points, D channels per point, S = 28 cells along a heat map. Points run down the columns:
point i lies in column i // 3 and row i % 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops import ranks
from ..ops.boxes import Found
from ..ops.roi_align import RoIs
from .base import ModelOptions, Targets
from .roi_heads import ClassHead, TwoStage, pool

GRID = 3  # points along a side
POINTS = [(i // GRID, i % GRID) for i in range(GRID * GRID)]  # column, row
NEIGHBOURS = [[j for j, q in enumerate(POINTS) if abs(p[0] - q[0]) + abs(p[1] - q[1]) == 1] for p in POINTS]

SIZE = 14  # cells along a side of a pooled RoI
WHOLE = 4 * SIZE  # cells along a side of the map that covers twice the RoI's sides
PART = WHOLE // 2  # cells along a heat map: the part of the map in which its point can lie (Grid R-CNN Plus)
CONVS = 8
GROUPS = 36  # of the group norm
RADIUS = 1  # cells about a point that its heat map marks
WEIGHT = 15.0  # of the grid loss
JITTER = 0.15  # of a RoI's sides, in training
MAX_ROIS = 192  # of a batch, on which the grid is trained


class GridFusion(nn.Module):
    """Every point's features [R, D, 7, 7] plus the messages of its up to four neighbours (section 3.2): a depthwise 5x5
    convolution, then a 1x1 one."""

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
    """Pooled RoIs [R, C, 14, 14] -> heat-map logits [R, G, S, S] from the features after two exchanges between
    neighbours (fused) and, in training mode, from those before (unfused)."""

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
        self.first_order, self.second_order = GridFusion(point_channels), GridFusion(point_channels)
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
        nn.init.constant_(self.deconv2.bias, -math.log(99))  # a score of .01 everywhere

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fused logits, and unfused ones or None."""
        x = self.convs(pooled)  # [R, G * D, 7, 7]
        points = list(x.split(self.point_channels, dim=1))
        fused = self.second_order(points, self.first_order(points, points))
        return self.heat(torch.cat(fused, dim=1)), self.heat(x) if self.training else None

    def heat(self, x: Tensor) -> Tensor:
        """[R, G * D, 7, 7] -> [R, G, S, S]."""
        return self.deconv2(F.relu(self.norm(self.deconv1(x)))).float()


def points_of_grid(device: torch.device) -> Tensor:
    """:data:`POINTS` as a tensor [G, 2]."""
    point = torch.arange(len(POINTS), device=device)
    return torch.stack([point // GRID, point % GRID], dim=1).float()


def part_corners(device: torch.device) -> Tensor:
    """First cell (x, y) of each point's part of the whole map: [G, 2]; 0, a quarter or a half of its side."""
    return points_of_grid(device) * (WHOLE // 4)


def heat_targets(rois: Tensor, gt_boxes: Tensor) -> Tensor:
    """Targets of the heat maps: 1 within :data:`RADIUS` of each point's cell, else 0.

    rois [R, 4] and the ground truth of each [R, 4], in pixels -> [R, G, S, S]. A RoI too small for the grid has no
    marked cell.
    """
    region = box_ops.scaled(rois, 2.0)
    corner, side = region[:, None, :2], (region[:, 2:] - region[:, :2])[:, None]  # [R, 1, 2]
    share = points_of_grid(rois.device) / (GRID - 1)  # [G, 2]
    points = gt_boxes[:, None, :2] + share * (gt_boxes[:, 2:] - gt_boxes[:, :2])[:, None]  # [R, G, 2]
    at = ((points - corner) / side.clamp(min=box_ops.EPS) * WHOLE).trunc() - part_corners(rois.device)
    squared = (torch.arange(PART, device=rois.device) - at[..., None]).square()  # [R, G, 2, S]
    marked = squared[:, :, 1, :, None] + squared[:, :, 0, None, :] <= RADIUS**2  # [R, G, S (y), S (x)]
    return (marked & (side > GRID).all(2)[..., None, None]).float()


def boxes_from_heat(rois: Tensor, logits: Tensor) -> Tensor:
    """Boxes [R, 4] from heat-map logits [R, G, S, S]: each side is the mean position of its three points, weighted by
    their scores (eq. 3)."""
    best, cell = logits.flatten(2).max(dim=2)  # [R, G]; near a probability of 1, only logits tell cells apart
    score = best.sigmoid()
    at = torch.stack([cell % PART, cell // PART], dim=2) + part_corners(rois.device) + 0.5  # [R, G, 2]
    region = box_ops.scaled(rois, 2.0)[:, None]
    points = region[..., :2] + at / WHOLE * (region[..., 2:] - region[..., :2])
    points, score = points.reshape(-1, GRID, GRID, 2), score.reshape(-1, GRID, GRID)  # [R, columns, rows(, 2)]

    def mean(position: Tensor, weight: Tensor) -> Tensor:
        return (position * weight).sum(1) / weight.sum(1)

    left, right = (mean(points[:, i, :, 0], score[:, i]) for i in (0, -1))
    top, bottom = (mean(points[:, :, i, 1], score[:, :, i]) for i in (0, -1))
    return torch.stack([left, top, right, bottom], dim=1)


class GridRCNN(TwoStage):
    """A class head on the proposals; after NMS the grid head locates the boxes of the best ones."""

    allowed_border = 0
    rpn_beta = 1 / 9
    proposals = 2000
    default_score_threshold = 0.03
    nms_threshold = 0.3
    box_voting = False  # its boxes come from the grid, after NMS
    channels_multiple = 16  # 9 points of a quarter of the channels each, in GROUPS groups

    def __init__(self, *, num_classes: int, options: ModelOptions, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.head = ClassHead(options.channels, options.fc_channels, num_classes)
        self.grid_head = GridHead(options.channels, options.channels // 4)
        self.criterion = self.roi_criterion(low_quality=True)
        self.jitter = JITTER

    def roi_losses(
        self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        samples = self.criterion.match_and_sample(proposals, targets)
        cls_logits = self.head(pyramid, RoIs.of(samples.boxes))
        # Per RoI of the batch what it gets at random: four numbers to move it, and one to choose it.
        draw = ranks.random(len(sizes), 5 * samples.labels.shape[1], sizes.device).unflatten(1, (-1, 5))
        draw = draw.flatten(0, 1)[samples.positives]  # [P, 5]
        rois = self._jittered(samples.positive_rois, sizes, draw[:, :4])
        grid_loss = self.grid_loss(pyramid, rois, heat_targets(rois.boxes, samples.gt_boxes), draw[:, 4])
        return {"class": self.criterion.class_loss(cls_logits, samples), "grid": grid_loss}

    def grid_loss(self, pyramid: list[Tensor], rois: RoIs, targets: Tensor, keys: Tensor) -> Tensor:
        """Mean cross entropy of fused and unfused heat maps, of the at most :data:`MAX_ROIS` RoIs with the smallest
        ``keys`` [R]."""
        chosen = ranks.smallest(keys, MAX_ROIS)
        targets = targets[chosen]
        maps = self.grid_head(pool(pyramid, rois.at(chosen), SIZE))
        loss = sum(F.binary_cross_entropy_with_logits(m, targets, reduction="sum") for m in maps)
        return WEIGHT * loss / ranks.normaliser(targets.numel(), loss.device)

    @torch.no_grad()
    def _jittered(self, rois: RoIs, sizes: Tensor, draw: Tensor) -> RoIs:
        """RoIs moved and stretched at random, so that the grid learns from more than the few positives."""
        offset = (2 * draw - 1) * self.jitter
        boxes = rois.boxes
        side = boxes[:, 2:] - boxes[:, :2]
        centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + side * offset[:, :2]
        half = side * (1 + offset[:, 2:]) * 0.5
        return RoIs(rois.image, box_ops.clip(torch.cat([centre - half, centre + half], dim=1), sizes[rois.image]))

    def roi_detect(self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor) -> Found:
        cls_logits = self.head(pyramid, RoIs.of(proposals))
        found = self.select_rois(cls_logits, proposals[:, :, None], sizes)
        rois = RoIs.of(found.boxes)
        logits, _ = self.grid_head(pool(pyramid, rois, SIZE))
        boxes = boxes_from_heat(rois.boxes, logits).view_as(found.boxes)
        return found._replace(boxes=box_ops.clip(boxes, sizes))
