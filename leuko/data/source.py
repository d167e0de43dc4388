"""Read a split of a data set, whatever its format: ``load("slides/", "train")``, ``load("test.json", "test")`` or
``load("slides.yaml", "val")``. What a path holds is found by ``locate``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from ..cells import in_order
from ..errors import LeukoError
from ..io import io_errors_as
from . import per_image
from .dataset import Dataset, LabelWarning
from .formats.records import Labels, Problems
from .locate import Source, find
from .validate import validate


def splits(data: str | Path) -> list[str]:
    """The names of the splits, train, val and test first; ``["all"]`` for a data set that is not split."""
    return list(find(data).splits)


def split_name(data: str | Path, split: str) -> str:
    """A data set's own name of a split: ``val`` for ``valid`` and ``validation``. Raises LeukoError."""
    return find(data).split_name(split)


@io_errors_as("read")
def load(data: str | Path, split: str, types: Sequence[str] | None = None, problems: Problems | None = None) -> Dataset:
    """Read and check one split of a data set.

    ``data`` is a folder, a COCO file or a data YAML. With ``types`` the classes are matched to these by name, and a
    class without counterpart is an error. What was fixed is listed in ``Dataset.warnings``. Raises LeukoError; with
    ``problems`` that collect, only where nothing can be read.
    """
    source = find(data)
    split = source.split_name(split)
    problems = problems or Problems()
    labels = source.parse(split, problems)
    names = list(dict.fromkeys(labels[0].names.values()))
    other_names: set[str] = set()
    if source.options.ignore or not (names or types or labels[0].categories):
        # The types are the same in every split, and a class to ignore may occur in another split only.
        others = (name for name in source.splits if name != split)
        parts = [part for name in others for part in source.parse(name, Problems(collect=True))]
        other_names = {name for part in parts for name in part.class_names()}
    if source.types:
        names = _lay_types_over(labels, source)
    parts = source.splits[split]
    named = parts[0] if source.file.is_dir() and len(parts) == 1 else source.file
    dataset = validate(named, labels, problems, source.options, names=names, types=types, other_names=other_names)
    dataset.split = split
    return dataset


def _lay_types_over(labels: Sequence[Labels], source: Source) -> list[str]:
    """Give the cells that are not ignored the type that a table says of their image, leave out images of which it says
    nothing, and return all types of the table."""
    table = per_image.read_column(source.types, "type")
    for part in labels:
        typed = []
        for record in part.records:
            if kind := per_image.value_of(table, record.image):
                cells = (a if a.name in source.options.ignore else a._replace(name=kind) for a in record.annotations)
                record.annotations = list(cells)
                typed.append(record)
            else:
                problem = f"{source.types.name} gives it no type"
                part.warnings.append(LabelWarning(record.image, "type", problem, "image left out (no type)"))
        part.records = typed
        part.categories = {name: number for name, number in part.categories.items() if name in source.options.ignore}
    return [*in_order(kind for kind in table.values() if kind), *source.options.ignore]


def load_all(data: str | Path) -> dict[str, Dataset]:
    """All splits of a data set by name, checked, with one list of types. Raises LeukoError."""
    names = splits(data)
    datasets = {name: load(data, name) for name in names}
    types = list(dict.fromkeys(name for dataset in datasets.values() for name in dataset.types))
    if all(dataset.types == types for dataset in datasets.values()):
        return datasets
    return {name: load(data, name, types) for name in names}


@io_errors_as("read")
def groups(data: str | Path, split: str) -> set[str]:
    """The groups (smears, patients) in a split's label files; its images need not be there. Empty without the split."""
    source = find(data)
    name = source.own_name(split)
    labels = source.parse(name, Problems()) if name in source.splits else []
    return {record.group for part in labels for record in part.records if record.group}


def check_groups(groups_by_split: dict[str, set[str]], data: str | Path) -> None:
    """Raise LeukoError where a group has images in two splits, since a model then is measured on what it learned."""
    for (a, groups_a), (b, groups_b) in combinations(groups_by_split.items(), 2):
        if shared := sorted(groups_a & groups_b):
            raise LeukoError(
                f"{data}: {len(shared)} groups have images in {a} and in {b}, such as {shared[0]}; divide the data "
                "again by leuko data split, or give --allow-leaks"
            )
