"""Foreign weights: the parameters of other detector libraries, in leuko's names and order."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

# MMDetection 2 and 3. Each pattern is tried in turn; the first that matches the whole name rewrites it.
MMDETECTION = (
    (r"neck\.lateral_convs\.(\d+)\.conv\.(.*)", r"fpn.lateral.\1.\2"),
    (r"rpn_head\.rpn_conv\.(.*)", r"rpn.conv.\1"),
    (r"rpn_head\.rpn_cls\.(.*)", r"rpn.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(.*)", r"rpn.bbox_pred.\1"),
    (r"bbox_head\.(?:conv|retina)_cls\.(.*)", r"head.cls_logits.\1"),
    (r"bbox_head\.(?:conv|retina)_reg\.(.*)", r"head.bbox_pred.\1"),
    (r"bbox_head\.conv_centerness\.(.*)", r"head.centerness.\1"),
    (r"bbox_head\.scales\.(\d+)\.scale", r"head.scales.\1"),
    (r"roi_head\.bbox_head\.res_block\.(conv\d)\.conv\.(.*)", r"box_head.convs.0.\1.\2"),
    (r"roi_head\.bbox_head\.res_block\.conv(\d)\.bn\.(.*)", r"box_head.convs.0.bn\1.\2"),
    (r"roi_head\.bbox_head\.res_block\.conv_identity\.conv\.(.*)", r"box_head.convs.0.shortcut.\1"),
    (r"roi_head\.bbox_head\.res_block\.conv_identity\.bn\.(.*)", r"box_head.convs.0.shortcut_bn.\1"),
    (r"roi_head\.grid_head\.forder_trans\.(.*)", r"grid_head.first_order.messages.\1"),
    (r"roi_head\.grid_head\.sorder_trans\.(.*)", r"grid_head.second_order.messages.\1"),
    (r"roi_head\.grid_head\.norm1\.(.*)", r"grid_head.norm.\1"),
    (r"roi_head\.grid_head\.(deconv\d\..*)", r"grid_head.\1"),
    (r"backbone\.(.*)", r"backbone.body.\1"),
)
ROI_LAYERS = {"fcs.0": "fc1", "fcs.1": "fc2", "fc_cls": "cls_logits", "fc_reg": "bbox_pred"}
TOWERS = {"cls_convs": "cls_tower", "reg_convs": "box_tower"}


# torchvision 0.21 and later; (?:\.0)? is in names that its older files lack.
TORCHVISION = (
    (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.p6\.(.*)", r"fpn.extra_convs.0.\1"),
    (r"backbone\.fpn\.extra_blocks\.p7\.(.*)", r"fpn.extra_convs.1.\1"),
    (r"head\.classification_head\.conv\.(.*)", r"head.cls_tower.\1"),
    (r"head\.classification_head\.cls_logits\.(.*)", r"head.cls_logits.\1"),
    (r"head\.regression_head\.conv\.(.*)", r"head.box_tower.\1"),
    (r"head\.regression_head\.bbox_reg\.(.*)", r"head.bbox_pred.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(.*)", r"head.centerness.\1"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(.*)", r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(.*)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.*)", r"rpn.bbox_pred.\1"),
    (r"roi_heads\.box_head\.fc6\.(.*)", r"head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(.*)", r"head.fc2.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.*)", r"head.cls_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"head.bbox_pred.\1"),
    (r"backbone\.body\.(.*)", r"backbone.body.\1"),
)


def from_foreign(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of MMDetection or torchvision; KeyError for a name that neither has."""
    theirs = ("backbone.body.", "backbone.fpn.")
    return from_torchvision(state) if any(n.startswith(theirs) for n in state) else from_mmdetection(state)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's weights of FCOS (which is ``fcos_improved``) or Faster R-CNN.

    The background is the first class of its Faster R-CNN; here it is the last and has no box. Raises KeyError for
    another name.
    """
    renamed = {_renamed(name, TORCHVISION, "torchvision's FCOS or Faster R-CNN"): v for name, v in state.items()}
    if "head.centerness.weight" in renamed:
        renamed["head.scales"] = torch.ones(5)  # it has no scale per level
        return renamed
    for kind in ("weight", "bias"):
        logits, deltas = renamed[f"head.cls_logits.{kind}"], renamed[f"head.bbox_pred.{kind}"]
        renamed[f"head.cls_logits.{kind}"] = torch.cat([logits[1:], logits[:1]])
        renamed[f"head.bbox_pred.{kind}"] = deltas[4:]
    return renamed


def from_mmdetection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename MMDetection's weights of any of leuko's detectors. Raises KeyError for another name."""
    renamed: dict[str, Tensor] = {}
    scales: dict[int, Tensor] = {}
    for theirs, ours in mmdetection_names(state).items():
        value = state[theirs]
        if theirs.startswith("bbox_head.retina_reg."):  # FSAF's distances are in the order top, bottom, left, right
            value = value[[2, 0, 3, 1]]
        if match := re.fullmatch(r"head\.scales\.(\d+)", ours):
            scales[int(match[1])] = value
        else:
            renamed[ours] = value
    if scales:
        renamed["head.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    return renamed


def mmdetection_names(names: Iterable[str]) -> dict[str, str]:
    """leuko's name of each of MMDetection's weights, given all names of a checkpoint; KeyError for another name.

    All are needed, since indices depend on the rest: the convolutions of the FPN's extra levels are numbered after
    those of the backbone's maps, and a step of a tower has two layers or, with a norm, three.
    """
    names = list(names)
    fpn_maps = sum(bool(re.fullmatch(r"neck\.lateral_convs\.\d+\.conv\.weight", n)) for n in names)
    step = 3 if "bbox_head.cls_convs.0.gn.weight" in names else 2
    box_head = "box_head" if any(n.startswith("roi_head.bbox_head.conv_branch.") for n in names) else "head"
    return {name: _mmdetection_name(name, fpn_maps, step, box_head) for name in names}


def _mmdetection_name(name: str, fpn_maps: int, step: int, box_head: str) -> str:
    if match := re.fullmatch(r"neck\.fpn_convs\.(\d+)\.conv\.(.*)", name):
        level = int(match[1])
        place = f"output.{level}" if level < fpn_maps else f"extra_convs.{level - fpn_maps}"
        return f"fpn.{place}.{match[2]}"
    if match := re.fullmatch(r"bbox_head\.(cls_convs|reg_convs)\.(\d+)\.(conv|gn)\.(.*)", name):
        return f"head.{TOWERS[match[1]]}.{step * int(match[2]) + (match[3] == 'gn')}.{match[4]}"
    if match := re.fullmatch(
        r"roi_head\.bbox_head\.(?:(\d)\.)?(shared_fcs\.\d|fc_branch\.\d|fc_cls|fc_reg)\.(.*)", name
    ):
        head = f"heads.{match[1]}" if match[1] else box_head if match[2] == "fc_reg" else "head"
        return f"{head}.{ROI_LAYERS[match[2].removeprefix('shared_').replace('fc_branch', 'fcs')]}.{match[3]}"
    if match := re.fullmatch(r"roi_head\.bbox_head\.conv_branch\.(\d+)\.(.*)", name):
        return f"box_head.convs.{1 + int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"roi_head\.grid_head\.convs\.(\d+)\.(conv|gn)\.(.*)", name):
        return f"grid_head.convs.{3 * int(match[1]) + (match[2] == 'gn')}.{match[3]}"
    return _renamed(name, MMDETECTION, "MMDetection's FCOS, FSAF, Faster, Cascade, Double-Head or Grid R-CNN")


def _renamed(name: str, patterns: tuple[tuple[str, str], ...], library: str) -> str:
    for pattern, replacement in patterns:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(f"{name} is not a weight of {library}")
