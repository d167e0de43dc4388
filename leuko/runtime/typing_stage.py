"""The typing stage in use: what a detector has found gets its types from a typing network, of torch or exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.crops import crops_of, stain_of
from ..detections import Detections
from ..metrics import counting

SURE = 0.5  # of the best score on a field: the cells that show how it is stained
LEAST_SCORE, LEAST_SHARE = 0.05, 0.2  # of a box that is typed, or of the field's best score, where that is less
BATCH = 16  # crops at once: more are slower on a CPU


@dataclass(frozen=True)
class Field:
    """An image as a typing stage sees it: its ``pixels`` [H, W, 3] uint8 RGB as stored, and its ``size`` (width,
    height)."""

    pixels: np.ndarray
    size: tuple[int, int]


@dataclass
class TypingStage:
    """A typing network ready for use, crops [N, S, S, 3] uint8 RGB of ``side`` S -> probabilities [N, K + 1] of the
    types and, last, of none; the types in the order of its classes, how much of a cell's surroundings it sees (see
    ``data.crops``), the factors on the width and the height of boxes by which a laboratory draws them larger or
    smaller (see ``leuko adapt``), and the network's parameters that are not counted with the detector's."""

    net: Callable[[np.ndarray], np.ndarray]
    side: int
    types: tuple[str, ...]
    view: float
    box_factors: tuple[float, float] = (1.0, 1.0)
    parameters: int = 0

    def __call__(self, images: Sequence[Field], detections: Sequence[Detections]) -> list[Detections]:
        """The detections of each image with other types: each cell, found with whatever types, becomes a detection of
        every type, whose score is the cell's score times the type's probability. The cells of all images are typed
        together.
        """
        cells, crops = self.cut(images, detections)
        chances = self.probabilities(np.concatenate(crops)) if crops else np.zeros((0, len(self.types)))
        ends = np.cumsum([len(each) for each in cells])[:-1]
        parts = zip(cells, np.split(chances, ends), images, strict=True)
        return [typed(each, p, self.types, self.box_factors, image.size) for each, p, image in parts]

    def cut(
        self, images: Sequence[Field], detections: Sequence[Detections]
    ) -> tuple[list[Detections], list[np.ndarray]]:
        """The cells of each image, one detection for each, whatever its type, and their crops [N, S, S, 3] uint8."""
        cells = [_cells(found) for found in detections]
        pairs = zip(images, cells, strict=True)
        return cells, [self.crops(image.pixels, each.boxes, each) for image, each in pairs]

    def crops(self, pixels: np.ndarray, boxes: np.ndarray, cells: Detections) -> np.ndarray:
        """The crops [N, S, S, 3] uint8 of boxes [N, 4] on a field, whose stain its surest ``cells`` show."""
        sure = cells.boxes[cells.scores >= SURE * cells.scores.max(initial=0)]
        return crops_of(pixels, boxes, self.side, self.view, stain_of(pixels, sure) if len(boxes) else None)

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Of crops [N, S, S, 3] uint8 RGB: the probability of each type, [N, K] float32; what lacks to 1 is that of
        none."""
        parts = [self.net(crops[start : start + BATCH])[:, :-1] for start in range(0, len(crops), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.types)), dtype=np.float32)


def typed(
    cells: Detections,
    chances: np.ndarray,
    types: Sequence[str],
    factors: tuple[float, float] = (1.0, 1.0),
    size: tuple[int, int] = (0, 0),
) -> Detections:
    """Cells of an image of ``size`` (width, height), with the probabilities [N, K] of their types, as detections of
    every type, in descending order of score; their boxes are :func:`resized`."""
    number = len(types)
    scores = (cells.scores[:, None] * chances).reshape(-1)
    boxes = np.repeat(resized(cells.boxes, factors, size), number, axis=0)
    every = Detections(boxes, scores, np.tile(np.arange(number), len(cells)), tuple(types))
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


def _cells(detections: Detections) -> Detections:
    """One detection for each cell, whatever its type."""
    best = float(detections.scores.max(initial=0))  # at other centres all scores may be low
    found = detections.above(min(LEAST_SCORE, LEAST_SHARE * best))
    cells = counting.one_type(replace(found, labels=np.zeros(len(found), dtype=np.int64)), 1)
    return replace(cells, type_scores=None)


OFF = "off"  # what --typer says to leave a model its own types
