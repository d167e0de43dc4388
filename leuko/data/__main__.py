"""Tools for data sets: ``python -m leuko.data COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..cli import Parser
from ..cli import run as run_command
from ..errors import LeukoError, nearest
from ..io import write_csv, write_json, write_text
from ..report import html, plots, run, table
from .dataset import Dataset
from .making import MAKING, Command, counts
from .tools import stats
from .tools.check import check, counted
from .tools.convert import WRITERS, convert, load_all
from .tools.review import apply_review
from .tools.split import merge, split


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(WRITERS))
    parser.add_argument(
        "--voc-origin",
        metavar="N",
        type=int,
        choices=(0, 1),
        default=0,
        help="0: VOC as LabelImg has it; 1: official [0]",
    )
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _convert(args: argparse.Namespace) -> None:
    datasets = convert(**vars(args), progress=True)
    for name, dataset in datasets.items():
        if told := table.warnings(name, dataset):
            print(told)
    print(f"{args.dst}: {args.to}")
    print(counts(datasets))


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("--save", metavar="FOLDER", default="runs/stats", help="folder of results [runs/stats]")
    parser.add_argument("--name", metavar="TEXT", default="", help="the result's folder in it [the data's name]")


def _stats(args: argparse.Namespace) -> None:
    datasets = load_all(args.src)
    whole = merge(datasets)
    split_of = {str(s.image): name for name, dataset in reversed(datasets.items()) for s in dataset.samples}
    tints = stats.colours(whole, split_of, progress=True)
    noted = stats.factors(datasets)
    folder = run.new_run(args.save, args.name or args.src.resolve().stem)
    write_csv(folder / "counts.csv", stats.counts(datasets))
    write_csv(folder / "sizes.csv", stats.sizes(whole))
    write_csv(folder / "cells_per_image.csv", stats.cells_per_image(datasets))
    write_csv(folder / "colours.csv", [c.row() for c in tints])
    if noted:
        write_csv(folder / "factors.csv", noted)
    run.write_warnings(folder, *datasets.values())
    plots.data_statistics(whole, tints, stats.factors({"all": whole}), folder / "stats.png")
    for name, dataset in datasets.items():
        if told := table.warnings(name, dataset):
            print(told)
    print(f"{args.src}: cells and, in brackets, the images that they are on")
    print(table.aligned(table.table1(datasets), head=1))
    print(f"\n{table.aligned(_sizes(stats.sizes(whole)), head=1)}\n\nresults: {folder}")


def _sizes(rows: Sequence[dict]) -> list[list[str]]:
    """The cells' sizes as lines of a table."""
    lines = [["size (5 %, median, 95 %)", "cells", "pixels", "% of the shorter side"]]
    for row in rows:
        spans = [" ".join(f"{row[f'{key}_p{p}']:.0f}" for p in stats.PERCENTILES) for key in ("px", "percent")]
        lines.append([str(row["type"]), str(row["cells"]), *(spans if row["cells"] else ("-", "-"))])
    return lines


def _split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set; all its splits are taken together")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make, in the same format")
    parser.add_argument("--ratios", metavar="A:B", default="4:1", help="wished shares, two or more [4:1]")
    parser.add_argument("--names", metavar="A,B", default="", help="the splits' names [train,test or train,val,test]")
    parser.add_argument("--folds", metavar="K", type=int, default=0, help="K equal parts and fold1.yaml ... foldK.yaml")
    parser.add_argument(
        "--group-by",
        metavar="REGEX|CSV",
        default="",
        help="images that stay together: a CSV file with the columns image and group, or a regular expression searched "
        "in the image's path, whose first bracket (or all of it) is the group",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="which of equally good divisions [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _split(args: argparse.Namespace) -> None:
    options = vars(args)
    try:
        ratios = [float(text) for text in options.pop("ratios").split(":")]
    except ValueError as error:
        raise LeukoError(f"--ratios: {error}; give numbers with colons between, such as 4:1") from error
    names = [name.strip() for name in options.pop("names").split(",") if name.strip()]
    parts = split(**options, ratios=ratios, names=names)
    shares = [1.0] * len(parts) if args.folds else ratios
    if (mended := args.dst / "warnings.txt").is_file():
        print(f"{len(mended.read_text().splitlines())} warnings mended, listed in {mended}")
    for name, number in next(iter(parts.values())).ignored.items():
        print(f"{number} cells of the class {name} left out, as the data YAML says")
    print(f"{args.dst}: cells and, in brackets, the images that they are on")
    print(table.aligned(table.table1(parts), head=1))
    print(f"\n{_distance(parts, shares)}")


def _distance(parts: dict[str, Dataset], shares: Sequence[float]) -> str:
    """How far the division is from the wish."""
    types = next(iter(parts.values())).types
    counts = np.array([[*d.counts(), len(d)] for d in parts.values()], dtype=float)
    wish = np.array(shares)[:, None] / sum(shares) * counts.sum(0)
    off = np.abs(counts - wish)
    row, column = np.unravel_index(off.argmax(), off.shape)
    what = f"cells of {types[column]}" if column < len(types) else "images"
    far = f"{counts[row, column]:.0f} {what} in {list(parts)[row]}, {wish[row, column]:.1f} wished for"
    groups = len(set().union(*(d.groups() for d in parts.values())))
    kept = f"{groups} groups, each in one split" if groups else "no groups (see --group-by)"
    return f"farthest from the wish: {far}; {kept}"


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("--labels-only", action="store_true", help="do not decode the images, nor look for duplicates")
    parser.add_argument("--save", metavar="FOLDER", default="runs/check", help="folder of results [runs/check]")
    parser.add_argument("--name", metavar="TEXT", default="", help="the result's folder in it [the data's name]")


def _check(args: argparse.Namespace) -> int:
    datasets, findings = check(args.src, not args.labels_only, progress=True)
    folder = run.new_run(args.save, args.name or args.src.resolve().stem)
    lines = table.table1(datasets) if datasets and len({tuple(d.types) for d in datasets.values()}) == 1 else []
    write_json(folder / "report.json", {"source": str(args.src), "findings": findings})
    write_text(folder / "report.html", html.check_report(args.src, datasets, findings, lines))
    for level, kind, number, first in counted(findings):
        print(f"{level:<7} {kind} ({number}), such as\n        {first.text}")
    to_decide = sum(f.level == "decide" for f in findings)
    print(f"{args.src}: {len(findings)} findings, {to_decide} to be decided by a person\n\nresults: {folder}")
    return int(to_decide > 0)


def _review_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="the data set that was validated")
    parser.add_argument(
        "review", metavar="REVIEW", type=Path, help="consensus.json of a validation, verdicts filled in"
    )
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make, in the same format")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _review(args: argparse.Namespace) -> None:
    rows = apply_review(**vars(args))
    for row in rows:
        print(f"{row['image']}: {row['before'] or 'no cell'} is now {row['after'] or 'no cell'}")
    print(f"{args.dst}: {len(rows)} labels changed, listed in reviewed.csv")
    if (left := args.dst / "warnings.txt").is_file():
        print(f"what was mended in the data, and verdicts on cells that a split lacks: {left}")


COMMANDS = {
    "apply-review": Command(
        "put the verdicts on labels that models doubt into a new data set",
        """
  leuko val --ensemble a b c --data slides          # writes runs/val/ensemble/consensus.json and its gallery
  (fill in each "verdict": keep, accept, or a type)
  python -m leuko.data apply-review slides runs/val/ensemble/consensus.json datasets/reviewed""",
        _review_arguments,
        _review,
    ),
    "check": Command(
        "find what is wrong with a data set; leaves with 1 where a person must decide",
        """
  python -m leuko.data check slides
  python -m leuko.data check slides.yaml --labels-only""",
        _check_arguments,
        _check,
    ),
    "convert": Command(
        "write a data set in another format, keeping all but COCO's masks",
        """
  python -m leuko.data convert slides datasets/slides --to coco
  python -m leuko.data convert slides.yaml datasets/slides --to yolo --force
  python -m leuko.data convert train.json datasets/official --to voc --voc-origin 1""",
        _convert_arguments,
        _convert,
    ),
    "split": Command(
        "divide a data set anew, stratified by type, groups of images together",
        """
  python -m leuko.data split slides datasets/slides --ratios 4:1
  python -m leuko.data split slides datasets/slides --ratios 7:1:2 --group-by "smear(\\d+)"
  python -m leuko.data split slides datasets/folds --folds 5 --group-by smears.csv""",
        _split_arguments,
        _split,
    ),
    "stats": Command(
        "count cells, images and factors, and measure sizes and colours",
        """
  python -m leuko.data stats slides
  python -m leuko.data stats slides.yaml --name slides""",
        _stats_arguments,
        _stats,
    ),
    **MAKING,
}


def _overview() -> str:
    commands = "".join(f"\n  {name:<13}{command.help}" for name, command in COMMANDS.items())
    return f"usage: python -m leuko.data COMMAND ...\n\n{commands.lstrip(chr(10))}\n\n`COMMAND --help` shows examples."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its status; raises LeukoError for what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise LeukoError(f'unknown command "{name}"{nearest(name, COMMANDS)} (see python -m leuko.data --help)')
    command = COMMANDS[name]
    parser = Parser(
        prog=f"python -m leuko.data {name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=f"examples:{command.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return command.run(parser.parse_args(words[1:])) or 0


if __name__ == "__main__":
    run_command(main)
