"""Options of what makes, brings or shows files: ``leuko export``, ``leuko download`` and ``leuko report``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..detections import MAX_DETECTIONS
from ..errors import LeukoError
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
    # several, to be fused
    leuko export --ensemble runs/train/fcos runs/train/cascade_rcnn --name both
    # then
    leuko predict --weights runs/export/fcos/fcos.onnx --source slides/patient7
    leuko predict --ensemble runs/export/both --source slides/patient7
    """

    weights: str = ""
    """Run folder (its best weights), weights file, or a name that leuko download knows; leuko-small, which comes with
    leuko, if neither this nor --ensemble is given."""
    ensemble: list[str] | None = None
    """Export each of these, and a manifest that names them; with none named, every finished run of --project."""
    project: str = "runs/train"
    """Folder in which --ensemble looks for runs."""
    format: Literal["onnx", "openvino"] = "onnx"
    """onnx: one file, for ONNX Runtime; openvino: NAME.xml and NAME.bin."""
    imgsz: int = limited(0, *SIZES, or_zero=True)
    """Longer side in pixels to which images are scaled; 0: the one that the model was trained at. The file takes images
    of any size."""
    half: bool = False
    """Store the weights in 16 instead of 32 bits: the file is half as large, and computes in 32 bits all the same."""
    max_detections: int = limited(MAX_DETECTIONS, *DETECTIONS)
    """Most detections per image."""
    data: str = ""
    """Data set on whose images parity is shown, and by whose labels, that mAP is the same; without it, on rendered
    fields."""
    split: str = "test"
    """Split of --data."""
    fields: int = limited(8, 2, 1000)
    """Number of fields on which parity is shown."""
    save: str = "runs/export"
    """Folder of exports."""
    name: str = ""
    """The export's folder in --save, the model's name if empty; NAME-2, NAME-3 ... where it exists."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if self.weights and self.ensemble is not None:
            raise LeukoError("name one model with --weights, or several with --ensemble")
        if not self.weights and self.ensemble is None:
            self.weights = DEFAULT


@dataclass
class DownloadOptions(Options):
    """Download weights that others trained, checked by SHA-256. Without a name: list what there is."""

    EXAMPLES: ClassVar[str] = """
    leuko download                                        # what there is
    leuko download faster_rcnn_coco
    leuko train --model faster_rcnn --weights faster_rcnn_coco --data datasets/smears
    leuko download faster_rcnn_coco --mirror http://mirror.lab/weights
    leuko download faster_rcnn_coco --from-file /media/stick/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth
    """

    names: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """Names of the registry."""
    to: str = "weights"
    """Folder in which files are put."""
    mirror: str = ""
    """URL under which the files lie by their names; without it, LEUKO_MIRROR of the environment."""
    from_file: str = ""
    """A file that was carried in by hand."""


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
