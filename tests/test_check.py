"""``leuko data check``: every planted fault is found, and a healthy data set passes."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import yolo
from leuko.data.tools import duplicates, findings
from leuko.data.tools.check import check
from leuko.data.tools.draw import synth
from leuko.report import pages, pictures


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A COCO data set of 24 training and 6 test images, 128x128."""
    folder = tmp_path_factory.mktemp("check") / "data"
    synth(folder, images=30, size=128, seed=11, val=0, test=0.2, workers=1)
    return folder


def kinds(src: Path) -> set[tuple[str, str]]:
    return {(f.level, f.kind) for f in check(src)[1]}


def test_a_healthy_data_set_passes(healthy, leuko, tmp_path):
    assert not {kind for level, kind in kinds(healthy) if level != "note"}
    result = leuko("data", "check", healthy, "--save", tmp_path)
    assert result.code == 0 and "0 to be decided" in result.out, result.err


def edit(folder: Path, split: str, change) -> None:
    content = json.loads((folder / f"{split}.json").read_text())
    change(content)
    (folder / f"{split}.json").write_text(json.dumps(content))


def _truncate(folder: Path) -> None:
    image = folder / "images/000003.jpg"
    data = image.read_bytes()
    image.unlink()  # it may be linked
    image.write_bytes(data[: len(data) // 2])


def _exif(folder: Path, orientation: int = 6) -> None:
    image = Image.open(folder / "images/000004.jpg")
    exif = image.getexif()
    exif[274] = orientation
    image.save(folder / "images/000004.jpg", exif=exif)


def _copy_across(folder: Path) -> None:
    shutil.copy(folder / "images/000001.jpg", folder / "images/000027.jpg")


def _near_across(folder: Path) -> None:
    """A training image in the test split: mirrored, smaller, brighter and compressed anew."""
    image = cv2.imread(str(folder / "images/000001.jpg"))[:, ::-1]
    image = cv2.convertScaleAbs(cv2.resize(image, (128, 128)), alpha=0.9, beta=20)
    cv2.imwrite(str(folder / "images/000027.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 40])


def _outside(content: dict) -> None:
    content["annotations"][0]["bbox"] = [500, 500, 20, 20]


def _stick_out(content: dict) -> None:
    content["annotations"][0]["bbox"] = [100, 100, 60, 60]


def _point(content: dict) -> None:
    content["annotations"][0]["bbox"][2] = 0.5


def _giant(content: dict) -> None:
    content["annotations"][0]["bbox"] = [0, 0, 128, 128]


def _other_type(content: dict) -> None:
    first = content["annotations"][0]
    other = {**first, "id": 9999, "category_id": first["category_id"] % 5 + 1}
    other["bbox"] = [first["bbox"][0] + 0.5, *first["bbox"][1:]]
    content["annotations"].append(other)


def _size(content: dict) -> None:
    content["images"][0]["width"] = 129


def _group(content: dict) -> None:
    content["images"][0]["group"] = "smear 7"


def _unlabelled(content: dict) -> None:
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != content["images"][0]["id"]]


def _unnamed(content: dict) -> None:
    content["images"] = content["images"][1:]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1]


def _new_class(content: dict) -> None:
    content["categories"].append({"id": 6, "name": "smudge"})


@pytest.mark.parametrize(
    ("fault", "level", "kind"),
    [
        (_truncate, "decide", "unreadable image"),
        (_exif, "note", "the whole split"),
        (partial(_exif, orientation=3), "note", "the whole split"),
        (_copy_across, "decide", "duplicate across splits"),
        (_near_across, "decide", "near duplicate across splits"),
    ],
)
def test_a_fault_in_an_image_is_found(healthy, tmp_path, fault, level, kind):
    folder = tmp_path / "data"
    shutil.copytree(healthy, folder)
    fault(folder)
    found = [f for f in check(folder)[1] if (f.level, f.kind) == (level, kind)]
    assert len(found) == 1 and found[0].images[0].name in found[0].text
    assert not {(lv, k) for lv, k in kinds(folder) if lv == "decide"} - {(level, kind)}


@pytest.mark.parametrize(
    ("fault", "level", "kind"),
    [
        (_outside, "decide", "error: outside"),
        (_stick_out, "fixed", "clipped"),
        (_point, "fixed", "dropped"),
        (_size, "fixed", "the image's own is taken"),
        (_giant, "note", "unusual size"),
        (_other_type, "decide", "nearly the same box, two types"),
        (_group, "decide", "group in two splits"),
        (_unlabelled, "note", "image without cells"),
        (_unnamed, "note", "image without labels"),
        (_new_class, "note", "unused class"),
    ],
)
def test_a_fault_in_the_labels_is_found(healthy, tmp_path, fault, level, kind):
    folder = tmp_path / "data"
    shutil.copytree(healthy, folder)
    before = kinds(folder)
    edit(folder, "train", fault)
    if fault is _group:
        edit(folder, "test", fault)
    assert (level, kind) in kinds(folder) - before
    assert len([f for f in check(folder)[1] if f.level == "decide"]) == (level == "decide")


def test_all_errors_are_reported_at_once_and_written(healthy, tmp_path, leuko):
    folder = tmp_path / "data"
    shutil.copytree(healthy, folder)
    _truncate(folder)
    _copy_across(folder)
    edit(folder, "train", _outside)
    result = leuko("data", "check", folder, "--save", tmp_path / "runs")
    assert result.code == 1 and "3 to be decided" in result.out, result.out + result.err
    report = json.loads((tmp_path / "runs/data/report.json").read_text())
    assert {f["kind"] for f in report["findings"] if f["level"] == "decide"} == {
        "error: outside",
        "unreadable image",
        "duplicate across splits",
    }
    page = (tmp_path / "runs/data/report.html").read_text()
    assert "000003.jpg" in page and "data:image/jpeg;base64," in page and "http" not in page
    assert leuko("data", "check", folder, "--save", tmp_path / "runs", "--labels-only").code == 1
    leuko("data", "check", tmp_path / "none").refused("none", "no such")


def test_splits_of_other_classes_are_examined(healthy, tmp_path, leuko):
    folder = tmp_path / "data"
    shutil.copytree(healthy, folder)
    edit(folder, "test", _new_class)
    assert leuko("data", "check", folder, "--save", tmp_path / "runs").code == 0
    assert (tmp_path / "runs/data/report.html").is_file()


def test_what_harms_most_comes_first(tmp_path, leuko):
    """60 images with two RBC each, of which 20 have one of them twice, and with a WBC, except for one image whose name
    holds what a terminal would obey. Findings of one kind and class are one sentence with a number of images."""
    odd = "a\x1b[31m\n\x9b2J.png"
    names = [odd, *(f"{i:02d} {'x' * 60}.png" for i in range(1, 60))]
    boxes = {"RBC": [4, 4, 16, 16], "RBC again": [4, 5, 16, 16], "other RBC": [30, 30, 17, 17], "WBC": [26, 2, 30, 24]}
    images, annotations = [], []
    for i, name in enumerate(names):
        field = np.random.default_rng(i).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(field).resize((64, 64)).save(tmp_path / name)
        images.append({"id": i, "file_name": name, "width": 64, "height": 64})
        for key, box in boxes.items():
            if (key != "WBC" or i) and (key != "RBC again" or i >= 40):
                label = 1 if "RBC" in key else 2
                annotations.append({"id": len(annotations), "image_id": i, "category_id": label, "bbox": box})
    categories = [{"id": 1, "name": "RBC"}, {"id": 2, "name": "WBC"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(content))
    result = leuko("data", "check", tmp_path, "--save", tmp_path / "runs", "--name", "a")
    text = " ".join(result.out.split())
    first = "no WBC is labelled on this image although 98 % have one; leuko would learn any WBC there as background: a"
    assert result.code == 1 and text.startswith(f"decide {first} [31m 2J.png note"), text
    assert "20 pairs of RBC boxes nearly the same, on 20 images" in text and "and 17 more" in text
    printed = result.out[: result.out.index(f"{tmp_path}: 21 findings on 21 images, 1 to be decided")]
    assert max(map(len, printed.splitlines())) <= 80 and not set("\x1b\x9b") & set(result.out)
    report = json.loads((tmp_path / "runs/a/report.json").read_text())
    heads = [(g["level"], g["kind"], g["type"], g["findings"], g["images"]) for g in report["groups"]]
    assert heads == [
        ("decide", "class missing on an image", "WBC", 1, 1),
        ("note", "nearly the same box", "RBC", 20, 20),
    ]
    assert report["findings"][0]["cells"] == [] and len(report["findings"][1]["cells"]) == 2
    page = (tmp_path / "runs/a/report.html").read_text()
    assert page.count("<img") == 1 + pages.MAX_SHOWN and f"and {20 - pages.MAX_SHOWN} more images" in page


def test_the_boxes_of_a_finding_stand_out(tmp_path):
    """In a picture of half the size, a cell in a thin line, a cell of the finding in a thick one on white, and a box of
    one pixel, which the reader dropped."""
    Image.new("RGB", (200, 160), (90, 90, 90)).save(tmp_path / "a.png")
    sample = Sample(tmp_path / "a.png", 200, 160, [[20, 20, 60, 60], [100, 40, 160, 120]], [0, 1], 1)
    cells = [("L", (100, 40, 160, 120)), ("NG", (30, 140, 31, 140))]
    picture = pictures.labelled(sample, ["NG", "L"], cells, 100).astype(int)
    is_grey = (abs(picture - 90) < 5).all(2)
    assert is_grey[20, [9, 11, 29, 31]].all() and not is_grey[20, [10, 30]].any()
    assert not is_grey[40, 48:52].any() and is_grey[40, 54:76].all() and (picture[40, 45:50] == 255).all(1).any()
    assert not is_grey[66:74, 11:19].all()


def test_paths_are_shown_as_they_are_in_the_data_set(monkeypatch):
    monkeypatch.chdir("/")
    for src in ("/a/set", "/a/set/", "a/set"):
        assert findings.shortened('/a/set/b.xml: ("/a/set/c.png") a/set', src) == 'b.xml: ("c.png") a/set'
    assert findings.shortened("../b.xml", ".") == "../b.xml"
    assert findings.shortened("/b/a/set/c.png", "a/set") == "/b/a/set/c.png"


def test_labels_without_an_image_are_found(tmp_path, pictures):
    samples = [Sample(p, 97, 61, [[5, 5, 30 + i, 40]], [i % 2], i + 1) for i, p in enumerate(pictures)]
    yolo.write(Dataset(["NG", "BG"], samples), tmp_path, "train")
    (tmp_path / "labels/train/lost.txt").write_text("0 .5 .5 .2 .2\n")
    assert ("decide", "error: orphan") in kinds(tmp_path)


def test_near_duplicates_against_all_pairs():
    """Every turned, mirrored or re-lit copy is found, and nothing else; many copies of one give a pair each."""
    rng = np.random.default_rng(0)
    fields = [cv2.resize(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8), (200, 160)) for _ in range(40)]
    copies = []
    for i, field in enumerate(fields[:16]):
        copy = np.rot90(field, i % 4)
        copies.append(np.clip((copy[:, ::-1] if i > 7 else copy) * 0.8 + 25, 0, 255).astype(np.uint8))
    flat = [np.full((50, 50, 3), 200, dtype=np.uint8)] * 2
    looks = [duplicates.look(image) for image in [*fields, *copies, *flat]]
    assert duplicates.near(looks) == [(i, 40 + i) for i in range(16)]
    assert duplicates.near([looks[0]] * 50) == [(0, i) for i in range(1, 50)]
