"""The typing stage in use: what a detector has found gets its types from a typing network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data.crops import crops_of
from ..data.loader import LoadedImage
from ..detections import Detections
from ..errors import LeukoError
from ..metrics import counting
from ..models.typer import Typer
from .checkpoint import Weights, load_weights

LEAST_SCORE = 0.05  # of a box that is typed; all others are left out
BATCH = 64  # crops at once


@dataclass
class TypingStage:
    """A typing network ready for use (fused, on its device), the types in the order of its classes, and how much of a
    cell's surroundings it sees (see ``data.crops``)."""

    net: Typer
    types: tuple[str, ...]
    view: float
    device: torch.device

    @classmethod
    def of(cls, net: Typer, types: Sequence[str], view: float, device: torch.device) -> TypingStage:
        """From a trained network, which is copied."""
        net = copy.deepcopy(net).eval()
        net.fuse()
        return cls(net.to(device=device, memory_format=torch.channels_last), tuple(types), view, device)

    def __call__(self, images: Sequence[LoadedImage], detections: Sequence[Detections]) -> list[Detections]:
        """The detections of each image with other types: each cell, found with whatever types, becomes a detection of
        every type, whose score is the cell's score times the type's probability.

        ``images`` must have their stored ``pixels``. The cells of all images are typed together.
        """
        cells = [_cells(found) for found in detections]
        pairs = zip(images, cells, strict=True)
        crops = [crops_of(image.pixels, each.boxes, self.net.side, self.view) for image, each in pairs]
        chances = self.probabilities(np.concatenate(crops)) if crops else np.zeros((0, len(self.types)))
        ends = np.cumsum([len(each) for each in cells])[:-1]
        return [self._typed(*pair) for pair in zip(cells, np.split(chances, ends), strict=True)]

    @torch.inference_mode()
    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Of crops [N, S, S, 3] uint8 RGB: the probability of each type, [N, K] float32; what lacks to 1 is that of
        none."""
        parts = [np.zeros((0, len(self.types)), dtype=np.float32)]
        for start in range(0, len(crops), BATCH):
            batch = torch.from_numpy(crops[start : start + BATCH]).to(self.device).permute(0, 3, 1, 2).float() / 255
            parts.append(self.net(batch).float().softmax(1)[:, :-1].cpu().numpy())
        return np.concatenate(parts)

    def _typed(self, cells: Detections, chances: np.ndarray) -> Detections:
        number = len(self.types)
        scores = (cells.scores[:, None] * chances).reshape(-1)
        labels = np.tile(np.arange(number), len(cells))
        typed = Detections(np.repeat(cells.boxes, number, axis=0), scores, labels, self.types)
        return typed[np.argsort(-scores, kind="stable")]


def _cells(detections: Detections) -> Detections:
    """One detection for each cell, whatever its type."""
    found = detections.above(LEAST_SCORE)
    cells = counting.one_type(replace(found, labels=np.zeros(len(found), dtype=np.int64)), 1)
    return replace(cells, type_scores=None)


OFF = "off"  # what --typer says to leave a model its own types


def load(weights: Weights, typer: str, device: torch.device) -> TypingStage | None:
    """The typing stage that ``--typer`` means for a model: "" its own, if it has one; "off" none; else that of other
    weights. Raises LeukoError."""
    if typer == OFF:
        return None
    keeper = load_weights(typer) if typer else weights
    stored = keeper.typer
    if stored is None:
        if typer:
            raise LeukoError(f"{keeper.path}: holds no typing stage; train one by leuko type")
        return None
    return TypingStage.of(stored.build(keeper.path), stored.types, stored.view, device)
