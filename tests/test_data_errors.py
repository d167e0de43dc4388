"""Bad data sets: whatever is wrong is reported with its file and object, or fixed, counted and listed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import FORMATS, coco, voc, yolo
from leuko.data.source import load
from leuko.errors import LeukoError

WRITERS = {name: module.write for name, module in FORMATS.items()}


@pytest.fixture
def plain(tmp_path_factory) -> Dataset:
    """Three images of 97x61, the first two called 1.jpg, with two cells, one and none."""
    folder = tmp_path_factory.mktemp("pictures")
    cells = [([[10, 10, 30, 30], [40, 20, 60, 50.5]], [0, 4]), ([[5, 5, 25, 35]], [2]), ([], [])]
    samples = []
    for number, (name, (boxes, labels)) in enumerate(zip(("a/1.jpg", "b/1.jpg", "2.png"), cells, strict=True), 1):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (97, 61), (50 * number, 90, 120)).save(folder / name)
        samples.append(Sample(folder / name, 97, 61, boxes, labels, number))
    return Dataset(["NG", "BG", "EG", "L", "M"], samples)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def edit_json(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / "train.json").read_text())
    change(content)
    (folder / "train.json").write_text(json.dumps(content))


def cut(file: Path, size: int) -> None:
    """Shorten a file that may be a hard link, without touching what it is linked to."""
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:size])


def without_yaml(folder: Path, classes: str) -> None:
    """Let a ``classes.txt`` name the classes."""
    (folder / "data.yaml").unlink(missing_ok=True)
    (folder / "classes.txt").write_text(classes)


XML, TXT, IMAGE = "Annotations/1.xml", "labels/train/1.txt", "JPEGImages/1.jpg"
LIST = "ImageSets/Main/train.txt"
BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'
YAML = "train: images/train\nnames: [NG, BG, EG, L, M]\n"
BAD = {  # what is wrong: (format, how to do it, what the message must say)
    "xml bomb": ("voc", lambda d: (d / XML).write_text(BOMB), ("/1.xml: a DOCTYPE", "remove it")),
    "xml external": ("voc", lambda d: (d / XML).write_text(EXTERNAL), ("/1.xml: a DOCTYPE", "remove it")),
    "xml utf-16 bomb": (
        "voc",
        lambda d: (d / XML).write_bytes(BOMB.encode("utf-16")),
        ("/1.xml: a DOCTYPE", "remove it"),
    ),
    "xml broken": ("voc", lambda d: edit(d / XML, "</name>", "</nam>"), ("1.xml: line 10", "mismatched tag")),
    "xml encoding": ("voc", lambda d: (d / XML).write_bytes(b'<?xml version="1.0" encoding="GBK"?><a/>'), ("1.xml",)),
    "xml other": ("voc", lambda d: (d / XML).write_text("<svg/>"), ("1.xml", "<svg>")),
    "xml no name": ("voc", lambda d: edit(d / XML, "<name>NG</name>", ""), ("1.xml: object 1: no name",)),
    "xml no corner": ("voc", lambda d: edit(d / XML, "<xmax>30</xmax>", ""), ("1.xml: object 1: no bndbox/xmax",)),
    "xml letters": ("voc", lambda d: edit(d / XML, "<xmax>30<", "<xmax>3o<"), ("1.xml: object 1", '"3o"')),
    "xml nan": ("voc", lambda d: edit(d / XML, "<xmax>30<", "<xmax>nan<"), ("1.xml: object 1 (NG)", "not finite")),
    "inverted": ("voc", lambda d: edit(d / XML, "<xmax>30<", "<xmax>3<"), ("1.xml: object 1 (NG)", "inverted")),
    "outside": (
        "voc",
        lambda d: [edit(d / XML, f"<{key}>{old}<", f"<{key}>1{old}<") for key, old in (("xmin", 10), ("xmax", 30))],
        ("1.xml: object 1 (NG)", "[110, 10, 130, 30] lies outside the image (97x61)"),
    ),
    "other scale": (
        "voc",
        lambda d: [edit(d / XML, f"{side}</", f"{side}0</") for side in (97, 61)],
        ("1.xml", "970x610", "97x61", "another scale"),
    ),
    "unknown class": (
        "voc",
        lambda d: edit(d / XML, "NG", "NGG"),
        ('1.xml: object 1 (NGG): unknown class "NGG"', '"NG"?'),
    ),
    "unlabelled": ("voc", lambda d: (d / XML).unlink(), ("train.txt: 1: no annotation", "1.xml")),
    "no image": ("voc", lambda d: (d / IMAGE).unlink(), ("1.xml", '"1.jpg"', "add the image")),
    "two images": ("voc", lambda d: (d / "JPEGImages/1.png").touch(), None),
    "empty image": ("voc", lambda d: cut(d / IMAGE, 0), ("1.xml", "1.jpg: not a readable image")),
    "empty list": ("voc", lambda d: (d / "ImageSets/Main/train.txt").write_text("\n"), ("no images", "empty data set")),
    "listed twice": (
        "voc",
        lambda d: (d / "ImageSets/Main/train.txt").write_text("1\n1\n"),
        ("1.jpg is listed twice",),
    ),
    "json broken": ("coco", lambda d: edit(d / "train.json", "}]", "}"), ("train.json: broken JSON", "line 1 column")),
    "json deep": (
        "coco",
        lambda d: (d / "train.json").write_text('{"images":' + "[" * 10**6),
        ("train.json", "broken"),
    ),
    "json no list": (
        "coco",
        lambda d: edit_json(d, lambda c: c.pop("annotations")),
        ('train.json: no list "annotations"',),
    ),
    "image id twice": (
        "coco",
        lambda d: edit_json(d, lambda c: c["images"][1].update(id=1)),
        ("train.json: image 1", "twice"),
    ),
    "image twice": (
        "coco",
        lambda d: edit_json(d, lambda c: c["images"][1].update(file_name="1.jpg")),
        ("train.json: image 2 (1.jpg)", "listed twice", "image 1"),
    ),
    "image missing": (
        "coco",
        lambda d: edit_json(d, lambda c: [c["images"][i].update(file_name=f"no{i}.jpg") for i in (0, 1, 2)]),
        ("train.json: image 1 (no0.jpg)", "no such file", "(and 2 more)"),
    ),
    "climbing out": (
        "coco",
        lambda d: edit_json(d, lambda c: c["images"][0].update(file_name="../../elsewhere.jpg")),
        ("train.json: image 1", "../../elsewhere.jpg", "leaves the data set's folder"),
    ),
    "annotation id": (
        "coco",
        lambda d: edit_json(d, lambda c: c["annotations"][1].update(id=1)),
        ("train.json: annotation 1", "twice"),
    ),
    "annotation image": (
        "coco",
        lambda d: edit_json(d, lambda c: c["annotations"][1].update(image_id=99)),
        ("train.json: annotation 2: image_id 99",),
    ),
    "category": (
        "coco",
        lambda d: edit_json(d, lambda c: c["annotations"][2].update(category_id=9)),
        ("train.json: annotation 3: unknown class, category_id 9", "5 M"),
    ),
    "category twice": (
        "coco",
        lambda d: edit_json(d, lambda c: c["categories"][1].update(name="NG")),
        ("train.json: category 2 (NG)", "twice"),
    ),
    "bbox": (
        "coco",
        lambda d: edit_json(d, lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4])),
        ("train.json: annotation 1: bbox: [1, 2, '3', 4]",),
    ),
    "bbox nan": (
        "coco",
        lambda d: edit_json(d, lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4])),
        ("train.json: image 1 (1.jpg): annotation 1", "not finite"),
    ),
    "bbox negative": (
        "coco",
        lambda d: edit_json(d, lambda c: c["annotations"][0].update(bbox=[9, 9, -5, 4])),
        ("train.json: image 1 (1.jpg): annotation 1", "inverted"),
    ),
    "line": ("yolo", lambda d: (d / TXT).write_text("0 .5 .5 .1 .1\n0 .5 .5 .1\n"), ("1.txt: line 2: 4 numbers",)),
    "word": ("yolo", lambda d: (d / TXT).write_text("NG .5 .5 .1 .1\n"), ("1.txt: line 1", "'NG'")),
    "index": ("yolo", lambda d: (d / TXT).write_text("5 .5 .5 .1 .1\n"), ("1.txt: line 1: unknown class 5", "4 M")),
    "pixels": ("yolo", lambda d: (d / TXT).write_text("0 50 50 9 9\n"), ("1.txt: line 1 (NG)", "fractions", "outside")),
    "not text": ("yolo", lambda d: (d / TXT).write_bytes(b"0 \xff\xfe"), ("1.txt: byte 2: not UTF-8",)),
    "orphan": ("yolo", lambda d: (d / TXT).with_name("8.txt").touch(), ("8.txt: label file without image 8",)),
    "no labels": (
        "yolo",
        lambda d: (d / "labels").rename(d / "label"),
        ("images/train", "none of the 3 images has a label file"),
    ),
    "no names": (
        "yolo",
        lambda d: (d / "data.yaml").unlink(),
        ("without class names", 'write a data.yaml with "names'),
    ),
    "yaml key": (
        "yolo",
        lambda d: (d / "data.yaml").write_text("nmes: [NG]\n"),
        ('data.yaml: unknown "nmes"', '"names"?'),
    ),
    "yaml broken": ("yolo", lambda d: (d / "data.yaml").write_text("a: b\n- c\n"), ("data.yaml: line 2: broken YAML",)),
    "yaml bomb": ("yolo", lambda d: (d / "data.yaml").write_text("a: &a [b]\nc: [*a, *a]\n"), ("line 2", "aliases")),
    "yaml list": ("yolo", lambda d: (d / "data.yaml").write_text("- c\n"), ("data.yaml: is not a mapping",)),
    "yaml nc": ("yolo", lambda d: (d / "data.yaml").write_text(YAML + "nc: 4\n"), ("data.yaml: nc: 4", "5 names")),
    "yaml path": ("yolo", lambda d: edit(d / "data.yaml", "images/", "imges/"), ("data.yaml: train", "imges/train")),
    "yaml name NO": ("yolo", lambda d: edit(d / "data.yaml", "NG", "NO"), ("data.yaml: names: 0: False", "quotes")),
    "yaml name twice": ("yolo", lambda d: edit(d / "data.yaml", "NG", "BG"), ('names: "BG"', "twice")),
    "yaml misspelt": (
        "voc",
        lambda d: (d / "data.yaml").write_text("train: ImageSets/Main/train.txt\nnames: [NGG, BG, EG, L, M]\n"),
        ('1.xml: object 1 (NG): unknown class "NG"', 'did you mean "NGG"?'),
    ),
    "yaml ignore": (
        "coco",
        lambda d: (d / "data.yaml").write_text("train: train.json\nignore: [NGG]\n"),
        ('data.yaml: ignore: no class is called "NGG"', '"NG"?'),
    ),
    "yaml no splits": ("yolo", lambda d: (d / "data.yaml").write_text("names: [NG]\n"), ("data.yaml: no split",)),
    "yaml empty split": (
        "yolo",
        lambda d: (d / "data.yaml").write_text("splits: {train: []}\nformat: yolo\n"),
        ("data.yaml: no split",),
    ),
    "yaml split twice": (
        "coco",
        lambda d: (d / "data.yaml").write_text("train: train.json\nsplits: {train: other.json}\n"),
        ("data.yaml: train: is given on its own and under splits", "leave one out"),
    ),
    "yaml format": (
        "yolo",
        lambda d: (d / "data.yaml").write_text(YAML + "format: yol\n"),
        ("format: 'yol' is not voc or coco or yolo",),
    ),
    "yaml unclear": (
        "yolo",
        lambda d: (d / "data.yaml").write_text("train: label\n"),
        ("data.yaml: train: there is no",),
    ),
    "yaml format list": ("yolo", lambda d: (d / "data.yaml").write_text(YAML + "format: [coco]\n"), ("format", "coco")),
    "yaml long path": (
        "coco",
        lambda d: (d / "data.yaml").write_text(f"train: {'x' * 300}\n"),
        ("data.yaml: train: there is no", "xxx; correct the path"),
    ),
    "classes.txt empty line": ("yolo", lambda d: without_yaml(d, "NG\n\nEG\nL\nM\n"), ("classes.txt: names: 1: ''",)),
    "classes.txt twice": (
        "yolo",
        lambda d: without_yaml(d, "NG\nNG\nEG\nL\nM\n"),
        ('classes.txt: names: "NG"', "twice"),
    ),
    "classes.txt of VOC": (
        "voc",
        lambda d: without_yaml(d, "NG\nNG\nEG\nL\nM\n"),
        ('classes.txt: names: "NG"', "twice"),
    ),
    "two files of a split": (
        "coco",
        lambda d: shutil.copy(d / "train.json", d / "instances_train2017.json"),
        ("instances_train2017.json and train.json are both the split train", "data YAML"),
    ),
    "two folders of a split": (
        "voc",
        lambda d: [shutil.copy(d / LIST, (d / LIST).with_stem(name)) for name in ("valid", "validation")],
        ("valid and validation are both the split val", "data YAML"),
    ),
    "other split": ("coco", lambda d: (d / "train.json").rename(d / "test.json"), ('no split "train"; it has: test',)),
    "only images": ("coco", lambda d: (d / "train.json").unlink(), ("a folder without annotations",)),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_file_and_object(tmp_path, plain, case):
    name, spoil, words = BAD[case]
    WRITERS[name](plain, tmp_path, "train")
    spoil(tmp_path)
    if words is None:  # an image that can be told apart by the annotation's own words is no error
        assert len(load(tmp_path, "train")) == 3
        return
    with pytest.raises(LeukoError) as error:
        load(tmp_path, "train")
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert message.startswith(str(tmp_path))


def test_asking_for_what_is_not_there(tmp_path, plain):
    coco.write(plain, tmp_path, "test")
    with pytest.raises(LeukoError, match=r'class "NG" is not among the types asked for .*; did you mean "NGG"'):
        load(tmp_path, "test", types=["NGG", "BG", "EG", "L", "M"])
    with pytest.raises(LeukoError, match="nowhere: no such file or folder"):
        load(tmp_path / "nowhere", "test")


def test_what_can_be_fixed_is_fixed_and_listed(tmp_path, plain):
    voc.write(plain, tmp_path / "voc", "all")
    (tmp_path / "voc" / "ImageSets" / "Main" / "all.txt").unlink()
    file = tmp_path / "voc" / XML
    edit(file, "<ymax>50.5<", "<ymax>80<")  # sticks out
    edit(file, "<width>97<", "<width>0<")
    again = file.read_text().partition("\t<object>")[2].partition("</object>")[0]
    point = again.replace(">30<", ">10.5<")
    edit(file, "</annotation>", f"<object>{again}</object><object>{point}</object></annotation>")
    Image.new("RGB", (9, 9)).save(tmp_path / "voc" / "JPEGImages" / "new.png")
    fixed = load(tmp_path / "voc", "all")
    assert [warning.action.partition(" (")[0] for warning in fixed.warnings] == [
        "left out",
        "the image's own is taken",
        "clipped",
        "dropped",
        "dropped",
    ]
    assert [warning.object for warning in fixed.warnings][2:] == ["object 2 (M)", "object 3 (NG)", "object 4 (NG)"]
    sample = next(s for s in fixed.samples if s.image.name == "1.jpg")
    assert (sample.width, sample.boxes.tolist()) == (97, [[10, 10, 30, 30], [40, 20, 60, 61]])

    yolo.write(plain, tmp_path / "yolo", "train")
    label = tmp_path / "yolo" / TXT
    label.write_text("0 .1 .1 .3 .1 .3 .4 .1 .4\n")
    label.with_name("1-2.txt").unlink()
    fixed = load(tmp_path / "yolo", "train")
    assert Counter(warning.problem for warning in fixed.warnings) == {"a polygon, not a box": 1, "missing": 1}
    assert np.allclose(fixed.samples[1].boxes, np.array([[0.1, 0.1, 0.3, 0.4]]) * [97, 61, 97, 61])


def test_labels_made_on_an_image_as_exif_turns_it(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    image = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "NG"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(LeukoError, match=r"train\.json: image 1 \(a\.jpg\): .*40x60.*60x40.*EXIF"):
        load(tmp_path, "train")


REFUSED = {  # what the system may not give: (format, where it is asked for, which file or folder)
    "file": ("coco", (coco, "open"), "train.json"),
    "folder": ("coco", (Path, "iterdir"), ""),
    "folder of images": ("yolo", (os, "scandir"), "images/train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_not_be_read_is_named(tmp_path, plain, monkeypatch, case):
    name, (place, function), victim = REFUSED[case]
    WRITERS[name](plain, tmp_path, "train")

    def refuse(path: str | Path, *_: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:  # permissions do not bind the user who runs tests in a container
        patch.setattr(place, function, refuse, raising=False)
        with pytest.raises(LeukoError) as error:
            load(tmp_path, "train")
    assert str(error.value) == f"{tmp_path / victim}: cannot be read: Permission denied"


def test_a_name_that_is_too_long_is_reported():
    with pytest.raises(LeukoError, match=r"^x+: cannot be read: File name too long"):
        load("x" * 300, "train")
