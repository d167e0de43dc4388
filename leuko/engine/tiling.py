"""Wide fields and slides: cut into overlapping tiles at the scale that a model was trained for, and each cell once.

A cell that a seam cuts lies whole in the next tile, since tiles overlap by more than a cell. So a box that touches a
seam is dropped where the next tile has room for all of it, and of boxes of different tiles that are one cell the best
remains. What a model says of a cell, several types perhaps, comes from one tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.dataset import Dataset
from ..data.images import LoadedImage
from ..data.slides import Slide
from ..detections import Detections
from ..errors import LeukoError
from ..ops.pairs import box_sides, firsts, overlapping_pairs, share_of_smaller
from ..runtime import ExportedDetector
from .detect import detect_views

if TYPE_CHECKING:
    from .checkpoint import Weights
    from .network import Network

MICRONS = 14.0  # of a leukocyte on a smear, the side of its box
OVERLAP, LEAST_TILE = 2.0, 10.0  # in cells
MARGIN = 0.125  # of a cell: a box as near to a seam is cut by it
SAME_CELL = 2 / 3  # of the smaller box in the other; of boxes of one size, that is an IoU of one half
TILES_AT_ONCE = 8  # on a GPU

Box = tuple[int, int, int, int]


def cell_sides(dataset: Dataset, image_size: int) -> dict[str, float]:
    """What the metadata of weights keep of the cells that a model has learned from: the median side (of the square of
    a box's area) in pixels of the network and of the stored images."""
    samples = [(s, box_sides(s.boxes[~s.crowd])) for s in dataset.samples]
    stored = np.concatenate([sides for _, sides in samples])
    scaled = np.concatenate([sides * (image_size / max(s.width, s.height)) for s, sides in samples])
    return {"network": round(float(np.median(scaled)), 2), "stored": round(float(np.median(stored)), 2)}


def cells_at_network(dataset: Dataset, image_size: float) -> list[tuple[Path, float]]:
    """The images of a data set that have cells, and the median side of these in pixels of the network."""
    sides = [(s, box_sides(s.boxes[~s.crowd])) for s in dataset.samples if not s.crowd.all()]
    return [(s.image, float(np.median(each)) * image_size / max(s.width, s.height)) for s, each in sides]


@dataclass(frozen=True)
class Tiling:
    """How a model's images are cut: ``network`` is the side of a cell in pixels of the network, ``stored`` in those of
    the images that it was trained on, ``given`` what the user says of these images (0: nothing); ``sizes`` are the
    image sizes that the model looks at, ``own`` the one of its training."""

    network: float
    stored: float
    given: float
    sizes: tuple[int, ...]
    own: int

    @classmethod
    def of(cls, weights: Weights | ExportedDetector, sizes: Sequence[int], own: int, cell_size: float) -> Tiling:
        """For a model; LeukoError where nobody knows how large cells were in its training."""
        known = weights.cell_sides
        if not known:
            raise LeukoError(
                f"{weights.path}: does not say how large cells were in its training, which --tiles needs; it is of an "
                "older leuko: extend its run by an epoch (leuko train --resume RUN --epochs N)"
            )
        return cls(known["network"], known["stored"], cell_size, tuple(sizes), own)

    def cell(self, image: LoadedImage) -> float:
        """The side of a cell of an image in its stored pixels: what the user says; what a slide's scanner says of its
        pixels, for a leukocyte of 14 micrometres; else as in training."""
        microns = image.pixels.microns if isinstance(image.pixels, Slide) else 0.0
        return self.given or (MICRONS / microns if microns else self.stored)

    def grid(self, size: tuple[int, int], cell: float) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Where tiles of an image of ``size`` (width, height) begin and end along x and along y."""
        side = math.ceil(max(self.own, LEAST_TILE * self.network) * cell / self.network)
        return tuple(_spans(length, side, math.ceil(OVERLAP * cell)) for length in size)

    def __call__(self, model: Network | ExportedDetector, image: LoadedImage) -> Detections:
        """Detections of an image that has its stored ``pixels``, in these, in descending order of score."""
        cell = self.cell(image)
        columns, rows = self.grid(image.size, cell)
        boxes = [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]
        longer = max(boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1]) * self.network / cell
        sides = list(dict.fromkeys(max(round(longer * size / self.own), 1) for size in self.sizes))
        tiles = ((box, _tile(image, box, sides)) for box in boxes)
        found: list[Detections] = []
        while some := list(islice(tiles, 1 if model.is_on_cpu else TILES_AT_ONCE)):
            of_tiles = detect_views(model, [tile for _, tile in some], sides)
            for (box, tile), detections in zip(some, of_tiles, strict=True):
                scale = np.float32([(box[2] - box[0]) / tile.size[0], (box[3] - box[1]) / tile.size[1]] * 2)
                moved = replace(detections, boxes=detections.boxes * scale + np.float32(box[:2] * 2))
                found.append(moved[~cut(moved.boxes, box, columns, rows, MARGIN * cell)])
        return merged(found)

    def most(self, detections: Detections, image: LoadedImage) -> int:
        """The most detections that lie in one tile."""
        columns, rows = self.grid(image.size, self.cell(image))
        x, y = ((detections.boxes[:, k] + detections.boxes[:, k + 2]) / 2 for k in (0, 1))
        return max(int(((a <= x) & (x < b) & (c <= y) & (y < d)).sum()) for a, b in columns for c, d in rows)


def _spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles of ``side`` pixels that overlap by at least so many begin and end along an axis, evenly spread."""
    if length <= side:
        return [(0, length)]
    number = math.ceil((length - overlap) / (side - overlap))
    starts = np.linspace(0, length - side, number).round().astype(int).tolist()
    return [(start, start + side) for start in starts]


def _tile(image: LoadedImage, box: Box, sides: Sequence[int]) -> LoadedImage:
    """A part of an image, scaled so that its longer side has each of ``sides`` pixels."""
    x0, y0, x1, y1 = box
    if isinstance(image.pixels, Slide) and max(sides) < max(x1 - x0, y1 - y0):
        return LoadedImage.of_pixels(image.pixels.part(box, max(sides)), sides)
    return LoadedImage.of_pixels(np.ascontiguousarray(image.pixels[y0:y1, x0:x1]), sides)


def cut(
    boxes: np.ndarray, tile: Box, columns: Sequence[tuple[int, int]], rows: Sequence[tuple[int, int]], margin: float
) -> np.ndarray:
    """Which boxes [N, 4] of a tile touch one of its seams, to ``margin`` pixels, where the next tile has room for all
    of the cell: [N] bool. (A box as long as tiles overlap is cut by both, and stays.)"""
    is_cut = np.zeros(len(boxes), bool)
    for axis, spans in enumerate((columns, rows)):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        at = spans.index((tile[axis], tile[axis + 2]))
        if at:
            is_cut |= (low < tile[axis] + margin) & (high < spans[at - 1][1] - margin)
        if at + 1 < len(spans):
            is_cut |= (high > tile[axis + 2] - margin) & (low > spans[at + 1][0] + margin)
    return is_cut


def merged(tiles: Sequence[Detections]) -> Detections:
    """The detections of all tiles, in descending order of score, without those of a cell that another tile found with a
    better score, whatever their types."""
    fields = {name: np.concatenate([getattr(tile, name) for tile in tiles]) for name in ("boxes", "scores", "labels")}
    order = np.argsort(-fields["scores"], kind="stable")
    tile_of = np.repeat(np.arange(len(tiles)), [len(tile) for tile in tiles])[order]
    detections = Detections(**fields, types=tiles[0].types)[order]
    pairs = overlapping_pairs(detections.boxes, SAME_CELL, share_of_smaller)
    return detections[firsts(pairs[tile_of[pairs[:, 0]] != tile_of[pairs[:, 1]]], len(detections))]
