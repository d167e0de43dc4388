"""Region proposal network (Ren et al. 2015): which anchors hold a cell, and the deltas that move them onto it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops.boxes import batched_nms, take, top
from .base import Targets
from .criterion import RPNCriterion

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALE = 8.0  # an anchor's side in strides


class RPN(nn.Module):
    """One 3x3 convolution, then objectness and box deltas for three anchors per cell.

    ``proposals`` per image, and ``candidates`` per level that go on to NMS: each in training and in eval mode.
    """

    def __init__(
        self, channels: int, *, criterion: RPNCriterion, proposals: tuple[int, int], candidates: tuple[int, int]
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(RATIOS), 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for conv in self.children():
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        self.criterion, self.proposals, self.candidates = criterion, proposals, candidates
        self.nms_threshold = 0.7
        ratios = torch.tensor(RATIOS)
        half_sides = torch.stack([SCALE / ratios.sqrt(), SCALE * ratios.sqrt()], dim=1) * 0.5  # [A, 2] strides
        self.register_buffer("half_sides", half_sides, persistent=False)

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits [N, R] and deltas [N, R, 4] of each level."""
        logits, deltas = [], []
        for feature in pyramid:
            hidden = F.relu(self.conv(feature))
            logits.append(self.objectness(hidden).float().permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(hidden).float().permute(0, 2, 3, 1).reshape(feature.shape[0], -1, 4))
        return logits, deltas

    def anchors(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Anchors [R, 4] of each level, R = H * W * A, about ``(column, row) * stride``."""
        levels = []
        for feature, stride in zip(pyramid, STRIDES, strict=True):
            centre, half = box_ops.points(feature, stride, offset=0.0)[:, None], self.half_sides * stride
            levels.append(torch.cat([centre - half, centre + half], dim=2).reshape(-1, 4))
        return levels

    @torch.no_grad()
    def propose(
        self, logits: list[Tensor], deltas: list[Tensor], levels: list[Tensor], sizes: Tensor, factor: float = 1.0
    ) -> Tensor:
        """The best boxes of each image, [N, P, 4], padded, in descending order of objectness, after NMS within each
        level. ``factor`` is one on the numbers of candidates and of proposals."""
        candidates, number = (round(factor * n[not self.training]) for n in (self.candidates, self.proposals))
        parts = []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, levels, strict=True)):
            logit, best = top(logit, candidates, least=-1e4)  # [N, V]
            parts.append((logit, anchor[best], take(delta, best), torch.full_like(best, level)))
        logit, anchor, delta, level = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        boxes = box_ops.clip(self.criterion.coder.decode(anchor, delta), sizes)
        return batched_nms(boxes, logit.sigmoid(), level, self.nms_threshold, number)[0]

    def losses(self, pyramid: list[Tensor], sizes: Tensor, targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """The RPN's losses, and the proposals [N, P, 4]."""
        levels = self.anchors(pyramid)
        samples = self.criterion.match_and_sample(torch.cat(levels), sizes, targets)
        if pyramid[0].device.type == "cpu":
            with torch.no_grad():
                logits, deltas = self(pyramid)
            image = torch.arange(len(sizes))[:, None].expand_as(samples.anchor)
            sampled = [o.unflatten(0, image.shape) for o in self.at(pyramid, image.flatten(), samples.anchor.flatten())]
        else:
            logits, deltas = self(pyramid)
            sampled = [take(torch.cat(output, dim=1), samples.anchor) for output in (logits, deltas)]
        return self.criterion(*sampled, samples), self.propose(logits, deltas, levels, sizes)

    def at(self, pyramid: list[Tensor], image: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` gives, for single anchors without the pass over whole maps: logits [S], deltas [S, 4].

        image [S] is an index into N, anchor [S] into the anchors of all levels.
        """
        hidden, order = [], []
        start = 0
        for feature in pyramid:
            end = start + feature[0, 0].numel() * len(RATIOS)
            here = torch.nonzero((anchor >= start) & (anchor < end)).flatten()
            cell = (anchor[here] - start) // len(RATIOS)
            hidden.append(conv3x3_at(feature, self.conv.weight, self.conv.bias, image[here], cell))
            order.append(here)
            start = end
        hidden = F.relu(torch.cat(hidden)[torch.cat(order).argsort()])  # [S, C]
        sample, kind = torch.arange(len(anchor), device=anchor.device), anchor % len(RATIOS)
        logits = F.linear(hidden, self.objectness.weight.flatten(1), self.objectness.bias)  # [S, A]
        deltas = F.linear(hidden, self.bbox_pred.weight.flatten(1), self.bbox_pred.bias).unflatten(1, (-1, 4))
        return logits[sample, kind].float(), deltas[sample, kind].float()


def conv3x3_at(feature: Tensor, weight: Tensor, bias: Tensor, image_index: Tensor, cell: Tensor) -> Tensor:
    """``F.conv2d(feature, weight, bias, padding=1)`` at S cells only: [S, K].

    feature [N, C, H, W], weight [K, C, 3, 3], bias [K]; image_index [S] into N, cell [S] into the H*W cells.
    """
    width = feature.shape[-1]
    padded = F.pad(feature, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # [N, H+2, W+2, C]
    rows, columns = padded.shape[1:3]
    corner = (image_index * rows + cell // width) * columns + cell % width  # [S] top left of each 3x3 window
    step = torch.arange(3, device=cell.device)
    window = (step[:, None] * columns + step).flatten()  # [9]
    patches = F.embedding(corner[:, None] + window, padded.flatten(0, 2)).flatten(1)  # [S, 9*C]
    return F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
