"""Options of the commands, one dataclass per command (those of ``leuko data`` are in ``data/config.py``).

A field's docstring is its help text, ``EXAMPLES`` ends the help (see ``cli``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from .detections import MAX_DETECTIONS
from .errors import LeukoError, nearest
from .registry import DEFAULT

POSITIONAL = {"positional": True}  # metadata of an option that is given by its place on the command line
EXAMPLES = Path(__file__).parent / "examples"  # fields to try a detector on
MAX_PIXELS = 80  # megapixels of an image that is read: its decoding then takes at most 1 GB
LEAST_SIDE, MOST_SIDE = 64, 8192  # pixels to which the longer side of an image is scaled
MOST_DETECTIONS = 10_000  # that --max-detections may ask for
MAX_PICTURES = 1000  # images of which pictures and a page for review are made, if no other number is given
LABELS = ("coco", "yolo", "voc", "labelstudio")  # the formats in which what was found is written
SIX = ("fsaf", "fcos", "faster_rcnn", "grid_rcnn", "double_head_rcnn", "cascade_rcnn")  # in the order of the paper


def model_names(model: object) -> list[str]:
    """The models that ``--model`` names: commas separate several, and ``all`` is the paper's six."""
    names: list[str] = []
    for name in str(model).split(","):
        names += SIX if name.strip() == "all" else [name.strip()]
    return names


def is_comparison(model: object) -> bool:
    """Whether ``--model`` names several models."""
    return len(model_names(model)) > 1


@dataclass
class TrainOptions:
    """Train a detector. The defaults are the paper's recipe (Li et al. 2022)."""

    EXAMPLES: ClassVar[str] = """
    # the paper's recipe: ResNet-50, 600 px, 16 epochs
    leuko train --data datasets/smears --model cascade_rcnn
    # a machine without a GPU
    leuko train --data datasets/smears --model fcos --preset small
    # go on after an interruption; train a finished run for longer
    leuko train --resume runs/train/fcos
    leuko train --resume runs/train/fcos --epochs 24
    # start from trained weights, on data with other types
    leuko train --data datasets/other --model fcos --weights runs/train/fcos
    leuko train --data datasets/other --model fcos_improved --preset small --weights leuko-small
    # several models, as leuko compare does it
    leuko train --data datasets/smears --model all --name six
    # one of Ultralytics' models: from COCO's weights (leuko download yolo11n), or from scratch
    leuko train --data datasets/smears --model yolo11n
    leuko train --data datasets/smears --model yolo11n --no-pretrained
    # what augmentation does, without training
    leuko train --data datasets/smears --augment smear --show-augment
    # options from a file; a flag overrides the file
    leuko train --config recipe.yaml --lr 0.005
    """

    data: str = ""
    """Data set: a folder (COCO, VOC or YOLO), a COCO JSON file, or a data YAML."""
    model: str = "fcos"
    """Detector: fsaf, fcos, fcos_improved, faster_rcnn, grid_rcnn, double_head_rcnn or cascade_rcnn, or a YOLO model of
    Ultralytics by its name, YAML or .pt file; several with commas, all for the paper's six."""
    backbone: str = "resnet50"
    """Backbone: any timm network with maps at strides 4, 8, 16 and 32."""
    preset: Literal["paper", "small"] = "paper"
    """paper: ResNet-50, 600 px, full width. small: for machines without a GPU."""
    epochs: int = 16
    """Passes over the training images; more than before, with --resume, extends a finished run."""
    batch: int = 8
    """Images per step, at most. The batches of an epoch differ by one image at most, so that none is much smaller."""
    imgsz: int = 600
    """Longer side in pixels to which images are scaled."""
    lr: float = 0.0
    """Learning rate of SGD, after the warm-up; 0: the detector's own, .01 (the paper's) or, for FCOS, FSAF and
    Double-Head R-CNN, .005; Ultralytics' models then choose optimiser, rate and schedule themselves."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD."""
    warmup: float = 1.0
    """Epochs of linear warm-up (the paper's 500 steps are about one epoch of its data)."""
    clip: float = 0.0
    """Largest norm of the gradients; 0: the detector's own, 35 or, for FSAF, 10; inf leaves them as they are."""
    accumulate: int = 1
    """Batches whose gradients are summed into one step of the optimiser."""
    ema: float = 0.0
    """Decay of the running mean of the weights that is validated and saved (0.999, for example), reached by a ramp; 0:
    no mean."""
    patience: int = 0
    """Stop when --best-by has not improved for this many epochs; 0: train all epochs."""
    best_by: Literal["mAP", "mAP50", "mAR"] = "mAP"
    """Validation measure by which the best epoch is chosen."""
    seed: int = 0
    """Seed of everything random; the same seed, data and machine give the same weights."""
    project: str = "runs/train"
    """Folder of runs."""
    name: str = ""
    """The run's folder in the project, the model's name if empty; NAME-2, NAME-3 ... where it exists."""
    resume: str = ""
    """Go on with this run folder where it stopped, with its own options; only a larger --epochs may be given."""
    weights: str = ""
    """Start a new run from these trained weights; classes are matched by name. A run, a file of leuko's, MMDetection's,
    torchvision's or Ultralytics', or a name that leuko download knows."""
    pretrained: bool = True
    """Start from ImageNet weights of the backbone; Ultralytics' models from those of COCO."""
    backbone_weights: str = ""
    """Backbone weights in timm's names, instead of the hub's: a file, or a name that leuko download knows."""
    train_split: str = "train"
    """Split that is learned from."""
    val_split: str = "val"
    """Split that is validated on each epoch; test where the data has no val."""
    allow_leaks: bool = False
    """Train even if a group of images (a smear, a patient) stands in the training and in the validation split."""
    augment: str | list = "auto"
    """Augmentation of the training images: none, flips, standard, smear (for other centres, too), or a YAML file with
    a list of transforms and their probabilities under the key augment (see docs/data.md); in a file of options, that
    list itself. auto: smear where at least 10,000 images are shown (images times epochs), else standard."""
    show_augment: bool = False
    """Draw one training image under each transform and under all of them, as augment.jpg, and stop."""
    repeat_factor: float = 0.0
    """Show images with rare types more often: a type on a share f of the images, below this one, sqrt(this / f) times
    as often (repeat-factor sampling, Gupta et al. 2019); 0: each image once per epoch."""
    type_weights: Literal["none", "balanced"] = "none"
    """Weights in the loss of the types; balanced: by 1 / sqrt(cells), the mean over all cells being 1."""
    norm: Literal["frozen", "train", "gn"] = "frozen"
    """Backbone's norm layers: frozen BatchNorm statistics, BatchNorm that follows the batches, or GroupNorm."""
    freeze: bool = True
    """Leave the backbone's stem and first stage as pretrained (ignored without pretrained weights and with gn)."""
    normalize_features: bool = False
    """Divide the backbone's maps by their standard deviation, as measured on the first batch (for EfficientNet and
    similar networks). FCOS, whose heads have norm layers, does not."""
    channels: int = 256
    """Channels of the FPN and the heads."""
    fc_channels: int = 1024
    """Width of the R-CNN heads' fully-connected layers."""
    proposals: int = 0
    """RPN proposals per image; 0: the detector's own 1,000 or 2,000."""
    rois: int = 512
    """RoIs per image that an R-CNN head learns from."""
    vote: float = 0.8
    """IoU from which a box that NMS drops votes on the one that it keeps (box voting), when a trained Faster,
    Double-Head or Cascade R-CNN detects; 0: no voting."""
    max_detections: int = MAX_DETECTIONS
    """Most detections per image when an epoch is validated; more candidates are looked at, and that takes longer."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Train and validate in half precision; fp16 needs a GPU."""
    channels_last: bool = False
    """Keep maps channels-last in memory; faster on a GPU, and for EfficientNet's backbone on a CPU."""
    deterministic: bool = False
    """Give the same weights bit for bit on a GPU, too, for the price of some speed; a CPU does so anyway."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""
    workers: int = -1
    """Loader processes; -1: one per core but one, at most 8."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep the decoded, scaled images in memory, or in a temporary file (in TMPDIR) of 1 MB per image at 600 px."""
    save_minutes: float = 10.0
    """Save the state for --resume also within an epoch, this often."""
    tensorboard: bool = False
    """Log losses, learning rate and measures for TensorBoard, too (needs the extra loggers)."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.data:
            raise LeukoError("--data is missing: name a data folder, a COCO file or a data YAML")
        for flag in ("epochs", "batch", "accumulate", "channels", "fc_channels", "rois"):
            if getattr(self, flag) < 1:
                raise LeukoError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: give at least 1")
        check_sizes([self.imgsz])
        check_max_detections(self.max_detections)
        if not self.save_minutes > 0:
            raise LeukoError(f"--save-minutes {self.save_minutes}: give a number above 0")
        for flag in ("momentum", "ema"):
            if not 0 <= getattr(self, flag) < 1:
                raise LeukoError(f"--{flag} {getattr(self, flag)}: give a number from 0 to below 1")
        for flag in ("lr", "weight_decay", "warmup", "clip", "proposals", "seed", "patience"):
            if not getattr(self, flag) >= 0:
                raise LeukoError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: must not be negative")
        for flag in ("lr", "weight_decay", "warmup"):
            if getattr(self, flag) == math.inf:
                raise LeukoError(f"--{flag.replace('_', '-')} inf: give a number")
        check_workers(self.workers)
        if not 0 <= self.vote < 1:
            raise LeukoError(f"--vote {self.vote}: give an IoU, from 0 (no votes) to below 1")
        if not 0 <= self.repeat_factor <= 1:
            raise LeukoError(f"--repeat-factor {self.repeat_factor}: give a share of the images, from 0 to 1")
        if self.seed >= 2**31:
            raise LeukoError(f"--seed {self.seed}: give a number below 2**31")
        if self.channels % 32:
            raise LeukoError(f"--channels {self.channels}: give a multiple of 32 (group norm has 32 groups)")
        if self.resume and self.weights:
            raise LeukoError("--resume goes on with a run, --weights starts a new one: give one of them")


PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    "small": {
        "backbone": "tf_efficientnet_lite0",
        "imgsz": 320,
        "normalize_features": True,
        "channels_last": True,
        "channels": 128,
        "fc_channels": 512,
        "proposals": 300,
        "rois": 64,
    },
}


@dataclass
class CompareOptions(TrainOptions):
    """Train several detectors one after the other and measure them and their fusion in one table. An interrupted
    comparison goes on where it was. The options are those of leuko train."""

    EXAMPLES: ClassVar[str] = """
    # the paper's six
    leuko compare --data datasets/smears --name six
    # some of them, and one of Ultralytics'
    leuko compare --data datasets/smears --model fcos,faster_rcnn,yolo11n --preset small
    # go on with a comparison
    leuko compare --resume runs/train/six
    """

    model: str = "all"
    """Detectors, separated by commas; all: the paper's six."""


@dataclass
class DetectOptions:
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
    threshold: float | None = None
    """Lowest score of a cell that is classified; without it, that from which counts were best on a split that was not
    reported, as training or leuko val has found and kept it."""
    calibrated: bool = False
    """Use the scores as leuko val --calibrate has calibrated them, before they are fused."""
    fusion_iou: float = 0.55
    """Boxes of different members that overlap this much are taken for the same cell."""
    fusion_score: float = 0.0
    """Detections of a member below this score have no vote."""
    fusion_weights: Literal["equal", "map", "error"] = "equal"
    """Weight of a vote: the same for all, the member's validation mAP, or the inverse square of what that lacks to 1,
    which lets a far better member decide."""
    imgsz: list[int] | None = None
    """Longer side in pixels to which images are scaled, instead of the one that the model was trained at. Several: the
    model looks at each image in all of them, and its detections are fused, one vote per size."""
    max_detections: int = MAX_DETECTIONS
    """Most detections per image, of each model and of their fusion, and in mAP and mAR; more candidates are looked at,
    and that takes longer."""
    tiles: bool = False
    """Cut images of many thousand pixels into overlapping tiles in which cells are as large as in training, and count a
    cell at a seam once; --imgsz and --max-detections are then those of a tile."""
    cell_size: float = 0.0
    """Width of a leukocyte in pixels of the images, for --tiles; 0: by the resolution that a slide's file states, else
    as in training."""
    labels: list[str] | None = None
    """Also write what was found (by val, with a score of at least .5) as labels to correct, in these formats: coco,
    yolo, voc, labelstudio. Each gets a folder in the result's labels, with the images linked or copied."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Run the network in half precision; fp16 needs a GPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""
    workers: int = -1
    """Loader processes; -1: one per core but one, at most 8."""

    def __post_init__(self) -> None:
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
        if not 0 < self.fusion_iou < 1:
            raise LeukoError(f"--fusion-iou {self.fusion_iou}: give a number between 0 and 1")
        if not 0 <= self.fusion_score < 1:
            raise LeukoError(f"--fusion-score {self.fusion_score}: give a score from 0 to below 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise LeukoError(f"--threshold {self.threshold}: give a score from 0 to 1")
        check_sizes(self.imgsz)
        check_workers(self.workers)
        check_max_detections(self.max_detections)
        check_cell_size(self.cell_size)
        if self.labels is not None and (wrong := sorted(set(self.labels or [""]) - set(LABELS))):
            hint = nearest(wrong[0], LABELS)
            raise LeukoError(f'--labels "{wrong[0]}": is no format{hint}; give some of {", ".join(LABELS)}')


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
    # fuse only the three best, by options of the fusion that do best on the val split
    leuko val --ensemble --members best:3 --tune --data datasets/smears
    """

    data: str = ""
    """Data set: a folder, a COCO JSON file, or a data YAML."""
    split: str = "test"
    """Split to validate on."""
    save: str = "runs/val"
    """Folder of results."""
    batch: int = 1
    """Images per forward pass."""
    members: str = "all"
    """Which members are fused: all, or those of the highest validation mAP (best:3, for example)."""
    calibrate: bool = False
    """Calibrate the scores on --tune-split, and keep the calibration in the weights files, for --calibrated."""
    draws: int = 1000
    """Draws of the bootstrap for the intervals of mAP and mAR; 0: none."""
    factors: str = ""
    """Put interference factors on the images and draw mAP against their severity: all, or names with commas. The model
    (the first of an ensemble's) runs on every image for each factor and severity."""
    severity: str = "1..5"
    """Severities for --factors: one, or a range such as 1..5."""
    tune: bool = False
    """Choose the three fusion options by mAP on --tune-split; the split that is reported stays unseen."""
    allow_leaks: bool = False
    """Validate even if a group of images (a smear, a patient) stands in the training split, too."""
    tune_split: str = "val"
    """Split for --tune and --calibrate."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.data:
            raise LeukoError("--data is missing: name a data folder, a COCO file or a data YAML")
        self.check_models()
        if self.batch < 1:
            raise LeukoError(f"--batch {self.batch}: give at least 1")
        if self.draws and not 39 <= self.draws <= 10**5:
            raise LeukoError(f"--draws {self.draws}: a 95 % interval needs 39 to 100,000; give 0 for none")
        if self.calibrate and self.calibrated:
            raise LeukoError("--calibrate fits the scores, --calibrated uses the fit: give one of them")
        if not set(self.severities) <= set(range(1, 6)):
            raise LeukoError(f"--severity {self.severity}: give 1 to 5, or a range such as 1..5")
        if self.members != "all" and not self.best:
            raise LeukoError(f"--members {self.members}: give all, or best:N with N of at least 2")
        for flag, given in (("members", self.members != "all"), ("tune", self.tune)):
            if given and self.ensemble is None:
                raise LeukoError(f"--{flag} is about an ensemble; name one with --ensemble")

    @property
    def severities(self) -> list[int]:
        """The severities that ``severity`` names; [0] where it names none."""
        first, _, last = self.severity.partition("..")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return [0]
        return list(range(int(first), int(last or first) + 1)) or [0]

    @property
    def best(self) -> int:
        """N of ``members="best:N"``; 0 where it is none."""
        word, _, number = self.members.partition(":")
        return int(number) if word == "best" and number.isdecimal() and int(number) > 1 else 0


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
    pictures: int = MAX_PICTURES
    """Draw annotated pictures and make review.html of at most this many images. Of more, only tables and report.html
    are written."""
    batch: int = 0
    """Images that the detector looks at together; 0: 8 on a GPU, one on a CPU, where more are not faster. What is found
    does not depend on it, but for rounding."""
    workers: int = -1
    """Worker processes; -1: on a CPU one per core, at most 16, each of which detects; beside a GPU one per core but
    one, at most 8, which decode."""
    shard: str = ""
    """Part of the images, as i/n (1/4 to 4/4), for arrays of jobs; leuko merge puts the parts together. Processes that
    torchrun has started take a part each by themselves."""
    engine: Literal["local", "ray"] = "local"
    """ray: by Ray Data (extra ray) on the cluster that RAY_ADDRESS names, or on this machine; the results also as
    Parquet. --source may then be Parquet with path and, where these are no files, bytes, or an object store's address.
    Pictures and review.html are not made."""
    max_pixels: int = MAX_PIXELS
    """Megapixels of the largest image that is read; a larger one is listed as not read. A pixel takes up to 12 bytes of
    memory."""
    originals: bool = False
    """Draw and list the cells on the originals of images that leuko data resize made."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.source:
            remedy = f"name an image, a folder or a pattern in quotes; to try it: leuko predict --source {EXAMPLES}"
            raise LeukoError(f"--source is missing: {remedy}")
        self.check_models()
        check_pixels(self.max_pixels)
        for flag in ("batch", "pictures"):
            if getattr(self, flag) < 0:
                raise LeukoError(f"--{flag} {getattr(self, flag)}: must not be negative")
        index, shards = self.shard_of
        if not 0 <= index < shards:
            raise LeukoError(f"--shard {self.shard}: give i/n, such as 1/4, with i from 1 to n")
        for flag in ("shard", "originals"):
            if self.engine == "ray" and getattr(self, flag):
                raise LeukoError(f"--{flag} is not for --engine ray; leave one of them out")
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
class MergeOptions:
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


def check_sizes(sizes: Sequence[int] | None) -> None:
    """LeukoError unless the sizes of images, in pixels, are large enough and differ."""
    if len(set(sizes or ())) < len(sizes or ()):
        raise LeukoError(f"--imgsz {' '.join(map(str, sizes))}: names a size twice")
    for size in sizes or ():
        if not LEAST_SIDE <= size <= MOST_SIDE:
            raise LeukoError(f"--imgsz {size}: give at least {LEAST_SIDE} pixels, and at most {MOST_SIDE}")


def check_cell_size(number: float) -> None:
    """LeukoError unless the width of a cell in pixels is usable."""
    if number and not 4 <= number <= 4096:
        raise LeukoError(f"--cell-size {number:g}: give pixels from 4 to 4096, or 0")


def check_pixels(number: int) -> None:
    """LeukoError unless a number of megapixels is usable."""
    if not 1 <= number <= 1000:
        raise LeukoError(f"--max-pixels {number}: give megapixels from 1 to 1000")


def check_workers(workers: int) -> None:
    """LeukoError for more loader processes than a machine has use for."""
    if workers > 256:
        raise LeukoError(f"--workers {workers}: give at most 256")


def check_max_detections(number: int) -> None:
    """LeukoError unless a number of detections per image is usable."""
    if not 1 <= number <= MOST_DETECTIONS:
        raise LeukoError(f"--max-detections {number}: give 1 to {MOST_DETECTIONS:,}")


@dataclass
class TypeOptions:
    """Train a typing stage: a network that gives each cell its type by a crop of it, for any detector. It learns from
    boxes with types and from crops of single cells, of several centres if possible."""

    EXAMPLES: ClassVar[str] = """
    # for a detector: its weights and the typing stage go into one new file
    leuko type --weights runs/train/fcos --data slides
    # three centres, and crops of single cells of one of them; classes that are no type are learned as none
    leuko type --weights runs/train/fcos --data home=slides far=far.yaml more=krd --crops home=crops --name stage
    # how well does it travel? Learn without a centre, and measure on it
    leuko type --data home=slides far=far.yaml more=krd --crops home=crops --leave-out far --name without-far
    # then
    leuko predict --weights runs/type/stage --source slides/patient7
    leuko predict --weights runs/train/cascade_rcnn --typer runs/type/stage --source slides/patient7
    """

    data: list[str] = field(default_factory=list)
    """Data sets with types, each as PATH, or as CENTRE=PATH to say where it is from. Each centre is learned from
    equally often."""
    crops: list[str] = field(default_factory=list)
    """Folders of crops, each as PATH or CENTRE=PATH: images with one cell in the middle, in a folder per class. Classes
    that are no type of the data (platelet, erythroblast, ...) are learned as none: not a leukocyte."""
    weights: str = ""
    """The detector that the typing stage is written with: a run folder, a weights file, or leuko-small. It must have a
    single type, or types that are all among those of the data. Without it, the stage is written alone, for --typer."""
    name: str = "typer"
    """The run's folder in the project; NAME-2, NAME-3 ... where it exists."""
    project: str = "runs/type"
    """Folder of runs."""
    leave_out: str = ""
    """A centre that is not learned from but measured on: its fields of --train-split, and its crops."""
    train_split: str = "train"
    """Split that is learned from; a data set with only one split is used whole."""
    val_split: str = "val"
    """Split that is measured on at the end, where a data set has it."""
    backbone: str = "tf_efficientnet_lite0"
    """Network that looks at the crops: any of timm's that takes images of --side pixels."""
    backbone_weights: str = ""
    """Its ImageNet weights, with timm's names: a file, or a name that leuko download knows. Without it, those that are
    on this machine."""
    pretrained: bool = True
    """Start from ImageNet weights."""
    side: int = 96
    """Width and height in pixels to which each crop is scaled."""
    view: float = 1.3
    """How much a crop shows around the cell: its width is this many times the longer side of the cell's box."""
    steps: int = 600
    """Number of training steps."""
    batch: int = 32
    """Cells in each step."""
    lr: float = 0.002
    """Highest learning rate; it rises to this at first and then falls (AdamW, one cycle)."""
    half: bool = False
    """Store all weights, the detector's too, in 16 instead of 32 bits: the file is half as large."""
    seed: int = 0
    """Seed of everything random; the same seed, data and machine give the same weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.data and not self.crops:
            raise LeukoError("--data and --crops are missing: name data sets with types, or folders of crops")
        for flag, least, most in (("steps", 2, 10**6), ("batch", 2, 4096), ("side", 32, 512)):
            if not least <= getattr(self, flag) <= most:
                raise LeukoError(f"--{flag} {getattr(self, flag)}: give {least} to {most:,}")
        if not 0.5 <= self.view <= 5:
            raise LeukoError(f"--view {self.view}: give .5 to 5 times the box's longer side")
        if not 0 < self.lr < 1:
            raise LeukoError(f"--lr {self.lr}: give a number between 0 and 1")
        if not 0 <= self.seed < 2**31:
            raise LeukoError(f"--seed {self.seed}: give a number from 0 to below 2**31")


@dataclass
class AdaptOptions:
    """Fit a detector with a typing stage to another laboratory: from its fields, and better from 5 to 20 of them with
    labels. New weights are written; the old ones stay."""

    EXAMPLES: ClassVar[str] = """
    # from fields without labels: statistics of the stain, and how frequent each type is
    leuko adapt --source slides/patient7
    # and from some with labels: the types, the boxes, the score from which cells count
    leuko adapt --source slides/patient7 --data labelled --name ours
    leuko predict --weights runs/adapt/ours --source slides/patient8
    """

    weights: str = DEFAULT
    """Run folder or weights file of a detector with a typing stage, or leuko-small, which comes with leuko."""
    source: str = ""
    """Fields of your laboratory without labels: a folder, or a pattern in quotes. Choose what is usual there."""
    data: str = ""
    """Fields of your laboratory with labels, best 5 to 20 or more: a data set, of which --split is used."""
    split: str = "train"
    """Split of --data to learn from; a data set with only one split is used whole."""
    name: str = "adapted"
    """The run's folder in the project; NAME-2, NAME-3 ... where it exists."""
    project: str = "runs/adapt"
    """Folder of runs."""
    prior: bool = True
    """Let how frequent each type is in --source count half when cells are typed. Use --no-prior where its patients are
    no usual mix."""
    max_pixels: int = MAX_PIXELS
    """Megapixels of the largest image of --source that is read."""
    seed: int = 0
    """Seed of which cells are drawn; the same seed, fields and machine give the same weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""
    workers: int = -1
    """Loader processes; -1: one per core but one, at most 8."""

    def check(self) -> None:
        """Raise LeukoError naming the flag whose value cannot be used."""
        if not self.source and not self.data:
            raise LeukoError("--source and --data are missing: name fields of your laboratory, without or with labels")
        if not 0 <= self.seed < 2**31:
            raise LeukoError(f"--seed {self.seed}: give a number from 0 to below 2**31")
        check_workers(self.workers)
        check_pixels(self.max_pixels)


@dataclass
class ExportOptions:
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
    imgsz: int = 0
    """Longer side in pixels to which images are scaled; 0: the one that the model was trained at. The file takes images
    of any size."""
    half: bool = False
    """Store the weights in 16 instead of 32 bits: the file is half as large, and computes in 32 bits all the same."""
    max_detections: int = MAX_DETECTIONS
    """Most detections per image."""
    data: str = ""
    """Data set on whose images parity is shown, and by whose labels, that mAP is the same; without it, on rendered
    fields."""
    split: str = "test"
    """Split of --data."""
    fields: int = 8
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
        check_sizes([self.imgsz] if self.imgsz else ())
        check_max_detections(self.max_detections)
        if not 2 <= self.fields <= 1000:
            raise LeukoError(f"--fields {self.fields}: give 2 to 1,000")


@dataclass
class DownloadOptions:
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
class ReportOptions:
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


def preset(name: str) -> dict[str, object]:
    """The options that a preset sets; LeukoError if there is none of that name."""
    if name not in PRESETS:
        raise LeukoError(f'preset "{name}" is unknown{nearest(name, PRESETS)} (there are: {", ".join(PRESETS)})')
    return PRESETS[name]
