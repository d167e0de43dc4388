"""Detectors on a data set, and measured on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.loader import equal_batches, sample_batches
from ..data.workers import worker_count
from ..detections import Detections
from ..metrics import coco
from ..runtime import ExportedDetector
from ..runtime.typing_stage import TypingStage
from . import distributed
from .detect import detect
from .ensemble import EnsembleMember
from .network import Network
from .tiling import Tiling


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
    model: Network | ExportedDetector,
    dataset: Dataset,
    *,
    image_sizes: Sequence[int] = (),
    batch: int = 1,
    workers: int = -1,
    title: str = "detecting",
    warmup: bool = False,
    typing: TypingStage | None = None,
    tiling: Tiling | None = None,
) -> Predictions:
    """Run a detector over a data set, with a progress bar; ``image_sizes`` are its own if none is given; ``typing`` and
    ``tiling`` as in :func:`detect`. At most ``batch`` images of one size go through it at once.
    Where several processes validate, each takes its share of the same batches, so that the same is found.

    With ``warmup`` the first batch runs once more before, untimed, since the first call allocates memory and chooses
    kernels.
    """
    sizes = image_sizes or (model.image_size,)
    batches = equal_batches(dataset, sizes[0], batch)
    how = (() if tiling else sizes, worker_count(workers), title, warmup)
    shares = distributed.shared(_predict_share, model, typing, tiling, dataset, batches, *how)
    found = {i: detections for share, _ in shares for i, detections in share.items()}
    return Predictions([found[i] for i in range(len(dataset))], np.concatenate([seconds for _, seconds in shares]))


def predict_by(member: EnsembleMember, dataset: Dataset, batch: int = 1, workers: int = -1) -> Predictions:
    """Detections of a member of an ensemble on a data set, with labels in its order of types."""
    member.labels_in(dataset.types)
    how = {"image_sizes": member.sizes, "batch": batch, "workers": workers, "title": member.name, "warmup": True}
    result = predict(member.model, dataset, typing=member.typing, tiling=member.tiling, **how)
    result.predictions = member.relabel(result.predictions, dataset.types)
    return result


def _predict_share(
    rank: int,
    ranks: int,
    model: Network | ExportedDetector,
    typing: TypingStage | None,
    tiling: Tiling | None,
    dataset: Dataset,
    batches: list[list[int]],
    sizes: Sequence[int],
    workers: int,
    title: str,
    warmup: bool,
) -> tuple[dict[int, Detections], list[float]]:
    """Of every ``ranks``-th batch: the detections by the number of their sample, and the seconds of each batch."""
    found: dict[int, Detections] = {}
    seconds: list[float] = []
    mine = batches[rank::ranks]
    loaded = sample_batches(dataset, sizes, mine, workers, with_pixels=bool(typing or tiling))
    with tqdm(total=sum(map(len, mine)), desc=title, unit="image", leave=False) as bar:
        for numbers, images in zip(mine, loaded, strict=True):
            if warmup and not seconds:
                detect(model, images, typing, tiling)
            start = time.perf_counter()
            detections = detect(model, images, typing, tiling)  # on the CPU, so a GPU's work is done
            seconds.append(time.perf_counter() - start)
            found |= dict(zip(numbers, detections, strict=True))
            bar.update(len(images))
    return found, seconds


def evaluate(
    model: Network,
    dataset: Dataset,
    *,
    batch: int = 1,
    workers: int = -1,
    title: str = "validating",
) -> tuple[coco.Evaluation, list[Detections]]:
    """COCO's measures of a detector on a data set, and what it found on each image."""
    predictions = predict(model, dataset, batch=batch, workers=workers, title=title).predictions
    return coco.evaluate(dataset, predictions, model.max_detections), predictions
