"""Pictures of images with their cells: boxes drawn into them, cells cut out of them, sheets of several.

Images are RGB uint8 arrays [H, W, 3]. A type has the same colour in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..cells import UNCLASSIFIED, colour
from ..config import MAX_PIXELS
from ..data.dataset import Dataset, Sample
from ..data.fit import fit
from ..data.images import open_image, read_image
from ..data.slides import Slide
from ..data.tools.findings import TypedBox
from ..detections import Detections
from ..io import write_bytes
from ..metrics.confusion import Pairing

if TYPE_CHECKING:
    from ..data.training import TrainingItem

MOST_SIDE = 8192  # pixels of a predicted field's picture
SHEET_CELL = 400  # pixels: the longer side of an image on a contact sheet
NOTE_HEIGHT = 26  # pixels: the height of a line below a sheet
CONTEXT = 1.6  # side of a crop, in longer sides of its box
LEAST_SIDE = 8  # pixels of a box in a small picture


# ---------------------------------------------------------------- boxes in an image


def draw_cells(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    types: Sequence[str],
    scores: np.ndarray | None = None,
    tags: Sequence[str] = (),
) -> np.ndarray:
    """Return a copy of the image with each box in its type's colour and a tag, "NG" or "NG 0.93", or the given one.

    Lines and letters grow with the image. A tag is above its box if there is room and inside it otherwise, and never
    leaves the image; in an image smaller than the tag, only the box's colour tells the type.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    line = max(1, round(math.sqrt(shorter) / 9))  # 2 pixels at 320, 3 at 600, 6 at 3264
    font = ImageFont.load_default(size=max(12.0, shorter / 32))
    picture = np.array(image)
    for i in reversed(range(len(boxes))):  # the highest score last, on top
        name = types[labels[i]]
        rgb = colour(name, int(labels[i]))
        x0, y0, x1, y1 = np.clip(boxes[i], 0, [width, height, width, height]).round().astype(int).tolist()
        right, bottom = min(max(x1 - 1, x0), width - 1), min(max(y1 - 1, y0), height - 1)
        x0, y0 = min(x0, right), min(y0, bottom)
        inside = picture[y0 : bottom + 1, x0 : right + 1]
        for edge in (inside[:line], inside[-line:], inside[:, :line], inside[:, -line:]):
            edge[:] = rgb
        tag = tags[i] if tags else name if scores is None else f"{name} {scores[i]:.2f}"
        _draw_tag(picture, tag, (x0, y0), rgb, font)
    return picture


def draw_classified(image: np.ndarray | Slide, cells: Detections, threshold: float) -> np.ndarray:
    """Like :func:`draw_cells`, with unclassified cells in grey with a question mark, and the threshold in a corner. Of
    a slide, or an image of more than ``MOST_SIDE`` pixels, the picture is smaller."""
    if (longer := max(image.shape[:2])) > MOST_SIDE or isinstance(image, Slide):
        image = fit(image, min(longer, MOST_SIDE))
        cells = replace(cells, boxes=cells.boxes * np.float32(max(image.shape[:2]) / longer))
    types = [*cells.types, UNCLASSIFIED]
    labels = np.where(cells.why == "", cells.labels, len(cells.types))
    names = [f"{cells.types[k]}{'?' * bool(why)}" for k, why in zip(cells.labels, cells.why, strict=True)]
    tags = [f"{name} {score:.2f}" for name, score in zip(names, cells.scores, strict=True)]
    picture = draw_cells(image, cells.boxes, labels, types, tags=tags)
    font = ImageFont.load_default(size=max(10.0, min(image.shape[:2]) / 40))
    _draw_tag(picture, f"score from {threshold:.2f}", (0, image.shape[0]), (255, 255, 255), font)
    return picture


def _draw_tag(picture: np.ndarray, text: str, corner: tuple[int, int], rgb: tuple, font: Any) -> None:
    height, width = picture.shape[:2]
    left, top, right, bottom = font.getbbox(text)
    pad = max(2, round(font.size / 6))
    tag_width, tag_height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    if tag_width > width or tag_height > height:
        return
    x = min(corner[0], width - tag_width)
    y = corner[1] - tag_height if corner[1] >= tag_height else min(corner[1], height - tag_height)
    luminance = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    tag = Image.new("RGB", (tag_width, tag_height), rgb)
    ImageDraw.Draw(tag).text((pad - left, pad - top), text, fill="black" if luminance > 140 else "white", font=font)
    picture[y : y + tag_height, x : x + tag_width] = np.asarray(tag)


def labelled(
    sample: Sample, types: Sequence[str], cells: Sequence[TypedBox], side: int, max_pixels: float = MAX_PIXELS
) -> np.ndarray:
    """An image with its labels in thin lines and ``cells`` (type and box, xyxy in its pixels) emphasised; its longer
    side is ``side`` pixels. Raises LeukoError."""
    small = open_image(sample.image, max_pixels).view(side)
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


# ---------------------------------------------------------------- a cell of an image


def crops(
    path: Path,
    boxes: Sequence[Sequence[float]],
    colours: Sequence[Sequence[int]],
    side: int,
    max_pixels: float = MAX_PIXELS,
) -> list[np.ndarray]:
    """The :func:`crop` of each box of an image file, which is read reduced, as far as each keeps ``side`` pixels.
    Raises LeukoError."""
    file = open_image(path, max_pixels)
    smallest = min(max(x1 - x0, y1 - y0, 1) for x0, y0, x1, y1 in boxes) * CONTEXT
    longer = max(file.header[:2])
    image = file.decode(round(longer * min(side / smallest, 1)))
    scale = max(image.shape[:2]) / longer
    return [crop(image, np.array(box) * scale, side, rgb) for box, rgb in zip(boxes, colours, strict=True)]


def crop(image: np.ndarray | Slide, box: Sequence[float], side: int, rgb: Sequence[int] | None = None) -> np.ndarray:
    """The surroundings of a box (xyxy in pixels of ``image``), [side, side, 3], with the box in a colour if given;
    grey beyond the border of the image."""
    x0, y0, x1, y1 = (float(v) for v in box)
    size = max(round(CONTEXT * max(x1 - x0, y1 - y0, 1)), 1)
    left, top = round((x0 + x1 - size) / 2), round((y0 + y1 - size) / 2)
    part = image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    square = np.full((size, size, 3), 205, np.uint8)
    at = max(-top, 0), max(-left, 0)
    square[at[0] : at[0] + part.shape[0], at[1] : at[1] + part.shape[1]] = part
    tile = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if size > side else cv2.INTER_LINEAR)
    if rgb is None:
        return tile
    corners = ((np.array([x0, y0, x1, y1]) - [left, top, left, top]) * side / size).round().astype(int).tolist()
    return cv2.rectangle(tile, corners[:2], corners[2:], list(map(int, rgb)), max(1, side // 90))


# ---------------------------------------------------------------- several images


def captioned(image: np.ndarray, text: str, height: int = 0) -> np.ndarray:
    """An image with a line of text below it, on white, ``height`` pixels high (0: as the image is wide)."""
    width = image.shape[1]
    height = height or max(13, width // 15)
    band = Image.new("RGB", (width, height + height // 2), "white")
    ImageDraw.Draw(band).text((height // 2, 0), text, (30, 30, 30), ImageFont.load_default(0.8 * height))
    return np.vstack([image, np.asarray(band)])


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return one image with all ``images`` in rows of at most ``columns``, each fitted into a square, on white."""
    gap, columns = SHEET_CELL // 50, min(columns, len(images))
    step, rows = SHEET_CELL + gap, -(-len(images) // columns)
    sheet = np.full((rows * step + gap, columns * step + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        small = fit(image, SHEET_CELL)
        height, width = small.shape[:2]
        y, x = (i // columns) * step + gap, (i % columns) * step + gap
        y, x = y + (SHEET_CELL - height) // 2, x + (SHEET_CELL - width) // 2
        sheet[y : y + height, x : x + width] = small
    return sheet


def batch(items: Sequence[TrainingItem], types: Sequence[str]) -> np.ndarray:
    """A batch of training images with their labels."""
    drawn = [
        draw_cells(image.permute(1, 2, 0).numpy(), target["boxes"].numpy(), target["labels"].numpy(), types)
        for image, target, *_ in items
    ]
    return contact_sheet(drawn, columns=4)


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
        pairs.append(draw_cells(image, sample.boxes, sample.labels, dataset.types))
        pairs.append(draw_cells(image, found.boxes, found.labels, dataset.types, found.scores))
    return captioned(contact_sheet(pairs, columns=4), note, NOTE_HEIGHT)


# ---------------------------------------------------------------- files


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an RGB uint8 image in the format of its suffix (.jpg, .png ...), completely or not at all."""
    write_bytes(path, encoded(image.copy(), Path(path).suffix))


def encoded(image: np.ndarray, suffix: str, quality: int = 95) -> memoryview:
    """The bytes of a file with this suffix that holds an RGB uint8 image, whose memory is used for it; ``quality`` is a
    JPEG's."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
    _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR, image), options)
    return data.data
