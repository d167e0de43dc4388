"""What was found on images, as it lies in journals: read image by image, so that memory does not grow with them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.header import ImageHeader
from ..detections import Detections
from ..metrics import counting, doubles
from ..metrics.counting import Differential
from .journal import Journal

MOST_CELLS = 20_000  # of a slide in which doubles are looked for: that many take 0.2 GB, and seconds


@dataclass(frozen=True)
class ImagePrediction:
    """What was found on an image: its file, ``size`` (width, height), the cells (of ``counting.classify``), their looks
    [N, 32, 32] (see ``doubles``), and what the file says of itself, with the ``bits`` that its channels use;
    ``is_full`` where there may be more cells, beyond ``--max-detections``; ``cell`` is the width that a cell was taken
    to have, in pixels of the image and of the network, 0 if not known."""

    path: Path
    size: tuple[int, int]
    cells: Detections
    looks: np.ndarray
    header: ImageHeader
    bits: int
    is_full: bool
    cell: tuple[float, float]

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


def next_types(cells: Detections) -> list[str]:
    """The next likely type of each cell with its score, "" where no other was found there."""
    seconds = zip(*counting.second_types(cells), strict=True)
    return [f"{cells.types[label]} {score:.2f}" if label >= 0 else "" for label, score in seconds]


class Predictions(Sequence[ImagePrediction]):
    """The images that were read, in their order, with their cells; those that an earlier field of their slide, the
    folder, shows, too, are unclassified. ``errors`` are about the other images, ``slides`` the numbers of the images
    of each folder, and ``unsearched`` the slides of so many cells that doubles were not looked for."""

    def __init__(self, batches: Sequence[tuple[Journal, int]], types: Sequence[str]):
        """``batches`` are records of journals, each of them a list of the records of several images: of
        :class:`ImagePrediction`, or ``{"error": text}``."""
        self.types, self._batches, self._last = tuple(types), batches, (-1, [])
        self._places: list[tuple[int, int]] = []  # batch, and number in it
        self.errors: list[str] = []
        self.slides: dict[str, list[int]] = {}
        for b, (journal, number) in enumerate(batches):
            for i, record in enumerate(journal[number]):
                if "error" in record:
                    self.errors.append(record["error"])
                else:
                    self.slides.setdefault(str(Path(record["path"]).parent), []).append(len(self._places))
                    self._places.append((b, i))
        self._doubles: dict[int, list[int]] = {}  # of an image, the numbers of its cells
        self.unsearched = [slide for slide, images in self.slides.items() if not self._search(images)]

    def _search(self, images: Sequence[int]) -> bool:
        """Find the doubles of a slide; False where it has too many cells for that."""
        places: list[tuple[int, int]] = []  # image, and number of the cell
        looks: list[np.ndarray] = []
        for i in images:
            found = self[i]
            numbers = np.flatnonzero(found.cells.why == "").tolist()
            places += [(i, k) for k in numbers]
            looks += list(found.looks[numbers])
            if len(places) > MOST_CELLS:
                return False
        is_double = doubles.doubles(np.stack(looks), [i for i, _ in places]) if places else []
        for (i, k), is_one in zip(places, is_double, strict=True):
            if is_one:
                self._doubles.setdefault(i, []).append(k)
        return True

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> ImagePrediction:
        batch, i = self._places[number]
        if batch != self._last[0]:
            journal, line = self._batches[batch]
            self._last = batch, journal[line]
        prediction = ImagePrediction.of(self._last[1][i], self.types)
        prediction.cells.why[self._doubles.get(number, [])] = counting.DOUBLE
        return prediction

    def count(self, images: Iterable[int] | None = None) -> Differential:
        """The differential of the images of these numbers, or of all."""
        return Differential.of((self[i].cells for i in (range(len(self)) if images is None else images)), self.types)
