"""Data sets: what is read is what was written, in every format and layout, and as the real sets have it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from leuko.data import coco, voc, yolo
from leuko.data.images import image_size, list_images, read_image
from leuko.data.sample import Dataset, Sample
from leuko.data.source import load, splits
from leuko.errors import LeukoError

REAL = Path(__file__).parents[2] / "shared" / "data"
WIDTH, HEIGHT = 97, 61
TYPES = ["NG", "BG", "EG", "L", "M"]
WRITERS = {"voc": voc.write, "coco": coco.write, "yolo": yolo.write}


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields())
def test_round_trip_through_all_formats(tmp_path_factory, pictures, cells):
    folder = tmp_path_factory.mktemp("trip")
    first = now = dataset(pictures, *cells)
    for step, name in enumerate(("voc", "coco", "yolo", "voc")):
        WRITERS[name](now, folder / f"{step}{name}", "train")
        now = load(folder / f"{step}{name}", "train")
        assert now.flaws == []
        assert_same(first, now, order=False)


def test_formats_keep_what_they_can_hold(tmp_path, plain):
    first, second = plain.samples[:2]
    first.factors, first.group = ("overstained",), "smear <7>"
    first.cell_factors = [("overlap", "small_cell"), ()]
    first.attributes = [{"truncated": 1, "pose": "Left & up"}, {"difficult": 0}]
    first.crowd = np.array([False, True])
    plain.category_ids = [7, 3, 4, 10, 1]
    for sample, number in zip(plain.samples, (40, 12, 31), strict=True):
        sample.id = number
    plain.types = ["BG", "NG", "x", "L", "M"]  # COCO's order is that of its ids, a VOC folder's is in classes.txt
    voc.write(plain, tmp_path / "voc", "test")
    coco.write(plain, tmp_path / "coco", "test")
    by_voc, by_coco = load(tmp_path / "voc", "test"), load(tmp_path / "coco", "test", types=plain.types)
    for again in (by_voc, by_coco):
        assert_same(plain, again)
        for old, new in zip(plain.samples, again.samples, strict=True):
            assert (new.factors, new.group, new.cell_factors) == (old.factors, old.group, old.cell_factors)
            assert new.attributes == old.attributes and new.crowd.tolist() == old.crowd.tolist()
    assert by_coco.category_ids == plain.category_ids and [s.id for s in by_coco.samples] == [40, 12, 31]
    assert len(second.boxes) == 1 and by_coco.counts().tolist() == [1, 0, 1, 0, 0]  # the crowd is not counted
    with pytest.raises(LeukoError, match=r"1\.jpg: YOLO cannot mark a crowd"):
        yolo.write(plain, tmp_path / "yolo", "test")


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


@pytest.mark.parametrize(("origin", "corner"), [(0, "<xmin>10</xmin>"), (1, "<xmin>11</xmin>")])
def test_voc_origins(tmp_path, plain, origin, corner):
    voc.write(plain, tmp_path, "train", voc_origin=origin)
    assert corner in (tmp_path / "Annotations" / "1.xml").read_text()
    (tmp_path / "data.yaml").write_text(f"train: ImageSets/Main/train.txt\nvoc_origin: {origin}\n")
    assert_same(plain, load(tmp_path, "train"))


# ----------------------------------------------------------------------------------------------- where the data may lie


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

    (tmp_path / "val.json").write_text((tmp_path / "test.json").read_text().replace('"M"', '"smudge"'))
    (tmp_path / "data.yaml").write_text("test: test.json\nval: val.json\nignore: [M, smudge]\n")
    assert load(tmp_path, "test").ignored == {"M": 1, "smudge": 0}  # which only the other split's file has
    assert load(tmp_path, "val").types == load(tmp_path, "test").types == ["NG", "BG", "EG", "L"]


# --------------------------------------------------------------------------------------------------------------- images


def test_pixels_are_read_as_stored(tmp_path):
    """Grey, 16 bit, transparent, palette and EXIF-turned images become [H, W, 3] uint8 RGB of the stored pixels."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    deep = rng.integers(0, 1 << 16, (40, 30), dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colour).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.dstack([colour, colour[..., 0]])).save(tmp_path / "alpha.png")
    Image.fromarray(colour).quantize(256).save(tmp_path / "palette.png")
    cv2.imwrite(str(tmp_path / "deep.PNG"), deep)
    for path in list_images(tmp_path):
        image = read_image(path)
        assert (image.shape, image.dtype, image_size(path)) == ((40, 30, 3), np.uint8, (30, 40)), path
    assert len(list_images(tmp_path)) == 4
    assert all((read_image(tmp_path / name) == colour).all() for name in ("turned.png", "alpha.png"))
    assert np.abs(read_image(tmp_path / "deep.PNG")[..., 0] - deep / 257.0).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.98])
def test_truncated_images_are_refused(tmp_path, suffix, kept):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    thumbnail = b"\xff\xd8 a small JPEG with its own end \xff\xd9"
    exif[37510] = thumbnail
    path = tmp_path / f"cut{suffix}"
    image.save(path, exif=exif)
    assert read_image(path).shape == (60, 80, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    problem = "the JPEG is truncated" if suffix == ".jpg" and kept else "not a readable image"
    with pytest.raises(LeukoError, match=rf"cut\{suffix}: {problem}"):
        read_image(path)


# ------------------------------------------------------------------------------------------------------------ real sets


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"the real data set {name} is not here ({REAL / name})")
    return REAL / name


def test_pbc5():
    folder = real("pbc5")
    assert splits(folder) == ["train", "test"]
    train, test = load(folder, "train"), load(folder, "test", types=TYPES)
    assert (len(train), len(test), train.types, train.flaws) == (385, 94, TYPES, [])
    assert train.counts().tolist() == [76, 80, 76, 77, 76] and test.counts().tolist() == [18, 19, 19, 19, 19]


def test_bccd(tmp_path):
    folder = real("bccd")
    assert splits(folder) == ["train", "val", "test", "trainval"]
    parts = [load(folder, split) for split in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == 364
    assert sum(part.counts() for part in parts).tolist() == [361, 4153, 372]  # Platelets, RBC, WBC
    flaws = [(f.file.stem[-3:], f.object, f.action) for part in parts for f in part.flaws]
    assert flaws == [("343", "object 4 (RBC)", "dropped"), ("338", "object 13 (RBC)", "dropped")]
    (tmp_path / "b.yaml").write_text(f"path: {folder}\nval: ImageSets/Main/val.txt\nignore: [RBC, Platelets]\n")
    cells = load(tmp_path / "b.yaml", "val", types=["WBC"])
    assert cells.ignored == {"RBC": 968, "Platelets": 83} and cells.counts().tolist() == [87]


def test_pig():
    folder = real("pig")
    assert splits(folder) == ["train", "val"]
    parts = [load(folder, split) for split in ("train", "valid")]
    assert sum(len(part) for part in parts) == 557 and sum(part.counts()[0] for part in parts) == 1063
    assert all(1 <= len(s.boxes) <= 8 for part in parts for s in part.samples)
