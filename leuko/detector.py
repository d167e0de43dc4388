"""The Python face of leuko: a detector that can be loaded, trained, validated and used on images.

from .detections import Detections
from leuko import Detector

detector = Detector.train("datasets/smears", model="fcos", preset="small", epochs=16)
print(detector.val("datasets/smears").mAP)
for cell in detector.predict("field.jpg"):
    print(cell.type, cell.score, cell.box)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import config
from . import train as train_command
from .data import source
from .data.images import read_image
from .engine import checkpoint
from .engine.evaluate import EnsembleMember, choose_device, detect, predict
from .errors import LeukoError, nearest
from .metrics import coco

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True)
class Cell:
    """One detected leukocyte: type, score in 0..1, and box (x0, y0, x1, y1) in pixels."""

    type: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detections:
    """The cells found on one image, by falling score: boxes [N, 4] float32 xyxy in pixels, scores [N] in 0..1, and
    labels [N] as indices into ``types``. Iterating gives :class:`Cell` objects."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    types: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Cell]:
        for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True):
            yield Cell(self.types[label], float(score), tuple(float(v) for v in box))

    def above(self, threshold: float) -> Detections:
        """Those with at least this score."""
        good = self.scores >= threshold
        return Detections(self.boxes[good], self.scores[good], self.labels[good], self.types)

    def to_supervision(self) -> supervision.Detections:
        """As ``supervision.Detections`` (that package must be installed); type names go to ``data["class_name"]``."""
        try:
            import supervision
        except ImportError as e:
            raise LeukoError("supervision is not installed; pip install supervision") from e
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={"class_name": np.array([self.types[label] for label in self.labels], dtype=str)},
        )

    @classmethod
    def from_supervision(cls, detections: supervision.Detections, types: Sequence[str] | None = None) -> Detections:
        """From ``supervision.Detections``. Type names come from its ``data["class_name"]`` (matched to ``types`` by
        name) or, without that, from its class ids as indices into ``types``. Scores that are missing are 1."""
        count = len(detections.xyxy)
        names = detections.data.get("class_name")
        if names is None:
            if types is None:
                raise LeukoError('detections without data["class_name"]: pass the types that class ids index')
            labels = (
                np.zeros(0, int) if detections.class_id is None else np.asarray(detections.class_id, dtype=np.int64)
            )
        else:
            types = list(dict.fromkeys(str(n) for n in names)) if types is None else list(types)
            for name in names:
                if name not in types:
                    raise LeukoError(
                        f'detections hold the class "{name}", which is not a type{nearest(str(name), types)}'
                    )
            labels = np.array([types.index(str(name)) for name in names], dtype=np.int64)
        if len(labels) != count or (count and not 0 <= labels.min() <= labels.max() < len(types)):
            raise LeukoError(f"detections: class ids do not index the {len(types)} types")
        scores = np.ones(count) if detections.confidence is None else detections.confidence
        order = np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable")
        return cls(
            np.asarray(detections.xyxy, dtype=np.float32).reshape(-1, 4)[order],
            np.asarray(scores, dtype=np.float32)[order],
            labels[order],
            tuple(types),
        )


class Detector:
    """A trained detector: ``Detector("runs/train/fcos")`` or a weights file; ``device`` as in ``--device``, ``imgsz``
    as in ``--imgsz``: one in pixels, or several whose detections are fused, instead of the size it was trained at."""

    def __init__(self, weights: str | Path, device: str = "auto", imgsz: int | Sequence[int] = ()):
        sizes = (imgsz,) if isinstance(imgsz, int) else tuple(imgsz)
        config.check_sizes(sizes)
        self.device = choose_device(device)
        self._member = EnsembleMember.load(weights, self.device, sizes)
        self.types = tuple(self._member.weights.types)
        self.path = checkpoint.find_weights(weights)

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
        folder = train_command.train(config.TrainOptions(**{**preset, **options}), given=options)
        return cls(folder, device=str(options.get("device", "auto")))

    def val(self, data: str | Path, split: str = "test", batch: int = 1, workers: int = -1) -> coco.Evaluation:
        """COCO's measures on a split of a data set, whose types are matched to the detector's by name."""
        dataset = source.load(data, split)
        result = predict(self._member.model, dataset, self.device, batch=batch, workers=workers)
        return coco.evaluate(dataset, self._member.relabel(result.found, dataset.types))

    def predict(self, image: str | Path | np.ndarray | torch.Tensor, threshold: float = 0.5) -> Detections:
        """The cells of one image with at least this score.

        ``image`` is a file, an array [H, W, 3] uint8 RGB, or a tensor [3, H, W] uint8 RGB.
        """
        if isinstance(image, (str, Path)):
            image = read_image(image)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)) if image.ndim == 3 else image)
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise LeukoError(
                f"image of {image.dtype} and shape {list(image.shape)}: give uint8 RGB, [H, W, 3] or [3, H, W]"
            )
        found = detect(self._member.model, [image], self.device)[0]
        return Detections(found.boxes, found.scores, found.labels, self.types).above(threshold)
