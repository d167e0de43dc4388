"""What a detector found, as labels that a person corrects: ``--labels`` of ``leuko val`` and ``leuko predict``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from ... import __version__
from ...detections import Detections
from ..dataset import Dataset, Sample
from ..formats import FORMATS, labelstudio
from ..header import image_header
from ..images import is_image

WRITERS = {**FORMATS, "labelstudio": labelstudio}


def of_images(sizes: Iterable[tuple[Path, tuple[int, int]]], types: Sequence[str]) -> Dataset:
    """A data set of images of these (width, height), without labels."""
    samples = [Sample(path, *size, [], [], number) for number, (path, size) in enumerate(sizes, 1)]
    return Dataset(list(types), samples)


def write_labels(
    folder: Path,
    formats: Sequence[str],
    images: Dataset,
    predictions: Iterable[Detections],
    split: str,
    model: str,
) -> list[str]:
    """Write the predictions of a data set's images as the labels of ``split`` into ``folder/FORMAT``, a data set of its
    own whose images are linked or copied; each cell's score is its attribute ``score``.

    Returns what a person must know, in lines; raises LeukoError.
    """
    samples = [
        replace(
            sample,
            boxes=found.boxes,
            labels=found.labels,
            crowd=None,
            cell_factors=[],
            attributes=[{"score": round(score, 4)} for score in found.scores.tolist()],
        )
        for sample, found in zip(images.samples, predictions, strict=True)
    ]
    named = [sample for sample in samples if is_image(sample.image)]
    for form in dict.fromkeys(formats):
        version = {"model_version": f"{model}, leuko {__version__}"} if form == "labelstudio" else {}
        found = Dataset(images.types, named, images.category_ids)
        WRITERS[form].write(found, folder / form, split, **version)
    cells = sum(len(sample.boxes) for sample in named)
    lines = [f"labels: {cells} cells on {len(named)} images as {', '.join(formats)}: {folder}"]
    if others := [sample.image for sample in samples if not is_image(sample.image)]:
        lines.append(f"labels: {len(others)} images left out, whose names are no image's, such as {others[0]}; rename")
    turned = sum(image_header(sample.image, inf).orientation > 1 for sample in named)
    if turned and set(formats) != {"labelstudio"}:
        where = "are in the pixels as they are stored, but for labelstudio"
        lines.append(f"labels: {turned} images have an EXIF orientation; boxes {where}")
    return lines
