"""The training of Ultralytics' models by their own loop, with leuko's data, run folder and evaluator.

Losses, batches, augmentation, optimiser and schedule are the package's. leuko writes its data (``RUN/ultralytics``),
and validates and saves each epoch. Such a run cannot be resumed.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_convert
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.formats import yolo as yolo_format
from ..data.header import image_header
from ..data.images import list_images, read_image
from ..data.workers import worker_count
from ..errors import LeukoError
from ..models.base import DetectionModel
from ..report import pictures
from .ultralytics import YOLO

AUGMENTATIONS = ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "erasing", "close_mosaic")
# Fields of TrainOptions without effect on these models; of augment, only none has one: it turns Ultralytics' own off.
IGNORED_OPTIONS = ("backbone", "backbone_weights", "norm", "freeze", "normalize_features", "channels", "fc_channels")
IGNORED_OPTIONS += ("proposals", "rois", "vote", "ema", "clip", "accumulate", "channels_last", "save_minutes")
IGNORED_OPTIONS += ("augment", "repeat_factor", "type_weights")
EpochEnd = Callable[[DetectionModel, dict[str, float], float, float], bool]
Diverged = Callable[[int, list[str], dict[str, float]], None]


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
                pictures.write_image(image.with_suffix(".png"), pixels)


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
                pictures.write_image(folder / f"train_batch{self.batches}.jpg", picture)
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
