"""Pictures of images with their cells: what a model is trained on, and what it finds beside what is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.images import read_image
from ..data.sample import Dataset
from . import plots

SHOWN_SCORE = 0.3  # detections below it would only clutter a picture


def batch(items: Sequence[dict], types: Sequence[str]) -> np.ndarray:
    """A contact sheet of training items (see ``leuko.data.loading``) with their labels: [H, W, 3] uint8."""
    drawn = [
        plots.draw_cells(item["image"].permute(1, 2, 0).numpy(), item["boxes"].numpy(), item["labels"].numpy(), types)
        for item in items
    ]
    return plots.contact_sheet(drawn, columns=4)


def truth_and_found(dataset: Dataset, predictions: Sequence[dict], at_most: int = 12) -> np.ndarray:
    """A contact sheet of pairs, the truth on the left and the detections on the right, from all over the data set."""
    pairs = []
    for i in np.linspace(0, len(dataset) - 1, min(at_most, len(dataset))).round().astype(int):
        sample, found = dataset.samples[i], predictions[i]
        image = read_image(sample.image)
        good = found["scores"] >= SHOWN_SCORE
        pairs += [
            plots.draw_cells(image, sample.boxes, sample.labels, dataset.types),
            plots.draw_cells(image, found["boxes"][good], found["labels"][good], dataset.types, found["scores"][good]),
        ]
    return plots.contact_sheet(pairs, columns=4)
