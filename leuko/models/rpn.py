"""Region proposal network (Ren et al. 2015): which anchors hold any cell, and how they should be moved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from . import anchors, criterion
from .base import Target
from .matcher import IoUAssigner, sample
from .preprocess import Size

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
SCALE = 8.0  # an anchor's side in strides


class RPN(nn.Module):
    """One 3x3 convolution, then objectness and box deltas for three anchors a cell.

    ``border``: anchors that reach further than this beyond the image (pixels) are left out of training; negative keeps
    all. ``beta`` is the knee of the smooth L1 box loss (0: L1). ``keep`` = proposals an image in training and at test.
    """

    def __init__(self, channels: int, *, border: int, beta: float, keep: tuple[int, int]):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(RATIOS), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for conv in self.children():
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        self.border, self.beta, self.keep = border, beta, keep
        self.coder = box_ops.DeltaCoder()
        self.assigner = IoUAssigner(positive=0.7, negative=0.3, floor=0.3, low_quality=True)
        self.sampled, self.positive_fraction = 256, 0.5
        self.candidates = (2000, 1000)  # anchors a level that go on to NMS, in training and at test
        self.nms_threshold = 0.7

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits [N, R] and deltas [N, R, 4] of each level."""
        logits, deltas = [], []
        for feature in pyramid:
            hidden = F.relu(self.conv(feature))
            logits.append(self.objectness(hidden).float().permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).float().permute(0, 2, 3, 1).reshape(len(feature), -1, 4))
        return logits, deltas

    def anchors(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Anchors [R, 4] of each level."""
        return [anchors.anchors(f, s, SCALE, RATIOS) for f, s in zip(pyramid, STRIDES, strict=True)]

    @torch.no_grad()
    def propose(
        self, logits: list[Tensor], deltas: list[Tensor], levels: list[Tensor], sizes: list[Size]
    ) -> list[Tensor]:
        """The best boxes of each image, [P, 4] each, by falling objectness, after NMS within each level."""
        candidates, keep = (n[0 if self.training else 1] for n in (self.candidates, self.keep))
        proposals = []
        for i, size in enumerate(sizes):
            boxes, scores, level_of = [], [], []
            for level, anchor in enumerate(levels):
                score, best = logits[level][i].sigmoid().topk(min(candidates, len(anchor)))
                boxes.append(box_ops.clip(self.coder.decode(anchor[best], deltas[level][i, best]), size))
                scores.append(score)
                level_of.append(torch.full_like(best, level))
            kept = box_ops.suppress(torch.cat(boxes), torch.cat(scores), torch.cat(level_of), self.nms_threshold, keep)
            proposals.append(kept[0])
        return proposals

    def losses(
        self, pyramid: list[Tensor], levels: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Objectness and box loss over the sampled anchors, both divided by how many were sampled.

        Only the sampled anchors have a gradient, so the network is run again at their cells alone (see :meth:`at`),
        and the pass over whole maps, which proposes, needs none.
        """
        anchor = torch.cat(levels)
        image, index, truth, wanted = [], [], [], []
        sampled = 0
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            inside = torch.nonzero(self._inside(anchor, size)).flatten()
            match = self.assigner(anchor[inside], target["boxes"])
            positive, negative = sample(match, self.sampled, self.positive_fraction)
            sampled += max(len(positive), 1) + max(len(negative), 1)
            chosen = inside[torch.cat([positive, negative])]
            image.append(torch.full_like(chosen, i))
            index.append(chosen)
            truth.append(torch.arange(len(chosen), device=chosen.device) < len(positive))
            wanted.append(self.coder.encode(anchor[inside[positive]], target["boxes"][match[positive]]))
        truth = torch.cat(truth)
        logits, deltas = self.at(pyramid, torch.cat(image), torch.cat(index))
        return {
            "rpn_objectness": F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="sum") / sampled,
            "rpn_box": criterion.smooth_l1(deltas[truth], torch.cat(wanted), self.beta).sum() / sampled,
        }

    def at(self, pyramid: list[Tensor], image: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` gives for single anchors: logits [S] and deltas [S, 4].

        image [S] says which of the N images an anchor belongs to, index [S] which of the anchors of all levels it is.
        A 3x3 convolution at one cell is a product of its nine neighbours' features with the kernel.
        """
        kinds = len(RATIOS)
        kernel = self.conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [9*C, C]
        logits, deltas, order = [], [], []
        start = 0
        for feature in pyramid:
            height, width = feature.shape[-2:]
            number = height * width * kinds
            here = torch.nonzero((index >= start) & (index < start + number)).flatten()
            cell, kind = (index[here] - start) // kinds, (index[here] - start) % kinds
            y, x = cell // width, cell % width
            padded = F.pad(feature, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # [N, H+2, W+2, C]
            corner = (image[here] * (height + 2) + y) * (width + 2) + x
            window = torch.arange(3, device=index.device)
            offsets = (window[:, None] * (width + 2) + window).flatten()
            patches = F.embedding(corner[:, None] + offsets, padded.flatten(0, 2)).flatten(1)  # [s, 9*C]
            hidden = F.relu(patches @ kernel + self.conv.bias)
            rows = torch.arange(len(here), device=index.device)
            logits.append(F.linear(hidden, self.objectness.weight.flatten(1), self.objectness.bias)[rows, kind])
            moved = F.linear(hidden, self.deltas.weight.flatten(1), self.deltas.bias)
            deltas.append(moved.unflatten(1, (kinds, 4))[rows, kind])
            order.append(here)
            start += number
        back = torch.cat(order).argsort()
        return torch.cat(logits)[back].float(), torch.cat(deltas)[back].float()

    def _inside(self, anchor: Tensor, size: Size) -> Tensor:
        if self.border < 0:
            return torch.ones(len(anchor), dtype=torch.bool, device=anchor.device)
        limit = anchor.new_tensor([size[1], size[0]]) + self.border
        return (anchor[:, :2] >= -self.border).all(1) & (anchor[:, 2:] < limit).all(1)
