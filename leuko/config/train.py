"""Options of training: ``leuko train`` and ``leuko compare``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..detections import MAX_DETECTIONS
from ..errors import LeukoError, nearest
from .limits import DETECTIONS, SEEDS, SHARE, SIZES, WORKERS, Options, limited

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
class TrainOptions(Options):
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
    # options from a file; a flag overrides the file
    leuko train --config recipe.yaml --lr 0.005
    """

    data: str = ""
    """Data set: a folder (COCO, VOC or YOLO), a COCO JSON file, or a data YAML."""
    model: str = "fcos"
    """Detector: fsaf, fcos, fcos_improved, faster_rcnn, grid_rcnn, double_head_rcnn or cascade_rcnn, or a YOLO model of
    Ultralytics by its name or .pt file; several with commas, all for the paper's six."""
    backbone: str = "resnet50"
    """Backbone: any timm network with maps at strides 4, 8, 16 and 32."""
    preset: Literal["paper", "small"] = "paper"
    """paper: ResNet-50, 600 px, full width. small: for machines without a GPU."""
    epochs: int = limited(16, 1)
    """Passes over the training images; more than before, with --resume, extends a finished run."""
    batch: int = limited(8, 1)
    """Images per step, at most. The batches of an epoch differ by one image at most, so that none is much smaller."""
    imgsz: int = limited(600, *SIZES)
    """Longer side in pixels to which images are scaled."""
    lr: float = limited(0.0, 0)
    """Learning rate of SGD, after the warm-up; 0: the detector's own, .01 (the paper's) or, for FCOS, FSAF and
    Double-Head R-CNN, .005; Ultralytics' models then choose optimiser, rate and schedule themselves."""
    momentum: float = limited(0.9, *SHARE, below=True)
    """Momentum of SGD."""
    weight_decay: float = limited(1e-4, 0)
    """Weight decay of SGD."""
    warmup: float = limited(1.0, 0)
    """Epochs of linear warm-up (the paper's 500 steps are about one epoch of its data)."""
    clip: float = limited(0.0, 0, math.inf)
    """Largest norm of the gradients; 0: the detector's own, 35 or, for FSAF, 10; inf leaves them as they are."""
    accumulate: int = limited(1, 1)
    """Batches whose gradients are summed into one step of the optimiser."""
    ema: float = limited(0.0, *SHARE, below=True)
    """Decay of the running mean of the weights that is validated and saved (0.999, for example), reached by a ramp; 0:
    no mean."""
    patience: int = limited(0, 0)
    """Stop when --best-by has not improved for this many epochs; 0: train all epochs."""
    best_by: Literal["mAP", "mAP50", "mAR"] = "mAP"
    """Validation measure by which the best epoch is chosen."""
    seed: int = limited(0, *SEEDS)
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
    repeat_factor: float = limited(0.0, *SHARE)
    """Show images with rare types more often: a type on a share f of the images, below this one, sqrt(this / f) times
    as often (repeat-factor sampling, Gupta et al. 2019); 0: each image once per epoch."""
    type_weights: Literal["none", "balanced"] = "none"
    """Weights in the loss of the types; balanced: by 1 / sqrt(cells), the mean over all cells being 1."""
    norm: Literal["frozen", "train"] = "frozen"
    """Statistics of the backbone's BatchNorm: frozen, or those of the batches."""
    freeze: bool = True
    """Leave the backbone's stem and first stage as pretrained (ignored without pretrained weights)."""
    normalize_features: bool = False
    """Divide the backbone's maps by their standard deviation, as measured on the first batch (for EfficientNet and
    similar networks). FCOS, whose heads have norm layers, does not."""
    channels: int = limited(256, 1)
    """Channels of the FPN and the heads."""
    fc_channels: int = limited(1024, 1)
    """Width of the R-CNN heads' fully-connected layers."""
    proposals: int = limited(0, 0)
    """RPN proposals per image; 0: the detector's own 1,000 or 2,000."""
    rois: int = limited(512, 1)
    """RoIs per image that an R-CNN head learns from."""
    vote: float = limited(0.8, *SHARE, below=True)
    """IoU from which a box that NMS drops votes on the one that it keeps (box voting), when a trained Faster,
    Double-Head or Cascade R-CNN detects; 0: no voting."""
    max_detections: int = limited(MAX_DETECTIONS, *DETECTIONS)
    """Most detections per image when an epoch is validated; more candidates are looked at, and that takes longer."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Train and validate in half precision; fp16 needs a GPU."""
    channels_last: bool = False
    """Keep maps channels-last in memory; faster on a GPU, and for EfficientNet's backbone on a CPU."""
    deterministic: bool = False
    """Give the same weights bit for bit on a GPU, too, for the price of some speed; a CPU does so anyway."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""
    workers: int = limited(-1, *WORKERS)
    """Loader processes; -1: one per core but one, at most 8."""
    cache: Literal["none", "ram"] = "none"
    """ram: keep the decoded, scaled images in memory, 1 MB per image at 600 px."""
    save_minutes: float = limited(10.0, 0, math.inf, above=True)
    """Save the state for --resume also within an epoch, this often."""
    tensorboard: bool = False
    """Log losses, learning rate and measures for TensorBoard, too (needs the extra loggers)."""

    def check(self) -> None:
        """Raise LeukoError naming what is missing, or flags that do not go together."""
        if not self.data:
            raise LeukoError("--data is missing: name a data folder, a COCO file or a data YAML")
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


def preset(name: str) -> dict[str, object]:
    """The options that a preset sets; LeukoError if there is none of that name."""
    if name not in PRESETS:
        raise LeukoError(f'preset "{name}" is unknown{nearest(name, PRESETS)} (there are: {", ".join(PRESETS)})')
    return PRESETS[name]
