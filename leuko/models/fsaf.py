"""FSAF, feature selective anchor-free (Zhu et al. 2019): each cell is learned on the level of the pyramid where the
network, as it is at this moment, does best on it. The anchor-free branch alone, as MMDetection has it.

Letters: N images, R points of all levels, L levels, K classes, G ground-truth boxes of the whole batch, P positives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import boxes as box_ops
from . import criterion, matcher
from .base import ModelOptions, Target
from .dense import STRIDES, DenseHead, OneStage, rows
from .preprocess import Preprocess, Size

UNIT = 4.0  # strides: the unit of the distances that the network gives
START = 1.5  # units: the distances of an untrained head; from .25 many sides would fall below 0 and stay there
SMALLEST = 1e-4  # units, in training, so that no box is empty


class FSAFHead(DenseHead):
    """Towers without norm; a map [N, C, H, W] -> class logits [N, K, H, W] and distances [N, 4, H, W] in pixels."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__(channels, num_classes, groups=0)
        self.initialise()
        nn.init.constant_(self.distances.bias, START)

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor]:
        distances = self.distances(self.box_tower(feature)).float()
        return (distances.clamp(min=SMALLEST if self.training else 0.0) * (UNIT * STRIDES[level]),)


class FSAF(OneStage):
    """FSAF on P3 to P7; a point lies in its cell's corner."""

    default_clip = 10.0  # as in MMDetection; nothing else restrains towers without norm
    offset = 0.0

    def __init__(self, *, preprocess: Preprocess, backbone: nn.Module, num_classes: int, options: ModelOptions):
        super().__init__(preprocess=preprocess, backbone=backbone, options=options, extra="input", relu=False)
        self.head = FSAFHead(options.channels, num_classes)

    def losses(self, pyramid: list[Tensor], sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        logits, distances = (torch.cat([rows(o) for o in kind], 1) for kind in zip(*self.head(pyramid), strict=True))
        points = self.points(pyramid)
        level = torch.cat([torch.full((len(p),), i, device=p.device) for i, p in enumerate(points)])  # [R]
        points, side = torch.cat(points), points[0].new_tensor(STRIDES)[level]  # [R, 2], [R]

        wanted, weight = torch.zeros_like(logits, dtype=torch.float32), torch.ones_like(logits, dtype=torch.float32)
        image, point, cell, label, truth = [], [], [], [], []
        cells = 0
        for i, target in enumerate(targets):
            match, others = matcher.assign_cores(points, side, target["boxes"])
            at, other = torch.nonzero(others, as_tuple=True)
            weight[i, at, target["labels"][other]] = 0.0
            positive = torch.nonzero(match >= 0).flatten()
            match = match[positive]
            image.append(torch.full_like(positive, i))
            point.append(positive)
            cell.append(match + cells)
            label.append(target["labels"][match])
            truth.append(target["boxes"][match])
            cells += len(target["boxes"])
        image, point, cell, label, truth = (torch.cat(parts) for parts in (image, point, cell, label, truth))  # [P]
        wanted[image, point, label] = weight[image, point, label] = 1.0

        weight = weight * criterion.by_class(wanted, self.options.class_weights)
        class_loss = criterion.focal(logits.float(), wanted) * weight  # [N, R, K]
        predicted = box_ops.distances_to_box(points[point], distances[image, point])
        box_loss = criterion.log_iou(predicted, truth)  # [P]
        both = class_loss[image, point].sum(1) + box_loss
        chosen = level[point] == best_levels(both.detach(), level[point], cell, cells)[cell]  # [P]
        # What other levels say of the cell's own type is neither right nor wrong; all other types are wrong there too.
        aside = ~chosen
        total = class_loss.sum() - class_loss[image[aside], point[aside], label[aside]].sum()
        number = chosen.sum() if len(chosen) else logits[..., 0].numel()
        return {"class": total / number, "box": box_loss[chosen].sum() / number}


def best_levels(loss: Tensor, level: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Online feature selection (section 3.2): the level [G] on which the mean loss over a cell's positives is least.

    loss, level and cell [P]: each positive's loss, its level and its cell, an index into the G cells of the batch.
    """
    of_cell = cell == torch.arange(cells, device=cell.device)[:, None]  # [G, P]
    on_level = level == torch.arange(len(STRIDES), device=level.device)[:, None]  # [L, P]
    members = (of_cell[:, None] & on_level).float()  # [G, L, P]
    mean = (members @ loss) / members.sum(2)  # nan on levels without any
    return mean.nan_to_num(torch.inf).argmin(dim=1)
