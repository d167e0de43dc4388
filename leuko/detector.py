"""The Python face of leuko: a detector that can be loaded, trained, validated and used on images.

from leuko import Detector

detector = Detector.train("datasets/smears", model="fcos", preset="small", epochs=16)
print(detector.val("datasets/smears").mAP)
for cell in detector.predict("field.jpg"):
    print(cell.type, cell.score, cell.box)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from . import config
from .data import source
from .data.loader import LoadedImage, file_images
from .detections import MAX_DETECTIONS, Detections
from .engine.ensemble import EnsembleMember
from .engine.evaluate import choose_device
from .errors import LeukoError, nearest
from .metrics import coco
from .train import train


class Detector:
    """A trained detector: ``Detector("runs/train/fcos")`` or a weights file; ``device`` as in ``--device``, ``imgsz``
    as in ``--imgsz``: one in pixels, or several whose detections are fused, instead of the size it was trained at;
    ``max_detections`` per image as in ``--max-detections``."""

    def __init__(
        self,
        weights: str | Path,
        device: str = "auto",
        imgsz: int | Sequence[int] = (),
        max_detections: int = MAX_DETECTIONS,
    ):
        sizes = (imgsz,) if isinstance(imgsz, int) else tuple(imgsz)
        config.check_sizes(sizes)
        config.check_max_detections(max_detections)
        self.device = choose_device(device)
        self._member = EnsembleMember.load(weights, self.device, sizes, max_detections)
        self.types = tuple(self._member.weights.types)
        self.path = self._member.weights.path

    def __repr__(self) -> str:
        return f"Detector({str(self.path)!r}, types={', '.join(self.types)})"

    @classmethod
    def train(cls, data: str | Path = "", **options: object) -> Detector:
        """Train as ``leuko train`` does and return the detector with its best weights.

        ``options`` are those of :class:`leuko.config.TrainOptions`; a preset fills in what is not given.
        """
        options |= {"data": str(data)} if data else {}
        known = [f.name for f in fields(config.TrainOptions)]
        for key in options:
            if key not in known:
                raise LeukoError(f'training option "{key}" is unknown{nearest(key, known)}')
        preset = config.preset(str(options.get("preset", "paper")))
        folder = train(config.TrainOptions(**{**preset, **options}), given=options)
        number = int(options.get("max_detections", MAX_DETECTIONS))
        return cls(folder, device=str(options.get("device", "auto")), max_detections=number)

    def val(self, data: str | Path, split: str = "test", batch: int = 1, workers: int = -1) -> coco.Evaluation:
        """COCO's measures on a split of a data set, whose types are matched to the detector's by name."""
        dataset = source.load(data, split)
        predictions = self._member.predict(dataset, self.device, batch, workers).predictions
        return coco.evaluate(dataset, predictions, self._member.max_detections)

    def predict(self, image: str | Path | np.ndarray | torch.Tensor, threshold: float = 0.5) -> Detections:
        """The cells of one image with at least this score.

        ``image`` is a file, an array [H, W, 3] uint8 RGB, or a tensor [3, H, W] uint8 RGB. Raises LeukoError.
        """
        if isinstance(image, (str, Path)):
            loaded = next(file_images([Path(image)], self._member.sizes))
            if isinstance(loaded, LeukoError):
                raise loaded
        else:
            loaded = LoadedImage.of_pixels(_pixels(image), self._member.sizes)
        return self._member.detect([loaded], self.device)[0].above(threshold)


def _pixels(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array [H, W, 3] or a tensor [3, H, W] as [H, W, 3] uint8; LeukoError where it is neither, or empty."""
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise LeukoError(f"image of type {type(image).__name__}: give a file, an array [H, W, 3] or a tensor [3, H, W]")
    channels_first = isinstance(image, torch.Tensor) and image.dim() == 3
    pixels = image.permute(1, 2, 0).cpu().numpy() if channels_first else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise LeukoError(
            f"image of {image.dtype} and shape {list(image.shape)}: give uint8 RGB, [H, W, 3] or [3, H, W]"
        )
    return pixels
