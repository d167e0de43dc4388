"""Several trained models at work on one data set: each by itself, and fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..errors import LeukoError
from ..io import read_yaml
from ..metrics import coco
from . import fusion
from .checkpoint import load_resume, load_weights
from .evaluate import EnsembleMember, Predictions, predict

LAST = Path("weights/last.safetensors")


def load_members(
    sources: Sequence[str | Path], device: torch.device, sizes: Sequence[int] = ()
) -> list[EnsembleMember]:
    """The models of run folders or weights files; two of one name get a number behind it."""
    members = [EnsembleMember.load(source, device, sizes) for source in sources]
    for member in members:
        if member.name.startswith("ensemble"):  # which is what the fusion is called
            member.name += " (model)"
    names = [m.name for m in members]
    for i, member in enumerate(members):
        if names.count(member.name) > 1:
            member.name += f" ({names[: i + 1].count(names[i])})"
    return members


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether a run was trained for so many epochs or more: by its state, which an epoch writes after its weights, or,
    where somebody has removed that, by these."""
    last, state = folder / LAST, folder / "resume.pt"
    if not last.is_file():
        return False
    done = load_resume(state)["progress"]["epoch"] if state.is_file() else load_weights(last).about.get("epoch") or 0
    return done >= epochs


def epochs_of(folder: Path) -> int:
    """The epochs that a run is to have; its other options, which an older leuko may have written, are not looked at."""
    path = folder / "args.yaml"
    epochs = read_yaml(path).get("epochs", TrainOptions.epochs)
    if type(epochs) is not int:
        raise LeukoError(f"{path}: epochs: {epochs!r} is not a whole number; correct it")
    return epochs


def finished_runs(project: str | Path, types: Sequence[str] | None = None) -> list[Path]:
    """The runs of a project folder that were trained to their last epoch, and on the given types if any are given.

    Raises LeukoError if there are fewer than two, since there is nothing to fuse then.
    """
    runs = []
    for args in sorted(Path(project).glob("*/args.yaml")):
        folder = args.parent
        if not (folder / LAST).is_file() or not is_finished(folder, epochs_of(folder)):
            continue
        if types is None or set(load_weights(folder / LAST).types) == set(types):
            runs.append(folder)
    if len(runs) < 2:
        fits = "" if types is None else f" for the types {', '.join(types)}"
        raise LeukoError(
            f"{project}: {len(runs)} finished runs{fits}, but an ensemble needs two; train more, or name them"
        )
    return runs


def predict_members(
    members: Sequence[EnsembleMember], dataset: Dataset, device: torch.device, *, batch: int, workers: int
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


def stated_mAP(member: EnsembleMember) -> float | None:
    """The mAP at which the member's weights were chosen, on its run's validation split; None if not known."""
    return (member.weights.about.get("val") or {}).get("mAP")


def validation_mAP(member: EnsembleMember) -> float:
    """What :func:`stated_mAP` gives; LeukoError if not known."""
    measured = stated_mAP(member)
    if measured is None:
        raise LeukoError(
            f"{member.weights.path}: does not say its validation mAP, by which --members best and --fusion-weights go; "
            "leave them out"
        )
    return float(measured)


def best_members(members: Sequence[EnsembleMember], number: int) -> list[int]:
    """Indices of the ``number`` members of the highest validation mAP, in the order given."""
    order = sorted(range(len(members)), key=lambda i: -validation_mAP(members[i]))
    return sorted(order[:number])


@dataclass(frozen=True)
class Fusion:
    """How members are fused: boxes that overlap by ``iou`` are one cell; scores below ``score`` have no vote; a
    member's weight is 1, its validation mAP, or 1 / (1 - mAP)^2: as independent measurements are weighted, with what
    the mAP lacks taken for the deviation."""

    iou: float = 0.55
    score: float = 0.0
    weights: Literal["equal", "map", "error"] = "equal"

    def __call__(
        self, members: Sequence[EnsembleMember], found: Sequence[Sequence[dict]], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, np.ndarray]]:
        """Fuse ``found[m][n]`` of member m on image n, whose (width, height) is ``sizes[n]``."""
        return fusion.fuse(found, sizes, self.iou, self.score, self.votes(members))

    def votes(self, members: Sequence[EnsembleMember]) -> list[float] | None:
        """Each member's weight, None where all are the same; LeukoError if one's validation mAP is wanted and not
        known."""
        if self.weights == "equal":
            return None
        measured = [validation_mAP(m) for m in members]
        return [max(v, 0.001) if self.weights == "map" else max(1 - v, 0.001) ** -2 for v in measured]


# What is tried. The defaults come first, so that they stay where nothing is better.
IOUS = (0.55, 0.45, 0.5, 0.6, 0.65, 0.7, 0.75)
SCORES = (0.0, 0.1, 0.2)
WEIGHTS = ("equal", "map", "error")


def tune(
    members: Sequence[EnsembleMember], found: Sequence[Sequence[dict]], dataset: Dataset
) -> tuple[Fusion, list[dict[str, object]]]:
    """The fusion of the highest mAP on a data set, and what each that was tried reached: fusion, mAP, mAP50, mAR.

    ``found[m][n]`` are member m's detections on the data set's image n. The data set must not be the one that is
    reported. Where a member's validation mAP is not known, only equal weights are tried.
    """
    weighted = WEIGHTS if all(stated_mAP(m) is not None for m in members) else ("equal",)
    sizes = [(s.width, s.height) for s in dataset.samples]
    tried: list[dict[str, object]] = []
    for iou, score, weights in tqdm(list(product(IOUS, SCORES, weighted)), desc="tuning", unit="fusion", leave=False):
        evaluation = coco.evaluate(dataset, Fusion(iou, score, weights)(members, found, sizes))
        measures = {name: getattr(evaluation, name) for name in ("mAP", "mAP50", "mAR")}
        tried.append({"iou": iou, "score": score, "weights": weights, **measures})
    best = max(tried, key=lambda t: t["mAP"])
    return Fusion(best["iou"], best["score"], best["weights"]), tried
