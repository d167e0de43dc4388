"""An exported detector, with its typing stage if it has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.fit import fit, rgb
from ..detections import Detections
from ..errors import LeukoError
from ..kinds import misfit
from ..metrics import counting
from .graph import AGAIN, Graph
from .typing_stage import TypingStage

CELL = "cell"  # of what weights say of themselves: how large the cells were in training
FORM = 1  # of the graphs and their metadata; another number is another form
TYPER = {"file": str, "identity": str, "side": int, "view": float, "types": list[str], "box_factors": list[float]}
ABOUT = {
    "form": int,
    "leuko": str,
    "model": str,
    "licence": str,
    "identity": str,  # a digest of the weights
    "parameters": int,
    "half": bool,  # whether the weights are stored in 16 bits
    "types": list[str],  # in the order of the labels; with a typing stage, its own
    "classes": list[str],  # the detector's
    "image_size": int,  # longer side in pixels to which images are scaled
    "sides": list[int],  # least and most of an image's sides in pixels
    "mean": list[float],  # that the graph subtracts from values in 0..1, and
    "std": list[float],  # by which it divides the rest
    "max_detections": int,
    "score_threshold": float,  # of a box that is given
    "threshold": float,  # from which a cell counts
    "about": dict,  # what the weights say of themselves: validation, calibration, thresholds
    "typer": dict,  # of its typing stage: the keys of TYPER, and the stain that crops are brought to; {} without
}


@dataclass
class ExportedDetector:
    """A detector of a file that ``leuko export`` has written: its network, its typing stage if it has one, and the most
    detections of an image that it is to give."""

    graph: Graph
    typing: TypingStage | None
    max_detections: int

    def __post_init__(self) -> None:
        said = self.metadata = self.graph.about  # as ABOUT describes it
        # What a network and weights say, too (see ``engine.network`` and ``engine.checkpoint``).
        self.is_on_cpu = True
        self.path = self.graph.path
        self.types: list[str] = said["types"]
        self.classes: list[str] = said["classes"]
        self.about: dict = said["about"]
        self.identity: str = said["identity"]
        self.typer: dict | None = said["typer"] or None
        self.image_size: int = said["image_size"]
        self.parameters: int = said["parameters"]
        self.cell_sides: dict[str, float] = self.about.get(CELL, {})

    @classmethod
    def load(cls, path: str | Path, max_detections: int = 0) -> ExportedDetector:
        """From ``NAME.onnx`` or ``NAME.xml``, beside which the files lie that belong to it; 0 detections are as many as
        the file gives. LeukoError where a file is missing, broken, or not as this leuko writes it."""
        graph = _checked(Graph.open(Path(path)))
        most = graph.about["max_detections"]
        if max_detections > most:
            remedy = f"export its weights again with --max-detections {max_detections}"
            raise LeukoError(f"{path}: gives at most {most} detections per image, not {max_detections}; {remedy}")
        return cls(graph, _typing_stage(graph) if graph.about["typer"] else None, max_detections or most)

    def at_work(self, device: str, amp: str, max_detections: int) -> ExportedDetector:
        """Itself, which gives as many detections as it was loaded for; LeukoError for another place or precision than
        the CPU's and its own."""
        if device not in ("auto", "cpu") or amp != "none":
            given = f"--amp {amp}" if amp != "none" else f"--device {device}"
            raise LeukoError(f"{self.path}: {given}: an export runs on the CPU, in 32 bits; leave it out")
        return self

    def typing_stage(self, device: str) -> TypingStage | None:
        """Its typing stage, on the CPU."""
        return self.typing

    def gflops(self, sizes: Sequence[int], device: object) -> float:
        """nan: the operations of an export are not counted."""
        return float("nan")

    def check_keeps(self) -> None:
        """LeukoError: an export cannot keep what ``leuko val`` has found."""
        raise LeukoError(f"{self.path}: is an export, in which nothing is kept; name the weights that it was made of")

    def keep(self, **about: object) -> None:
        """As :meth:`check_keeps`."""
        self.check_keeps()

    def detect(self, views: Sequence[np.ndarray]) -> list[Detections]:
        """What the detector finds on images [h, w, 3] uint8 RGB that are scaled already, in their pixels, whatever its
        typing stage makes of it; together, however different their sizes are."""
        least, most = self.metadata["sides"]
        for view in views:
            if not least <= min(view.shape[:2]) <= max(view.shape[:2]) <= most:
                height, width = view.shape[:2]
                raise LeukoError(f"{self.path}: takes images of {least} to {most} pixels a side, not {width}x{height}")
        sizes = np.array([view.shape[:2] for view in views], dtype=np.int64)
        batch = np.zeros((len(views), *sizes.max(0), 3), dtype=np.uint8)
        for slot, view in zip(batch, views, strict=True):
            slot[: view.shape[0], : view.shape[1]] = view
        outputs = self.graph.run({"images": batch, "sizes": sizes})
        return [
            Detections(boxes, scores, labels, tuple(self.classes))[: min(int(count), self.max_detections)]
            for boxes, scores, labels, count in zip(*outputs, strict=True)
        ]

    def predict(self, image: np.ndarray | str | Path, threshold: float | None = None) -> Detections:
        """The cells of one image, [H, W, 3] uint8 RGB, [H, W] grey, or a file (for which Pillow and PyYAML are needed,
        too), with at least this score (without it, that from which counts are best): one detection for each, in
        descending order of score. Raises LeukoError."""
        if isinstance(image, (str, Path)):
            try:
                from ..data.images import read_image
            except ImportError as error:
                raise LeukoError(
                    f"{image}: to read files, pip install pillow pyyaml; or give pixels ({error})"
                ) from error
            image = read_image(image)
        pixels = rgb(image)
        view, size = fit(pixels, self.image_size), pixels.shape[1::-1]
        found = [d.scaled(size, view.shape[1::-1]) for d in self.detect([view])]
        (found,) = self.typing([pixels], found) if self.typing else found
        cells = counting.one_type(replace(found, types=tuple(self.types)), len(self.types))
        return cells.above(self.metadata["threshold"] if threshold is None else threshold)


def _checked(graph: Graph) -> Graph:
    """The graph of a detector; LeukoError where its metadata are not as this leuko writes them."""
    about = graph.about
    form = about.get("form")
    problem = misfit(about, ABOUT) if form == FORM else f"form {form!r:.20}, where this leuko reads form {FORM}"
    if not problem and about["typer"]:
        problem = misfit(about["typer"], TYPER, more=True)
    if not problem and not (len(about["sides"]) == 2 and about["image_size"] > 0 and about["types"]):
        problem = "no sides, size or types"
    if problem:
        raise LeukoError(f"{graph.path}: its metadata are not as this leuko writes them ({problem:.200}); {AGAIN}")
    return graph


def _typing_stage(graph: Graph) -> TypingStage:
    """The typing stage of a detector, whose network is in a file beside its own; LeukoError where that is missing or
    another one's."""
    about = graph.about["typer"]
    path = graph.path.with_name(Path(about["file"]).name)
    network = Graph.open(path)
    if network.about.get("identity") != about["identity"]:
        raise LeukoError(f"{path}: is not the typing stage of {graph.path.name}; copy the files of an export together")

    def probabilities(crops: np.ndarray) -> np.ndarray:
        return network.run({"crops": crops})[0]

    factors = tuple(float(factor) for factor in about["box_factors"])
    return TypingStage(probabilities, about["side"], tuple(about["types"]), about["view"], factors)
