"""`python -m leuko.val`: measure a trained detector, or several and their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .config import ValOptions, as_dict, parse
from .config import run as run_command
from .data import source
from .data.sample import Dataset
from .engine.ensemble import finished_runs, load_members, predict_members
from .engine.fusion import fuse
from .engine.inference import Member, Predictions, choose_device
from .errors import LeukoError
from .metrics import coco
from .report import pictures, plots, run, table
from .report.table import Row

EXAMPLES = """
# one model on the test split
leuko val --weights runs/train/fcos --data datasets/smears
# another split, a weights file
leuko val --weights fcos.safetensors --data datasets/smears --split val
# three models and their fusion in one table
leuko val --ensemble runs/train/fcos runs/train/faster_rcnn runs/train/cascade_rcnn --data datasets/smears
# all finished runs of runs/train that fit the data
leuko val --ensemble --data datasets/smears
"""


def val(options: ValOptions) -> Path:
    """Validate by these options, print the table, and return the folder of results.

    Raises LeukoError for what the user can mend.
    """
    options.check()
    device = choose_device(options.device)
    dataset = source.load(options.data, split_of(options))
    if told := table.flaws(split_of(options), dataset):
        print(told)
    if options.ensemble is None:
        sources: Sequence[str | Path] = [options.weights]
    else:
        sources = options.ensemble or finished_runs(options.project, dataset.types)
    if options.ensemble is not None and len(sources) < 2:
        raise LeukoError("--ensemble: name at least two models, or one with --weights")
    members = load_members(sources, device)
    results = predict_members(members, dataset, device, batch=options.batch, workers=options.workers)
    rows = [row(m, r, dataset) for m, r in zip(members, results, strict=True)]
    found = results[0].found
    if len(members) > 1:
        sizes = [(s.width, s.height) for s in dataset.samples]
        found = fuse([r.found for r in results], sizes, iou_threshold=options.fusion_iou)
        rows.sort(key=lambda r: r.evaluation.mAP)
        rows.append(fused_row(rows, results, coco.evaluate(dataset, found)))
    folder = run.new_run(options.save, options.name or ("ensemble" if len(members) > 1 else members[0].name))
    write(folder, options, dataset, found, rows)
    print(f"{options.data}, {split_of(options)}: {len(dataset)} images; types over their number of cells\n")
    print(table.table2(rows, dataset.types))
    print(f"\n{table.per_class(rows[-1].evaluation)}" if len(rows) == 1 else "")
    print(f"results: {folder}")
    return folder


def split_of(options: ValOptions) -> str:
    """The split to validate on; a data set without splits has one of its own name."""
    there = source.splits(options.data)
    return there[0] if options.split == ValOptions.split and len(there) == 1 else options.split


def row(member: Member, result: Predictions, dataset: Dataset) -> Row:
    """A member's line of the table."""
    return Row(member.name, coco.evaluate(dataset, result.found), member.parameters, result.fps)


def fused_row(rows: Sequence[Row], results: Sequence[Predictions], evaluation: coco.Evaluation) -> Row:
    """The fusion's line: all members' parameters, and the speed of one member after the other."""
    seconds = sum(1 / r.fps for r in rows)
    return Row("ensemble", evaluation, sum(r.parameters for r in rows), 1 / seconds)


def write(folder: Path, options: ValOptions, dataset: Dataset, found: list[dict], rows: Sequence[Row]) -> None:
    """The files of a validation: of the fusion if there are several models, with each model's line beside it."""
    last = rows[-1]
    run.write_yaml(folder / "args.yaml", as_dict(options))
    run.write_json(folder / "environment.json", run.environment())
    run.write_flaws(folder, dataset)
    about = {"model": last.name, "data": options.data, "parameters": last.parameters, "fps": last.fps}
    if len(rows) > 1:
        about["members"] = {
            r.name: {m: getattr(r.evaluation, m) for m in ("mAP", "mAP50", "mAP75", "mAR")}
            | {"AP": {t.type: t.AP for t in r.evaluation.per_class}, "parameters": r.parameters, "fps": r.fps}
            for r in rows[:-1]
        }
    run.write_evaluation(folder, last.evaluation, coco.to_coco_results(dataset, found), **about)
    run.write_text(folder / "table.txt", table.table2(rows, dataset.types) + "\n")
    plots.write_image(folder / "predictions.jpg", pictures.truth_and_found(dataset, found))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    options, _ = parse(ValOptions, argv, "leuko val", EXAMPLES)
    val(options)


if __name__ == "__main__":
    run_command(main)
