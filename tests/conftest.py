"""Fixtures that several test files share: a rendered data set, trained runs, and leuko's command line.

What is compared bit for bit runs on one thread, in this process as in processes of their own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from leuko import cli
from leuko.cli import main
from leuko.data.dataset import Dataset, Sample
from leuko.data.images import read_image
from leuko.data.loader import to_tensor
from leuko.data.source import load_all
from leuko.data.tools.builder import save_image
from leuko.data.tools.draw import synth
from leuko.detections import Detections
from leuko.engine import checkpoint
from leuko.models import DetectionModel, create
from leuko.synth.stain import restain

ROOT = Path(__file__).parent.parent
TINY = ["--backbone", "tf_efficientnet_lite0", "--no-pretrained", "--imgsz", "64", "--batch", "2", "--workers", "0"]
TINY += ["--channels", "32", "--fc-channels", "32", "--proposals", "20", "--rois", "16"]
FASTER = ["--model", "faster_rcnn", "--epochs", "3", "--ema", "0.9", "--accumulate", "2", "--save-minutes", "0.0001"]
NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.cuda, NO_CARD))]
FCOS = ["--model", "fcos", "--epochs", "1", "--backbone", "mobilenetv3_small_050", "--imgsz", "96", "--channels", "64"]

# Pictures of data sets that are written by tests.
WIDTH, HEIGHT = 97, 61
TYPES = ["NG", "BG", "EG", "L", "M"]


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """The user was told in one line that holds all of ``words``, after what a progress bar may have left."""
        *before, last = self.err.strip().replace("\r", "\n").splitlines()
        assert self.code == 2 and last.startswith("leuko: "), self.err
        assert not [line for line in before if line.startswith("leuko: ") or "Traceback" in line], self.err
        for word in words:
            assert word in last, (word, last)


# Run in a process of its own: commands one after the other, how each ended, and who was called on the network.
CHILD = """
import contextlib, io, json, re, sys, time
asked = []
def peak():  # of this process alone; getrusage begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e6

def audit(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request") or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        asked.append(f"{event} {arguments}")
        raise OSError("the network was asked for")
sys.addaudithook(audit)
from leuko import cli, train, predict
ended, before = [], peak()
for words in json.loads(sys.argv[1]):
    err, started = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            cli.leave(lambda: cli.main(words))
        except SystemExit as left:
            code = left.code
        except BaseException as error:
            code = repr(error)
    ended.append((code, err.getvalue(), time.process_time() - started))
print(json.dumps([ended, peak() - before, asked]))
"""


def in_child(commands: list[list]) -> tuple[list[tuple[Result, float]], float]:
    """How commands end in a process of their own, each with its seconds of processor time; and the peak memory in GB
    beside what the libraries take. None may ask for the network."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", CHILD, words]
    done = subprocess.run(run, capture_output=True, text=True, timeout=400, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    ended, peak, asked = json.loads(done.stdout.splitlines()[-1])
    assert not asked, asked
    return [(Result(code, "", err), seconds) for code, err, seconds in ended], peak


class Bomb:
    """What a hostile pickle holds."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def packed(path: Path) -> Path:
    """An archive that unpacks to more than a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            for _ in range(120):
                file.write(bytes(10**7))
        archive.writestr("archive/version", "3\n")
    return path


def tensor(rows: list, columns: int = 4) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def table(path: Path) -> list[dict]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def untrained(path: Path, types: list[str]) -> Path:
    """A weights file of a model that has learned nothing."""
    model = create("faster_rcnn", len(types), "mobilenetv3_small_050", image_size=64, channels=32, fc_channels=32)
    checkpoint.save_weights(path, model.recipe, model.state_dict(), types, epoch=1)
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A process per core runs the tests; with more threads than cores, they would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A COCO data set of 9 training, 2 validation and 3 test images of 80x80 pixels; image 2 has no leukocyte."""
    folder = tmp_path_factory.mktemp("synth") / "data"
    synth(folder, images=14, size=80, seed=3, val=0.15, test=0.2, workers=1)
    content = json.loads((folder / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    (folder / "train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def leuko(capsys) -> Callable[..., Result]:
    """Run `leuko ...` in this process, which spares the seconds that importing torch takes."""

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.leave(lambda: main([str(word) for word in words]))
        captured = capsys.readouterr()
        return Result(left.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `python -m leuko.NAME ...` in a process of its own."""
    started = []

    def run(name: str, *words: str | Path) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", name, *map(str, words)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def leave_charts_blank(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Figure, "draw", lambda *_: None)


@pytest.fixture(autouse=True)
def blank_charts(request, monkeypatch) -> None:
    """Charts are written without being drawn, which spares half the time of a command; but not in tests with the mark
    ``charts``, and not in processes of their own."""
    if not request.node.get_closest_marker("charts"):
        leave_charts_blank(monkeypatch)


@pytest.fixture(scope="session")
def project(data, tmp_path_factory) -> Path:
    """A project folder with two finished runs: ``faster`` of 3 epochs, and ``fcos`` with another backbone and size."""
    folder = tmp_path_factory.mktemp("runs") / "train"
    common = ["train", "--data", str(data), "--project", str(folder), *TINY]
    main([*common, "--name", "faster", *FASTER])
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_blank(patch)
        main([*common, "--name", "fcos", *FCOS])
    return folder


@pytest.fixture
def faster(project, tmp_path) -> Path:
    """A copy of the run ``faster``, to go on with or to break."""
    return shutil.copytree(project / "faster", tmp_path / "faster")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Three pictures of different content, two of them with the same name in different folders."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "a" / "1.jpg", folder / "b" / "1.jpg", folder / "b" / "field 2.png"]
    for grey, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (50 * grey, 90, 120)).save(path)
    return paths


def dataset(pictures: list[Path], boxes: list[list], labels: list[list[int]], **more: list) -> Dataset:
    samples = [
        Sample(p, WIDTH, HEIGHT, b, n, i)
        for i, (p, b, n) in enumerate(zip(pictures, boxes, labels, strict=True), start=1)
    ]
    return Dataset(TYPES, samples, **more)


@pytest.fixture
def plain(pictures) -> Dataset:
    return dataset(pictures, [[[10, 10, 30, 30], [40, 20, 60, 50.5]], [[5, 5, 25, 35]], []], [[0, 4], [2], []])


# ---------------------------------------------------------------- types, and other laboratories

STAGE = ["--no-pretrained", "--backbone", "test_resnet", "--side", "32", "--batch", "16", "--lr", "0.004"]
OTHER_STAIN = np.array([[0.7, 0.05, 0.0], [0.1, 1.35, 0.0], [0.0, 0.0, 1.2]])  # amounts of the absorbers


@pytest.fixture(scope="session")
def centres(tmp_path_factory) -> dict[str, Path]:
    """Of the same rendered fields of 128 pixels, ``home`` (18 to train on, 6 for val) and ``far``, in another stain and
    light; and ``crops``: of home's cells by type, and of dark dots that are no leukocytes."""
    folder = tmp_path_factory.mktemp("centres")
    splits = synth(folder / "home", images=24, size=128, seed=5, val=0.25, test=0, workers=1)
    shutil.copytree(folder / "home", folder / "far")
    for path in (folder / "far").rglob("*.jpg"):
        save_image(path, restain(read_image(path), OTHER_STAIN, np.array([0.95, 0.9, 0.98])))
    for sample in splits["train"].samples:
        pixels = read_image(sample.image)
        for k, (box, label) in enumerate(zip(sample.boxes, sample.labels, strict=True)):
            (x, y), half = ((box[:2] + box[2:]) / 2).astype(int), 32
            crop = pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half]
            save_image(folder / "crops" / TYPES[label] / f"{sample.id}-{k}.png", crop)
    empty = np.full((64, 64, 3), (238, 226, 230), np.uint8)
    for k in range(6):
        dot = cv2.circle(empty.copy(), (32, 32), 6 + k, (110, 60, 140), -1)
        save_image(folder / "crops/platelet" / f"{k}.png", dot)
    return {name: folder / name for name in ("home", "far", "crops")}


@dataclass
class Oracle:
    """What stands in for a detector's network: of an image that it knows by its pixels, it finds what it was told."""

    known: dict[str, Detections] = field(default_factory=dict)

    def tell(self, path: Path, boxes: np.ndarray, scores: np.ndarray | None = None, labels: Sequence[int] = ()) -> None:
        scores = np.linspace(0.9, 0.6, len(boxes)) if scores is None else scores
        labels = np.zeros(len(boxes), int) if not len(labels) else labels
        pixels = to_tensor(read_image(path))
        self.known[self.key(pixels)] = Detections(boxes, scores, labels)

    @staticmethod
    def key(pixels: torch.Tensor) -> str:
        return hashlib.sha1(pixels.numpy().tobytes()).hexdigest()

    def __call__(self, images: list[torch.Tensor], targets: None = None) -> list[dict]:
        found = []
        for image in images:
            pixels = image if image.dtype == torch.uint8 else (image * 255).round().byte()
            told = self.known.get(self.key(pixels), Detections([], [], []))
            found.append({n: torch.from_numpy(getattr(told, n)) for n in ("boxes", "scores", "labels")})
        return found


@pytest.fixture
def oracle(centres, monkeypatch) -> Oracle:
    """In place of every detector's network, one that finds the labelled cells of both centres' fields."""
    oracle = Oracle()
    for name in ("home", "far"):
        for dataset in load_all(centres[name]).values():
            for sample in dataset.samples:
                oracle.tell(sample.image, sample.boxes)
    monkeypatch.setattr(DetectionModel, "forward", lambda self, images, targets=None: oracle(images))
    return oracle


@pytest.fixture(scope="session")
def detector(tmp_path_factory) -> Path:
    """Weights of an untrained detector of one class at 128 pixels, to be used with ``oracle``."""
    path = tmp_path_factory.mktemp("detector") / "any.safetensors"
    model = create("fcos", 1, "mobilenetv3_small_050", image_size=128, channels=32)
    checkpoint.save_weights(path, model.recipe, model.state_dict(), ["leukocyte"], epoch=1)
    return path


@pytest.fixture(scope="session")
def typed(centres, detector) -> Path:
    """The run folder of that detector with a typing stage, which has learned from both centres and from crops."""
    project = detector.parent / "type"
    data = ["--data", f"home={centres['home']}", f"far={centres['far']}", "--crops", f"home={centres['crops']}"]
    words = ["type", *data, "--weights", str(detector), *STAGE, "--steps", "300", "--project", str(project)]
    main([*words, "--name", "stage"])
    return project / "stage"
