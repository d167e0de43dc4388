"""Options of the typing stage: ``leuko type`` and ``leuko adapt``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import LeukoError
from ..registry import DEFAULT
from .limits import MAX_PIXELS, PIXELS, SEEDS, SHARE, WORKERS, Options, limited


@dataclass
class TypeOptions(Options):
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
    side: int = limited(96, 32, 512)
    """Width and height in pixels to which each crop is scaled."""
    view: float = limited(1.3, 0.5, 5)
    """How much a crop shows around the cell: its width is this many times the longer side of the cell's box."""
    steps: int = limited(600, 2, 10**6)
    """Number of training steps."""
    batch: int = limited(32, 2, 4096)
    """Cells in each step."""
    lr: float = limited(0.002, *SHARE, above=True, below=True)
    """Highest learning rate; it rises to this at first and then falls (AdamW, one cycle)."""
    half: bool = False
    """Store all weights, the detector's too, in 16 instead of 32 bits: the file is half as large."""
    seed: int = limited(0, *SEEDS)
    """Seed of everything random; the same seed, data and machine give the same weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""

    def check(self) -> None:
        """Raise LeukoError naming what is missing."""
        if not self.data and not self.crops:
            raise LeukoError("--data and --crops are missing: name data sets with types, or folders of crops")


@dataclass
class AdaptOptions(Options):
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
    max_pixels: int = limited(MAX_PIXELS, *PIXELS)
    """Megapixels of the largest image of --source that is read."""
    seed: int = limited(0, *SEEDS)
    """Seed of which cells are drawn; the same seed, fields and machine give the same weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or 1 ...; auto takes a GPU if there is one."""
    workers: int = limited(-1, *WORKERS)
    """Loader processes; -1: one per core but one, at most 8."""

    def check(self) -> None:
        """Raise LeukoError naming what is missing."""
        if not self.source and not self.data:
            raise LeukoError("--source and --data are missing: name fields of your laboratory, without or with labels")
