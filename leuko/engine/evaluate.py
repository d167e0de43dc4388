"""A detector at work: on images, on a data set, and measured on it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.loader import LoadedImage, sample_batches, worker_count
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import coco
from ..models import DetectionModel
from . import fusion
from .typing_stage import TypingStage

if TYPE_CHECKING:
    from .tiling import Tiling


def choose_device(name: str) -> torch.device:
    """The device of a ``--device`` option (``0`` means ``cuda:0``); LeukoError if this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise LeukoError(
            f"--device {name}: not on this machine ({str(e).splitlines()[0]}); leave it out or give cpu"
        ) from e
    return device


def prepare(model: DetectionModel, device: torch.device) -> DetectionModel:
    """A copy of the model made for inference: BatchNorm fused into convolutions, channels last in memory. Its outputs
    are the model's to rounding; it cannot be trained."""
    model = copy.deepcopy(model).eval()
    model.fuse()
    return model.to(device=device, memory_format=torch.channels_last)


def at_size(model: DetectionModel, size: int) -> DetectionModel:
    """The same detector, sharing all weights, for images whose longer side is ``size`` pixels."""
    if model.preprocess.image_size == size:
        return model
    other = copy.copy(model)
    other._modules = dict(model._modules)  # a shallow copy shares the table of modules, too
    other.preprocess = copy.copy(model.preprocess)
    other.preprocess.image_size = size
    return other


def to_unit(image: Tensor, device: torch.device) -> Tensor:
    """uint8 [3, H, W] -> float in 0..1 on the device."""
    return image.to(device, non_blocking=True).float() / 255


def detect(
    model: DetectionModel,
    images: Sequence[LoadedImage],
    device: torch.device,
    typing: TypingStage | None = None,
    tiling: Tiling | None = None,
) -> list[Detections]:
    """Detections of each image, in pixels of the stored image: of its views or, with a ``tiling``, of its tiles. A
    ``typing`` stage then gives them their types. Both look at the stored pixels."""
    found = [tiling(model, image, device) for image in images] if tiling else detect_views(model, images, device)
    return typing(images, found) if typing else found


@torch.inference_mode()
def detect_views(model: DetectionModel, images: Sequence[LoadedImage], device: torch.device) -> list[Detections]:
    """Detections of each image, in pixels of the stored image. Of several views of an image (test-time augmentation)
    the detections are fused, one vote per view."""
    per_view = []
    for size in images[0].views:
        views = [image.views[size] for image in images]
        outputs = at_size(model, size)([to_unit(view, device) for view in views])
        scales = [(i.size[0] / v.shape[2], i.size[1] / v.shape[1]) for i, v in zip(images, views, strict=True)]
        per_view.append([Detections.from_tensors(o, s) for o, s in zip(outputs, scales, strict=True)])
    found = per_view[0]
    if len(per_view) > 1:
        found = fusion.fuse(per_view, [image.size for image in images], max_detections=model.max_detections)
    return found


@dataclass
class Predictions:
    """What a model found on each image of a data set, and the network's time in seconds on each batch [batches]."""

    predictions: list[Detections]
    seconds: np.ndarray

    @property
    def fps(self) -> float:
        """Images per second of the network itself, from pixels in memory to boxes."""
        return len(self.predictions) / float(self.seconds.sum()) if self.seconds.sum() else float("nan")


def predict(
    model: DetectionModel,
    dataset: Dataset,
    device: torch.device,
    *,
    image_sizes: Sequence[int] = (),
    batch: int = 1,
    workers: int = -1,
    title: str = "detecting",
    warmup: bool = False,
    typing: TypingStage | None = None,
    tiling: Tiling | None = None,
) -> Predictions:
    """Run a prepared model over a data set, with a progress bar; ``image_sizes`` are the model's own if none is given,
    ``typing`` and ``tiling`` as in :func:`detect`.

    With ``warmup`` the first batch runs once more before, untimed, since the first call allocates memory and chooses
    kernels.
    """
    predictions: list[Detections] = []
    seconds: list[float] = []
    sizes = () if tiling else image_sizes or (model.preprocess.image_size,)
    has_pixels = typing is not None or tiling is not None
    with tqdm(total=len(dataset), desc=title, unit="image", leave=False) as bar:
        for images in sample_batches(dataset, sizes, batch, worker_count(workers), with_pixels=has_pixels):
            if warmup and not seconds:
                detect(model, images, device, typing, tiling)
            start = time.perf_counter()
            predictions += detect(
                model, images, device, typing, tiling
            )  # on the CPU then, so that a GPU's work is done
            seconds.append(time.perf_counter() - start)
            bar.update(len(images))
    return Predictions(predictions, np.array(seconds))


def evaluate(
    model: nn.Module, dataset: Dataset, device: torch.device, *, workers: int = -1, title: str = "validating"
) -> tuple[coco.Evaluation, list[Detections]]:
    """COCO's measures of a prepared model on a data set, and what it found on each image."""
    predictions = predict(model, dataset, device, workers=workers, title=title).predictions
    return coco.evaluate(dataset, predictions, model.max_detections), predictions
