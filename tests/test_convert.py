"""`leuko data convert`: nothing is lost, whatever things are called, and the source is never touched."""

from __future__ import annotations

import os

import pytest
from conftest import HEIGHT, TYPES, WIDTH
from PIL import Image
from test_data import everything

from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco, yolo
from leuko.data.images import list_images
from leuko.data.source import load, splits
from leuko.data.tools.rewrite import convert


def test_convert_keeps_splits_types_and_the_source(tmp_path, plain, leuko):
    """The official VOC convention too, through the command; the source is never touched."""
    src = tmp_path / "src"
    for split, samples in (("train", plain.samples[:2]), ("extra", plain.samples[2:])):
        coco.write(Dataset(TYPES, samples, [7, 3, 4, 10, 1]), src, split)
    before = {p: p.read_bytes() for p in src.rglob("*") if p.is_file()}
    here = src
    for step, words in enumerate((["voc", "--voc-origin", "1"], ["yolo"], ["coco"])):
        dst = tmp_path / str(step)
        assert leuko("data", "convert", here, dst, "--to", *words).code == 0
        here = dst
    assert "<xmin>11</xmin>" in (tmp_path / "0/Annotations/1.xml").read_text()  # 10 counted from 0
    assert splits(here) == ["train", "extra"]
    for split in splits(src):
        assert everything(load(here, split)) == everything(load(src, split))
    assert {p: p.read_bytes() for p in src.rglob("*") if p.is_file()} == before
    image = next((tmp_path / "2/images").iterdir())
    assert any(image.samefile(p) for p in before)  # linked

    convert_to = ["data", "convert", src]
    leuko(*convert_to, tmp_path / "2", "--to", "voc").refused("not empty", "--force")
    assert leuko(*convert_to, tmp_path / "2", "--to", "voc", "--force").code == 0 and splits(tmp_path / "2") == splits(
        src
    )
    leuko(*convert_to, src, "--to", "voc", "--force").refused("is the source")
    leuko(*convert_to, src / "in", "--to", "voc").refused("lies in it")
    leuko(*convert_to, tmp_path, "--to", "voc", "--force").refused("holds it")
    (tmp_path / "src.yaml").write_text("path: src\ntrain: train.json\n")
    leuko("data", "convert", tmp_path / "src.yaml", src, "--to", "voc", "--force").refused("is the source")
    leuko(*convert_to, tmp_path / "new", "--to", "yolov").refused('did you mean "yolo"')
    leuko(*convert_to, tmp_path / "new", "--to", "yolo", "--voc-origin", "1").refused("about VOC")
    (tmp_path / "2/notes.txt").touch()
    leuko(*convert_to, tmp_path / "2", "--to", "voc", "--force").refused("notes.txt", "no part of a data set")
    assert not (tmp_path / "new").exists() and {p: p.read_bytes() for p in src.rglob("*") if p.is_file()} == before


def test_labels_of_one_image_in_two_splits_both_survive(tmp_path, pictures):
    """VOC has one file per image: two readers' labels need two images; the same labels do not."""
    first = [Sample(pictures[0], WIDTH, HEIGHT, [[1, 1, 30, 30]], [0], 1)]
    other = [Sample(pictures[0], WIDTH, HEIGHT, [[2, 2, 40, 40], [5, 5, 60, 60]], [3, 1], 1)]
    both = [Sample(pictures[2], WIDTH, HEIGHT, [], [], 1), Sample(pictures[0], WIDTH, HEIGHT, [[1, 1, 30, 30]], [0], 2)]
    for split, samples in (("train", first), ("expert2", other), ("both", both)):
        coco.write(Dataset(TYPES, samples), tmp_path / "src", split)
    convert(tmp_path / "src", tmp_path / "voc", "voc")
    for split in ("train", "expert2", "both"):
        assert everything(load(tmp_path / "voc", split)) == everything(load(tmp_path / "src", split))
    assert len(list_images(tmp_path / "voc/JPEGImages")) == 3


def test_ids_of_images_in_two_splits_are_kept(tmp_path, pictures):
    """Those that the order gives and those that it does not, the same in both splits or not."""
    numbered = [Sample(picture, WIDTH, HEIGHT, [], [], i) for i, picture in enumerate(pictures[:2], 1)]
    for ids in ([1, 2, 50], [1, 7, 50]):
        own = [Sample(picture, WIDTH, HEIGHT, [], [], i) for i, picture in zip(ids, pictures, strict=True)]
        for split, samples in (("train", own), ("val", numbered)):
            coco.write(Dataset(TYPES, samples), tmp_path / f"{ids[1]}", split)
        convert(tmp_path / f"{ids[1]}", tmp_path / f"voc{ids[1]}", "voc")
        for split in ("train", "val"):
            assert everything(load(tmp_path / f"voc{ids[1]}", split)) == everything(load(tmp_path / f"{ids[1]}", split))


def test_voc_keeps_images_of_any_name(tmp_path, leuko):
    names = ["#12.jpg", "slide1.tif.jpg", " blank .jpg", "two  words.png", "é字.png"]
    samples = []
    for number, name in enumerate(names, 1):
        Image.new("RGB", (WIDTH, HEIGHT), (20 * number, 90, 120)).save(tmp_path / name)
        samples.append(Sample(tmp_path / name, WIDTH, HEIGHT, [[1, 1, 30, 30]], [number % 5], number))
    coco.write(Dataset(TYPES, samples), tmp_path / "src", "train")
    convert(tmp_path / "src", tmp_path / "voc", "voc")
    assert everything(load(tmp_path / "voc", "train")) == everything(load(tmp_path / "src", "train"))
    (tmp_path / "line\nbreak.jpg").write_bytes((tmp_path / names[0]).read_bytes())
    yolo.write(
        Dataset(TYPES, [Sample(tmp_path / "line\nbreak.jpg", WIDTH, HEIGHT, [], [], 1)]), tmp_path / "odd", "train"
    )
    leuko("data", "convert", tmp_path / "odd", tmp_path / "bad", "--to", "voc").refused("breaks a line")
    byte = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / byte).write_bytes((tmp_path / names[0]).read_bytes())
    (tmp_path / "bytes.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "latin/images").mkdir(parents=True)
    (tmp_path / "latin/labels").mkdir()
    (tmp_path / "latin/classes.txt").write_text("NG\n")
    (tmp_path / "latin/images" / byte).write_bytes((tmp_path / names[0]).read_bytes())
    (tmp_path / "latin/labels" / os.fsdecode(b"caf\xe9.txt")).write_text("0 0.5 0.5 0.2 0.2\n")
    for to in ("coco", "voc"):
        leuko("data", "convert", tmp_path / "latin", tmp_path / "bad", "--to", to).refused("not UTF-8; rename the file")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("name", "to"), [("../../escaped", "coco"), ("../up", "voc"), (".", "yolo"), ("leuko", "coco")]
)
def test_split_names_stay_in_the_folder(name, to, tmp_path, plain, leuko):
    coco.write(plain, tmp_path / "src", "train")
    file = tmp_path / "set.yaml"
    file.write_text(f"path: src\ntrain: train.json\nsplits:\n  {name!r}: train.json\n")
    leuko("data", "convert", file, tmp_path / "a/b/new", "--to", to).refused(f'split "{name}"')
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.yaml", "src"]
