"""The detector that comes with leuko: found by its name wherever weights are named, the default, and never written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TYPES, in_child

from leuko import Detector, config, registry
from leuko.engine import thresholds
from leuko.engine.checkpoint import StoredTyper, Weights, load_weights, save
from leuko.engine.ensemble import Ensemble, EnsembleMember
from leuko.errors import LeukoError
from leuko.io import digest
from leuko.models import create
from leuko.models.typer import Typer

NET = "mobilenetv3_small_050"
FIELDS = sorted(config.EXAMPLES.glob("*.jpg"))


@pytest.fixture
def box(tmp_path, monkeypatch) -> Path:
    """An installed package's folder of weights, with a small detector of one class and its typing stage in it."""
    folder = tmp_path / "site-packages/leuko/weights"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "weights/registry.yaml", folder)
    torch.manual_seed(0)
    model, net = create("fcos", 1, NET, image_size=64, channels=32), Typer(NET, 5, 32)
    torch.nn.init.zeros_(model.head.cls_logits.bias)  # so that it finds something
    stage = StoredTyper(net.recipe, TYPES, 1.3, ["leukocyte"], {}, net.state_dict(), {})
    weights = Weights(folder / "leuko-small.safetensors", model.recipe, TYPES, {}, model.state_dict(), stage)
    weights.halve()
    save(weights)
    monkeypatch.setattr(registry, "FOLDERS", (tmp_path / "no clone", folder))
    return weights.path


def test_differential_of_the_examples_without_any_option(tmp_path):
    """The file that is in git, in a process of its own that may not ask for the network."""
    save_to = tmp_path / "found"
    [(result, _), (without, _)], _ = in_child(
        [["predict", "--source", config.EXAMPLES, "--save", save_to], ["predict"]]
    )
    assert result.code == 0, result.err
    assert len(FIELDS) == 4 and {p.name for p in (save_to / "leuko-small/images").iterdir()} == {p.name for p in FIELDS}
    without.refused("--source is missing", f"leuko predict --source {config.EXAMPLES}")
    weights = load_weights("leuko-small")
    assert weights.types == TYPES and weights.typer and weights.path.stat().st_size <= 24e6
    assert registry.find("leuko-small").model == weights.recipe["name"]


def test_every_command_knows_the_name(box, data, project, tmp_path, leuko, monkeypatch):
    before = digest(box)
    assert Detector().path == Detector("leuko-small").path == box and Detector().types == tuple(TYPES)
    assert "leuko-small" in leuko("download").out.splitlines()[0] and " here " in leuko("download").out.splitlines()[0]
    told = leuko("download", "leuko-small").out
    assert told.count("\n") == 1 and f"{box}: comes with leuko" in told and "CC-BY-4.0" in told

    monkeypatch.setattr(thresholds, "find", lambda *_: 0.25)
    common = ["--data", data, "--draws", "0", "--workers", "0", "--save", tmp_path / "val"]
    alone = leuko("val", *common)
    assert alone.code == 0 and (tmp_path / "val/leuko-small/report.html").exists(), alone.err
    assert f"the threshold 0.25 is not kept: {box}: comes with leuko" in alone.out and "copy" in alone.out
    assert "from 0.25 (found on val" in alone.out
    run = shutil.copytree(project / "faster", tmp_path / "faster")
    fused = leuko("val", *common, "--ensemble", "leuko-small", run, "--typer", "leuko-small")
    assert fused.code == 0 and fused.out.count("not kept") == 1, fused.err  # the fusion's is kept with the run
    leuko("val", *common, "--calibrate").refused(f"{box}: comes with leuko")
    own = shutil.copy(box, tmp_path / "own.safetensors")
    assert "not kept" not in leuko("val", *common, "--weights", own).out
    assert Detector(own).threshold == 0.25 and Detector().threshold == 0.5 and digest(box) == before

    train = ["train", "--data", data, "--weights", "leuko-small", "--project", tmp_path, "--workers", "0"]
    refused = leuko(*train)
    refused.refused("its backbone is", "its channels is 32")
    flags = refused.err.split("; give ")[1].split()
    done = leuko(*train, *flags, "--epochs", "1", "--imgsz", "64", "--name", "tuned")
    assert done.code == 0 and f"from {box}: types known none" in done.out and f"--typer {box}" in done.out, done.err
    stage = ["type", "--data", data, "--weights", "leuko-small", "--no-pretrained", "--backbone", NET, "--side", "32"]
    typed = leuko(*stage, "--steps", "2", "--project", tmp_path / "type")
    assert typed.code == 0 and load_weights(tmp_path / "type/typer").classes == ["leukocyte"], typed.err
    assert digest(box) == before


def test_what_can_be_wrong_with_it(box, data, tmp_path, leuko, monkeypatch):
    predict = ["predict", "--source", config.EXAMPLES, "--save", tmp_path / "found"]
    leuko(*predict, "--weights", "leuko-smal").refused(
        'leuko-smal: no such run or weights file; did you mean "leuko-small"'
    )
    monkeypatch.chdir(tmp_path)
    shutil.copytree(box.parent, tmp_path / "leuko-small")
    leuko(*predict).refused("leuko-small: no weights/best.safetensors", "rename it", f"or name {box}")
    (tmp_path / "leuko-small/weights").mkdir()
    other = tmp_path / "leuko-small/weights/best.safetensors"
    shutil.copy(box, other)
    assert Detector().path.absolute() == other  # a path comes before a name
    shutil.rmtree(tmp_path / "leuko-small")
    whole = box.read_bytes()
    box.write_bytes(whole[:-1])
    leuko(*predict).refused(f"{box}: not a whole safetensors file")
    box.unlink()
    for words in (predict, ["val", "--data", data], ["download", "leuko-small"]):
        leuko(*words).refused(f"{box}: no such file, though leuko-small comes with leuko; install")
    leuko("train", "--data", data, "--weights", "fcos_coco").refused("run: leuko download fcos_coco")
    (box.parent / "registry.yaml").unlink()
    leuko(*predict).refused("registry.yaml: no such file; install")
    assert not (tmp_path / "found").exists()


def test_a_folder_that_cannot_be_written_is_no_hindrance(box, tmp_path):
    os.chmod(box, 0o444)
    os.chmod(box.parent, 0o555)
    try:
        member = EnsembleMember.load("leuko-small")
        with pytest.raises(LeukoError, match="comes with leuko and stays as it is"):
            thresholds.keep(Ensemble([member]), 0.3, "slides", "val")
        assert len(list(box.parent.iterdir())) == 2
    finally:
        os.chmod(box.parent, 0o755)


def test_half_precision_is_used_as_single(box, tmp_path):
    """Numbers of half precision, stored in 16 or in 32 bits, give the same bits."""
    half = load_weights(box)
    single = load_weights(box)
    assert {v.dtype for v in half.tensors().values() if v.is_floating_point()} == {torch.float16}
    single.path = tmp_path / "single.safetensors"
    for part in (single.state, single.typer.state):
        part |= {k: v.float() for k, v in part.items() if v.is_floating_point()}
    save(single)
    assert single.path.stat().st_size > 1.8 * box.stat().st_size
    for part in (half.build(), half.typer.build(box)):
        assert {v.dtype for v in part.state_dict().values() if v.is_floating_point()} == {torch.float32}
    mine, other = (Detector(path).predict(FIELDS[0], 0.0) for path in (box, single.path))
    assert len(mine) and mine.boxes.tolist() == other.boxes.tolist() and mine.scores.tolist() == other.scores.tolist()
