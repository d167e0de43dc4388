"""Ultralytics' YOLO detectors as a baseline beside leuko's own, with the same data, run folder and evaluator.

Network, losses, batches, augmentation, optimiser and schedule are those of the package ``ultralytics`` (AGPL-3.0),
which is imported only here, and only when one of its models is asked for. leuko writes its data (``RUN/ultralytics``),
selects detections by NMS, and validates and saves each epoch. Such a run cannot be resumed.
"""

from __future__ import annotations

import atexit
import copy
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.formats import yolo as yolo_format
from ..data.header import image_header
from ..data.images import list_images, read_image
from ..data.loader import worker_count
from ..errors import LeukoError, one_line
from ..models.base import Detection, DetectionModel, ModelOptions, Target
from ..models.preprocess import Preprocess, Size
from ..ops.nms import batched_nms
from ..report import pictures, plots

GREY = 114 / 255  # with which Ultralytics pads images
SUFFIXES = (".pt", ".yaml", ".yml")
ENVIRONMENT = {
    "YOLO_OFFLINE": "true",  # no telemetry, no downloads, no check for a newer version
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",  # neither weights nor a model's description may run code
}
AUGMENTATIONS = ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "erasing", "close_mosaic")
# Fields of TrainOptions without effect on these models; of augment, only none has one: it turns Ultralytics' own off.
IGNORED_OPTIONS = ("backbone", "backbone_weights", "norm", "freeze", "normalize_features", "channels", "fc_channels")
IGNORED_OPTIONS += ("proposals", "rois", "vote", "ema", "clip", "accumulate", "channels_last", "save_minutes")
IGNORED_OPTIONS += ("augment", "repeat_factor", "type_weights")
EpochEnd = Callable[[DetectionModel, dict[str, float], float, float], bool]
Diverged = Callable[[int, list[str], dict[str, float]], None]


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
    threads = cv2.getNumThreads()  # the import changes it
    try:
        from ultralytics.nn import tasks
        from ultralytics.utils.events import events
    except ImportError as e:
        raise LeukoError(f"Ultralytics' models need its package: pip install 'leuko[ultralytics]' ({e})") from e
    cv2.setNumThreads(threads)
    if not hasattr(tasks, "SAFE_LOAD"):
        raise LeukoError("this ultralytics package is too old; pip install 'leuko[ultralytics]'")
    tasks.SAFE_LOAD, events.enabled = True, False  # also where the package had been imported before
    return tasks


# ---------------------------------------------------------------- the detector


def create_yolo(name: str, num_classes: int, architecture: dict | None = None, **options: object) -> YOLO:
    """Build one of Ultralytics' models with random weights, by its name there or by a YAML file that describes it.

    ``architecture`` is that description itself, as the recipe of a stored model holds it; ``options`` are fields of
    :class:`~leuko.models.base.ModelOptions`. Raises LeukoError for an unknown name or a network of another kind.
    """
    chosen = ModelOptions(**options)
    architecture = architecture or {**read_architecture(name), "nc": num_classes}
    model = YOLO(architecture, num_classes, chosen)
    used = {key: getattr(chosen, key) for key in ("image_size", "score_threshold", "max_detections")}
    model.recipe = {"name": plain_name(name), "num_classes": num_classes, "architecture": architecture, **used}
    return model


def read_architecture(name: str) -> dict:
    """The description of a network, by a name of Ultralytics' or a YAML file; raises LeukoError."""
    if name.endswith(".pt"):
        remedy = f"from scratch, give the name ({plain_name(name)}) or a YAML file"
        raise LeukoError(f'model "{name}": is a file of weights; {remedy}')
    load = tasks().yaml_model_load
    try:
        architecture = load(name if name.endswith(SUFFIXES) else f"{name}.yaml")
    except (FileNotFoundError, ValueError) as e:
        raise LeukoError(f'model "{name}": no such file, and no model that this ultralytics package knows') from e
    return checked_architecture(architecture, name)


def checked_architecture(architecture: object, name: str) -> dict:
    """The description of a network unchanged; LeukoError unless it describes a detector of boxes."""
    try:
        last = architecture["head"][-1][2]
    except (KeyError, TypeError, IndexError) as e:
        raise LeukoError(f'model "{name}": does not describe a network of Ultralytics') from e
    if last not in ("Detect", "v10Detect"):
        raise LeukoError(f'model "{name}": ends in {last}, which is no detector of boxes; give yolo11n, for example')
    return architecture


def read_checkpoint(path: Path) -> tuple[dict, list[str], dict[str, Tensor]]:
    """The recipe, the class names and the weights in a ``.pt`` file of Ultralytics'; no code in the file is run.

    Raises LeukoError if the file is broken, holds anything but a detector, or needs code to be read.
    """
    load = tasks().torch_safe_load
    try:
        stored, _ = load(path, safe_only=True)
        network = (stored.get("ema") or stored["model"]).float()
        architecture, names = network.yaml, network.names
        image_size = int((stored.get("train_args") or {}).get("imgsz", 640))
    except Exception as e:  # torch and Ultralytics raise many kinds of errors on a broken or hostile file
        reason = one_line(repr(e))[:200]
        raise LeukoError(f"{path}: not a detector of Ultralytics that can be read safely ({reason})") from e
    types = [str(names[i]) for i in range(len(names))]
    recipe = {
        "name": plain_name(Path(architecture.get("yaml_file", path)).name),
        "num_classes": len(types),
        "image_size": image_size,
        "architecture": checked_architecture(architecture, str(path)),
    }
    return recipe, types, {f"network.{key}": value for key, value in network.state_dict().items()}


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

    def losses(self, pyramid: Tensor, sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        """Raises LeukoError: only Ultralytics' own loop trains these models."""
        raise LeukoError(f"{self.recipe['name']} is trained by Ultralytics' own loop: leuko train, or Detector.train")

    def detect(self, pyramid: Tensor, sizes: list[Size]) -> list[Detection]:
        """Detections per image. ``pyramid`` is the batch [N, 3, H, W] itself: the network has its own backbone."""
        predictions = self.network(pyramid + GREY)  # images in 0..1, padded with grey
        detections = []
        for prediction in predictions[0] if isinstance(predictions, tuple) else predictions:  # [4 + K, R]
            boxes, scores = box_convert(prediction[:4].T, "cxcywh", "xyxy"), prediction[4:].T
            point, labels = torch.nonzero(scores > self.score_threshold, as_tuple=True)
            candidates = boxes[point], scores[point, labels], labels
            kept = batched_nms(*candidates, self.nms_threshold, self.max_detections)
            detections.append(dict(zip(("boxes", "scores", "labels"), kept, strict=True)))
        return detections

    def fuse(self) -> None:
        """Make BatchNorm a part of the convolutions, for inference; the model can no longer be trained."""
        self.network.fuse(verbose=False)


# ---------------------------------------------------------------- training


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
    threads, environment = torch.get_num_threads(), dict(os.environ)
    write_dataset(folder / "ultralytics", train_set, val_set)
    try:
        datasets = {"train": train_set, "val": val_set}
        loop = _loop_class(model.to(device), folder, datasets, on_epoch_end, on_divergence)
        loop(overrides=_arguments(model.recipe["name"], options, folder, device)).train()
    finally:  # the loop changes both for the whole process
        torch.set_num_threads(threads)
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)


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
                plots.write_image(image.with_suffix(".png"), pixels)


def _arguments(name: str, options: TrainOptions, folder: Path, device: torch.device) -> dict[str, object]:
    """Ultralytics' arguments for leuko's options."""
    size = math.ceil(options.imgsz / 32) * 32
    if size != options.imgsz:
        print(f"{name} trains at {size} px, a multiple of 32, and detects at {options.imgsz}")
    arguments = {
        "model": f"{name}.yaml",
        "device": "cpu" if device.type == "cpu" else str(device.index or 0),
        "workers": worker_count(options.workers),
        "cache": "ram" if options.cache == "ram" else False,
        "amp": "bf16" if options.amp == "bf16" else False,
    }
    arguments |= {"project": str(folder.absolute()), "name": "ultralytics", "exist_ok": True}
    arguments |= {"epochs": options.epochs, "batch": options.batch, "imgsz": size, "seed": options.seed}
    arguments |= {"patience": 0, "plots": False, "val": False}  # leuko's part
    if options.lr:
        arguments |= {"optimizer": "SGD", "lr0": options.lr, "momentum": options.momentum}
        arguments |= {"weight_decay": options.weight_decay, "warmup_epochs": options.warmup}
    return arguments | (dict.fromkeys(AUGMENTATIONS, 0) if options.augment in ("none", []) else {})


def _loop_class(
    model: YOLO, folder: Path, datasets: dict[str, Dataset], on_epoch_end: EpochEnd, on_divergence: Diverged
) -> type:
    """Ultralytics' loop, with data, pictures, validation and saving in leuko's hands."""
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
            if self.epoch == 0 and self.batches < 2:
                picture = pictures.batch(_items(batch), types)
                plots.write_image(folder / f"train_batch{self.batches}.jpg", picture)
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


def _items(batch: dict) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """The images of a batch of Ultralytics', uint8 [3, H, W], each with its ``{"boxes", "labels"}``."""
    items = []
    for i, image in enumerate(batch["img"]):
        of_image, (height, width) = batch["batch_idx"] == i, image.shape[1:]
        boxes = box_convert(batch["bboxes"][of_image], "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
        items.append((image, {"boxes": boxes, "labels": batch["cls"][of_image].flatten().long()}))
    return items
