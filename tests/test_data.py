"""Data sets: what is read is what was written, in every format and layout, and as the real sets have it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import HEIGHT, TYPES, WIDTH, dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import FORMATS, coco, voc, yolo
from leuko.data.images import list_images, read_image
from leuko.data.source import load, split_name, splits
from leuko.data.tools.rewrite import convert
from leuko.errors import LeukoError

REAL = Path(__file__).parents[2] / "shared" / "data"
WRITERS = {name: module.write for name, module in FORMATS.items()}


def assert_same(a: Dataset, b: Dataset, order: bool = True) -> None:
    """Types, pixels of the images, boxes bit for bit and labels are the same."""
    assert a.types == b.types and len(a) == len(b)

    def cells(sample: Sample) -> list:
        return [read_image(sample.image).tobytes(), sample.width, sample.height, sample.boxes.tobytes(), *sample.labels]

    pairs = [[cells(s) for s in d.samples] for d in (a, b)]
    assert pairs[0] == pairs[1] if order else sorted(pairs[0]) == sorted(pairs[1])


# ---------------------------------------------------------------------------------------------------------- round trips


@st.composite
def fields(draw) -> tuple[list[list], list[list[int]]]:
    """Boxes and labels of three images: any float32 corners inside the image, 0 or at least a thousandth pixel."""

    def interval(size: int) -> tuple[float, float]:
        def corner(low: float, high: float) -> float:
            value = draw(st.floats(low, high, width=32, allow_subnormal=False))
            return value if value >= 1e-3 else 0.0

        low = corner(0, size - 2)
        return low, corner(float(np.nextafter(np.float32(low + 1), np.float32(size))), size)

    boxes, labels = [], []
    for _ in range(3):
        cells = {}
        for _ in range(draw(st.integers(0, 4))):
            (x0, x1), (y0, y1) = interval(WIDTH), interval(HEIGHT)
            if np.float32(x1) - np.float32(x0) > 1 and np.float32(y1) - np.float32(y0) > 1:
                cells[x0, y0, x1, y1] = draw(st.integers(0, 4))
        boxes.append([list(box) for box in cells])
        labels.append(list(cells.values()))
    return boxes, labels


word = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=8).map(str.strip).filter(bool)
factor = st.lists(word, max_size=2).map(tuple)
key = st.one_of(st.sampled_from(["truncated", "difficult", "attribute", "crowd", "reserved", *coco._OWN]), word)
scalar = st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), word)
value = st.one_of(scalar, st.none(), st.text(max_size=5), st.lists(scalar, max_size=2), st.just("7"), st.just(" a\n"))
attributes = st.dictionaries(key, value, max_size=3)


@st.composite
def full(draw) -> tuple[list[Sample], list[int]]:
    """Samples without pictures, with all that a sample can hold, and category ids in the order of the types."""
    boxes, labels = draw(fields())
    ids = draw(st.lists(st.integers(1, 10**6), min_size=3, max_size=3, unique=True))
    samples = []
    for b, kinds, number in zip(boxes, labels, ids, strict=True):
        of_cells = {
            "crowd": np.array([draw(st.integers(0, 4)) == 0 for _ in b], dtype=bool),
            "cell_factors": [draw(factor) for _ in b],
            "attributes": [draw(attributes) for _ in b],
        }
        group = draw(st.one_of(st.just(""), word))
        samples.append(Sample(Path(), WIDTH, HEIGHT, b, kinds, number, **of_cells, factors=draw(factor), group=group))
    return samples, draw(st.lists(st.integers(0, 90), min_size=5, max_size=5, unique=True).map(sorted))


def everything(data: Dataset) -> tuple:
    """A data set as a value: what it holds, whatever the order of images and the place of crowds among the cells."""
    samples = []
    for s in data.samples:
        cells = zip(s.boxes.tolist(), s.labels, s.crowd, s.cell_factors, s.attributes, strict=True)
        cells = sorted(repr((b, int(n), bool(c), f, sorted(a.items()))) for b, n, c, f, a in cells)
        samples.append((read_image(s.image).tobytes(), s.width, s.height, s.id, s.group, s.factors, cells))
    return data.types, data.category_ids, data.warnings, data.ignored, sorted(samples)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(full(), st.permutations(["voc", "coco", "yolo"]))
def test_round_trip_through_all_formats(tmp_path_factory, pictures, content, order):
    """Whatever a data set holds comes back, whichever way it went round."""
    samples, category_ids = content
    for sample, picture in zip(samples, pictures, strict=True):
        sample.image = picture
    folder = tmp_path_factory.mktemp("trip")
    first = Dataset(TYPES, samples, category_ids)
    coco.write(first, folder / "start", "train")
    here = folder / "start"
    for step, name in enumerate((*order, order[0])):
        convert(here, folder / f"{step}{name}", name)
        here = folder / f"{step}{name}"
        assert everything(load(here, "train")) == everything(first)


def test_sidecar_that_does_not_fit_is_reported(tmp_path, plain):
    plain.samples[0].cell_factors = [("overlap",), ()]
    yolo.write(plain, tmp_path, "train")
    label = next(p for p in (tmp_path / "labels/train").iterdir() if len(p.read_text().splitlines()) == 2)
    label.write_text(label.read_text().splitlines()[0] + "\n")
    (warning,) = load(tmp_path, "train").warnings
    assert "describes 2 cells, the label file 1" in str(warning)
    for broken in (
        "{",
        "[]",
        '{"images": 3}',
        '{"images": {"images/train/1.jpg": {"cells": 3}}}',
        '{"images": {"images/train/1.jpg": {"id": [1]}}}',
    ):
        (tmp_path / "leuko.json").write_text(broken)
        with pytest.raises(LeukoError, match=r"leuko\.json"):
            load(tmp_path, "train")


@pytest.mark.parametrize("name", WRITERS)
def test_several_splits_in_one_folder(tmp_path, plain, name):
    """Images of one name from two folders both survive, a split written twice changes nothing, ``extra`` works too."""
    parts = {"train": plain.samples[:1], "val": plain.samples[1:2], "extra": plain.samples[1:]}
    for _ in range(2):
        for split, samples in parts.items():
            WRITERS[name](Dataset(TYPES, samples), tmp_path, split)
    assert splits(tmp_path) == ["train", "val", "extra"]
    for split, samples in parts.items():
        assert_same(Dataset(TYPES, samples), load(tmp_path, split), order=False)
    assert len(list_images(tmp_path, recursive=True)) == (4 if name == "yolo" else 3)
    if name != "coco":  # whose files each have their own categories
        with pytest.raises(LeukoError, match="write into another folder"):
            WRITERS[name](Dataset(["NG", "other"], []), tmp_path, "train")


@pytest.mark.parametrize("name", WRITERS)
def test_equal_images_of_one_name_keep_their_own_labels(tmp_path, pictures, name):
    twin = tmp_path / "twin" / pictures[0].name
    twin.parent.mkdir()
    twin.write_bytes(pictures[0].read_bytes())
    both = dataset([pictures[0], twin], [[[1, 1, 9, 9]], [[2, 2, 8, 8]]], [[0], [1]])
    WRITERS[name](both, tmp_path / name, "train")
    again = load(tmp_path / name, "train", types=TYPES)
    assert sorted(s.boxes[0, 0] for s in again.samples) == [1, 2]
    assert twin.read_bytes() == again.samples[1].image.read_bytes()


def test_voc_of_the_official_convention(tmp_path, plain):
    """The first and the last pixel inside the box, counted from 1."""
    voc.write(plain, tmp_path, "train")
    for file in (tmp_path / "Annotations").iterdir():
        one_more = re.sub("<([xy]min)>([0-9.]+)<", lambda hit: f"<{hit[1]}>{float(hit[2]) + 1}<", file.read_text())
        file.write_text(one_more)
    (tmp_path / "data.yaml").write_text("train: ImageSets/Main/train.txt\nvoc_origin: 1\n")
    assert_same(plain, load(tmp_path, "train"))


# ----------------------------------------------------------------------------------------------- where the data may lie


def test_no_image_is_left_out_in_silence(tmp_path, plain):
    """Folders within a split's, links to folders, images beside the splits' folders, splits within a split's folder."""
    yolo.write(plain, tmp_path / "nested", "train")
    yolo.write(plain, tmp_path / "nested", "val")
    for kind in ("images", "labels"):
        (tmp_path / "nested" / kind / "val").rename(tmp_path / kind)
        (tmp_path / "nested" / kind / "val").mkdir()
        (tmp_path / "nested" / kind / "val/slide1").symlink_to(tmp_path / kind)
        (tmp_path / kind / "loop").symlink_to(tmp_path / "nested" / kind / "val")
    assert splits(tmp_path / "nested") == ["train", "val"]
    for split in ("train", "val"):
        assert_same(plain, load(tmp_path / "nested", split), order=False)

    yolo.write(plain, tmp_path / "beside", "rejected")
    shutil.copy(plain.samples[0].image, tmp_path / "beside/images/more.jpg")
    (tmp_path / "beside/data.yaml").unlink()
    with pytest.raises(LeukoError, match=r"images: more\.jpg lies beside the folders of images rejected; write"):
        splits(tmp_path / "beside")

    coco.write(plain, tmp_path / "twice/train", "train")
    coco.write(plain, tmp_path / "twice/train", "backup")
    coco.write(plain, tmp_path / "twice/valid", "valid")
    with pytest.raises(LeukoError, match=r"train: the folder holds several splits \(backup, train\); name one"):
        splits(tmp_path / "twice")
    (tmp_path / "slides.yaml").write_text("train: nested/images/val\nnames: [NG, BG, EG, L, M]\n")
    assert len(load(tmp_path / "slides.yaml", "train")) == len(plain.samples)


def test_folders_as_people_have_them(tmp_path, plain):
    """A flat LabelImg folder, Roboflow's train/valid, and YAML splits: a folder, a list, several COCO files."""
    for split in ("train", "val"):
        coco.write(plain, tmp_path / "coco", split)
        yolo.write(plain, tmp_path / "yolo", split)
    voc.write(plain, tmp_path / "voc", "all")
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in [*(tmp_path / "voc" / "Annotations").iterdir(), *(tmp_path / "voc" / "JPEGImages").iterdir()]:
        file.rename(flat / file.name)
    assert splits(flat) == ["all"] and load(flat, "all").types == ["NG", "EG", "M"]

    for split, folder in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            target = tmp_path / "sub" / folder / kind
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "yolo" / kind / split).rename(target)
    (tmp_path / "sub" / "classes.txt").write_text("\n".join(TYPES))
    assert splits(tmp_path / "sub") == ["train", "val"]
    assert_same(plain, load(tmp_path / "sub", "validation"), order=False)
    assert [split_name(tmp_path / "sub", name) for name in ("train", "val", "valid")] == ["train", "val", "val"]
    with pytest.raises(LeukoError, match='no split "test"; it has: train, val'):
        split_name(tmp_path / "sub", "test")

    (tmp_path / "list.txt").write_text("./sub/train/images/1.jpg\nsub/valid/images/1.jpg\n")
    (tmp_path / "more.yaml").write_text(
        "path: .\ntrain: [sub/train, ../sub/valid/images]\nval: list.txt\n"
        "names: {0: NG, 1: BG, 2: EG, 3: L, 4: M}\nnc: 5\n"
    )
    assert len(load(tmp_path / "more.yaml", "train")) == 6 and load(tmp_path / "more.yaml", "val").counts()[4] == 2

    other = tmp_path / "other"
    coco.write(dataset([plain.samples[2].image], [[[1, 1, 9, 9]]], [[3]]), other, "val")
    (tmp_path / "both.yaml").write_text("val: [coco/val.json, other/val.json]\n")
    both = load(tmp_path / "both.yaml", "val")
    assert len({s.id for s in both.samples}) == 4 and both.counts().tolist() == [1, 0, 1, 1, 1]
    assert splits(other / "val.json") == ["val"] and len(load(other / "val.json", "val")) == 1


def test_a_line_of_classes_txt_is_a_class(tmp_path, plain):
    """Also one that starts like a comment, so that no later index moves; only what is empty at the end is not."""
    voc.write(plain, tmp_path / "voc", "train")
    yolo.write(plain, tmp_path / "yolo", "train")
    (tmp_path / "yolo" / "data.yaml").unlink()
    (tmp_path / "yolo" / "classes.txt").write_text("NG\n#2\nEG\nL\nM\n\n \n")
    (tmp_path / "voc" / "classes.txt").write_text("NG\n#2\nEG\nL\nM\n\n \n")
    for name in ("voc", "yolo"):
        again = load(tmp_path / name, "train")
        assert again.types == ["NG", "#2", "EG", "L", "M"] and again.counts().tolist() == [1, 0, 1, 0, 1]


def test_classes_are_matched_by_name(tmp_path, plain):
    coco.write(plain, tmp_path, "test")
    ours = ["M", "EG", "NG", "smudge", "BG", "L"]
    again = load(tmp_path, "test", types=ours)
    assert again.types == ours and again.samples[0].labels.tolist() == [2, 0]
    assert again.category_ids == [5, 3, 1, 6, 2, 4]
    (tmp_path / "data.yaml").write_text("test: test.json\nignore: [M, EG]\n")
    without = load(tmp_path, "test")
    assert without.types == ["NG", "BG", "L"] and without.category_ids == [1, 2, 4]
    assert without.ignored == {"M": 1, "EG": 1} and without.counts().sum() == 1
    assert [note.split(" are")[0] for note in without.notes] == ["1 cells of the class M", "1 cells of the class EG"]

    (tmp_path / "val.json").write_text((tmp_path / "test.json").read_text().replace('"M"', '"smudge"'))
    (tmp_path / "data.yaml").write_text("test: test.json\nval: val.json\nignore: [M, smudge]\n")
    assert load(tmp_path, "test").ignored == {"M": 1, "smudge": 0}  # which only the other split's file has
    assert load(tmp_path, "val").types == load(tmp_path, "test").types == ["NG", "BG", "EG", "L"]


# ------------------------------------------------------------------------------------------------------------ real sets


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"the real data set {name} is not here ({REAL / name})")
    return REAL / name


def test_pbc5():
    folder = real("pbc5")
    assert splits(folder) == ["train", "test"]
    train, test = load(folder, "train"), load(folder, "test", types=TYPES)
    assert (len(train), len(test), train.types, train.warnings) == (385, 94, TYPES, [])
    assert train.counts().tolist() == [76, 80, 76, 77, 76] and test.counts().tolist() == [18, 19, 19, 19, 19]


def test_bccd(tmp_path):
    folder = real("bccd")
    assert splits(folder) == ["train", "val", "test", "trainval"]
    parts = [load(folder, split) for split in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == 364
    assert sum(part.counts() for part in parts).tolist() == [361, 4153, 372]  # Platelets, RBC, WBC
    warnings = [(f.file.stem[-3:], f.object, f.action) for part in parts for f in part.warnings]
    assert warnings == [("343", "object 4 (RBC)", "dropped"), ("338", "object 13 (RBC)", "dropped")]
    (tmp_path / "b.yaml").write_text(f"path: {folder}\nval: ImageSets/Main/val.txt\nignore: [RBC, Platelets]\n")
    cells = load(tmp_path / "b.yaml", "val", types=["WBC"])
    assert cells.ignored == {"RBC": 968, "Platelets": 83} and cells.counts().tolist() == [87]


def test_pig():
    folder = real("pig")
    assert splits(folder) == ["train", "val"]
    parts = [load(folder, split) for split in ("train", "valid")]
    assert sum(len(part) for part in parts) == 557 and sum(part.counts()[0] for part in parts) == 1063
    assert all(1 <= len(s.boxes) <= 8 for part in parts for s in part.samples)
