"""A detector at other image sizes than its own, and at several at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import table, untrained

from leuko import Detector
from leuko.data.images import LoadedImage, read_image
from leuko.data.source import load
from leuko.engine import checkpoint
from leuko.engine.detect import Pipeline
from leuko.engine.fusion import Fusion
from leuko.engine.network import Network
from leuko.errors import LeukoError
from leuko.metrics.counting import one_type
from leuko.models import create

CPU = torch.device("cpu")


def built(weights: checkpoint.Weights, size: int) -> Network:
    """The detector made anew for another image size, with the same weights."""
    model = create(**{**weights.recipe, "image_size": size})
    model.load_state_dict(weights.state)
    return Network(model, CPU)


def test_a_size_is_the_model_built_for_it_and_several_are_fused(project, data):
    weights = checkpoint.load_weights(project / "faster")
    sample = load(data, "test").samples[0]
    image = read_image(sample.image)
    own = weights.recipe["image_size"]
    sizes = [own, own + 32, own + 45]
    alone = [Pipeline(built(weights, size), (size,)).detect([LoadedImage.of_pixels(image, [size])]) for size in sizes]
    assert not np.array_equal(alone[0][0].boxes, alone[1][0].boxes)  # else this test compares nothing
    for size, (expected,) in zip(sizes, alone, strict=True):
        found = Detector(project / "faster", imgsz=size).predict(image, threshold=0)
        expected = one_type(expected, len(weights.types))
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(found.labels, expected.labels)
    fused = one_type(Fusion()(alone, [(sample.width, sample.height)])[0], len(weights.types))
    found = Detector(project / "faster", imgsz=sizes).predict(image, threshold=0)
    np.testing.assert_allclose(found.boxes, fused.boxes, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found.scores, fused.scores, rtol=1e-4)
    np.testing.assert_array_equal(found.labels, fused.labels)


def test_val_and_predict_take_sizes(project, data, tmp_path, leuko):
    words = ["--weights", project / "faster", "--save", tmp_path]
    measure = ["val", *words, "--data", data, "--workers", "0", "--draws", "0", "--name"]
    for name, sizes in (("own", []), ("one", ["96"]), ("two", ["96", "128"])):
        assert leuko(*measure, name, *(["--imgsz", *sizes] if sizes else [])).code == 0
    metrics = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("own", "one", "two")}
    assert metrics["one"]["parameters"] == metrics["two"]["parameters"] == metrics["own"]["parameters"]
    evaluation = Detector(project / "faster", imgsz=[96, 128]).val(data, workers=0)
    assert evaluation.mAP == pytest.approx(metrics["two"]["mAP"])
    cost = {name: table(tmp_path / name / "cost.csv")[0] for name in ("one", "two")}
    assert cost["one"]["image_size"] == "96" and cost["two"]["image_size"] == "96 128"
    assert float(cost["two"]["GFLOPs"]) > 2 * float(cost["one"]["GFLOPs"])
    images = load(data, "test").samples[0].image.parent
    assert leuko("predict", *words, "--source", images, "--imgsz", "96", "128", "--name", "p").code == 0
    assert (tmp_path / "p/cells.csv").exists()
    options = tmp_path / "options.yaml"
    options.write_text("imgsz: [96, wide]")
    leuko(*measure, "none", "--config", options).refused("imgsz", "is not a whole number")
    leuko(*measure, "none", "--imgsz", "96", "32").refused("--imgsz 32", "from 64")
    leuko(*measure, "none", "--imgsz", "96", "96").refused("--imgsz 96 96", "twice")
    assert not (tmp_path / "none").exists()


def test_sizes_go_for_each_member(project, data, tmp_path, leuko):
    types = load(data, "test").types
    other = untrained(tmp_path / "other.safetensors", types)
    words = ["--data", data, "--workers", "0", "--draws", "0", "--save", tmp_path, "--imgsz", "64", "96"]
    assert leuko("val", "--ensemble", project / "faster", other, *words).code == 0
    rows = {row["model"]: float(row["mAP"]) for row in table(tmp_path / "ensemble/table.csv")}
    alone = Detector(project / "faster", imgsz=[64, 96]).val(data, workers=0)
    assert len(rows) == 3 and rows["faster"] == pytest.approx(alone.mAP, abs=1e-6)
    with pytest.raises(LeukoError, match="from 64 to"):
        Detector(other, imgsz=8)
