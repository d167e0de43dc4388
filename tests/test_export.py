"""Exports: that they say the same, that the proof of it can fail, and that they need no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TYPES, leave_charts_blank, table

from leuko import Detector
from leuko.baselines.ultralytics import create_yolo
from leuko.cli import main
from leuko.data.images import read_image
from leuko.data.loader import to_tensor
from leuko.data.tools.builder import save_image
from leuko.detections import Detections
from leuko.engine import exporter, parity
from leuko.engine.checkpoint import StoredTyper, load_weights, save, save_weights
from leuko.engine.ensemble import EnsembleMember
from leuko.errors import LeukoError
from leuko.models import DETECTORS, create
from leuko.models.typer import Typer
from leuko.runtime import ExportedDetector, graph

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
NET = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def trained(centres, tmp_path_factory) -> Path:
    """Weights of an FCOS that has learned to find the cells of rendered fields, with a typing stage, whose network has
    not learned but tells crops apart."""
    project = tmp_path_factory.mktemp("trained")
    words = ["--model", "fcos_improved", "--backbone", NET, "--no-pretrained", "--imgsz", "96"]
    words += ["--channels", "32", "--epochs", "24", "--batch", "4", "--lr", "0.01", "--workers", "0"]
    words += ["--augment", "none"]
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_blank(patch)
        main(["train", "--data", str(centres["home"]), "--project", str(project), "--name", "run", *words])
    weights = load_weights(project / "run")
    torch.manual_seed(0)
    net = Typer(NET, len(TYPES), 32)
    net.last.weight.data *= 30
    weights.typer = StoredTyper(net.recipe, TYPES, 1.3, weights.types, {}, net.state_dict(), {})
    weights.path = project / "typed.safetensors"
    save(weights)
    return weights.path


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """What ``leuko export`` makes of it."""
    folder = tmp_path_factory.mktemp("exported")
    main(["export", "--weights", str(trained), "--save", str(folder), "--fields", "3"])
    return folder / "typed/typed.onnx"


def scaled(path: Path, name: str) -> Path:
    """Weights of a detector that has learned nothing, but whose scores differ from place to place."""
    torch.manual_seed(0)
    model = create(
        name, 5, NET, image_size=64, channels=32 if name != "grid_rcnn" else 64, fc_channels=32, proposals=50
    )
    for key, value in model.named_parameters():
        if key.endswith("cls_logits.weight") or "objectness.weight" in key:
            value.data *= 40
        elif key.endswith("cls_logits.bias"):
            value.data.zero_()
    save_weights(path, model.recipe, model.state_dict(), TYPES, epoch=1)
    return path


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_says_the_same(name, tmp_path, leuko):
    """The command proves it, in batches of different images and at two sizes, or it would fail."""
    weights = scaled(tmp_path / f"{name}.safetensors", name)
    formats = ["onnx", "openvino"] if name == "cascade_rcnn" else ["onnx"]
    for format in formats:
        if format == "openvino":
            pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
        done = leuko("export", "--weights", weights, "--format", format, "--save", tmp_path / format, "--fields", "3")
        assert done.code == 0 and "parity on 3 fields, in batches of 1 and 4, at two image sizes" in done.out, done.err
        path = tmp_path / format / name / f"{name}{exporter.FORMATS[format]}"
        field = parity.rendered(6, 64)[5]
        mine, theirs = Detector(weights).predict(field, 0.0), ExportedDetector.load(path).predict(field, 0.0)
        assert len(mine) == len(theirs) > 0 and [c.type for c in mine] == [c.type for c in theirs]
        assert np.abs(mine.boxes - theirs.boxes).max() < 0.05 and np.abs(mine.scores - theirs.scores).max() < 1e-4


def test_yolo_says_the_same(tmp_path, leuko):
    """Of the package's own model, whose norms have seen fields and whose scores are near a half."""
    pytest.importorskip("ultralytics", reason="the extra `ultralytics` is not installed")
    torch.manual_seed(0)
    model = create_yolo("yolo11n", 5, image_size=64)
    for module in model.network.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
    fields = [to_tensor(field).float() / 255 for field in parity.rendered(6, 64)[1::2]]
    with torch.no_grad():
        model.network(torch.stack(fields))
    for branch in model.network.eval().model[-1].cv3:
        branch[-1].bias.data.zero_()
    weights = tmp_path / "yolo.safetensors"
    save_weights(weights, model.recipe, model.state_dict(), TYPES, epoch=1)
    done = leuko("export", "--weights", weights, "--save", tmp_path, "--fields", "3")
    assert done.code == 0 and "parity on 3 fields" in done.out, done.err
    exported = ExportedDetector.load(tmp_path / "yolo/yolo.onnx")
    assert exported.metadata["licence"] == "AGPL-3.0" and len(exported.detect([parity.rendered(2, 64)[1]])[0]) >= 5


def test_commands_take_an_export_as_they_take_weights(trained, exported, centres, tmp_path, leuko):
    field = sorted((centres["home"] / "images").rglob("*.jpg"))[0]
    common = ["--weights", exported, "--workers", "0", "--save", tmp_path]
    val = ["--data", centres["home"], "--split", "val", "--draws", "0", "--name", "val"]
    assert leuko("val", *val, *common, "--threshold", "0.1").code == 0
    measures = table(tmp_path / "val/table.csv")[0]
    mine = Detector(trained).val(centres["home"], "val")
    assert float(measures["mAP"]) == pytest.approx(mine.mAP, abs=1e-6) and mine.mAR > 0
    assert leuko("predict", "--source", field, *common, "--threshold", "0.04", "--name", "found").code == 0
    cells, wanted = table(tmp_path / "found/cells.csv"), Detector(trained).predict(field, 0.02)
    assert [row["best"] for row in cells] == [cell.type for cell in wanted] and cells
    assert [float(row["x0"]) for row in cells] == pytest.approx(wanted.boxes[:, 0].tolist(), abs=0.05)
    one, other = (Detector(path, imgsz=(96, 120)).predict(field, 0.05) for path in (trained, exported))
    assert len(one) == len(other) and one.type_scores == pytest.approx(other.type_scores, abs=1e-3)
    assert Detector(exported, typer="off").types == Detector(trained, typer="off").types
    assert Detector(exported).threshold == Detector(trained).threshold
    for words in (["export", "--weights", exported], ["train", "--data", centres["home"], "--weights", exported]):
        leuko(*words, "--name", "no").refused("typed.onnx: is an export", "name the weights")
    leuko("val", *val, *common, "--calibrate", "--tune-split", "train").refused("nothing is kept")
    leuko("predict", "--source", field, *common, "--max-detections", "200").refused(
        "gives at most 100 detections", "--max-detections 200"
    )


def test_half_is_half_as_large(trained, exported, centres, tmp_path, leuko, monkeypatch):
    """And finds as much on labelled fields, or it would be refused."""
    words = ["export", "--weights", trained, "--half", "--save", tmp_path, "--fields", "3"]
    words += ["--data", centres["home"], "--split", "val"]
    done = leuko(*words)
    assert done.code == 0, done.err
    mAP = json.loads((tmp_path / "typed/typed.json").read_text())["mAP"]
    assert mAP["detector"] > 0 and abs(mAP["export"] - mAP["detector"]) <= 0.002
    assert f"6 images: {mAP['export']:.4f}, of the detector {mAP['detector']:.4f}" in done.out
    monkeypatch.setattr(parity, "check", lambda *_: parity.Parity(3, 9, 0, 0.0, 0.0))
    monkeypatch.setattr(ExportedDetector, "detect", of(lambda d: d[2:]))
    leuko(*words, "--name", "other").refused("typed.onnx: its mAP is", f"that of the detector {mAP['detector']:.4f}")
    assert not (tmp_path / "other").exists()
    for name in ("typed.onnx", "typed.typer.onnx"):
        assert (tmp_path / "typed" / name).stat().st_size < 0.65 * exported.with_name(name).stat().st_size


def test_ensemble(trained, exported, tmp_path, leuko):
    """A folder of members with a manifest is fused as their weights are."""
    other = scaled(tmp_path / "faster.safetensors", "faster_rcnn")
    ensemble = ["--ensemble", trained, other]
    done = leuko("export", *ensemble, "--save", tmp_path, "--fields", "3")
    assert done.code == 0, done.err
    folder = tmp_path / "ensemble"
    field = tmp_path / "field.png"
    save_image(field, parity.rendered(2, 96)[1])
    found = []
    for words in (ensemble, ["--ensemble", folder]):
        done = leuko("predict", *words, "--source", field, "--save", tmp_path / "found", "--threshold", "0.1")
        assert done.code == 0, done.err
        found.append(table(sorted((tmp_path / "found").iterdir())[-1] / "cells.csv"))
    assert len(found[0]) == len(found[1]) > 0
    assert [row["best"] for row in found[0]] == [row["best"] for row in found[1]]
    (folder / "ensemble.json").write_text('{"members": 3}')
    leuko("predict", "--ensemble", folder, "--source", field, "--save", tmp_path).refused("ensemble.json", "export")


# ---------------------------------------------------------------- the proof can fail


def of(change: Callable[[Detections], Detections]) -> Callable:
    """An export that finds something else."""
    return lambda self, views: [change(found) for found in DETECT(self, views)]


DETECT = ExportedDetector.detect
FAULTS = {
    "boxes": (of(lambda d: replace(d, boxes=d.boxes + 0.06)), "have no counterpart"),
    "one box": (of(lambda d: replace(d, boxes=d.boxes + 0.06 * (np.arange(len(d)) == 0)[:, None])), "no counterpart"),
    "scores": (of(lambda d: replace(d, scores=d.scores * 0.999)), "have no counterpart"),
    "number": (of(lambda d: d[1:]), "have no counterpart"),
    "labels": (of(lambda d: replace(d, labels=(d.labels + 1) % 5)), "have no counterpart"),
    "constant": (of(lambda d: Detections([[5, 5, 20, 20]], [0.9], [0])), "the same boxes on 3 different fields"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_say_the_same_is_refused(fault, trained, exported, monkeypatch):
    member = EnsembleMember.load(trained)
    fields = parity.rendered(3, 96)
    change, words = FAULTS[fault]
    monkeypatch.setattr(ExportedDetector, "detect", change)
    with pytest.raises(LeukoError, match=words):
        parity.check(member, exported, fields, parity.Bounds())


def test_what_is_refused_is_not_left(trained, tmp_path, leuko, monkeypatch):
    export = ["export", "--fields", "3", "--save", tmp_path / "out", "--weights"]
    untrained = tmp_path / "untrained.safetensors"
    model = create("fcos", 5, NET, image_size=64, channels=32)
    save_weights(untrained, model.recipe, model.state_dict(), TYPES, epoch=1)
    leuko(*export, untrained).refused("no cell is found on 3 fields, which proves nothing")
    typed = exporter.TyperGraph.forward
    monkeypatch.setattr(exporter.TyperGraph, "forward", lambda self, crops: typed(self, crops) * 0.9)
    leuko(*export, trained).refused("probabilities of types")
    assert not any((tmp_path / "out").iterdir())


# ---------------------------------------------------------------- bad input


def test_files_that_are_no_exports(exported, tmp_path, leuko, monkeypatch):
    field = tmp_path / "field.png"
    shutil.copy(next((ROOT / "leuko/examples").glob("*.jpg")), field)
    path = tmp_path / "typed.onnx"
    stage = shutil.copy(exported.with_name("typed.typer.onnx"), tmp_path)
    whole = exported.read_bytes()

    def refused(*words: str, file: Path = path) -> None:
        leuko("predict", "--weights", file, "--source", field, "--save", tmp_path / "found").refused(*words)
        assert not (tmp_path / "found").exists()

    def changed(about: dict | None, opset: int = exporter.OPSET) -> None:
        model = onnx.load_from_string(whole)
        old = graph.Graph.open(exported).about
        del model.metadata_props[:]
        if about is not None:
            onnx.helper.set_model_props(model, {"leuko": json.dumps(old | about)})
        model.opset_import[0].version = opset
        path.write_bytes(model.SerializeToString())

    refused(f"{path}: no such run or weights file")
    for content in (whole[:-1000], whole[: len(whole) // 2], b"", b"not an export"):
        path.write_bytes(content)
        refused(f"{path}: not a whole file that onnxruntime")
    changed(None)
    refused(f"{path}: holds no metadata of leuko's", "leuko export wrote")
    changed({"form": 99})
    refused("form 99, where this leuko reads form 1", "export it again")
    changed({"types": 3})
    refused("its metadata are not as this leuko writes them (types")
    changed({}, opset=6)
    refused(f"{path}: not a whole file")
    path.write_bytes(whole)
    os.remove(stage)
    refused("typed.typer.onnx: no such file")
    shutil.copy(exported, tmp_path / "typed.typer.onnx")
    refused("typed.typer.onnx: is not the typing stage of typed.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused("needs onnxruntime: pip install", file=exported)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    leuko("export", "--save", tmp_path / "out").refused(
        "the package onnx is not installed; pip install 'leuko[export]'"
    )


def test_images_and_folders_that_do_not_fit(trained, exported, centres, tmp_path, leuko):
    detector = ExportedDetector.load(exported)
    with pytest.raises(LeukoError, match="takes images of 1 to 8192 pixels a side, not 8193x3"):
        detector.detect([np.zeros((3, 8193, 3), np.uint8)])
    for image in (np.zeros((5, 5, 3)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5), np.uint8)):
        with pytest.raises(LeukoError, match="give a uint8"):
            detector.predict(image)
    fields = [f[: 70 + 5 * i, : 90 - 9 * i] for i, f in enumerate(parity.rendered(4, 96))]
    alone = [detector.detect([field])[0] for field in fields]
    for one, other in zip(alone, detector.detect(fields), strict=True):  # padded: as torch does, not as alone
        assert len(one) and np.abs(other.boxes).max() <= 96
    (tmp_path / "file").write_text("")
    words = ["export", "--weights", trained, "--fields", "2", "--save"]
    leuko(*words, tmp_path / "file").refused("file", "cannot be")
    leuko("export", "--weights", trained, "--fields", "1").refused("--fields 1")
    field = tmp_path / "field.png"
    save_image(field, fields[0])
    for flag in (["--amp", "bf16"], ["--device", "meta"]):
        refused = leuko("predict", "--weights", exported, "--source", field, "--save", tmp_path, *flag)
        refused.refused(str(exported), " ".join(flag), "runs on the CPU")
    data = shutil.copytree(centres["home"], tmp_path / "empty")
    content = json.loads((data / "val.json").read_text())
    (data / "val.json").write_text(json.dumps(content | {"annotations": []}))
    words = ["export", "--weights", trained, "--data", data, "--split", "val", "--save", tmp_path / "none"]
    leuko(*words).refused(f"{data}: val has no labelled cell")


# ---------------------------------------------------------------- without torch

SCRIPT = """
import json, sys, time
start = time.perf_counter()
for name in ("torch", "torchvision", "timm", "PIL", "yaml", "matplotlib", "jinja2", "tqdm", "safetensors", "onnx"):
    sys.modules[name] = None  # as if it were not installed
import numpy as np
from leuko.runtime import ExportedDetector
cells = ExportedDetector.load(sys.argv[1]).predict(np.load(sys.argv[2]), 0.05)
print(json.dumps([[c.type, c.score, *c.box] for c in cells]))
print(time.perf_counter() - start)
"""


def test_runtime_needs_numpy_opencv_and_onnxruntime_alone(trained, exported, centres, tmp_path):
    field = read_image(sorted((centres["home"] / "images").rglob("*.jpg"))[1])
    np.save(tmp_path / "field.npy", field)
    run = [sys.executable, "-c", SCRIPT, exported, tmp_path / "field.npy"]
    done = subprocess.run(list(map(str, run)), capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    cells, seconds = map(json.loads, done.stdout.splitlines())
    wanted = Detector(trained).predict(field, 0.05)
    assert [cell[0] for cell in cells] == [cell.type for cell in wanted] and len(cells) > 0
    assert np.array([cell[2:] for cell in cells]) == pytest.approx(wanted.boxes, abs=0.05)
    assert seconds < 5


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "safetensors", "ensemble_boxes", "onnx"):
    sys.modules[name] = None
from leuko.cli import leave, main
leave(lambda: main(sys.argv[1:]))
"""


def test_predict_of_an_export_needs_no_torch(trained, exported, centres, tmp_path, leuko):
    """The same files, pages included, as where torch is; and a line where it would be needed."""
    words = ["predict", "--source", centres["home"] / "images", "--threshold", "0.05", "--workers", "0"]
    words += ["--save", tmp_path, "--weights"]
    assert leuko(*words, exported, "--name", "with").code == 0

    def without(*more: object) -> subprocess.CompletedProcess:
        run = [sys.executable, "-c", WITHOUT_TORCH, *words, *more]
        return subprocess.run(list(map(str, run)), capture_output=True, text=True, cwd=ROOT, timeout=100)

    done = without(exported, "--name", "without")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "with").iterdir()}
    assert {"cells.csv", "review.html"} < names == {path.name for path in (tmp_path / "without").iterdir()}
    assert len(table(tmp_path / "with/cells.csv")) > 0
    for name in ("cells.csv", "differential.csv"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    needed = without(trained)
    assert needed.returncode == 2 and "weights need PyTorch, which is not installed" in needed.stderr
    assert "--workers 2: processes need PyTorch" in without(exported, "--workers", "2").stderr
    words = ["val", "--data", centres["home"], "--weights"]
    assert (
        without(exported).stderr
        == "leuko: torch is not installed; install all that leuko needs (without PyTorch: docs/deploy.md)\n"
    )
