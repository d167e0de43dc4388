"""The Ultralytics baseline, also through the same commands as leuko's own models. Skipped without that package."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import HEIGHT, ROOT, TINY, TYPES, WIDTH, Bomb, dataset, packed, table, untrained
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import nn

from leuko.baselines.ultralytics import (
    IGNORED_OPTIONS,
    create_yolo,
    is_yolo,
    plain_name,
    read_checkpoint,
    tasks,
    train_ultralytics,
    write_dataset,
)
from leuko.config import TrainOptions
from leuko.data import source
from leuko.data.images import read_image
from leuko.engine import checkpoint
from leuko.engine.run import Run
from leuko.errors import LeukoError

if not find_spec("ultralytics"):  # an import by pytest would come before leuko's protections
    pytest.skip("the extra `ultralytics` is not installed", allow_module_level=True)
YOLO = ["--model", "yolo11n", "--no-pretrained", "--imgsz", "64", "--batch", "2", "--workers", "0"]
CPU = torch.device("cpu")

# Run in a process of its own: a use of the network or a file in the home folder ends it.
GUARDED = """
import os, socket, sys
def refuse(*_, **__):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from leuko import cli
cli.leave(lambda: cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, Path]:
    """The run of a command that may reach neither network nor home folder, and the home folder it was given."""
    folder, home = tmp_path_factory.mktemp("yolo"), tmp_path_factory.mktemp("home")
    words = ["train", "--data", data, "--project", folder, *YOLO, "--epochs", "1", "--rois", "9"]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *map(str, words)],
        env=os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "yolo11n ignores --rois\n" in done.stdout and "from scratch" in done.stdout
    return folder / "yolo11n", home


def test_run_folder_is_every_runs(trained, project):
    run, home = trained
    own = {p.name for p in (project / "faster").iterdir()}
    leukos = {"resume.pt", "train_batch0.jpg", "train_batch1.jpg"}
    assert {p.name for p in run.iterdir()} == own - leukos | {"ultralytics"}
    assert not list(home.iterdir())
    theirs, ours = (list(table(folder / "results.csv")[0]) for folder in (run, project / "faster"))
    assert [c for c in theirs if "loss/" not in c] == [c for c in ours if "loss/" not in c]
    assert {"loss/box_loss", "loss/cls_loss", "loss/dfl_loss"} <= set(theirs)
    assert len(list((run / "ultralytics/labels/train").glob("*.txt"))) == 9


def test_resuming_is_refused_with_the_remedy(trained, leuko):
    run, _ = trained
    leuko("train", "--resume", run, "--epochs", "2").refused("cannot be resumed", f"--weights {run}")


def train(folder: Path, data: Path, on_epoch_end=lambda *_: False, model=None, **options: object) -> None:
    train_set, val_set = source.load(data, "train"), source.load(data, "val")
    model = model or create_yolo("yolo11n", len(train_set.types), image_size=64)
    chosen = TrainOptions(imgsz=64, batch=2, workers=0, **options)
    run = Run(folder, chosen, train_set, val_set, CPU)
    train_ultralytics(model, chosen, folder, train_set, val_set, CPU, on_epoch_end, run.stop_diverged)


def test_each_epoch_ends_with_the_mean_of_the_weights(data, tmp_path):
    """... until leuko wants to stop; and the process is left as it was."""
    ended = []
    model = create_yolo("yolo11n", 5, image_size=64)
    first = copy.deepcopy(model.state_dict())

    def end(ema_model: object, losses: dict, learning_rate: float, seconds: float) -> bool:
        assert not ema_model.training and ema_model.recipe == model.recipe
        assert losses.keys() == {"box_loss", "cls_loss", "dfl_loss"} and all(map(math.isfinite, losses.values()))
        assert learning_rate > 0 and seconds > 0
        fused = copy.deepcopy(ema_model)
        fused.fuse()
        assert len(fused([torch.rand(3, 80, 80)])) == 1
        ended.append((copy.deepcopy(ema_model.state_dict()), copy.deepcopy(model.state_dict())))
        return len(ended) == 8  # Ultralytics sums 32 batches of 2 for its first step at a rate above 0

    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    try:
        train(tmp_path, data, end, model, epochs=20)
        assert torch.get_num_threads() == 2 and cv2.getNumThreads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(1)
    assert len(ended) == 8
    key = "network.model.0.conv.weight"
    states = [first, *ended[-1]]
    assert all(state.keys() == first.keys() for state in states)
    assert not any(a[key].equal(b[key]) for a, b in itertools.combinations(states, 2))
    assert {p.name for p in tmp_path.iterdir()} == {"ultralytics"}


def test_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    model = create_yolo("yolo11n", 5, image_size=64)
    model.network.model[0].conv.weight.data.fill_(math.nan)
    with pytest.raises(
        LeukoError, match=r"not finite at step 0 \(epoch 1\): .*cls_loss nan.*; images .*000.*lower --lr"
    ):
        train(tmp_path, data, model=model, epochs=1)
    assert json.loads((tmp_path / "log.jsonl").read_text())["event"] == "diverged"


def test_image_that_ultralytics_refuses_is_not_dropped_in_silence(tmp_path):
    files = [tmp_path / "large.png", tmp_path / "small.png"]
    for file, side in zip(files, (32, 9), strict=True):
        Image.new("RGB", (side, side)).save(file)
    both = dataset(files, [[[0, 0, 8, 8]]] * 2, [[1]] * 2)
    for sample, side in zip(both.samples, (32, 9), strict=True):
        sample.width = sample.height = side
    model, options = create_yolo("yolo11n", 5, image_size=64), TrainOptions(imgsz=64, workers=0)
    with pytest.raises(LeukoError, match="leaves out 1 of 2 images"):
        train_ultralytics(model, options, tmp_path / "run", both, both, CPU, lambda *_: False, pytest.fail)


def test_it_is_measured_fused_and_used_like_any_other(trained, project, data, tmp_path, leuko):
    run, _ = trained
    assert leuko("val", "--ensemble", run, project / "fcos", "--data", data, "--save", tmp_path / "val").code == 0
    rows = json.loads((tmp_path / "val/ensemble/table.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"yolo11n", "fcos", "ensemble"}
    image = next((data / "images").iterdir())
    words = ["--weights", run, "--source", image, "--save", tmp_path / "predictions", "--threshold", "0"]
    assert leuko("predict", *words).code == 0


def test_leukos_loop_cannot_train_it():
    targets = [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([0])}]
    with pytest.raises(LeukoError, match="trained by Ultralytics' own loop"):
        create_yolo("yolo11n", 2, image_size=64).train()([torch.rand(3, 64, 64)], targets)


def test_names():
    assert all(map(is_yolo, ("yolo11n", "weights/yolo11n.pt", "best.pt")))
    assert not any(map(is_yolo, ("fcos", "runs/train/fcos", "mine.yaml")))
    assert [plain_name(n) for n in ("yolo11n", "weights/yolo11n.pt")] == ["yolo11n", "yolo11n"]
    assert all(hasattr(TrainOptions(), name) for name in IGNORED_OPTIONS)


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n", "yolo26n", "yolov10n"])
def test_detections_are_ultralytics_own(name):
    """The same boxes and scores as its own NMS gives, and the same after fusing."""
    from ultralytics.utils.nms import non_max_suppression

    torch.manual_seed(0)
    model = create_yolo(name, 3, image_size=96).eval()
    head = model.network.model[-1]
    for branch in [*head.cv2, *head.cv3, *(getattr(head, "one2one_cv3", None) or ())]:  # far from all alike
        branch[-1].weight.data.normal_(0, 2)
    image = torch.rand(3, 64, 96)
    with torch.inference_mode():
        ours = model([image])[0]
        fused_model = copy.deepcopy(model)
        fused_model.fuse()
        fused = fused_model([image])[0]
        raw = model.network(image[None])[0]
        theirs = non_max_suppression(raw, 0.001, 0.7, multi_label=True, max_det=100, nc=3, max_time_img=60)[0]
        model.max_detections = 7
        assert len(model([image])[0]["boxes"]) == 7
    assert len(ours["boxes"]) == len(theirs) > 20
    assert torch.allclose(ours["scores"], theirs[:, 4], atol=1e-6)
    clipped = theirs[:, :4].clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
    assert torch.allclose(ours["boxes"], clipped, atol=1e-3) and ours["labels"].equal(theirs[:, 5].long())
    assert torch.allclose(ours["scores"], fused["scores"], atol=1e-4)


def ultralytics_file(path: Path, types: list[str]) -> Path:
    """A checkpoint as Ultralytics writes it: the whole network, pickled."""
    torch.manual_seed(1)
    network = tasks().DetectionModel("yolo11n.yaml", nc=len(types), verbose=False)
    network.names = dict(enumerate(types))
    torch.save({"model": None, "ema": network.half(), "train_args": {"imgsz": 96}, "epoch": -1}, path)
    return path


def test_ultralytics_files_are_read_without_code(data, tmp_path, leuko):
    """Its own ``.pt`` starts a run, types matched by name, all other weights kept; and it can be measured as it is."""
    file = ultralytics_file(tmp_path / "yolo11n.pt", ["M", "cat", "NG"] + [f"other {i}" for i in range(97)])
    words = ["train", "--data", data, "--project", tmp_path / "runs", *YOLO, "--epochs", "1", "--lr", "1e-9"]
    result = leuko(*words[:5], "--model", file, *words[7:], "--pretrained")
    assert result.code == 0 and "types known NG, M; new BG, EG, L" in result.out, result.err
    theirs = checkpoint.load_weights(file).state
    ours = checkpoint.load_weights(tmp_path / "runs/yolo11n").state
    classes = [key for key in ours if "cv3" in key and key.endswith(".2.weight")]
    assert len(classes) == 3
    for key in classes:  # rows in the order NG, BG, EG, L, M; a class branch is as wide as it was for its 100 classes
        assert torch.allclose(ours[key][[0, 4]], theirs[key][[2, 0]], atol=1e-3)
        assert not torch.allclose(ours[key][1], theirs[key][1], atol=1e-3)
    weights = {k for k in ours if k.endswith("weight")} - set(classes)
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-3) for k in weights)

    own = ultralytics_file(tmp_path / "own.pt", ["NG", "BG", "EG", "L", "M"])
    assert leuko("val", "--weights", own, "--data", data, "--save", tmp_path / "val").code == 0


class Calls:
    """A pickled call of a class that is no danger by its name: one downloads, one takes gigabytes."""

    def __init__(self, made: object, *arguments: object):
        self.call = made, arguments

    def __reduce__(self) -> tuple:
        return self.call


def test_hostile_and_broken_files_are_refused(tmp_path, monkeypatch):
    """A file stays as it is, also under a name for which Ultralytics deletes it and downloads another."""
    file, touched = ultralytics_file(tmp_path / "own.pt", TYPES), tmp_path / "touched"
    from ultralytics.nn.modules.block import TorchVision

    for name, content in (
        ("bomb", {"model": Bomb(touched)}),
        ("fetches", {"model": Calls(TorchVision, "resnet18", "DEFAULT")}),
        ("large", {"model": Calls(nn.Linear, 60_000, 60_000)}),
        ("other", {"weight": torch.zeros(2)}),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
    half = file.read_bytes()[: file.stat().st_size // 2]
    (tmp_path / "yolo11n.pt").write_bytes(half)
    (tmp_path / "yolov5n.pt").write_bytes(half)
    packed(tmp_path / "packed.pt")
    network = tasks().DetectionModel("yolo11n.yaml", nc=5, verbose=False)
    network.names = dict(enumerate(TYPES))
    network.model[0].conv.weight = nn.Parameter(torch.zeros(1).expand(10**5, 10**5))
    torch.save({"ema": network, "model": None}, tmp_path / "expanded.pt")
    monkeypatch.chdir(tmp_path)
    said = dict.fromkeys(("bomb", "fetches", "large", "other", "yolo11n", "yolov5n"), "not a detector of Ultra")
    before = sorted(tmp_path.iterdir())
    for name, words in (said | {"packed": "does not compress", "expanded": "larger than the file"}).items():
        with pytest.raises(LeukoError, match=f"{name}.pt: .*{words}"):
            read_checkpoint(Path(f"{name}.pt"))  # as Ultralytics takes a name: from the folder where one is
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "yolo11n.pt").read_bytes() == half
    assert not touched.exists()
    recipe, types, state = read_checkpoint(file)
    assert types == TYPES and recipe["image_size"] == 96
    create_yolo(**recipe).load_state_dict(state)


def test_networks_are_those_that_the_package_knows(tmp_path, monkeypatch):
    """A file of the user's describes none, under whatever name it lies there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolo99n.yaml").write_text("backbone: [[-1, 1, Conv, [64, 3, 2]]]\nhead: [[[0], 1, Detect, [nc]]]\n")
    for name in ("yolo99n", "yolo99n.yaml", str(tmp_path / "yolo99n"), "../yolo11n", "yolo11n-seg", "yolo11n-cls"):
        with pytest.raises(LeukoError, match="no detector that this ultralytics package knows"):
            create_yolo(name, 2)
    file = ultralytics_file(tmp_path / "own.pt", TYPES)
    recipe, types, state = read_checkpoint(file)
    checkpoint.save_weights(tmp_path / "own.safetensors", recipe | {"made_for": 10**9}, state, types)
    with pytest.raises(LeukoError, match="numbers are needed"):
        checkpoint.load_weights(tmp_path / "own.safetensors")
    old = recipe | {"architecture": {"backbone": [], "head": []}}
    del old["made_for"]
    checkpoint.save_weights(tmp_path / "own.safetensors", old, state, types)
    with pytest.raises(LeukoError, match='unknown "architecture"'):
        checkpoint.load_weights(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("yolo11n", [], "leuko download yolo11n"),
        ("yolov8m.pt", [], "ultralytics/assets"),
        ("https://nowhere/yolo11n", ["--no-pretrained"], "no detector that this ultralytics package knows"),
        ("nowhere/best.pt", [], "no such file"),
        ("best.pt", ["--no-pretrained"], "no detector that this ultralytics package knows"),
        ("yolo11n-seg", ["--no-pretrained"], "no detector that this ultralytics package knows"),
        ("yolo11n", ["--no-pretrained", "--amp", "fp16"], "bf16"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, words, said, data, tmp_path, leuko, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leuko("train", "--data", data, "--project", "runs", "--model", model, *words).refused(said)
    assert not (tmp_path / "runs").exists()


def test_images_are_trained_as_they_are_stored(tmp_path):
    """Ultralytics turns images by their EXIF orientation, leuko's boxes do not. The data's files are unchanged."""
    tasks()  # keeps the package out of the home folder
    from ultralytics.data.dataset import YOLODataset

    files = [tmp_path / "a" / name for name in ("turned.jpg", "turned too.png", "upright.jpg")]
    files[0].parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    for file, orientation in zip(files, (6, 3, 1), strict=True):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(pixels).save(file, exif=exif)
    before = [file.read_bytes() for file in files]
    whole = dataset(files, [[[0, 0, 20, 10]]] * 3, [[1]] * 3)
    folder = tmp_path / "ultralytics"
    write_dataset(folder, whole, whole)
    read = YOLODataset(img_path=str(folder / "images/train"), imgsz=WIDTH, augment=False, data={"names": TYPES})
    assert [Path(file).name for file in read.im_files] == ["turned too.png", "turned.png", "upright.jpg"]
    for i, file in enumerate((files[1], files[0], files[2])):
        assert np.array_equal(read.load_image(i)[0][:, :, ::-1], read_image(file))
    assert (folder / "images/train/upright.jpg").samefile(files[2])
    assert [file.read_bytes() for file in files] == before


def test_other_models_weights_do_not_start_it(data, tmp_path, leuko):
    file = untrained(tmp_path / "faster.safetensors", ["NG", "BG", "EG", "L", "M"])
    words = ["train", "--data", data, "--project", tmp_path / "runs", *YOLO, "--weights", file]
    leuko(*words).refused("faster_rcnn", "not yolo11n")


def test_package_is_asked_for_only_with_its_models(data, tmp_path):
    """leuko's own models never import it, and without it the remedy is named."""
    code = "import sys; sys.modules['ultralytics'] = None\n" + GUARDED
    words = ["train", "--data", data, "--project", tmp_path, "--epochs", "1"]

    def run(*more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, *map(str, words), *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    missing = run(*YOLO)
    assert missing.returncode == 2 and "pip install 'leuko[ultralytics]'" in missing.stderr, missing.stderr
    own = run(*TINY, "--model", "fcos")
    assert own.returncode == 0, own.stderr


def test_pictures_are_opened_as_without_the_package(tmp_path):
    """Its own way installs a plugin where a file is no image."""
    tasks()
    assert Image.open.__module__ == "PIL.Image"
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "a.png")
