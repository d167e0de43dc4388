"""Augmentation: boxes follow the cells' pixels, stain changes density, lists are read and written back; factors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml
from conftest import TYPES, table

from leuko.cells import FACTORS
from leuko.config import TrainOptions
from leuko.data import source, training
from leuko.data.dataset import AugmentedSample
from leuko.data.transforms import compose
from leuko.data.transforms.compose import PRESETS, TRANSFORMS, listed, read_steps
from leuko.errors import LeukoError
from leuko.synth import stain
from leuko.synth.factors import apply_factor
from leuko.train import augmentation

MARK, GROUND = (20, 40, 200), (230, 220, 210)


def with_ellipses(height: int = 150, width: int = 200, cells: int = 1, seed: int = 0) -> AugmentedSample:
    """A sample with blue ellipses, each in a box that fits it to the pixel."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), GROUND, dtype=np.uint8)
    boxes = []
    for i in range(cells):
        centre, axes = rng.uniform([45 + 60 * i, 50], [50 + 60 * i, 100]), rng.uniform(15, 25, 2)
        mask = np.zeros((height, width), dtype=np.uint8)
        cv2.ellipse(mask, tuple(map(int, centre)), tuple(map(int, axes)), 0, 0, 360, 1, -1)
        image[mask > 0] = MARK
        x, y, w, h = cv2.boundingRect(mask)
        boxes.append((x, y, x + w, y + h))
    return AugmentedSample(image, np.array(boxes, dtype=np.float32), np.arange(cells))


def blue_box(image: np.ndarray) -> np.ndarray:
    """The box [4] around the blue pixels; 0 if there are none."""
    blue = image.astype(int)
    x, y, w, h = cv2.boundingRect(((blue[..., 2] - blue[..., 0]) > 60).astype(np.uint8))
    return np.array([x, y, x + w, y + h])


@pytest.mark.parametrize(
    "step",
    [
        {"horizontal_flip": 1},
        {"vertical_flip": 1},
        {"right_angle": 1},
        {"rotate": {"p": 1, "degrees": 40}},
        {"scale_crop": {"p": 1, "scale": [0.4, 1.6]}},
        {"factor": {"p": 1, "names": "small_cell", "severity": [1, 5]}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_boxes_follow_their_cells(step):
    steps, there = read_steps([step]), 0
    for seed in range(40):
        sample = compose.augment(with_ellipses(seed=seed), steps, np.random.default_rng(seed), None)
        if len(sample.boxes):
            np.testing.assert_allclose(sample.boxes[0], blue_box(sample.image), atol=2)
            there += 1
        else:  # a cell is dropped only if little of it is left
            assert "scale_crop" in step
    assert there > 20


def test_cells_of_other_samples_keep_their_boxes():
    steps = read_steps([{"mosaic": 1}])
    blank = AugmentedSample(
        np.full((150, 200, 3), GROUND, dtype=np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, int)
    )
    shown = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        turn = iter([with_ellipses(seed=seed + 99), blank, blank])
        sample = compose.augment(blank, steps, rng, lambda rng, rare, turn=turn: next(turn))
        if len(sample.boxes):
            box = blue_box(sample.image)
            np.testing.assert_allclose(sample.boxes[0], box, atol=2)
            shown += 1
    assert shown > 20


def test_photometric_transforms_leave_boxes_alone_and_follow_the_seed():
    sample = with_ellipses()
    for name in ("colour_jitter", "stain_jitter", "gamma", "defocus", "noise", "jpeg"):
        steps = read_steps([{name: 1}])
        one, same, other = (compose.augment(sample, steps, np.random.default_rng(seed), None) for seed in (1, 1, 2))
        assert one.image.dtype == np.uint8 and one.image.shape == sample.image.shape
        assert (one.image == same.image).all() and (one.image != other.image).any(), name
        np.testing.assert_array_equal(one.boxes, sample.boxes)


def test_restaining_changes_each_dye_alone():
    amounts = np.random.default_rng(0).uniform(0.05, 0.6, (40, 40, 3)).astype(np.float32)
    amounts[:3] = 0  # the bare slide
    white = np.float32([250, 245, 240])
    image = stain.from_density(stain.mix(amounts), white).round().astype(np.uint8)
    change = np.diag([0.5, 1.2, 1.0])
    after = stain.to_density(stain.restain(image, change), white) @ np.linalg.inv(stain.ABSORBERS)
    assert np.abs(after - amounts @ change)[3:].max() < 0.05
    np.testing.assert_allclose(stain.restain(image, np.eye(3)), image, atol=1)
    flared = stain.restain(image, np.eye(3), flare=0.25)  # the empty slide keeps its colour, cells become paler
    np.testing.assert_allclose(flared, image * 0.75 + white * 0.25, atol=1.5)


def test_copy_paste_draws_rare_types(data):
    dataset = source.load(data, "train")
    rare = int(np.flatnonzero(dataset.counts() == dataset.counts()[dataset.counts() > 0].min())[0])
    images = training.TrainingImages(dataset, 160, [], seed=0)
    drawn = [images.another(np.random.default_rng(i), rare=True).labels for i in range(200)]
    evenly = [images.another(np.random.default_rng(i), rare=False).labels for i in range(200)]
    assert sum(rare in labels for labels in drawn) > 1.3 * sum(rare in labels for labels in evenly)
    assert all(len(set(labels)) <= 1 for labels in drawn), "a common cell of the image would be pasted instead"


def test_a_crowd_is_no_cell_for_a_factor():
    sample = with_ellipses(300, 400, cells=3)
    crowd = np.array([False, True, False])
    huge = np.array([10, 10, 390, 290], dtype=np.float32)
    boxes = np.array([sample.boxes[0], huge, sample.boxes[2]])
    for name in ("overlap", "incomplete", "small_cell"):
        for seed in range(8):
            alone = apply_factor(name, np.random.default_rng(seed), sample.image, boxes[~crowd], 3)
            both = apply_factor(name, np.random.default_rng(seed), sample.image, boxes, 3, crowd)
            cells = ~np.isin(both.kept, 1)
            np.testing.assert_array_equal(both.image, alone.image)
            np.testing.assert_array_equal(both.boxes[cells], alone.boxes)
            np.testing.assert_array_equal(both.marked[cells], alone.marked)
            assert not both.marked[~cells].any() and (both.boxes[:, 2:] <= both.image.shape[1::-1]).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_list_is_read_back(preset, tmp_path):
    steps = read_steps(preset)
    file = tmp_path / "list.yaml"
    file.write_text(yaml.safe_dump({"augment": listed(steps)}))
    assert read_steps(listed(steps)) == steps == read_steps(str(file))


def test_every_transform_has_a_default_and_runs(data):
    images = training.TrainingImages(source.load(data, "train"), 96, read_steps([{n: 1} for n in TRANSFORMS]), seed=1)
    for index in range(len(images.samples)):
        image, target, _ = images[0, index, 0]
        height, width = image.shape[1:]
        boxes = target["boxes"].numpy()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and len(boxes) == len(target["labels"])
        assert (boxes <= [width, height] * 2).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("smaer", ('"smaer"', "smear", "YAML")),
        ([{"flipp": 0.5}], ("transform 1", '"flipp"')),
        ([{"noise": 0.5}, {"rotate": {"p": 0.5, "degree": 3}}], ("transform 2", "rotate", "degree", "degrees")),
        ([{"noise": 2}], ("noise", "p: 2", "0 to 1")),
        ([{"noise": {"std": 3}}], ("noise", "p: None")),
        ([{"scale_crop": {"p": 1, "scale": [2, 1]}}], ("scale_crop", "scale", "lower number first")),
        ([{"factor": {"p": 1, "names": "dusty"}}], ("factor", '"dusty"', "dust")),
        ([{"factor": {"p": 1, "severity": [1, 9]}}], ("factor", "severity", "1 to 5")),
        ([{"defocus": {"p": 1, "radius": "x"}}], ("defocus", "radius", "'x'")),
        ([{"mosaic": {"p": 1, "visible": 5}}], ("mosaic", "visible", "from 0 to 1")),
        ([{"jpeg": {"p": 1, "quality": [50, 500]}}], ("jpeg", "quality", "500", "100")),
        (["noise"], ("transform 1", "'noise'", "PROBABILITY")),
        ({"noise": 1}, ("augment", "not a list")),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(given, words):
    with pytest.raises(LeukoError) as error:
        read_steps(given)
    assert all(word in str(error.value) for word in words), error.value


# ---------------------------------------------------------------------- the nine factors


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_grows_with_its_severity_and_follows_the_seed(name):
    sample = with_ellipses(300, 400, cells=3)
    changes = []
    for severity in (1, 3, 5):
        one, same = (
            apply_factor(name, np.random.default_rng(4), sample.image, sample.boxes, severity) for _ in range(2)
        )
        assert (one.image == same.image).all()
        h, w = one.image.shape[:2]
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all() and (one.boxes <= [w, h, w, h]).all()
        assert one.marked.any() == (name in ("overlap", "incomplete", "small_cell"))
        plain = sample.image[:h, :w].astype(float)
        sizes = (one.boxes[:, 2:] - one.boxes[:, :2]).prod(1)
        changes.append(sizes.min() if name in ("incomplete", "small_cell") else np.abs(one.image - plain).mean())
    rising = changes[0] < changes[1] < changes[2]
    assert changes[0] > changes[1] > changes[2] if name in ("incomplete", "small_cell") else rising, changes


def test_an_incomplete_cell_keeps_its_share():
    sample = with_ellipses(300, 400, cells=3)
    area = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1)
    for severity, share in zip(range(1, 6), (0.50, 0.44, 0.38, 0.31, 0.25), strict=True):
        cut = apply_factor("incomplete", np.random.default_rng(severity), sample.image, sample.boxes, severity)
        left = (cut.boxes[:, 2:] - cut.boxes[:, :2]).prod(1) / area[cut.kept]
        assert cut.marked.any() and left[cut.marked].min() == pytest.approx(share, abs=0.03)


def test_factors_on_a_data_set_are_tagged_and_read_back(data, tmp_path, leuko):
    result = leuko("data", "factors", data, tmp_path / "all", "--factor", "all", "--severity", 5)
    assert result.code == 0, result.err
    for split in ("train", "val", "test"):
        before, after = source.load(data, split), source.load(tmp_path / "all", split)
        assert len(after) == len(before) and after.types == TYPES
        for sample in after.samples:
            tags = {*sample.factors, *(tag for tags in sample.cell_factors for tag in tags)}
            assert len(tags) == 1 or not len(sample.boxes), sample
    again = tmp_path / "again"
    leuko("data", "factors", data, again, "--factor", "dust,defocus")
    first, second = ((again / "images" / f"00000{i}.jpg").read_bytes() for i in (0, 1))
    leuko("data", "factors", data, again, "--factor", "dust,defocus", "--force")
    assert first == (again / "images/000000.jpg").read_bytes() and second != (data / "images/000001.jpg").read_bytes()
    leuko("data", "factors", data, again, "--factor", "dust").refused("again", "--force")
    leuko("data", "factors", data, tmp_path / "x", "--factor", "dsut").refused('"dsut"', "dust")
    leuko("data", "factors", data, tmp_path / "x", "--factor", "dust", "--severity", 6).refused("--severity 6")


# ---------------------------------------------------------------------- in a training


def test_the_list_is_kept_in_the_run(data, tmp_path, leuko):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("augment:\n  - noise: 0.5\n  - scale_crop: {p: 1, scale: [0.9, 1.1]}\n")
    words = ["--data", data, "--project", tmp_path, "--backbone", "mobilenetv3_small_050", "--no-pretrained"]
    words += ["--imgsz", 64, "--channels", 32, "--config", recipe]
    assert leuko("train", *words, "--name", "run", "--epochs", 1, "--workers", 0).code == 0
    kept = yaml.safe_load((tmp_path / "run/args.yaml").read_text())["augment"]
    assert kept == [
        {"noise": {"p": 0.5, "std": 8.0}},
        {"scale_crop": {"p": 1.0, "scale": [0.9, 1.1], "visible": 0.4}},
    ]
    assert len(table(tmp_path / "run/results.csv")) == 1
    leuko("train", "--data", data, "--augment", "smeer").refused("--augment", "smear")


def test_long_trainings_take_the_stronger_augmentation(data, capsys):
    train_set = source.load(data, "train")
    short, long = (augmentation(TrainOptions(epochs=n), train_set) for n in (1, 10_000))
    assert short == listed(read_steps("standard")) and long == listed(read_steps("smear"))
    said = capsys.readouterr().out
    assert "augmentation: standard" in said and "augmentation: smear, since" in said
    assert augmentation(TrainOptions(epochs=10_000, augment="flips"), train_set) == listed(read_steps("flips"))
    assert not capsys.readouterr().out
