"""Several trained models at work on one data set: each by itself, and fused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import TrainOptions, stored
from ..data.sample import Dataset
from ..errors import LeukoError
from .checkpoint import load_weights
from .inference import Member, Predictions, predict


def load_members(sources: Sequence[str | Path], device: torch.device) -> list[Member]:
    """The models of run folders or weights files; two of one name get a number behind it."""
    members = [Member.load(source, device) for source in sources]
    names = [m.name for m in members]
    for i, member in enumerate(members):
        if names.count(member.name) > 1:
            member.name += f" ({names[: i + 1].count(names[i])})"
    return members


def finished_runs(project: str | Path, types: Sequence[str] | None = None) -> list[Path]:
    """The runs of a project folder that were trained to their last epoch, and on the given types if any are given.

    Raises LeukoError if there are fewer than two, since there is nothing to fuse then.
    """
    runs = []
    for args in sorted(Path(project).glob("*/args.yaml")):
        last = args.parent / "weights" / "last.safetensors"
        if not last.is_file():
            continue
        weights = load_weights(last)
        complete = weights.about.get("epoch") == stored(TrainOptions, args).epochs
        if complete and (types is None or set(weights.types) == set(types)):
            runs.append(args.parent)
    if len(runs) < 2:
        fits = "" if types is None else f" for the types {', '.join(types)}"
        raise LeukoError(
            f"{project}: {len(runs)} finished runs{fits}, but an ensemble needs two; train more, or name them"
        )
    return runs


def predict_members(
    members: Sequence[Member], dataset: Dataset, device: torch.device, *, batch: int, workers: int
) -> list[Predictions]:
    """Each member's predictions with labels in the data set's order. Types are compared before anything runs."""
    for member in members:
        member.labels_in(dataset.types)
    results = []
    for member in members:
        result = predict(member.model, dataset, device, batch=batch, workers=workers, title=member.name)
        result.found = member.relabel(result.found, dataset.types)
        results.append(result)
    return results
