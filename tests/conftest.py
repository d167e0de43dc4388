"""Fixtures that several test files share: a rendered data set, trained runs, and leuko's command line.

What is compared bit for bit runs on one thread, in this process as in processes of their own.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from leuko import cli
from leuko.cli import main
from leuko.data.dataset import Dataset, Sample
from leuko.data.tools.draw import synth
from leuko.engine import checkpoint
from leuko.models import create
from leuko.report import plots

ROOT = Path(__file__).parent.parent
TINY = ["--backbone", "tf_efficientnet_lite0", "--no-pretrained", "--imgsz", "64", "--batch", "2", "--workers", "0"]
TINY += ["--channels", "32", "--fc-channels", "32", "--proposals", "20", "--rois", "16"]
FASTER = ["--model", "faster_rcnn", "--epochs", "3", "--ema", "0.9", "--accumulate", "2", "--save-minutes", "0.0001"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]
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


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
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
def leuko(capsys, one_thread) -> Callable[..., Result]:
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


def leave_out_plots(patch: pytest.MonkeyPatch) -> None:
    for name in ("label_statistics", "training_curves"):
        patch.setattr(plots, name, lambda *_: None)


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Leave out the pictures that take a second each."""
    leave_out_plots(monkeypatch)


@pytest.fixture(scope="session")
def project(data, tmp_path_factory, one_thread) -> Path:
    """A project folder with two finished runs: ``faster`` of 3 epochs, and ``fcos`` with another backbone and size."""
    folder = tmp_path_factory.mktemp("runs") / "train"
    common = ["train", "--data", str(data), "--project", str(folder), *TINY]
    main([*common, "--name", "faster", *FASTER])
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch)
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
