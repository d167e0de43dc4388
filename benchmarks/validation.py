"""What share of ``leuko val``'s time lies outside the network, on 1,000 images with 100 cells each.

    python benchmarks/validation.py

The command itself runs, from the labels on disk to predictions.json, but with a stub in the network's place, which
gives 100 detections per image. The network's time is then added: the seconds per image that ResNet-50 FCOS takes
here, measured on three or given. Two things make the share too high rather than too low: loader processes decode
while a real network runs, and the network measured is untrained, which spares it the box tower.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch

from leuko import cells
from leuko import val as command
from leuko.config import ValOptions
from leuko.detections import Detections
from leuko.engine import ensemble
from leuko.engine.checkpoint import load_weights, save_weights
from leuko.engine.ensemble import EnsembleMember
from leuko.engine.network import prepare
from leuko.models import create

SIDE = 600  # pixels
DISTINCT = 8  # JPEGs; the others are hard links to them
TYPES = [t.code for t in cells.TYPES]


class Stub:
    """A detector that knows its answers: the cells of each image in turn, moved by a few pixels, with random scores."""

    image_size, max_detections, is_on_cpu = SIDE, 100, True

    def __init__(self, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
        moved = np.clip(boxes + rng.normal(0, 4, boxes.shape), 0, SIDE).astype(np.float32)
        moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
        scores = -np.sort(-rng.uniform(0.05, 1, labels.shape).astype(np.float32))
        self.answers = [Detections(*answer) for answer in zip(moved, scores, labels, strict=True)]
        self.parameters, self.calls = 0, -1  # the first call is a warm-up

    def detect(self, views: list[np.ndarray]) -> list[Detections]:
        answer = self.answers[max(self.calls, 0)]
        self.calls += 1
        return [answer] * len(views)


def write_data(folder: Path, images: int, cells_each: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A COCO set of smooth noise; returns its boxes [images, cells, 4] and labels [images, cells]."""
    corner = rng.uniform(0, SIDE - 110, (images, cells_each, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 110, corner.shape)], axis=2)
    labels = rng.integers(0, len(TYPES), (images, cells_each))
    (folder / "images").mkdir()
    for i in range(images):
        file = folder / "images" / f"{i}.jpg"
        if i < DISTINCT:
            noise = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            cv2.imwrite(str(file), cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
        else:
            os.link(folder / "images" / f"{i % DISTINCT}.jpg", file)
    xywh = np.concatenate([corner, boxes[..., 2:] - corner], axis=2).reshape(-1, 4).round(2).tolist()
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(images)],
        "annotations": [
            {"id": n + 1, "image_id": n // cells_each, "category_id": int(label) + 1, "bbox": box, "iscrowd": 0}
            for n, (box, label) in enumerate(zip(xywh, labels.flat, strict=True))
        ],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(TYPES)],
    }
    (folder / "test.json").write_text(json.dumps(document))
    return boxes, labels


def network_seconds_here() -> float:
    """Median seconds per image of ResNet-50 FCOS at 600 px, as ``leuko val`` runs it."""
    model = prepare(create("fcos", len(TYPES), "resnet50", image_size=SIDE), torch.device("cpu"))
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            model([torch.rand(3, SIDE, SIDE)])
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


@contextlib.contextmanager
def timing(seconds: dict[str, float], part: str, place: object, function: str) -> Iterator[None]:
    """Within the block, the time spent in ``place.function`` is added to ``seconds[part]``."""
    original: Callable = getattr(place, function)

    def timed(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        result = original(*args, **kwargs)
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
        return result

    with mock.patch.object(place, function, timed):
        yield


def validate(folder: Path, stub: Stub) -> dict[str, float]:
    """Run ``leuko val`` with the stub; seconds of each of its parts and of the whole."""
    model = create("fcos", len(TYPES), "resnet50", image_size=SIDE)
    save_weights(folder / "fcos.safetensors", model.recipe, model.state_dict(), TYPES)
    member = EnsembleMember(stub, (SIDE,), name="stub", weights=load_weights(folder / "fcos.safetensors"))
    options = ValOptions(data=str(folder), weights="stub", save=str(folder / "runs"), device="cpu")
    seconds: dict[str, float] = {}
    parts = {
        "read the labels": (command.source, "load"),
        "decode the images": (command, "predict_by"),
        "evaluate": (command.coco, "evaluate"),
        "write the results": (command, "write"),
        "curves, intervals, pictures": (command, "write_results"),
        "the page": (command.pages, "build"),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(ensemble, "load_members", lambda *_: [member]))
        for part, (place, function) in parts.items():
            stack.enter_context(timing(seconds, part, place, function))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        start = time.perf_counter()
        command.val(options)
        seconds["all"] = time.perf_counter() - start
    return seconds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=100, help="cells, and detections, an image")
    parser.add_argument("--network-seconds", type=float, help="seconds per image of the network; measured if not given")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    each = options.network_seconds or network_seconds_here()
    with tempfile.TemporaryDirectory() as folder:
        boxes, labels = write_data(Path(folder), options.images, options.cells, rng)
        seconds = validate(Path(folder), Stub(boxes, labels, rng))
    whole = seconds.pop("all")
    network = each * options.images
    for part, value in {**seconds, "the rest": whole - sum(seconds.values()), "outside the network": whole}.items():
        print(f"{part:<20} {value:8.2f} s")
    print(f"{'network':<20} {network:8.2f} s  ({each:.3f} s per image)")
    print(f"share outside the network: {whole / (whole + network):.1%}")


if __name__ == "__main__":
    main()
