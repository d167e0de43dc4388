"""``leuko predict``: find the leukocytes on new images, and count them by type."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("predict")

import contextlib
import glob
import itertools
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from . import __version__
from .config import PredictOptions
from .data.formats.sidecar import original_of
from .data.header import ImageHeader
from .data.images import image_size, is_hidden, is_image, list_images, memory_errors_as
from .data.loader import LoadedImage, file_images, worker_count
from .data.tools.found import of_images, write_labels
from .detections import Detections
from .engine.ensemble import EnsembleMember, Fusion, finished_runs, load_members
from .engine.evaluate import choose_device
from .errors import LeukoError, one_line
from .io import digest, make_folder, write_bytes, write_csv, write_json, write_yaml
from .metrics import differential
from .report import plots, tables
from .report.journal import Journal


def predict(options: PredictOptions) -> Path:
    """Predict by these options and return the folder of results: pictures, ``cells.json``, ``cells.csv`` and the
    differential count per folder of images and per image. Raises LeukoError for what the user can fix.

    What is found goes into a journal, image by image, of which the results are made in the end. Where the process ends
    before, the same options go on with it.
    """
    options.check()
    source = find_images(options.source)
    models = Models.of(options)
    originals = {path: original(path, options.max_pixels) for path in source.images} if options.originals else {}
    about = {"leuko": __version__, **asdict(options), "workers": None, "place": os.getcwd()}
    weights = [digest(member.weights.path) for member in models.members]
    journal = Journal.open(options.save, options.name or models.name, about | {"digests": weights})
    write_yaml(journal.folder / "args.yaml", asdict(options))
    found = predict_images(models, source.images, originals, journal, options)
    errors = [str(each) for each in found if isinstance(each, LeukoError)]
    if len(errors) == len(found):
        shutil.rmtree(journal.folder)
        raise LeukoError(f"{options.source}: none of its {len(found)} files is a readable image ({errors[0]})")
    predictions = [each for each in found if isinstance(each, ImagePrediction)]
    write(journal.folder, models.types, options, predictions, source, errors)
    if options.labels:
        images = of_images([(p.path, p.size) for p in predictions], models.types)
        cells = [p.cells for p in predictions]
        lines = write_labels(journal.folder / "labels", options.labels, images, cells, "predicted", models.name)
        print("\n".join(lines))
    journal.finish()
    print(f"\nresults: {one_line(str(journal.folder))}")
    return journal.folder


@dataclass(frozen=True)
class ImagePrediction:
    """What was found on an image: its file (with ``--originals`` that of its original), ``size`` (width, height), the
    cells, and what its file says of itself, with the ``bits`` that its channels use."""

    path: Path
    size: tuple[int, int]
    cells: Detections
    header: ImageHeader
    bits: int

    @classmethod
    def of(cls, record: dict, types: Sequence[str]) -> ImagePrediction:
        """From a record of the journal."""
        cells = Detections(record["boxes"], record["scores"], record["labels"], tuple(types))
        if (
            not len(cells.boxes)
            == len(cells.scores)
            == len(cells.labels)
            == np.isin(cells.labels, range(len(types))).sum()
        ):
            raise ValueError("numbers of boxes, scores and labels")
        return cls(Path(record["path"]), tuple(record["size"]), cells, ImageHeader(*record["header"]), record["bits"])


def predict_images(
    models: Models, paths: Sequence[Path], originals: dict[Path, Path], journal: Journal, options: PredictOptions
) -> list[ImagePrediction | LeukoError]:
    """What is found on each image, and its picture in the journal's folder; or the error for which it is not read.
    Images that the journal has, with their picture, and that have not changed since are not looked at again."""
    folder = make_folder(journal.folder / "images")
    known, records, found = {}, {}, {}
    for record in journal.records:
        with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):  # one that is damaged is none
            known[record["picture"]] = record, ImagePrediction.of(record, models.types)
    for path, picture in named_pictures(paths):
        about = {"image": str(path), "picture": picture, "stat": stat_of(path, originals.get(path, path))}
        record, prediction = known.get(picture, ({}, None))
        if about.items() <= record.items() and (folder / picture).exists():
            records[path], found[path] = record, prediction
        else:
            records[path] = about
    todo = [path for path in paths if path not in found]
    if found:
        print(f"goes on in {one_line(str(journal.folder))}: {len(found)} of {len(paths)} images are done")
    images = file_images(todo, models.sizes, min(worker_count(options.workers), len(todo) // 8), options.max_pixels)
    bar = tqdm(images, "predicting", len(paths), unit="image", initial=len(found))
    for path, image in zip(todo, bar, strict=True):
        record = records[path]
        try:
            if isinstance(image, LeukoError):
                raise image
            with memory_errors_as(path):
                cells = models(image).above(options.threshold)
                if options.originals:
                    image, cells = on_original(originals[path], image, cells, options.max_pixels)
                drawn = plots.draw_cells(image.pixels, cells.boxes, cells.labels, models.types, cells.scores)
                image.pixels = None  # where it is large, one copy is enough
                data = plots.encoded(drawn, Path(record["picture"]).suffix)
        except LeukoError as error:
            found[path] = error
            continue
        write_bytes(folder / record["picture"], data)
        record |= {"path": str(image.path), "size": image.size, "header": image.header, "bits": image.bits}
        record |= {"boxes": cells.boxes, "scores": cells.scores, "labels": cells.labels}
        found[path] = ImagePrediction.of(journal.append(record), models.types)
    for picture in {p.name for p in folder.iterdir()} - {r["picture"] for r in records.values() if "boxes" in r}:
        (folder / picture).unlink()  # of an image that is no longer there
    return [found[path] for path in paths]


# ---------------------------------------------------------------- images


class Source(NamedTuple):
    """The files that ``--source`` means: those taken for images, a folder's others, and hidden images."""

    images: list[Path]
    skipped: list[Path]
    hidden: list[Path]


def find_images(source: str) -> Source:
    """An image, the files of a folder named like images, or those of a pattern; LeukoError where there is none."""
    path = Path(source)
    remedy = "check the path, and put a pattern in quotes"
    hidden: list[Path] = []
    skipped: list[Path] = []
    if path.is_dir():
        found = list_images(path, recursive=True, hidden=hidden)
        others = {p for p in path.rglob("*") if p.is_file()} - {*found, *hidden}
        skipped = sorted(p for p in others if not any(map(is_hidden, p.relative_to(path).parts)))
        remedy = "put images into it"
    elif path.exists():
        found = [path]
    else:
        named = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(p)]
        hidden = [p for p in named if any(is_hidden(part) and part not in path.parts for part in p.parts)]
        found = [p for p in named if p not in set(hidden)]
    if not found:
        passed_over = f" but {len(hidden)} hidden ones" if hidden else ""
        raise LeukoError(f"{source}: no image there{passed_over}; {remedy}")
    return Source(found, skipped, hidden)


def stat_of(*paths: Path) -> list[list[int]]:
    """Size and time of files: what shows that they have changed; [] for one that cannot be asked."""
    stats = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            stats.append([status.st_size, status.st_mtime_ns])
    return stats


def named_pictures(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each file with the name of its picture; files of one name in different folders get a number."""
    named: dict[str, Path] = {}
    for path in paths:
        suffix = path.suffix.lower() if is_image(path) else ".jpg"
        names = (f"{path.stem}{suffix}" if i == 1 else f"{path.stem}-{i}{suffix}" for i in itertools.count(1))
        named[next(name for name in names if name not in named)] = path
    return [(path, name) for name, path in named.items()]


def original(path: Path, max_pixels: float) -> Path:
    """The original of a resized image; LeukoError where none is noted, or it is not there as it was."""
    link = original_of(path)
    if link is None:
        raise LeukoError(f"{path}: no original is noted for it; --originals is for what leuko data resize made")
    found, width, height = link
    if image_size(found, max_pixels) != (width, height):
        raise LeukoError(f"{found}: is no longer {width}x{height} pixels as when it was resized; resize it anew")
    return found


def on_original(path: Path, image: LoadedImage, cells: Detections, max_pixels: float) -> tuple[LoadedImage, Detections]:
    """The original of a resized image, and the detections on it."""
    whole = LoadedImage.of_file(path, (), with_pixels=True, max_pixels=max_pixels)
    scale = np.array([new / old for new, old in zip(whole.size, image.size, strict=True)] * 2, dtype=np.float32)
    return whole, replace(cells, boxes=cells.boxes * scale)


# ---------------------------------------------------------------- cells


@dataclass(frozen=True)
class Models:
    """The detectors of a prediction, and how they are fused if there are several."""

    members: list[EnsembleMember]
    device: torch.device
    fusion: Fusion
    calibrated: bool

    @classmethod
    def of(cls, options: PredictOptions) -> Models:
        """The models that the options name; LeukoError where they do not fit each other or the options."""
        device = choose_device(options.device)
        named = [options.weights] if options.ensemble is None else options.ensemble or finished_runs(options.project)
        members = load_members(named, device, options.imgsz or (), options.max_detections)
        for member in members:
            member.labels_in(members[0].weights.types)
            if options.calibrated:
                member.calibrated([])
        fusion = Fusion(options.fusion_iou, options.fusion_score, options.fusion_weights)
        if len(members) > 1:
            fusion.votes(members)
        return cls(members, device, fusion, options.calibrated)

    @property
    def name(self) -> str:
        """What the folder of results is called."""
        return "ensemble" if len(self.members) > 1 else self.members[0].name

    @property
    def types(self) -> list[str]:
        """The types in the order of the labels."""
        return self.members[0].weights.types

    @property
    def sizes(self) -> list[int]:
        """The image sizes that they look at."""
        return list(dict.fromkeys(size for member in self.members for size in member.sizes))

    def __call__(self, image: LoadedImage) -> Detections:
        """Detections of one image, fused if there are several members."""
        predictions = [member.relabel(member.detect([image], self.device), self.types) for member in self.members]
        if self.calibrated:
            predictions = [member.calibrated(p) for member, p in zip(self.members, predictions, strict=True)]
        if len(self.members) == 1:
            return predictions[0][0]
        return replace(self.fusion(self.members, predictions, [image.size])[0], types=tuple(self.types))


def rows_of(path: Path, cells: Detections) -> list[dict]:
    """One row per cell: image, type, score, and the box in pixels."""
    return [
        {
            "image": str(path),
            "type": cell.type,
            "score": round(cell.score, 4),
            **dict(zip(("x0", "y0", "x1", "y1"), (round(v, 2) for v in cell.box), strict=True)),
        }
        for cell in cells
    ]


def notes(predictions: Sequence[ImagePrediction], source: Source, max_detections: int) -> list[str]:
    """What a user may not expect of the images: a line of each kind, with its count."""
    turned = [p.path for p in predictions if p.header.orientation != 1]
    stacks = [p for p in predictions if p.header.pages > 1]
    stretched = [p for p in predictions if p.bits < p.header.depth]
    bits = ", ".join(str(bits) for bits in sorted({p.bits for p in stretched}))
    kinds = {
        f"skipped: {len(source.skipped)} files not named like images": source.skipped,
        f"passed over: {len(source.hidden)} images that are hidden or in hidden folders": source.hidden,
        f"not turned: {len(turned)} images with an EXIF orientation, cells lie on the pixels as stored": turned,
        f"first page only: {sum(p.header.pages - 1 for p in stacks)} more pages of {len(stacks)} TIFFs are left out": [
            p.path for p in stacks
        ],
        f"brightened: {len(stretched)} images of 16 bits use only {bits}, and are scaled by these": [
            p.path for p in stretched
        ],
    }
    full = tables.at_cap([p.path for p in predictions if len(p.cells) >= max_detections], max_detections)
    return [*filter(None, [full]), *(one_line(f"{text}, such as {paths[0]}") for text, paths in kinds.items() if paths)]


def write(
    folder: Path,
    types: Sequence[str],
    options: PredictOptions,
    predictions: Sequence[ImagePrediction],
    source: Source,
    errors: Sequence[str],
) -> None:
    """The files of a prediction; on the terminal the count, and what was not read or not taken as it is."""
    kept = {p.path: p.cells for p in predictions}
    cells = [row for path, found in kept.items() for row in rows_of(path, found)]
    groups: dict[str, list[Detections]] = {}
    for path, found in kept.items():
        groups.setdefault(str(path.parent), []).append(found)
        groups[str(path)] = [found]
    counts = [
        {"of": of, "images": len(found), "type": s.type, "cells": s.cells}
        | {"percent": s.percent, "low95": s.low, "high95": s.high}
        for of, found in sorted(groups.items())
        for s in differential.count(found, types, options.threshold)
    ]
    noted = notes(predictions, source, options.max_detections)
    document = {"threshold": options.threshold, "types": list(types), "cells": cells, "unreadable": errors}
    document |= {"skipped": source.skipped, "hidden": source.hidden, "notes": noted}
    write_json(folder / "cells.json", document)
    write_csv(folder / "cells.csv", cells, columns=("image", "type", "score", "x0", "y0", "x1", "y1"))
    write_csv(folder / "differential.csv", counts)
    total = differential.count(list(kept.values()), types, options.threshold)
    plots.differential_chart(total, folder / "differential.png")
    print(f"{len(kept)} images, {len(cells)} cells\n\n{tables.differential(total, options.threshold)}")
    for line in [*(f"not read: {error}" for error in errors), *noted]:
        print(line, file=sys.stderr)
