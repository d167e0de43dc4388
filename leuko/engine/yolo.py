"""Ultralytics' models, trained by Ultralytics' own loop inside leuko's run folder.

Its data set is written for it (``RUN/ultralytics``); batches, augmentation, losses, optimiser and schedule are its own.
Each epoch is measured by leuko's evaluator and saved as every run's is, so that nothing else in leuko need know.
A run goes on from its last whole epoch: unlike with leuko's own loop, not bit for bit.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.formats import yolo as yolo_format
from ..data.images import list_images, read_image
from ..errors import LeukoError
from ..models.yolo import YOLO
from ..report import plots
from . import evaluate
from .training import Training

# Options of leuko's own loop and models that mean nothing here.
UNUSED = (
    "backbone",
    "backbone_weights",
    "norm",
    "freeze",
    "normalize_features",
    "channels",
    "fc_channels",
    "proposals",
    "rois",
)
UNUSED += ("ema", "clip", "accumulate", "channels_last", "save_minutes", "augment")  # augment none is heeded
UNUSED += ("vote", "repeat_factor", "type_weights")
LOOP_STATE = ("optimiser", "scaler", "ema", "updates", "iterations")  # in resume.pt from the first epoch's end on
NO_AUGMENTATION = dict.fromkeys(
    ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "erasing", "close_mosaic"), 0
)


class YOLOTraining(Training):
    """One of Ultralytics' models."""

    model: YOLO

    def __init__(self, options: TrainOptions, folder: Path, model: YOLO, train_set: Dataset, val_set: Dataset):
        super().__init__(options, folder, model, train_set, val_set)
        self.restored: dict | None = None
        self.loop = None

    def begin(self) -> None:
        """Nothing is measured beforehand."""

    def draw_first_batches(self) -> None:
        """The loop draws them when they come, since only it knows them."""

    def train(self) -> None:
        if self.progress.epoch >= self.options.epochs:
            return
        folder = write_dataset(self.folder / "ultralytics", self.train_set, self.val_set)
        with settings_kept():
            self.loop = loop_class()(self, self.arguments(), folder)
            self.loop.train()

    def arguments(self) -> dict[str, object]:
        """Ultralytics' arguments. With ``lr`` 0 its recipe is its own; else it is SGD by leuko's options."""
        options = self.options
        size = math.ceil(options.imgsz / 32) * 32
        if size != options.imgsz:
            print(f"{self.model.recipe['name']} trains at {size} px, a multiple of 32, and detects at {options.imgsz}")
        given = {
            "model": f"{self.model.recipe['name']}.yaml",
            "project": str(self.folder.absolute()),
            "name": "ultralytics",
            "exist_ok": True,
            "epochs": options.epochs,
            "batch": options.batch,
            "imgsz": size,
            "seed": options.seed,
            "device": "cpu" if self.device.type == "cpu" else str(self.device.index or 0),
            "workers": self.workers,
            "cache": "ram" if options.cache == "ram" else False,
            "amp": "bf16" if options.amp == "bf16" else False,
            "patience": 0,
            "plots": False,
            "val": False,
        }
        if options.lr:
            given |= {"optimizer": "SGD", "lr0": options.lr, "momentum": options.momentum}
            given |= {"weight_decay": options.weight_decay, "warmup_epochs": options.warmup}
        return given if options.augment else given | NO_AUGMENTATION

    def prepared(self) -> YOLO:
        own, self.model.network = self.model.network, self.loop.ema.ema
        mean = evaluate.prepared(self.model, self.device)
        self.model.network = own
        return mean

    def learning_rate(self) -> float:
        return self.loop.optimizer.param_groups[0]["lr"]

    def weights_now(self) -> dict[str, Tensor]:
        return {f"network.{key}": value for key, value in self.loop.ema.ema.state_dict().items()}

    def resume_state(self) -> dict:
        state = {"model": self.model.state_dict(), "architecture": self.model.recipe["architecture"]}
        if self.loop is None:  # what the run had before, if it goes on
            return state | {key: self.restored[key] for key in LOOP_STATE if self.restored}
        loop = {"optimiser": self.loop.optimizer.state_dict(), "scaler": self.loop.scaler.state_dict()}
        loop |= {"ema": self.loop.ema.ema.state_dict(), "updates": self.loop.ema.updates}
        return state | loop | {"iterations": self.loop.iterations}

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        if state["progress"]["epoch"]:
            self.restored = {key: state[key] for key in LOOP_STATE}


def write_dataset(folder: Path, train_set: Dataset, val_set: Dataset) -> Path:
    """Write the splits as Ultralytics reads them, images linked; crowds, which the format cannot mark, are left out.

    Ultralytics turns images by their EXIF orientation, while the boxes are those of the pixels as they are stored:
    images with one are written as PNG without it.
    """
    shutil.rmtree(folder / "images", ignore_errors=True)  # of a run that goes on
    for split, dataset in (("train", train_set), ("val", val_set)):
        samples = [
            replace(s, boxes=s.boxes[~s.crowd], labels=s.labels[~s.crowd], crowd=None, cell_factors=[], attributes=[])
            for s in dataset.samples
        ]
        yolo_format.write(replace(dataset, samples=samples), folder, split)
        for image in list_images(folder / "images" / split):
            if has_orientation(image):
                pixels = read_image(image)
                image.unlink()  # the link, never what it leads to
                plots.write_image(image.with_suffix(".png"), pixels)
    return folder


def has_orientation(path: Path) -> bool:
    """Whether a file tells viewers to turn or to mirror its image."""
    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


@contextmanager
def settings_kept() -> Iterator[None]:
    """Give the process back as it was: Ultralytics' loop sets threads and determinism for all that comes after it."""
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    environment = dict(os.environ)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)


def loop_class() -> type:
    """The class of the loop, which can be made only once the package is imported."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Loop(DetectionTrainer):
        """Ultralytics' loop, with the run folder in leuko's hands. The name has no "Trainer" in it, by which the
        package would find it and add its loggers."""

        def __init__(self, training: YOLOTraining, arguments: dict, data: Path):
            self.training, self.dataset_folder = training, data
            self.images: list[str] = []
            self.bar: tqdm | None = None
            self.begun = 0.0
            self.iterations = 0.0
            super().__init__(overrides=arguments)
            self.add_callback("on_train_epoch_start", Loop.start_epoch_bar)
            self.add_callback("on_train_batch_end", Loop.count_batch)
            self.add_callback("on_train_epoch_end", Loop.close_epoch_bar)

        # ------------------------------------------------------------------ what it starts from

        def get_dataset(self) -> dict:
            types = self.training.train_set.types
            parts = {split: str(self.dataset_folder / "images" / split) for split in ("train", "val")}
            return {
                "path": str(self.dataset_folder),
                "nc": len(types),
                "names": dict(enumerate(types)),
                "channels": 3,
            } | parts

        def setup_model(self) -> None:
            self.model = self.training.model.network

        def build_optimizer(self, *args: object, iterations: float = 1e5, **more: object) -> torch.optim.Optimizer:
            """The choice of optimiser depends on the number of iterations: that of the run's beginning."""
            state = self.training.restored
            self.iterations = state["iterations"] if state else iterations
            return super().build_optimizer(*args, iterations=self.iterations, **more)

        def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> object:
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
            expected = self.training.train_set if mode == "train" else self.training.val_set
            if missing := len(expected) - len(loader.dataset):
                raise LeukoError(
                    f"{dataset_path}: Ultralytics leaves out {missing} of {len(expected)} images (it refuses, for "
                    "instance, images of fewer than 10 pixels a side); take them out of the split"
                )
            return loader

        def resume_training(self, ckpt: object) -> None:
            state = self.training.restored
            if state is None:
                return
            self.optimizer.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.ema.ema.load_state_dict(state["ema"])
            self.ema.updates = state["updates"]
            self.start_epoch = self.training.progress.epoch
            if hasattr(self.model.model[-1], "one2one_cv2"):  # the weight of its two losses depends on the epoch
                self.model.criterion = self.model.init_criterion()
                self.model.criterion.updates = self.start_epoch - 1
                self.model.criterion.update()

        # ------------------------------------------------------------------ an epoch

        def start_epoch_bar(self) -> None:
            seed = self.training.options.seed * 100_003 + self.epoch
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            title = f"epoch {self.epoch + 1}/{self.epochs}"
            self.bar = tqdm(total=len(self.training.train_set), desc=title, unit="image")
            self.begun = time.perf_counter()

        def preprocess_batch(self, batch: dict) -> dict:
            if self.epoch == 0 and self.bar.n < 2 * self.batch_size:
                self.training.draw_batch(self.bar.n // self.batch_size, items_of(batch))
            self.images = batch["im_file"]
            return super().preprocess_batch(batch)

        def count_batch(self) -> None:
            terms = {name: float(value) for name, value in self.loss_items.items()}
            if not math.isfinite(sum(terms.values())):
                done = self.epoch * self.training.batches + self.bar.n // self.batch_size
                self.training.stop_diverged(done, self.images, terms)
            self.bar.update(len(self.images))
            self.bar.set_postfix(loss=f"{sum(terms.values()):.3f}", lr=f"{self.optimizer.param_groups[0]['lr']:.2g}")

        def close_epoch_bar(self) -> None:
            self.bar.close()
            self.training.progress.seconds += time.perf_counter() - self.begun

        # ------------------------------------------------------------------ the end of an epoch, which is leuko's

        def validate(self) -> tuple[dict, float]:
            return {}, 0.0

        def save_metrics(self, metrics: dict) -> None:
            """They are in results.csv."""

        def save_model(self) -> bool:
            self.training.finish_epoch({name: float(value) for name, value in self.tloss.items()})
            return True

        def final_eval(self) -> None:
            """The best epoch has been measured when it was saved."""

    return Loop


def items_of(batch: dict) -> list[dict]:
    """Ultralytics' batch as leuko's training items (see ``leuko.data.loader``)."""
    items = []
    for i, image in enumerate(batch["img"]):
        own = batch["batch_idx"] == i
        centre, half = batch["bboxes"][own, :2], batch["bboxes"][own, 2:] / 2
        size = torch.tensor([image.shape[2], image.shape[1]] * 2)
        labels = batch["cls"][own].flatten().long()
        items.append({"image": image, "boxes": torch.cat([centre - half, centre + half], 1) * size, "labels": labels})
    return items
