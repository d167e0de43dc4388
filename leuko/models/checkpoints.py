"""Foreign weights: the parameter names of other detector libraries, in leuko's names."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# MMDetection 2 and 3. Each pattern is tried in turn; the first that matches the whole name rewrites it.
MMDETECTION = (
    (r"neck\.lateral_convs\.(\d+)\.conv\.(.*)", r"fpn.lateral.\1.\2"),
    (r"rpn_head\.rpn_conv\.(.*)", r"rpn.conv.\1"),
    (r"rpn_head\.rpn_cls\.(.*)", r"rpn.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(.*)", r"rpn.deltas.\1"),
    (r"bbox_head\.conv_cls\.(.*)", r"head.class_logits.\1"),
    (r"bbox_head\.conv_reg\.(.*)", r"head.distances.\1"),
    (r"bbox_head\.conv_centerness\.(.*)", r"head.centerness.\1"),
    (r"backbone\.(.*)", r"backbone.body.\1"),
)
TOWERS = {"cls_convs": "class_tower", "reg_convs": "box_tower"}
TOWER_PARTS = {"conv": 0, "gn": 1}  # places within the three layers of a tower's step
ROI_PARTS = {"shared_fcs.0": "fc1", "shared_fcs.1": "fc2", "fc_cls": "class_logits", "fc_reg": "deltas"}


def from_mmdetection(state: dict[str, Tensor], fpn_maps: int) -> dict[str, Tensor]:
    """Rename MMDetection's weights of FCOS, Faster or Cascade R-CNN to leuko's.

    ``fpn_maps`` is how many of the backbone's maps the FPN uses (3 for FCOS, 4 for the R-CNNs): MMDetection counts the
    convolutions of added levels on from there. Raises KeyError on a name that is none of theirs.
    """
    renamed: dict[str, Tensor] = {}
    scales: dict[int, Tensor] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"bbox_head\.scales\.(\d+)\.scale", name):
            scales[int(match[1])] = value
        else:
            renamed[_mmdetection_name(name, fpn_maps)] = value
    if scales:
        renamed["head.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    return renamed


def _mmdetection_name(name: str, fpn_maps: int) -> str:
    if match := re.fullmatch(r"neck\.fpn_convs\.(\d+)\.conv\.(.*)", name):
        level = int(match[1])
        place = f"output.{level}" if level < fpn_maps else f"extra_convs.{level - fpn_maps}"
        return f"fpn.{place}.{match[2]}"
    if match := re.fullmatch(r"bbox_head\.(cls_convs|reg_convs)\.(\d+)\.(conv|gn)\.(.*)", name):
        return f"head.{TOWERS[match[1]]}.{3 * int(match[2]) + TOWER_PARTS[match[3]]}.{match[4]}"
    if match := re.fullmatch(r"roi_head\.bbox_head\.(?:(\d)\.)?(shared_fcs\.\d|fc_cls|fc_reg)\.(.*)", name):
        stage = "stage" if match[1] is None else f"stages.{match[1]}"
        return f"{stage}.head.{ROI_PARTS[match[2]]}.{match[3]}"
    for pattern, replacement in MMDETECTION:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(f"{name} is no weight of MMDetection's FCOS, Faster or Cascade R-CNN")
