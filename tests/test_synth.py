"""The stain, the renderer and ``leuko data synth``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from leuko.cells import TYPES
from leuko.data.source import load
from leuko.data.tools.draw import synth
from leuko.errors import LeukoError
from leuko.synth import stain
from leuko.synth.canvas import DrawnCell
from leuko.synth.leukocytes import DRAW
from leuko.synth.render import render

CODES = [t.code for t in TYPES]


def test_density_and_amounts_round_trip():
    rng = np.random.default_rng(0)
    white = np.array([250.0, 230.0, 210.0])
    image = rng.integers(1, 256, (20, 30, 3)).astype(np.uint8)
    density = stain.to_density(image, white)
    assert np.abs(stain.from_density(density, white) - image).max() < 1e-3
    assert np.abs(stain.mix(density @ np.linalg.inv(stain.ABSORBERS)) - density).max() < 1e-4
    assert np.isfinite(stain.to_density(np.zeros((1, 3)), white)).all()


def test_layers_multiply_light():
    """Beer-Lambert law: the transmission of two layers is the product of theirs."""
    one, two = np.array([0.3, 0.1, 0.2]), np.array([0.5, 1.2, 0.0])
    light = [stain.from_density(stain.mix(layer), np.ones(3)) for layer in (one, two, one + two)]
    np.testing.assert_allclose(light[0] * light[1], light[2], rtol=1e-5)


def test_acid_is_red_and_alkaline_blue():
    nucleus = np.array([1.4, 1.8, 0.0])
    red, blue = (stain.mix(nucleus * stain.uptake(ph)) for ph in (6.2, 7.0))
    assert red[0] < blue[0]  # transmits more red light
    np.testing.assert_array_equal(stain.uptake(stain.NEUTRAL_PH), 1)


def test_boxes_are_the_extents_of_the_cells():
    clipped = 0
    for seed in range(12):
        field = render(np.random.default_rng(seed), 200, 160, CODES)
        assert field.image.shape == (160, 200, 3) and field.image.dtype == np.uint8
        assert field.boxes.dtype == np.float32 and len(field.boxes) == len(field.labels) == len(field.masks) >= 1
        for box, mask in zip(field.boxes, field.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            clipped += bool(box.min() == 0 or box[2] == 200 or box[3] == 160)
        owners = field.masks.sum(axis=0)
        assert (owners > 1).sum() < 0.05 * (owners > 0).sum()  # cells touch, but do not hide each other
    assert clipped


def test_the_drawn_cell_fills_its_box():
    """In the image itself the cell is darker than the empty slide around it."""
    field = render(np.random.default_rng(3), 320, 320, ["L"], red_cell_px=40)
    x0, y0, x1, y1 = field.boxes[0].astype(int)
    assert field.image[y0:y1, x0:x1][field.masks[0, y0:y1, x0:x1]].mean() < 0.7 * np.median(field.image)


def test_leukocytes_are_larger_than_red_cells():
    for code in CODES:
        for seed in range(8):
            boxes = render(np.random.default_rng(seed), 300, 300, [code], red_cell_px=30).boxes
            inside = boxes[(boxes[:, :2].min(axis=1) > 0) & (boxes[:, 2:].max(axis=1) < 300)]
            sides = np.sqrt((inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1]))
            assert ((sides > 1.3 * 30) & (sides < 2.6 * 30)).all()


def textbook_type(cell: DrawnCell) -> str:
    """The type by a textbook's criteria: granules, colour of the cytoplasm, share of the nucleus."""
    inside = cell.cover > 0.5
    eosin, azure, _ = cell.amounts[inside & (cell.nucleus < 0.1)].mean(axis=0)
    if azure > 0.5 and eosin > 0.4:
        return "BG"  # dark granules all over
    if eosin > 2 * azure:
        return "EG"  # bright granules
    if azure < 1.6 * eosin:
        return "NG"  # pale pink
    return "L" if (cell.nucleus > 0.5).sum() > 0.55 * inside.sum() else "M"  # blue


def test_the_five_types_can_be_distinguished():
    for code in CODES:
        named = [textbook_type(DRAW[code](np.random.default_rng(i), 30.0)) for i in range(30)]
        assert named.count(code) >= 28, (code, named)


def pixels(folder: Path) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.jpg"))]


def test_images_follow_from_seed_and_number_alone(tmp_path):
    synth(tmp_path / "a", images=6, size=96, seed=1, workers=1)
    synth(tmp_path / "b", images=6, size=96, seed=1, workers=4)
    synth(tmp_path / "c", images=3, size=96, seed=1, format="voc", val=0, test=0)
    synth(tmp_path / "d", images=6, size=96, seed=2)
    a, b, c, d = (pixels(tmp_path / name) for name in "abcd")
    assert a == b and a[:3] == c and not set(a) & set(d)


def test_the_three_formats_hold_the_same(tmp_path):
    for form in ("coco", "voc", "yolo"):
        made = synth(tmp_path / form, images=9, size=150, format=form, seed=5, val=0.3, test=0.2)
        assert [len(made[s]) for s in ("train", "val", "test")] == [4, 3, 2]
        for split, dataset in made.items():
            read = load(tmp_path / form, split)
            assert read.types == CODES and not read.warnings
            for a, b in zip(dataset.samples, read.samples, strict=True):
                assert a.image == b.image.absolute() and (a.width, a.height) == (b.width, b.height)
                np.testing.assert_array_equal(a.boxes, b.boxes)
                np.testing.assert_array_equal(a.labels, b.labels)
        assert len(pixels(tmp_path / form)) == 9  # nothing is stored twice


def test_nothing_is_overwritten_without_force(tmp_path):
    synth(tmp_path / "set", images=2, size=64)
    before = pixels(tmp_path)
    with pytest.raises(LeukoError, match="--force"):
        synth(tmp_path / "set", images=2, size=64, seed=1)
    (tmp_path / "set" / "thesis.txt").write_text("years of work")
    with pytest.raises(LeukoError, match=r"thesis\.txt"):
        synth(tmp_path / "set", images=2, size=64, seed=1, force=True)
    assert pixels(tmp_path) == before
    (tmp_path / "set" / "thesis.txt").unlink()
    synth(tmp_path / "set", images=2, size=64, format="voc", seed=1, force=True)
    assert pixels(tmp_path) != before and not (tmp_path / "set" / "images").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # no half-built folder stays


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "63"], "size 63"),
        (["--images", "-1"], "images -1"),
        (["--format", "yollo"], 'did you mean "yolo"'),
        (["--val", "0.6", "--test", "0.5"], "training"),
        (["--seed", "-1"], "seed -1"),
        (["--sise", "99"], 'did you mean "--size"'),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, says, leuko):
    done = leuko("data", "synth", tmp_path / "set", *words)
    done.refused(says)
    assert done.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_command(tmp_path, leuko):
    done = leuko("data", "synth", tmp_path / "a b", "--images", 5, "--size", 64)
    assert done.code == 0, done.err
    assert "train" in done.out
    again = leuko("data", "synth", tmp_path / "a b")
    again.refused("exists and is not empty")
    assert again.err.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert leuko("data", "synth", tmp_path / "file" / "set").code == 2
    assert "synth" in leuko("data", "--help").out and leuko("data", "sinth").code == 2
