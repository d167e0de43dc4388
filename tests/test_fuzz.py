"""Readers fed with mutated files, thousands of them: one line of error or every object accounted for, nothing else."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from conftest import TYPES
from PIL import Image

from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco, voc, yolo
from leuko.data.images import image_header, read_image
from leuko.errors import LeukoError
from leuko.synth.render import render

CASES = 1200
WORDS = [b"", b"-", b"1e999", b"nan", b"-1", b"0", b"99999999999", b"null", b"true", b'"', b"<", b">", b"&", b"[", b"{"]
WORDS += [b"\xff\xfe", b"\x00", b"\n", b"..", b"/", b"\xe4\xb8\xad", b" ", b"object", b"id", b"bbox", b"&lol;", b"0.5"]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bytes flipped, cut out, doubled, or replaced by a word that means trouble; or a cut end."""
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(data) + 1))
        length = int(rng.integers(1, 30))
        kind = int(rng.integers(0, 6))
        if kind == 0:
            data = data[:at] + bytes(rng.integers(0, 256, length, dtype=np.uint8)) + data[at + length :]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + data[at : at + 4 * length] + data[at:]
        elif kind == 3:
            data = data[:at] + WORDS[int(rng.integers(len(WORDS)))] + data[at + length :]
        elif kind == 4:  # a number becomes another
            numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data))
            if numbers:
                hit = numbers[int(rng.integers(len(numbers)))]
                data = data[: hit.start()] + WORDS[int(rng.integers(len(WORDS)))] + data[hit.end() :]
        elif rng.random() < 0.2:
            data = data[:at]
    return data


def yolo_objects(folder: Path) -> int:
    lines = ((folder / "labels/train/0.txt").read_bytes().decode("utf-8-sig")).splitlines()
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def voc_objects(folder: Path) -> int:
    return len(ElementTree.parse(folder / "Annotations/0.xml").getroot().findall("object"))


def coco_objects(folder: Path) -> int:
    return len(json.loads((folder / "train.json").read_bytes().decode("utf-8-sig"))["annotations"])


FORMATS = {
    "yolo": (yolo.write, "labels/train/0.txt", yolo_objects),
    "yaml": (yolo.write, "data.yaml", None),
    "side": (yolo.write, "leuko.json", None),
    "voc": (voc.write, "Annotations/0.xml", voc_objects),
    "list": (voc.write, "ImageSets/Main/train.txt", None),
    "coco": (coco.write, "train.json", coco_objects),
}


@pytest.mark.parametrize("name", FORMATS)
def test_label_files(name, tmp_path):
    write, victim, objects = FORMATS[name]
    picture = tmp_path / "0.jpg"
    cv2.imwrite(str(picture), render(np.random.default_rng(0), 64, 64, ["NG"]).image)
    boxes = [[3, 4, 20, 30], [25, 5, 60, 40], [10, 42, 30, 63]]
    about = {
        "group": "a",
        "factors": ("dust",),
        "cell_factors": [("overlap",), (), ()],
        "attributes": [{"t": 1}, {}, {}],
    }
    folder = tmp_path / "data"
    write(Dataset(TYPES, [Sample(picture, 64, 64, boxes, [0, 3, 4], 7, **about)]), folder, "train")
    whole = (folder / victim).read_bytes()
    read = refused = 0
    for case in range(CASES):
        data = mutated(whole, np.random.default_rng([case, len(name)]))
        (folder / victim).write_bytes(data)
        start = time.perf_counter()
        try:
            dataset = source.load(folder, source.splits(folder)[0])
        except LeukoError as error:
            assert "\n" not in str(error), data
            refused += 1
            continue
        finally:
            assert time.perf_counter() - start < 5, data
        read += 1
        if objects:  # what a label file holds is a cell, or is listed as dropped
            kept = sum(len(s.boxes) for s in dataset.samples)
            dropped = sum(warning.action == "dropped" for warning in dataset.warnings)
            assert kept + dropped == objects(folder), data
        for sample in dataset.samples:
            assert np.isfinite(sample.boxes).all() and (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(), data
            assert (sample.boxes >= 0).all() and (sample.boxes <= 64).all(), data
            assert set(sample.labels.tolist()) <= set(range(len(dataset.types))), data
    assert read > CASES / 50 and refused > CASES / 10, (read, refused)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about broken EXIF data
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_images(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), render(np.random.default_rng(0), 64, 48, ["M"]).image)
    whole = path.read_bytes()
    for case in range(CASES // 3):
        path.write_bytes(mutated(whole, np.random.default_rng(case)))
        for look in (read_image, lambda p: read_image(p, 16), image_header):
            try:
                found = look(path)
            except LeukoError as error:
                assert "\n" not in str(error) and path.name in str(error)
                continue
            if isinstance(found, np.ndarray):
                assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


# ---------------------------------------------------------------------- files as people have them


def test_any_kind_of_image_in_any_kind_of_place(tmp_path, leuko):
    """CMYK, 16 bit, grey, palette and upper-case endings, in folders with spaces and Chinese characters, with a link
    that leads back to itself; and a name of 200 letters."""
    root = tmp_path / "slides of 2026, 涂片"
    home = root / "JPEGImages"
    home.mkdir(parents=True)
    rgb = Image.fromarray(render(np.random.default_rng(0), 80, 64, ["L"]).image)
    rgb.convert("CMYK").save(home / "cmyk.JPG")
    rgb.convert("L").save(home / "grey.jpeg")
    rgb.convert("P").save(home / "palette.PNG")
    rgb.convert("RGBA").save(home / f"{'n' * 200}.png")
    Image.fromarray(np.arange(80 * 64, dtype=np.uint16).reshape(64, 80) * 12).save(home / "细胞 16.tif")
    (root / "loop").symlink_to(root)
    (root / "Annotations").mkdir()
    for image in home.iterdir():
        box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
        text = f"<annotation><filename>{image.name}</filename><object><name>L</name>{box}</object></annotation>"
        (root / "Annotations" / f"{image.stem}.xml").write_text(text)
    assert len(source.load(root, "all")) == 5
    for form in ("coco", "yolo", "voc"):
        result = leuko("data", "convert", root, tmp_path / form, "--to", form)
        assert result.code == 0, result.err
        dataset = source.load(tmp_path / form, "all")
        assert len(dataset) == 5 and all(read_image(s.image).shape == (64, 80, 3) for s in dataset.samples)
    assert leuko("data", "check", root, "--save", tmp_path / "runs").code == 0
    assert leuko("data", "resize", root, tmp_path / "mini", "--size", 64).code == 0


def test_images_of_one_name_in_two_folders(tmp_path):
    for i, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "1.png"), render(np.random.default_rng(i), 64, 64, ["NG"]).image)
    samples = [
        Sample(tmp_path / f / "1.png", 64, 64, [[1 + i, 2, 30, 40]], [i], i + 1) for i, f in enumerate(("one", "two"))
    ]
    for write in (coco.write, voc.write, yolo.write):
        folder = tmp_path / write.__module__
        write(Dataset(TYPES, samples), folder, "train")
        back = source.load(folder, "train").samples
        assert {(s.labels[0], read_image(s.image).sum()) for s in back} == {
            (s.labels[0], read_image(s.image).sum()) for s in samples
        }
