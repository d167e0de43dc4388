"""Trained models and their fusion: how they look at images, with which weights they vote, and what is tuned."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from ..config import MOST_DETECTIONS
from ..data.dataset import Dataset
from ..data.images import LoadedImage
from ..detections import MAX_DETECTIONS, Detections
from ..errors import LeukoError, nearest
from ..metrics import coco
from ..metrics.calibration import Scaling
from ..ops.pairs import nms
from ..runtime import ExportedDetector
from ..runtime.typing_stage import TypingStage
from . import fusion
from .detect import detect
from .loading import load_detector, typing_of
from .tiling import Tiling

if TYPE_CHECKING:
    from .checkpoint import Weights
    from .network import Network

SAME_CELL = 0.5  # IoU
WEAK, LEARNED = 0.5, 0.1  # of the best validation mAP; the best of runs that have learned enough to be compared


@dataclass
class EnsembleMember:
    """A trained model ready to detect (alone or in an ensemble), with its name in tables and the image sizes that it
    looks at. ``typing`` is its typing stage, if it has one; ``typer`` tells whose stage that is, where it is not that
    of its own weights (see ``loading.typing_of``); ``tiling`` how it cuts images into tiles, if it does; ``cell`` how
    wide a cell is taken to be in pixels of an image, 0 if that is not known, and ``trained_cell`` how wide one was in
    training in those of the network, likewise; ``new_name`` gives the name that the data has for one of its types."""

    name: str
    weights: Weights | ExportedDetector
    model: Network | ExportedDetector
    sizes: tuple[int, ...]
    typing: TypingStage | None = None
    typer: str = ""
    tiling: Tiling | None = None
    cell: float = 0.0
    trained_cell: float = 0.0
    new_name: Callable[[str], str] = str

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str = "cpu",
        sizes: Sequence[int] = (),
        max_detections: int = MAX_DETECTIONS,
        typer: str = "",
        amp: str = "none",
        tiles: bool = False,
        cell_size: float = 0.0,
    ) -> EnsembleMember:
        """From a run folder, weights or an export; ``sizes`` as in ``--imgsz``, the model's own if none is given;
        ``device``, ``typer``, ``amp``, ``tiles``, ``cell_size`` as their flags. How many it detects is an option of its
        use: what its recipe says does not count."""
        weights = load_detector(source, max_detections)
        path = Path(os.path.abspath(weights.path))  # `.` has no name; a link keeps its own
        is_run = path.parent.name == "weights" and path.stem in ("best", "last")
        name = path.parent.parent.name if is_run else path.stem
        sizes = tuple(sizes) or (weights.image_size,)
        tiling = Tiling.of(weights, sizes, weights.image_size, cell_size) if tiles else None
        known = weights.cell_sides
        cells = cell_size or known.get("stored", 0.0), known.get("network", 0.0)
        model, stage = weights.at_work(device, amp, max_detections), typing_of(weights, typer, device)
        return cls(name, weights, model, sizes, *stage, tiling, *cells)

    @property
    def parameters(self) -> int:
        """The parameters of its networks."""
        return self.model.parameters + (self.typing.parameters if self.typing else 0)

    @property
    def types(self) -> Sequence[str]:
        """The types that it gives, in the order of its labels."""
        return self.typing.types if self.typing else self.weights.classes

    @property
    def views(self) -> tuple[int, ...]:
        """The sizes in which it looks at whole images: none where it cuts them into tiles."""
        return () if self.tiling else self.sizes

    @property
    def largest(self) -> float:
        """The largest of these; inf where it cuts them."""
        return max(self.views, default=math.inf)

    @property
    def needs_pixels(self) -> bool:
        """Whether it looks at an image's stored pixels, too."""
        return bool(self.typing or self.tiling)

    def cell_of(self, image: LoadedImage) -> tuple[float, float]:
        """The width that a cell of an image is taken to have, in its pixels and in those of the network; 0 where that
        is not known."""
        if self.tiling:
            return self.tiling.cell(image), self.tiling.network
        return self.cell, self.cell * max(self.sizes) / max(image.size)

    def detect(self, images: Sequence[LoadedImage]) -> list[Detections]:
        """Detections of each image, which has the ``views`` of the member, and its pixels where these are needed."""
        mine = [replace(image, views={size: image.views[size] for size in self.views}) for image in images]
        found = detect(self.model, mine, self.typing, self.tiling)
        return [replace(d, types=tuple(self.types)) for d in found]

    def labels_in(self, types: Sequence[str]) -> np.ndarray:
        """For each of the model's labels, the label of the same name in ``types``; LeukoError on a name not in it."""
        names = [self.new_name(name) for name in self.types]
        for name in names:
            if name not in types:
                raise LeukoError(
                    f'{self.weights.path}: it knows the type "{name}", which is not among {", ".join(types)}'
                    f"{nearest(name, types)}; types are matched by name, and map in a data YAML renames them"
                )
        if missing := [t for t in types if t not in names]:
            raise LeukoError(
                f'{self.weights.path}: it does not know the type "{missing[0]}" (but {", ".join(names)}); types are '
                "matched by name: use a model trained on this data's types, or map these in a data YAML"
            )
        return np.array([list(types).index(name) for name in names])

    def relabel(self, predictions: Sequence[Detections], types: Sequence[str]) -> list[Detections]:
        """The detections with labels in the order of ``types``; where several types have become one, one of each
        cell's detections remains."""
        new_label = self.labels_in(types)
        renamed = [replace(p, labels=new_label[p.labels], types=tuple(types)) for p in predictions]
        if len(set(new_label)) == len(new_label):
            return renamed
        return [p[_distinct(p)] for p in renamed]

    @property
    def max_detections(self) -> int:
        """Most detections per image: of a tile the model's, of all together any number."""
        return MOST_DETECTIONS if self.tiling else self.model.max_detections

    @property
    def scaling(self) -> Scaling | None:
        """The calibration that ``leuko val --calibrate`` has put into the weights for these image sizes, if any."""
        if sorted(self.fitted_sizes) != sorted(self.sizes):
            return None
        kept = self.weights.about["calibration"]
        return Scaling(float(kept["temperature"]), float(kept["shift"]))

    @property
    def fitted_sizes(self) -> Sequence[int]:
        """The image sizes that the weights' calibration holds for: the model's own where it names none; () without."""
        kept = None if self.typer else self.weights.about.get("calibration")
        return kept.get("sizes") or (self.weights.image_size,) if kept else ()

    def calibrated(self, predictions: Sequence[Detections]) -> list[Detections]:
        """The detections with calibrated scores; LeukoError where the weights hold no calibration for these sizes."""
        if self.scaling is None:
            sizes, fitted = (" ".join(map(str, s)) for s in (self.sizes, self.fitted_sizes))
            problem = f"its calibration is of --imgsz {fitted}, not {sizes}" if fitted else "holds no calibration"
            remedy = f"leuko val --weights {self.weights.path} --data DATA --imgsz {sizes} --calibrate"
            raise LeukoError(f"{self.weights.path}: {problem}; fit one by {remedy}")
        return [replace(p, scores=self.scaling(p.scores)) for p in predictions]

    @property
    def validation_mAP(self) -> float | None:
        """The mAP at which the weights were chosen, on their run's validation split; None if not known."""
        return (self.weights.about.get("val") or {}).get("mAP")


def places(members: Sequence[EnsembleMember], detections: Detections, image: LoadedImage | None = None) -> int:
    """The number of a model's detections that count against ``--max-detections``: a typing stage makes several of
    one, and of an ``image`` that is cut into tiles it is the most of a tile."""
    if any(member.typing for member in members):
        detections = detections[np.unique(detections.boxes, axis=0, return_index=True)[1]]
    tilings = [member.tiling for member in members if member.tiling and image]
    return max((tiling.most(detections, image) for tiling in tilings), default=len(detections))


def without_weak(members: list[EnsembleMember], named: bool) -> list[EnsembleMember]:
    """The members without those whose validation mAP is less than half of the best one's, which would pull down the
    scores of a fusion; one that the user ``named`` takes part. A line tells of each. LeukoError if one is left."""
    best = max((m.validation_mAP or 0.0 for m in members), default=0.0)
    weak = [m for m in members if m.validation_mAP is not None and m.validation_mAP < WEAK * best >= WEAK * LEARNED]
    for member in weak if len(members) > 1 else ():
        action = "it takes part, as it is named" if named else "left out; name it if it is to take part"
        print(f"{member.name}: mAP {member.validation_mAP:.3f} on its validation split, of others {best:.3f}: {action}")
    strong = members if named else [m for m in members if m not in weak]
    if len(strong) < 2 <= len(members):
        raise LeukoError(
            f"{strong[0].weights.path}: is the only run that is not far below the others; name two to fuse"
        )
    return strong


def _distinct(detections: Detections) -> np.ndarray:
    """The indices of detections that overlap no better one of their type by more than half, best first."""
    return nms(detections.boxes, detections.scores, detections.labels, SAME_CELL)


def load_members(sources: Sequence[str | Path], device: str = "cpu", *how: object) -> list[EnsembleMember]:
    """The models of run folders, weights files or exports, of which a folder may name several, loaded as
    :meth:`EnsembleMember.load` says; two of one name get a number behind it."""
    members = [EnsembleMember.load(source, device, *how) for source in sources]
    for member in members:
        if member.name.startswith("ensemble"):  # which is what the fusion is called
            member.name += " (model)"
    names = [m.name for m in members]
    for i, member in enumerate(members):
        if names.count(member.name) > 1:
            member.name += f" ({names[: i + 1].count(names[i])})"
    return members


# ---------------------------------------------------------------- how they are fused


def best_members(members: Sequence[EnsembleMember], number: int) -> list[int]:
    """Indices of the ``number`` members of the highest validation mAP, in the order given."""
    measured = known_mAPs(members)
    return sorted(sorted(range(len(members)), key=lambda i: -measured[i])[:number])


def known_mAPs(members: Sequence[EnsembleMember]) -> list[float]:
    """Each member's validation mAP; LeukoError if one is not known."""
    for member in members:
        if member.validation_mAP is None:
            raise LeukoError(
                f"{member.weights.path}: does not state its validation mAP, which --members best and --fusion-weights "
                "use; leave them out"
            )
    return [float(member.validation_mAP) for member in members]


@dataclass(frozen=True)
class Fusion:
    """How members are fused: boxes that overlap by ``iou`` are one cell; scores below ``score`` have no vote; a
    member's weight is 1, its validation mAP, or 1 / (1 - mAP)^2: as independent measurements are weighted, with what
    the mAP lacks to 1 as the standard deviation."""

    iou: float = 0.55
    score: float = 0.0
    weights: Literal["equal", "map", "error"] = "equal"

    def __call__(
        self,
        members: Sequence[EnsembleMember],
        predictions: Sequence[Sequence[Detections]],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Fuse ``predictions[m][n]`` of member m on image n, whose (width, height) is ``sizes[n]``."""
        number = members[0].max_detections
        return fusion.fuse(predictions, sizes, self.iou, self.score, self.votes(members), number)

    def votes(self, members: Sequence[EnsembleMember]) -> list[float] | None:
        """Each member's weight, None where all are the same; LeukoError if a validation mAP is needed and not known."""
        if self.weights == "equal":
            return None
        return [max(v, 0.001) if self.weights == "map" else max(1 - v, 0.001) ** -2 for v in known_mAPs(members)]


# What is tried. The defaults come first, so that they stay where nothing is better.
IOUS = (0.55, 0.45, 0.5, 0.6, 0.65, 0.7, 0.75)
SCORES = (0.0, 0.1, 0.2)
WEIGHTS = ("equal", "map", "error")


def tune(
    members: Sequence[EnsembleMember], predictions: Sequence[Sequence[Detections]], dataset: Dataset
) -> tuple[Fusion, list[dict[str, object]]]:
    """The fusion of the highest mAP on a data set, and what each that was tried reached: fusion, mAP, mAP50, mAR.

    ``predictions[m][n]`` are member m's detections on the data set's image n. The data set must not be the one that is
    reported. Where a member's validation mAP is not known, only equal weights are tried.
    """
    weighted = WEIGHTS if all(m.validation_mAP is not None for m in members) else ("equal",)
    sizes = [(s.width, s.height) for s in dataset.samples]
    tried: list[dict[str, object]] = []
    for iou, score, weights in tqdm(list(product(IOUS, SCORES, weighted)), desc="tuning", unit="fusion", leave=False):
        fused = Fusion(iou, score, weights)(members, predictions, sizes)
        evaluation = coco.evaluate(dataset, fused, members[0].max_detections)
        measures = {name: getattr(evaluation, name) for name in ("mAP", "mAP50", "mAR")}
        tried.append({"iou": iou, "score": score, "weights": weights, **measures})
    best = max(tried, key=lambda t: t["mAP"])
    return Fusion(best["iou"], best["score"], best["weights"]), tried
