"""Options of detecting: ``leuko val``, ``leuko predict`` and ``leuko merge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..detections import MAX_DETECTIONS
from ..errors import LeukoError
from ..registry import DEFAULT
from .limits import (
    DETECTIONS,
    MAX_PIXELS,
    MOST_DETECTIONS,
    PIXELS,
    POSITIONAL,
    SHARE,
    SIZES,
    WORKERS,
    Options,
    limited,
)

EXAMPLES = Path(__file__).parent.parent / "examples"  # fields to try a detector on
MAX_PICTURES = 1000  # images of which pictures and a page for review are made, if no other number is given
LabelFormat = Literal["coco", "yolo", "voc", "labelstudio"]  # in which what was found is written


@dataclass
class DetectOptions(Options):
    """Which trained models are run, and how: image sizes, scores, device, and the fusion of several."""

    weights: str = ""
    """Run folder (its best weights), weights file, or a name that leuko download knows; leuko-small, which comes with
    leuko, if neither this nor --ensemble is given."""
    ensemble: list[str] | None = None
    """Fuse these runs, weights files or names; with none named, every finished run of --project that fits."""
    typer: str = ""
    """Weights whose typing stage (see leuko type) gives the types, instead of the model's own; off: the detector's own
    types, without a typing stage."""
    project: str = "runs/train"
    """Folder in which --ensemble looks for runs."""
    name: str = ""
    """The result's folder in --save, the model's name if empty."""
    threshold: float | None = limited(None, *SHARE)
    """Lowest score of a cell that is classified; without it, that from which counts were best on a split that was not
    reported, as training or leuko val has found and kept it."""
    calibrated: bool = False
    """Use the scores as leuko val --calibrate has calibrated them, before they are fused."""
    fusion_iou: float = limited(0.55, *SHARE, above=True, below=True)
    """Boxes of different members that overlap this much are taken for the same cell."""
    fusion_score: float = limited(0.0, *SHARE, below=True)
    """Detections of a member below this score have no vote."""
    imgsz: list[int] | None = limited(None, *SIZES)  # noqa: RUF009
    """Longer side in pixels to which images are scaled, instead of the one that the model was trained at. Several: the
    model looks at each image in all of them, and its detections are fused, one vote per size."""
    max_detections: int = limited(MAX_DETECTIONS, *DETECTIONS)
    """Most detections per image, of each model and of their fusion, and in mAP and mAR; more candidates are looked at,
    and that takes longer."""
    tiles: bool = False
    """Cut images of many thousand pixels into overlapping tiles in which cells are as large as in training, and count a
    cell at a seam once; --imgsz and --max-detections are then those of a tile."""
    cell_size: float = limited(0.0, 4, 4096, or_zero=True)
    """Width of a leukocyte in pixels of the images, for --tiles; 0: by the resolution that a slide's file states, else
    as in training."""
    labels: list[LabelFormat] | None = None
    """Also write the cells that are listed (of val: those that it counts) as labels to correct, in these formats: coco,
    yolo, voc, labelstudio. Each gets a folder in the result's labels, with the images linked or copied."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Run the network in half precision; fp16 needs a GPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""
    workers: int = limited(-1, *WORKERS)
    """Loader processes; -1: one per core but one, at most 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights and self.ensemble is None:
            self.weights = DEFAULT

    @property
    def looking(self) -> tuple[Sequence[int], int, str, str, bool, float]:
        """How the models look at images, as ``engine.ensemble`` takes it."""
        return self.imgsz or (), self.max_detections, self.typer, self.amp, self.tiles, self.cell_size

    @property
    def most_per_image(self) -> int:
        """Most detections of an image, of which each tile has at most ``max_detections``."""
        return MOST_DETECTIONS if self.tiles else self.max_detections

    def check_models(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if self.weights and self.ensemble is not None:
            raise LeukoError("name one model with --weights, or several with --ensemble")
        if len(set(self.imgsz or ())) < len(self.imgsz or ()):
            raise LeukoError(f"--imgsz {' '.join(map(str, self.imgsz))}: names a size twice")


@dataclass
class ValOptions(DetectOptions):
    """Measure a trained detector on a split of a data set, or several detectors and their fusion."""

    EXAMPLES: ClassVar[str] = """
    # the detector that comes with leuko on the test split
    leuko val --data datasets/smears
    # your own
    leuko val --weights runs/train/fcos --data datasets/smears
    # another split, a weights file
    leuko val --weights fcos.safetensors --data datasets/smears --split val
    # three models and their fusion in one table
    leuko val --ensemble runs/train/fcos runs/train/faster_rcnn runs/train/cascade_rcnn --data datasets/smears
    # all finished runs of runs/train that fit the data
    leuko val --ensemble --data datasets/smears
    # which interference factor breaks it first?
    leuko val --weights runs/train/fcos --data datasets/smears --factors all --severity 1..5
    # fit the scores on the val split, and use the fit from then on
    leuko val --weights runs/train/fcos --data datasets/smears --calibrate
    leuko val --weights runs/train/fcos --data datasets/smears --calibrated
    # smears whose cells have another size in pixels: look at each image in several sizes about the trained one
    leuko val --weights runs/train/fcos --data datasets/elsewhere --imgsz 480 600 750 900
    """

    data: str = ""
    """Data set: a folder, a COCO JSON file, or a data YAML."""
    split: str = "test"
    """Split to validate on."""
    save: str = "runs/val"
    """Folder of results."""
    batch: int = limited(1, 1)
    """Images per forward pass."""
    calibrate: bool = False
    """Calibrate the scores on --tune-split, and keep the calibration in the weights files, for --calibrated."""
    draws: int = limited(1000, 39, 10**5, or_zero=True)
    """Draws of the bootstrap for the intervals of mAP and mAR; 0: none."""
    factors: str = ""
    """Put interference factors on the images and draw mAP against their severity: all, or names with commas. The model
    (the first of an ensemble's) runs on every image for each factor and severity."""
    severity: str = "1..5"
    """Severities for --factors: one, or a range such as 1..5."""
    allow_leaks: bool = False
    """Validate even if a group of images (a smear, a patient) stands in the training split, too."""
    tune_split: str = "val"
    """Split for --calibrate, and on which the score is found from which counts are best."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.data:
            raise LeukoError("--data is missing: name a data folder, a COCO file or a data YAML")
        self.check_models()
        if self.calibrate and self.calibrated:
            raise LeukoError("--calibrate fits the scores, --calibrated uses the fit: give one of them")
        if not set(self.severities) <= set(range(1, 6)):
            raise LeukoError(f"--severity {self.severity}: give 1 to 5, or a range such as 1..5")

    @property
    def severities(self) -> list[int]:
        """The severities that ``severity`` names; [0] where it names none."""
        first, _, last = self.severity.partition("..")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return [0]
        return list(range(int(first), int(last or first) + 1)) or [0]


@dataclass
class PredictOptions(DetectOptions):
    """Find the leukocytes on new images, and count them by type."""

    EXAMPLES: ClassVar[str] = """
    # a folder of images, by the detector that comes with leuko
    leuko predict --source slides/patient7
    # by your own
    leuko predict --weights runs/train/fcos --source slides/patient7
    # a pattern (in quotes), cells with a score of at least 0.7
    leuko predict --weights runs/train/fcos --source "slides/*/field*.jpg" --threshold 0.7
    # cells of another size in pixels than in training: look at each image in several sizes
    leuko predict --weights runs/train/fcos --source slides/patient7 --imgsz 480 600 750 900
    # a stitched field of 20,000 pixels, or a whole slide (pip install 'leuko[slides]')
    leuko predict --source slides/wide.png --tiles --cell-size 120 --max-pixels 400
    leuko predict --source slides/7.svs --tiles
    # boxes to correct in Label Studio
    leuko predict --weights runs/train/fcos --source slides/patient7 --labels labelstudio
    # several models, fused
    leuko predict --ensemble runs/train/fcos runs/train/cascade_rcnn --source slides/patient7
    # many images on several machines, each of which takes a part; then put the parts together
    leuko predict --source slides --shard 1/4
    leuko merge runs/predict/leuko-small-*-of-4
    """

    source: str = ""
    """An image, a folder of images, a pattern in quotes, or a text file (.txt) that lists images, one a line."""
    save: str = "runs/predict"
    """Folder of results."""
    pictures: int = limited(MAX_PICTURES, 0)
    """Draw annotated pictures and make review.html of at most this many images. Of more, only tables and report.html
    are written."""
    batch: int = limited(0, 0)
    """Images that the detector looks at together; 0: 8 on a GPU, one on a CPU, where more are not faster. What is found
    does not depend on it, but for rounding."""
    workers: int = limited(-1, *WORKERS)
    """Worker processes; -1: on a CPU one per core, at most 16, each of which detects; beside a GPU one per core but
    one, at most 8, which decode."""
    shard: str = ""
    """Part of the images, as i/n (1/4 to 4/4), for arrays of jobs; leuko merge puts the parts together. Processes that
    torchrun has started take a part each by themselves."""
    engine: Literal["local", "ray"] = "local"
    """ray: by Ray Data (extra ray) on the cluster that RAY_ADDRESS names, or on this machine; the results also as
    Parquet. --source may then be Parquet with path and, where these are no files, bytes, or an object store's address.
    Pictures and review.html are not made."""
    max_pixels: int = limited(MAX_PIXELS, *PIXELS)
    """Megapixels of the largest image that is read; a larger one is listed as not read. A pixel takes up to 12 bytes of
    memory."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.source:
            remedy = f"name an image, a folder or a pattern in quotes; to try it: leuko predict --source {EXAMPLES}"
            raise LeukoError(f"--source is missing: {remedy}")
        self.check_models()
        index, shards = self.shard_of
        if not 0 <= index < shards:
            raise LeukoError(f"--shard {self.shard}: give i/n, such as 1/4, with i from 1 to n")
        if self.engine == "ray" and self.shard:
            raise LeukoError("--shard is not for --engine ray; leave one of them out")
        if self.is_remote and self.engine != "ray":
            raise LeukoError(f"--source {self.source}: is read by Ray; give --engine ray, too")

    @property
    def is_remote(self) -> bool:
        """Whether the source is one that only Ray reads: an object store's address, or Parquet."""
        return "://" in self.source or is_table(self.source)

    @property
    def shard_of(self) -> tuple[int, int]:
        """The number of the shard that ``shard`` names, from 0 on, and how many there are; (0, 1) without one, and (-1,
        0) where it names none."""
        first, _, last = (self.shard or "1/1").partition("/")
        return (int(first) - 1, int(last)) if first.isdecimal() and last.isdecimal() else (-1, 0)


@dataclass
class MergeOptions(Options):
    """Put the shards of a prediction together: the files are those that one process would have written."""

    EXAMPLES: ClassVar[str] = """
    leuko merge runs/predict/leuko-small-*-of-4
    """

    shards: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """The folders of all shards of a prediction."""
    save: str = "runs/predict"
    """Folder of results."""
    name: str = ""
    """The result's folder in it, as leuko predict names it if empty."""


def is_table(source: str) -> bool:
    """Whether a source is Parquet: a file, or a folder of files, with paths or bytes of images."""
    return source.rstrip("/").endswith(".parquet")
