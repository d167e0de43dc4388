"""How far a count is off, by type: of all detections from .5 on, and of one type per cell from the best threshold on.

    python benchmarks/count_error.py runs/train/fcos datasets/smears --tune-split val

Prints a table in Markdown: of each type the cells labelled, and found in three ways; the sums over the types of the
difference without its sign, for the whole split and summed image by image; and the pairs of counted boxes that overlap
by more than half. The threshold is found on the split to tune on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from leuko.data import source
from leuko.data.dataset import Dataset
from leuko.detections import Detections
from leuko.engine.ensemble import EnsembleMember, load_members
from leuko.engine.evaluate import predict_by
from leuko.errors import LeukoError
from leuko.metrics.counting import SAME_CELL, best_threshold, one_type
from leuko.ops.pairs import box_iou
from leuko.report.tables import markdown

SCORE = 0.5


def predictions(member: EnsembleMember, dataset: Dataset) -> list[Detections]:
    """The detections of each image, with suppression by class."""
    return predict_by(member, dataset, workers=0).predictions


def counts(cells: Sequence[Detections], types: int) -> np.ndarray:
    """Cells per image and type, [images, types]."""
    return np.array([np.bincount(found.labels, minlength=types) for found in cells])


def doubles(cells: Sequence[Detections]) -> int:
    """Pairs of boxes of one image that overlap by more than half."""
    return sum(int((np.triu(box_iou(found.boxes, found.boxes), 1) > SAME_CELL).sum()) for found in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--tune-data", default="", help="the data to find the threshold on, if not the same")
    parser.add_argument("--tune-split", default="val")
    parser.add_argument("--imgsz", type=int, nargs="+", default=())
    options = parser.parse_args()
    (member,) = load_members([options.weights], "cpu", options.imgsz)
    dataset = source.load(options.data, options.split)
    tune = source.load(options.tune_data or options.data, options.tune_split)
    types = len(dataset.types)
    one = [one_type(p, types) for p in predictions(member, tune)]
    threshold = best_threshold(tune, one)
    if threshold is None:
        raise LeukoError(f"{options.weights}: finds nothing right on {options.tune_split}")
    raw = predictions(member, dataset)
    one = [one_type(p, types) for p in raw]
    ways = {
        f"by class, {SCORE}": [p.above(SCORE) for p in raw],
        f"one type, {SCORE}": [p.above(SCORE) for p in one],
        f"one type, {threshold:.3f}": [p.above(threshold) for p in one],
    }
    labelled = dataset.counts_per_image()
    found = {name: counts(cells, types) for name, cells in ways.items()}
    lines = [["type", "labelled", *ways]]
    for k, name in enumerate(dataset.types):
        lines.append([name, *(str(n[:, k].sum()) for n in (labelled, *found.values()))])
    lines.append(["off in all", "", *(str(np.abs(n.sum(0) - labelled.sum(0)).sum()) for n in found.values())])
    lines.append(["off image by image", "", *(str(np.abs(n - labelled).sum()) for n in found.values())])
    lines.append(["pairs over half", "", *(str(doubles(cells)) for cells in ways.values())])
    print(markdown(lines))


if __name__ == "__main__":
    main()
