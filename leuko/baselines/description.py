"""What a description of one of Ultralytics' networks may say: layers that only compute, of a size that exists.

Other layers of the package can download weights (``TorchVision``) or are no part of a detector of boxes.
"""

from __future__ import annotations

import re

from ..kinds import fits, misfit

KINDS = {"nc": int, "scale": str, "scales": dict[str, list[float]], "yaml_file": str, "reg_max": int} | {
    "depth_multiple": float,
    "width_multiple": float,
    "activation": str | None,
    "end2end": bool | None,
    "backbone": list[list],
    "head": list[list],
}
ENLARGING = ("ConvTranspose", "nn.ConvTranspose2d", "nn.Upsample")
LAYERS = re.compile(
    "A2C2f|AConv|ADown|AIFI|Bottleneck|BottleneckCSP|C1|C2|C2PSA|C2f|C2fCIB|C2fPSA|C3|C3Ghost|C3TR|C3k2|C3x|CBFuse|"
    "CBLinear|Concat|Conv|ConvTranspose|DWConv|Detect|ELAN1|Focus|GhostBottleneck|GhostConv|HGBlock|HGStem|PSA|RepC3|"
    "RepNCSPELAN4|ResNetLayer|SCDown|SPP|SPPELAN|SPPF|v10Detect|"
    r"nn\.(BatchNorm2d|ConvTranspose2d|Identity|MaxPool2d|Upsample|ZeroPad2d)"
)
TEXTS = ("None", "nc", "nearest", "bilinear", "True", "False")  # that stand for an argument of a layer
ACTIVATION = re.compile(
    r"(torch\.)?nn\.(SiLU|ReLU|ReLU6|LeakyReLU|GELU|ELU|Mish|Hardswish|Sigmoid|Tanh|Identity)\([\w.=, ]{0,20}\)"
)


def problem_in(description: dict) -> str:
    """Why a description, whose keys are those of ``KINDS``, is not built; "" where it is."""
    if problem := misfit(description, KINDS, optional=KINDS.keys() - {"backbone", "head"}):
        return problem
    rows = description["backbone"] + description["head"]
    if problem := next(filter(None, map(_problem_in_layer, rows)), ""):
        return problem
    if not 1 <= len(rows) <= 200 or sum(row[2] in ENLARGING for row in rows) > 6:
        return f"{len(rows)} layers, or more than 6 that enlarge"
    if rows[-1][2] not in ("Detect", "v10Detect"):
        return f"it ends in {rows[-1][2]}, but a detector of boxes in Detect"
    scales = list(description.get("scales", {}).values())
    factors = [scale[:2] for scale in scales] + [[description.get(f"{f}_multiple", 1)] for f in ("depth", "width")]
    if not all(len(scale) == 3 for scale in scales) or not all(0 < f <= 4 for each in factors for f in each):
        return "a depth or width that is not from 0 to 4"
    if not 1 <= description.get("nc", 1) <= 10_000 or not 1 <= description.get("reg_max", 1) <= 100:
        return "over 10,000 classes, or a reg_max over 100"
    activation = description.get("activation")
    return f"activation {activation:.60}" if activation and not ACTIVATION.fullmatch(activation) else ""


def _problem_in_layer(row: list) -> str:
    """Why a layer is not built: from, number, module, arguments."""
    kinds = (int | list[int], int, str, list)
    if len(row) != 4 or not all(fits(*pair) for pair in zip(row, kinds, strict=True)) or not 1 <= row[1] <= 100:
        return f"layer {row!r:.60}"
    if not LAYERS.fullmatch(row[2]):
        return f"a layer {row[2]:.40}, which is no part of a detector of boxes; yolo11n is one, for example"
    largest = 4 if row[2] == "nn.Upsample" else 4096
    for value in (v for each in row[3] for v in (each if isinstance(each, list) else [each])):
        number = fits(value, float | bool | None) and abs(value or 0) <= largest
        if not number and value not in TEXTS:
            return f"layer {row!r:.60}"
    return ""
