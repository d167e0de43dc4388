"""leuko adapt: what it learns from another laboratory's fields, what it leaves alone, and what can be wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TYPES, Result
from torch import nn

from leuko import Detections, Detector
from leuko.data.crops import crops_of
from leuko.data.images import read_image
from leuko.data.source import load
from leuko.engine import adaptation, thresholds
from leuko.engine.adaptation import adapt_typer, fit_last, probabilities, with_statistics
from leuko.engine.checkpoint import Weights, load_weights, save
from leuko.engine.ensemble import EnsembleMember
from leuko.io import digest
from leuko.metrics import counting
from leuko.metrics.calibration import type_shares
from leuko.runtime.typing_stage import resized

WIDER = 1.2


@pytest.fixture(autouse=True)
def few_cells_are_enough(monkeypatch):
    """The fields of these tests have fewer cells than statistics need."""
    monkeypatch.setattr(adaptation, "LEAST_CELLS", 10)


@pytest.fixture(scope="module")
def far(centres) -> np.ndarray:
    """The crops of the training fields of ``far``, as a stage of 32 pixels sees them."""
    samples = load(centres["far"], "train").samples
    return np.concatenate([crops_of(read_image(sample.image), sample.boxes, 32, 1.3) for sample in samples])


@pytest.fixture
def stage(typed) -> Weights:
    return load_weights(typed)


@pytest.fixture
def adapt(typed, oracle, tmp_path, leuko):
    """Run `leuko adapt` in this process; the detector finds what ``oracle`` says."""

    def run(*words: str | Path, weights: Path = typed, code: int = 0) -> Result:
        before = digest(load_weights(weights).path)
        result = leuko("adapt", "--weights", weights, "--project", tmp_path / "runs", "--workers", "0", *words)
        assert result.code == code, result.err
        assert digest(load_weights(weights).path) == before  # whatever happens
        return result

    return run


# ---------------------------------------------------------------------- the parts


def test_shares_of_types_are_found_behind_confused_probabilities():
    rng, middles = np.random.default_rng(0), np.eye(5) * 2.2
    shares = np.array([0.6, 0.02, 0.08, 0.25, 0.05])
    labels = rng.choice(5, 4000, p=shares)
    points = middles[labels] + rng.standard_normal((4000, 5))
    likelihood = np.exp(-((points[:, None] - middles) ** 2).sum(-1) / 2)
    chances = likelihood / likelihood.sum(1, keepdims=True)  # for types that are equally frequent
    naive, found = chances.mean(0), type_shares(chances)
    smoothed = (shares + 0.05) / 1.25
    assert (
        np.abs(naive - shares).max() > 0.1 and np.abs(found - smoothed).max() < 0.03 and found.sum() == pytest.approx(1)
    )
    assert type_shares(np.zeros((0, 5))) == pytest.approx([0.2] * 5)


def test_statistics_go_the_stated_way(stage, far, monkeypatch):
    net = stage.typer.build(stage.path)
    before = copy.deepcopy(net.state_dict())
    assert with_statistics(net, far[:9], 0) is net
    predicted = np.array([0] * 30 + [1] * 5 + [2] * 4 + [3])
    counts = np.bincount(predicted[adaptation._balanced_sample(predicted, np.random.default_rng(0))], minlength=4)
    assert counts.tolist() == [adaptation.PER_TYPE] * 3 + [0]
    for labels in (np.arange(10), np.zeros(10, int)):  # each cell of a type of its own, or all of one
        assert len(adaptation._balanced_sample(labels, np.random.default_rng(0))) == adaptation.PER_TYPE * len(
            {*labels}
        )

    monkeypatch.setattr(adaptation, "_balanced_sample", lambda predicted, rng: np.arange(len(predicted)))
    monkeypatch.setattr(adaptation, "is_cell", lambda chances: np.ones(len(chances), dtype=bool))
    own = copy.deepcopy(net)  # torch's own statistics of these cells
    for norm in (m for m in own.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        own(torch.from_numpy(far).permute(0, 3, 1, 2).float() / 255)
    for share in (0.5, 1.0):
        monkeypatch.setattr(adaptation, "SHARE", share)
        moved = with_statistics(net, far, 0)
        assert not any(m.training for m in moved.modules())
        for name, value in moved.state_dict().items():
            if "running" in name:
                expected = share * own.state_dict()[name] + (1 - share) * before[name]
                assert torch.allclose(value, expected, rtol=1e-3, atol=1e-4), name
            elif "num_batches" not in name:
                assert torch.equal(value, before[name]), name
        assert np.abs(probabilities(moved, far) - probabilities(net, far)).max() > 0.01
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_last_layer_learns_new_cells_and_keeps_the_old(stage):
    net, replay = stage.typer.build(stage.path), stage.typer.replay
    old, labels = replay["features"].float(), replay["labels"]

    def right(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return float(((old @ weight.T + bias).argmax(1) == labels).float().mean())

    start = (net.last.weight.detach(), net.last.bias.detach())
    new = old[labels == 0][:10] * 0.3 + old[labels == 3][:10] * 0.3 + 1.5  # cells that look like none that is known
    weight, bias = fit_last(net, new, torch.full((10,), 4), replay)
    assert ((new @ weight.T + bias).argmax(1) == 4).all() and right(weight, bias) >= right(*start) - 0.02
    assert torch.equal(net.last.weight, start[0])


def test_shares_do_not_add_up_from_one_adaptation_to_the_next(stage, far, monkeypatch):
    monkeypatch.setattr(adaptation, "with_statistics", lambda net, *_: net)
    net = stage.typer.build(stage.path)
    about = {"seed": 0, "prior": True}
    first = adapt_typer(net, stage.typer.replay, far, [], shift=np.zeros(5), **about)
    assert np.abs(first.shift).max() > 0.05 and abs(first.shift.sum()) < 1e-6
    assert first.net.last.bias.detach().numpy()[:5] == pytest.approx(
        net.last.bias.detach().numpy()[:5] + first.shift, abs=1e-5
    )
    second = adapt_typer(first.net, stage.typer.replay, far, [], shift=first.shift, **about)
    assert second.shift == pytest.approx(first.shift, abs=1e-4)
    without = adapt_typer(first.net, stage.typer.replay, far, [], shift=first.shift, **about | {"prior": False})
    assert not without.shift.any() and torch.allclose(without.net.last.bias, net.last.bias, atol=1e-5)
    few = adapt_typer(first.net, stage.typer.replay, far[:8], [], shift=first.shift, **about)
    assert few.shift == pytest.approx(first.shift) and "shares" not in few.about
    assert torch.allclose(few.net.last.bias, first.net.last.bias, atol=1e-5)


# ---------------------------------------------------------------------- the command


def test_from_fields_without_labels(adapt, typed, centres, tmp_path, stage):
    source = tmp_path / "slides"
    source.mkdir()
    for sample in load(centres["far"], "train").samples:
        shutil.copy(sample.image, source)
    (source / "broken.jpg").write_text("no image")
    result = adapt("--source", source)
    assert "18 fields without labels, 46 cells in all, 0 with labels" in result.out and "NG " in result.out
    assert "not read: " in result.err and f"{source / 'broken.jpg'}: not a readable image" in result.err
    new = load_weights(tmp_path / "runs/adapted")
    assert new.types == TYPES and new.recipe == stage.recipe and "counting" not in new.about
    assert all(torch.equal(value, stage.state[name]) for name, value in new.state.items())
    (about,) = new.typer.about["adapted"]
    assert (
        about["source"] == str(source)
        and about["data"] == ""
        and (about["fields"], about["labelled_fields"]) == (18, 0)
    )
    assert about["statistics"] == 0.5 and about["cells"] == 46 and about["files"] == 18 + 1
    assert len(about["shares"]) == 5 and sum(about["shares"]) == pytest.approx(1, abs=0.01)
    assert new.typer.about["learned"] == stage.typer.about["learned"] and new.typer.about["box_factors"] == [1, 1]
    last = [name for name in stage.typer.state if name.startswith("net.fc")]
    changed = {name for name, value in new.typer.state.items() if not torch.equal(value, stage.typer.state[name])}
    assert any("running_mean" in name for name in changed)
    changed = [name for name in changed if "running" not in name and "num_batches" not in name]
    assert changed == ["net.fc.bias"]
    moved = new.typer.state["net.fc.bias"] - stage.typer.state["net.fc.bias"]
    assert moved.tolist() == pytest.approx([*new.typer.about["shift"], 0], abs=1e-5)
    metrics = json.loads((tmp_path / "runs/adapted/metrics.json").read_text())
    names = sorted(path.name for path in source.iterdir())  # of files: kept beside the weights, not in them
    assert metrics["file_names"] == names and not any(name.encode() in new.path.read_bytes() for name in names)
    assert about["files_sha256"] == hashlib.sha256("\n".join(names).encode()).hexdigest()
    (unreadable,) = metrics["unreadable"]
    assert unreadable.startswith(f"{source / 'broken.jpg'}: not a readable image")

    adapt("--source", source, "--no-prior", "--name", "plain")
    plain = load_weights(tmp_path / "runs/plain").typer
    assert all(torch.equal(plain.state[name], stage.typer.state[name]) for name in last) and not any(
        plain.about["shift"]
    )
    adapt("--source", source, "--name", "plain")  # a run is never overwritten, and the same again is the same
    assert load_weights(tmp_path / "runs/plain-2").identity == new.identity


def test_from_labels_and_both(adapt, centres, tmp_path, stage):
    labels = adapt("--data", centres["far"], "--name", "labels")
    new = load_weights(tmp_path / "runs/labels")
    (about,) = new.typer.about["adapted"]
    assert about["labelled"] == 46 and about["labelled_fields"] == 18 and "shares" not in about
    assert set(about["log_loss"]) == {"before", "statistics", "last layer", "shares alone"}
    assert (
        about["log_loss"]["statistics"] <= about["log_loss"]["before"]
        and "log loss of the labelled types" in labels.out
    )
    assert about.get("last_layer", False) == (min(about["log_loss"], key=about["log_loss"].get) == "last layer")
    (kept,) = new.about["counting"].values()
    assert 0 < kept["threshold"] < 1 and kept["split"] == "train" and Detector(new.path).threshold == kept["threshold"]
    assert set(new.about["calibration"]) >= {"temperature", "shift", "data", "sizes"}

    both = adapt("--source", centres["far"], "--data", centres["far"], "--split", "val", "--name", "both")
    assert "24 fields without labels, " in both.out and ", 12 with labels" in both.out
    new = load_weights(tmp_path / "runs/both")
    (about,) = new.typer.about["adapted"]
    assert len(about["shares"]) == 5 and about["labelled"] == 12 and about["files"] == 24 + 6
    assert new.about["calibration"]["split"] == "val"


def widened(folder: Path, to: Path, factor: float) -> Path:
    """A copy of a data set whose boxes are wider by a factor; those that would leave their image are left out."""
    shutil.copytree(folder, to)
    for path in to.glob("*.json"):
        content = json.loads(path.read_text())
        if "annotations" not in content:
            continue
        width = {image["id"]: image["width"] for image in content["images"]}
        inside = []
        for each in content["annotations"]:
            x, y, w, h = each["bbox"]
            x, w = x - w * (factor - 1) / 2, w * factor
            if x >= 0 and x + w <= width[each["image_id"]]:
                inside.append({**each, "bbox": [x, y, w, h], "area": w * h})
        path.write_text(json.dumps({**content, "annotations": inside}))
    return to


def test_resized_boxes_keep_to_the_border_of_an_image():
    boxes, size = np.float32([[0, 100, 60, 160], [6, 50, 66, 110], [50, 50, 110, 90]]), (200, 180)
    narrow, wide = (resized(boxes, (f, f), size) for f in (0.9, 1.25))
    assert narrow[0] == pytest.approx([0, 103, 57, 157]) and wide[2] == pytest.approx([42.5, 45, 117.5, 95])
    assert counting.at_border(boxes, size).tolist() == counting.at_border(wide, size).tolist()
    assert wide[1, 0] > 1 and resized(boxes, (1.0, 1.0), size) is boxes
    cells = replace(Detections(boxes, [0.9] * 3, [0] * 3, ("NG",)), type_scores=np.full((3, 1), 0.9, np.float32))
    for each in (boxes, narrow, wide):
        assert counting.classify(replace(cells, boxes=each), size, 0.5).why.tolist() == [counting.BORDER, "", ""]


def test_boxes_become_those_of_the_laboratory(adapt, centres, tmp_path, typed):
    data = widened(centres["far"], tmp_path / "wide", WIDER)
    number = int(load(data, "train").counts().sum())
    weights, width = typed, 1.0
    for name in ("one", "two"):
        result = adapt("--data", data, "--name", name, weights=weights)
        width *= (WIDER / width) ** (number / (number + 5))
        weights = tmp_path / "runs" / name
        about = load_weights(weights).typer.about
        assert about["box_factors"] == pytest.approx([width, 1.0], abs=1e-4)
        assert f"boxes: {width:.2f} times as wide, 1.00 times as high" in result.out
        assert len(about["adapted"]) == 1 + (name == "two")
        for sample in load(centres["far"], "train").samples[:3]:
            found = Detector(weights).predict(sample.image, threshold=0.0)
            boxes = resized(sample.boxes, (width, 1.0), (sample.width, sample.height))
            assert len(found) == len(boxes)
            assert np.sort(found.boxes, 0) == pytest.approx(np.sort(boxes, 0), abs=1e-2)
    assert 1.19 < width < WIDER
    few = load(data, "train").samples[0]
    assert len(few.boxes) < 5
    content = json.loads((data / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    (data / "train.json").write_text(json.dumps(content))
    adapt("--data", data, "--name", "few")  # too few to say
    assert load_weights(tmp_path / "runs/few").typer.about["box_factors"] == [1, 1]


def test_labels_that_teach_nothing_leave_the_last_layer(adapt, centres, tmp_path, stage):
    data = shutil.copytree(centres["far"], tmp_path / "random")
    content = json.loads((data / "train.json").read_text())
    shuffled = np.random.default_rng(1).permutation([a["category_id"] for a in content["annotations"]]).tolist()
    for annotation, label in zip(content["annotations"], shuffled, strict=True):
        annotation["category_id"] = label
    (data / "train.json").write_text(json.dumps(content))
    result = adapt("--data", data)
    new = load_weights(tmp_path / "runs/adapted").typer
    assert "the last layer stays: these labels say no more than how frequent each type is" in result.out, result.out
    assert torch.equal(new.state["net.fc.weight"], stage.typer.state["net.fc.weight"])


def test_what_weights_say_of_scores(adapt, centres, tmp_path, stage):
    counting = thresholds.of_model(0.9, [64], "slides", "val") | thresholds.of_model(0.35, [128], "slides", "val")
    stage.about |= {"val": {"mAP": 0.5}, "counting": counting}
    stage.path = tmp_path / "measured.safetensors"
    save(stage)
    result = adapt("--source", centres["far"], weights=stage.path)
    new = load_weights(tmp_path / "runs/adapted")
    assert "cells count from a score of 0.35" in result.out and Detector(new.path).threshold == 0.35
    assert "val" not in new.about and new.about["epoch"] == 1  # its mAP was that of other types


def test_half_precision_stays(adapt, centres, tmp_path, stage):
    stage.halve()
    half = replace(stage, path=tmp_path / "half.safetensors")
    save(half)
    adapt("--source", centres["far"], "--data", centres["far"], weights=half.path)
    new = load_weights(tmp_path / "runs/adapted")
    assert {v.dtype for v in new.typer.state.values()} == {torch.float16, torch.int64}
    assert new.path.stat().st_size < 1.05 * half.path.stat().st_size


def test_adapt_refuses_what_it_cannot_use(adapt, detector, centres, tmp_path, leuko, stage):
    words = ["adapt", "--project", tmp_path / "runs", "--weights"]
    far = centres["far"]
    leuko(*words, detector, "--source", far).refused(str(detector), "no typing stage", "leuko type")
    alone = replace(stage, path=tmp_path / "alone.safetensors", recipe={}, state={})
    alone.typer.classes = []
    save(alone)
    leuko(*words, alone.path, "--source", far).refused("holds only a typing stage", "--weights")
    foreign = tmp_path / "yolo.pt"
    foreign.write_bytes(b"PK")
    leuko(*words, foreign, "--source", far).refused(str(foreign))
    adapt(code=2).refused("--source and --data are missing")
    broken = tmp_path / "broken"
    broken.mkdir()
    adapt("--source", broken, code=2).refused("no image there")
    (broken / "1.jpg").write_text("no image")
    (broken / "2.jpg").write_bytes(next(far.rglob("*.jpg")).read_bytes()[:900])
    adapt("--source", broken, code=2).refused("nothing to learn from on its 2 images", "1.jpg: not a readable")
    blank = centres["crops"] / "platelet"
    adapt("--source", blank, code=2).refused("nothing to learn from on its 6 images (no cell was found there)")

    def labelled(name: str, edit) -> Path:
        data = shutil.copytree(far, tmp_path / name)
        content = json.loads((data / "train.json").read_text())
        edit(content)
        (data / "train.json").write_text(json.dumps(content))
        return data

    adapt("--data", far, "--split", "tset", code=2).refused('no split "tset"', "train, val")
    band = labelled("band", lambda c: c["categories"][0].update(name="band"))
    adapt("--data", band, code=2).refused(str(band), 'the type "band"', "NG, BG, EG, L, M", "leuko type")
    empty = labelled("empty", lambda c: c.update(annotations=[]))
    adapt("--data", empty, code=2).refused(str(empty), "no labelled cell")
    cut = labelled("cut", lambda c: None)
    image = load(cut, "train").samples[1].image
    image.write_bytes(image.read_bytes()[:1500])
    adapt("--data", cut, code=2).refused(str(image), "truncated")
    without = replace(stage, path=tmp_path / "without.safetensors")
    without.typer.replay, without.typer.classes = {}, ["leukocyte"]
    without.recipe, without.state = load_weights(detector).recipe, load_weights(detector).state
    save(without)
    both = ["--data", far, "--source", blank]  # told before the detector runs, which finds nothing there
    adapt(*both, weights=without.path, code=2).refused(str(without.path), "no cells that it has learned")
    adapt("--data", f"a={far}", code=2).refused(f"a={far}")
    few = shutil.copytree(far / "images", tmp_path / "few", ignore=lambda _, names: sorted(names)[3:])
    adapt("--source", few, code=2).refused(str(few), "nothing to adapt by", "cells were found")
    adapt("--source", far, "--name", "..", code=2).refused("not a plain folder name")
    adapt("--source", far, "--seed", "-1", code=2).refused("--seed -1")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
    leuko("adapt", "--weights", stage.path, "--source", far, "--project", foreign).refused("cannot be written")


def test_one_labelled_field_is_enough_to_run(adapt, centres, tmp_path):
    data = shutil.copytree(centres["far"], tmp_path / "one")
    content = json.loads((data / "train.json").read_text())
    content["annotations"] = content["annotations"][:1]
    content["images"] = [i for i in content["images"] if i["id"] == content["annotations"][0]["image_id"]]
    (data / "train.json").write_text(json.dumps(content))
    result = adapt("--data", data)
    assert "the last layer stays: at least 8 labelled fields with cells" in result.out
    assert "1 with labels" in result.out
    assert load_weights(tmp_path / "runs/adapted").typer.about["adapted"][0]["labelled"] == 1


def test_what_is_kept_belongs_to_a_typing_stage(stage, tmp_path):
    kept = {"counting": thresholds.of_model(0.31, [stage.recipe["image_size"]], "data", "val")}
    kept["calibration"] = {"temperature": 2.0, "shift": 0.0}
    typer = replace(stage.typer, about=stage.typer.about | {"box_factors": [1.2, 0.9]})
    save(replace(stage, path=tmp_path / "kept.safetensors", about=kept, typer=typer))
    other = {name: value * 1.01 if value.is_floating_point() else value for name, value in stage.typer.state.items()}
    save(replace(stage, path=tmp_path / "other.safetensors", typer=replace(typer, state=other)))
    expected = (("", 0.31, True, (1.2, 0.9)), ("kept", 0.31, True, (1.2, 0.9)))
    expected += (("off", 0.5, False, None), ("other", 0.5, False, (1, 1)))
    for name, threshold, is_calibrated, factors in expected:
        named = str(tmp_path / f"{name}.safetensors") if name in ("kept", "other") else name
        member = EnsembleMember.load(tmp_path / "kept.safetensors", typer=named)
        assert thresholds.alone(member).value == threshold and (member.scaling is not None) == is_calibrated, name
        assert (member.typing.box_factors if member.typing else None) == factors, name
