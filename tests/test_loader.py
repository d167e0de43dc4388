"""Loading: one way for pixels in training and in use, repeat factors, loss weights, a cache that changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leuko import Detector
from leuko.data import loader, source, training
from leuko.data.dataset import Dataset, Sample
from leuko.data.transforms.compose import read_steps
from leuko.engine import checkpoint
from leuko.engine.stop import Stop
from leuko.models import create, criterion

TYPES = ["NG", "BG", "EG", "L", "M"]


def dataset(labels: list[list[int]]) -> Dataset:
    samples = [
        Sample(Path(f"{i}.png"), 90, 90, [[5 * j, 5, 5 * j + 9, 20] for j in range(len(of))], of, i)
        for i, of in enumerate(labels)
    ]
    return Dataset(["a", "b", "c"], samples)


def test_repeat_factors_by_their_definition():
    """Type a is on 8 of 10 images, b on 2, c on none; one image has neither."""
    data = dataset([[0]] * 6 + [[0, 1], [0, 0, 1], [1]][:2] + [[]] + [[]])
    factors = training.repeat_factors(data, 0.5)
    np.testing.assert_allclose(factors, [1] * 6 + [np.sqrt(0.5 / 0.2)] * 2 + [1, 1])
    assert (training.repeat_factors(data, 0.0) == 1).all()
    np.testing.assert_allclose(training.cells_per_epoch(data, factors), [6 + 3 * 1.5811, 2 * 1.5811, 0], rtol=1e-4)


def test_an_epoch_shows_each_image_by_its_factor():
    factors = np.array([1.0, 2.5, 1.2, 1.0, 3.3])
    times = []
    for epoch in range(3000):
        order = training.epoch_order(factors, np.random.default_rng(epoch))
        assert len(order) == 9 and len(set(order)) == 9
        counts = np.bincount([sample for sample, _ in order], minlength=5)
        assert (counts >= np.floor(factors)).all() and (counts <= np.ceil(factors)).all()
        assert {(s, t) for s in range(5) for t in range(counts[s])} == set(order)
        times.append(counts)
    np.testing.assert_allclose(np.mean(times, axis=0), factors, atol=0.03)
    once = training.epoch_order(np.ones(7), np.random.default_rng(0))
    assert sorted(once) == [(i, 0) for i in range(7)]


def test_repeated_images_are_augmented_differently(data):
    items = training.TrainingImages(source.load(data, "train"), 64, read_steps("standard"), 0, repeat_factor=1.0)
    batches = [item for batch in training.TrainingLoader(items, 4).epoch(0) for item in batch]
    assert len(batches) == len(items) > len(items.samples)
    by_index: dict[int, list] = {}
    for item in batches:
        image, _, index = item
        by_index.setdefault(index, []).append(image)
    twice = next(images for images in by_index.values() if len(images) > 1)
    assert not torch.equal(twice[0], twice[1])


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 2400), (".png", 700), (".jpg", 90)])
def test_a_detector_sees_the_same_pixels_in_training_and_in_use(suffix, side, tmp_path):
    """A large field, decoded smaller, a smaller one, and one that is scaled up: in training, validation, prediction and
    Python."""
    noise = np.random.default_rng(0).integers(0, 256, (side // 10, side // 8, 3), dtype=np.uint8)
    path = tmp_path / f"field{suffix}"
    cv2.imwrite(str(path), cv2.resize(noise, (side, side * 4 // 5), interpolation=cv2.INTER_CUBIC))
    fields = Dataset(TYPES, [Sample(path, side, side * 4 // 5, [[5, 5, 60, 60]], [0], 1)])
    in_training, target, _ = training.TrainingImages(fields, 320, [], seed=0)[0, 0, 0]
    ((validated,),) = loader.sample_batches(fields, [320], [[0]])
    (predicted,) = loader.file_images([path], [320])
    planes = in_training.permute(1, 2, 0).numpy()
    assert in_training.shape[2] == 320 and np.array_equal(planes, validated.views[320])
    assert np.array_equal(planes, predicted.views[320]) and predicted.size == validated.size == (side, side * 4 // 5)
    np.testing.assert_allclose(target["boxes"].numpy(), fields.samples[0].boxes * (320 / side), rtol=1e-5)

    model = create("fcos", 5, "mobilenetv3_small_050", image_size=320, channels=32).eval()
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model([in_training])
    checkpoint.save_weights(tmp_path / "a.safetensors", model.recipe, model.state_dict(), TYPES)
    detector = Detector(tmp_path / "a.safetensors", device="cpu")
    detector._member.model.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    detector.predict(path)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


def test_large_images_are_left_to_the_main_process(data, tmp_path, monkeypatch):
    """They come in their place, as do errors, and only a worker that has a small image decodes it."""
    paths = [sample.image for sample in source.load(data, "test").samples]
    large, broken = tmp_path / "large.png", tmp_path / "broken.png"
    cv2.imwrite(str(large), np.full((300, 200, 3), 90, np.uint8))
    broken.write_text("no image")
    paths[1:1] = [large, broken, large]
    monkeypatch.setattr("leuko.data.images.LARGE", 0.05)
    here = loader.LoadedImage.of_file
    monkeypatch.setattr(loader.LoadedImage, "of_file", lambda path, *how: replace(here(path, *how), bits=os.getpid()))
    alone, shared = ([*loader.file_images(paths, [64], workers)] for workers in (0, 2))
    for path, a, b in zip(paths, alone, shared, strict=True):
        if path == broken:
            assert str(a) == str(b) and "broken.png" in str(b)
        else:
            assert a.path == b.path == path and (a.views[64] == b.views[64]).all() and (a.pixels == b.pixels).all()
            assert (b.bits == os.getpid()) == (path == large)


def test_a_signal_at_the_end_of_a_pass_is_not_lost(data, monkeypatch):
    """Python prints what is raised where an object is deleted, as a loader is that ends its processes, and goes on."""
    dataset = source.load(data, "test")
    join, sent, lost = multiprocessing.process.BaseProcess.join, [], []

    def interrupted(process: multiprocessing.process.BaseProcess, timeout: float | None = None) -> None:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        join(process, timeout)

    with pytest.raises(KeyboardInterrupt), Stop():
        batches = loader.sample_batches(dataset, [64], [[0], [1], [2]], workers=1)
        next(batches)
        monkeypatch.setattr(multiprocessing.process.BaseProcess, "join", interrupted)
        monkeypatch.setattr(sys, "unraisablehook", lost.append)
        for _ in batches:
            pass
        pytest.fail("the signal was lost")
    assert sent and not lost


@given(st.integers(1, 400), st.integers(1, 20))
def test_batches_are_few_and_alike(images: int, batch: int):
    """A last batch of one image would move the weights as far as a whole one."""
    bounds = training.batch_bounds(images, batch)
    sizes = [end - first for first, end in pairwise(bounds)]
    assert bounds[0] == 0 and bounds[-1] == images and len(sizes) == -(-images // batch)
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1


def test_loss_weights_have_mean_one_over_the_cells():
    data = dataset([[0]] * 16 + [[1]] * 4 + [[2]])
    weights = np.array(training.loss_weights(data))
    assert weights @ data.counts() / data.counts().sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(weights / weights[0], [1, 2, 4], rtol=1e-3)


@pytest.mark.parametrize("name", ["fcos", "fsaf", "faster_rcnn", "cascade_rcnn"])
def test_weights_of_1_change_nothing_and_others_do(name):
    images = [torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1))]
    targets = [{"boxes": torch.tensor([[20.0, 20, 70, 80]]), "labels": torch.tensor([1])}]
    terms = []
    for weights in ((), (1.0, 1.0), (1.0, 3.0)):
        torch.manual_seed(0)
        small = {"image_size": 96, "channels": 32, "fc_channels": 32, "rois": 16, "proposals": 20}
        model = create(name, 2, "mobilenetv3_small_050", class_weights=weights, **small).train()
        terms.append({key: value.item() for key, value in model(images, targets).items()})
    classes = [key for key in terms[0] if "class" in key]
    assert terms[0] == pytest.approx(terms[1]) and classes
    for key, value in terms[0].items():
        assert (terms[2][key] > value) if key in classes else terms[2][key] == pytest.approx(value), key


def test_a_focal_loss_is_weighed_where_the_class_is():
    targets, logits = torch.tensor([[1.0, 0], [0, 1], [0, 0]]), torch.randn(3, 2)
    ratio = criterion.weighted_focal(logits, targets, torch.tensor([2.0, 5.0])) / criterion.focal(logits, targets)
    assert torch.allclose(ratio, torch.tensor([[2.0, 1], [1, 5], [1, 1]]))


def test_cached_images_are_the_same(data):
    dataset = source.load(data, "train")
    kept, read = (training.TrainingImages(dataset, 64, [], 0, cache) for cache in ("ram", "none"))
    assert len(kept.kept) == len(dataset) and not read.kept
    for i in (3, 0, len(dataset) - 1):
        assert kept.plain(i).image.dtype == np.uint8 and (kept.plain(i).image == read.plain(i).image).all()


def test_balance_is_printed(data, tmp_path, leuko):
    words = ["--data", data, "--project", tmp_path, "--backbone", "mobilenetv3_small_050", "--no-pretrained"]
    words += ["--epochs", 1, "--imgsz", 64, "--channels", 32, "--workers", 1, "--cache", "ram", "--name", "run"]
    result = leuko("train", *words, "--repeat-factor", 0.9, "--type-weights", "balanced")
    assert result.code == 0 and "images per epoch instead of 9" in result.out and "type weights: NG" in result.out
    leuko("train", *words, "--repeat-factor", 7).refused("--repeat-factor 7", "0 to 1")
