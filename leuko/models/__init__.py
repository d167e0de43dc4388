"""The detectors, and the one function that builds any of them."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

from ..errors import LeukoError, nearest
from .backbone import Backbone, Norm
from .base import DetectionModel, ModelOptions, param_groups
from .cascade_rcnn import CascadeRCNN
from .double_head_rcnn import DoubleHeadRCNN
from .faster_rcnn import FasterRCNN
from .fcos import FCOS, FCOSImproved
from .fsaf import FSAF
from .grid_rcnn import GridRCNN
from .preprocess import Preprocess

DETECTORS: dict[str, type[DetectionModel]] = {
    "fcos": FCOS,
    "fcos_improved": FCOSImproved,
    "fsaf": FSAF,
    "faster_rcnn": FasterRCNN,
    "grid_rcnn": GridRCNN,
    "double_head_rcnn": DoubleHeadRCNN,
    "cascade_rcnn": CascadeRCNN,
}

__all__ = ["DETECTORS", "Backbone", "DetectionModel", "ModelOptions", "check_name", "create", "param_groups"]


def check_name(name: str) -> None:
    """Raise LeukoError unless it is a key of :data:`DETECTORS`."""
    if name not in DETECTORS:
        raise LeukoError(
            f'model "{name}" is unknown{nearest(name, DETECTORS)} (there are: {", ".join(DETECTORS)}, and yolo11n and '
            "other models of Ultralytics)"
        )


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
    """Build a detector in training mode: ``create("fcos", 5)``.

    ``name`` is a key of :data:`DETECTORS`; ``backbone`` any timm network with maps at strides 4 to 32; ``pretrained``
    loads ImageNet weights (or the backbone's weights from a file, if it is a path); ``norm``, ``freeze`` and
    ``normalize_features`` are those of :class:`~leuko.models.backbone.Backbone`; ``options`` the fields of
    :class:`~leuko.models.base.ModelOptions`. The model keeps all of it in ``model.recipe``, from which
    ``create(**recipe)`` builds the same architecture. Raises LeukoError for an unknown name, backbone or option, or a
    value that does not fit.
    """
    check_name(name)
    if norm not in get_args(Norm):
        raise LeukoError(f'norm "{norm}" is unknown (there are: {", ".join(get_args(Norm))})')
    chosen = checked_options(name, num_classes, options)
    body = Backbone(backbone, norm=norm, freeze=freeze, normalize_features=normalize_features)
    preprocess = Preprocess(chosen.image_size, body.image_mean, body.image_std)
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


def checked_options(name: str, num_classes: int, options: dict[str, object]) -> ModelOptions:
    """The options of a model; LeukoError for an unknown one or one that does not fit the detector or its classes."""
    known = [f.name for f in fields(ModelOptions)]
    for key in options:
        if key not in known:
            raise LeukoError(f'model option "{key}" is unknown{nearest(key, known)} (there are: {", ".join(known)})')
    chosen = ModelOptions(**options)
    if num_classes < 1:
        raise LeukoError(f"a detector needs at least one class, not {num_classes}")
    if chosen.channels % (multiple := DETECTORS[name].channels_multiple):
        raise LeukoError(f"model option channels={chosen.channels}: {name} needs a multiple of {multiple}")
    if chosen.class_weights and len(chosen.class_weights) != num_classes:
        given = len(chosen.class_weights)
        raise LeukoError(f"model option class_weights: {given} weights for {num_classes} classes; give one per class")
    return chosen
