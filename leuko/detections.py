"""What a detector found on one image: the one type for it, from the evaluation to the report and to Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

MAX_DETECTIONS = 100  # per image, where no other number is asked for: COCO's


@dataclass(frozen=True)
class Cell:
    """One detected leukocyte: type, score in 0..1, and box (x0, y0, x1, y1) in pixels."""

    type: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detections:
    """The cells found on one image, in descending order of score.

    boxes [N, 4] float32 xyxy in pixels of the image as it is stored; scores [N] float32 in 0..1; labels [N] int64,
    0-based indices into ``types``, which may be left empty where a data set gives the types; type_scores [N, types]
    float32 the scores of all types for each cell, where one type was chosen (see ``metrics.counting``), and why [N] str
    the reason for which a cell is left unclassified, "" where it is not. Iterating gives :class:`Cell` objects;
    indexing by a mask or by indices [M] gives the Detections of those.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    types: tuple[str, ...] = ()
    type_scores: np.ndarray | None = None
    why: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32).reshape(-1))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64).reshape(-1))

    @classmethod
    def from_tensors(cls, detection: Mapping) -> Detections:
        """From a model's ``{"boxes", "scores", "labels"}``."""
        return cls(*(detection[key].detach().float().cpu().numpy() for key in ("boxes", "scores", "labels")))

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Cell]:
        for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True):
            yield Cell(self.types[label], float(score), tuple(float(v) for v in box))

    def __getitem__(self, chosen: np.ndarray | slice) -> Detections:
        arrays = {name: getattr(self, name) for name in ("boxes", "scores", "labels", "type_scores", "why")}
        return replace(self, **{name: array[chosen] for name, array in arrays.items() if array is not None})

    def scaled(self, size: tuple[int, int], of: tuple[int, int]) -> Detections:
        """The detections of an image ``of`` (width, height) on the same image of another ``size``."""
        return replace(
            self, boxes=self.boxes * np.tile(np.float32([new / old for new, old in zip(size, of, strict=True)]), 2)
        )

    def above(self, threshold: float) -> Detections:
        """Those with at least this score."""
        return self[self.scores >= threshold]
