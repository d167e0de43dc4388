"""Detectors on a data set, and measured on it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.loader import equal_batches, sample_batches
from ..data.workers import worker_count
from ..detections import Detections
from ..metrics import coco
from . import distributed
from .detect import Pipeline
from .ensemble import EnsembleMember
from .network import Network


@dataclass
class TimedPredictions:
    """What a model found on each image of a data set, and the network's time in seconds on each batch [batches]."""

    predictions: list[Detections]
    seconds: np.ndarray

    @property
    def fps(self) -> float:
        """Images per second of the network itself, from pixels in memory to boxes."""
        return len(self.predictions) / float(self.seconds.sum()) if self.seconds.sum() else float("nan")


def predict(
    pipeline: Pipeline,
    dataset: Dataset,
    *,
    batch: int = 1,
    workers: int = -1,
    title: str = "detecting",
    warmup: bool = False,
) -> TimedPredictions:
    """Run a detector over a data set, with a progress bar. At most ``batch`` images of one size go through it at once.
    Where several processes validate, each takes its share of the same batches, so that the same is found.

    With ``warmup`` the first batch runs once more before, untimed, since the first call allocates memory and chooses
    kernels.
    """
    batches = equal_batches(dataset, pipeline.sizes[0], batch)
    how = (worker_count(workers), title, warmup)
    shares = distributed.shared(_predict_share, pipeline, dataset, batches, *how)
    found = {i: detections for share, _ in shares for i, detections in share.items()}
    return TimedPredictions([found[i] for i in range(len(dataset))], np.concatenate([seconds for _, seconds in shares]))


def predict_by(member: EnsembleMember, dataset: Dataset, batch: int = 1, workers: int = -1) -> TimedPredictions:
    """Detections of a member of an ensemble on a data set, with labels in its order of types."""
    member.labels_in(dataset.types)
    pipeline = Pipeline(member.model, member.sizes, member.typing, member.tiling)  # without what is not to be sent
    result = predict(pipeline, dataset, batch=batch, workers=workers, title=member.name, warmup=True)
    result.predictions = member.relabel(result.predictions, dataset.types)
    return result


def _predict_share(
    rank: int,
    ranks: int,
    pipeline: Pipeline,
    dataset: Dataset,
    batches: list[list[int]],
    workers: int,
    title: str,
    warmup: bool,
) -> tuple[dict[int, Detections], list[float]]:
    """Of every ``ranks``-th batch: the detections by the number of their sample, and the seconds of each batch."""
    found: dict[int, Detections] = {}
    seconds: list[float] = []
    mine = batches[rank::ranks]
    loaded = sample_batches(dataset, pipeline.views, mine, workers, pipeline.needs_pixels)
    with tqdm(total=sum(map(len, mine)), desc=title, unit="image", leave=False) as bar:
        for numbers, images in zip(mine, loaded, strict=True):
            if warmup and not seconds:
                pipeline.detect(images)
            start = time.perf_counter()
            detections = pipeline.detect(images)  # on the CPU, so a GPU's work is done
            seconds.append(time.perf_counter() - start)
            found |= dict(zip(numbers, detections, strict=True))
            bar.update(len(images))
    return found, seconds


def evaluate(
    model: Network, dataset: Dataset, *, batch: int = 1, workers: int = -1
) -> tuple[coco.Evaluation, list[Detections]]:
    """COCO's measures of a detector on a data set, at its own image size, and what it found on each image."""
    pipeline = Pipeline(model, (model.image_size,))
    predictions = predict(pipeline, dataset, batch=batch, workers=workers, title="validating").predictions
    return coco.evaluate(dataset, predictions, model.max_detections), predictions
