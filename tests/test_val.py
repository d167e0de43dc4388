"""`leuko val`: what it measures, fuses and writes, and what it says to bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import table, untrained

from leuko import Detector, val
from leuko.baselines import ultralytics
from leuko.data.dataset import Dataset, Sample
from leuko.data.source import load
from leuko.detections import Detections
from leuko.engine import checkpoint, cost, evaluate, on_processes, thresholds
from leuko.engine.ensemble import EnsembleMember
from leuko.metrics import coco
from leuko.models import create
from leuko.report import results

TYPES = ["NG", "BG", "EG", "L", "M"]


def test_val_measures_one_model(project, data, tmp_path, leuko):
    words = ["val", "--weights", project / "faster", "--data", data, "--save", tmp_path, "--workers", "0"]
    result = leuko(*words)
    assert result.code == 0 and "mAP50" in result.out and "params (M)" in result.out, result.err
    metrics = json.loads((tmp_path / "faster/metrics.json").read_text())
    test = load(data, "test")
    cells = dict(zip(TYPES, test.counts().tolist(), strict=True))
    assert {name: row["cells"] for name, row in metrics["per_class"].items()} == cells
    assert {row["type"]: int(row["cells"]) for row in table(tmp_path / "faster/per_class.csv")} == cells
    found = json.loads((tmp_path / "faster/predictions.json").read_text())
    assert {f["image_id"] for f in found} <= {s.id for s in test.samples} and metrics["fps"] > 0
    weights = checkpoint.load_weights(project / "faster")
    assert metrics["parameters"] == sum(p.numel() for p in create(**weights.recipe).parameters())
    evaluation = Detector(project / "faster").val(data, workers=0)
    assert evaluation.mAP == pytest.approx(metrics["mAP"]) and evaluation.mAR == pytest.approx(metrics["mAR"])
    last = project / "faster/weights/last.safetensors"
    assert leuko("val", "--weights", last, "--data", data / "val.json", "--save", tmp_path, "--workers", "0").code == 0
    assert (tmp_path / "faster-2/metrics.json").exists() and (tmp_path / "faster-2/predictions.jpg").exists()


def test_val_fuses_members_by_name(project, data, tmp_path, leuko):
    """Members differ in backbone and image size; a third knows the same types in another order."""
    third = untrained(tmp_path / "third.safetensors", TYPES[::-1])
    words = ["val", "--data", data, "--save", tmp_path, "--workers", "0", "--ensemble"]
    named = leuko(*words, project / "faster", project / "fcos", third)
    assert named.code == 0, named.err
    lines = (tmp_path / "ensemble/table.txt").read_text().splitlines()
    assert {line.split()[0] for line in lines[3:]} == {"faster", "fcos", "third", "ensemble"}
    assert lines[-1].startswith("ensemble") and lines[0].split()[1:10] == ["mAP", "mAP50", "mAP75", "mAR", *TYPES]
    metrics = json.loads((tmp_path / "ensemble/metrics.json").read_text())
    members = metrics["members"]
    assert {m["model"] for m in members} == {"faster", "fcos", "third"} and metrics["model"] == "ensemble"
    assert metrics["parameters"] == sum(m["parameters"] for m in members)
    assert [m["mAP"] for m in members] == sorted(m["mAP"] for m in members)
    written = json.loads((tmp_path / "ensemble/table.json").read_text())
    assert written["rows"][:-1] == members and written["rows"][-1]["mAP"] == metrics["mAP"]
    assert written["split"] == "test" and sum(written["cells"].values()) == metrics["cells"]
    assert [r["model"] for r in table(tmp_path / "ensemble/table.csv")] == [r["model"] for r in written["rows"]]
    assert (tmp_path / "ensemble/table.md").read_text().startswith("| model | mAP |")
    *each, fused = table(tmp_path / "ensemble/cost.csv")
    assert len(each) == 3 and min(float(c["GFLOPs"]) for c in each) >= 0 and fused["model"] == "ensemble"
    assert float(fused["file_MB"]) == pytest.approx(sum(float(c["file_MB"]) for c in each), abs=0.06)
    found = json.loads((tmp_path / "ensemble/predictions.json").read_text())
    assert found and max(f["score"] for f in found) <= 1
    assert (tmp_path / "ensemble/per_class.csv").exists()

    unfinished = shutil.copytree(project / "fcos", project / "unfinished")
    args = yaml.safe_load((unfinished / "args.yaml").read_text())
    (unfinished / "args.yaml").write_text(yaml.safe_dump(args | {"epochs": 9}))
    strangers = shutil.copytree(project / "fcos", project / "strangers")
    untrained(strangers / "weights/last.safetensors", ["cat", "dog"])
    (strangers / "args.yaml").write_text(yaml.safe_dump(args | {"augment": True, "mosaic": 1}))  # as it was once
    try:
        unnamed = leuko(*words, "--project", project)
    finally:
        shutil.rmtree(unfinished)
        shutil.rmtree(strangers)
    assert unnamed.code == 0, unnamed.err
    members = json.loads((tmp_path / "ensemble-2/metrics.json").read_text())["members"]
    assert {m["model"] for m in members} == {"faster", "fcos"}


def test_thresholds_of_counts_are_found_kept_and_used(project, data, faster, tmp_path, leuko, monkeypatch):
    """By training for a model, by val for other sizes and for a fusion, on what is not reported; predict uses them."""
    fcos = shutil.copytree(project / "fcos", tmp_path / "fcos")
    given: list[float] = []
    monkeypatch.setattr(thresholds, "find", lambda *_: given.append(0.06 + 0.01 * len(given)) or given[-1])
    one = ["val", "--weights", faster, "--data", data, "--save", tmp_path / "val", "--draws", "0", "--workers", "0"]
    for name, words, says in (
        ("a", ["--imgsz", "80"], "score from 0.06 (found on val of"),
        ("b", ["--imgsz", "80"], "score from 0.06 (found on val of"),
        ("c", ["--imgsz", "80", "--threshold", "0.3"], "score from 0.30 (as --threshold says)"),
        (
            "d",
            ["--imgsz", "80", "--split", "val"],
            "score from 0.50 (a default; --tune-split val: is the split that is",
        ),
        ("e", ["--imgsz", "80", "96"], "score from 0.07 (found on val of"),
    ):
        result = leuko(*one, "--name", name, *words)
        assert result.code == 0 and says in result.out, (name, result.out, result.err)
    assert len(given) == 2, "what is kept is not looked for again"
    both = ["--ensemble", faster, fcos, "--save", tmp_path / "both", "--workers", "0"]
    assert leuko("val", *both, "--data", data, "--draws", "0").code == 0
    fused = given[-1]
    for file in (faster, fcos):
        assert "counting" in checkpoint.load_weights(file).about
    field = next((data / "images").iterdir())
    assert f"scores from {fused:.2f} (found on val of" in leuko("predict", *both, "--source", field).out
    swapped = ["--ensemble", fcos, faster, "--save", tmp_path / "other", "--source", field]
    assert f"scores from {fused:.2f} (found" in leuko("predict", *swapped).out
    assert "(a default" in leuko("predict", *swapped, "--fusion-iou", "0.6").out, "another fusion has another threshold"
    alone = leuko("predict", "--weights", faster, "--source", field, "--save", tmp_path / "p", "--imgsz", "80")
    assert "scores from 0.06 (found on val of" in alone.out
    assert Detector(faster, imgsz=80).threshold == pytest.approx(0.06)


def test_a_far_weaker_run_is_told_and_left_out_unless_named(project, data, tmp_path, leuko):
    for name, mAP in (("strong", 0.8), ("good", 0.7), ("weak", 0.0)):
        copy = shutil.copytree(project / "fcos", tmp_path / "runs" / name)
        for file in copy.glob("weights/*.safetensors"):
            weights = checkpoint.load_weights(file)
            weights.keep(val={"mAP": mAP})
    words = ["val", "--data", data, "--save", tmp_path / "val", "--draws", "0", "--workers", "0", "--ensemble"]
    result = leuko(*words, "--project", tmp_path / "runs")
    assert result.code == 0 and "weak: mAP 0.000 on its validation split, of others 0.800: left out" in result.out
    members = json.loads((tmp_path / "val/ensemble/metrics.json").read_text())["members"]
    assert {m["model"] for m in members} == {"strong", "good"}
    result = leuko(*words, *(tmp_path / "runs" / name for name in ("weak", "good")))
    assert result.code == 0 and "weak: mAP 0.000" in result.out and "it takes part, as it is named" in result.out
    shutil.rmtree(tmp_path / "runs/good")
    leuko(*words, "--project", tmp_path / "runs").refused("strong", "name two to fuse")


def test_a_result_is_named_before_anything_runs(project, data, faster, tmp_path, leuko, monkeypatch):
    words = ["val", "--data", data, "--save", tmp_path / "val", "--workers", "0", "--draws", "0"]
    for place, name in ((".", "faster"), ("weights/best.safetensors", "faster-2"), ("../faster", "faster-3")):
        monkeypatch.chdir(faster)
        assert leuko(*words, "--weights", place).code == 0
        assert (tmp_path / "val" / name / "metrics.json").is_file()
    stored = (faster / "weights/best.safetensors").read_bytes()
    monkeypatch.setattr(val, "predict_by", lambda *_, **__: pytest.fail("ran"))
    monkeypatch.setattr(on_processes, "predict_batches", lambda *_, **__: pytest.fail("ran"))
    leuko(*words, "--weights", faster, "--calibrate", "--name", "a/b").refused('"a/b"', "not a plain folder name")
    assert (faster / "weights/best.safetensors").read_bytes() == stored
    words = ["predict", "--weights", ".", "--source", load(data, "test").samples[0].image.parent, "--save", tmp_path]
    leuko(*words, "--name", "a/b").refused('"a/b"', "not a plain folder name")


def test_a_refusal_in_the_middle_leaves_no_empty_result(project, data, tmp_path, leuko):
    words = ["val", "--data", data, "--save", tmp_path / "val", "--workers", "0", "--weights"]
    silent = shutil.copytree(project / "fcos", tmp_path / "fcos")  # finds nothing
    leuko(*words, silent, "--calibrate").refused(str(silent), "too few")
    assert not list((tmp_path / "val").iterdir())


def test_no_image_is_both_calibrated_on_and_reported(project, data, tmp_path, leuko, monkeypatch):
    """Whatever the splits are called, and by whatever path they name it."""
    monkeypatch.setattr(val, "predict_by", lambda *_, **__: pytest.fail("ran"))
    (tmp_path / "link").symlink_to(data)
    both = tmp_path / "data.yaml"
    both.write_text(f"train: {data}/train.json\nval: {tmp_path}/link/test.json\ntest: {data}/test.json\n")
    words = ["val", "--save", tmp_path / "val", "--weights", project / "faster", "--calibrate"]
    result = leuko(*words, "--data", both)
    result.refused("--tune-split val", "3 of its images", str(load(data, "test").samples[0].image.parent))
    content = json.loads((data / "val.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    shutil.copytree(data / "images", tmp_path / "images")
    both.write_text(f"train: {data}/train.json\nval: empty.json\ntest: {data}/test.json\n")
    leuko(*words, "--data", both).refused("--tune-split val", "no cell")
    assert not (tmp_path / "val").exists()


def test_warnings_of_the_split_to_calibrate_on_are_printed(data, faster, tmp_path, leuko):
    flawed = shutil.copytree(data, tmp_path / "data")
    content = json.loads((flawed / "val.json").read_text())
    content["annotations"][0]["bbox"][2] = 500
    (flawed / "val.json").write_text(json.dumps(content))
    words = ["val", "--data", flawed, "--save", tmp_path / "val", "--workers", "0", "--weights", faster, "--calibrate"]
    result = leuko(*words)
    assert result.code == 0 and "val: 1 warning" in result.out, result.err
    assert "val.json" in (tmp_path / "val/faster/warnings.txt").read_text()


def test_val_calibrates_and_predict_uses_it(project, data, faster, tmp_path, leuko):
    words = ["val", "--data", data, "--save", tmp_path / "val", "--workers", "0"]
    leuko(*words, "--weights", faster, "--calibrated").refused(str(faster), "--calibrate")
    leuko(*words, "--weights", faster, "--calibrate", "--tune-split", "test").refused("--tune-split test", "reported")
    leuko(*words, "--weights", faster, "--calibrate", "--calibrated").refused("--calibrate", "one of them")
    before = leuko(*words, "--weights", faster, "--calibrate", "--name", "before")
    assert before.code == 0 and "kept in its weights" in before.out, before.err
    fit = checkpoint.load_weights(faster).about["calibration"]
    assert fit["data"] == str(data) and fit["split"] == "val" and fit["sizes"] == [64]
    assert leuko(*words, "--weights", faster, "--calibrated", "--name", "after").code == 0
    odds = {}
    for name in ("before", "after"):
        found = json.loads((tmp_path / "val" / name / "predictions.json").read_text())
        scores = np.array([f["score"] for f in found])
        odds[name] = np.log(scores / (1 - scores))
    assert len(odds["before"]) > 10
    np.testing.assert_allclose(odds["after"], odds["before"] / fit["temperature"] + fit["shift"], atol=0.01)

    silent = shutil.copytree(project / "fcos", tmp_path / "fcos")  # finds nothing
    stored = (faster / "weights/best.safetensors").read_bytes()
    leuko(*words, "--ensemble", faster, silent, "--calibrate").refused(str(silent), "too few")
    assert (faster / "weights/best.safetensors").read_bytes() == stored
    leuko(*words, "--ensemble", faster, silent, "--calibrated").refused(str(silent), "holds no calibration")

    picture = load(data, "test").samples[0].image
    words = ["predict", "--source", picture, "--save", tmp_path / "predict", "--threshold", "0.01"]
    leuko(*words, "--weights", project / "faster", "--calibrated").refused("holds no calibration")
    cells = []
    for more in ([], ["--calibrated"]):
        assert leuko(*words, "--weights", faster, *more, "--name", f"cells{len(more)}").code == 0
        cells.append([float(c["score"]) for c in table(tmp_path / f"predict/cells{len(more)}/cells.csv")])
    logit = np.log(np.array(cells[0]) / (1 - np.array(cells[0])))
    wanted = 1 / (1 + np.exp(-logit / fit["temperature"] - fit["shift"]))
    np.testing.assert_allclose(cells[1], wanted[wanted >= 0.01], atol=0.001)
    leuko(*words, "--weights", faster, "--calibrated", "--imgsz", "96").refused(
        "is of --imgsz 64, not 96", "--calibrate"
    )


def test_a_calibration_holds_for_the_image_sizes_of_its_fit(data, faster, tmp_path, leuko):
    words = ["val", "--data", data, "--save", tmp_path / "val", "--workers", "0", "--weights", faster]
    assert leuko(*words, "--calibrate", "--imgsz", "64", "96").code == 0
    assert leuko(*words, "--calibrated", "--imgsz", "96", "64").code == 0
    leuko(*words, "--calibrated").refused(str(faster), "is of --imgsz 64 96, not 64", "--imgsz 64 --calibrate")
    assert leuko(*words, "--name", "plain").code == 0
    assert json.loads((tmp_path / "val/plain/calibration.json").read_text())["scaling"] is None

    weights = checkpoint.load_weights(faster)
    del weights.about["calibration"]["sizes"]  # as fits were stored once
    weights.keep(calibration=weights.about["calibration"])
    assert EnsembleMember.load(faster).scaling and EnsembleMember.load(faster, "cpu", (64,)).scaling
    assert EnsembleMember.load(faster, "cpu", (96,)).scaling is None


def test_val_never_writes_into_a_foreign_file(data, faster, tmp_path, leuko, monkeypatch):
    """Nor does it run anything before it says so."""
    own, foreign = checkpoint.load_weights(faster), tmp_path / "yolo.pt"
    foreign.write_bytes(b"theirs")
    monkeypatch.setattr(ultralytics, "read_checkpoint", lambda _: (own.recipe, own.types, own.state))
    monkeypatch.setattr(val, "predict_by", lambda *_, **__: pytest.fail("ran"))
    leuko("val", "--data", data, "--weights", foreign, "--calibrate").refused(str(foreign), "--calibrate", "train")
    words = ["val", "--data", data, "--ensemble", faster, foreign, "--calibrate"]
    leuko(*words).refused(str(foreign), "--calibrate")
    assert foreign.read_bytes() == b"theirs" and "calibration" not in checkpoint.load_weights(faster).about


def test_the_reported_split_is_known_by_all_its_names(project, data, tmp_path, leuko):
    words = ["val", "--data", data, "--save", tmp_path, "--weights", project / "faster", "--calibrate"]
    leuko(*words, "--split", "val", "--tune-split", "valid").refused("--tune-split valid", "reported")
    leuko(*words, "--split", "validation").refused("--tune-split val", "reported")
    assert not list(tmp_path.iterdir())


def test_val_sweeps_interference_factors(project, data, tmp_path, leuko):
    words = ["val", "--weights", project / "faster", "--data", data, "--save", tmp_path, "--workers", "0"]
    leuko(*words, "--factors", "fog").refused('"fog"', "defocus")
    leuko(*words, "--factors", "dust", "--severity", "0..3").refused("--severity", "1")
    assert leuko(*words, "--factors", "dust,small_cell", "--severity", "1..2", "--draws", "0").code == 0
    rows = table(tmp_path / "faster/severity.csv")
    assert [(r["factor"], r["severity"]) for r in rows] == [
        ("", "0"),
        ("dust", "1"),
        ("dust", "2"),
        ("small_cell", "1"),
        ("small_cell", "2"),
    ]
    assert all(0 <= float(r["mAP"]) <= 1 for r in rows)
    assert (tmp_path / "faster/severity.png").exists() and not (tmp_path / "faster/intervals.csv").exists()
    assert "severity" in (tmp_path / "faster/report.html").read_text()


def test_val_refuses_what_does_not_fit(project, data, tmp_path, leuko):
    save = ["--save", tmp_path / "val", "--data", data]
    other, fewer = untrained(tmp_path / "other.safetensors", [*TYPES[:4], "Mono"]), untrained(tmp_path / "f", TYPES[:4])
    leuko("val", *save, "--ensemble", project / "faster", other).refused(str(other), '"Mono"', "matched by name")
    leuko("val", *save, "--weights", fewer).refused(str(fewer), 'does not know the type "M"')
    leuko("val", *save, "--ensemble", project / "faster").refused("at least two")
    leuko("val", *save, "--ensemble", "--project", tmp_path).refused(str(tmp_path), "0 finished runs", "NG, BG")
    leuko("val", *save, "--weights", fewer, "--ensemble", other).refused("--weights", "--ensemble")
    leuko("val", *save, "--weights", project / "faster", "--split", "tset").refused(
        'no split "tset"', "train, val, test"
    )
    leuko("val", *save, "--weights", project / "fatser").refused("fatser", 'did you mean "faster"')
    leuko("val", *save, "--weights", tmp_path).refused(str(tmp_path), "no weights/best.safetensors")
    leuko("val", *save, "--weights", project / "faster", "--device", "cuda:77").refused("--device cuda:77")
    assert not (tmp_path / "val").exists()


def found_all(dataset: Dataset, least: int = 0) -> list[dict]:
    """Detections of all cells of the images from ``least`` on."""
    found = []
    for i, s in enumerate(dataset.samples):
        n = len(s.boxes) if i >= least else 0
        found.append(Detections(s.boxes[:n], np.full(n, 0.9, np.float32), s.labels[:n]))
    return found


def test_speed_is_measured_after_a_warm_up(data):
    """The first call of a network allocates memory and chooses kernels."""

    class Network:
        calls = 0

        def detect(self, views: list) -> list[Detections]:
            self.calls += 1
            time.sleep(0.5 if self.calls == 1 else 0)
            return [Detections([], [], []) for _ in views]

    dataset, network = load(data, "test"), Network()
    weights = SimpleNamespace(classes=dataset.types)
    member = EnsembleMember(network, (64,), name="slow at first", weights=weights)
    seconds = evaluate.predict_by(member, dataset, workers=0).seconds
    assert network.calls == len(dataset) + 1 and len(seconds) == len(dataset)
    assert seconds.max() < 0.5


def test_each_member_has_its_own_peak_of_memory(project, data, tmp_path, leuko, monkeypatch):
    """Not that of the process, which is the largest one's."""
    reset, read = [], iter([300.0, 100.0])
    monkeypatch.setattr(cost, "reset_peak_memory", reset.append)
    monkeypatch.setattr(cost, "peak_memory", lambda _: next(read) if len(reset) else pytest.fail("not reset"))
    words = ["--data", data, "--save", tmp_path, "--workers", "0", "--draws", "0"]
    assert leuko("val", "--ensemble", project / "faster", project / "fcos", *words).code == 0
    rows = {row["model"]: row["peak_memory_MiB"] for row in table(tmp_path / "ensemble/cost.csv")}
    assert len(reset) == 2 and rows["faster"] == "300.0" and rows["fcos"] == "100.0"


@pytest.mark.parametrize("groups", [1, 2])
def test_one_group_gives_no_interval_and_no_verdict(groups, data, tmp_path):
    """All draws of one group are the same, which says nothing of how sure a measure is."""
    dataset = load(data, "train")
    for i, s in enumerate(dataset.samples):
        s.group = f"smear {i % groups}"
    found = [found_all(dataset, least) for least in (4, 0)]
    models = [results.ModelResult(str(i), f, coco.evaluate(dataset, f), 0.5, "") for i, f in enumerate(found)]
    *_, span, gap = results.write_results(tmp_path, dataset, models, draws=20)[1]
    rows = [row for name in ("intervals", "differences") for row in table(tmp_path / f"{name}.csv")]
    assert len(rows) == 5 and all((row["low"] == row["high"] == "") == (groups == 1) for row in rows)
    assert ("one group" in span) == ("interval - (" in span) == (groups == 1)
    assert gap.endswith("95 % interval -, p -") == (groups == 1) and "nan" not in span + gap


def test_kappa_of_one_type_is_a_dash(pictures, tmp_path):
    dataset = Dataset(["NG"], [Sample(p, 97, 61, [[10, 10, 40, 40]], [0], i) for i, p in enumerate(pictures, 1)])
    found = found_all(dataset)
    model = results.ModelResult("a", found, coco.evaluate(dataset, found), 0.5, "a default")
    answer, _ = results.write_results(tmp_path, dataset, [model], draws=0)
    assert "kappa of the types of the found cells -\n" in answer


def test_the_benchmark_of_validation_runs():
    """It stands in for parts of the command, and would rot unseen."""
    script = Path(__file__).parents[1] / "benchmarks/validation.py"
    words = [sys.executable, script, "--images", "3", "--cells", "4", "--network-seconds", "30"]
    result = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0 and "share outside the network" in result.stdout, result.stderr
