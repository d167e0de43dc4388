"""Trained models as members of an ensemble, or alone: their names and types, and what their weights keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.images import LoadedImage
from ..detections import MAX_DETECTIONS, Detections
from ..errors import LeukoError, nearest
from ..metrics.calibration import Scaling
from ..ops.pairs import nms
from ..report.tables import TINY
from ..runtime import ExportedDetector
from ..runtime.ensemble import members_of
from .detect import Pipeline
from .finished import finished_runs
from .fusion import Fusion
from .loading import load_detector, typing_of
from .tiling import Tiling

if TYPE_CHECKING:
    from ..config import DetectOptions
    from .checkpoint import Weights

SAME_CELL = 0.5  # IoU
SHRUNK = 0.25  # of the side of a cell in training, below which it is hardly found
WEAK, LEARNED = 0.5, 0.1  # of the best validation mAP; the best of runs that have learned enough to be compared


@dataclass(kw_only=True)
class EnsembleMember(Pipeline):
    """A trained model ready to detect (alone or in an ensemble), with its name in tables and its weights. ``typer``
    tells whose typing stage it has, where that is not of its own weights (see ``loading.typing_of``); ``cell`` how
    wide a cell is taken to be in pixels of an image, 0 if that is not known, and ``trained_cell`` how wide one was in
    training in those of the network, likewise; ``new_name`` gives the name that the data has for one of its types."""

    name: str
    weights: Weights | ExportedDetector
    typer: str = ""
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
        typing, whose = typing_of(weights, typer, device)
        return cls(
            name=name,
            weights=weights,
            model=weights.at_work(device, amp, max_detections),
            sizes=sizes,
            typing=typing,
            typer=whose,
            tiling=tiling,
            cell=cell_size or known.get("stored", 0.0),
            trained_cell=known.get("network", 0.0),
        )

    @property
    def types(self) -> Sequence[str]:
        """The types that it gives, in the order of its labels."""
        return self.typing.types if self.typing else self.weights.classes

    def cell_of(self, image: LoadedImage) -> tuple[float, float]:
        """The width that a cell of an image is taken to have, in its pixels and in those of the network; 0 where that
        is not known."""
        if self.tiling:
            return self.tiling.cell(image), self.tiling.network
        return self.cell, self.cell * max(self.sizes) / max(image.size)

    def detect(self, images: Sequence[LoadedImage]) -> list[Detections]:
        """Detections of each image, which has the ``views`` of the member, and its pixels where these are needed."""
        return [replace(found, types=tuple(self.types)) for found in super().detect(images)]

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
    members = [EnsembleMember.load(source, device, *how) for source in members_of(sources)]
    for member in members:
        if member.name.startswith("ensemble"):  # which is what the fusion is called
            member.name += " (model)"
    names = [m.name for m in members]
    for i, member in enumerate(members):
        if names.count(member.name) > 1:
            member.name += f" ({names[: i + 1].count(names[i])})"
    return members


# ---------------------------------------------------------------- several as one


@dataclass(frozen=True)
class Ensemble:
    """One trained model, or several that are fused: what a prediction, and the last line of a validation, come from.
    Scores are ``calibrated`` before they are fused, where that is asked for."""

    members: list[EnsembleMember]
    fusion: Fusion = field(default_factory=Fusion)
    calibrated: bool = False

    @classmethod
    def of(
        cls, options: DetectOptions, types: Sequence[str] | None = None, new_name: Callable[[str], str] = str
    ) -> Ensemble:
        """The models that the options name, which must know the same types, in any order: ``types``, if these are
        given. ``new_name`` gives the names that a data set has for them. Raises LeukoError."""
        named: Sequence[str | Path] = [options.weights]
        if options.ensemble is not None:
            named = options.ensemble or finished_runs(options.project, types)
        members = load_members(named, options.device, *options.looking)
        if options.ensemble and len(members) < 2:
            raise LeukoError("--ensemble: name at least two models, or one with --weights")
        members = without_weak(members, named=options.ensemble != [])
        for member in members:
            member.new_name = new_name
            member.labels_in(members[0].types if types is None else types)
            if options.calibrated:
                member.calibrated([])
        return cls(members, Fusion(options.fusion_iou, options.fusion_score), options.calibrated)

    @property
    def name(self) -> str:
        """What a folder of its results is called."""
        return "ensemble" if len(self.members) > 1 else self.members[0].name

    @property
    def types(self) -> list[str]:
        """The types in the order of the labels."""
        return list(self.members[0].types)

    @property
    def is_on_cpu(self) -> bool:
        """Whether all of them are; if not, the others are on a GPU."""
        return all(member.model.is_on_cpu for member in self.members)

    @property
    def views(self) -> list[int]:
        """The sizes in which they look at whole images."""
        return list(dict.fromkeys(size for member in self.members for size in member.views))

    @property
    def max_detections(self) -> int:
        """Most detections per image."""
        return self.members[0].max_detections

    def cell(self, image: LoadedImage) -> tuple[float, float]:
        """The width that a cell of an image is taken to have: in its pixels, and in those of the network that shows it
        largest; 0 where that is not known."""
        return max((member.cell_of(image) for member in self.members), key=lambda sides: sides[1])

    @property
    def least_cell(self) -> float:
        """The pixels of the network below which a cell is hardly found: a quarter of what it had in training, too."""
        return max([TINY, *(SHRUNK * member.trained_cell for member in self.members)])

    def places(self, detections: Detections, image: LoadedImage | None = None) -> int:
        """The number of its detections that count against ``--max-detections``: a typing stage makes several of one,
        and of an ``image`` that is cut into tiles it is the most of a tile."""
        if any(member.typing for member in self.members):
            detections = detections[np.unique(detections.boxes, axis=0, return_index=True)[1]]
        tilings = [member.tiling for member in self.members if member.tiling and image]
        return max((tiling.most(detections, image) for tiling in tilings), default=len(detections))

    def fused(
        self, predictions: Sequence[Sequence[Detections]], sizes: Sequence[tuple[int, int]]
    ) -> Sequence[Detections]:
        """What all say together of the images of these (width, height), by ``predictions[m][n]`` of each member."""
        return predictions[0] if len(self.members) == 1 else self.fusion(predictions, sizes, self.max_detections)

    def __call__(self, images: Sequence[LoadedImage]) -> list[Detections]:
        """Detections of each image. Those of one shape are looked at together, so that none is padded for another: what
        is found on an image is, but for rounding, what is found on it alone."""
        alike: dict[tuple, list[int]] = {}
        for i, image in enumerate(images):
            alike.setdefault(tuple(view.shape for view in image.views.values()), []).append(i)
        found = {}
        for numbers in alike.values():
            found |= dict(zip(numbers, self._of_one_shape([images[i] for i in numbers]), strict=True))
        return [found[i] for i in range(len(images))]

    def _of_one_shape(self, images: Sequence[LoadedImage]) -> list[Detections]:
        predictions = [member.relabel(member.detect(images), self.types) for member in self.members]
        if self.calibrated:
            predictions = [member.calibrated(p) for member, p in zip(self.members, predictions, strict=True)]
        found = self.fused(predictions, [image.size for image in images])
        return [replace(each, types=tuple(self.types)) for each in found]
