"""The commands of ``leuko data`` (``python -m leuko.data`` is the same): options -> tool -> printed tables."""

from __future__ import annotations

if __name__ == "__main__":  # before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("data")

import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..config import flag
from ..errors import LeukoError, one_line
from ..io import write_csv, write_json, write_text
from ..report import pages, plots, run, tables
from . import config, source
from .dataset import Dataset
from .tools import draw, rewrite
from .tools import review as reviewer
from .tools import split as splitter
from .tools import stats as statistics
from .tools.builder import write_warnings
from .tools.check import check as find_problems
from .tools.findings import Group, as_json, counted, grouped, shortened

WIDTH = 80  # columns of the terminal
MAX_GROUPS = 20  # of findings that are printed
MAX_NAMES = 3  # of a group


def check(options: config.CheckOptions) -> int:
    """Print what is wrong with a data set, and write it as JSON and as a page; 1 where a person must decide."""
    datasets, findings = find_problems(options.src, not options.labels_only, progress=True)
    folder = run.new_run(options.save, options.name or Path(options.src).resolve().stem)
    same_types = len({tuple(d.types) for d in datasets.values()}) == 1
    counts = tables.table1(datasets) if same_types else []
    groups = grouped(findings)
    write_json(folder / "report.json", {"source": options.src} | as_json(groups))
    write_text(folder / "report.html", pages.check_page(Path(options.src), datasets, findings, counts))
    for group in groups[:MAX_GROUPS]:
        print(_shown(group, options.src))
    if more := groups[MAX_GROUPS:]:
        print(f"and {counted(len(more), 'more kind')}, in report.html")
    to_decide = sum(f.level == "decide" for f in findings)
    images = {image for f in findings for image in f.images}
    found = counted(len(findings), "finding") + (f" on {counted(len(images), 'image')}" if images else "")
    print(one_line(f"{options.src}: {found}, {to_decide} to be decided by a person") + f"\n\nresults: {folder}")
    return int(to_decide > 0)


def stats(options: config.StatsOptions) -> None:
    """Print and write how many cells there are of each type, how large, and of which colours."""
    datasets = source.load_all(options.src)
    whole = splitter.merge(datasets)
    split_of = {str(s.image): name for name, dataset in reversed(datasets.items()) for s in dataset.samples}
    colours = statistics.colours(whole, split_of, progress=True)
    sizes = statistics.sizes(whole)
    folder = run.new_run(options.save, options.name or Path(options.src).resolve().stem)
    write_csv(folder / "counts.csv", statistics.counts(datasets))
    write_csv(folder / "sizes.csv", sizes)
    write_csv(folder / "cells_per_image.csv", statistics.cells_per_image(datasets))
    write_csv(folder / "colours.csv", [c.row() for c in colours])
    if factor_rows := statistics.factors(datasets):
        write_csv(folder / "factors.csv", factor_rows)
    write_warnings(folder, datasets)
    plots.label_statistics(whole, folder / "stats.png")
    for name, dataset in datasets.items():
        if warnings := tables.warnings(name, dataset):
            print(warnings)
    print(f"{options.src}: cells and, in brackets, the images that they are on")
    print(tables.aligned(tables.table1(datasets), head=1))
    print(f"\n{tables.aligned(_sizes(sizes), head=1)}\n\nresults: {folder}")


def convert(options: config.ConvertOptions) -> None:
    """Write a data set in another format."""
    _require(options, "to", "the format to write: voc, coco or yolo")
    datasets = rewrite.convert(**vars(options))
    _print_written(options.dst, options.to, datasets)


def resize(options: config.ResizeOptions) -> None:
    """Write a data set with all images scaled."""
    datasets = rewrite.resize(**vars(options), progress=True)
    _print_written(options.dst, f"longer side {options.size} pixels", datasets)


def split(options: config.SplitOptions) -> None:
    """Divide a data set anew."""
    parts = splitter.split(**vars(options))
    groups = set().union(*(part.groups() for part in parts.values()))
    kept = f"{len(groups)} groups, each in one split" if groups else "no groups (see --group-by)"
    _print_written(options.dst, f"divided anew; {kept}", parts)


def apply_review(options: config.ReviewOptions) -> None:
    """Write the labels that a person corrected as a data set."""
    rows, datasets = reviewer.apply_review(**vars(options))
    _print_written(options.dst, f"{len(rows)} cells changed, listed in reviewed.csv", datasets)


def factors(options: config.FactorOptions) -> None:
    """Write a data set with an interference factor on every image."""
    _require(options, "factor", "the name of a factor, several separated by commas, or all")
    datasets = draw.put_factor(**vars(options), progress=True)
    _print_written(options.dst, f"{options.factor}, severity {options.severity}", datasets)


def compose(options: config.ComposeOptions) -> None:
    """Compose a data set from crops of single cells."""
    _require(options, "donors", "a folder with one folder of crops per class")
    datasets, uncertain = draw.compose(**vars(options), progress=True)
    if uncertain:
        print(f"{len(uncertain)} crops gave no cell, since its outline is uncertain, such as {uncertain[0]}")
    about = f"{options.format}, {options.size}x{options.size} pixels, seed {options.seed}"
    _print_written(options.dst, about, datasets)


def synth(options: config.SynthOptions) -> None:
    """Render a data set."""
    datasets = draw.synth(**vars(options), progress=True)
    about = f"{options.format}, {options.size}x{options.size} pixels, seed {options.seed}"
    _print_written(options.dst, about, datasets)


# ---------------------------------------------------------------- options and tables


def _shown(group: Group, src: str) -> str:
    """A group of findings for the terminal: its sentence, and the first few names or, without names, the first line."""
    shown = MAX_NAMES if group.findings[0].summary else 1
    lines = [f"{group.level:<7} {group.text}"]
    if examples := group.examples:
        more = f" (and {len(examples) - shown} more)" if len(examples) > shown else ""
        lines = [f"{lines[0]}:", f"{' ' * 8}{', '.join(examples[:shown])}{more}"]
    wrap = {"width": WIDTH, "subsequent_indent": " " * 8, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(one_line(shortened(line, src)), **wrap) for line in lines)


def _require(options: object, name: str, what: str) -> None:
    if not getattr(options, name):
        raise LeukoError(f"{flag(name)} is missing: give {what}")


def _print_written(dst: str, about: str, datasets: dict[str, Dataset]) -> None:
    """Print what a data set that was written is and holds, and what of its source was changed or left out."""
    print(f"{dst}: {about}")
    if (file := Path(dst) / "warnings.txt").is_file():
        print(f"{len(file.read_text(encoding='utf-8').splitlines())} warnings, listed in {file}")
    print("cells and, in brackets, the images that they are on")
    print(tables.aligned(tables.table1(datasets), head=1))
    if rows := statistics.factors(datasets):
        print("\n" + tables.aligned([list(rows[0]), *([str(v) for v in row.values()] for row in rows)], head=1))


def _sizes(rows: Sequence[dict]) -> list[list[str]]:
    """The cells' sizes as lines of a table."""
    lines = [["size (5 %, median, 95 %)", "cells", "pixels", "% of the shorter side"]]
    for row in rows:
        spans = [" ".join(f"{row[f'{key}_p{p}']:.0f}" for p in statistics.PERCENTILES) for key in ("px", "percent")]
        lines.append([str(row["type"]), str(row["cells"]), *(spans if row["cells"] else ("-", "-"))])
    return lines
