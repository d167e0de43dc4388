"""What was found on many images, as it lies in files: read image by image, so that memory does not grow with them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..data.header import ImageHeader
from ..detections import Detections
from ..metrics import counting, doubles

MOST_CELLS = 20_000  # of a slide in which doubles are looked for: that many take 0.2 GB, and seconds


@dataclass(frozen=True)
class ImagePrediction:
    """What was found on an image: its file (with ``--originals`` that of its original), ``size`` (width, height), the
    cells (of ``counting.classify``), their looks [N, 32, 32] (see ``doubles``), and what the file says of itself, with
    the ``bits`` that its channels use; ``is_full`` where there may be more cells, beyond ``--max-detections``;
    ``cell`` is the width that a cell was taken to have, in pixels of the image and of the network, 0 if not known."""

    path: Path
    size: tuple[int, int]
    cells: Detections
    looks: np.ndarray
    header: ImageHeader
    bits: int
    is_full: bool
    cell: tuple[float, float]

    @property
    def field(self) -> tuple[Path, tuple[int, int], Detections]:
        """As pages show it: file, size and cells."""
        return self.path, self.size, self.cells

    @classmethod
    def of(cls, record: dict, types: Sequence[str]) -> ImagePrediction:
        """From a record of :meth:`record`."""
        number = len(record["boxes"])
        scores = np.array(record["type_scores"], np.float32).reshape(number, len(types))
        why = np.array(record["why"], object).reshape(number)
        looks = np.frombuffer(base64.b64decode(record["looks"]), np.uint8).reshape(number, doubles.SIDE, doubles.SIDE)
        labels = scores.argmax(1) if number else []
        cells = Detections(record["boxes"], scores.max(1, initial=0), labels, tuple(types), scores, why)
        header, about = ImageHeader(*record["header"]), (record["bits"], record["is_full"], tuple(record["cell"]))
        return cls(Path(record["path"]), tuple(record["size"]), cells, looks, header, *about)

    def record(self) -> dict:
        """The same in numbers and texts, as files keep it."""
        record = {"path": str(self.path), "size": self.size, "header": self.header, "bits": self.bits}
        record |= {"boxes": self.cells.boxes, "type_scores": self.cells.type_scores, "why": self.cells.why.tolist()}
        record |= {"is_full": self.is_full, "cell": self.cell}
        return record | {"looks": base64.b64encode(self.looks.tobytes()).decode()}


class Lazy(Sequence):
    """A sequence of ``length`` items, each made when it is asked for."""

    def __init__(self, length: int, item: Callable[[int], object]):
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> object:
        if not 0 <= number < self._length:
            raise IndexError(number)
        return self._item(number)


class Chosen(Lazy):
    """The items of these numbers of a sequence, each read when it is asked for."""

    def __init__(self, items: Sequence, numbers: Sequence[int]):
        super().__init__(len(numbers), lambda i: items[numbers[i]])


class Predictions(Sequence[ImagePrediction]):
    """The images that were read, in their order, with their cells; those that an earlier field of their slide, the
    folder, shows, too, are unclassified. ``errors`` are about the other images, ``slides`` the numbers of the images
    of each folder, and ``unsearched`` the slides of so many cells that doubles were not looked for."""

    def __init__(self, batches: Sequence[list[dict]], types: Sequence[str]):
        """``batches`` hold the records of several images each: of :class:`ImagePrediction`, or ``{"error": text}``."""
        self._batches, self._types, self._last = batches, tuple(types), (-1, [])
        self._places: list[tuple[int, int]] = []  # batch, and number in it
        self.errors: list[str] = []
        self.slides: dict[str, list[int]] = {}
        for b, records in enumerate(batches):
            for i, record in enumerate(records):
                if "error" in record:
                    self.errors.append(record["error"])
                else:
                    self.slides.setdefault(str(Path(record["path"]).parent), []).append(len(self._places))
                    self._places.append((b, i))
        self._doubles: dict[int, list[int]] = {}  # of an image, the numbers of its cells
        self.unsearched = [slide for slide, images in self.slides.items() if not self._search(images)]

    def _search(self, images: Sequence[int]) -> bool:
        """Find the doubles of a slide; False where it has too many cells for that."""
        cells = list(islice(((i, k, look) for i in images for k, look in self._classified(i)), MOST_CELLS + 1))
        if len(cells) > MOST_CELLS:
            return False
        if cells:
            looks = np.stack([look for *_, look in cells])
            for (i, k, _), is_double in zip(cells, doubles.doubles(looks, [i for i, *_ in cells]), strict=True):
                if is_double:
                    self._doubles.setdefault(i, []).append(k)
        return True

    def _classified(self, number: int) -> list[tuple[int, np.ndarray]]:
        prediction = self[number]
        return [(k, prediction.looks[k]) for k in np.flatnonzero(prediction.cells.why == "").tolist()]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> ImagePrediction:
        batch, i = self._places[number]
        if batch != self._last[0]:
            self._last = batch, self._batches[batch]
        prediction = ImagePrediction.of(self._last[1][i], self._types)
        prediction.cells.why[self._doubles.get(number, [])] = counting.DOUBLE
        return prediction
