"""`python -m leuko.predict`: find the leukocytes on new images, and count them by type."""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("predict")

import glob
import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .config import PredictOptions
from .data.formats.sidecar import original_of
from .data.images import image_size, is_image, list_images, read_image
from .engine.ensemble import Fusion, finished_runs, load_members
from .engine.evaluate import EnsembleMember, choose_device, detect
from .errors import LeukoError
from .io import write_csv, write_json, write_yaml
from .metrics import differential
from .report import plots, run, table


def predict(options: PredictOptions) -> Path:
    """Predict by these options and return the folder of results: pictures, ``cells.json``, ``cells.csv`` and the
    differential count a folder of images and an image. Raises LeukoError for what the user can mend.
    """
    options.check()
    device = choose_device(options.device)
    paths, skipped = find_images(options.source)
    sources = [options.weights] if options.ensemble is None else options.ensemble or finished_runs(options.project)
    members = load_members(sources, device, options.imgsz or ())
    types = members[0].weights.types
    for member in members:
        member.labels_in(types)
    if options.calibrated:
        for member in members:
            member.calibrated([])
    fusion = Fusion(options.fusion_iou, options.fusion_score, options.fusion_weights)
    if len(members) > 1:
        fusion.votes(members)  # refused before anything is written
    originals = {path: original(path) for path in paths} if options.originals else {}
    name = "ensemble" if len(members) > 1 else members[0].name
    folder = run.new_run(options.save, options.name or name, "images")
    write_yaml(folder / "args.yaml", asdict(options))
    cells, unreadable, kept = [], [], {}
    for path, picture in tqdm(named_pictures(paths), total=len(paths), desc="predicting", unit="image"):
        try:
            image = read_image(path)
        except LeukoError as e:
            unreadable.append(str(e))
            continue
        found = find_cells(members, image, types, device, fusion, options.calibrated)
        found = above(found, options.threshold)
        if options.originals:
            try:
                path, image, found = on_original(originals[path], image, found)
            except LeukoError as e:
                unreadable.append(str(e))
                continue
        kept[path] = found
        cells += listed(path, found, types)
        drawn = plots.draw_cells(image, found.boxes, found.labels, types, found.scores)
        plots.write_image(folder / "images" / picture, drawn)
    if not kept:
        shutil.rmtree(folder)
        raise LeukoError(f"{options.source}: none of its {len(paths)} files is a readable image ({unreadable[0]})")
    write(folder, options, types, cells, unreadable, skipped, kept)
    return folder


def find_images(source: str) -> tuple[list[Path], list[Path]]:
    """The files that ``--source`` means: an image, the files of a folder named like images, or those of a pattern.

    The second list holds the folder's other files, which are skipped.
    """
    path, others = Path(source), []
    if path.is_dir():
        found = list_images(path, recursive=True)
        others = sorted({p for p in path.rglob("*") if p.is_file()} - set(found))
        remedy = "put images into it"
    elif path.exists():
        found = [path]
    else:
        found = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if Path(p).is_file()]
        remedy = "check the path, and put a pattern in quotes"
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


def find_cells(
    members: Sequence[EnsembleMember],
    image: np.ndarray,
    types: Sequence[str],
    device: torch.device,
    fusion: Fusion,
    calibrated: bool = False,
) -> dict[str, np.ndarray]:
    """Detections of one image [H, W, 3] uint8 RGB, fused if there are several members."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    found = [member.relabel(detect(member.model, [pixels], device), types) for member in members]
    if calibrated:
        found = [member.calibrated(f) for member, f in zip(members, found, strict=True)]
    if len(members) == 1:
        return found[0][0]
    return fusion(members, found, [(image.shape[1], image.shape[0])])[0]


def original(path: Path) -> Path:
    """The original of a resized image; LeukoError where none is noted, or it is not there as it was."""
    link = original_of(path)
    if link is None:
        raise LeukoError(f"{path}: no original is noted for it; --originals is for what leuko data resize made")
    found, width, height = link
    if image_size(found) != (width, height):
        raise LeukoError(f"{found}: is no longer {width}x{height} pixels as when it was resized; resize it anew")
    return found


def on_original(
    path: Path, image: np.ndarray, found: dict[str, np.ndarray]
) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    """The original of a resized image: its path, its pixels, and the detections on it."""
    whole = read_image(path)
    scale = np.array([whole.shape[1] / image.shape[1], whole.shape[0] / image.shape[0]] * 2, dtype=np.float32)
    return path, whole, {**found, "boxes": found.boxes * scale}


def above(found: dict[str, np.ndarray], threshold: float) -> dict[str, np.ndarray]:
    """The detections with at least this score."""
    good = found.scores >= threshold
    return {key: values[good] for key, values in found.items()}


def listed(path: Path, found: dict[str, np.ndarray], types: Sequence[str]) -> list[dict]:
    """One row a cell: image, type, score, and the box in pixels."""
    return [
        {
            "image": str(path),
            "type": types[label],
            "score": round(float(score), 4),
            **dict(zip(("x0", "y0", "x1", "y1"), (round(float(v), 2) for v in box), strict=True)),
        }
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
    ]


def write(
    folder: Path,
    options: PredictOptions,
    types: Sequence[str],
    cells: list[dict],
    unreadable: list[str],
    skipped: list[Path],
    kept: dict[Path, dict[str, np.ndarray]],
) -> None:
    """The files of a prediction, and the count on the terminal."""
    groups: dict[str, list[dict[str, np.ndarray]]] = {}
    for path, found in kept.items():
        groups.setdefault(str(path.parent), []).append(found)
        groups[str(path)] = [found]
    counts = [
        {"of": of, "images": len(found), **share(s)}
        for of, found in sorted(groups.items())
        for s in differential.count(found, types, options.threshold)
    ]
    not_read = {"unreadable": unreadable, "skipped": skipped}
    write_json(
        folder / "cells.json", {"threshold": options.threshold, "types": list(types), "cells": cells, **not_read}
    )
    write_csv(folder / "cells.csv", cells, columns=("image", "type", "score", "x0", "y0", "x1", "y1"))
    write_csv(folder / "differential.csv", counts)
    total = differential.count(list(kept.values()), types, options.threshold)
    plots.differential_chart(total, folder / "differential.png")
    print(f"{len(kept)} images, {len(cells)} cells\n\n{table.differential(total, options.threshold)}")
    for line in unreadable:
        print(f"not read: {line}", file=sys.stderr)
    if skipped:
        print(f"skipped: {len(skipped)} files not named like images, such as {skipped[0]}", file=sys.stderr)
    print(f"\nresults: {folder}")


def share(s: differential.Share) -> dict:
    """One row of the differential count: percent, and its 95 % Wilson interval."""
    return {"type": s.type, "cells": s.cells, "percent": s.percent, "low95": s.low, "high95": s.high}
