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
from leuko.engine.adaptation import (
    SHARE,
    Adapted,
    adapt_typer,
    probabilities,
    with_labels,
    with_shares,
    with_statistics,
)
from leuko.engine.checkpoint import load_weights
from leuko.engine.ensemble import EnsembleMember
from leuko.engine.laboratory import LabelledField, box_factors, in_types, labelled_fields, scores
from leuko.engine.typer_training import rates
from leuko.metrics import coco, counting
from leuko.runtime.typing_stage import TypingStage

THRESHOLD = 0.3
SURE = ("NG", "L", "M")  # the types whose labels are beyond doubt, and not rare, at all three centres


def measure(fields: list[LabelledField], chances: list[np.ndarray], stage: TypingStage, threshold: float) -> dict:
    """The measures of found cells with their probabilities [cells, K + 1] on each field."""
    dataset, types = Dataset(list(stage.types), [field.sample for field in fields]), stage.types
    number, predictions, true, given = len(types), [], [], []
    for field, each in zip(fields, chances, strict=True):
        size = field.sample.width, field.sample.height
        predictions.append(stage.typed(field.found, each[:, :-1], size)[:100])
        pairs = field.of_cell >= 0
        true += field.labels[pairs].tolist()
        given += each[field.of_cell[pairs], :-1].argmax(1).tolist()
    true, given = np.array(true), np.array(given)
    cells = [counting.one_type(p, number).above(threshold) for p in predictions]
    counted = sum(np.bincount(c.labels, minlength=number) for c in cells)
    alone = replace(dataset, types=["cell"], category_ids=[], samples=[one_class(s) for s in dataset.samples])
    merged = [counting.one_type(replace(p, labels=np.zeros(len(p), int)), 1) for p in predictions]
    seen = np.array([types.index(t) for t in types if t in SURE])
    evaluation, of_any = coco.evaluate(dataset, predictions, 100), coco.evaluate(alone, merged, 100)
    common = np.isin(true, seen)
    confusion = np.zeros((number, number + 1), dtype=int)
    np.add.at(confusion, (true, given), 1)
    return {
        "cells": int(dataset.counts().sum()),
        "found": len(true),
        "right": float((true == given).mean()),
        "right NG L M": float((true == given)[common].mean()),
        "kappa": rates(confusion)["kappa"],
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
    dataset = in_types(source.load(args.data, source.splits(args.data)[0]), stored.types, args.data)
    fields = labelled_fields(member, dataset, 0)
    as_found = replace(member.typing, box_factors=(1.0, 1.0))
    ends = np.cumsum([len(field.found) for field in fields])[:-1]
    crops = np.concatenate([field.found_crops for field in fields])
    sure = crops[np.concatenate([field.found.scores for field in fields]) >= 0.5 * THRESHOLD]
    stage = with_statistics(net, sure, 0)
    features = {share: each.features_of(crops) for share, each in ((0.0, net), (SHARE, stage))}

    def typed(adapted: Adapted) -> list[np.ndarray]:
        with torch.no_grad():
            logits = adapted.net.last(features[adapted.about["statistics"]])
        return np.split(logits.double().softmax(1).numpy(), ends)

    zero = np.zeros(len(stored.types))
    begun = Adapted(stage, {"statistics": 0.0 if stage is net else SHARE}, zero, None)
    nothing = typed(Adapted(net, {"statistics": 0.0}, zero, None))
    rows = {"nothing": [measure(fields, nothing, as_found, THRESHOLD)]}
    for name, prior in (("without labels, no shares", False), ("without labels", True)):
        rows[name] = [measure(fields, typed(with_shares(begun, sure, prior)), as_found, THRESHOLD)]
    for few in args.cells:
        for draw in range(3):
            some = sure[np.random.default_rng(draw).choice(len(sure), few, replace=False)]
            other = adapt_typer(net, stored.replay, some, [], zero, prior=True, seed=0).net
            chances = np.split(probabilities(other, crops), ends)
            rows.setdefault(f"{few} cells without labels", []).append(measure(fields, chances, as_found, THRESHOLD))
    for number in args.labelled:
        for draw in tqdm(range(args.draws), f"{number} labelled"):
            order = np.random.default_rng(draw).permutation(len(dataset))
            chosen, others = np.sort(order[:number]), np.sort(order[number:])
            ours, rest = [fields[i] for i in chosen], [fields[i] for i in others]
            fitted, of_labelled, about = with_labels(net, stage, stored.replay, ours)
            adapted = with_shares(Adapted(fitted, begun.about | about, zero, of_labelled), sure, prior=True)
            drawn = replace(member.typing, box_factors=box_factors(ours))
            chances = typed(adapted)
            value, _ = scores(ours, drawn, adapted.chances, [chances[i] for i in chosen])
            result = measure(rest, [chances[i] for i in others], drawn, value or THRESHOLD)
            before = measure(rest, [nothing[i] for i in others], as_found, THRESHOLD)
            result["gain"] = result["right"] - before["right"]
            result["statistics"] = adapted.about["statistics"]
            result["last layer"] = float(adapted.about["last_layer"])
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
