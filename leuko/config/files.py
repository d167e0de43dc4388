"""Options of what makes, brings or shows files: ``leuko export``, ``leuko download`` and ``leuko report``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..detections import MAX_DETECTIONS
from ..registry import DEFAULT
from .limits import DETECTIONS, POSITIONAL, SIZES, Options, limited


@dataclass
class ExportOptions(Options):
    """Write a detector as a file that runs without PyTorch, and prove that it says the same. A typing stage goes with
    it; leuko predict, leuko val and Detector take the file as they take weights."""

    EXAMPLES: ClassVar[str] = """
    # the detector that comes with leuko, for ONNX Runtime
    leuko export
    # your own, for OpenVINO
    leuko export --weights runs/train/fcos --format openvino
    # then
    leuko predict --weights runs/export/fcos/fcos.onnx --source slides/patient7
    """

    weights: str = DEFAULT
    """Run folder (its best weights), weights file, or a name that leuko download knows, such as leuko-small, which
    comes with leuko."""
    format: Literal["onnx", "openvino"] = "onnx"
    """onnx: one file, for ONNX Runtime; openvino: NAME.xml and NAME.bin."""
    imgsz: int = limited(0, *SIZES, or_zero=True)
    """Longer side in pixels to which images are scaled; 0: the one that the model was trained at. The file takes images
    of any size."""
    max_detections: int = limited(MAX_DETECTIONS, *DETECTIONS)
    """Most detections per image."""
    data: str = ""
    """Data set on whose images parity is shown; without it, on rendered fields."""
    split: str = "test"
    """Split of --data."""
    fields: int = limited(8, 2, 1000)
    """Number of fields on which parity is shown."""
    save: str = "runs/export"
    """Folder of exports."""
    name: str = ""
    """The export's folder in --save, the model's name if empty; NAME-2, NAME-3 ... where it exists."""


@dataclass
class DownloadOptions(Options):
    """Download weights that others trained, checked by SHA-256, as is a file that was carried into the folder by hand.
    Without a name: list what there is."""

    EXAMPLES: ClassVar[str] = """
    leuko download                                        # what there is
    leuko download faster_rcnn_coco
    leuko train --model faster_rcnn --weights faster_rcnn_coco --data datasets/smears
    leuko download faster_rcnn_coco --mirror http://mirror.lab/weights
    """

    names: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """Names of the registry."""
    to: str = "weights"
    """Folder in which files are put."""
    mirror: str = ""
    """URL under which the files lie by their names; without it, LEUKO_MIRROR of the environment."""


@dataclass
class ReportOptions(Options):
    """Make the page of a run or a validation again, or put several on one page."""

    EXAMPLES: ClassVar[str] = """
    leuko report runs/val/fcos                            # runs/val/fcos/report.html again
    leuko report runs/val/fcos runs/val/cascade_rcnn      # side by side: runs/report/comparison.html
    leuko report runs/val/* --out comparison.html
    """

    runs: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """Folders of runs or of validations."""
    out: str = ""
    """The page; RUN/report.html (reviewed.html of a prediction), or runs/report/comparison.html, if empty."""
