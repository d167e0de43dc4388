"""The Python face of leuko: a detector that can be loaded, trained, validated and used on images.

from leuko import Detector

detector = Detector()
for cell in detector.predict("field.jpg"):
    print(cell.type, cell.score, cell.box)
detector = Detector.train("datasets/smears", model="fcos", preset="small", epochs=16)
print(detector.val("datasets/smears").mAP)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image

from . import config
from .data import source
from .data.images import LoadedImage
from .detections import MAX_DETECTIONS, Detections
from .engine import thresholds
from .engine.ensemble import EnsembleMember
from .engine.evaluate import predict_by
from .errors import LeukoError, nearest
from .metrics import coco, counting
from .registry import DEFAULT
from .train import train


class Detector:
    """A trained detector: ``Detector()`` is the one that comes with leuko, ``Detector("runs/train/fcos")`` that of a
    run, a weights file or a name. ``device`` as in ``--device``, ``imgsz`` as in ``--imgsz``: one in pixels, or several
    whose detections are fused, instead of the size it was trained at; ``max_detections`` per image as in
    ``--max-detections``; ``typer`` as in ``--typer``: weights whose typing stage gives the types, or "off"; ``tiles``
    and ``cell_size`` as in ``--tiles`` and ``--cell-size``, for images of many thousand pixels, and slides."""

    def __init__(
        self,
        weights: str | Path = DEFAULT,
        device: str = "auto",
        imgsz: int | Sequence[int] = (),
        max_detections: int = MAX_DETECTIONS,
        typer: str = "",
        tiles: bool = False,
        cell_size: float = 0.0,
    ):
        sizes = [imgsz] if isinstance(imgsz, int) else list(imgsz)
        looking = {"imgsz": sizes, "max_detections": max_detections, "tiles": tiles, "cell_size": cell_size}
        options = config.DetectOptions(str(weights), typer=typer, device=device, **looking)
        options.check_models()
        self._member = EnsembleMember.load(weights, device, *options.looking)
        self.types = tuple(self._member.types)
        self.path = self._member.weights.path
        self.threshold = thresholds.alone(self._member).value

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
        predictions = predict_by(self._member, dataset, batch, workers).predictions
        return coco.evaluate(dataset, predictions, self._member.max_detections)

    def predict(
        self,
        image: str | Path | np.ndarray | Image.Image,
        threshold: float | None = None,
        max_pixels: float = config.MAX_PIXELS,
    ) -> Detections:
        """The cells of one image with at least this score (without it, that from which counts are best, as the weights
        keep it), one detection for each, in descending order of score; ``type_scores`` has the other types' scores.

        ``image`` is a file of at most ``max_pixels`` megapixels, an array [H, W, 3] RGB or [H, W] grey, uint8, or
        Pillow's image of 8 bits. Raises LeukoError.
        """
        if isinstance(image, (str, Path)):
            loaded = LoadedImage.of_file(Path(image), self._member.views, self._member.needs_pixels, max_pixels)
        else:
            loaded = LoadedImage.of_pixels(image, self._member.views)
        cells = counting.one_type(self._member.detect([loaded])[0], len(self.types))
        return cells.above(self.threshold if threshold is None else threshold)
