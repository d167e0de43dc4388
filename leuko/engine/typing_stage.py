"""The typing stage in use: what a detector has found gets its types from a typing network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..data.crops import crops_of, stain_of
from ..data.loader import LoadedImage
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import counting
from ..models.typer import Typer
from .checkpoint import StoredTyper, Weights, load_weights
from .metadata import BOX_FACTORS

SURE = 0.5  # of the best score on a field: the cells that show how it is stained
LEAST_SCORE, LEAST_SHARE = 0.05, 0.2  # of a box that is typed, or of the field's best score, where that is less
BATCH = 16  # crops at once: more are slower on a CPU


@dataclass
class TypingStage:
    """A typing network ready for use (fused, on its device), the types in the order of its classes, how much of a
    cell's surroundings it sees (see ``data.crops``), and the factors on the width and the height of boxes by which a
    laboratory draws them larger or smaller (see ``leuko adapt``)."""

    net: Typer
    types: tuple[str, ...]
    view: float
    device: torch.device
    box_factors: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, stored: StoredTyper, path: Path, device: torch.device) -> TypingStage:
        """From the weights file ``path``; LeukoError where they do not fit the network."""
        net = stored.build(path)
        net.fuse()
        net = net.to(device=device, memory_format=torch.channels_last)
        return cls(net, tuple(stored.types), stored.view, device, tuple(stored.about.get(BOX_FACTORS, (1.0, 1.0))))

    def __call__(self, images: Sequence[LoadedImage], detections: Sequence[Detections]) -> list[Detections]:
        """The detections of each image with other types: each cell, found with whatever types, becomes a detection of
        every type, whose score is the cell's score times the type's probability.

        ``images`` must have their stored ``pixels``. The cells of all images are typed together.
        """
        cells, crops = self.cut(images, detections)
        chances = self.probabilities(np.concatenate(crops)) if crops else np.zeros((0, len(self.types)))
        ends = np.cumsum([len(each) for each in cells])[:-1]
        parts = zip(cells, np.split(chances, ends), images, strict=True)
        return [typed(each, p, self.types, self.box_factors, image.size) for each, p, image in parts]

    def cut(
        self, images: Sequence[LoadedImage], detections: Sequence[Detections]
    ) -> tuple[list[Detections], list[np.ndarray]]:
        """The cells of each image, one detection for each, whatever its type, and their crops [N, S, S, 3] uint8."""
        cells = [_cells(found) for found in detections]
        pairs = zip(images, cells, strict=True)
        return cells, [self.crops(image.pixels, each.boxes, each) for image, each in pairs]

    def crops(self, pixels: np.ndarray, boxes: np.ndarray, cells: Detections) -> np.ndarray:
        """The crops [N, S, S, 3] uint8 of boxes [N, 4] on a field, whose stain its surest ``cells`` show."""
        sure = cells.boxes[cells.scores >= SURE * cells.scores.max(initial=0)]
        return crops_of(pixels, boxes, self.net.side, self.view, stain_of(pixels, sure) if len(boxes) else None)

    @torch.inference_mode()
    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Of crops [N, S, S, 3] uint8 RGB: the probability of each type, [N, K] float32; what lacks to 1 is that of
        none."""
        parts = [np.zeros((0, len(self.types)), dtype=np.float32)]
        for start in range(0, len(crops), BATCH):
            batch = torch.from_numpy(crops[start : start + BATCH]).to(self.device).permute(0, 3, 1, 2).float() / 255
            parts.append(self.net(batch).float().softmax(1)[:, :-1].cpu().numpy())
        return np.concatenate(parts)


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


def load(weights: Weights, typer: str, device: torch.device) -> tuple[TypingStage | None, str]:
    """The typing stage that ``--typer`` means for a model, and whose it is: "" its own, if it has one; "off" none; else
    that of other weights, told by the beginning of their digest. Raises LeukoError."""
    if typer == OFF:
        return None, OFF if weights.typer else ""
    keeper = load_weights(typer) if typer else weights
    if keeper.typer is None:
        if typer:
            raise LeukoError(f"{keeper.path}: holds no typing stage; train one by leuko type")
        return None, ""
    stage = TypingStage.of(keeper.typer, keeper.path, device)
    if keeper is weights or keeper.identity == weights.identity:
        return stage, ""
    return replace(stage, box_factors=(1.0, 1.0)), keeper.identity[:12]  # factors are of its own detector's boxes
