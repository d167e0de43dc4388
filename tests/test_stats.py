"""What `leuko data stats` says of a data set, counted anew."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import table

from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco
from leuko.data.tools import stats

TYPES = ["NG", "BG", "EG"]


@pytest.fixture
def data(tmp_path) -> Path:
    """Two splits; images of one colour each, of two centres; an empty image, a crowd and factors."""
    splits = {
        "train": [
            ("a", (200, 100, 50), [[0, 0, 40, 10], [0, 0, 20, 20]], [0, 0], "centre 1"),
            ("b", (100, 100, 50), [[5, 5, 35, 35]], [1], "centre 2"),
            ("c", (220, 120, 70), [], [], "centre 1"),
        ],
        "test": [("d", (0, 0, 0), [[0, 0, 30, 30], [10, 10, 50, 50]], [1, 0], "")],
    }
    for split, images in splits.items():
        samples = []
        for number, (name, rgb, boxes, labels, group) in enumerate(images, 1):
            path = tmp_path / f"{name}.png"
            cv2.imwrite(str(path), np.full((60, 80, 3), rgb[::-1], np.uint8))
            samples.append(Sample(path, 80, 60, boxes, labels, number, group=group))
        if split == "train":
            samples[0].factors, samples[0].cell_factors = ("dust",), [("overlap",), ("overlap", "small_cell")]
        else:
            samples[0].crowd = np.array([False, True])
        coco.write(Dataset(TYPES, samples), tmp_path / "data", split)
    return tmp_path / "data"


@pytest.mark.charts
def test_numbers_are_those_of_the_data(data, tmp_path, leuko):
    result = leuko("data", "stats", data, "--save", tmp_path / "out")
    assert result.code == 0, result.err
    assert "2 (1)" in result.out and "3 (3)" in result.out  # NG in train; all of train, the empty image counted
    folder = tmp_path / "out/data"
    counts = {(r["split"], r["type"]): (int(r["cells"]), int(r["images"])) for r in table(folder / "counts.csv")}
    assert counts["train", "NG"] == (2, 1) and counts["train", "EG"] == (0, 0) and counts["train", "all"] == (3, 3)
    assert counts["test", "NG"] == (0, 0) and counts["test", "all"] == (1, 1)  # a crowd is no cell

    sizes = {r["type"]: r for r in table(folder / "sizes.csv")}
    assert [float(sizes["NG"][f"px_p{p}"]) for p in stats.PERCENTILES] == [20, 20, 20]
    assert (
        float(sizes["BG"]["percent_p50"]) == 50 and float(sizes["NG"]["ratio_p50"]) == 2.5 and not sizes["EG"]["px_p5"]
    )

    cells = [(int(r["cells"]), int(r["train"]), int(r["test"])) for r in table(folder / "cells_per_image.csv")]
    assert cells == [(0, 1, 0), (1, 1, 1), (2, 1, 0)]
    factors = {(r["split"], r["factor"]): (r["images"], r["cells"]) for r in table(folder / "factors.csv")}
    assert factors == {
        ("train", "dust"): ("1", "0"),
        ("train", "overlap"): ("0", "2"),
        ("train", "small_cell"): ("0", "1"),
    }
    colours = {
        r["group"]: [float(r[f"{k}_{c}"]) for k in ("mean", "between_images") for c in "RGB"]
        for r in table(folder / "colours.csv")
    }
    assert colours == {
        "centre 1": [210, 110, 60, 10, 10, 10],
        "centre 2": [100, 100, 50, 0, 0, 0],
        "test": [0, 0, 0, 0, 0, 0],  # images without group go by their split
    }
    assert (folder / "stats.png").stat().st_size > 10_000


def test_names_are_no_formulas(data, tmp_path, leuko):
    file = data / "train.json"
    file.write_text(file.read_text().replace("centre 1", "p$\\\\x$").replace("overlap", "$\\\\y$"))
    result = leuko("data", "stats", data, "--save", tmp_path / "out")
    assert result.code == 0, result.err
    assert "p$\\x$" in (tmp_path / "out/data/colours.csv").read_text()


def test_what_cannot_be_read_is_refused(data, tmp_path, leuko):
    leuko("data", "stats", tmp_path / "nowhere").refused("no such file or folder")
    image = next((data / "images").iterdir())
    image.unlink()  # it is linked to the original
    image.write_bytes(b"no image")
    leuko("data", "stats", data, "--save", tmp_path / "out").refused(image.name)
    assert not (tmp_path / "out").exists()
