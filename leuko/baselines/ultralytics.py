"""Ultralytics' YOLO detectors as a baseline beside leuko's own: networks that its package knows by name.

The package ``ultralytics`` (AGPL-3.0) is imported only here, and only when one of its models is asked for; it reads no
file of the user's but the data that leuko writes for it, and downloads nothing. Networks, losses, augmentation,
optimiser and schedule are its own; leuko validates and saves each epoch. Such a run cannot be resumed.
"""

from __future__ import annotations

import atexit
import copy
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import cv2
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.formats import yolo as yolo_format
from ..data.header import image_header
from ..data.images import list_images, read_image
from ..data.workers import worker_count
from ..errors import LeukoError
from ..io import read_yaml
from ..models.base import DetectionModel, Found, ModelOptions, Targets
from ..models.preprocess import Preprocess
from ..registry import FOREIGN
from ..report import pictures
from .pickled import read_network

GREY = 114 / 255  # with which Ultralytics pads images
HEADS = ("Detect", "v10Detect")  # of its detectors of boxes
# Fields of TrainOptions without effect on these models.
IGNORED_OPTIONS = ("backbone", "backbone_weights", "norm", "freeze", "normalize_features", "channels", "fc_channels")
IGNORED_OPTIONS += ("proposals", "rois", "vote", "ema", "clip", "accumulate", "channels_last", "save_minutes")
IGNORED_OPTIONS += ("augment", "repeat_factor", "type_weights")
EpochEnd = Callable[[DetectionModel, dict[str, float], float, float], bool]
Diverged = Callable[[int, list[str], dict[str, float]], None]


def is_yolo(name: str) -> bool:
    """Whether a model's name means one of Ultralytics': ``yolo11n``, ``weights/yolo11n.pt``."""
    return name.endswith(FOREIGN) or Path(name).name.startswith("yolo")


def plain_name(name: str) -> str:
    """The name of a model without folder and suffix."""
    return Path(name).name.removesuffix(FOREIGN)


# ---------------------------------------------------------------- the package, and the networks that it knows


@cache
def tasks() -> ModuleType:
    """Import ``ultralytics.nn.tasks`` with the package's telemetry, downloads, installations and files in the home
    folder switched off. Raises LeukoError where the package is missing."""
    settings = tempfile.mkdtemp(prefix="leuko-")
    atexit.register(shutil.rmtree, settings, ignore_errors=True)
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", YOLO_CONFIG_DIR=settings)
    threads, opener = cv2.getNumThreads(), Image.open  # the import changes both
    try:
        from ultralytics.nn import tasks
        from ultralytics.utils import downloads, patches
        from ultralytics.utils.events import events
    except ImportError as e:
        raise LeukoError(f"Ultralytics' models need its package: pip install 'leuko[ultralytics]' ({e})") from e
    cv2.setNumThreads(threads)
    Image.open = getattr(patches, "_image_open", opener)  # theirs installs a plugin where a file is no image
    downloads.safe_download = downloads.attempt_download_asset = _refuse  # which YOLO_OFFLINE does not stop
    events.enabled = False  # also where the package had been imported before
    return tasks


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ConnectionError("leuko lets Ultralytics download nothing")


def description_of(name: str, classes: int) -> dict:
    """What the package says of a network that it knows by this name; LeukoError unless that is a detector of boxes."""
    files = {path.stem: path for path in Path(tasks().__file__).parents[1].glob("cfg/models/*/yolo*.yaml")}
    unscaled = re.sub(r"(?<=\d)[nsmlx]", "", name, count=1)  # yolo11n is yolo11 at the scale n
    path = files.get(name) or files.get(unscaled)
    description = read_yaml(path) if path else {}
    if not path or description["head"][-1][2] not in HEADS:
        raise LeukoError(f'model "{name}": no detector that this ultralytics package knows, as yolo11n is one')
    return description | {"nc": classes, "scale": tasks().guess_model_scale(name)}


def layers_of(recipe: dict) -> nn.Module:
    """The layers of the network in a recipe, without what connects them; raises LeukoError as :func:`create_yolo`."""
    return tasks().parse_model(description_of(recipe["name"], recipe["made_for"]), 3, verbose=False)[0]


def read_checkpoint(path: Path) -> tuple[dict, list[str], dict[str, Tensor]]:
    """The recipe, the class names and the weights in a ``.pt`` file of Ultralytics'. Raises LeukoError if the file is
    broken, or holds anything but a detector that the package knows by name."""
    name, types, image_size, state = read_network(path)
    recipe = {"name": name, "num_classes": len(types), "made_for": len(types), "image_size": image_size}
    return recipe, types, {f"network.{key}": value for key, value in state.items()}


# ---------------------------------------------------------------- the detector


def create_yolo(name: str, num_classes: int, made_for: int = 0, **options: object) -> YOLO:
    """Build one of Ultralytics' models with random weights, by its name there.

    ``made_for`` is the number of classes for which the network was first made, on which the width of its class branch
    depends; 0: these. ``options`` are fields of :class:`~leuko.models.base.ModelOptions`. Raises LeukoError for an
    unknown name or a network of another kind.
    """
    return YOLO(name, num_classes, made_for or num_classes, ModelOptions(**options))


class YOLO(DetectionModel):
    """A network of Ultralytics as a leuko detector.

    Boxes, labels and scores are those of Ultralytics' own validation: scores above .001, several labels per box, NMS at
    IoU .7.
    """

    default_score_threshold = 0.001
    default_lr = 0.0  # Ultralytics' own choice of optimiser and learning rate
    default_clip = 10.0  # fixed in Ultralytics' loop
    nms_threshold = 0.7

    def __init__(self, name: str, num_classes: int, made_for: int, options: ModelOptions):
        preprocess = Preprocess(options.image_size, mean=(GREY,) * 3, std=(1.0,) * 3)
        parts = {"preprocess": preprocess, "backbone": nn.Identity(), "fpn": nn.Identity()}
        super().__init__(**parts, num_classes=num_classes, options=options)
        self.network = tasks().DetectionModel(description_of(name, made_for), nc=made_for, verbose=False)
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
        used = {key: getattr(options, key) for key in ("image_size", "score_threshold", "max_detections")}
        self.recipe = {"name": name, "num_classes": num_classes, "made_for": made_for, **used}

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


# ---------------------------------------------------------------- training by Ultralytics' own loop


def train_ultralytics(
    model: YOLO,
    options: TrainOptions,
    folder: Path,
    train_set: Dataset,
    val_set: Dataset,
    device: torch.device,
    on_epoch_end: EpochEnd,
    on_divergence: Diverged,
) -> None:
    """Train by Ultralytics' own loop: by its own recipe, or with ``options.lr`` by SGD with leuko's options.

    After each epoch ``on_epoch_end`` gets the model with the running mean (EMA) of its weights, the mean of each loss
    term, the learning rate and the seconds of the epoch; once it returns True, training stops. ``on_divergence`` gets
    the step, the images and the losses where one is not finite, and raises. Raises LeukoError.
    """
    write_dataset(folder / "ultralytics", train_set, val_set)
    loop = _loop_class(model.to(device), folder, {"train": train_set, "val": val_set}, on_epoch_end, on_divergence)
    arguments = {
        "model": f"{model.recipe['name']}.yaml",
        "device": "cpu" if device.type == "cpu" else str(device.index or 0),
        "workers": worker_count(options.workers),
        "cache": "ram" if options.cache == "ram" else False,
        "amp": "bf16" if options.amp == "bf16" else False,
    }
    arguments |= {"project": str(folder.absolute()), "name": "ultralytics", "exist_ok": True}
    arguments |= {"epochs": options.epochs, "batch": options.batch, "imgsz": options.imgsz, "seed": options.seed}
    arguments |= {"patience": 0, "plots": False, "val": False}  # leuko's part
    if options.lr:
        arguments |= {"optimizer": "SGD", "lr0": options.lr, "momentum": options.momentum}
        arguments |= {"weight_decay": options.weight_decay, "warmup_epochs": options.warmup}
    threads = torch.get_num_threads()
    try:
        loop(overrides=arguments).train()
    finally:  # it changes them for the whole process
        torch.set_num_threads(threads)


def write_dataset(folder: Path, train_set: Dataset, val_set: Dataset) -> None:
    """Write both splits in YOLO's format, the images as links and without crowds, which Ultralytics does not know.

    Ultralytics turns images by their EXIF orientation, while boxes refer to the pixels as they are stored: images with
    an orientation are written as PNG without it.
    """
    for split, dataset in (("train", train_set), ("val", val_set)):
        yolo_format.write(dataset, folder, split)
        for image in list_images(folder / "images" / split):
            if image_header(image).orientation != 1:
                pixels = read_image(image)
                image.unlink()  # the link, never the file that it leads to
                pictures.write_image(image.with_suffix(".png"), pixels)


def _loop_class(
    model: YOLO, folder: Path, datasets: dict[str, Dataset], on_epoch_end: EpochEnd, on_divergence: Diverged
) -> type:
    """Ultralytics' loop, with data, validation and saving in leuko's hands."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    ema_model = copy.deepcopy(model).eval()
    types = datasets["train"].types
    images = {split: str(folder / "ultralytics/images" / split) for split in datasets}

    class Loop(DetectionTrainer):  # a class with "Trainer" in its name would be given the package's loggers
        def get_dataset(self) -> dict:
            return {"path": str(folder), "nc": len(types), "names": dict(enumerate(types)), "channels": 3, **images}

        def setup_model(self) -> None:
            self.model = model.network
            self.add_callback("on_train_epoch_start", Loop.start_epoch)
            self.add_callback("on_train_batch_end", Loop.end_batch)

        def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> object:
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
            if missing := len(datasets[mode]) - len(loader.dataset):
                problem = f"Ultralytics leaves out {missing} of {len(datasets[mode])} images"
                reason = "it refuses, for instance, images with a side of fewer than 10 pixels"
                raise LeukoError(f"{dataset_path}: {problem} ({reason}); remove them from the split")
            return loader

        def start_epoch(self) -> None:
            self.batches, self.began = 0, time.perf_counter()
            title = f"epoch {self.epoch + 1}/{self.epochs}"
            self.bar = tqdm(total=len(datasets["train"]), desc=title, unit="image")

        def preprocess_batch(self, batch: dict) -> dict:
            self.files = batch["im_file"]
            return super().preprocess_batch(batch)

        def end_batch(self) -> None:
            losses = {name: float(value) for name, value in self.loss_items.items()}
            if not math.isfinite(sum(losses.values())):
                self.bar.close()
                on_divergence(self.epoch * len(self.train_loader) + self.batches, self.files, losses)
            self.batches += 1
            self.bar.update(len(self.files))
            self.bar.set_postfix(loss=f"{sum(losses.values()):.3f}", lr=f"{self.optimizer.param_groups[0]['lr']:.2g}")

        def validate(self) -> tuple[dict, float]:
            return {}, 0.0  # on_epoch_end validates

        def save_metrics(self, metrics: dict) -> None:
            """They are in leuko's results.csv."""

        def save_model(self) -> bool:
            self.bar.close()
            seconds = time.perf_counter() - self.began
            losses = {name: float(value) for name, value in self.tloss.items()}
            ema_model.network = self.ema.ema
            self.stop |= on_epoch_end(ema_model, losses, self.optimizer.param_groups[0]["lr"], seconds)
            return True

        def final_eval(self) -> None:
            """Every epoch has been evaluated."""

    return Loop
