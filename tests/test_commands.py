"""The commands: what they write, and what they say to bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from urllib.parse import unquote
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FCOS, TINY, Bomb, Result, in_child, table
from PIL import ExifTags, Image, ImageOps
from safetensors import safe_open

from leuko import predict
from leuko.config.detect import LabelFormat
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco
from leuko.data.source import load
from leuko.data.tools.found import of_images, write_labels
from leuko.detections import Detections
from leuko.engine.network import choose_device
from leuko.engine.on_processes import named_pictures

TYPES = ["NG", "BG", "EG", "L", "M"]


# ---------------------------------------------------------------------- predict


def test_predict_takes_files_whose_names_are_no_text(project, data, tmp_path, leuko):
    name = os.fsdecode(b"bad\xff.jpg")
    folder = tmp_path / os.fsdecode(b"slides\xfe")
    folder.mkdir()
    shutil.copy(load(data, "test").samples[0].image, folder / name)
    (folder / os.fsdecode(b"broken\xff.jpg")).write_text("no image")
    words = ["predict", "--weights", project / "faster", "--threshold", "0.06", "--source", folder, "--save", folder]
    result = leuko(*words)
    assert result.code == 0 and "not read: " in result.err and "slides\\udcfe" in result.out, result.err
    out = folder / "faster"
    cells = json.loads((out / "cells.json").read_text("utf-8"))["cells"]
    assert cells and {cell["image"] for cell in cells} == {str(folder / name)}
    assert len(table(out / "cells.csv")) == len(cells) and "bad\\udcff" in (out / "differential.csv").read_text("utf-8")
    assert [path.name for path in (out / "images").iterdir()] == [name]
    leuko("predict", "--weights", project / "faster", "--source", "x" * 5000).refused("too long", "check the path")


@pytest.fixture
def slides(data, tmp_path) -> Path:
    """Two folders with an image each, and one file that only says it is one; also a note."""
    folder = tmp_path / "slides"
    images = [s.image for s in load(data, "test").samples]
    for place, image in zip(("a", "b"), images, strict=False):
        (folder / place).mkdir(parents=True)
        shutil.copy(image, folder / place / "field.jpg")
    (folder / "b/broken.jpg").write_text("no image")
    (folder / "note.txt").write_text("patient 7")
    return folder


def test_predict_lists_counts_and_goes_on(project, slides, tmp_path, leuko):
    words = ["predict", "--weights", project / "faster", "--save", tmp_path / "out", "--threshold", "0.06"]
    result = leuko(*words, "--source", slides)
    assert result.code == 0 and f"{slides / 'b/broken.jpg'}: not a readable image" in result.err
    assert f"1 files not named like images, such as {slides / 'note.txt'}" in result.err
    out = tmp_path / "out/faster"
    document = json.loads((out / "cells.json").read_text())
    cells = document["cells"]
    assert cells and document["types"] == TYPES and all(c["score"] >= 0.06 for c in cells)
    assert len(document["unreadable"]) == 1 and document["skipped"] == [str(slides / "note.txt")]
    assert [{k: str(v) for k, v in cell.items()} for cell in cells] == table(out / "cells.csv")
    counts = Counter((cell["image"], cell["type"]) for cell in cells)
    for row in table(out / "differential.csv"):
        of = Path(row["of"])
        images = [of] if of.is_file() else list(of.glob("field.jpg"))
        assert int(row["cells"]) == sum(counts[str(image), row["type"]] for image in images)
        if row["percent"]:
            total = sum(counts[str(image), name] for image in images for name in TYPES)
            assert float(row["percent"]) == pytest.approx(100 * int(row["cells"]) / total)
            assert 0 <= float(row["low95"]) <= float(row["percent"]) <= float(row["high95"]) <= 100
    assert {Path(row["of"]).name for row in table(out / "differential.csv")} == {"a", "b", "field.jpg"}
    assert {p.name for p in (out / "images").iterdir()} == {"field.jpg", "field-2.jpg"}
    assert all(cv2.imread(str(p)) is not None for p in (out / "images").iterdir())
    assert (out / "args.yaml").exists()


def test_predict_takes_an_image_or_a_pattern_and_fuses(project, slides, tmp_path, leuko):
    words = ["predict", "--save", tmp_path / "out", "--name", "x", "--source"]
    assert leuko(*words, slides / "*/field.jpg", "--ensemble", project / "faster", project / "fcos").code == 0
    assert len(list((tmp_path / "out/x/images").iterdir())) == 2
    none = leuko(*words, slides / "a/field.jpg", "--weights", project / "faster", "--threshold", "1")
    assert none.code == 0 and "1 images, 0 cells" in none.out
    assert (
        table(tmp_path / "out/x-2/cells.csv") == []
        and json.loads((tmp_path / "out/x-2/cells.json").read_text())["cells"] == []
    )


def test_pictures_of_one_name_do_not_overwrite_each_other():
    paths = [Path(p) for p in ("a/1.jpg", "b/1.jpg", "c/1-2.JPG", "d/1.png", "note.txt")]
    assert [name for _, name in named_pictures(paths)] == ["1.jpg", "1-2.jpg", "1-2-2.jpg", "1.png", "note.jpg"]
    assert [path for path, _ in named_pictures(paths)] == paths


def test_predict_refuses_what_it_cannot_use(project, slides, tmp_path, leuko):
    words = ["predict", "--weights", project / "faster", "--save", tmp_path / "out", "--source"]
    leuko(*words, slides / "b/broken.jpg").refused(
        str(slides / "b/broken.jpg"), "none of its 1 files is a readable image"
    )
    leuko(*words, slides / "*.png").refused("*.png", "no image there")
    (tmp_path / "empty").mkdir()
    leuko(*words, tmp_path / "empty").refused("empty", "no image there", "put images into it")
    leuko(*words, slides, "--threshold", "50").refused("--threshold 50")
    leuko("predict", "--weights", project / "faster").refused("--source is missing")
    assert not list((tmp_path / "out").glob("*"))


def cells_of(dataset: Dataset) -> list[tuple]:
    """Image size, type and box of all cells of a data set."""
    return [
        (s.width, s.height, dataset.types[label], *box)
        for s in dataset.samples
        for label, box in zip(s.labels, s.boxes.tolist(), strict=True)
    ]


def same_cells(some: list[tuple], others: list[tuple]) -> None:
    """The same numbers of each type, and boxes to a hundredth of a pixel."""
    assert Counter(cell[:3] for cell in some) == Counter(cell[:3] for cell in others)
    a, b = ([(w, h, TYPES.index(name), *box) for w, h, name, *box in cells] for cells in (some, others))
    apart = np.abs(np.array(a)[:, None] - np.array(b)).max(-1)
    assert (apart.min(0) <= 0.01).all() and (apart.min(1) <= 0.01).all()


def exported(tasks: list[dict], folder: Path) -> None:
    """What Label Studio's COCO export makes of tasks whose predictions were accepted as they are: pixels of the image
    as it is shown are percent / 100 * original size."""
    images, annotations, types = [], [], {}
    for number, task in enumerate(tasks):
        path = unquote(task["data"]["image"].partition("?d=")[2])
        with Image.open(folder / path) as image:
            width, height = ImageOps.exif_transpose(image).size
        images.append({"id": number, "file_name": path, "width": width, "height": height})
        for region in task["predictions"][0]["result"]:
            assert (region["original_width"], region["original_height"]) == (width, height)
            value, size = region["value"], (width, height, width, height)
            shares = (value[key] / 100 for key in ("x", "y", "width", "height"))
            box = [share * side for share, side in zip(shares, size, strict=True)]
            category = types.setdefault(value["rectanglelabels"][0], len(types))
            about = {"id": len(annotations), "image_id": number, "category_id": category}
            annotations.append({**about, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": i, "name": name} for name, i in types.items()]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "result.json").write_text(json.dumps(content))


def test_what_was_found_comes_back_as_labels(project, slides, tmp_path, leuko):
    """From predict and val to labels, which `leuko data` reads, and as Label Studio would export them."""
    (slides / "b/field 2 \u00e4.jpg").write_bytes((slides / "a/field.jpg").read_bytes())
    words = ["predict", "--weights", project / "faster", "--save", tmp_path, "--threshold", "0.06", "--source", slides]
    leuko(*words, "--labels", "labelstudo").refused("--labels: 'labelstudo'", 'did you mean "labelstudio"')
    leuko(*words, "--labels").refused("--labels", "at least one")
    result = leuko(*words, "--labels", *get_args(LabelFormat))
    listed = [row for row in table(tmp_path / "faster/cells.csv") if row["why"] != "below the threshold"]
    assert result.code == 0 and f"{len(listed)} cells on 3 images as coco, yolo, voc" in result.out, result.err
    corners = ("x0", "y0", "x1", "y1")
    wanted = [(80, 80, cell["best"], *(float(cell[key]) for key in corners)) for cell in listed]
    scores = sorted(float(cell["score"]) for cell in listed)
    for form in ("coco", "yolo", "voc"):
        folder = tmp_path / "faster/labels" / form
        predicted = load(folder, "predicted")
        assert predicted.types == TYPES and len(predicted) == 3 and not predicted.warnings
        same_cells(cells_of(predicted), wanted)
        assert sorted(a["score"] for s in predicted.samples for a in s.attributes) == scores
        assert leuko("data", "check", folder, "--save", tmp_path / "check").code in (0, 1)
        assert leuko("data", "convert", folder, tmp_path / f"from {form}", "--to", "coco").code == 0
        same_cells(cells_of(load(tmp_path / f"from {form}", "predicted")), wanted)
    folder = tmp_path / "faster/labels/labelstudio"
    tasks = json.loads((folder / "predicted.json").read_text())
    exported(tasks, folder)
    same_cells(cells_of(load(folder / "result.json", "all")), wanted)
    assert tasks[1]["data"]["image"].startswith("/data/local-files/?d=images/field%202%20%C3%A4.jpg")
    view = ElementTree.parse(folder / "config.xml").getroot()
    rectangles = view.find("RectangleLabels")
    assert [label.get("value") for label in rectangles] == TYPES and view.find("Image").get("value") == "$image"
    for task in tasks:
        prediction = task["predictions"][0]
        assert prediction["model_version"].startswith("faster, leuko ")
        assert prediction["score"] == min(region["score"] for region in prediction["result"])
        for region in prediction["result"]:
            assert (region["from_name"], region["to_name"]) == (rectangles.get("name"), view.find("Image").get("name"))
            assert region["type"] == "rectanglelabels" and region["image_rotation"] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_studio_gets_boxes_on_the_image_as_it_is_shown(orientation, tmp_path):
    """The one bright cell lies where the rectangle is once the image is turned."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:15, 10:40] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = [Detections([[10, 5, 40, 15]], [0.75], [0])]
    images = of_images([(tmp_path / "a.png", (60, 40))], ["<A & B>"])
    lines = write_labels(tmp_path, ["labelstudio", "coco"], images, found, "predicted", "x")
    assert ("EXIF" in lines[-1]) == (orientation > 1)
    assert load(tmp_path / "coco", "predicted").samples[0].boxes.tolist() == [[10, 5, 40, 15]]
    (task,) = json.loads((tmp_path / "labelstudio/predicted.json").read_text())
    (region,) = task["predictions"][0]["result"]
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))[:, :, 0]
    rows, columns = np.nonzero(shown)
    value, (height, width) = region["value"], shown.shape
    assert (region["original_width"], region["original_height"], region["score"]) == (width, height, 0.75)
    box = [value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height]
    wanted = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
    assert [v / 100 for v in box] == pytest.approx(wanted)
    config = ElementTree.parse(tmp_path / "labelstudio/config.xml")
    assert config.find("RectangleLabels/Label").get("value") == value["rectanglelabels"][0] == "<A & B>"


def test_an_image_whose_name_is_none_is_told_and_not_labelled(project, slides, tmp_path, leuko):
    shutil.copy(slides / "a/field.jpg", tmp_path / "scan")
    words = ["predict", "--weights", project / "faster", "--save", tmp_path / "out", "--source", tmp_path / "scan"]
    result = leuko(*words, "--labels", *get_args(LabelFormat))
    assert result.code == 0 and f"1 images left out, whose names are no image's, such as {tmp_path}" in result.out


def test_an_image_with_as_many_detections_as_the_cap_is_told(project, data, slides, tmp_path, leuko):
    words = ["--weights", project / "faster", "--save", tmp_path / "out"]
    predict_words = ["predict", *words, "--source", slides, "--threshold", "0.06"]
    assert "as many detections" not in leuko(*predict_words).err
    result = leuko(*predict_words, "--max-detections", "3")
    told = "2 images have as many detections as the cap of 3, such as"
    assert result.err.count(told) == 1 and "--max-detections raises it" in result.err, result.err
    assert Counter(c["image"] for c in table(tmp_path / "out/faster-2/cells.csv")).most_common()[0][1] <= 3
    val_words = ["val", *words, "--data", data, "--workers", "0", "--threshold", "0.06", "--draws", "0"]
    result = leuko(*val_words, "--max-detections", "3", "--labels", "yolo")
    assert result.code == 0 and result.out.count("3 images have as many detections as the cap of 3") == 1, result.err
    found = json.loads((tmp_path / "out/faster-3/predictions.json").read_text())
    assert set(Counter(f["image_id"] for f in found).values()) == {3}
    assert json.loads((tmp_path / "out/faster-3/metrics.json").read_text())["max_detections"] == 3
    sure = [f for f in found if f["score"] >= 0.06]  # some may be of one cell
    assert load(tmp_path / "out/faster-3/labels/yolo", "test").counts().sum() <= len(sure)
    leuko(*val_words, "--max-detections", "0").refused("--max-detections 0", "1 to 10,000")
    leuko(*val_words[:-1], "20").refused("--draws 20", "39")


def test_images_with_more_cells_than_are_detected_are_told(project, tmp_path, leuko):
    """By train and val, once each."""
    boxes = [[x, y, x + 15, y + 15] for y in range(0, 200, 20) for x in range(0, 300, 20)]
    Image.new("RGB", (300, 200), (200, 180, 200)).save(tmp_path / "a.png")
    for split, number in (("train", 150), ("test", 101)):
        sample = Sample(tmp_path / "a.png", 300, 200, boxes[:number], np.arange(number) % 5, 1)
        coco.write(Dataset(TYPES, [sample]), tmp_path / "data", split)
    about = ["--data", tmp_path / "data", "--save", tmp_path / "val", "--draws", "0", "--workers", "0"]
    result = leuko("val", "--weights", project / "faster", *about, "--max-detections", "100")
    told = "1 images have more than 100 cells (up to 101), such as"
    assert result.out.count(told) == 1 and "--max-detections" in result.out, result.err
    assert "more than" not in leuko("val", "--weights", project / "faster", *about, "--max-detections", "101").out
    words = ["train", "--data", tmp_path / "data", "--project", tmp_path, *TINY, *FCOS]
    result = leuko(*words)
    assert "train: 1 images have more than 100 cells (up to 150)" in result.out and f"test: {told}" in result.out
    result = leuko(*words, "--max-detections", "120")
    assert "train: 1 images have more than 120" in result.out and "test: 1 images" not in result.out


# ---------------------------------------------------------------------- the command line itself


def test_help_teaches_by_example(leuko):
    for name, flags in {
        "train": "--resume --epochs",
        "compare": "--resume --model",
        "download": "--mirror",
        "report": "--out",
        "val": "--ensemble",
        "predict": "--source",
        "data": "synth",
    }.items():
        result = leuko(name, "--help")
        assert result.code == 0 and all(flag in result.out for flag in flags.split())
        assert name in ("data", "download", "report") or f"leuko {name} --" in result.out.split("examples:")[1]
    assert leuko("--help").code == 0 and leuko("--version").out.startswith("leuko 0.")
    leuko("trian").refused('"trian"', 'did you mean "train"')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 2\nbackbonee: resnet18\n", ('"backbonee"', 'did you mean "backbone"')),
        ("epochs: two\n", ("epochs", "'two' is not a whole number")),
        ("epochs: 1.5\n", ("epochs", "1.5 is not a whole number")),
        ("epochs: .inf\n", ("epochs", "inf is not a whole number")),
        ("epochs: true\n", ("epochs", "True is not a whole number")),
        ("lr: [1]\n", ("lr", "[1] is not a number")),
        ("augment: 1\n", ("augment", "1 is not text or a list")),
        ("data: 5\n", ("data", "5 is not text")),
        ("norm: batch\n", ("norm", "'batch' is not one of frozen, train")),
        ("- epochs\n", ("is not a mapping",)),
        ("epochs: [\n", ("broken YAML",)),
        ("name: 2024-02-30\n", ("broken YAML", "day is out of range")),
        ("epochs: !!int abc\n", ("broken YAML", "'abc'")),
        ('epochs: !!int ""\n', ("broken YAML",)),
        ("augment: !!bool maybe\n", ("broken YAML", "'maybe'")),
        ("name: !!timestamp soon\n", ("broken YAML",)),
        ("data: &a [b]\naugment: [*a, *a]\n", ("broken YAML", "aliases")),
        (b"\xff\xfe\xff", ("not UTF-8",)),
        ("data: D\nepochs: " + "9" * 3000 + "\n", ("--epochs 999", "to 2,147,483,647")),
        ("data: D\nepochs: " + "9" * 5000 + "\n", ("a value of 5,000 characters",)),
        ("data: D\nlr: 1e400\n", ("--lr inf",)),
        ("data: D\nlr: .nan\n", ("--lr nan",)),
        ("data: D\nworkers: 1000000\n", ("--workers 1000000",)),
        ("data: D\nimgsz: 100000\n", ("--imgsz 100000", "64 to 8,192")),
        ('data: "D\\0"\n', ("--data", "zero byte")),
        (f"data: D\naugment: [horizontal_flip: 1{'0' * 400}]\n", ("horizontal_flip: p: 1000", "from 0 to 1")),
        ("train_split: " + "[" * 20000 + "\n", ("broken YAML", "nest")),
        ("name: " + "x, " * 400_000 + "\n", ("MB",)),
    ],
)
def test_config_that_is_wrong(text, words, tmp_path, leuko):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    started = time.process_time()
    leuko("train", "--config", file).refused(*words)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train data=slides epochs=3", ("data=slides", "--data slides")),
        ("predict --conf 0.4", ("--conf", "--threshold")),
        ("train --conf 0.4", ("--conf; this command has nothing like it",)),
        ("val --save-dir x", ("--save-dir", "leuko has --save ")),
        ("train --save-dir x", ("--save-dir", "leuko has --project ")),
        ("compare --model fcos --data x", ("fcos alone", "leuko train")),
        ("train --lr0 0.1", ("--lr0", "--lr")),
        ("train --exist-ok", ("--exist-ok", "NAME-2")),
        ("train --optimizer AdamW", ("--optimizer", "SGD")),
        ("train --cos-lr", ("--cos-lr", "tenth")),
        ("train --pretrain", ("--pretrain", 'did you mean "--pretrained"')),
        ("train --xyz 3", ("unknown flag --xyz (see leuko train --help)",)),
        ("train --data x --amp fp16 --device cpu", ("--amp fp16", "GPU")),
        ("train --patience -1 --data x", ("--patience -1",)),
        ("data convert a b", ("--to", "voc, coco")),
        ("data convert", ("required", "SRC, DST")),
        ("data cehck", ('did you mean "check"',)),
        ("compare --model fcos,fcoss --data x", ('"fcoss"', 'did you mean "fcos"')),
    ],
)
def test_habits_of_other_trainers_get_a_hint(words, said, leuko):
    leuko(*words.split()).refused(*said)


def test_a_flag_that_nothing_resembles_suggests_nothing(leuko):
    for words in ("val --patience 3", "predict --half", "train --hlep"):
        result = leuko(*words.split())
        assert result.code == 2 and "did you mean" not in result.err, result.err


def test_a_bare_number_is_a_gpu(leuko, monkeypatch):
    tried: list[torch.device] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: tried.append(device))
    assert choose_device("7") == torch.device("cuda:7") == tried[0]
    assert leuko("version").out == leuko("--version").out


def test_config_fills_in_and_flags_override(tmp_path, leuko):
    (tmp_path / "val.yaml").write_text("ensemble: 5\n")
    leuko("val", "--config", tmp_path / "val.yaml").refused("ensemble: 5 is not a list")
    (tmp_path / "recipe.yaml").write_text("lr: 1e-3\nepochs: 0\ndata: nowhere\n")
    leuko("train", "--config", tmp_path / "recipe.yaml").refused("--epochs 0")
    leuko("train", "--config", tmp_path / "recipe.yaml", "--epochs", "1").refused("nowhere", "no such file")
    leuko("train", "--config", tmp_path / "none.yaml").refused("none.yaml", "no such file")


def test_running_out_of_memory_is_told_in_a_line(monkeypatch, leuko):
    def use(error: Callable[[], object]) -> Result:
        monkeypatch.setattr(predict, "predict", lambda _: error())
        return leuko("predict")

    def gpu() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total ...")

    use(lambda: torch.empty(1 << 60)).refused("out of memory", "--batch", "--imgsz")
    use(gpu).refused("out of memory", "--batch", "--imgsz")
    with pytest.raises(RuntimeError, match="size of tensor"):
        use(lambda: torch.zeros(2) + torch.zeros(3))


# ---------------------------------------------------------------------- bad input, leaving no run behind


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def without(key: str, split: str = "train") -> Callable[[Path], Path]:
    """Empty a list of a split's labels."""

    def change(data: Path) -> Path:
        edit(data / f"{split}.json", lambda content: content.update({"annotations": [], key: []}))
        return data

    return change


def bare_folder(data: Path) -> Path:
    return data / "images"


def misspelt(data: Path) -> Path:
    (data / "data.yaml").write_text("train: train.json\nval: val.json\nnames: [NG, BG, EG, L, Mo]\n")
    return data / "data.yaml"


BAD_DATA = {
    "empty": (without("images"), ("train.json", "no images", "empty data set")),
    "no cells": (without("annotations"), ("split train has no cell to learn from",)),
    "no annotations": (bare_folder, ("images", "a folder without annotations")),
    "no cells to validate on": (without("annotations", "val"), ("split val has no cell", "--val-split")),
    "misspelt class": (misspelt, ("train.json", 'unknown class "M"', 'did you mean "Mo"')),
    "nowhere": (lambda data: data / "none", ("none", "no such file or folder")),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_leaves_no_run(name, data, tmp_path, leuko):
    change, words = BAD_DATA[name]
    path = change(shutil.copytree(data, tmp_path / "data"))
    leuko("train", "--data", path, "--project", tmp_path / "runs", *TINY, "--epochs", "1").refused(*words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs 0", ("--epochs 0: give a number from 1 to",)),
        ("--epoch 3", ("unknown flag --epoch", 'did you mean "--epochs"')),
        ("--epochs three", ("--epochs", "'three'")),
        ("--preset smal", ("--preset", "smal")),
        ("--model fcoss", ('"fcoss"', 'did you mean "fcos"')),
        ("--backbone resnet19", ('"resnet19"', "did you mean")),
        ("--lr nan", ("--lr nan",)),
        ("--imgsz 8", ("--imgsz 8",)),
        ("--channels 40", ("--channels 40", "multiple of 32")),
        ("--seed 99999999999", ("--seed 99999999999",)),
        ("--vote 1", ("--vote 1.0", "below 1")),
        ("--device gpu", ("--device gpu",)),
        ("--name a/b", ('"a/b"',)),
        ("--val-split tset", ('no split "tset"',)),
        ("--weights none.safetensors", ("none.safetensors", "no such run or weights file")),
        ("--pretrained --backbone-weights none.pth", ("none.pth", "no such run or weights file")),
    ],
)
def test_bad_option_leaves_no_run(words, said, data, tmp_path, leuko):
    base = ["train", "--data", data, "--project", tmp_path / "runs", *TINY, *FCOS]
    leuko(*base, *words.split()).refused(*said)
    assert not (tmp_path / "runs").exists()


def test_odd_images_are_learned_from(tmp_path, leuko):
    """1x1 pixels, a strip, and one without leukocytes."""
    samples = []
    for i, (width, height) in enumerate([(1, 1), (200, 9), (64, 64), (64, 64)]):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((height, width, 3), 50 * i, np.uint8))
        boxes = [[10, 2, 40, 8]] if i in (1, 2) else []
        samples.append(Sample(path, width, height, boxes, [0] * len(boxes), i + 1))
    for split in ("train", "val"):
        coco.write(Dataset(TYPES, samples), tmp_path / "data", split)
    for model in ("faster_rcnn", "fcos"):
        words = ["--model", model, "--channels", "64", "--epochs", "1", "--batch", "1"]
        result = leuko("train", "--data", tmp_path / "data", "--project", tmp_path / "runs", *TINY, *words)
        assert result.code == 0, result.err
        assert (
            leuko(
                "predict",
                "--weights",
                tmp_path / "runs" / model,
                "--source",
                tmp_path / "0.png",
                "--save",
                tmp_path / "out",
            ).code
            == 0
        )


def test_bad_weights_are_refused_and_run_no_code(project, data, tmp_path, leuko):
    whole = project / "fcos/weights/best.safetensors"
    state, touched = safetensors.torch.load_file(whole), tmp_path / "touched"
    with safe_open(whole, "pt") as file:
        document = json.loads(file.metadata()["leuko"])

    def stored(name: str, document: object, state: dict = state) -> Path:
        safetensors.torch.save_file(state, tmp_path / name, {"leuko": json.dumps(document)})
        return tmp_path / name

    (tmp_path / "cut").write_bytes(whole.read_bytes()[:100_000])
    (tmp_path / "bytes").write_bytes(b"\0" * 64)
    (tmp_path / "empty").touch()
    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb(touched)))
    torch.save(Bomb(touched), tmp_path / "zip")
    safetensors.torch.save_file(state, tmp_path / "foreign")
    fewer = {key: value for key, value in state.items() if key != "head.scales"}
    bad = {
        **dict.fromkeys(("cut", "bytes", "empty", "pickle", "zip"), "not a whole safetensors file"),
        "foreign": "without leuko's metadata",
        stored("list", []).name: "without leuko's metadata",
        stored("no recipe", document | {"recipe": {"backbone": "resnet18"}}).name: 'no "name"',
        stored(
            "other", document | {"recipe": document["recipe"] | {"name": "faster_rcnn"}}
        ).name: "do not fit its model",
        stored("fewer", document, fewer).name: "do not fit its model",
    }
    for name, words in bad.items():
        words = (str(tmp_path / name), words)
        leuko("val", "--weights", tmp_path / name, "--data", data, "--save", tmp_path / "val").refused(*words)
    for name in ("cut", "pickle", "fewer"):
        words = ["train", "--data", data, "--project", tmp_path / "runs", *TINY, *FCOS, "--norm", "train"]
        leuko(*words, "--weights", tmp_path / name).refused(str(tmp_path / name))
    assert not touched.exists() and not (tmp_path / "val").exists() and not (tmp_path / "runs").exists()


def test_modules_run_as_processes(data, start):
    """What a shell sees: the exit code, one line, no traceback; and quick help without torch."""
    for name, words, code in (
        ("leuko.train", ["--data", data, "--epochs", "0"], 2),
        ("leuko", ["--help"], 0),
    ):
        process = start(name, *words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code
        assert (err == "" and "train" in out) if code == 0 else (err.startswith("leuko: ") and err.count("\n") == 1)


def test_nothing_asks_for_the_network(project, data, tmp_path):
    """Not even a training from ImageNet weights that are not there: the line says how to get them. ``leuko download``
    alone goes out. (Ultralytics' models: test_ultralytics.py.)"""
    image, runs = next((data / "images").iterdir()), ["--project", tmp_path / "runs"]
    tiny = [word for word in TINY if word != "--no-pretrained"]
    both = [project / "faster", project / "fcos"]
    commands = [
        ["val", "--ensemble", *both, "--data", data, "--save", tmp_path / "val", "--draws", "0", "--workers", "0"],
        ["predict", "--weights", project / "fcos", "--source", image, "--save", tmp_path / "predict"],
        ["report", tmp_path / "val/ensemble"],
        ["data", "check", data, "--save", tmp_path / "check"],
        ["train", "--data", data, "--model", "fcos", "--epochs", "1", *tiny, *runs],
        ["train", "--data", data, "--model", "fcos", *tiny, "--backbone", "resnet18", *runs],
        ["train", "--data", data, *runs],
    ]
    ended, _ = in_child(commands)
    for (result, _), command in zip(ended[:-2], commands, strict=False):
        assert result.code == 0 or (command[1] == "check" and result.code == 1), (command, result.err)
    for (result, _), name in zip(ended[-2:], ("resnet18", "resnet50"), strict=True):
        result.refused(f"backbone {name}", "leuko download", "--backbone-weights", "--no-pretrained")
