"""The run folder, tables and pictures."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import nan
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
import yaml
from conftest import HEIGHT, WIDTH

from leuko import cli
from leuko.config import PredictOptions, TrainOptions
from leuko.data.dataset import Dataset, Sample
from leuko.data.header import ImageHeader
from leuko.data.tools.findings import LEVELS, Finding
from leuko.detections import Detections
from leuko.engine.environment import environment
from leuko.errors import LeukoError
from leuko.io import replacing, write_csv, write_json, write_text, write_yaml
from leuko.metrics.coco import Evaluation, TypeResult, evaluate
from leuko.metrics.counting import BELOW, one_type
from leuko.report import comparison, pages, plots, prediction, run, tables
from leuko.report.journal import Journal, write_journal
from leuko.report.pictures import contact_sheet, draw_cells, write_image
from leuko.report.prediction import About
from leuko.report.records import ImagePrediction, Predictions

TYPES = ["NG", "BG", "EG", "L", "M"]


def test_new_runs_never_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: run.new_run(tmp_path / "runs" / "train", "fcos"), range(20)))
    assert {f.name for f in folders} == {"fcos", *(f"fcos-{i}" for i in range(2, 21))}
    for name in ("", "..", "a/b"):
        with pytest.raises(LeukoError, match="not a plain folder name"):
            run.new_run(tmp_path, name)
    (tmp_path / "file").touch()
    with pytest.raises(LeukoError, match="cannot be written"):
        run.new_run(tmp_path / "file", "fcos")


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "free some disk space"), (errno.EROFS, "a disk that can be written to")]
)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, code, words):
    path = tmp_path / "metrics.json"
    write_json(path, {"mAP": 0.5})

    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LeukoError, match=words) as caught:
        write_json(path, {"mAP": 0.6})
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(LeukoError, match="nowhere"):
        write_text(tmp_path / "nowhere" / "a.txt", "")
    with pytest.raises(LeukoError, match="cannot be written"):
        write_text(path / "a.txt", "")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half a fi")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"mAP": 0.5}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_what_is_written_can_be_read(tmp_path):
    value = {"a": np.float32(0.5), "b": nan, "c": np.array([1, 2]), "d": Path("x"), "e": (True, None, np.inf), "f": "µ"}
    plain = {"a": 0.5, "b": None, "c": [1, 2], "d": "x", "e": [True, None, None], "f": "µ"}
    whole = {**plain, "b": pytest.approx(nan, nan_ok=True), "e": [True, None, np.inf]}
    write_json(tmp_path / "a.json", value)
    write_yaml(tmp_path / "a.yaml", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8"), parse_constant=pytest.fail) == plain
    assert yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8")) == whole
    write_yaml(tmp_path / "args.yaml", TrainOptions(clip=np.inf))
    assert cli.stored(TrainOptions, tmp_path / "args.yaml").clip == np.inf
    write_csv(tmp_path / "a.csv", [{"epoch": 1, "val/mAP": nan}, {"epoch": 2, "val/mAP": 0.5, "note": "a, b"}])
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"epoch": "1", "val/mAP": "", "note": ""}, {"epoch": "2", "val/mAP": "0.5", "note": "a, b"}]

    run.log(tmp_path, "start", lr=nan)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"time": "2')  # the process was killed here
    run.log(tmp_path, "resume", epoch=3)
    first, _, last = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(first)["lr"] is None and (json.loads(last)["event"], json.loads(last)["epoch"]) == ("resume", 3)


def test_the_environment_names_the_gpu_that_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {torch.device(device or 0).index}")
    names = {device: environment(torch.device(device))["gpu"] for device in ("cpu", "cuda:0", "cuda:1")}
    assert names == {"cpu": None, "cuda:0": "GPU 0", "cuda:1": "GPU 1"}
    about = environment()
    assert about["torch"] and about["cpu"] and about["threads"] >= 1 and about["gpu"] is None


def test_file_names_that_are_no_text_are_written_as_escapes(tmp_path):
    name = os.fsdecode(b"bad\xff.jpg")
    write_json(tmp_path / "a.json", {"image": name})
    write_yaml(tmp_path / "a.yaml", {"image": name})
    run.log(tmp_path, "start", image=name)
    write_csv(tmp_path / "a.csv", [{"image": name}])
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"image": name}
    assert yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8")) == {"image": name}
    assert json.loads((tmp_path / "log.jsonl").read_text("utf-8"))["image"] == name
    assert (tmp_path / "a.csv").read_text("utf-8") == "image\nbad\\udcff.jpg\n"


def test_an_evaluation_without_detections_or_cells(tmp_path):
    data = Dataset(["NG", "BG"], [Sample(tmp_path / "a.jpg", 60, 60, [[0, 0, 9, 9]], [0], id=1)])
    e = evaluate(data, [Detections([], [], [])])
    run.write_evaluation(tmp_path, e, [], parameters=12, fps=nan)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["mAP"], metrics["parameters"], metrics["fps"], metrics["cells"]) == (0, 12, None, 1)
    assert metrics["per_class"]["BG"] == {"AP": None, "AP50": None, "AP75": None, "AR": None, "cells": 0, "images": 0}
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert (tmp_path / "per_class.csv").read_text().splitlines()[1:] == ["NG,0.0,0.0,0.0,0.0,1,1", "BG,,,,,0,0"]
    assert tables.per_class(e)[2] == ["BG", "-", "-", "-", "-", "0", "0"]
    read, content = run.read_evaluation(tmp_path)
    assert tables.per_class(read) == tables.per_class(e) and content["parameters"] == 12
    (tmp_path / "table.json").write_text('{"cells": {"NG": 1, "BG": 0}, "rows": [{"model": "a"}]}')
    with pytest.raises(LeukoError, match="its results are broken"):
        pages.build(tmp_path)
    record = tables.record("a & b", e, 12e6)
    write_json(tmp_path / "table.json", {"cells": {"NG": 1, "BG": 0}, "rows": [record]})
    page = pages.build(tmp_path)
    cells = ["a &amp; b", ".000", ".000", ".000", ".000", ".000", "-", "12.0", "-"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page and "<th>(1)</th><th>(0)</th>" in page


def test_table_2_reads_as_in_the_paper():
    def row(name, measures, ap, *cost):
        results = [
            TypeResult(t, v, nan, nan, nan, cells, images)
            for t, v, cells, images in zip(TYPES, ap, (1323, 14, 82, 439, 0), (1015, 12, 71, 355, 0), strict=True)
        ]
        return tables.record(name, Evaluation(*measures, 1858, 1574, results), *cost)

    cascade = row("Cascade R-CNN", (0.856, 0.948, 0.938, 0.909), (0.916, 0.781, 0.905, 0.841, nan), 69.2e6, 21.44)
    ensemble = row("Ensemble", (1.0, 0.94, 0.933, 0.922), (0.925, 0.752, 0.898, 0.848, nan))
    cells = dict(zip(TYPES, (1323, 14, 82, 439, 0), strict=True))
    lines = tables.table2([cascade, ensemble], cells)
    assert tables.aligned(lines, head=2).splitlines() == [
        "model            mAP  mAP50  mAP75   mAR       NG    BG    EG      L    M  params (M)   FPS",
        "cells                                     (1,323)  (14)  (82)  (439)  (0)",
        "-" * 91,
        "Cascade R-CNN   .856   .948   .938  .909     .916  .781  .905   .841    -        69.2  21.4",
        "Ensemble       1.000   .940   .933  .922     .925  .752  .898   .848    -           -     -",
    ]
    markdown = tables.markdown(lines).splitlines()
    assert markdown[1] == "|---|" + "--:|" * 11 and markdown[3].startswith("| Cascade R-CNN | .856 | .948 |")
    assert cascade["mAP75"] == 0.938 and cascade["EG"] == 0.905 and cascade["parameters"] == 69.2e6


def test_tags_never_leave_the_image():
    white = np.full((200, 300, 3), 255, np.uint8)
    corners = np.array([[0, 0, 40, 30], [260, 0, 300, 30], [0, 170, 40, 200], [290, 190, 300, 200], [-5, 90, 20, 300]])
    for box in corners:
        drawn = draw_cells(white, box[None], np.array([0]), TYPES, np.array([0.93]))
        assert drawn.shape == white.shape and (white == 255).all()
        x0, y0 = max(box[0], 0), max(box[1], 0)
        changed = np.argwhere((drawn != 255).any(axis=2))
        tag = changed[(changed[:, 0] < y0 + 30) & (changed[:, 0] > y0 - 30)]
        assert np.ptp(tag[:, 1]) >= 35, "the tag is as wide as its text, wherever the box is"
        assert (drawn[min(y0, 198) + 1, min(x0, 298)] != 255).any()
    for size in (1, 7, 20):  # too small for a tag
        tiny = np.zeros((size, size, 3), np.uint8)
        assert draw_cells(tiny, np.array([[0, 0, size, size]]), np.array([4]), TYPES).any()
    assert (draw_cells(white, np.zeros((0, 4)), np.zeros(0, int), TYPES) == white).all()


def test_pictures(tmp_path):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 400, (30, 2))
    boxes = np.hstack([corner, corner + 80])
    samples = [Sample(Path(f"{i}.jpg"), 600, 500, boxes[3 * i :][: i % 4], [0, 1, 3][: i % 4], id=i) for i in range(9)]
    row = {"epoch": "1", "lr": "0.01", "loss/box": "0.7", "val/mAP": "", "val/mAR": 0.4}
    plots.label_statistics(Dataset(TYPES, samples), tmp_path / "labels.png")
    plots.label_statistics(Dataset(["$NG_$", "^{"], []), tmp_path / "no_labels.png")  # no formulas
    assert matplotlib.rcParams["text.parse_math"], "a user's own figures keep theirs"
    plots.training_curves([row, {**row, "epoch": 2, "val/mAP": 0.3}], tmp_path / "curves.jpg")
    plots.training_curves([], tmp_path / "no_curves.png")
    sheet = contact_sheet([np.zeros((40, 80, 3), np.uint8)] * 5, columns=3)
    assert sheet.shape == (2 * 408 + 8, 3 * 408 + 8, 3) and sheet[208, 208].max() == 0 and sheet[20, 20].min() == 255
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    write_image(tmp_path / "red.png", red)
    assert len(os.listdir(tmp_path)) == 5
    for path in tmp_path.iterdir():
        assert cv2.imread(str(path)) is not None
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]


def test_the_page_of_a_check(tmp_path, pictures):
    """Names of files are escaped, findings are listed up to a number, and images that cannot be read are named."""
    datasets = {"train": Dataset(["NG"], [Sample(pictures[0], 97, 61, [[5, 5, 30, 30]], [0], 1)])}
    (tmp_path / "broken.png").write_bytes(b"x")
    findings = [
        Finding(LEVELS[0], "unreadable image", "<broken>.png: cannot be read", images=(tmp_path / "broken.png",)),
        *(Finding(LEVELS[2], "unusual size", f"cell {i}", ("train",), "NG", (pictures[0],)) for i in range(120)),
    ]
    page = pages.check_page("a & b", datasets, findings, tables.table1(datasets))
    assert "&lt;broken&gt;.png" in page and "broken.png<br>cannot be read" in page and "<h1>a &amp; b</h1>" in page
    assert page.count("<li>") == 2 + 1 + 101 and page.count("<img") == 1 and "<th>NG</th>" in page
    assert "20 more, in report.json" in page and "unusual size: 120 NG on 1 image" in page
    assert f'<b class="{LEVELS[2]}">120</b> worth a look.' in page
    assert "<table" not in pages.check_page("none", {}, [], [])


def found_on(path: Path, types: list[str], rng: np.random.Generator, cells: int) -> dict:
    """The record of a field of a prediction, with some cells left unclassified."""
    corner, labels = rng.uniform(0, 60, (cells, 2)), rng.integers(0, len(types), 2 * cells)
    boxes = np.tile(np.hstack([corner, corner + 20]), (2, 1))  # each cell is found twice
    found = one_type(Detections(boxes, rng.uniform(0.3, 1, 2 * cells), labels), len(types), iou=0.99)
    found = replace(found, why=np.where(found.scores < 0.5, BELOW, "").astype(object))
    looks = rng.integers(0, 255, (len(found), 32, 32), np.uint8)
    header = ImageHeader(WIDTH, HEIGHT, 1, 1, 8)
    return ImagePrediction(path, (WIDTH, HEIGHT), found, looks, header, 8, False, (0.0, 0.0)).record()


def test_the_page_of_a_prediction(tmp_path, pictures, monkeypatch):
    """Names are escaped, doubtful cells come first, all that is not shown or read is counted."""
    rng, types = np.random.default_rng(1), ["NG", "<script>x</script>"]

    def page_of(*images: dict) -> str:
        write_journal(tmp_path / "records.jsonl", {}, [images[:2], images[2:]])
        journal = Journal.read(tmp_path / "records.jsonl")
        predictions = Predictions([(journal, 0), (journal, 1)], types)
        about = About(PredictOptions(source="x"), "m", types, 0.5, "found on val of <data>", 0, [], [])
        return prediction.page("a & b", about, predictions, predictions.count(), ["a note"], has_review=False)

    images = [found_on(path, types, rng, 5) for path in (*pictures, tmp_path / "gone.png")]
    text = page_of(*images, found_on(pictures[0], types, rng, 0), {"error": "b & c"})
    assert "<script" not in text and "&lt;script&gt;" in text and not re.search(r'(src|href)="(?!data:)', text)
    left = sum(why != "" for image in images for why in image["why"])
    assert left and f"{20 - left} cells classified, {left} left unclassified" in text
    assert "found on val of &lt;data&gt;" in text and "a note" in text and "b &amp; c" in text
    assert text.count("cannot be read") == 5 + 1 and text.count("<img") == 15 + 4, "cells and fields"
    assert "5 cells, " in text and "0 cells" in text and "Boxes have their type" in text
    for gallery in re.findall(r"</span>\S+ \(\d+\)</h2>(.*?)</div>", text, re.DOTALL)[:2]:
        scores = [float(s) for s in re.findall(r"<figcaption>\S+ (\S+)<br><small>then", gallery)]
        seconds = [float(s) for s in re.findall(r"<small>then \S+ (\S+)</small>", gallery)]
        margins = [a - b for a, b in zip(scores, seconds, strict=True)]
        assert len(margins) > 1 and np.diff(margins).min() > -0.011, "in ascending order, but for rounding"

    for name, number in (("MAX_CELLS", 6), ("LEAST_CELLS", 1), ("MAX_FIELDS", 2)):
        monkeypatch.setattr(prediction, name, number)
    text = page_of(*images)
    assert text.count("<figure") == 3 * 2 + 2 and text.count("less doubtful, in cells.csv") == 3
    assert "The 2 with the most doubtful cells" in text
    assert all(str(path.parent) in text for path in (pictures[0], tmp_path / "x")), "a line of a table per slide"
    assert "no differential" in page_of()


def test_data_that_differ_are_told(tmp_path):
    data = Dataset(["NG"], [Sample(tmp_path / "a.jpg", 60, 60, [[0, 0, 9, 9]], [0], id=1)])
    for name in "ab":
        (tmp_path / name).mkdir()
        run.write_evaluation(tmp_path / name, evaluate(data, [Detections([], [], [])]), [], data=name)
    values = comparison.compare([tmp_path / "a", tmp_path / "b"])
    assert not values["same_data"] and values["table"][0][:3] == ["folder", "data", "mAP"]
