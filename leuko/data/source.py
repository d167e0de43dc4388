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
    known, other_names = {*labels.names.values(), *labels.class_names()}, set()
    if not known.issuperset(source.options.ignore) or not (labels.names or types or labels.categories):
        # The types are the same in every split, and a class to ignore may occur in another split only.
        others = (name for name in source.splits if name != split)
        other_names = {name for other in others for name in source.parse(other, Problems(collect=True)).class_names()}
    if source.types:
        _lay_types_over(labels, source, problems)
    parts = source.splits[split]
    named = parts[0] if source.file.is_dir() and len(parts) == 1 else source.file
    dataset = validate(named, labels, problems, source.options, types, other_names)
    dataset.split = split
    return dataset


def _lay_types_over(labels: Labels, source: Source, problems: Problems) -> None:
    """Give the cells that are not ignored the type that a table says of their image, and leave out images of which it
    says nothing. The types are those of the table."""
    table, ignore = per_image.read_column(source.types, "type"), source.options.ignore
    typed = []
    for record in labels.records:
        if kind := per_image.value_of(table, record.image):
            record.annotations = [a if a.name in ignore else a._replace(name=kind) for a in record.annotations]
            typed.append(record)
        else:
            problem = f"{source.types.name} gives it no type"
            problems.warnings.append(LabelWarning(record.image, "type", problem, "image left out (no type)"))
    labels.records = typed
    labels.categories = {name: number for name, number in labels.categories.items() if name in ignore}
    labels.names = dict(enumerate([*in_order(kind for kind in table.values() if kind), *ignore]))


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
    records = source.parse(name, Problems()).records if name in source.splits else []
    return {record.group for record in records if record.group}


def check_groups(groups_by_split: dict[str, set[str]], data: str | Path) -> None:
    """Raise LeukoError where a group has images in two splits, since a model then is measured on what it learned."""
    for (a, groups_a), (b, groups_b) in combinations(groups_by_split.items(), 2):
        if shared := sorted(groups_a & groups_b):
            raise LeukoError(
                f"{data}: {len(shared)} groups have images in {a} and in {b}, such as {shared[0]}; divide the data "
                "again by leuko data split, or give --allow-leaks"
            )
