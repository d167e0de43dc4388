"""The Python face: a detector in a few lines."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from leuko import Detector
from leuko.config import TrainOptions
from leuko.data.images import read_image
from leuko.data.source import load
from leuko.engine.checkpoint import load_weights
from leuko.errors import LeukoError

TYPES = ["NG", "BG", "EG", "L", "M"]


def test_detector_in_a_few_lines(data, project, tmp_path):
    options = {"backbone": "mobilenetv3_small_050", "pretrained": False, "channels": 32, "fc_channels": 32, "imgsz": 64}
    detector = Detector.train(data, model="faster_rcnn", epochs=1, project=str(tmp_path), workers=0, rois=16, **options)
    assert detector.types == tuple(TYPES) and detector.path.parent.parent == tmp_path / "faster_rcnn"
    longer = Detector.train(resume=str(tmp_path / "faster_rcnn"), epochs=2)
    with open(tmp_path / "faster_rcnn/results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert longer.types == detector.types
    assert load_weights(longer.path).recipe["vote"] == TrainOptions.vote > 0
    path = load(data, "test").samples[0].image
    cells = longer.predict(path, threshold=0.0)
    image = read_image(path)
    grey = longer.predict(np.dstack([image[..., 0]] * 3), 0.0)
    grey_picture = Image.fromarray(image[..., 0])
    for given, whole in ((image[..., 0], grey), (grey_picture, grey), (image, cells), (Image.fromarray(image), cells)):
        same = longer.predict(given, 0.0)
        assert np.array_equal(same.boxes, whole.boxes) and np.array_equal(same.scores, whole.scores)
    first = next(iter(cells))
    assert first.type in TYPES and first.score == pytest.approx(cells.scores.max()) and len(first.box) == 4
    assert len(cells.above(2.0)) == 0
    few = Detector(longer.path, max_detections=2)
    assert np.array_equal(few.predict(path, 0.0).boxes, cells.boxes[:2]) and few.val(data).max_detections == 2
    for call, words in (
        (lambda: Detector.train(data, epoch=3), 'did you mean "epochs"'),
        (lambda: Detector.train(data, resume=str(project / "faster")), "--data"),
        (lambda: longer.predict([path]), "type list.*give a file"),
        (lambda: longer.predict("a\0b.jpg"), "no such file"),
        (lambda: longer.predict(""), "is a folder"),
        (lambda: longer.predict(path, max_pixels=0.001), "too large"),
        (lambda: longer.predict(Image.new("F", (9, 9))), "mode F"),
        (lambda: longer.predict(Image.new("RGB", (0, 9))), r"shape \[9, 0, 3\]"),
        *[
            (lambda wrong=wrong: longer.predict(wrong), "give a uint8 array")
            for wrong in (image / 255, image[:, 0, 0], image[:0], image[None], np.dstack([image, image[..., :1]]))
        ],
    ):
        with pytest.raises(LeukoError, match=words):
            call()


def test_the_example_of_fine_tuning_fits_the_detector_that_comes_with_leuko(data, tmp_path, leuko):
    (line,) = [line for line in TrainOptions.EXAMPLES.splitlines() if "--weights leuko-small" in line]
    words = line.replace("datasets/other", str(data)).split()[1:]
    done = leuko(*words, "--epochs", "1", "--imgsz", "64", "--workers", "0", "--project", tmp_path, "--name", "tuned")
    assert done.code == 0 and (tmp_path / "tuned/weights/best.safetensors").exists(), done.err
