"""Detectors at work: on a data set, on single images, and several of them at once."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.loader import default_workers, plain_batches
from ..errors import LeukoError, nearest
from ..metrics.calibration import Scaling
from ..models import DetectionModel
from ..models.winograd import use_winograd
from . import cost
from .checkpoint import Weights, load_weights
from .sizes import at_sizes


def choose_device(name: str) -> torch.device:
    """The device of a ``--device`` option; LeukoError if this machine has none of that name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise LeukoError(
            f"--device {name}: not on this machine ({str(e).splitlines()[0]}); leave it out or give cpu"
        ) from e
    return device


def to_unit(image: Tensor, device: torch.device) -> Tensor:
    """uint8 [3, H, W] -> float in 0..1 on the device."""
    return image.to(device, non_blocking=True).float() / 255


def prepared(model: DetectionModel, device: torch.device) -> DetectionModel:
    """A copy of the model made for inference: BatchNorm folded into convolutions, channels last in memory, and on a CPU
    3x3 convolutions of large maps by Winograd's way. Its outputs are the model's to rounding; it cannot be trained."""
    model = copy.deepcopy(model).eval()
    model.fold()
    if device.type == "cpu":
        use_winograd(model)
    return model.to(device=device, memory_format=torch.channels_last)


@dataclass
class Predictions:
    """What a model found: one ``{"boxes", "scores", "labels"}`` of numpy arrays an image, and the time it took."""

    found: list[dict[str, np.ndarray]]
    network_seconds: float
    total_seconds: float
    seconds: np.ndarray  # of the network on each batch, [batches]

    @property
    def fps(self) -> float:
        """Images a second of the network itself, from pixels in memory to boxes."""
        return len(self.found) / self.network_seconds if self.network_seconds else float("nan")


@torch.inference_mode()
def detect(model: nn.Module, images: Sequence[Tensor], device: torch.device) -> list[dict[str, np.ndarray]]:
    """Detections of uint8 images [3, H, W], as numpy arrays in pixels of each image, by falling score."""
    return [
        {key: found[key].float().cpu().numpy() if key != "labels" else found[key].cpu().numpy() for key in found}
        for found in model([to_unit(image, device) for image in images])
    ]


def predict(
    model: nn.Module, dataset: Dataset, device: torch.device, *, batch: int = 1, workers: int = -1, title: str = ""
) -> Predictions:
    """Run a prepared model over a data set, with a progress bar."""
    start = time.perf_counter()
    workers = default_workers() if workers < 0 else workers
    found: list[dict[str, np.ndarray]] = []
    network: list[float] = []
    batches: Iterable = plain_batches(dataset, batch, workers)
    with tqdm(total=len(dataset), desc=title or "detecting", unit="image", leave=False) as bar:
        for items in batches:
            before = time.perf_counter()
            found += detect(model, [item["image"] for item in items], device)
            network.append(time.perf_counter() - before)
            bar.update(len(items))
    return Predictions(found, sum(network), time.perf_counter() - start, np.array(network))


@dataclass
class EnsembleMember:
    """A trained model ready to detect, with its name in tables and its number of parameters."""

    name: str
    weights: Weights
    model: nn.Module
    parameters: int
    sizes: tuple[int, ...]

    @classmethod
    def load(cls, source: str | Path, device: torch.device, sizes: Sequence[int] = ()) -> EnsembleMember:
        """From a run folder or a weights file; ``sizes`` as in ``--imgsz``, the model's own if none is named."""
        weights = load_weights(source)
        path = Path(os.path.abspath(weights.path))  # `.` has no name; a link keeps its own
        name = path.parent.parent.name if path.parent.name == "weights" else path.stem
        model = weights.build()
        working = at_sizes(prepared(model, device), sizes)
        return cls(name, weights, working, cost.parameters(model), tuple(sizes) or (model.preprocess.image_size,))

    def labels_in(self, types: Sequence[str]) -> np.ndarray:
        """For each of the model's labels, the label of the same name in ``types``; LeukoError on a name not in it."""
        for name in self.weights.types:
            if name not in types:
                raise LeukoError(
                    f'{self.weights.path}: it knows the type "{name}", which is not among {", ".join(types)}'
                    f"{nearest(name, types)}; types are matched by name"
                )
        if missing := [t for t in types if t not in self.weights.types]:
            raise LeukoError(
                f'{self.weights.path}: it does not know the type "{missing[0]}" (but {", ".join(self.weights.types)})'
                "; types are matched by name: use a model trained on this data's types"
            )
        return np.array([list(types).index(name) for name in self.weights.types])

    def relabel(self, found: list[dict[str, np.ndarray]], types: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The detections with labels in the order of ``types``."""
        table = self.labels_in(types)
        return [{**f, "labels": table[f.labels]} for f in found]

    @property
    def scaling(self) -> Scaling | None:
        """The calibration that ``leuko val --calibrate`` has put into the weights for these image sizes, if any."""
        if sorted(self.fitted_sizes) != sorted(self.sizes):
            return None
        kept = self.weights.about["calibration"]
        return Scaling(float(kept["temperature"]), float(kept["shift"]))

    @property
    def fitted_sizes(self) -> Sequence[int]:
        """The image sizes that the weights' calibration holds for: the model's own where it names none; () without."""
        kept = self.weights.about.get("calibration")
        return kept.get("sizes") or (self.weights.recipe["image_size"],) if kept else ()

    def calibrated(self, found: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The detections with calibrated scores; LeukoError where the weights hold no calibration for these sizes."""
        if self.scaling is None:
            sizes, fitted = (" ".join(map(str, s)) for s in (self.sizes, self.fitted_sizes))
            problem = f"its calibration is of --imgsz {fitted}, not {sizes}" if fitted else "holds no calibration"
            remedy = f"leuko val --weights {self.weights.path} --data DATA --imgsz {sizes} --calibrate"
            raise LeukoError(f"{self.weights.path}: {problem}; fit one by {remedy}")
        return [{**f, "scores": self.scaling(f.scores).astype(np.float32)} for f in found]
