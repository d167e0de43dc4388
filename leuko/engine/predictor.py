"""The detectors of a prediction at work: on batches of images, in any process, on any machine.

An image takes one way: a file becomes a :class:`LoadedImage` (:meth:`Predictor.load`), this detections
(:meth:`Models.__call__`), and these the record of the cells that are counted (:meth:`Predictor.records`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import PredictOptions
from ..data.images import LoadedImage, memory_errors_as
from ..detections import Detections
from ..errors import LeukoError
from ..io import write_bytes
from ..metrics import counting, doubles
from ..registry import find_weights
from ..report import pictures
from ..report.records import ImagePrediction
from ..runtime.ensemble import members_of
from ..runtime.typing_stage import OFF
from . import thresholds
from .ensemble import Ensemble
from .thresholds import Threshold

GPU_BATCH = 8  # images at once on a GPU; on a CPU several at once are not faster than one after the other


@dataclass(frozen=True)
class Models(Ensemble):
    """The detectors of a prediction, and the score from which cells count."""

    threshold: Threshold = field(default_factory=Threshold)

    @classmethod
    def of(cls, options: PredictOptions) -> Models:
        """The models that the options name; LeukoError where they do not fit each other or the options."""
        ensemble = Ensemble.of(options)
        threshold = thresholds.kept(ensemble) or Threshold()
        if options.threshold is not None:
            threshold = Threshold(options.threshold, "as --threshold says")
        return cls(ensemble.members, ensemble.fusion, ensemble.calibrated, threshold)


class Item(NamedTuple):
    """An image to predict on: its file or name, the file of its annotated picture if there is to be one, and,
    where the image is no file on this machine, its file's bytes or its pixels."""

    path: Path
    picture: Path | None = None
    data: bytes = b""
    pixels: np.ndarray | None = None

    @property
    def about(self) -> dict:
        """What tells that a record is of this image, and that its file, by size and time, is still the same."""
        stats = []
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(self.path)
            stats.append([status.st_size, status.st_mtime_ns])
        return {"image": str(self.path), "picture": self.picture.name if self.picture else "", "stat": stats}


class Predictor:
    """Finds and counts the cells on batches of images, in any process: it is pickled as its options alone, and each
    process loads the models when it meets the first batch.

    ``options`` are those of :class:`leuko.config.PredictOptions`, such as ``weights``, ``threshold`` or ``device``.
    For plain pools of processes, and for Ray Data::

        with multiprocessing.Pool(4) as pool:
            found = pool.map(Predictor("runs/train/fcos"), [{"path": paths} for paths in batches])
        dataset.map_batches(Predictor, fn_constructor_kwargs={"weights": "runs/train/fcos"}, concurrency=4)
    """

    def __init__(self, weights: str | Path = "", **options: object):
        self.options = PredictOptions(weights=str(weights), **options)
        self.options.check_models()
        o = self.options  # whose files another process may look for from another folder
        o.weights, o.typer = (source if source in ("", OFF) else _whole_path(source) for source in (o.weights, o.typer))
        o.ensemble = o.ensemble and [_whole_path(source) for source in members_of(o.ensemble)]

    @property
    def models(self) -> Models:
        """The models, loaded once per process; LeukoError where they cannot be."""
        return _models(json.dumps(asdict(self.options)))

    @property
    def batch_size(self) -> int:
        """Images that are looked at together."""
        return self.options.batch or (1 if self.models.is_on_cpu else GPU_BATCH)

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """What is found on a batch of N images: ``path`` names their files, or ``bytes`` holds these, or ``image``
        arrays as ``Detector.predict`` takes them.

        Returns arrays of N items: ``path``, ``error`` ("", or why an image was not read, which stops nothing),
        ``width``, ``height``, and of the image's n cells ``types`` [n] (of each its best one), ``scores`` [n],
        ``boxes`` [n, 4] xyxy in pixels, ``type_scores`` [n, K] (of all types, in the order of ``models.types``), and
        ``why`` [n], the reason for which a cell is left unclassified, "" where it is not. Other columns of the batch
        stay. Raises LeukoError for a batch that holds no images.
        """
        given = next((key for key in ("image", "bytes", "path") if key in batch), None)
        if given is None:
            raise LeukoError(f"batch of {', '.join(batch) or 'nothing'}: give it path, bytes or image")
        names = batch.get("path", [""] * len(batch[given]))
        items = [Item(Path(str(name))) for name in names]
        if given != "path":
            field = {"image": "pixels", "bytes": "data"}[given]
            items = [item._replace(**{field: value}) for item, value in zip(items, batch[given], strict=True)]
        rows = [self._row(name, record) for name, record in zip(names, self.predict(items), strict=True)]
        columns = {key: _column([row[key] for row in rows]) for key in self._row("", {"error": ""})}
        return {key: values for key, values in batch.items() if key not in ("image", "bytes")} | columns

    def _row(self, name: str, record: dict) -> dict:
        nothing = Detections([], [], [], tuple(self.models.types), np.zeros((0, len(self.models.types))), np.array([]))
        found = None if "error" in record else ImagePrediction.of(record, self.models.types)
        cells, size = (found.cells, found.size) if found else (nothing, (0, 0))
        row = {"path": str(name), "error": record.get("error", ""), "width": size[0], "height": size[1]}
        row |= {"types": np.array([cell.type for cell in cells], str), "scores": cells.scores, "boxes": cells.boxes}
        return row | {"type_scores": cells.type_scores.astype(np.float32), "why": cells.why.astype(str)}

    # ---------------------------------------------------------------- from files to records

    def predict(self, items: Sequence[Item]) -> list[dict]:
        """The record of each of any number of images: of :class:`ImagePrediction`, or ``{"error": text}``."""
        parts = [items[at : at + self.batch_size] for at in range(0, len(items), self.batch_size)]
        return [record for part in parts for record in self.records(part, self.load(part))]

    def load(self, items: Sequence[Item]) -> list[LoadedImage | LeukoError]:
        """Each image, or the error for which it is not read."""

        def one(item: Item) -> LoadedImage | LeukoError:
            try:
                if item.pixels is not None:
                    return LoadedImage.of_pixels(item.pixels, sizes)
                return LoadedImage.of_file(item.path, sizes, True, self.options.max_pixels, item.data)
            except LeukoError as error:
                return error

        sizes = self.models.views
        return [one(item) for item in items]

    def records(self, items: Sequence[Item], images: Sequence[LoadedImage | LeukoError]) -> list[dict]:
        """What is found on the images, and their pictures in files."""
        readable = [image for image in images if not isinstance(image, LeukoError)]
        found = iter(self._detections(readable))
        return [
            _error(image) if isinstance(image, LeukoError) else self._record(item, image, next(found))
            for item, image in zip(items, images, strict=True)
        ]

    def _detections(self, images: Sequence[LoadedImage]) -> list[Detections | LeukoError]:
        """Those of each image; where there is not enough memory for all at once, of one after the other."""
        if not images:
            return []
        try:
            with memory_errors_as(images[0].path):
                return self.models(images)
        except LeukoError as error:
            return [error] if len(images) == 1 else [self._detections([image])[0] for image in images]

    def _record(self, item: Item, image: LoadedImage, found: Detections | LeukoError) -> dict:
        threshold, number = self.models.threshold.value, self.options.max_detections
        try:
            if isinstance(found, LeukoError):
                raise found
            with memory_errors_as(item.path):
                is_full = self.models.places(found.above(threshold), image) >= number
                sides = self.models.cell(image)
                cells = counting.one_type(found, len(self.models.types))
                cells = counting.classify(cells, image.size, threshold)
                looks = np.array([doubles.look(image.pixels, box) for box in cells.boxes], np.uint8)
                picture = pictures.draw_classified(image.pixels, cells, threshold) if item.picture else None
                image.pixels = None  # where it is large, one copy is enough
                data = pictures.encoded(picture, item.picture.suffix) if item.picture else b""
        except LeukoError as error:
            return _error(error)
        if item.picture:
            write_bytes(item.picture, data)
        return ImagePrediction(image.path, image.size, cells, looks, image.header, image.bits, is_full, sides).record()


@functools.lru_cache(maxsize=1)
def _models(options: str) -> Models:
    return Models.of(PredictOptions(**json.loads(options)))


def _whole_path(source: str) -> str:
    return str(find_weights(source).absolute())


def _error(error: LeukoError) -> dict:
    return {"error": str(error)}


def _column(values: list) -> np.ndarray:
    """Values as an array: of numbers or texts, or of arrays, which may differ in length."""
    if not values or not isinstance(values[0], np.ndarray):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column
