"""``leuko predict``: find the leukocytes on new images, and count them by type."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("predict")

import glob
import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .config import PredictOptions
from .data.formats.sidecar import original_of
from .data.images import image_size, is_image, list_images, read_image
from .data.loader import LoadedImage, file_images, worker_count
from .data.tools.found import of_images, write_labels
from .detections import Detections
from .engine.ensemble import EnsembleMember, Fusion, finished_runs, load_members
from .engine.evaluate import choose_device
from .errors import LeukoError
from .io import write_csv, write_json, write_yaml
from .metrics import differential
from .report import plots, run, tables


def predict(options: PredictOptions) -> Path:
    """Predict by these options and return the folder of results: pictures, ``cells.json``, ``cells.csv`` and the
    differential count per folder of images and per image. Raises LeukoError for what the user can fix.
    """
    options.check()
    device = choose_device(options.device)
    paths, skipped = find_images(options.source)
    sources = [options.weights] if options.ensemble is None else options.ensemble or finished_runs(options.project)
    members = load_members(sources, device, options.imgsz or (), options.max_detections)
    types = members[0].weights.types
    for member in members:
        member.labels_in(types)
        if options.calibrated:
            member.calibrated([])
    fusion = Fusion(options.fusion_iou, options.fusion_score, options.fusion_weights)
    if len(members) > 1:
        fusion.votes(members)  # refused before anything is written
    originals = {path: original(path) for path in paths} if options.originals else {}
    name = "ensemble" if len(members) > 1 else members[0].name
    folder = run.new_run(options.save, options.name or name, "images")
    write_yaml(folder / "args.yaml", asdict(options))
    unreadable: list[str] = []
    kept: dict[Path, Detections] = {}
    sizes = list(dict.fromkeys(size for member in members for size in member.sizes))
    images = file_images(paths, sizes, min(worker_count(options.workers), len(paths) // 8))
    for (path, picture), image in zip(
        named_pictures(paths), tqdm(images, "predicting", len(paths), unit="image"), strict=True
    ):
        try:
            if isinstance(image, LeukoError):
                raise image
            cells = find_cells(members, image, types, device, fusion, options.calibrated).above(options.threshold)
            pixels = image.pixels
            if options.originals:
                path = originals[path]
                pixels, cells = on_original(path, pixels, cells)
        except LeukoError as e:
            unreadable.append(str(e))
            continue
        kept[path] = cells
        drawn = plots.draw_cells(pixels, cells.boxes, cells.labels, types, cells.scores)
        plots.write_image(folder / "images" / picture, drawn)
    if not kept:
        shutil.rmtree(folder)
        raise LeukoError(f"{options.source}: none of its {len(paths)} files is a readable image ({unreadable[0]})")
    write(folder, types, options.threshold, kept, {"unreadable": unreadable, "skipped": skipped})
    if options.labels:
        images = of_images(kept, types)
        print("\n".join(write_labels(folder / "labels", options.labels, images, kept.values(), "predicted", name)))
    if line := tables.at_cap([p for p, c in kept.items() if len(c) >= options.max_detections], options.max_detections):
        print(line)
    for line in unreadable:
        print(f"not read: {line}", file=sys.stderr)
    if skipped:
        print(f"skipped: {len(skipped)} files not named like images, such as {skipped[0]}", file=sys.stderr)
    print(f"\nresults: {folder}")
    return folder


# ---------------------------------------------------------------- images


def find_images(source: str) -> tuple[list[Path], list[Path]]:
    """The files that ``--source`` means: an image, the files of a folder named like images, or those of a pattern.

    The second list holds the folder's other files, which are skipped.
    """
    path, others = Path(source), []
    remedy = "check the path, and put a pattern in quotes"
    if path.is_dir():
        found = list_images(path, recursive=True)
        others = sorted({p for p in path.rglob("*") if p.is_file()} - set(found))
        remedy = "put images into it"
    elif path.exists():
        found = [path]
    else:
        found = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if Path(p).is_file()]
    if not found:
        raise LeukoError(f"{source}: no image there; {remedy}")
    return found, others


def named_pictures(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each file with the name of its picture; files of one name in different folders get a number."""
    named: dict[str, Path] = {}
    for path in paths:
        suffix = path.suffix.lower() if is_image(path) else ".jpg"
        names = (f"{path.stem}{suffix}" if i == 1 else f"{path.stem}-{i}{suffix}" for i in itertools.count(1))
        named[next(name for name in names if name not in named)] = path
    return [(path, name) for name, path in named.items()]


def original(path: Path) -> Path:
    """The original of a resized image; LeukoError where none is noted, or it is not there as it was."""
    link = original_of(path)
    if link is None:
        raise LeukoError(f"{path}: no original is noted for it; --originals is for what leuko data resize made")
    found, width, height = link
    if image_size(found) != (width, height):
        raise LeukoError(f"{found}: is no longer {width}x{height} pixels as when it was resized; resize it anew")
    return found


def on_original(path: Path, pixels: np.ndarray, cells: Detections) -> tuple[np.ndarray, Detections]:
    """The pixels of a resized image's original, and the detections on it."""
    whole = read_image(path)
    scale = np.array([whole.shape[1] / pixels.shape[1], whole.shape[0] / pixels.shape[0]] * 2, dtype=np.float32)
    return whole, replace(cells, boxes=cells.boxes * scale)


# ---------------------------------------------------------------- cells


def find_cells(
    members: Sequence[EnsembleMember],
    image: LoadedImage,
    types: Sequence[str],
    device: torch.device,
    fusion: Fusion,
    calibrated: bool = False,
) -> Detections:
    """Detections of one image, fused if there are several members."""
    predictions = [member.relabel(member.detect([image], device), types) for member in members]
    if calibrated:
        predictions = [member.calibrated(f) for member, f in zip(members, predictions, strict=True)]
    if len(members) == 1:
        return predictions[0][0]
    return replace(fusion(members, predictions, [image.size])[0], types=tuple(types))


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


def write(
    folder: Path, types: Sequence[str], threshold: float, kept: dict[Path, Detections], not_read: dict[str, list]
) -> None:
    """The files of a prediction, and the count on the terminal."""
    cells = [row for path, predictions in kept.items() for row in rows_of(path, predictions)]
    groups: dict[str, list[Detections]] = {}
    for path, predictions in kept.items():
        groups.setdefault(str(path.parent), []).append(predictions)
        groups[str(path)] = [predictions]
    counts = [
        {"of": of, "images": len(predictions), "type": s.type, "cells": s.cells}
        | {"percent": s.percent, "low95": s.low, "high95": s.high}
        for of, predictions in sorted(groups.items())
        for s in differential.count(predictions, types, threshold)
    ]
    write_json(folder / "cells.json", {"threshold": threshold, "types": list(types), "cells": cells, **not_read})
    write_csv(folder / "cells.csv", cells, columns=("image", "type", "score", "x0", "y0", "x1", "y1"))
    write_csv(folder / "differential.csv", counts)
    total = differential.count(list(kept.values()), types, threshold)
    plots.differential_chart(total, folder / "differential.png")
    print(f"{len(kept)} images, {len(cells)} cells\n\n{tables.differential(total, threshold)}")
