"""Predictions at scale: shards, batches in other processes, Ray; all of them find what one process finds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TYPES, table, untrained
from PIL import Image

from leuko import Detector, Predictor, predict
from leuko.errors import LeukoError


def field(seed: int, height: int) -> np.ndarray:
    """Noise that an untrained model finds cells in."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, height)))


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Nine fields of two shapes in two folders, two with the same name, and a file that is no image."""
    home = tmp_path_factory.mktemp("slides")
    for i in range(9):
        path = home / "ab"[i % 2] / f"{i - i % 2 if i > 6 else i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(field(i, 72 if i % 3 else 96)).save(path)
    shutil.copy(home / "a/0.png", home / "b/0.png")
    (home / "a/broken.png").write_text("no image")
    return home


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return untrained(tmp_path_factory.mktemp("weights") / "untrained.safetensors", TYPES)


@pytest.fixture
def words(weights, slides, tmp_path) -> list:
    common = ["predict", "--weights", weights, "--source", slides, "--threshold", "0.15", "--device", "cpu"]
    return [*common, "--save", tmp_path, "--name", "p", "--batch", "2", "--workers", "0"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_shards_put_together_are_one_prediction(words, tmp_path, leuko, monkeypatch):
    for i in (1, 3):
        assert leuko(*words, "--shard", f"{i}/3").code == 0
    shards = [tmp_path / f"p-{i}-of-3" for i in (1, 2, 3)]
    merge = ["merge", *shards, "--save", tmp_path]
    leuko(*merge[:2], shards[2], "--save", tmp_path).refused("shard 2 of 3 is missing")
    leuko(*merge).refused("p-2-of-3", "holds no shard.jsonl")
    with monkeypatch.context() as torchrun:
        torchrun.setenv("RANK", "1")
        torchrun.setenv("WORLD_SIZE", "3")
        assert leuko(*words).code == 0
    leuko("merge", shards[0], *merge[1:]).refused("is shard 1 of 3, as is", "name one of them")
    (shards[1] / "unfinished.jsonl").touch()
    leuko(*merge).refused("p-2-of-3", "is not finished")
    (shards[1] / "unfinished.jsonl").unlink()
    merged = leuko(*merge)
    assert merged.code == 0 and (tmp_path / "p/review.html").exists(), merged.err
    whole = leuko(*words)
    assert whole.code == 0 and whole.err.splitlines()[-1:] == merged.err.splitlines()[-1:], "what was not read"
    found, wanted = files_of(tmp_path / "p"), files_of(tmp_path / "p-2")
    wanted["report.html"] = wanted["report.html"].replace(b"p-2", b"p")
    assert found == wanted and len(found) > 10 + 5 and len(table(tmp_path / "p/cells.csv")) > 10
    assert leuko(*words, "--shard", "2/3", "--threshold", "0.3").code == 0
    leuko("merge", shards[0], tmp_path / "p-2-of-3-2", shards[2]).refused("p-2-of-3-2: is of another prediction")
    leuko(*words, "--shard", "4/3").refused("--shard 4/3", "from 1 to n")


def test_of_many_images_no_pictures_are_made(words, tmp_path, leuko):
    assert leuko(*words, "--pictures", "3").code == 0
    assert not (tmp_path / "p/images").exists() and not (tmp_path / "p/review.html").exists()
    assert "review.html" not in (tmp_path / "p/report.html").read_text()
    assert leuko(*words, "--pictures", "11", "--batch", "4", "--workers", "2").code == 0
    assert len(list((tmp_path / "p-2/images").iterdir())) == 10
    one, other = (table(tmp_path / name / "cells.csv") for name in ("p", "p-2"))
    assert [{**row, "image": ""} for row in one] != [] and len(one) == len(other)
    assert [(r["image"], r["type"]) for r in one] == [(r["image"], r["type"]) for r in other]


def test_a_predictor_in_a_pool_finds_what_a_detector_finds(weights, slides):
    predictor = Predictor(weights, threshold=0.2, device="cpu", batch=3)
    paths = [str(path) for path in sorted(slides.rglob("*.png"))]
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        first, second = pool.map(predictor, [{"path": paths[:6], "patient": list("xxxyyz")}, {"path": paths[6:]}])
    assert list(first["patient"]) == list("xxxyyz") and len(first["path"]) + len(second["path"]) == len(paths)
    columns = {name: [*first[name], *second[name]] for name in second}
    detector = Detector(weights, device="cpu")
    for i, path in enumerate(paths):
        if "broken" in path:
            assert "not a readable image" in columns["error"][i] and not len(columns["boxes"][i])
            continue
        cells = detector.predict(path, threshold=0.1)  # half of the threshold: below it, they are unclassified
        assert np.allclose(cells.boxes, columns["boxes"][i], atol=1e-3) and columns["error"][i] == ""
        assert [cell.type for cell in cells] == list(columns["types"][i])
        assert np.allclose(cells.scores, columns["scores"][i], atol=1e-5)
        assert ((columns["why"][i] == "below the threshold") == (columns["scores"][i] < 0.2)).all()
    assert sum(map(len, columns["boxes"])) > 10
    good = [path for path in paths if "broken" not in path][:2]
    by_path, by_bytes, by_image = (
        predictor(batch)
        for batch in (
            {"path": good},
            {"bytes": [Path(p).read_bytes() for p in good], "path": good},
            {"image": [np.asarray(Image.open(p)) for p in good]},
        )
    )
    for key in ("scores", "width", "why"):
        assert all(map(np.array_equal, by_path[key], by_bytes[key]))
        assert all(map(np.array_equal, by_path[key], by_image[key]))
    with pytest.raises(LeukoError, match="batch of file: give it path, bytes or image"):
        predictor({"file": good})


# ---------------------------------------------------------------- Ray


def kill_a_worker(mark: str, killed: list[int]) -> None:
    """Kill the first of Ray's workers that holds a detector, of the cluster whose environment has this mark."""
    end = time.monotonic() + 120
    while not killed and time.monotonic() < end:
        time.sleep(0.05)
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                is_worker = b"MapWorker" in (each / "cmdline").read_bytes()
                if is_worker and mark.encode() in (each / "environ").read_bytes():
                    os.kill(int(each.name), signal.SIGKILL)
                    killed.append(int(each.name))
                    return


def test_ray_finds_what_one_process_finds(words, slides, tmp_path, leuko, monkeypatch):
    """Though a worker of Ray's is killed, and the process before it has written its files; and on images in Parquet."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'leuko[ray]')")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'leuko[ray]')")
    import pyarrow

    assert leuko(*words).code == 0
    files = sorted(slides.rglob("*.png"))
    names = [f"s3://{path.parent.name}/{i:02}" for i, path in enumerate(files)]
    content = {"path": names, "bytes": [path.read_bytes() for path in files]}
    parquet.write_table(pyarrow.table(content), tmp_path / "images.parquet")
    from_table = [tmp_path / "images.parquet" if word == slides else word for word in words]
    leuko(*from_table).refused("images.parquet: is read by Ray", "--engine ray")

    monkeypatch.setenv("LEUKO_TEST", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    killed: list[int] = []
    threading.Thread(target=kill_a_worker, args=(f"LEUKO_TEST={tmp_path}", killed), daemon=True).start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(predict.prediction, "write", lambda *_, **__: sys.exit(9))
            assert leuko(*words, "--engine", "ray").code == 9 and killed
        done = leuko(*words, "--engine", "ray")
        assert done.code == 0 and "goes on in" in done.out and "10 images are done" in done.out
        assert leuko(*from_table, "--engine", "ray").code == 0
    finally:
        ray.shutdown()
    for name in ("cells.csv", "cells.json", "differential.csv"):
        assert (tmp_path / "p-2" / name).read_bytes() == (tmp_path / "p" / name).read_bytes(), name
    rows = [row for path in (tmp_path / "p-2/parquet").iterdir() for row in parquet.read_table(path).to_pylist()]
    read = [row for row in rows if not row["error"]]
    wanted = table(tmp_path / "p/cells.csv")
    assert len(read) == len({row["image"] for row in read}) == 10 and sum(len(r["boxes"]) for r in read) == len(wanted)
    named = {str(path): str(Path(name)) for path, name in zip(files, names, strict=True)}
    assert table(tmp_path / "p-3/cells.csv") == [{**row, "image": named[row["image"]]} for row in wanted]
