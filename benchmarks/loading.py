"""leuko's loader against Ultralytics' and torchvision's reference pipeline: images a second for training at 600 px.

    python benchmarks/loading.py --repeats 5

Each reads the same JPEGs, scales them to 600 pixels and applies flips, a random scale and crop, and colour jitter, with
the same number of worker processes and no cache, by turns in one process. Two sets: originals of 3264 x 3264 and minis
of 600 x 600. Needs the `ultralytics` extra, or --peers torchvision.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from leuko.data import source, training
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import yolo
from leuko.data.transforms.compose import read_steps
from leuko.synth.render import render

SIDE, BATCH = 600, 8
TYPES = ["NG", "BG", "EG", "L", "M"]
Loader = Callable[[int], int]  # reads one epoch with this seed; returns the number of images


def make(folder: Path, side: int, images: int) -> Path:
    """A YOLO data set of ``images`` JPEGs: two rendered fields, turned and shifted so that no two are the same."""
    pixels = folder / f"{side}px"
    (pixels / "pictures").mkdir(parents=True)
    fields = [render(np.random.default_rng(i), side, side, TYPES[:3], side / 13).image for i in range(2)]
    samples = []
    for i in range(images):
        image = np.roll(np.rot90(fields[i % 2], i // 2), 37 * i, axis=0)
        path = pixels / "pictures" / f"{i:04d}.jpg"
        cv2.imwrite(str(path), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        box = [0.3 * side, 0.3 * side, 0.4 * side, 0.42 * side]
        samples.append(Sample(path, side, side, np.array([box]), np.array([i % 5]), i + 1))
    yolo.write(Dataset(TYPES, samples), pixels / "set", "train")
    return pixels / "set"


def leukos(data: Path, workers: int) -> Loader:
    """leuko's own, with its standard augmentation."""
    items = training.TrainingImages(source.load(data, "train"), SIDE, read_steps("standard"), 0)
    loader = training.TrainingLoader(items, BATCH, workers)
    return lambda seed: sum(len(batch) for batch in loader.epoch(seed))


class Reference(torch.utils.data.Dataset):
    """torchvision's reference pipeline for detection: Pillow, and transforms.v2 on tensors."""

    def __init__(self, data: Path):
        self.samples = source.load(data, "train").samples
        self.transforms = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(SIDE, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([v2.RandomAffine(0, scale=(0.7, 1.4), translate=(0.2, 0.2))], p=0.7),
                v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2)], p=0.7),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple:
        sample = self.samples[index]
        image = Image.open(sample.image).convert("RGB")
        size = (sample.height, sample.width)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(sample.boxes), format="XYXY", canvas_size=size)
        return self.transforms(image, {"boxes": boxes, "labels": torch.from_numpy(sample.labels)})


def torchvisions(data: Path, workers: int) -> Loader:
    """torchvision's."""
    about = {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "collate_fn": list}
    loader = torch.utils.data.DataLoader(Reference(data), **about)
    return lambda seed: sum(len(batch) for batch in loader)


def ultralytics(data: Path, workers: int) -> Loader:
    """Ultralytics', without mosaic, which the others do not do."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader, build_yolo_dataset

    off = {"mosaic": 0.0, "mixup": 0.0, "copy_paste": 0.0, "erasing": 0.0, "auto_augment": None, "workers": workers}
    options = get_cfg(overrides={"imgsz": SIDE, "flipud": 0.5, "scale": 0.4, "translate": 0.2, "cache": False, **off})
    with contextlib.redirect_stdout(io.StringIO()):
        described = {"names": dict(enumerate(TYPES)), "nc": len(TYPES), "channels": 3}
        images = build_yolo_dataset(options, str(data / "images/train"), BATCH, described)
        # Its loader's workers go on for ever and read ahead: a fresh one an epoch starts as the others' do.
        return lambda seed: sum(
            len(batch["im_file"]) for batch in build_dataloader(images, BATCH, workers, device="cpu", pin_memory=False)
        )


PEERS = {"leuko": leukos, "torchvision": torchvisions, "ultralytics": ultralytics}


def rates(data: Path, peers: list[str], workers: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Images a second of each loader, once a turn, the first turn (file caches, imports) left out."""
    loaders = {name: PEERS[name](data, workers) for name in peers}
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(repeats + 1):
        for name, load in loaders.items():
            start = time.perf_counter()
            images = load(turn)
            if turn:
                times[name].append(images / (time.perf_counter() - start))
    yield from times.items()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="worker processes (0: none, which compares the work)")
    parser.add_argument("--images", type=int, default=32, help="images of 3264 pixels; four times as many of 600")
    parser.add_argument("--peers", default="torchvision,ultralytics")
    options = parser.parse_args()
    peers = ["leuko", *options.peers.split(",")]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for side, images in ((3264, options.images), (600, 4 * options.images)):
            data = make(Path(folder), side, images)
            found = dict(rates(data, peers, options.workers, options.repeats))
            ours = statistics.median(found["leuko"])
            for name, values in found.items():
                middle = statistics.median(values)
                ratio = "" if name == "leuko" else f", leuko is {ours / middle:.2f} times as fast"
                print(
                    f"{side} px, {name}: {middle:.1f} images/s ({min(values):.1f} to {max(values):.1f}){ratio}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
