"""Ultralytics' YOLO detectors under leuko's contract: the baseline beside the paper's six.

The network, its targets and losses are those of the package ``ultralytics`` (AGPL-3.0), which is imported only here and
only when such a model is asked for. Only its last step, from scored boxes to detections, is leuko's.
"""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import cv2
import torch
from torch import Tensor, nn

from ..errors import LeukoError
from ..ops import boxes as box_ops
from .base import Detection, DetectionModel, ModelOptions, Target
from .preprocess import Preprocess, Size

GREY = 114 / 255  # what Ultralytics pads images with
SUFFIXES = (".pt", ".yaml", ".yml")
QUIET = {
    "YOLO_OFFLINE": "true",  # no telemetry, no downloads, no look for a newer version
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",  # neither weights nor a model's description may run code
}


def is_yolo(name: str) -> bool:
    """Whether a model's name means one of Ultralytics': ``yolo11n``, ``yolov8s.yaml``, ``weights/yolo11n.pt``."""
    return name.endswith(SUFFIXES) or Path(name).name.startswith("yolo")


def plain_name(name: str) -> str:
    """The name without folder and suffix."""
    return Path(name).stem if name.endswith(SUFFIXES) else Path(name).name


def tasks() -> ModuleType:
    """``ultralytics.nn.tasks``, with the package's telemetry, downloads, installations and files in the home folder
    off. Raises LeukoError where the package is missing or too old."""
    if "ultralytics" not in sys.modules:
        settings = tempfile.mkdtemp(prefix="leuko-")
        atexit.register(shutil.rmtree, settings, ignore_errors=True)
        os.environ.update(QUIET, YOLO_CONFIG_DIR=settings)
    threads = cv2.getNumThreads()  # which the import sets to one
    try:
        from ultralytics.nn import tasks
        from ultralytics.utils.events import events
    except ImportError as e:
        raise LeukoError(f"Ultralytics' models need its package: pip install 'leuko[ultralytics]' ({e})") from e
    cv2.setNumThreads(threads)
    if not hasattr(tasks, "SAFE_LOAD"):
        raise LeukoError("this ultralytics package is too old; pip install 'leuko[ultralytics]'")
    tasks.SAFE_LOAD, events.enabled = True, False  # also where the package was imported before
    return tasks


def architecture(name: str) -> dict:
    """The description that a network is built from, by a name of Ultralytics' or from a YAML file."""
    if name.endswith(".pt"):
        raise LeukoError(
            f'model "{name}": are weights; from scratch, give the name ({plain_name(name)}) or a YAML file'
        )
    file = name if name.endswith(SUFFIXES) else f"{name}.yaml"
    loader = tasks().yaml_model_load
    try:
        described = loader(file)
    except (FileNotFoundError, ValueError) as e:
        raise LeukoError(f'model "{name}": no such file, and no model that this ultralytics package knows') from e
    return checked(described, name)


def checked(described: object, name: str) -> dict:
    """A network's description as it was, if it is a detector's."""
    try:
        last = described["head"][-1][2]
    except (KeyError, TypeError, IndexError) as e:
        raise LeukoError(f'model "{name}": describes no network of Ultralytics') from e
    if last not in ("Detect", "v10Detect"):
        raise LeukoError(f'model "{name}": ends in {last}, which is no detector of boxes; give yolo11n, say')
    return described


def read_checkpoint(path: Path) -> tuple[dict, list[str], dict[str, Tensor]]:
    """The recipe, the class names and the weights of Ultralytics' ``.pt`` file; no code of the file is run.

    Raises LeukoError if it is broken, holds anything but a detector, or what only code could read.
    """
    try:
        stored, _ = tasks().torch_safe_load(path, safe_only=True)
        network = (stored.get("ema") or stored["model"]).float()
        described, names, size = network.yaml, network.names, int((stored.get("train_args") or {}).get("imgsz", 640))
    except LeukoError:
        raise
    except Exception as e:  # torch's and Ultralytics' errors on a broken or hostile file are of many kinds
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise LeukoError(f"{path}: not a detector of Ultralytics that can be read safely ({reason[:200]})") from e
    types = [str(names[i]) for i in range(len(names))]
    recipe = {
        "name": plain_name(Path(described.get("yaml_file", path)).name),
        "num_classes": len(types),
        "image_size": size,
        "architecture": checked(described, str(path)),
    }
    return recipe, types, {f"network.{key}": value for key, value in network.state_dict().items()}


class YOLO(DetectionModel):
    """A network of Ultralytics.

    ``described`` is its architecture, ``described["nc"]`` the number of classes that it was first made for, since the
    width of the class branch follows from that. Boxes, labels and scores are those of Ultralytics' own validation:
    scores above .001, several labels a box, NMS at IoU .7.
    """

    default_score_threshold = 0.001
    default_lr = 0.0  # Ultralytics' own choice of optimiser and rate
    default_clip = 10.0  # what its loop has, whatever is asked for
    nms_threshold = 0.7

    def __init__(self, described: dict, num_classes: int, options: ModelOptions):
        super().__init__(
            preprocess=Preprocess(options.image_size, mean=(GREY,) * 3, std=(1.0,) * 3),
            backbone=nn.Identity(),
            fpn=nn.Identity(),
        )
        self.options = options
        try:
            self.network = tasks().DetectionModel(copy.deepcopy(described), nc=described.get("nc"), verbose=False)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise LeukoError(f"the model's architecture does not describe a network ({reason[:200]})") from e
        head = self.network.model[-1]
        branches = [b for name in ("cv3", "one2one_cv3") for b in getattr(head, name, None) or ()]
        if head.nc != num_classes:
            for branch in branches:
                branch[-1] = nn.Conv2d(branch[-1].in_channels, num_classes, 1)
            head.nc, head.no = num_classes, num_classes + 4 * head.reg_max
            head.bias_init()
        self.network.nc = num_classes
        for branch in branches:
            branch.per_class = {str(len(branch) - 1): 1}

    def _maps(self, batch: Tensor) -> Tensor:
        """What the network makes of a batch: [N, 4 + K, R] boxes (xywh) and scores."""
        found = self.network(batch + GREY)  # now 0..1, and the padding grey
        return found[0] if isinstance(found, tuple) else found

    def losses(self, pyramid: object, sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        raise LeukoError(f"{self.recipe['name']} is trained by Ultralytics' own loop: leuko train, or Detector.train")

    def detect(self, pyramid: Tensor, sizes: list[Size]) -> list[Detection]:
        return [self._suppressed(found) for found in pyramid]

    def _suppressed(self, found: Tensor) -> Detection:
        """From boxes with scores [4 + K, R] to detections, by non-maximum suppression."""
        scores = found[4:].T  # [R, K]
        point, label = torch.nonzero(scores > self.score_threshold, as_tuple=True)
        centre, half = found[:2].T[point], found[2:4].T[point] / 2
        boxes = torch.cat([centre - half, centre + half], dim=1)
        boxes, scores, labels = box_ops.suppress(
            boxes, scores[point, label], label, self.nms_threshold, self.options.max_detections
        )
        return {"boxes": boxes, "labels": labels, "scores": scores}

    def fold(self) -> None:
        self.network.fuse(verbose=False)
