"""The typing stage in use: what a detector has found gets its types from a typing network, of torch or exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..data.crops import crops_of, stain_of
from ..detections import Detections
from ..metrics import counting

if TYPE_CHECKING:
    from ..data.slides import Slide

SURE = 0.5  # of the best score on a field: the cells that show how it is stained
LEAST_SCORE, LEAST_SHARE = 0.05, 0.2  # of a box that is typed, or of the field's best score, where that is less
BATCH = 16  # crops at once: more are slower on a CPU


@dataclass
class TypingStage:
    """A typing network ready for use, crops [N, S, S, 3] uint8 RGB of ``side`` S -> probabilities [N, K + 1] of the
    types and, last, of none; the types in the order of its classes, how much of a cell's surroundings it sees (see
    ``data.crops``), the factors on the width and the height of boxes by which a laboratory draws them larger or
    smaller (see ``leuko adapt``), and the network's parameters that are not counted with the detector's.

    A field is its image [H, W, 3] uint8 RGB as stored, or a slide."""

    net: Callable[[np.ndarray], np.ndarray]
    side: int
    types: tuple[str, ...]
    view: float
    box_factors: tuple[float, float] = (1.0, 1.0)
    parameters: int = 0

    def __call__(self, fields: Sequence[np.ndarray | Slide], found: Sequence[Detections]) -> list[Detections]:
        """What was found on each field with other types (see :meth:`typed`). The cells of all fields are typed
        together."""
        pairs = [self.cut(field, each) for field, each in zip(fields, found, strict=True)]
        every = np.concatenate([crops for _, crops in pairs])
        parts = [self.net(every[start : start + BATCH])[:, :-1] for start in range(0, len(every), BATCH)]
        chances = np.concatenate([np.zeros((0, len(self.types)), dtype=np.float32), *parts])
        ends = np.cumsum([len(cells) for cells, _ in pairs])[:-1]
        parts = zip(fields, pairs, np.split(chances, ends), strict=True)
        return [self.typed(cells, each, field.shape[1::-1]) for field, (cells, _), each in parts]

    def cut(self, field: np.ndarray | Slide, found: Detections) -> tuple[Detections, np.ndarray]:
        """The cells among what was found on a field, one detection for each, whatever its type, and their crops [N, S,
        S, 3] uint8."""
        best = float(found.scores.max(initial=0))  # at other centres all scores may be low
        found = found.above(min(LEAST_SCORE, LEAST_SHARE * best))
        cells = counting.one_type(replace(found, labels=np.zeros(len(found), dtype=np.int64)), 1)
        cells = replace(cells, type_scores=None)
        return cells, self.crops(field, cells.boxes, cells)

    def crops(self, field: np.ndarray | Slide, boxes: np.ndarray, cells: Detections) -> np.ndarray:
        """The crops [N, S, S, 3] uint8 of boxes [N, 4] on a field, whose stain its surest ``cells`` show."""
        sure = cells.boxes[cells.scores >= SURE * cells.scores.max(initial=0)]
        return crops_of(field, boxes, self.side, self.view, stain_of(field, sure) if len(boxes) else None)

    def typed(self, cells: Detections, chances: np.ndarray, size: tuple[int, int]) -> Detections:
        """Cells of an image of ``size`` (width, height), with the probabilities [N, K] of their types: each becomes a
        detection of every type, whose score is the cell's score times the type's probability, in descending order of
        score. Their boxes are :func:`resized`."""
        number = len(self.types)
        scores = (cells.scores[:, None] * chances).reshape(-1)
        boxes = np.repeat(resized(cells.boxes, self.box_factors, size), number, axis=0)
        every = Detections(boxes, scores, np.tile(np.arange(number), len(cells)), self.types)
        return every[np.argsort(-scores, kind="stable")]


def resized(boxes: np.ndarray, factors: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] of an image of ``size`` (width, height) with other widths and heights around the same middles. A
    side at the image's border, which cuts the cell, stays there, and no other side comes to lie on it."""
    if tuple(factors) == (1.0, 1.0):
        return boxes
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * np.float32(factors)
    inside = counting.border_margin(size) + 0.01
    limits = np.array([*size, *size], dtype=np.float32)
    drawn = np.concatenate([middle - half, middle + half], axis=1).clip(inside, limits - inside)
    return np.where(counting.at_border(boxes, size), boxes, drawn)


OFF = "off"  # what --typer says to leave a model its own types
