"""Pictures of images with their cells: what a model is trained on, its predictions beside the labels, doubtful labels.

All of them are contact sheets, [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..cells import colour
from ..config import MAX_PIXELS
from ..data.dataset import Dataset, Sample
from ..data.fit import fit
from ..data.images import open_image, read_image
from ..data.tools.findings import TypedBox
from ..data.transforms import compose
from ..detections import Detections
from ..metrics.confusion import Pairing
from ..metrics.consensus import Suspect
from . import plots

if TYPE_CHECKING:
    from ..data.training import TrainingImages, TrainingItem

LEAST_SIDE = 8  # pixels of a box in a small picture
NOTE_STEP = 26  # pixels: the height of a line below a sheet
CONTEXT = 1.8  # side of a crop, in longer sides of its box


def batch(items: Sequence[TrainingItem], types: Sequence[str]) -> np.ndarray:
    """A batch of training images with their labels."""
    drawn = [
        plots.draw_cells(image.permute(1, 2, 0).numpy(), target["boxes"].numpy(), target["labels"].numpy(), types)
        for image, target, *_ in items
    ]
    return plots.contact_sheet(drawn, columns=4)


def augmentation(images: TrainingImages, types: Sequence[str], max_images: int = 8) -> np.ndarray:
    """The training image with the most cells: unchanged, under each transform of ``images`` alone, and ``max_images``
    times under all of them with their probabilities."""
    index = int(np.argmax([(~sample.crowd).sum() for sample in images.samples]))
    sample = images.plain(index)
    shown = [("unchanged", sample)]
    for i, step in enumerate(images.steps):
        alone = compose.augment(sample, [step._replace(p=1.0)], np.random.default_rng([images.seed, i]), images.another)
        shown.append((step.name, alone))
    for i in range(max_images if images.steps else 0):
        rng = np.random.default_rng([images.seed, i, index])
        shown.append(("all", compose.augment(sample, images.steps, rng, images.another)))
    drawn = [plots.captioned(plots.draw_cells(s.image, s.boxes, s.labels, types), title) for title, s in shown]
    return plots.contact_sheet(drawn, columns=6)


def worst_first(pairings: Sequence[Pairing]) -> list[int]:
    """Indices of the images with errors, in descending order of their number: cells that are missed or found with
    another type, and extra detections."""
    errors = [int((~p.correct & ~p.sample.crowd).sum()) + len(p.extra) for p in pairings]
    return [i for i in sorted(range(len(errors)), key=lambda i: -errors[i]) if errors[i]]


def gt_and_predictions(
    dataset: Dataset,
    cells: Sequence[Detections],
    note: str,
    images: Sequence[int] | None = None,
    max_images: int = 12,
) -> np.ndarray:
    """Pairs with the labels on the left and the cells that were found on the right, of ``images`` (indices), or of
    images evenly spread over the data set. ``note`` says below which cells these are."""
    if images is None:
        images = np.linspace(0, len(dataset) - 1, min(max_images, len(dataset))).round().astype(int)
    pairs = []
    for i in images[:max_images]:
        sample, found = dataset.samples[i], cells[i]
        image = read_image(sample.image)
        pairs.append(plots.draw_cells(image, sample.boxes, sample.labels, dataset.types))
        pairs.append(plots.draw_cells(image, found.boxes, found.labels, dataset.types, found.scores))
    return plots.captioned(plots.contact_sheet(pairs, columns=4), note, step=NOTE_STEP)


def read_for_crops(
    path: Path, boxes: Sequence[Sequence[float]], side: int, max_pixels: float = MAX_PIXELS
) -> tuple[np.ndarray, float]:
    """An image, reduced as far as the :func:`crop` of each of these boxes keeps ``side`` pixels, or a slide; and its
    scale. Raises LeukoError."""
    file = open_image(path, max_pixels)
    smallest = min(max(x1 - x0, y1 - y0, 1) for x0, y0, x1, y1 in boxes) * CONTEXT
    longer = max(file.header[:2])
    image = file.decode(round(longer * min(side / smallest, 1)))
    return image, max(image.shape[:2]) / longer


def crop(image: np.ndarray, box: Sequence[float], side: int, rgb: Sequence[int]) -> np.ndarray:
    """The surroundings of a box (xyxy in pixels of ``image`` [H, W, 3] uint8) with the box in this colour, [side, side,
    3] uint8; grey beyond the border of the image."""
    x0, y0, x1, y1 = (float(v) for v in box)
    scale = side / (CONTEXT * max(x1 - x0, y1 - y0, 1))
    size = max(round(side / scale), 1)
    left, top = round((x0 + x1 - size) / 2), round((y0 + y1 - size) / 2)
    part = image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    square = np.full((size, size, 3), 205, np.uint8)
    at = max(-top, 0), max(-left, 0)
    square[at[0] : at[0] + part.shape[0], at[1] : at[1] + part.shape[1]] = part
    tile = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if size > side else cv2.INTER_LINEAR)
    corners = ((np.array([x0, y0, x1, y1]) - [left, top, left, top]) * side / size).round().astype(int).tolist()
    return cv2.rectangle(tile, corners[:2], corners[2:], list(map(int, rgb)), max(1, side // 90))


def labelled(sample: Sample, types: Sequence[str], cells: Sequence[TypedBox], side: int) -> np.ndarray:
    """An image with its labels in thin lines and ``cells`` (type and box, xyxy in its pixels) emphasised; its longer
    side is ``side`` pixels. Raises LeukoError."""
    small = fit(read_image(sample.image, side), side)
    scale = max(small.shape[:2]) / max(sample.width, sample.height)
    picture = np.ascontiguousarray(small)
    marked = np.array([box for _, box in cells], dtype=np.float32).reshape(-1, 4)
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        if not (marked == box).all(1).any():
            _outline(picture, box * scale, colour(types[label], int(label)), 1)
    for (name, _), box in zip(cells, marked * scale, strict=True):
        _outline(picture, box, (255, 255, 255), 5)  # under the line, so that it stands out on any ground
        _outline(picture, box, colour(name, types.index(name)), 3)
    return picture


def _outline(picture: np.ndarray, box: np.ndarray, rgb: tuple[int, int, int], line: int) -> None:
    """Draw a box [4] xyxy into the picture; a point is grown, and what lies outside moved, so that it shows."""
    low, high = np.nan_to_num(box, posinf=1e6, neginf=-1e6).reshape(2, 2)
    limit, middle, half = np.array(picture.shape[1::-1]), (low + high) / 2, np.maximum(high - low, LEAST_SIDE) / 2
    low, high = np.clip(middle - half, 1, limit - LEAST_SIDE), np.clip(middle + half, LEAST_SIDE, limit - 2)
    cv2.rectangle(picture, low.round().astype(int).tolist(), high.round().astype(int).tolist(), rgb, line)


def consensus(dataset: Dataset, suspects: Sequence[Suspect], max_images: int = 24) -> np.ndarray:
    """Consensus errors in their order, as many of each kind: the place, its label, and the vote of each model."""
    of_kind: Counter[str] = Counter()
    tiles = []
    for suspect in suspects:
        of_kind[suspect.kind] += 1
        if of_kind[suspect.kind] <= max_images // 3:
            tiles.append(_suspect(dataset, suspect))
    return plots.grid(tiles, columns=6)


def _suspect(dataset: Dataset, suspect: Suspect) -> np.ndarray:
    """The surroundings of a suspect with its box, and what the label and the models say in words below it."""
    sample, types = dataset.samples[suspect.image], dataset.types
    x0, y0, x1, y1 = suspect.box
    half = max(x1 - x0, y1 - y0) * 0.9
    left, top = (max(int(middle - half), 0) for middle in ((x0 + x1) / 2, (y0 + y1) / 2))
    crop = read_image(sample.image)[top : int((y0 + y1) / 2 + half) + 1, left : int((x0 + x1) / 2 + half) + 1]
    label = types.index(suspect.label or suspect.says)
    drawn = plots.draw_cells(crop, np.array([[x0 - left, y0 - top, x1 - left, y1 - top]]), np.array([label]), types)
    title = {
        "type": f"label {suspect.label}, models say {suspect.says}",
        "unlabelled": f"no label, models say {suspect.says}",
        "missed": f"label {suspect.label}, no model finds it",
    }[suspect.kind]
    votes = [f"{v.model}: {f'{v.type} {v.score:.2f}' if v.type else 'nothing'}" for v in suspect.votes]
    return plots.captioned(plots.contact_sheet([drawn], 1), title, sample.image.name[:34], *votes)
