"""A detector at work: on images, on a data set, and measured on it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.loader import LoadedImage, equal_batches, sample_batches, worker_count
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import coco
from ..models import DetectionModel
from ..runtime import ExportedDetector
from ..runtime.typing_stage import TypingStage
from . import distributed, fusion

if TYPE_CHECKING:
    from .tiling import Tiling

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, amp: str = "none") -> torch.device:
    """The device of a ``--device`` option (``0`` means ``cuda:0``), of which torchrun gives each process its own;
    LeukoError if this machine does not have it, or if it cannot do ``--amp``.

    This is the one place where TF32 is switched: a GPU that has it rounds the factors of float32 products to it.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = distributed.own_device(f"cuda:{name}" if name.isdecimal() else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise LeukoError(
            f"--device {name}: not on this machine ({str(e).splitlines()[0]}); leave it out or give cpu"
        ) from e
    if amp == "fp16" and device.type != "cuda":
        raise LeukoError("--amp fp16: needs a GPU; give bf16 or none")
    return device


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The precision of an ``--amp`` option, for a block."""
    return torch.autocast(device.type, dtype=PRECISIONS[amp], enabled=amp != "none")


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


def detect(
    model: DetectionModel | ExportedDetector,
    images: Sequence[LoadedImage],
    device: torch.device,
    typing: TypingStage | None = None,
    amp: str = "none",
    tiling: Tiling | None = None,
) -> list[Detections]:
    """Detections of each image, in pixels of the stored image: of its views or, with a ``tiling``, of its tiles. A
    ``typing`` stage then gives them their types. Both look at the stored pixels."""
    if tiling:
        found = [tiling(model, image, device, amp) for image in images]
    else:
        found = detect_views(model, images, device, amp)
    return typing(images, found) if typing else found


@torch.inference_mode()
def detect_views(
    model: DetectionModel, images: Sequence[LoadedImage], device: torch.device, amp: str = "none"
) -> list[Detections]:
    """Detections of each image, in pixels of the stored image. Of several views of an image (test-time augmentation)
    the detections are fused, one vote per view. ``amp`` is the network's precision, as in ``--amp``."""
    per_view = []
    for size in images[0].views:
        views = [image.views[size] for image in images]
        found = on_views(model, views, size, device, amp)
        per_view.append([d.scaled(i.size, v.shape[:0:-1]) for d, i, v in zip(found, images, views, strict=True)])
    found = per_view[0]
    if len(per_view) > 1:
        found = fusion.fuse(per_view, [image.size for image in images], max_detections=model.max_detections)
    return found


def on_views(
    model: DetectionModel | ExportedDetector, views: Sequence[Tensor], size: int, device: torch.device, amp: str
) -> list[Detections]:
    """Detections on images [3, h, w] uint8 whose longer side is ``size``, in their pixels."""
    if isinstance(model, ExportedDetector):
        return model.detect([view.permute(1, 2, 0).numpy() for view in views])
    with autocast(device, amp):
        outputs = at_size(model, size)(views)
    return [Detections.from_tensors(output) for output in outputs]


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
    model: DetectionModel | ExportedDetector,
    dataset: Dataset,
    device: torch.device,
    *,
    image_sizes: Sequence[int] = (),
    batch: int = 1,
    workers: int = -1,
    title: str = "detecting",
    warmup: bool = False,
    typing: TypingStage | None = None,
    amp: str = "none",
    tiling: Tiling | None = None,
) -> Predictions:
    """Run a prepared model over a data set, with a progress bar; ``image_sizes`` are the model's own if none is given;
    ``typing``, ``amp`` and ``tiling`` as in :func:`detect`. At most ``batch`` images of one size go through it at once.
    Where several processes validate, each takes its share of the same batches, so that the same is found.

    With ``warmup`` the first batch runs once more before, untimed, since the first call allocates memory and chooses
    kernels.
    """
    sizes = image_sizes or (model.preprocess.image_size,)
    batches = equal_batches(dataset, sizes[0], batch)
    how = (() if tiling else sizes, worker_count(workers), title, warmup)
    shares = distributed.shared(_predict_share, model, typing, device, (amp, tiling), dataset, batches, *how)
    found = {i: detections for share, _ in shares for i, detections in share.items()}
    return Predictions([found[i] for i in range(len(dataset))], np.concatenate([seconds for _, seconds in shares]))


def _predict_share(
    rank: int,
    ranks: int,
    model: DetectionModel,
    typing: TypingStage | None,
    device: torch.device,
    amp_and_tiling: tuple[str, Tiling | None],
    dataset: Dataset,
    batches: list[list[int]],
    sizes: Sequence[int],
    workers: int,
    title: str,
    warmup: bool,
) -> tuple[dict[int, Detections], list[float]]:
    """Of every ``ranks``-th batch: the detections by the number of their sample, and the seconds of each batch."""
    if rank:
        device = next(model.parameters()).device  # this process's own
        typing = replace(typing, device=device) if typing else None
    found: dict[int, Detections] = {}
    seconds: list[float] = []
    mine = batches[rank::ranks]
    loaded = sample_batches(dataset, sizes, mine, workers, with_pixels=bool(typing or amp_and_tiling[1]))
    with tqdm(total=sum(map(len, mine)), desc=title, unit="image", leave=False) as bar:
        for numbers, images in zip(mine, loaded, strict=True):
            if warmup and not seconds:
                detect(model, images, device, typing, *amp_and_tiling)
            start = time.perf_counter()
            detections = detect(model, images, device, typing, *amp_and_tiling)  # on the CPU, so a GPU's work is done
            seconds.append(time.perf_counter() - start)
            found |= dict(zip(numbers, detections, strict=True))
            bar.update(len(images))
    return found, seconds


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    device: torch.device,
    *,
    batch: int = 1,
    workers: int = -1,
    title: str = "validating",
    amp: str = "none",
) -> tuple[coco.Evaluation, list[Detections]]:
    """COCO's measures of a prepared model on a data set, and what it found on each image."""
    predictions = predict(model, dataset, device, batch=batch, workers=workers, title=title, amp=amp).predictions
    return coco.evaluate(dataset, predictions, model.max_detections), predictions
