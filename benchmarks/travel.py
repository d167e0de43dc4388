"""A centre that was left out: what a detector and a typing stage do there, and what adapting them brings.

    python benchmarks/travel.py --data krd.json --detector runs/train/without-krd --typer runs/type/without-krd

Neither has seen the centre. The table has a row for: nothing of the centre; its fields without labels, all of them or
three draws of --cells cells; and 5, 10 and 20 of its fields with labels as well, the mean and the range of ten draws,
measured on the remaining fields. Columns: cells found (a box at IoU .5), the share of them with the right type, the
same of NG, L and M alone, Cohen's kappa, mAP (and of these three types, and with types ignored), and the error of the
count: the sum over types of |count - truth| per cell, by the score that was found, or by .3.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.engine.adaptation import SHARE, Adapted, LabelledCells, adapt_typer, probabilities, with_statistics
from leuko.engine.checkpoint import load_weights
from leuko.engine.ensemble import EnsembleMember
from leuko.engine.laboratory import LabelledFields, in_types
from leuko.engine.typer_training import TypingResult, features_of
from leuko.metrics import coco, counting
from leuko.runtime.typing_stage import typed as typed_cells

CPU = torch.device("cpu")
THRESHOLD = 0.3
SURE = ("NG", "L", "M")  # the types whose labels are beyond doubt, and not rare, at all three centres


def subset(fields: LabelledFields, chosen: np.ndarray) -> LabelledFields:
    """Some of the fields."""
    dataset = replace(fields.dataset, samples=[fields.dataset.samples[i] for i in chosen])
    lists = (fields.found, fields.found_crops, fields.crops, fields.of_cell)
    return LabelledFields(dataset, *([each[i] for i in chosen] for each in lists))


def measure(fields: LabelledFields, chances: list[np.ndarray], factors: tuple[float, float], threshold: float) -> dict:
    """The measures of found cells with their probabilities [cells, K + 1] on each field."""
    dataset, types = fields.dataset, fields.dataset.types
    number, predictions, true, given = len(types), [], [], []
    for sample, found, of_cell, each in zip(dataset.samples, fields.found, fields.of_cell, chances, strict=True):
        size = sample.width, sample.height
        predictions.append(typed_cells(found, each[:, :-1], types, factors, size)[:100])
        pairs = of_cell >= 0
        true += sample.labels[~sample.crowd][pairs].tolist()
        given += each[of_cell[pairs], :-1].argmax(1).tolist()
    true, given = np.array(true), np.array(given)
    cells = [counting.one_type(p, number).above(threshold) for p in predictions]
    counted = sum(np.bincount(c.labels, minlength=number) for c in cells)
    alone = replace(dataset, types=["cell"], category_ids=[], samples=[one_class(s) for s in dataset.samples])
    merged = [counting.one_type(replace(p, labels=np.zeros(len(p), int)), 1) for p in predictions]
    seen = np.array([types.index(t) for t in types if t in SURE])
    evaluation, of_any = coco.evaluate(dataset, predictions, 100), coco.evaluate(alone, merged, 100)
    common = np.isin(true, seen)
    return {
        "cells": int(dataset.counts().sum()),
        "found": len(true),
        "right": float((true == given).mean()),
        "right NG L M": float((true == given)[common].mean()),
        "kappa": TypingResult.of(true, np.eye(number + 1)[given], number).kappa,
        "mAP": evaluation.mAP,
        "mAP NG L M": float(np.mean([row.AP for row in evaluation.per_class if row.type in SURE])),
        "mAP any": of_any.mAP,
        "mAP50 any": of_any.mAP50,
        "count error": float(np.abs(counted - dataset.counts()).sum() / dataset.counts().sum()),
    }


def one_class(sample: Sample) -> Sample:
    """The sample with all cells of one class."""
    return replace(sample, labels=np.zeros_like(sample.labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--typer", required=True)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--labelled", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--cells", type=int, nargs="*", default=[100])
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    member = EnsembleMember.load(args.detector, typer=args.typer)
    stored = load_weights(args.typer).typer
    net = stored.build(Path(args.typer))
    dataset: Dataset = in_types(source.load(args.data, source.splits(args.data)[0]), stored.types, args.data)
    fields = LabelledFields.of(member, dataset, 0)
    ends = np.cumsum([len(found) for found in fields.found])[:-1]
    crops = np.concatenate(fields.found_crops)
    sure = crops[np.concatenate([found.scores for found in fields.found]) >= 0.5 * THRESHOLD]
    stage = with_statistics(net, sure, SHARE, 0, CPU)
    features = {share: features_of(each, crops, CPU) for share, each in ((0.0, net), (SHARE, stage))}

    def typed(adapted: Adapted) -> list[np.ndarray]:
        with torch.no_grad():
            logits = adapted.net.last(features[adapted.about["statistics"]])
        return np.split(logits.double().softmax(1).numpy(), ends)

    def adapt(unlabelled: np.ndarray, labelled: LabelledCells | None = None, prior: bool = True) -> Adapted:
        about = {"prior": prior, "seed": 0, "device": CPU}
        return adapt_typer(net, stored.replay, unlabelled, labelled, stage=stage, **about)

    nothing = typed(Adapted(net, {"statistics": 0.0}, np.zeros(len(stored.types)), None))
    rows = {"nothing": [measure(fields, nothing, (1, 1), THRESHOLD)]}
    for name, prior in (("without labels, no shares", False), ("without labels", True)):
        rows[name] = [measure(fields, typed(adapt(sure, prior=prior)), (1, 1), THRESHOLD)]
    for few in args.cells:
        for draw in range(3):
            some = sure[np.random.default_rng(draw).choice(len(sure), few, replace=False)]
            other = adapt_typer(net, stored.replay, some, None, prior=True, seed=0, device=CPU).net
            chances = np.split(probabilities(other, crops, CPU), ends)
            rows.setdefault(f"{few} cells without labels", []).append(measure(fields, chances, (1, 1), THRESHOLD))
    for number in args.labelled:
        for draw in tqdm(range(args.draws), f"{number} labelled"):
            order = np.random.default_rng(draw).permutation(len(dataset))
            chosen, others = np.sort(order[:number]), np.sort(order[number:])
            ours, rest = subset(fields, chosen), subset(fields, others)
            adapted, factors = adapt(sure, ours.cells()), ours.box_factors()
            chances = typed(adapted)
            value, _ = ours.scores(member, adapted.chances, [chances[i] for i in chosen], factors)
            result = measure(rest, [chances[i] for i in others], factors, value or THRESHOLD)
            before = measure(rest, [nothing[i] for i in others], (1, 1), THRESHOLD)
            result["gain"] = result["right"] - before["right"]
            result["statistics"] = adapted.about["statistics"]
            result["last layer"] = float(adapted.about.get("last_layer", False))
            rows.setdefault(f"{number} fields with labels", []).append(result)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))
    for name, each in rows.items():
        cells = {k: [r[k] for r in each] for k in each[0]}
        print(
            name,
            {
                k: f"{np.mean(v):.3f}" + (f" ({min(v):.3f} to {max(v):.3f})" if len(v) > 1 else "")
                for k, v in cells.items()
            },
        )


if __name__ == "__main__":
    main()
