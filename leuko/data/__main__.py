"""Tools for data sets: ``python -m leuko.data COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leuko.commandline import Parser
from leuko.commandline import run as run_command
from leuko.data import stats
from leuko.data.compose import compose
from leuko.data.convert import WRITERS, convert, load_all
from leuko.data.factors import put_on
from leuko.data.made import FORMATS
from leuko.data.resize import resize
from leuko.data.sample import Dataset
from leuko.data.split import merge, split
from leuko.data.synth import synth
from leuko.errors import LeukoError, nearest
from leuko.report import plots, run, table
from leuko.smear.factors import FACTORS
from leuko.smear.sheet import types_sheet


@dataclass(frozen=True)
class Command:
    """One sub-command: a line of help, examples, its arguments, and what it does with them."""

    help: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--images", metavar="N", type=int, default=200, help="images in all [200]")
    parser.add_argument("--size", metavar="PX", type=int, default=320, help="side of an image in pixels [320]")
    parser.add_argument("--format", default="coco", help=f"{', '.join(FORMATS)} [coco]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="all pixels and boxes follow from it [0]")
    parser.add_argument("--val", metavar="SHARE", type=float, default=0.15, help="share for validation [0.15]")
    parser.add_argument("--test", metavar="SHARE", type=float, default=0.15, help="share for testing [0.15]")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="threads; 0: one a core [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="also draw the five types side by side into FILE")


def _synth(args: argparse.Namespace) -> None:
    options = dict(vars(args))
    sheet = options.pop("sheet")
    datasets = synth(**options, progress=True)
    print(f"{args.dst}: {args.format}, {args.size}x{args.size} pixels, seed {args.seed}")
    print(_table(datasets))
    if sheet:
        try:
            types_sheet(args.seed).save(sheet)
        except (OSError, ValueError) as error:  # ValueError: Pillow does not know the file's ending
            raise LeukoError(f"{sheet}: cannot be written: {error}; name a .png in a folder that exists") from error
        print(f"{sheet}: the five types")


def _table(datasets: dict[str, Dataset]) -> str:
    """Images and cells per split and type, as lines of text."""
    types = next(iter(datasets.values())).types
    lines = [["split", "images", *types, "cells"]]
    for name, dataset in datasets.items():
        counts = dataset.counts()
        lines.append([name, *map(str, (len(dataset), *counts, counts.sum()))])
    return table.aligned(lines, head=1)


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
        if told := table.flaws(name, dataset):
            print(told)
    print(f"{args.dst}: {args.to}")
    print(_table(datasets))


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
    run.write_csv(folder / "counts.csv", stats.counts(datasets))
    run.write_csv(folder / "sizes.csv", stats.sizes(whole))
    run.write_csv(folder / "cells_per_image.csv", stats.cells_per_image(datasets))
    run.write_csv(folder / "colours.csv", [c.row() for c in tints])
    if noted:
        run.write_csv(folder / "factors.csv", noted)
    run.write_flaws(folder, *datasets.values())
    plots.data_statistics(whole, tints, stats.factors({"all": whole}), folder / "stats.png")
    for name, dataset in datasets.items():
        if told := table.flaws(name, dataset):
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
    if (mended := args.dst / "flaws.txt").is_file():
        print(f"{len(mended.read_text().splitlines())} flaws mended, listed in {mended}")
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


def _composed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--donors", metavar="FOLDER", type=Path, required=True, help="a folder of crops a class in it")
    parser.add_argument("--images", metavar="N", type=int, default=200, help="fields in all [200]")
    parser.add_argument("--size", metavar="PX", type=int, default=600, help="side of a field in pixels [600]")
    parser.add_argument("--cells", metavar="A-B", default="1-6", help="leukocytes a field, least and most [1-6]")
    parser.add_argument("--format", default="coco", help=f"{', '.join(FORMATS)} [coco]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="all choices follow from it [0]")
    parser.add_argument("--val", metavar="SHARE", type=float, default=0.15, help="share for validation [0.15]")
    parser.add_argument("--test", metavar="SHARE", type=float, default=0.15, help="share for testing [0.15]")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="threads; 0: one a core [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _compose(args: argparse.Namespace) -> None:
    options = dict(vars(args))
    least, _, most = options.pop("cells").partition("-")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise LeukoError(f"--cells {args.cells}: give the least and the most leukocytes a field, such as 1-6")
    datasets, uncertain = compose(**options, least=int(least), most=int(most or least), progress=True)
    print(f"{args.dst}: {args.format}, {args.size}x{args.size} pixels, seed {args.seed}")
    if uncertain:
        print(f"{len(uncertain)} crops gave no cell, since its outline is uncertain, such as {uncertain[0]}")
    print(_table(datasets))


def _factors_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make, in the same format")
    parser.add_argument("--factor", metavar="NAME", required=True, help=f"all (by turns), or {', '.join(FACTORS)}")
    parser.add_argument("--severity", metavar="1..5", type=int, default=3, help="how strong [3]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="all choices follow from it [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _factors(args: argparse.Namespace) -> None:
    before = sum(int(d.counts().sum()) for d in load_all(args.src).values())
    datasets = put_on(**vars(args), progress=True)
    after = sum(int(d.counts().sum()) for d in datasets.values())
    print(f"{args.dst}: {args.factor}, severity {args.severity}")
    if after < before:
        print(f"{before - after} of {before} cells lie on what was cut off")
    rows = stats.factors(datasets)
    print(table.aligned([list(rows[0]), *([str(v) for v in row.values()] for row in rows)], head=1))


def _resize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make, in the same format")
    parser.add_argument("--size", metavar="PX", type=int, default=600, help="longer side in pixels [600]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _resize(args: argparse.Namespace) -> None:
    datasets = resize(**vars(args), progress=True)
    print(f"{args.dst}: longer side {args.size} pixels; leuko predict --originals draws on the originals")
    print(_table(datasets))


COMMANDS = {
    "compose": Command(
        "compose fields with several leukocytes from crops of single ones",
        """
  python -m leuko.data compose datasets/composed --donors crops
  python -m leuko.data compose datasets/composed --donors crops --images 1000 --cells 2-8 --format yolo""",
        _composed_arguments,
        _compose,
    ),
    "factors": Command(
        "put an interference factor on every image, tagged",
        """
  python -m leuko.data factors slides datasets/blurred --factor defocus --severity 4
  python -m leuko.data factors slides datasets/each --factor all""",
        _factors_arguments,
        _factors,
    ),
    "resize": Command(
        "scale all images and boxes, linked to the originals",
        """
  python -m leuko.data resize slides datasets/mini --size 600
  leuko predict --weights runs/train/fcos --source datasets/mini --originals""",
        _resize_arguments,
        _resize,
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
    "synth": Command(
        "render a data set of stained fields with the five leukocyte types",
        """
  python -m leuko.data synth datasets/demo
  python -m leuko.data synth datasets/demo --images 1000 --size 600 --format voc --seed 7
  python -m leuko.data synth datasets/demo --force --val 0.2 --test 0""",
        _synth_arguments,
        _synth,
    ),
}


def _overview() -> str:
    commands = "".join(f"\n  {name:<10}{command.help}" for name, command in COMMANDS.items())
    return f"usage: python -m leuko.data COMMAND ...\n\n{commands.lstrip(chr(10))}\n\n`COMMAND --help` shows examples."


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command; raises LeukoError for what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
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
    command.run(parser.parse_args(words[1:]))


if __name__ == "__main__":
    run_command(main)
