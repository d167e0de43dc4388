"""The detectors, and the one function that builds any of them."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from ..errors import LeukoError, nearest
from .backbone import Backbone, Norm
from .base import DetectionModel, ModelOptions
from .cascade_rcnn import CascadeRCNN
from .double_head_rcnn import DoubleHeadRCNN
from .faster_rcnn import FasterRCNN
from .fcos import FCOS
from .fsaf import FSAF
from .grid_rcnn import GridRCNN
from .preprocess import Preprocess

DETECTORS = {
    "fcos": FCOS,
    "fcos_improved": partial(FCOS, improved=True),
    "fsaf": FSAF,
    "faster_rcnn": FasterRCNN,
    "grid_rcnn": GridRCNN,
    "double_head_rcnn": DoubleHeadRCNN,
    "cascade_rcnn": CascadeRCNN,
}

__all__ = ["DETECTORS", "Backbone", "DetectionModel", "ModelOptions", "create"]


def create(
    name: str,
    num_classes: int,
    backbone: str = "resnet50",
    pretrained: bool | str | Path = False,
    norm: Norm = "frozen",
    freeze: bool = True,
    normalize_features: bool = False,
    **options: object,
) -> DetectionModel:
    """Build a detector: ``create("fcos", 5)``.

    ``name`` is a key of :data:`DETECTORS`; ``backbone`` any timm network with maps at strides 4 to 32; ``pretrained``
    loads ImageNet weights (or the backbone's weights from a file, if it is a path); ``norm``, ``freeze`` and
    ``normalize_features`` are those of :class:`~leuko.models.backbone.Backbone`; ``options`` the fields of
    :class:`~leuko.models.base.ModelOptions`. The model keeps all of it in ``model.recipe``, from which
    ``create(**recipe)`` builds its like. Raises LeukoError for an unknown name, backbone or option.
    """
    if num_classes < 1:
        raise LeukoError(f"a detector needs at least one class, not {num_classes}")
    if name not in DETECTORS:
        raise LeukoError(
            f'model "{name}" is unknown{nearest(name, DETECTORS)} (there are: {", ".join(DETECTORS)}, and yolo11n and '
            "its like of Ultralytics)"
        )
    chosen = checked_options(options)
    body = Backbone(backbone, norm=norm, freeze=freeze, normalize_features=normalize_features)
    preprocess = Preprocess(chosen.image_size, body.mean, body.std)
    model = DETECTORS[name](preprocess=preprocess, backbone=body, num_classes=num_classes, options=chosen)
    model.recipe = {
        "name": name,
        "num_classes": num_classes,
        "backbone": backbone,
        "norm": norm,
        "freeze": freeze,
        "normalize_features": normalize_features,
        **asdict(chosen),
    }
    model.pretrained_from = ""
    if pretrained:
        model.pretrained_from = body.load_pretrained(None if pretrained is True else pretrained)
    return model


def checked_options(options: dict[str, object]) -> ModelOptions:
    """The options of a model; LeukoError on an unknown one."""
    known = [f.name for f in fields(ModelOptions)]
    for key in options:
        if key not in known:
            raise LeukoError(f'model option "{key}" is unknown{nearest(key, known)} (there are: {", ".join(known)})')
    return ModelOptions(**options)
