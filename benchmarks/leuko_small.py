"""Make weights/leuko-small.safetensors again from its data: one to two hours on two cores.

    python benchmarks/leuko_small.py --data DATA --out runs/leuko-small

DATA holds the folders that weights/README.md lists: pbc5, bccd, krd, pig, donors, crops. In --out appear the data sets
that are learned from, the detector, its typing stage and, last, leuko-small.safetensors. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from leuko.config import TrainOptions, TypeOptions, preset
from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco
from leuko.data.tools import draw
from leuko.engine import thresholds
from leuko.engine.checkpoint import load_weights, save
from leuko.io import write_text
from leuko.train import train
from leuko.type import train_typing

TYPES = ["NG", "BG", "EG", "L", "M"]
BCCD = """
path: {folder}
splits: {{all: [ImageSets/Main/trainval.txt, ImageSets/Main/test.txt]}}
names: [NG, BG, EG, L, M]
ignore: [RBC, Platelets]
types: {folder}/leukocyte_types.csv
"""
BCCD_BOXES = (0.92, 0.97)  # its boxes are drawn wider than those of the others by about this
UNBOXED = ("image412", "image532")  # of KRD: a second leukocyte in them has no box
THRESHOLD = 0.20  # counts .97 to 1.0 times the cells that there are, at home and with types of left-out centres


def resized(sample: Sample, factors: tuple[float, float]) -> Sample:
    """The sample with narrower boxes around the same middles."""
    middle, half = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2, (sample.boxes[:, 2:] - sample.boxes[:, :2]) / 2
    boxes = np.concatenate([middle - half * factors, middle + half * factors], axis=1)
    return replace(sample, boxes=np.clip(boxes, 0, [sample.width, sample.height] * 2))


def one_class(sample: Sample) -> Sample:
    """The sample with all cells of one class."""
    return replace(sample, labels=np.zeros_like(sample.labels))


def write(folder: Path, name: str, samples: Iterable[Sample], types: list[str], split: str = "train") -> Path:
    """A COCO data set of samples, which may be repeated; the images are linked or copied."""
    numbered = [replace(sample, id=number) for number, sample in enumerate(samples, 1)]
    coco.write(Dataset(types, numbered), folder / name, split)
    return folder / name


def make(data: Path, out: Path) -> Path:
    """All steps; returns the weights file."""
    sets = out / "sets"
    if not sets.exists():
        prepare(data, out / "unfinished")
        (out / "unfinished").rename(sets)
    detector, stage = out / "detector", out / "stage"
    small = preset("small") | {"epochs": 4, "batch": 8, "ema": 0.998, "augment": "smear", "amp": "bf16", "workers": 0}
    if (detector / "resume.pt").exists():
        train(TrainOptions(resume=str(detector)), {"resume"})
    else:
        yaml = out / "boxes.yaml"
        write_text(yaml, "train: sets/boxes/train.json\nval: sets/boxes-val/val.json\n")
        options = small | {"model": "fcos_improved", "project": str(out), "name": "detector"}
        train(TrainOptions(data=str(yaml), **options), {"data", *options})
    if not stage.exists():
        centres = [f"{name}={sets / name}" for name in ("pbc", "bccd", "krd")]
        crops = [f"pbc={data / name}" for name in ("donors", "crops")]
        where = {"weights": str(detector), "project": str(out), "name": "stage", "half": True}
        train_typing(TypeOptions(data=centres, crops=crops, **where))
    weights = load_weights(stage)
    weights.path = out / "leuko-small.safetensors"
    weights.about["counting"] = thresholds.of_model(THRESHOLD, [320], "left-out centres", "the fields")
    save(weights)
    return weights.path


def prepare(data: Path, out: Path) -> None:
    """The data sets to learn from: typed fields of three centres, and boxes of one class of all."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "bccd.yaml", BCCD.format(folder=(data / "bccd").resolve()))
    draw.compose(out / "composed", data / "donors", images=400, val=0.05, test=0.0, progress=True)
    pbc = source.load(data / "pbc5", "train", TYPES).samples
    bccd = [resized(s, BCCD_BOXES) for s in source.load(out / "bccd.yaml", "all", TYPES).samples]
    krd = source.load(data / "krd", source.splits(data / "krd")[0], TYPES).samples
    krd = [s for s in krd if s.image.stem not in UNBOXED]
    for name, samples in (("pbc", pbc), ("bccd", bccd), ("krd", krd)):
        write(out, name, samples, TYPES)
    pig, far = (source.load(data / "pig", split).samples for split in ("train", "val"))
    composed, more = (source.load(out / "composed", split).samples for split in ("train", "val"))
    boxes = map(one_class, [*pbc, *pbc, *bccd, *krd, *pig, *composed])
    write(out, "boxes", boxes, ["leukocyte"])
    write(out, "boxes-val", map(one_class, [*far[::4], *more]), ["leukocyte"], "val")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/leuko-small"))
    args = parser.parse_args()
    print(make(args.data, args.out))
