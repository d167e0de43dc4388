"""The score from which counts are best, found on a split that is not reported, and kept in the weights' metadata.

It belongs to a model at its image sizes, or to a fusion of models; that of a fusion is kept with one of its members.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..data.dataset import Dataset
from ..detections import Detections
from ..metrics import counting
from ..registry import FOREIGN, comes_with_leuko
from .ensemble import Ensemble, EnsembleMember

if TYPE_CHECKING:
    from ..runtime import ExportedDetector
    from .checkpoint import Weights

DEFAULT = 0.5


@dataclass(frozen=True)
class Threshold:
    """The lowest score of a cell that is classified, and where it comes from."""

    value: float = DEFAULT
    origin: str = "a default: leuko val finds a better one on a split that is not reported"

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.origin})"


def find(dataset: Dataset, predictions: Sequence[Detections]) -> float | None:
    """The threshold that fits a data set best; None where nothing right was found."""
    return counting.best_threshold(dataset, [counting.one_type(p, len(dataset.types)) for p in predictions])


def of_model(value: float, sizes: Sequence[int], data: str, split: str) -> dict:
    """What the metadata of a model's weights keep of its threshold, under ``counting``."""
    return {_of_sizes(sizes): {"threshold": value, "data": data, "split": split}}


def kept(ensemble: Ensemble, reported: tuple[str, str] = ("", "")) -> Threshold | None:
    """The threshold that the weights keep for a model or a fusion, on the scale of its scores; None without one, and
    for one that was found on what is reported now (data, split)."""
    found = _keeper(ensemble).about.get("counting", {}).get(_key(ensemble))
    if found is None:
        return None
    data, split = reported
    if split == found["split"] and os.path.realpath(data) == os.path.realpath(found["data"]):
        return None
    value = float(found["threshold"])
    if len(ensemble.members) == 1 and ensemble.calibrated:
        value = float(ensemble.members[0].scaling(value))
    return Threshold(value, f"found on {found['split']} of {found['data']}")


def alone(member: EnsembleMember) -> Threshold:
    """The threshold that the weights keep for a model alone, or the default."""
    return kept(Ensemble([member])) or Threshold()


def keep(ensemble: Ensemble, value: float, data: str, split: str) -> None:
    """Keep a threshold that was found, which for a model alone must be of scores that are not calibrated. Files of
    Ultralytics, which hold no metadata, are left as they are. Raises LeukoError for those that come with leuko."""
    weights = _keeper(ensemble)
    if weights.path.suffix != FOREIGN:
        found = {_key(ensemble): {"threshold": value, "data": data, "split": split}}
        weights.keep(counting=weights.about.get("counting", {}) | found)


def _of_sizes(sizes: Sequence[int]) -> str:
    return "alone at " + " ".join(map(str, sorted(sizes)))


def _keeper(ensemble: Ensemble) -> Weights | ExportedDetector:
    """The weights with which a threshold is kept: of a fusion always the same, in whatever order it is named, and not
    those that come with leuko if there are others."""
    return min((m.weights for m in ensemble.members), key=lambda w: (comes_with_leuko(w.path), w.identity))


def _key(ensemble: Ensemble) -> str:
    if len(members := ensemble.members) == 1:
        return _of_sizes(members[0].sizes) + (f" typed by {members[0].typer}" if members[0].typer else "")
    fusion = sorted(asdict(ensemble.fusion).items())
    about = sorted((m.weights.identity, m.sizes) for m in members), fusion, ensemble.calibrated
    stages = [m.typer for m in members if m.typer]
    return "fused as " + hashlib.sha256(repr((*about, stages) if stages else about).encode()).hexdigest()[:16]
