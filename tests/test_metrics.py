"""COCO's measures, the differential count, and what a model costs."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from leuko.data.dataset import Dataset, Sample
from leuko.detections import Detections
from leuko.engine import cost
from leuko.errors import LeukoError
from leuko.metrics import bootstrap, coco

TYPES = ["NG", "BG", "EG", "L", "M"]


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 400, (n, 2))
    return np.hstack([corner, corner + rng.uniform(20, 150, (n, 2))]).astype(np.float32)


def random_case(seed: int) -> tuple[Dataset, list[Detections]]:
    """Few images, many of them without cells or detections; near misses, duplicates, tied scores, crowds."""
    rng = np.random.default_rng(seed)
    types = TYPES[: rng.integers(1, 6)]
    labelled = max(1, len(types) - rng.integers(0, 3))  # the last types may have no cell
    samples, predictions = [], []
    for i in range(rng.integers(1, 8)):
        cells = rng.integers(0, 5)
        gt_boxes, labels = random_boxes(rng, cells), rng.integers(0, labelled, cells)
        samples.append(Sample(Path(f"{i}.jpg"), 600, 600, gt_boxes, labels, id=7, crowd=rng.random(cells) < 0.2))
        of_cell = np.repeat(np.arange(cells), rng.integers(0, 3, cells))
        extra = rng.integers(0, 6)
        boxes = np.vstack([gt_boxes[of_cell] + rng.normal(0, 6, (len(of_cell), 4)), random_boxes(rng, extra)])
        guesses = np.concatenate([labels[of_cell], rng.integers(0, len(types), extra)])
        scores = rng.random(len(boxes)).round(rng.integers(1, 4)) * (seed % 10 > 0)
        kept = slice(0 if seed % 7 == 0 else None)  # now and then nothing is detected at all
        order = np.argsort(-scores, kind="stable")[kept]
        predictions.append(Detections(boxes[order], scores[order], guesses[order]))
    return Dataset(types, samples), predictions


def by_pycocotools(dataset: Dataset, predictions: list[Detections], most: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Precision [10, 101, types] and recall [10, types] by the field's own evaluator; nan for types without cells. It
    reads the results as ``to_coco_results`` writes them, but for their rounding."""

    def annotations(cells: list[Sample] | list[Detections], key: str) -> list[dict]:
        rows = [(i, c, k) for i, c in enumerate(cells) for k in range(len(c.boxes))]
        about = [{"id": n, "image_id": i, "category_id": int(c.labels[k])} for n, (i, c, k) in enumerate(rows, 1)]
        for row, (_, c, k) in zip(about, rows, strict=True):
            x0, y0, x1, y1 = c.boxes[k].astype(float)
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), key: getattr(c, of[key])[k]}
        return about

    of = {"iscrowd": "crowd", "score": "scores"}
    gt, results = COCO(), COCO()
    for index, cells, key in ((gt, dataset.samples, "iscrowd"), (results, predictions, "score")):
        index.dataset = {"images": [{"id": i} for i in range(len(dataset))], "annotations": annotations(cells, key)}
        index.dataset["categories"] = [{"id": k} for k in range(len(dataset.types))]
        index.createIndex()
    evaluator = COCOeval(gt, results, "bbox")
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, np.inf]], ["all"]
    evaluator.params.maxDets = [most]
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = (evaluator.eval[name][..., 0, 0] for name in ("precision", "recall"))
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def assert_measures_are_pycocotools(dataset: Dataset, predictions: list[Detections], most: int = 100) -> float:
    """The mAP is returned."""
    e = coco.evaluate(dataset, predictions, most)
    precision, recall = by_pycocotools(dataset, predictions, most)
    for k, of_type in enumerate(e.per_class):
        wanted = [v[..., k].mean() for v in (precision, precision[0], precision[5], recall)]
        ours = [of_type.AP, of_type.AP50, of_type.AP75, of_type.AR]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-12)
    known = ~np.isnan(recall[0])
    wanted = [v[..., known].mean() if known.any() else np.nan for v in (precision, precision[0], precision[5], recall)]
    np.testing.assert_allclose([e.mAP, e.mAP50, e.mAP75, e.mAR], wanted, rtol=0, atol=1e-12)
    return e.mAP


def test_measures_are_pycocotools():
    measured = np.array([assert_measures_are_pycocotools(*random_case(seed)) for seed in range(300)])
    assert np.isnan(measured).any() and (measured == 0).any() and (measured > 0.3).any()


@pytest.mark.parametrize("number", [7, 100, 150, 300])
def test_a_crowded_image_is_measured_with_as_many_detections_as_asked_for(number):
    """150 cells, found but for jitter, and 100 false detections between them; pycocotools with the same maxDets."""
    rng = np.random.default_rng(5)
    boxes = np.array([[x, y, x + 15, y + 15] for y in range(0, 200, 20) for x in range(0, 300, 20)], np.float32)
    data = Dataset(["RBC"], [Sample(Path("a.jpg"), 300, 300, boxes, np.zeros(150), 1)])
    exact = [Detections(boxes, np.linspace(1, 0.5, 150), np.zeros(150))]
    share = min(number, 150) / 150
    perfect = coco.evaluate(data, exact, number)
    assert perfect.mAR == pytest.approx(share) and perfect.mAP == pytest.approx(share, abs=0.01)
    assert perfect.max_detections == number

    near = np.vstack([boxes + rng.normal(0, 1, boxes.shape), random_boxes(rng, 100)])
    predictions = [Detections(near, rng.permutation(250) / 250, np.zeros(250))]
    assert_measures_are_pycocotools(data, predictions, number)
    e = coco.evaluate(data, predictions, number)
    times = np.ones((1, 1), int)
    again = bootstrap.mean_measures(coco.match(data, predictions, number), times)[0]
    assert again == pytest.approx([e.mAP, e.mAR], abs=1e-6)


def test_average_precision_by_hand(capfd):
    """Two neutrophils, one found at IoU 0.81 above a false one: precision 1 up to recall .5, nothing after."""
    samples = [
        Sample(Path("a.jpg"), 600, 600, [[0, 0, 100, 100], [200, 200, 300, 300]], [0, 0], id=1),
        Sample(Path("b.jpg"), 600, 600, np.zeros((0, 4)), [], id=2),
    ]
    predictions = [Detections([[0, 0, 90, 90]], [0.9], [0]), Detections([[5, 5, 50, 50]], [0.8], [0])]
    e = coco.evaluate(Dataset(["NG", "BG"], samples), predictions)
    half = 51 / 101  # COCO reads precision at recall 0, .01 ... 1
    assert e.mAP50 == pytest.approx(half) and e.mAP75 == pytest.approx(half)
    assert e.mAP == pytest.approx(half * 0.7) and e.mAR == pytest.approx(0.5 * 0.7)  # IoU .50 to .80 of .50 to .95
    assert (e.cells, e.images) == (2, 2)
    neutrophils, basophils = e.per_class
    assert (neutrophils.cells, neutrophils.images, neutrophils.AP50) == (2, 1, pytest.approx(half))
    assert basophils.cells == 0 and np.isnan([basophils.AP, basophils.AP50, basophils.AP75, basophils.AR]).all()
    assert capfd.readouterr() == ("", "")


def test_predictions_that_do_not_fit():
    data = Dataset(["NG"], [Sample(Path("a.jpg"), 600, 600, [[0, 0, 9, 9]], [0], id=1)])
    box = [[0.0, 0.0, 9.0, 9.0]]
    for bad, words in {
        "count": ([], "0 for a data set of 1 images"),
        "nan": ([Detections(box, [np.nan], [0])], "a.jpg: detection 0: its score is nan"),
        "box": ([Detections([[0, 0, np.inf, 9]], [0.5], [0])], "a.jpg: detection 0: its box is"),
        "label": ([Detections(box, [0.5], [1])], "a.jpg: detection 0: label 1 of 1 types"),
        "lengths": ([Detections(box, [0.5, 0.4], [0])], "a.jpg: 1 boxes, 2 scores"),
    }.values():
        for function in (coco.evaluate, coco.to_coco_results):
            with pytest.raises(LeukoError, match=words):
                function(data, bad)


@pytest.mark.parametrize("seed", [1, 32, 50])
def test_coco_results_measure_the_same(seed):
    """The file's numbers, with the data set's own ids, give another evaluator what ``evaluate`` said."""
    data, predictions = random_case(seed)
    data.category_ids = [10 + 3 * k for k in range(len(data.types))]
    annotations = []
    for i, sample in enumerate(data.samples):
        sample.id = 100 + i
        for (x0, y0, x1, y1), label, crowd in zip(sample.boxes.tolist(), sample.labels, sample.crowd, strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(crowd)}
            ids = {"id": len(annotations) + 1, "image_id": sample.id, "category_id": data.category_ids[label]}
            annotations.append({**ids, **box})
    reference = COCO()
    reference.dataset = {
        "images": [{"id": s.id} for s in data.samples],
        "categories": [{"id": i} for i in data.category_ids],
        "annotations": annotations,
    }
    reference.createIndex()
    evaluator = COCOeval(reference, reference.loadRes(coco.to_coco_results(data, predictions)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    e = coco.evaluate(data, predictions)
    assert evaluator.stats[[0, 1, 2, 8]] == pytest.approx([e.mAP, e.mAP50, e.mAP75, e.mAR], abs=1e-9)
    assert coco.to_coco_results(data, [Detections([], [], [])] * len(data)) == []


def test_parameters_count_all_and_operations_count_two_per_multiply_add():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
    model[0].requires_grad_(False)
    assert cost.parameters(model) == (4 * 3 * 9 + 4) + (4 * 64 * 2 + 2)
    multiply_adds = 8 * 8 * 4 * 3 * 9 + 4 * 64 * 2
    measured = cost.gflops(lambda images: model(torch.stack(images)), 8, torch.device("cpu"))
    assert measured == pytest.approx(2 * multiply_adds / 1e9)


def test_percentiles_are_milliseconds():
    seconds = np.arange(101) / 1000  # 0 to 100 ms
    assert cost.percentiles(seconds) == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is measured on Linux")
def test_the_peak_memory_of_one_model_is_not_that_of_the_process():
    """A model after a larger one shows its own peak."""

    def peak(megabytes: int) -> float:
        cost.reset_peak_memory(torch.device("cpu"))
        before = cost.peak_memory(torch.device("cpu"))
        # From the system itself: an allocator may hold as much that is free, and resident already.
        with mmap.mmap(-1, megabytes * 2**20) as memory:
            for _ in range(megabytes):
                memory.write(bytes([1]) * 2**20)
        return cost.peak_memory(torch.device("cpu")) - before

    assert 290 < peak(300) < 400
    assert 40 < peak(50) < 150
