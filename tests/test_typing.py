"""The typing stage: crops in one stain, its training, its use behind a detector, and what can be wrong with it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import STAGE, TYPES, table
from PIL import Image
from safetensors import safe_open

from leuko import Detector
from leuko.cells import NONE
from leuko.data.crops import crops_of, stain_of
from leuko.data.images import LoadedImage, read_image
from leuko.data.source import load
from leuko.detections import Detections
from leuko.engine.checkpoint import load_weights, save, transfer
from leuko.engine.ensemble import EnsembleMember
from leuko.models import create
from leuko.synth.stain import REFERENCE

# ---------------------------------------------------------------------- crops


def test_two_stains_become_one(centres):
    before, after = [], []
    for home, far in zip(*(load(centres[name], "train").samples for name in ("home", "far")), strict=True):
        raw, cut = [], []
        for sample in (home, far):
            pixels = read_image(sample.image)
            stain = stain_of(pixels, sample.boxes)
            assert np.abs(stain.to_reference() @ stain.nuclei - REFERENCE.nuclei).max() < 0.1
            raw.append(np.stack([cv2.resize(pixels[y : y + 24, x : x + 24], (24, 24)) for x, y in _middles(sample)]))
            cut.append(crops_of(pixels, sample.boxes, 48, 1.3).astype(float))
        before.append(np.abs(raw[0].astype(float) - raw[1]).mean())
        after.append(np.abs(cut[0] - cut[1]).mean())
    assert np.mean(before) > 12 and np.mean(after) < 0.25 * np.mean(before), (np.mean(before), np.mean(after))


def _middles(sample) -> list[tuple[int, int]]:
    """Where squares of 24 pixels in the middle of a sample's boxes begin."""
    corners = ((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2 - 12).round().astype(int)
    return [tuple(np.clip(corner, 0, [sample.width - 24, sample.height - 24])) for corner in corners]


def _by_hand(image: np.ndarray, box: list[float], side: int, view: float) -> np.ndarray:
    """A crop by its definition, pixel by pixel: bilinear, mirrored at the border."""
    (x0, y0, x1, y1), (height, width) = box, image.shape[:2]
    square = view * max(x1 - x0, y1 - y0)
    places = ((np.arange(side) + 0.5) / side - 0.5) * square - 0.5
    axes = []
    for at, number in (((y0 + y1) / 2 + places, height), ((x0 + x1) / 2 + places, width)):
        low = np.floor(at).astype(int)
        mirrored = [number - 1 - np.abs(number - 1 - np.abs(low + k)) for k in (0, 1)]
        axes.append((mirrored, at - low))
    ((top, bottom), v), ((left, right), u) = axes
    u, v = u[None, :, None], v[:, None, None]
    rows = [image[row][:, left] * (1 - u) + image[row][:, right] * u for row in (top, bottom)]
    return rows[0] * (1 - v) + rows[1] * v


def test_crops_have_the_cell_in_the_middle_at_one_scale():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(30, 235, (70, 90, 3)).astype(np.uint8), (0, 0), 2)
    boxes = [[30.3, 20.1, 50.9, 44.2], [0, 0, 20, 14], [70.5, 40, 90, 70], [41, 33, 42, 33.5]]
    for box, crop in zip(boxes, crops_of(image, np.float32(boxes), 48, 1.3, REFERENCE), strict=True):
        assert np.abs(crop - _by_hand(image, box, 48, 1.3)).max() < 2.5, box
    # Shrunk by area: a ramp stays a ramp, to a level, and a fine pattern becomes its mean.
    ramp = np.zeros((300, 400, 3), np.uint8)
    ramp[:] = (20 + 0.25 * np.arange(400) + 0.3 * np.arange(300)[:, None])[..., None].round()
    for box in ([100.3, 80, 260.1, 230], [0, 0, 160, 150]):
        (crop,) = crops_of(ramp, np.float32([box]), 32, 1.3, REFERENCE)
        margin = 0 if box[0] else 6  # beyond the border lies the mirror of means
        near = np.abs(crop.astype(float) - _by_hand(ramp, box, 32, 1.3))[margin:, margin:]
        assert near.max() < 3 and near.mean() < 1
    pattern = np.indices((300, 400)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200 + 20
    (crop,) = crops_of(pattern, np.float32([[100, 50, 300, 250]]), 32, 1.3, REFERENCE)
    assert np.abs(crop.astype(float) - 120).max() < 40 and abs(crop.mean() - 120) < 4
    assert crops_of(image, np.zeros((0, 4)), 32, 1.3).shape == (0, 32, 32, 3)


# ---------------------------------------------------------------------- leuko type


def test_type_learns_from_fields_and_crops(typed, detector, centres):
    weights = load_weights(typed)
    stage = weights.typer
    assert weights.types == stage.types == TYPES and weights.classes == stage.classes == ["leukocyte"]
    assert stage.view == 1.3 and stage.recipe["num_types"] == 5 and stage.recipe["side"] == 32
    before = load_weights(detector).state
    assert all(torch.equal(value, before[name]) for name, value in weights.state.items())
    home, far = (load(centres[name], "train").counts() for name in ("home", "far"))
    learned = stage.about["learned"]
    assert [learned["far"][t] for t in TYPES] == far.tolist() and 0 < learned["far"][NONE] <= 18
    assert [learned["home"][t] for t in TYPES] == (2 * home).tolist()  # the cells and their crops
    assert 6 < learned["home"][NONE] <= 6 + 18  # the dots, and a box beside the cells of each field
    assert set(stage.about["measured"]) == {"home, val", "far, val"}
    kept = stage.replay
    assert kept["features"].dtype == torch.float16 and len(kept["features"]) == len(kept["labels"])
    assert kept["labels"].unique().tolist() == [0, 1, 2, 3, 4, 5]
    for centre in ("home", "far"):
        rows = [row for row in table(typed / "confusion.csv") if row["centre"] == f"{centre}, val"]
        of_types = load(centres[centre], "val").counts()
        assert [sum(int(row[t]) for t in [*TYPES, NONE]) for row in rows] == of_types.tolist()
        right = sum(int(row[row["type"]]) for row in rows) / of_types.sum()
        assert stage.about["measured"][f"{centre}, val"]["right"] == pytest.approx(right)


def test_type_is_deterministic_and_tells(centres, detector, tmp_path, leuko):
    words = ["type", "--data", f"a={centres['home']}", f"b={centres['far']}", *STAGE, "--steps", "3"]
    words += ["--project", tmp_path]
    runs, crops = {}, ["--crops", f"b={centres['crops']}"]
    for name, more in (("one", []), ("two", []), ("seed", ["--seed", "1"]), ("out", ["--leave-out", "b", *crops])):
        result = leuko(*words, "--name", name, *more)
        assert result.code == 0, result.err
        runs[name] = load_weights(tmp_path / name)
    assert runs["one"].identity == runs["two"].identity != runs["seed"].identity
    assert not runs["one"].recipe and runs["one"].classes == [] and "--weights DETECTOR --typer" in result.out
    without = runs["out"].typer.about
    assert set(without["learned"]) == {"a"} and set(without["measured"]) == {"b", "b, crops", "a, val"}
    home = load(centres["home"], "train").counts().sum()  # whose cells the crops are
    assert without["measured"]["b, crops"]["cells"] == home
    assert f"{centres['crops']}: not measured, since no such type is learned: platelet" in result.out
    assert without["measured"]["b"]["cells"] == load(centres["far"], "train").counts().sum()

    crops = shutil.copytree(centres["crops"], tmp_path / "crops")
    (crops / ".trash").mkdir()
    for name in ("L", "platelet"):  # of a type it is left out, of none it is learned
        Image.new("RGB", (40, 40), (240, 240, 240)).save(crops / name / "empty.png")
    validated = replace(load_weights(detector), path=tmp_path / "validated.safetensors")
    validated.about["val"] = {"mAP": 0.5}
    save(validated)
    half = leuko(*words, "--crops", f"c={crops}", "--weights", validated.path, "--half", "--name", "half")
    assert half.code == 0 and f"{crops}: learned as none: platelet\n" in half.out
    assert f"{crops}: 1 crops of types without a nucleus" in half.out and "predict --weights" in half.out
    weights = load_weights(tmp_path / "half")
    assert weights.typer.about["learned"]["c"]["none"] == len(list((crops / "platelet").iterdir()))
    assert "val" not in weights.about and weights.about["epoch"] == 1  # its mAP was that of other types
    kinds = {value.dtype for part in (weights.state, weights.typer.state) for value in part.values()}
    assert (
        kinds == {torch.float16, torch.int64} and weights.typer.build(weights.path).last.weight.dtype == torch.float32
    )
    alone = leuko("type", "--crops", crops, *STAGE, "--steps", "2", "--project", tmp_path, "--name", "alone")
    assert alone.code == 0 and load_weights(tmp_path / "alone").types == TYPES
    only = leuko(*words, "--crops", f"c={crops}", "--leave-out", "c", "--name", "only")
    assert only.code == 0 and load_weights(tmp_path / "only").typer.about["measured"]["c, crops"]["cells"] == home


def test_types_to_measure_are_learned_somewhere(centres, tmp_path, leuko):
    """Data sets of which one split has the type "band" where the others have BG, in folders called with a =."""
    odd = {}
    for split in ("train", "val"):
        odd[split] = shutil.copytree(centres["home"], tmp_path / f"split={split}" / "slides")
        path = odd[split] / f"{split}.json"
        path.write_text(path.read_text().replace('"BG"', '"band"'))
    words = ["type", *STAGE, "--steps", "2", "--project", tmp_path / "runs", "--name", "odd", "--data"]
    leuko(*words, odd["val"]).refused(f"{odd['val']}: its split val", 'the type "band"', "map or ignore it")
    leuko(*words, f"a={centres['home']}", f"b={odd['train']}", "--leave-out", "b").refused(
        f"{odd['train']}: its split train", 'the type "band"', "NG, BG, EG, L, M"
    )
    assert not (tmp_path / "runs").exists()
    both = leuko(*words, odd["val"], odd["train"])
    assert both.code == 0, both.err
    weights = load_weights(tmp_path / "runs/odd")
    assert sorted(weights.types) == sorted([*TYPES, "band"])
    assert set(weights.typer.about["learned"]) == {str(path) for path in odd.values()}


# ---------------------------------------------------------------------- in use


def test_scores_are_those_of_boxes_times_probabilities(typed, oracle, centres):
    member = EnsembleMember.load(typed)
    net, stage = load_weights(typed).typer.build(typed), load_weights(typed).typer
    samples = load(centres["far"], "train").samples[:5]
    first = samples[0]
    around = np.concatenate([first.boxes, first.boxes[:1] + 2, [[1, 1, 9, 9]]])  # one cell found twice, and a weak one
    oracle.tell(first.image, around, np.float32([*np.linspace(0.9, 0.7, len(first.boxes)), 0.6, 0.04]))
    images = [LoadedImage.of_file(sample.image, member.sizes, True) for sample in samples]
    blank = LoadedImage.of_pixels(np.full((128, 128, 3), 240, np.uint8), member.sizes)
    together = member.detect([*images, blank])
    for sample, image, found in zip(samples, images, together, strict=False):
        number = len(sample.boxes)
        scores = np.linspace(0.9, 0.7 if sample is first else 0.6, number)
        crops = crops_of(image.pixels, sample.boxes, 32, stage.view, stain_of(image.pixels, sample.boxes))
        with torch.no_grad():
            logits = net(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
        expected = scores[:, None] * logits.softmax(1)[:, :5].numpy()
        assert len(found) == 5 * number and found.types == tuple(TYPES) and (np.diff(found.scores) <= 0).all()
        for k, box in enumerate(sample.boxes):
            mine = found[(found.boxes == box).all(1)]
            assert len(mine) == 5 and expected[k].sum() < scores[k]
            assert mine.scores[np.argsort(mine.labels)] == pytest.approx(expected[k], abs=1e-5)
        (alone,) = member.detect([image])
        assert np.array_equal(alone.boxes, found.boxes) and alone.scores == pytest.approx(found.scores, abs=1e-6)
    assert len(together[-1]) == 0 and together[-1].types == tuple(TYPES)
    # Some detections of a score near that of others: only those far below the best do not show the stain.
    sure = Detections(first.boxes, [1.0, *[0.4] * (len(first.boxes) - 1)], np.zeros(len(first.boxes)))
    cut = member.typing.crops(images[0].pixels, first.boxes, sure)
    assert np.array_equal(
        cut, crops_of(images[0].pixels, first.boxes, 32, 1.3, stain_of(images[0].pixels, first.boxes[:1]))
    )


def test_commands_take_the_stage_from_the_file_or_another(typed, detector, oracle, centres, tmp_path, leuko):
    sample = load(centres["home"], "val").samples[0]
    words = ["predict", "--source", sample.image, "--threshold", "0.1", "--save", tmp_path]

    def cells(name: str, *more: str | Path) -> list[dict]:
        result = leuko(*words, "--name", name, *more)
        assert result.code == 0, result.err
        return table(tmp_path / name / "cells.csv")

    own, other = cells("own", "--weights", typed), cells("other", "--weights", detector, "--typer", typed)
    assert own == other and {row["best"] for row in own} <= set(TYPES) and len(own) >= 2
    assert {row["best"] for row in cells("off", "--weights", typed, "--typer", "off")} == {"leukocyte"}
    found = Detector(typed).predict(sample.image, threshold=0.1)
    rows = sorted((row["best"], float(row["score"])) for row in own if float(row["score"]) >= 0.1)
    assert sorted((cell.type, round(cell.score, 4)) for cell in found) == rows
    pixels = Detector(typed).predict(read_image(sample.image), threshold=0.1)
    assert np.array_equal(pixels.scores, found.scores)
    of_another = Detector(detector, typer=str(typed))
    assert of_another.types == tuple(TYPES) and Detector(typed, typer="off").types == ("leukocyte",)
    assert np.array_equal(of_another.predict(sample.image, threshold=0.1).scores, found.scores)
    fused = cells("fused", "--ensemble", detector, typed, "--typer", typed)
    assert [(r["best"], r["x0"], r["y1"]) for r in fused] == [(r["best"], r["x0"], r["y1"]) for r in own]
    leuko(*words, "--ensemble", typed, detector).refused('knows the type "leukocyte"')
    leuko(*words, "--weights", detector, "--typer", detector).refused(str(detector), "no typing stage", "leuko type")

    common = ["--data", centres["home"], "--split", "val", "--draws", "0", "--workers", "0", "--save", tmp_path / "val"]
    own = shutil.copytree(typed, tmp_path / "stage")  # which is written again, with a threshold
    assert leuko("val", "--weights", own, *common, "--batch", "3", "--tune-split", "train").code == 0
    measured = json.loads((tmp_path / "val/stage/metrics.json").read_text())
    assert measured["mAP"] == pytest.approx(Detector(typed).val(centres["home"], "val", workers=0).mAP, abs=1e-6)
    kept = load_weights(own)
    assert "counting" in kept.about and kept.typer.replay and kept.classes == ["leukocyte"]


def test_a_detector_with_a_stage_is_fine_tuned_by_its_own_types(typed):
    weights = load_weights(typed)
    for types, known in ((TYPES, []), (["leukocyte"], ["leukocyte"])):
        model = create("fcos", len(types), "mobilenetv3_small_050", image_size=128, channels=32)
        assert transfer(weights, model, types) == known
        own = model.state_dict()
        assert all(torch.equal(own[k], v) for k, v in weights.state.items() if types == known or "backbone" in k)


# ---------------------------------------------------------------------- what can be wrong


def change(path: Path, edit: Callable[[dict, dict], None], to: Path) -> Path:
    """A copy of a weights file whose metadata and tensors are edited."""
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["leuko"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    edit(document, tensors)
    safetensors.torch.save_file(tensors, to, {"leuko": json.dumps(document)})
    return to


HOSTILE = {
    "but its typing stage": lambda d, t: d["typer"]["recipe"].update(num_types=6),
    "classes": lambda d, t: d["typer"].update(classes=["a", "b"]),
    "types NG, BG": lambda d, t: d["typer"].update(types=TYPES[::-1]),
    "view": lambda d, t: d["typer"].update(view=0),
    "side": lambda d, t: d["typer"]["recipe"].update(side=10**6),
    "box_factors": lambda d, t: d["typer"]["about"].update(box_factors=[1, 9]),
    "not two": lambda d, t: d["typer"]["about"].update(box_factors=[1]),
    "shift": lambda d, t: d["typer"]["about"].update(shift=[0.0] * 4),
    "adapted": lambda d, t: d["typer"]["about"].update(adapted=5),
    "weights do not fit": lambda d, t: d["typer"]["recipe"].update(backbone="test_efficientnet"),
    "unknown to timm": lambda d, t: d["typer"]["recipe"].update(backbone="hf-hub:a/b"),
    "numbers are needed": lambda d, t: d["typer"]["recipe"].update(backbone="convnext_xxlarge", side=64),
    "does not take crops": lambda d, t: d["typer"]["recipe"].update(backbone="vit_tiny_patch16_224"),
    "Missing key": lambda d, t: t.pop("typer.net.net.fc.weight"),
    "nexpected key": lambda d, t: t.update({"typer.net.more": torch.zeros(1)}),
    "learned, [1, 3]": lambda d, t: t.update({"typer.replay.features": torch.zeros(1, 3)}),
    "cells that it has learned": lambda d, t: t.update({"typer.replay.labels": t["typer.replay.labels"] + 9}),
    "'labels'": lambda d, t: t.pop("typer.replay.labels"),
    'unknown "pretrained"': lambda d, t: d["typer"]["recipe"].update(pretrained=True),
}


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_files_are_refused(typed, tmp_path, leuko, pictures, word):
    bad = change(typed / "weights/best.safetensors", HOSTILE[word], tmp_path / "bad.safetensors")
    leuko("predict", "--weights", bad, "--source", pictures[0], "--save", tmp_path / "out").refused(str(bad), word)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def odd(centres, tmp_path) -> dict[str, Path]:
    """Data sets and folders of crops with which something is wrong."""
    sample = load(centres["home"], "train").samples[0]
    pixels, box = read_image(sample.image), sample.boxes[0].tolist()
    flat, thin = np.full((7, 300, 3), 200, np.uint8), np.full((300, 2, 3), 90, np.uint8)
    folders = {
        "one type": fields(tmp_path / "one", [(pixels, [box], [0])], ["NG"]),
        "one cell": fields(tmp_path / "cell", [(pixels, [box], [2])]),
        "no cell": fields(tmp_path / "none", [(pixels, [], [])]),
        "outside": fields(tmp_path / "outside", [(pixels, [[-50, -50, -10, -10]], [2])]),
        "tiny": fields(
            tmp_path / "tiny",
            [
                (flat, [[0, 0, 7, 7], [290, 0, 300, 7]], [0, 1]),
                (thin, [[0, 0, 2, 5]], [0]),
                (flat[:1, :1], [], []),
                (pixels, [[10, 10, 11.5, 11.5], [120, 120, 160, 160]], [1, 4]),
            ],
        ),
        "cut off": fields(tmp_path / "cut", [(pixels, [box], [2]), (pixels[::-1], [box], [1])]),
    }
    image = tmp_path / "cut/train/2.png"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    for name in ("no folder", "empty folders", "broken crop", "no nucleus"):
        folders[name] = tmp_path / name
        (folders[name] / ("L" if name != "no folder" else "")).mkdir(parents=True)
    (tmp_path / "broken crop/L/1.png").write_text("no image")
    Image.new("RGB", (50, 50), (240, 240, 240)).save(tmp_path / "no nucleus/L/1.png")
    return folders


def fields(folder: Path, samples: list[tuple[np.ndarray, list, list]], types: list[str] = TYPES) -> Path:
    """Write a COCO data set of one split, boxes as xyxy."""
    (folder / "train").mkdir(parents=True)
    images, annotations = [], []
    for i, (pixels, boxes, labels) in enumerate(samples, 1):
        Image.fromarray(pixels).save(folder / f"train/{i}.png")
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        images.append({"id": i, "file_name": f"train/{i}.png", **size})
        for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
            about = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "area": 1, "iscrowd": 0}
            annotations.append({**about, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(types)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(document))
    return folder


def test_type_refuses_what_it_cannot_use(odd, centres, detector, tmp_path, leuko):
    project = tmp_path / "runs"
    home, words = centres["home"], ["type", *STAGE, "--steps", "2", "--project", project]
    leuko(*words).refused("--data and --crops are missing")
    for name in ("one type", "one cell", "no cell"):
        leuko(*words, "--data", odd[name]).refused("fewer than two types", "name more data")
    leuko(*words, "--crops", odd["no nucleus"]).refused("fewer than two types")
    leuko(*words, "--data", odd["outside"]).refused("outside the image", "annotation 1")
    leuko(*words, "--data", odd["cut off"]).refused(str(odd["cut off"] / "train/2.png"), "not a readable image")
    leuko(*words, "--data", home, "--crops", odd["no folder"]).refused(str(odd["no folder"]), "a folder of images per")
    leuko(*words, "--data", home, "--crops", odd["empty folders"]).refused("empty folders: no crops there")
    leuko(*words, "--data", home, "--crops", odd["broken crop"]).refused("broken crop/L/1.png: not a readable image")
    leuko(*words, "--data", f"a={home}", "--leave-out", "b").refused("--leave-out b", "centres a")
    leuko(*words, "--data", f"a={home}", "--leave-out", "a").refused("fewer than two types")
    leuko(*words, "--data", home, "--train-split", "tset").refused('no split "tset"')
    band = tmp_path / "band.safetensors"
    shutil.copy(detector, band)
    two = create("fcos", 2, "mobilenetv3_small_050", image_size=128, channels=32)
    document = {"recipe": two.recipe, "types": ["NG", "band"], "about": {}}
    safetensors.torch.save_file(two.state_dict(), band, {"leuko": json.dumps(document)})
    leuko(*words, "--data", home, "--weights", band).refused('the type "band"', "add data with it")
    leuko(*words, "--data", home, "--weights", tmp_path / "no").refused("no such run or weights file")
    for option, value in (("--side", "31"), ("--view", "9"), ("--steps", "1"), ("--lr", "1"), ("--seed", "-1")):
        leuko(*words, "--data", home, option, value).refused(f"{option} {value}")
    leuko(*words, "--data", home, "--backbone", "resnet999").refused("resnet999", "unknown to timm")
    leuko(*words, "--data", home, "--backbone", "vit_tiny_patch16_224").refused("does not take crops of 32 pixels")
    leuko(*words, "--data", home, "--name", "a/b").refused("not a plain folder name")
    assert not project.exists() or not list(project.iterdir())
    file = tmp_path / "file"
    file.write_text("")
    before = file.stat().st_mtime_ns
    leuko("type", "--data", home, *STAGE, "--project", file).refused(str(file), "cannot be written")  # not in the end
    assert file.stat().st_mtime_ns == before
    small = leuko(*words, "--data", odd["tiny"], "--name", "tiny")
    assert small.code == 0 and "NG 2, BG 2, M 1" in small.out, small.err


def test_ctrl_c_leaves_nothing(centres, tmp_path, start):
    words = ["--data", centres["home"], *STAGE, "--steps", "100000", "--project", tmp_path / "runs"]
    process = start("leuko.type", *words)
    seen = ""
    while "loss=" not in seen:
        assert process.poll() is None, seen
        seen += process.stderr.read(50)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in seen + err
    assert not list((tmp_path / "runs").iterdir())
