"""Pictures of images with their cells: what a model is trained on, and what it finds beside what is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.dataset import Dataset
from ..data.images import read_image
from ..data.loader import TrainingItems
from ..data.transforms import compose
from ..metrics.confusion import Pairing, correct_cells
from . import plots

SHOWN_SCORE = 0.3  # detections below it would only clutter a picture


def batch(items: Sequence[dict], types: Sequence[str]) -> np.ndarray:
    """A contact sheet of training items (see ``leuko.data.loader``) with their labels: [H, W, 3] uint8."""
    drawn = [
        plots.draw_cells(item["image"].permute(1, 2, 0).numpy(), item["boxes"].numpy(), item["labels"].numpy(), types)
        for item in items
    ]
    return plots.contact_sheet(drawn, columns=4)


def augmentation(items: TrainingItems, types: Sequence[str], at_most: int = 8) -> np.ndarray:
    """A contact sheet of the training image with the most cells: as it is, under each transform of ``items`` alone, and
    ``at_most`` times under all of them with their probabilities. [H, W, 3] uint8."""
    cells = [int((~sample.crowd).sum()) for sample in items.samples]
    index = int(np.argmax(cells))
    field = items.field(index)
    shown = [("as it is", field)]
    for i, step in enumerate(items.steps):
        alone = compose.augment(field, [step._replace(p=1.0)], np.random.default_rng([items.seed, i]), items.another)
        shown.append((step.name, alone))
    for i in range(at_most if items.steps else 0):
        rng = np.random.default_rng([items.seed, i, index])
        shown.append(("all", compose.augment(field, items.steps, rng, items.another)))
    drawn = [(title, plots.draw_cells(f.image, f.boxes, f.labels, types)) for title, f in shown]
    return plots.contact_sheet([plots.titled(image, title) for title, image in drawn], columns=6)


def worst_first(pairings: Sequence[Pairing], dataset: Dataset, predictions: Sequence[dict]) -> list[int]:
    """The images with errors, those with the most first: cells missed or called another type, and extra detections."""
    right = correct_cells(dataset, predictions, pairings)
    wrong = [
        int((~r & ~s.crowd).sum()) + int((p.of_detection == -1).sum())
        for r, s, p in zip(right, dataset.samples, pairings, strict=True)
    ]
    return [i for i in sorted(range(len(wrong)), key=lambda i: -wrong[i]) if wrong[i]]


def truth_and_found(
    dataset: Dataset, predictions: Sequence[dict], images: Sequence[int] | None = None, at_most: int = 12
) -> np.ndarray:
    """A contact sheet of pairs, the truth on the left and the detections on the right, of ``images`` or from all over
    the data set."""
    if images is None:
        images = np.linspace(0, len(dataset) - 1, min(at_most, len(dataset))).round().astype(int)
    pairs = []
    for i in images[:at_most]:
        sample, found = dataset.samples[i], predictions[i]
        image = read_image(sample.image)
        good = found.scores >= SHOWN_SCORE
        pairs += [
            plots.draw_cells(image, sample.boxes, sample.labels, dataset.types),
            plots.draw_cells(image, found.boxes[good], found.labels[good], dataset.types, found.scores[good]),
        ]
    return plots.contact_sheet(pairs, columns=4)
