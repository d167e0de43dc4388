"""Splits: groups stay whole, types are spread as wanted, and what leaks is refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import FCOS, TINY, untrained
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco, yolo
from leuko.data.tools.split import cost, divide, join, split

TYPES = ["NG", "BG", "EG", "L", "M"]


def samples(groups: list[str], labels: list[list[int]]) -> Dataset:
    box = [0, 0, 9, 9]
    return Dataset(
        TYPES,
        [
            Sample(Path(f"{i}.png"), 10, 10, [box] * len(kinds), kinds, id=i + 1, group=group)
            for i, (group, kinds) in enumerate(zip(groups, labels, strict=True))
        ],
    )


def costs(data: Dataset, ratios: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image its group, of each group its cells, images and 1, and the targets; written out anew."""
    names = sorted({s.group for s in data.samples})
    group = np.array([names.index(s.group) for s in data.samples])
    counts = np.zeros((len(names), len(TYPES) + 2))
    for g, s in zip(group, data.samples, strict=True):
        for label in s.labels:
            counts[g, label] += 1
        counts[g, 5] += 1
    counts[:, 6] = 1
    return group, counts, np.outer(np.array(ratios) / sum(ratios), counts.sum(0))


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.lists(st.integers(0, 4), max_size=4)), min_size=8, max_size=20),
    st.sampled_from([[4, 1], [1, 1], [2, 1, 1]]),
    st.integers(0, 99),
)
def test_few_groups_are_divided_as_well_as_can_be(images, ratios, seed):
    data = samples([g for g, _ in images], [k for _, k in images])
    group, counts, targets = costs(data, ratios)
    if len(counts) < len(ratios):
        return
    part = divide(data, ratios, seed)
    assert all(len(set(part[group == g])) == 1 for g in range(len(counts))) and set(part) == set(range(len(ratios)))
    assert (part == divide(data, ratios, seed)).all()
    of_group = np.array([part[group == g][0] for g in range(len(counts))])
    every = (np.array(p) for p in product(range(len(ratios)), repeat=len(counts)) if len(set(p)) == len(ratios))
    assert cost(of_group, counts, targets) == pytest.approx(min(cost(p, counts, targets) for p in every))


@pytest.mark.parametrize("ratios", [[4, 1], [7, 1, 2]])
def test_many_groups_are_divided_better_than_by_chance(ratios):
    """60 smears of 1 to 30 images: nearer to the targets than the best of 20,000 divisions at random."""
    rng = np.random.default_rng(3)
    groups = [f"{g}" for g in range(60) for _ in range(rng.integers(1, 30))]
    data = samples(
        groups, [rng.choice(5, rng.integers(0, 4), p=[0.48, 0.03, 0.13, 0.22, 0.14]).tolist() for _ in groups]
    )
    group, counts, targets = costs(data, ratios)
    part = divide(data, ratios, 0)
    of_group = np.array([part[np.flatnonzero(group == g)] for g in range(60)], dtype=object)
    assert all(len(set(p)) == 1 for p in of_group)
    ours = cost(np.array([p[0] for p in of_group]), counts, targets)
    share = np.array(ratios) / sum(ratios)
    assert ours < min(cost(rng.choice(len(ratios), 60, p=share), counts, targets) for _ in range(20_000)) / 3


def test_single_cells_are_spread_exactly():
    """As in the paper's data, a rare type gets its share, too."""
    rng = np.random.default_rng(0)
    labels = [[int(k)] for k in rng.choice(5, 2000, p=[0.48, 0.035, 0.13, 0.22, 0.135])]
    data = samples([""] * 2000, labels)
    part = divide(data, [4, 1], seed=1)
    for k in range(5):
        have = [sum(labels[i] == [k] for i in np.flatnonzero(part == s)) for s in (0, 1)]
        assert abs(have[1] - sum(have) / 5) <= 1


@pytest.fixture
def smears(tmp_path) -> Path:
    """12 images of 4 smears, as COCO, whose splits leak: each smear is in both."""
    data = samples([""] * 12, [[i % 5, (i + 2) % 5] for i in range(12)])
    for i, sample in enumerate(data.samples):
        sample.image = tmp_path / f"smear{i % 4}_{i}.png"
        sample.width = sample.height = 80
        sample.boxes = np.array([[2, 2, 40, 40], [30, 30, 79, 79]], dtype=np.float32)
        sample.group = f"smear{i % 4}"
        cv2.imwrite(str(sample.image), np.full((80, 80, 3), 20 * i, np.uint8))
    for name, part in (("train", data.samples[:8]), ("val", data.samples[6:]), ("test", data.samples[8:])):
        coco.write(Dataset(TYPES, part), tmp_path / "data", name)
    return tmp_path / "data"


def test_split_writes_what_it_promises(smears, tmp_path, leuko):
    result = leuko("data", "split", smears, tmp_path / "new", "--ratios", "1:1", "--names", "train,val")
    assert result.code == 0 and "4 groups, each in one split" in result.out and "cells (images)" in result.out
    parts = {name: source.load(tmp_path / "new", name) for name in ("train", "val")}
    assert [len(d) for d in parts.values()] == [6, 6]  # an image of two splits counts once
    groups = [{s.group for s in d.samples} for d in parts.values()]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 4

    folds = split(smears, tmp_path / "folds", folds=4, group_by=r"smear\d")
    assert [{s.group for s in d.samples} for d in folds.values()] != [{""}] * 4
    seen = []
    for i in range(1, 5):
        train, val = (source.load(tmp_path / f"folds/fold{i}.yaml", name) for name in ("train", "val"))
        assert (
            len(train) == 9 and len(val) == 3 and not {s.group for s in train.samples} & {s.group for s in val.samples}
        )
        seen += [s.image.name for s in val.samples]
    assert len(set(seen)) == 12


def test_what_is_fixed_is_reported_and_a_link_leads_to_the_folder(smears, tmp_path, leuko):
    file = smears / "train.json"
    file.write_text(file.read_text().replace("[2.0, 2.0, 38.0, 38.0]", "[-9.0, 2.0, 49.0, 38.0]", 1))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for force in ([], ["--force"]):
        result = leuko("data", "split", smears, tmp_path / "link", *force)
        assert result.code == 0 and "1 warnings, listed" in result.out, result.err
    assert (tmp_path / "link").is_symlink() and "clipped" in (tmp_path / "real/warnings.txt").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".png") == ["data", "link", "real"]


def test_an_image_that_two_splits_label_differently_is_reported(smears, tmp_path, leuko):
    content = json.loads((smears / "test.json").read_text())
    content["annotations"].reverse()  # which changes nothing
    (smears / "second_reader.json").write_text(json.dumps(content))
    assert leuko("data", "split", smears, tmp_path / "new").code == 0
    for key, value in (("bbox", [1, 2, 38, 38]), ("category_id", 3), ("iscrowd", 1)):
        changed = [*content["annotations"][:-1], content["annotations"][-1] | {key: value}]
        (smears / "second_reader.json").write_text(json.dumps(content | {"annotations": changed}))
        words = ["smear0_8.png: is labelled differently in val and in second_reader", "data YAML"]
        leuko("data", "split", smears, tmp_path / "bad").refused(*words)
    leuko("data", "stats", smears, "--save", tmp_path / "runs").refused(*words)
    assert not (tmp_path / "bad").exists()


def test_groups_by_csv_or_pattern(smears, tmp_path, leuko):
    table = tmp_path / "groups.csv"
    table.write_text("image,group\n" + "".join(f"{p.name},{p.stem[-1]}\n" for p in (smears / "images").iterdir()))
    yolo.write(source.load(smears, "train"), tmp_path / "yolo", "train")  # which holds groups in its side file
    parts = split(tmp_path / "yolo", tmp_path / "by_csv", group_by=str(table))
    # the CSV tells every image apart, but images of one smear by the data's own groups stay together, too
    assert {s.group for d in parts.values() for s in d.samples} == {"0+4", "1+5", "2+6", "3+7"}
    assert source.load(tmp_path / "by_csv", "train").groups() < {"0+4", "1+5", "2+6", "3+7"}
    words = ["data", "split", smears, tmp_path / "bad"]
    table.write_text(table.read_text().replace("\n", "\r"))  # as old spreadsheets end lines
    assert leuko("data", "split", smears, tmp_path / "by_old_csv", "--group-by", table).code == 0
    table.write_text(f"image,group\n{'x' * 200_000},a\n")
    leuko(*words, "--group-by", table).refused("groups.csv: line 2: broken CSV")
    table.write_text("image,group\nsmear0_0.png,a\n")
    leuko(*words, "--group-by", table).refused("groups.csv", "no group", "(11 of 12 images)")
    leuko(*words, "--group-by", "nothing").refused("no group")
    leuko(*words, "--group-by", "(").refused("not a regular expression")
    leuko(*words, "--ratios", "4:x").refused("--ratios")
    leuko(*words, "--ratios", "4").refused("two or more")
    leuko(*words, "--ratios", "1:1:1:1:1", "--names", "a,b,c,d,e").refused("4 groups cannot")
    leuko(*words, "--names", "a,a").refused("--names")
    leuko(*words, "--folds", "1").refused("at least 2")
    leuko("data", "split", smears, smears / "in").refused("lies in it")
    assert not (tmp_path / "bad").exists()


def test_own_groups_and_given_ones_stay_together(tmp_path):
    """Joined however they overlap: the same sets as by spreading a group's name until nothing changes any more."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        own = [f"p{n}" if n else "" for n in rng.integers(0, 5, 9)]
        given = [f"g{n}" for n in rng.integers(0, 6, 9)]
        reached = [{i} for i in range(9)]
        for _ in range(9):
            for i, j in product(range(9), repeat=2):
                if given[i] == given[j] or (own[i] and own[i] == own[j]):
                    reached[i] |= reached[j]
        names = join(own, given)
        for i, j in product(range(9), repeat=2):
            assert (names[i] == names[j]) == (j in reached[i])
        assert join([""] * 9, given) == given


def test_csv_goes_by_path(tmp_path, leuko):
    for i, folder in enumerate(("train", "test")):
        (tmp_path / "src" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "src" / folder / "001.png"), np.full((20, 20, 3), 90 * i, np.uint8))
        sample = Sample(tmp_path / "src" / folder / "001.png", 20, 20, [[1, 1, 9, 9]], [i], id=i + 1)
        coco.write(Dataset(TYPES, [sample]), tmp_path / "data" / folder, folder)
    table = tmp_path / "groups.csv"
    table.write_text("image,group\ntrain/images/001.png,A\ntest/images/001.png,C\n")
    parts = split(tmp_path / "data", tmp_path / "new", ratios="1:1", group_by=str(table))
    assert {s.image.parts[-3]: s.group for d in parts.values() for s in d.samples} == {"train": "A", "test": "C"}
    words = ["data", "split", tmp_path / "data", tmp_path / "bad", "--group-by", table]
    table.write_text("image,group\n001.png,A\n001.png,C\n")
    leuko(*words).refused("001.png has two of group: A and C")
    table.write_text("image,group\ntrain/images/001.png,A\n")
    leuko(*words).refused("no group", "(1 of 2 images)")


@pytest.mark.parametrize("names", ["leuko,test", "x2016,x2017", "train,instances_val"])
def test_names_that_would_not_read_back_are_refused(names, smears, tmp_path, leuko):
    leuko("data", "split", smears, tmp_path / "new", "--names", names).refused("would not read back")
    assert not (tmp_path / "new").exists()


def test_force_replaces_folds_but_nothing_else(smears, tmp_path, leuko):
    words = ["data", "split", smears, tmp_path / "new", "--folds", "2"]
    assert leuko(*words).code == 0 and leuko(*words, "--force").code == 0
    (tmp_path / "own/images").mkdir(parents=True)
    own = [tmp_path / "own/images" / name for name in ("raw.tif", "a.png")]
    for path in own:
        path.write_bytes(b"mine")
    words[3] = tmp_path / "own"
    leuko(*words, "--force").refused("holds no data set to replace")
    notes = tmp_path / "new/images/notes.docx"
    notes.touch()
    words[3] = tmp_path / "new"
    leuko(*words, "--force").refused("notes.docx", "no part of a data set")
    assert notes.exists() and all(path.read_bytes() == b"mine" for path in own)


def test_leaking_groups_are_refused(smears, tmp_path, leuko):
    assert source.groups(smears, "validation") == source.groups(smears, "val") == {f"smear{i}" for i in range(4)}
    words = ["train", "--data", smears, "--project", tmp_path / "runs", *TINY, *FCOS]
    leuko(*words).refused("groups have images in train and in val", "smear0", "leuko data split")
    assert not (tmp_path / "runs").exists()
    assert leuko(*words, "--allow-leaks").code == 0
    file = untrained(tmp_path / "weights.safetensors", TYPES)
    assert leuko("train", "--resume", tmp_path / "runs/fcos", "--epochs", "2", "--allow-leaks").code == 0
    words = ["val", "--weights", file, "--data", smears, "--save", tmp_path / "val"]
    leuko(*words).refused("in train and in test", "--allow-leaks")
    assert leuko(*words, "--allow-leaks").code == 0


def test_leak_between_train_and_test_is_reported_before_models_are_trained(smears, tmp_path, leuko):
    """And images of the training split need not be there to measure another one."""
    (smears / "val.json").unlink()
    words = ["train", "--data", smears, "--project", tmp_path / "runs", *TINY, "--epochs", "1", "--model", "fcos,fsaf"]
    leuko(*words, "--val-split", "test").refused("in train and in test")
    assert not (tmp_path / "runs").exists()
    assert leuko(*words, "--val-split", "test", "--allow-leaks").code == 0
    assert (tmp_path / "runs/comparison/table/table.json").is_file()

    only = {s.image for s in source.load(smears, "train").samples} - {
        s.image for s in source.load(smears, "test").samples
    }
    for image in only:
        image.unlink()
    file = untrained(tmp_path / "weights.safetensors", TYPES)
    words = ["val", "--weights", file, "--data", smears, "--save", tmp_path / "val"]
    leuko(*words).refused("in train and in test")
    assert leuko(*words, "--allow-leaks").code == 0
