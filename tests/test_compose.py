"""Cells segmented and composed: against the masks of rendered fields, and through the command."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from leuko.cells import TYPES
from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco
from leuko.data.images import read_image
from leuko.data.tools.rewrite import resize
from leuko.synth import compose
from leuko.synth.cutout import box_of, cell_mask
from leuko.synth.render import Look, render

CODES = [t.code for t in TYPES]


def crop(code: str, seed: int, side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A rendered crop with one leukocyte in its middle, [side, side, 3], and its mask."""
    rng = np.random.default_rng([seed, CODES.index(code)])
    look = Look.draw(rng, 0.3 * side)
    while True:
        field = render(rng, 3 * side, 3 * side, [code], 0.3 * side, look)
        if len(field.boxes):
            x, y = ((field.boxes[0, :2] + field.boxes[0, 2:] - side) / 2).astype(int)
            if min(x, y) >= 0 and max(x, y) <= 2 * side:
                return field.image[y : y + side, x : x + side], field.masks[0, y : y + side, x : x + side]


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """A folder of rendered crops, eight per type, and look-alikes."""
    folder = tmp_path_factory.mktemp("donors")
    for kind in [*CODES, "erythroblast"]:
        (folder / kind).mkdir()
        for i in range(8):
            image, _ = crop(kind if kind in CODES else "L", i + 50 * (kind not in CODES))
            cv2.imwrite(str(folder / kind / f"{i}.png"), image[:, :, ::-1])
    return folder


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_cut_out_cells_against_the_rendered_masks():
    ious = {}
    for code in CODES:
        pairs = [(cell_mask(image), rendered) for image, rendered in (crop(code, seed) for seed in range(12))]
        ious[code] = [iou(mask, rendered) for mask, rendered in pairs if mask is not None]
        assert len(ious[code]) >= 6, code  # the outlines of the others are uncertain
    assert np.median(np.concatenate(list(ious.values()))) > 0.88, ious


def test_nothing_is_cut_out_where_there_is_no_cell():
    rng = np.random.default_rng(0)
    assert cell_mask(np.full((100, 100, 3), 230, dtype=np.uint8)) is None
    assert cell_mask(render(rng, 160, 160, [], 50).image) is None
    for code in CODES:  # a crop so tight that there is no background
        image, mask = crop(code, 1)
        y, x = (int(v.mean()) for v in np.nonzero(mask))
        for reach in (12, 16, 20, 24):
            cell_mask(image[y - reach : y + reach, x - reach : x + reach])


def test_boxes_of_a_composed_field_fit_its_cells(donors):
    """Each box is around the pixels that its cell changed, and no others."""
    apart = [compose.take_apart(read_image(p)) for p in sorted((donors / "NG").iterdir())]
    cells = [d.cell for d in apart if d.cell is not None][:3]
    white = np.float32([240, 235, 230])
    with_cells = compose.compose(np.random.default_rng(3), 400, cells, [0] * len(cells), [], [], white, 0.0)
    without = compose.compose(np.random.default_rng(3), 400, cells, [0] * len(cells), [], [], white, 0.0)
    assert (with_cells.image == without.image).all() and len(with_cells.boxes) == len(cells)
    dark = cv2.cvtColor(with_cells.image, cv2.COLOR_RGB2GRAY) < 200
    rest = dark.copy()
    for box in with_cells.boxes.astype(int):
        x0, y0, x1, y1 = box
        assert dark[y0:y1, x0:x1].mean() > 0.4
        rest[y0 - 3 : y1 + 3, x0 - 3 : x1 + 3] = False
        assert (np.abs(box - box_of(_alone(dark, box))) <= 6).all()
    assert rest.mean() < 0.002


def _alone(dark: np.ndarray, box: np.ndarray) -> np.ndarray:
    alone = np.zeros_like(dark)
    x0, y0, x1, y1 = np.maximum(box + np.array([-6, -6, 6, 6]), 0)
    alone[y0:y1, x0:x1] = dark[y0:y1, x0:x1]
    return alone


def test_the_command_composes_the_same_fields_again(donors, tmp_path, leuko):
    words = ["--donors", donors, "--images", 10, "--size", 300, "--cells", "1-3", "--val", 0, "--test", 0.3]
    first, second = tmp_path / "a", tmp_path / "b"
    assert leuko("data", "compose", first, *words).code == 0
    assert leuko("data", "compose", second, *words, "--workers", 1).code == 0
    for split in ("train", "test"):
        one, other = source.load(first, split), source.load(second, split)
        assert one.types == CODES and sum(len(s.boxes) for s in one.samples) > 0
        for a, b in zip(one.samples, other.samples, strict=True):
            assert a.image.read_bytes() == b.image.read_bytes() and (a.boxes == b.boxes).all()
            assert len(a.boxes) <= 3
    leuko("data", "compose", first, *words).refused("a", "--force")
    leuko("data", "compose", tmp_path / "c", "--donors", first).refused("NG", "name them so")
    leuko("data", "compose", tmp_path / "c", "--donors", tmp_path).refused(str(tmp_path), "no crops there")
    leuko("data", "compose", tmp_path / "c", *words[:2], "--cells", "3-1").refused("cells 3-1", "1-6")


def test_a_resized_data_set_scales_its_boxes(data, tmp_path, leuko):
    mini = tmp_path / "mini"
    assert leuko("data", "resize", data, mini, "--size", 64).code == 0
    for split in ("train", "val", "test"):
        big, small = source.load(data, split), source.load(mini, split)
        for a, b in zip(big.samples, small.samples, strict=True):
            np.testing.assert_allclose(b.boxes, a.boxes * 64 / 80, atol=1e-3)
            assert (b.width, b.height) == (64, 64)
    originals = {"images/000000.jpg": {"image": "../data/images/000000.jpg", "width": 80, "height": 80}}
    (mini / "leuko.json").write_text(json.dumps({"originals": originals}))  # as leuko once wrote it
    resize(mini, tmp_path / "again", 64)
    leuko("data", "resize", data, mini, "--size", 5).refused("--size 5")
    leuko("data", "resize", data, data, "--size", 64, "--force").refused("source")


def test_a_jpeg_is_decoded_smaller_where_that_is_enough(tmp_path):
    """The reduced decoding is what full decoding and averaging give, within a few grey values."""
    field = render(np.random.default_rng(1), 800, 640, ["NG", "L"]).image
    cv2.imwrite(str(tmp_path / "a.jpg"), field[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    for side, part in ((801, 1), (500, 1), (400, 2), (201, 2), (200, 4), (100, 8), (20, 8)):
        image = read_image(tmp_path / "a.jpg", side)
        assert image.shape[:2] == (640 // part, 800 // part)
        exact = cv2.resize(field, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - exact).mean() < 2.5


def test_no_label_is_lost_silently(tmp_path, leuko):
    """An image that two splits label differently becomes two; a cell shrunk to a pixel is reported; crowds stay."""
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), render(np.random.default_rng(0), 96, 96, ["NG"]).image)
    boxes = [[5, 5, 40, 40], [50, 50, 51.4, 80], [60, 10, 90, 30]]
    crowd = np.array([False, False, True])
    whole = Dataset(CODES, [Sample(picture, 96, 96, boxes, [0, 1, 2], 1, crowd)])
    part = Dataset(CODES, [Sample(picture, 96, 96, boxes[:1], [4], 1)])
    for split, dataset in (("train", whole), ("val", part)):
        coco.write(dataset, tmp_path / "data", split)
    result = leuko("data", "resize", tmp_path / "data", tmp_path / "mini", "--size", 64)
    assert result.code == 0 and "2 warnings, listed" in result.out  # the cell, and that there is a crowd
    train, val = (source.load(tmp_path / "mini", split).samples[0] for split in ("train", "val"))
    assert train.labels.tolist() == [0, 2] and train.crowd.tolist() == [False, True] and val.labels.tolist() == [4]
    assert leuko("data", "factors", tmp_path / "data", tmp_path / "f", "--factor", "overlap").code == 0
    marked = source.load(tmp_path / "f", "train").samples[0]
    assert marked.cell_factors == [("overlap",), ("overlap",), ()]
    leuko("data", "factors", tmp_path / "data", tmp_path / "g", "--factor", "dust", "--seed", -1).refused("--seed -1")
    leuko("data", "synth", tmp_path / "g", "--workers", -1).refused("workers -1")
    empty = Dataset(CODES, [Sample(picture, 96, 96, [], [], 1)])
    coco.write(empty, tmp_path / "empty", "train")
    assert leuko("data", "factors", tmp_path / "empty", tmp_path / "h", "--factor", "overlap").code == 0
