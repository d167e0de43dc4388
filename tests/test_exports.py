"""Data sets as the tools of laboratories write them: every image and every cell is read, or one line says what is not.

Each export is written here from the same three images and five cells, in the layout of the tool.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import HEIGHT, TYPES, WIDTH, table, untrained
from PIL import Image

from leuko.data import source
from leuko.data.dataset import Dataset
from leuko.detections import Detections
from leuko.engine.ensemble import load_members
from leuko.errors import LeukoError

CELLS = {  # by image: type and box, xyxy in pixels
    "a": [("NG", (10, 8, 40, 36)), ("L", (50, 20, 80, 48))],
    "b": [("EG", (4, 2, 30, 28))],
    "c": [("M", (60, 30, 92, 59)), ("BG", (12, 30, 36, 55))],
}


def image(path: Path, seed: int = 0, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo_lines(name: str, more: str = "") -> str:
    lines = []
    for kind, (x0, y0, x1, y1) in CELLS[name]:
        numbers = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT
        lines.append(" ".join(map(str, (TYPES.index(kind), *numbers))) + more)
    return "\n".join(lines) + "\n"


def xml(name: str, file: str, inside: str = "") -> str:
    objects = "".join(
        f"<object><name>{kind}</name>{inside}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for kind, (x0, y0, x1, y1) in CELLS[name]
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{file}</filename>{size}{objects}</annotation>"


def coco(names: str, file_name: Callable[[str], str], **changes: object) -> dict:
    annotations = [
        {"id": 10 * i + j, "image_id": i, "category_id": TYPES.index(kind) + 1, "iscrowd": 0}
        | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        for i, name in enumerate(names)
        for j, (kind, (x0, y0, x1, y1)) in enumerate(CELLS[name])
    ]
    images = [{"id": i, "file_name": file_name(name), "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(TYPES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def cells(dataset: Dataset) -> dict[str, list]:
    """What was read, as in ``CELLS``."""
    return {
        unicodedata.normalize("NFC", s.image.stem)[-1]: [
            (dataset.types[k], tuple(np.round(box, 3).tolist())) for k, box in zip(s.labels, s.boxes, strict=True)
        ]
        for s in dataset.samples
    }


def check_read(folder: Path, expected: dict[str, str]) -> dict[str, Dataset]:
    """All splits hold the images that they should (``{"train": "ab"}``), with their cells."""
    datasets = source.load_all(folder)
    assert {name: cells(d) for name, d in datasets.items()} == {
        split: {name: CELLS[name] for name in names} for split, names in expected.items()
    }
    assert all(dataset.types == TYPES for dataset in datasets.values())
    return datasets


# ---------------------------------------------------------------- layouts


def label_studio_yolo(root: Path) -> dict[str, str]:
    for name in CELLS:
        image(root / "images" / f"90fbb0c7-{name}.jpg")
        write(root / "labels" / f"90fbb0c7-{name}.txt", yolo_lines(name))
    write(root / "classes.txt", "\n".join(TYPES))
    write(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "NG"}], "info": {"year": 2026}}))
    return {"all": "abc"}


def label_studio_coco(root: Path) -> dict[str, str]:
    spelled = {"a": "../../media/upload/1/M%C3%BCller_a.jpg", "b": "images\\1\\b.jpg", "c": "images/1/c.jpg"}
    image(root / "images" / "Müller_a.jpg")
    image(root / "images" / "b.jpg")
    image(root / "images" / "c.jpg")
    write(root / "result.json", json.dumps(coco("abc", spelled.get)))
    return {"all": "abc"}


def cvat_ultralytics(root: Path) -> dict[str, str]:
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            image(root / "images" / split / f"{name}.png")
            write(root / "labels" / split / f"{name}.txt", yolo_lines(name))
        write(root / f"{split}.txt", "".join(f"data/images/{split}/{name}.png\n" for name in names))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(TYPES))
    write(root / "data.yaml", f"path: ./\ntrain: train.txt\nval: val.txt\nnames:\n{names}")
    return {"train": "ab", "val": "c"}


def cvat_yolo(root: Path) -> dict[str, str]:
    for subset, names in (("Train", "ab"), ("Validation", "c")):
        for name in names:
            image(root / f"obj_{subset}_data" / f"{name}.png")
            write(root / f"obj_{subset}_data" / f"{name}.txt", yolo_lines(name))
        write(root / f"{subset}.txt", "".join(f"data/obj_{subset}_data/{name}.png\n" for name in names))
    write(root / "obj.names", "\n".join(TYPES))
    write(root / "obj.data", "classes = 5\nTrain = data/Train.txt\nnames = data/obj.names\nbackup = backup/\n")
    return {"train": "ab", "val": "c"}


def cvat_coco_subsets(root: Path) -> dict[str, str]:
    for subset, names in (("Train", "a"), ("Validation", "b"), ("Test", "c")):
        for name in names:
            image(root / "images" / subset / f"{name}.png")
        content = coco(names, "{}.png".format)
        write(root / "annotations" / f"instances_{subset}.json", json.dumps(content))
    return {"train": "a", "val": "b", "test": "c"}


def cvat_voc(root: Path) -> dict[str, str]:
    attributes = "<attributes><attribute><name>stage</name><value>band</value></attribute></attributes>"
    for name in CELLS:
        image(root / "JPEGImages" / f"patient_{name}" / f"{name}.png")
        write(root / "Annotations" / f"patient_{name}" / f"{name}.xml", xml(name, f"{name}.png", attributes))
    write(root / "ImageSets" / "Main" / "default.txt", "".join(f"patient_{name}/{name}\n" for name in CELLS))
    write(root / "classes.txt", "\n".join(TYPES))
    return {"default": "abc"}


def official_voc(root: Path) -> dict[str, str]:
    main = root / "ImageSets" / "Main"
    for name in CELLS:
        image(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", xml(name, f"{name}.jpg"))
    for split, names in (("train", "ab"), ("val", "c")):
        write(main / f"{split}.txt", "\n".join(names))
        write(main / f"NG_{split}.txt", "\n".join(f"{name} {-1 if name != 'a' else 1:2}" for name in names))
    return {"train": "ab", "val": "c"}


def roboflow_coco(root: Path) -> dict[str, str]:
    categories = [{"id": 0, "name": "cells", "supercategory": "none"}]
    categories += [{"id": i, "name": name, "supercategory": "cells"} for i, name in enumerate(TYPES, 1)]
    for split, names in (("train", "ab"), ("valid", "c")):
        for name in names:
            image(root / split / f"{name}.jpg")
        content = coco(names, "{}.jpg".format, categories=categories)
        write(root / split / "_annotations.coco.json", json.dumps(content))
    write(root / "README.roboflow.txt", "5 1 2 3 4\nexported\n")
    return {"train": "ab", "val": "c"}


def roboflow_yolo(root: Path) -> dict[str, str]:
    for split, names in (("train", "ab"), ("valid", "c")):
        for name in names:
            image(root / split / "images" / f"{name}.jpg")
            write(root / split / "labels" / f"{name}.txt", yolo_lines(name))
    text = (
        f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 5\nnames: {TYPES}\nroboflow: {{}}\n"
    )
    write(root / "data.yaml", text)
    return {"train": "ab", "val": "c"}


def fiftyone_coco(root: Path) -> dict[str, str]:
    for name in CELLS:
        image(root / "data" / f"{name}.jpg")
    write(root / "labels.json", json.dumps({"info": {}, "licenses": [], **coco("abc", "{}.jpg".format)}))
    return {"all": "abc"}


def fiftyone_yolo(root: Path) -> dict[str, str]:
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            image(root / "images" / split / f"{name}.jpg")
            write(root / "labels" / split / f"{name}.txt", yolo_lines(name))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(TYPES))
    write(
        root / "dataset.yaml", f"path: /on/another/machine\ntrain: ./images/train/\nval: ./images/val/\nnames:\n{names}"
    )
    return {"train": "ab", "val": "c"}


def fiftyone_voc(root: Path) -> dict[str, str]:
    for name in CELLS:
        image(root / "data" / f"{name}.jpg")
        write(root / "labels" / f"{name}.xml", xml(name, f"{name}.jpg"))
    return {"all": "abc"}


def digit_strings(root: Path) -> dict[str, str]:
    content = coco("abc", "{}.jpg".format)
    for entry in (*content["images"], *content["annotations"], *content["categories"]):
        entry |= {
            key: str(value) for key, value in entry.items() if key in ("id", "image_id", "category_id", "iscrowd")
        }
    for name in CELLS:
        image(root / f"{name}.jpg")
    write(root / "all.json", json.dumps(content))
    return {"all": "abc"}


def corners(root: Path) -> dict[str, str]:
    content = coco("abc", "{}.jpg".format)
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, x + width, y + height]
    for name in CELLS:
        image(root / f"{name}.jpg")
    write(root / "all.json", json.dumps(content))
    return {"all": "abc"}


def windows_lists(root: Path) -> dict[str, str]:
    for name in CELLS:
        image(root / "images" / "s" / f"{name}.JPG")
        write(root / "labels" / "s" / f"{name}.TXT", yolo_lines(name))
    write(root / "train.txt", "images\\s\\a.JPG\nD:\\smears\\images\\s\\b.JPG\n")
    write(root / "val.txt", ".\\images\\s\\c.JPG\n")
    write(root / "data.yaml", f"train: train.txt\nval: val.txt\nnames: {TYPES}\n")
    return {"train": "ab", "val": "c"}


def from_a_mac(root: Path) -> dict[str, str]:
    for name in CELLS:
        image(root / "images" / unicodedata.normalize("NFD", f"Müller_{name}.jpg"))
        write(root / "labels" / f"Müller_{name}.txt", yolo_lines(name))
        write(root / "labels" / f"._Müller_{name}.txt", "\0\5\26\7")
        write(root / "images" / f"._Müller_{name}.jpg", "\0\5\26\7")
    write(root / "__MACOSX" / "images" / "a.txt", "0 1 1 1 1")
    image(root / "images" / ".ipynb_checkpoints" / "a-checkpoint.jpg")
    image(root / "images" / "@eaDir" / "a.jpg" / "thumb.jpg")
    write(root / "classes.txt", "\n".join(TYPES))
    return {"all": "abc"}


def voc_lists_of_images(root: Path) -> dict[str, str]:
    for name, folder in (("a", "x"), ("b", "x"), ("c", "y")):
        image(root / folder / f"{name}.jpg")
        write(root / folder / f"{name}.xml", xml(name, f"{name}.jpg"))
    write(root / "train.txt", "x/a.jpg\nx\\b.jpg\n")
    write(root / "val.txt", "y/c.jpg\n")
    write(root / "data.yaml", f"train: train.txt\nval: val.txt\nnames: {TYPES}\n")
    return {"train": "ab", "val": "c"}


def labels_beside_and_apart(root: Path) -> dict[str, str]:
    for name, folder in (("a", "labels"), ("b", "images"), ("c", "labels")):
        image(root / "images" / f"{name}.jpg")
        write(root / folder / f"{name}.txt", yolo_lines(name))
    write(root / "classes.txt", "\n".join(TYPES))
    return {"all": "abc"}


EXPORTS = [label_studio_yolo, label_studio_coco, cvat_ultralytics, cvat_yolo, cvat_coco_subsets, cvat_voc, official_voc]
EXPORTS += [roboflow_coco, roboflow_yolo, fiftyone_coco, fiftyone_yolo, fiftyone_voc, digit_strings, corners]
EXPORTS += [windows_lists, from_a_mac, labels_beside_and_apart, voc_lists_of_images]


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_exports_are_read_and_written_again(export, tmp_path, leuko):
    expected = export(tmp_path / "set")
    datasets = check_read(tmp_path / "set", expected)
    assert not any(dataset.warnings for dataset in datasets.values())
    for form in ("voc", "coco", "yolo"):
        assert leuko("data", "convert", tmp_path / "set", tmp_path / form, "--to", form).code == 0
        check_read(tmp_path / form, expected)


def test_what_was_not_as_stated_is_told(tmp_path, leuko):
    for export, note in {
        label_studio_coco: "3 images lie elsewhere than their label files say",
        corners: "its boxes are corners",
        from_a_mac: "8 files (such as",
        roboflow_yolo: "test: there is no",
    }.items():
        folder = tmp_path / export.__name__
        export(folder)
        assert note in leuko("data", "stats", folder, "--save", tmp_path / "stats").out
    leuko("train", "--data", tmp_path / "roboflow_yolo", "--val-split", "test").refused("test: there is no")
    leuko("data", "stats", tmp_path / "corners", "--save", tmp_path / "stats")
    label_studio_yolo(tmp_path / "one")
    leuko("train", "--data", tmp_path / "one").refused('no split "train"', "--train-split all")


def test_attributes_of_cvat_are_kept(tmp_path):
    cvat_voc(tmp_path)
    assert all(a == {"stage": "band"} for s in source.load(tmp_path, "default").samples for a in s.attributes)


# ---------------------------------------------------------------- what has two readings


def yolo(root: Path, rows: Callable[[float, float, float, float], list[list[float]]], keys: str = "") -> Path:
    """A set whose cells' boxes (as fractions: centre and size) become lines by ``rows``."""
    for name in CELLS:
        image(root / "images" / f"{name}.jpg")
        boxes = [list(map(float, line.split()[1:])) for line in yolo_lines(name).splitlines()]
        kinds = [TYPES.index(kind) for kind, _ in CELLS[name]]
        lines = [[kind, *row] for kind, box in zip(kinds, boxes, strict=True) for row in rows(*box)]
        write(root / "labels" / f"{name}.txt", "".join(" ".join(map(str, line)) + "\n" for line in lines))
    write(root / "data.yaml", f"train: images\nnames: {TYPES}\n{keys}")
    return root


def outline(x, y, w, h):
    return [[x - w / 2, y, x, y - h / 2, x + w / 2, y, x, y + h / 2]]


def pose(x, y, w, h):
    return [[x, y, w, h, x - w / 4, y, x + w / 4, y + h / 4]]


def pose_with_visibility(x, y, w, h):
    return [[x, y, w, h, x - w / 4, y, 2]]


def pose_elsewhere(x, y, w, h):
    return [[x, y, w, h, 0.5, 0.5, 0.6, 0.6]]


@pytest.mark.parametrize("rows", [outline, pose, pose_with_visibility])
def test_more_numbers_than_a_box_has(rows, tmp_path):
    datasets = check_read(yolo(tmp_path, rows), {"train": "abc"})
    assert [w.problem for w in datasets["train"].warnings] == [
        "a polygon, not a box" if rows is outline else "a box with key points"
    ] * 3


def test_lines_with_two_readings_are_decided_by_a_person(tmp_path):
    with pytest.raises(LeukoError, match='"rows: polygons" or "rows: keypoints"'):
        source.load(yolo(tmp_path / "unclear", pose_elsewhere), "train")
    check_read(yolo(tmp_path / "clear", pose_elsewhere, "rows: keypoints\n"), {"train": "abc"})
    check_read(yolo(tmp_path / "ultralytics", pose_elsewhere, "kpt_shape: [2, 2]\n"), {"train": "abc"})
    with pytest.raises(LeukoError, match="pairs of x and y"):
        source.load(yolo(tmp_path / "odd", pose_with_visibility, "rows: polygons\n"), "train")
    content = coco("a", "{}.jpg".format)
    content["annotations"] = content["annotations"][1:]
    content["annotations"][0]["bbox"] = [50, 40, 80, 60]
    image(tmp_path / "one" / "a.jpg")
    write(tmp_path / "one" / "all.json", json.dumps(content))
    with pytest.raises(LeukoError, match='"bbox: xywh" or "bbox: xyxy"'):
        source.load(tmp_path / "one", "all")
    write(tmp_path / "one" / "data.yaml", "train: all.json\nbbox: xyxy\n")
    assert cells(source.load(tmp_path / "one", "train")) == {"a": [("L", (50, 40, 80, 60))]}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_of_the_turned_view(orientation, tmp_path):
    """A white cell on black: the box must lie on it, whichever way EXIF turns the view that was labelled."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[8:36, 10:40] = 255
    exif = Image.Exif()
    exif[274] = orientation
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    with Image.open(tmp_path / "images" / "a.png") as stored:
        shown = np.array(stored if orientation == 1 else stored.transpose(_METHODS[orientation]))
    ys, xs = np.nonzero(shown)
    x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    height, width = shown.shape
    numbers = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
    write(tmp_path / "labels" / "a.txt", " ".join(map(str, (0, *numbers))))
    write(tmp_path / "data.yaml", "train: images\nnames: [NG]\nexif: turned\n")
    assert cells(source.load(tmp_path, "train")) == {"a": [("NG", (10, 8, 40, 36))]}
    write(tmp_path / "data.yaml", "train: images\nnames: [NG]\n")
    notes = source.load(tmp_path, "train").notes
    assert [note.split(";")[0] for note in notes] == [
        f"1 image ({tmp_path}/images/a.png) with an EXIF orientation, which is ignored"
    ] * (orientation > 1)


_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_crowds_are_told_or_taken_as_cells(tmp_path, leuko):
    content = coco("abc", "{}.jpg".format)
    for entry in content["annotations"]:
        entry["iscrowd"] = 1.0  # as some exporters write it
    for name in CELLS:
        image(tmp_path / f"{name}.jpg")
    write(tmp_path / "train.json", json.dumps(content))
    told = "5 crowds (iscrowd 1) are left out of training, counts and measures"
    assert told in leuko("data", "stats", tmp_path, "--save", tmp_path / "stats").out
    words = ["train", "--data", tmp_path, "--val-split", "train", "--allow-leaks"]
    leuko(*words).refused("no cell to learn from", '"crowds: cells"')
    write(tmp_path / "data.yaml", "train: train.json\ncrowds: cells\n")
    check_read(tmp_path, {"train": "abc"})
    assert source.load(tmp_path, "train").counts().tolist() == [1, 1, 1, 1, 1]


# ---------------------------------------------------------------- what is refused


def spoiled_xml(tmp_path: Path, old: str, new: str) -> Path:
    image(tmp_path / "JPEGImages" / "a.jpg")
    write(tmp_path / "Annotations" / "a.xml", xml("a", "a.jpg").replace(old, new))
    return tmp_path


def spoiled_coco(tmp_path: Path, old: str, new: str) -> Path:
    image(tmp_path / "a.jpg")
    image(tmp_path.parent / "secret.jpg")
    write(tmp_path / "all.json", json.dumps(coco("a", "{}.jpg".format)).replace(old, new, 1))
    return tmp_path


def spoiled_yolo(tmp_path: Path, spoil: Callable[[Path], object]) -> Path:
    yolo(tmp_path, lambda *box: [list(box)])
    spoil(tmp_path)
    return tmp_path


def listed(root: Path, line: str) -> Path:
    """A VOC set whose list has this line, and an image with its annotation beside the set."""
    official_voc(root)
    official_voc(root.parent / "elsewhere")
    write(root / "ImageSets" / "Main" / "train.txt", line)
    return root


REFUSED = {
    "Object": (lambda d: spoiled_xml(d, "object", "Object"), "<Object> is not read"),
    "objects": (lambda d: spoiled_xml(d, "object", "objects"), "<objects> is not read"),
    "second box": (
        lambda d: spoiled_xml(d, "</bndbox></object>", "</bndbox><bndbox><xmin>1</xmin></bndbox></object>"),
        "a second <bndbox> is not read",
    ),
    "key twice": (lambda d: spoiled_coco(d, '"annotations"', '"annotations": [], "annotations"'), "stands twice"),
    "crowd": (lambda d: spoiled_coco(d, '"iscrowd": 0', '"iscrowd": "yes"'), "iscrowd: 'yes' is not 0 or 1"),
    "dot": (lambda d: spoiled_coco(d, '"a.jpg"', '"."'), "'.' names no image"),
    "up": (lambda d: spoiled_coco(d, '"a.jpg"', '"../secret.jpg"'), "leaves the data set's folder"),
    "network share": (lambda d: spoiled_coco(d, '"a.jpg"', r'"\\\\host\\secret.jpg"'), "leaves the data set's folder"),
    "slashes": (lambda d: spoiled_coco(d, '"a.jpg"', '"//host/secret.jpg"'), "leaves the data set's folder"),
    "voc list": (lambda d: listed(d, "../../elsewhere/Annotations/a"), "leaves the data set's folder"),
    "voc list of images": (lambda d: listed(d, "../../../elsewhere/JPEGImages/a.jpg"), "leaves the data set's folder"),
    "yaml key twice": (
        lambda d: spoiled_yolo(d, lambda r: write(r / "data.yaml", "train: images\nnames: [NG]\nnames: [L]\n")),
        'line 3: broken YAML: the key "names" stands there twice',
    ),
    "shared labels": (
        lambda d: spoiled_yolo(d, lambda r: image(r / "images" / "a.jpeg", 1)),
        "shares the labels",
    ),
    "two labels": (
        lambda d: spoiled_yolo(d, lambda r: write(r / "images" / "a.txt", "0 .5 .5 .1 .1")),
        "has several label files",
    ),
    "orphan": (
        lambda d: spoiled_yolo(d, lambda r: (r / "labels" / "a.txt").rename(r / "labels" / "A B.TXT")),
        "A B.TXT: label file without image A B",
    ),
    "score": (
        lambda d: yolo(d, lambda *box: [[*box, 0.9]]),
        "the sixth looks like a score, as predictions have it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_an_error(case, tmp_path, leuko):
    make, words = REFUSED[case]
    leuko("data", "convert", make(tmp_path / "set"), tmp_path / "out", "--to", "coco").refused(words)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- other names


def test_classes_are_renamed_and_merged(tmp_path):
    cvat_coco_subsets(tmp_path)
    keys = "train: annotations/instances_Train.json\nval: annotations/instances_Validation.json\n"
    write(tmp_path / "data.yaml", keys + 'map: {NG: granulocyte, EG: " granulocyte", BG: granulocyte}\n')
    datasets = source.load_all(tmp_path)
    assert {d.types == ["granulocyte", "L", "M"] for d in datasets.values()} == {True}
    assert datasets["train"].counts().tolist() == [1, 1, 0] and datasets["val"].counts().tolist() == [1, 0, 0]
    write(tmp_path / "data.yaml", keys + "map: WBC\n")
    assert source.load(tmp_path, "train").types == ["WBC"]
    assert source.load(tmp_path, "train").counts().tolist() == [2]


def test_types_of_images_are_laid_over_boxes_of_one_class(tmp_path):
    for name in CELLS:
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
        text = xml(name, f"{name}.jpg").replace(">L<", ">RBC<")
        for kind in ("NG", "EG", "M", "BG"):
            text = text.replace(f">{kind}<", ">WBC<")
        write(tmp_path / "Annotations" / f"{name}.xml", text)
    write(tmp_path / "types.csv", "image,type\na,EG\nc,BG\n")
    write(tmp_path / "data.yaml", "train: .\nignore: [RBC]\ntypes: types.csv\n")
    dataset = source.load(tmp_path, "train")
    assert dataset.types == ["BG", "EG"] and dataset.ignored == {"RBC": 1}
    assert {s.image.stem: [dataset.types[k] for k in s.labels] for s in dataset.samples} == {
        "a": ["EG"],
        "c": ["BG", "BG"],
    }
    assert [(w.file.stem, w.action) for w in dataset.warnings] == [("b", "image left out (no type)")]


def test_a_detector_of_five_types_is_measured_on_labels_of_one(tmp_path, data, leuko):
    weights = untrained(tmp_path / "five.safetensors", TYPES)
    write(tmp_path / "data.yaml", f"path: {data}\ntest: test.json\nmap: WBC\n")
    words = ["val", "--weights", weights, "--data", tmp_path / "data.yaml", "--split", "test", "--batch", "1"]
    assert leuko(*words, "--save", tmp_path / "val", "--name", "v").code == 0
    assert [row["type"] for row in table(tmp_path / "val" / "v" / "per_class.csv")] == ["WBC"]
    member = load_members([weights])[0]
    member.new_name = lambda name: "WBC"
    boxes = [[0, 0, 20, 20], [1, 1, 20, 20], [40, 40, 60, 60], [0, 0, 20, 20]]
    [one] = member.relabel([Detections(boxes, [0.5, 0.9, 0.3, 0.2], [0, 1, 2, 3], tuple(TYPES))], ["WBC"])
    assert one.scores.tolist() == pytest.approx([0.9, 0.3]) and one.labels.tolist() == [0, 0]
