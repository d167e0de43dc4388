"""Ultralytics' YOLO detectors as a baseline beside leuko's own: the package, descriptions of networks, the detector.

The networks are those of the package ``ultralytics`` (AGPL-3.0), which is imported only here and in the loop beside,
and only when one of its models is asked for. It reads no file of the user's, and downloads nothing.
"""

from __future__ import annotations

import atexit
import copy
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import cv2
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..errors import LeukoError, one_line
from ..io import read_yaml
from ..models.base import DetectionModel, Found, ModelOptions, Targets
from ..models.preprocess import Preprocess
from .description import KINDS, problem_in
from .pickled import read_network

GREY = 114 / 255  # with which Ultralytics pads images
SUFFIXES = (".pt", ".yaml", ".yml")
ENVIRONMENT = {
    "YOLO_OFFLINE": "true",  # no telemetry, no downloads, no check for a newer version
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",  # neither weights nor a model's description may run code
}


def is_yolo(name: str) -> bool:
    """Whether a model's name means one of Ultralytics': ``yolo11n``, ``yolov8s.yaml``, ``weights/yolo11n.pt``."""
    return name.endswith(SUFFIXES) or Path(name).name.startswith("yolo")


def plain_name(name: str) -> str:
    """The name of a model without folder and suffix."""
    return Path(name).stem if name.endswith(SUFFIXES) else Path(name).name


def tasks() -> ModuleType:
    """Import ``ultralytics.nn.tasks`` with the package's telemetry, downloads, installations, unsafe loading and files
    in the home folder switched off. Raises LeukoError where the package is missing or too old."""
    if "ultralytics" not in sys.modules:
        settings = tempfile.mkdtemp(prefix="leuko-")
        atexit.register(shutil.rmtree, settings, ignore_errors=True)
        os.environ.update(ENVIRONMENT, YOLO_CONFIG_DIR=settings)
    threads, opener = cv2.getNumThreads(), Image.open  # the import changes both
    try:
        from ultralytics.nn import tasks
        from ultralytics.utils import downloads, patches
        from ultralytics.utils.events import events
    except ImportError as e:
        raise LeukoError(f"Ultralytics' models need its package: pip install 'leuko[ultralytics]' ({e})") from e
    cv2.setNumThreads(threads)
    Image.open = getattr(patches, "_image_open", opener)  # theirs installs a plugin where a file is no image
    if not hasattr(tasks, "SAFE_LOAD"):
        raise LeukoError("this ultralytics package is too old; pip install 'leuko[ultralytics]'")
    tasks.SAFE_LOAD, events.enabled = True, False  # also where the package had been imported before
    downloads.safe_download = downloads.attempt_download_asset = _refuse
    return tasks


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ConnectionError("leuko lets Ultralytics download nothing")


# ---------------------------------------------------------------- descriptions


def read_architecture(name: str) -> dict:
    """The description of a network, by a name of Ultralytics' or a YAML file; raises LeukoError."""
    if name.endswith(".pt"):
        remedy = f"from scratch, give the name ({plain_name(name)}) or a YAML file"
        raise LeukoError(f'model "{name}": is a file of weights; {remedy}')
    if name.endswith(SUFFIXES) and (path := Path(name)).exists():
        scale = tasks().guess_model_scale(path)
        return checked_architecture(read_yaml(path) | {"scale": scale, "yaml_file": path.name}, name)
    load = tasks().yaml_model_load
    try:
        if not re.fullmatch(r"[\w.-]+", name):
            raise FileNotFoundError(name)
        architecture = load(name if name.endswith(SUFFIXES) else f"{name}.yaml")
    except (FileNotFoundError, ValueError, ConnectionError) as e:
        raise LeukoError(f'model "{name}": no such file, and no model that this ultralytics package knows') from e
    return checked_architecture(architecture, name)


def checked_architecture(given: dict[str, Any], name: str) -> dict:
    """What a description says about its network; LeukoError unless that is a detector that leuko builds."""
    architecture = {key: value for key, value in given.items() if key in KINDS}
    if problem := problem_in(architecture):
        raise LeukoError(f'model "{name}": does not describe a network of Ultralytics that leuko builds ({problem})')
    return architecture


def layers_of(recipe: Mapping) -> nn.Module:
    """The layers of the network in a recipe, without what connects them; raises LeukoError as :func:`create_yolo`."""
    architecture = checked_architecture(recipe["architecture"], recipe["name"])
    return tasks().parse_model(copy.deepcopy(architecture), 3, verbose=False)[0]


def read_checkpoint(path: Path) -> tuple[dict, list[str], dict[str, Tensor]]:
    """The recipe, the class names and the weights in a ``.pt`` file of Ultralytics'. Raises LeukoError if the file is
    broken, or holds anything but a detector."""
    description, types, image_size, state = read_network(path)
    recipe = {
        "name": plain_name(Path(str(description.get("yaml_file", path))).name),
        "num_classes": len(types),
        "image_size": image_size,
        "architecture": checked_architecture(description, str(path)),
    }
    return recipe, types, {f"network.{key}": value for key, value in state.items()}


# ---------------------------------------------------------------- the detector


def create_yolo(name: str, num_classes: int, architecture: dict | None = None, **options: object) -> YOLO:
    """Build one of Ultralytics' models with random weights, by its name there or by a YAML file that describes it.

    ``architecture`` is that description itself, as the recipe of a stored model holds it; ``options`` are fields of
    :class:`~leuko.models.base.ModelOptions`. Raises LeukoError for an unknown name or a network of another kind.
    """
    chosen = ModelOptions(**options)
    described = checked_architecture(architecture, name) if architecture else None
    architecture = described or {**read_architecture(name), "nc": num_classes}
    model = YOLO(architecture, num_classes, chosen)
    used = {key: getattr(chosen, key) for key in ("image_size", "score_threshold", "max_detections")}
    model.recipe = {"name": plain_name(name), "num_classes": num_classes, "architecture": architecture, **used}
    return model


class YOLO(DetectionModel):
    """A network of Ultralytics as a leuko detector.

    ``architecture["nc"]`` is the number of classes for which the network was first made: the width of its class branch
    depends on it. Boxes, labels and scores are those of Ultralytics' own validation: scores above .001, several labels
    per box, NMS at IoU .7.
    """

    default_score_threshold = 0.001
    default_lr = 0.0  # Ultralytics' own choice of optimiser and learning rate
    default_clip = 10.0  # fixed in Ultralytics' loop
    nms_threshold = 0.7

    def __init__(self, architecture: dict, num_classes: int, options: ModelOptions):
        preprocess = Preprocess(options.image_size, mean=(GREY,) * 3, std=(1.0,) * 3)
        parts = {"preprocess": preprocess, "backbone": nn.Identity(), "fpn": nn.Identity()}
        super().__init__(**parts, num_classes=num_classes, options=options)
        build = tasks().DetectionModel
        try:
            self.network = build(copy.deepcopy(architecture), nc=architecture.get("nc"), verbose=False)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as e:
            raise LeukoError(f"the model's architecture does not describe a network ({one_line(repr(e))[:200]})") from e
        head = self.network.model[-1]
        branches = [branch for name in ("cv3", "one2one_cv3") for branch in getattr(head, name, None) or ()]
        if head.nc != num_classes:
            for branch in branches:
                branch[-1] = nn.Conv2d(branch[-1].in_channels, num_classes, 1)
            head.nc, head.no = num_classes, num_classes + 4 * head.reg_max
            head.bias_init()
        self.network.nc = num_classes
        for branch in branches:
            branch.per_class = {str(len(branch) - 1): 1}

    def losses(self, pyramid: Tensor, sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Raises LeukoError: only Ultralytics' own loop trains these models."""
        raise LeukoError(f"{self.recipe['name']} is trained by Ultralytics' own loop: leuko train, or Detector.train")

    def detect(self, pyramid: Tensor, sizes: Tensor) -> Found:
        """Detections. ``pyramid`` is the batch [N, 3, H, W] itself: the network has its own backbone."""
        predictions = self.network(pyramid + GREY)  # images in 0..1, padded with grey
        predictions = predictions[0] if isinstance(predictions, tuple) else predictions  # [N, 4 + K, R]
        boxes = box_convert(predictions[:, :4].transpose(1, 2), "cxcywh", "xyxy")  # [N, R, 4]
        return self.select(predictions[:, 4:].transpose(1, 2), boxes[:, :, None])

    def for_export(self) -> None:
        """Put the network's head into the form in which Ultralytics' own exporter traces it, for images of any size."""
        head = self.network.model[-1]
        head.export, head.dynamic, head.format = True, True, "onnx"

    def fuse(self) -> None:
        """Make BatchNorm a part of the convolutions, for inference; the model can no longer be trained."""
        self.network.fuse(verbose=False)
