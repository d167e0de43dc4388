"""All files that leuko reads, for `mutations.py`: a small sound one of each, and the function that reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import counting
import cv2
import numpy as np
import torch
from counting import BOXES

from leuko.cli import stored
from leuko.config import TrainOptions
from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco, voc, yolo
from leuko.data.images import load_image, read_image
from leuko.data.tools.review import apply_review
from leuko.data.tools.split import split
from leuko.detections import Detections
from leuko.engine import checkpoint
from leuko.engine import train as loop
from leuko.engine.state import Progress, described, load_state, save_state
from leuko.io import write_json, write_yaml
from leuko.metrics.coco import evaluate, to_coco_results
from leuko.models import DetectionModel, create
from leuko.models.tensors import read_state
from leuko.report import pages, run, tables
from leuko.report.review import field_of, write_pages
from leuko.synth.render import render

TYPES = ["NG", "BG", "EG", "L", "M"]
LABELS = ([0, 3, 4], [1], [2, 3])
OPTIONS = TrainOptions(
    "data",
    model="fcos",
    backbone="mobilenetv3_small_050",
    pretrained=False,
    channels=32,
    imgsz=64,
    augment="none",
    lr=0.01,
    clip=1,
)


class Reader(NamedTuple):
    """What is read: ``file`` is the one that is mutated; ``read``, called in the folder of all files with its path,
    gives the number of cells that were read or are listed as left out (None where cells do not matter); ``cells``
    counts them in the mutated bytes (None where these no longer tell)."""

    file: str
    read: Callable[[Path], int | None]
    cells: Callable[[bytes], int | None] | None = None


# ---------------------------------------------------------------- sound files


def make(root: Path) -> None:
    """Write a sound copy of every file that ``READERS`` names."""
    sources = root / "sources"
    sources.mkdir()
    samples = []
    for i, (boxes, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        path = sources / f"{i}.jpg"
        cv2.imwrite(str(path), render(np.random.default_rng(i), 64, 64, ["NG"]).image)
        samples.append(Sample(path, 64, 64, boxes, labels, 7 - i, group=f"smear {i}", factors=("dust",)))
    samples[0].cell_factors[0], samples[0].attributes[0] = ("overlap",), {"certain": 1}
    samples[1].crowd[0] = True
    dataset = Dataset(TYPES, samples, [3, 4, 5, 6, 8])
    for name, form in (("voc", voc), ("coco", coco), ("yolo", yolo), ("listed", yolo), ("named", yolo)):
        form.write(dataset, root / name, "train")
    (root / "listed/train.txt").write_text("".join(f"images/train/{i}.jpg\n" for i in range(3)))
    write_yaml(root / "listed/data.yaml", {"train": "train.txt", "names": TYPES, "nc": 5, "format": "yolo"})
    (root / "named/data.yaml").unlink()
    (root / "named/classes.txt").write_text("\n".join(TYPES))
    (root / "groups.csv").write_text("image,group\n0.jpg,a\n1.jpg,b\n2.jpg,a\n")
    _make_review(root, samples)
    image = render(np.random.default_rng(9), 64, 48, ["M"]).image
    for suffix in ("png", "jpg", "tif", "bmp", "webp"):
        cv2.imwrite(str(root / f"image.{suffix}"), image)
    cv2.imwrite(str(root / "deep.tif"), image.astype(np.uint16) * 16)
    cv2.imwritemulti(str(root / "pages.tif"), [image, image])
    _make_run(root, dataset)


def _make_review(root: Path, samples: list[Sample]) -> None:
    """What a person downloads from the page of a prediction, signed, with one cell of another type."""
    fields = []
    for sample in samples:
        number = len(sample.boxes)
        scores, why = 0.9 * np.eye(len(TYPES))[sample.labels], np.full(number, "", object)
        found = Detections(sample.boxes, np.full(number, 0.9), sample.labels, tuple(TYPES), scores, why)
        fields.append(field_of(sample.image, (sample.width, sample.height), found))
    page = write_pages(root, TYPES, fields, title="smear")[0].read_text()
    content = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    for cell in content["cells"]:
        cell |= {"after": cell["before"], "checked": False, "added": False}
        for key in ("text", "why", "suggestion"):
            del cell[key]
    for image in content["images"]:
        del image["others"]
    del content["file"]
    content["cells"][0]["after"] = TYPES[1]
    signed = {"event": "signed", "by": "A. B.", "at": "2026-01-02T03:04:05.000Z"}
    write_json(root / "review.json", content | {"events": [signed]})


def _make_run(root: Path, dataset: Dataset) -> None:
    """A run folder after no step, its results, and weights of other libraries."""
    folder = root / "run"
    (folder / "weights").mkdir(parents=True)
    model = _model()
    checkpoint.save_weights(folder / "weights/best.safetensors", model.recipe, model.state_dict(), TYPES, epoch=1)
    write_yaml(folder / "args.yaml", asdict(OPTIONS))
    row = {"epoch": 1, "lr": 0.01, "loss/cls": 1.0, "val/mAP": 0.5, "val/mAP50": 0.5, "val/mAP75": 0.5, "val/mAR": 0.5}
    progress = Progress(epoch=1, rows=[row])
    save_state(folder / "resume.pt", _loop().state_dict(), progress, described(dataset, dataset))
    found = [Detections(s.boxes, np.full(len(s.boxes), 0.9), s.labels) for s in dataset.samples]
    results = evaluate(dataset, found)
    run.write_evaluation(folder, results, to_coco_results(dataset, found), model="fcos", data="data")
    cells = {t.type: t.cells for t in results.per_class}
    write_json(folder / "table.json", {"rows": [tables.record("fcos", results, 1e6, 3.0)], "cells": cells})
    (folder / "cost.csv").write_text("model,parameters\nfcos,1000000\n")
    names = ("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.weight", "head.classification_head.conv.0.bias")
    torch.save({"state_dict": {name: torch.ones(2, 2) for name in names}}, root / "foreign.pth")
    torch.save({"model": {"yaml": {"nc": 5}}, "names": TYPES}, root / "yolo.pt")


@cache
def _model() -> DetectionModel:
    torch.manual_seed(0)
    return create(OPTIONS.model, len(TYPES), OPTIONS.backbone, image_size=64, channels=32)


@cache
def _loop() -> loop.Loop:
    train_set = Dataset(TYPES, [Sample(Path("0.jpg"), 64, 64, BOXES[0], LABELS[0], 1)])
    return loop.Loop(OPTIONS, _model(), train_set, torch.device("cpu"), fresh=False)


# ---------------------------------------------------------------- reading


def _data(name: str) -> Callable[[Path], int]:
    def read(root: Path) -> int:
        datasets = source.load_all(root / name)
        warnings = [w for d in datasets.values() for w in d.warnings if re.match("dropped|left out", w.action)]
        for dataset in datasets.values():
            for s in dataset.samples:
                boxes, limit = s.boxes, np.array([s.width, s.height] * 2)
                assert np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all(), "boxes are broken"
                assert (boxes >= 0).all() and (boxes <= limit).all(), "boxes leave their image"
                assert set(s.labels.tolist()) <= set(range(len(dataset.types))), "labels are of no type"
        kept = sum(len(s.boxes) for d in datasets.values() for s in d.samples)
        return kept + len(warnings) + sum(n for d in datasets.values() for n in d.ignored.values())

    return read


def _image(name: str) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        for image in (read_image(root / name), read_image(root / name, 16), load_image(root / name, 32)):
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, "no image"

    return read


def _args(root: Path) -> None:
    stored(TrainOptions, root / "run/args.yaml").check()


def _resume(root: Path) -> None:
    state = load_state(root / "run/resume.pt")
    state.progress.is_finished(OPTIONS.epochs)
    dataset = source.load(root / "coco", "train")
    state.check_data(described(dataset, dataset))
    _loop().load_state_dict(state.parts, state.path)


def _review(root: Path) -> None:
    apply_review(root / "review.json", root / "reviewed", force=True)


def _foreign(root: Path) -> None:
    read_state(root / "foreign.pth")
    checkpoint.transfer_foreign(root / "foreign.pth", _model())


def _split(root: Path) -> None:
    options = {"ratios": [1, 1], "names": ["train", "val"], "force": True, "group_by": str(root / "groups.csv")}
    split(root / "coco", root / "divided", **options)


# ---------------------------------------------------------------- all of them

NO_DETECTOR = ("foreign .pth", "YOLO's .pt")  # sound files of weights, but too small to be a detector
READERS = {
    "VOC": Reader("voc/Annotations/0.xml", _data("voc"), counting.voc),
    "VOC list": Reader("voc/ImageSets/Main/train.txt", _data("voc"), counting.listed),
    "VOC classes.txt": Reader("voc/classes.txt", _data("voc"), counting.same),
    "VOC leuko.json": Reader("voc/leuko.json", _data("voc"), counting.same),
    "COCO": Reader("coco/train.json", _data("coco"), counting.coco),
    "YOLO": Reader("yolo/labels/train/0.txt", _data("yolo"), counting.yolo),
    "YOLO list": Reader("listed/train.txt", _data("listed"), counting.listed),
    "YOLO classes.txt": Reader("named/classes.txt", _data("named"), counting.same),
    "YOLO leuko.json": Reader("yolo/leuko.json", _data("yolo"), None),
    "data YAML": Reader("listed/data.yaml", _data("listed"), counting.same),
    "groups.csv": Reader("groups.csv", _split),
    **{name: Reader(name, _image(name)) for name in ("image.png", "image.jpg", "image.tif", "image.bmp", "image.webp")},
    **{name: Reader(name, _image(name)) for name in ("deep.tif", "pages.tif")},
    "weights": Reader(
        "run/weights/best.safetensors", lambda root: checkpoint.load_weights(root / "run").build() and None
    ),
    "foreign .pth": Reader("foreign.pth", _foreign),
    "YOLO's .pt": Reader("yolo.pt", lambda root: checkpoint.load_weights(root / "yolo.pt") and None),
    "resume.pt": Reader("run/resume.pt", _resume),
    "args.yaml": Reader("run/args.yaml", _args),
    "review.json": Reader("review.json", _review),
    **{
        name: Reader(f"run/{name}", lambda root: pages.build(root / "run") and None)
        for name in ("metrics.json", "table.json", "cost.csv")
    },
}
