"""Options of the commands of ``leuko data``, one dataclass per command (see ``cli``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..config import POSITIONAL, SIZES, Options, limited


def _by_place() -> str:
    return field(default="", metadata=POSITIONAL)


@dataclass
class _Written(Options):
    """What every command that writes a data set takes."""

    force: bool = False
    """Replace the data set that DST holds."""


@dataclass
class _Changed(_Written):
    """What every command that writes one data set from another takes."""

    src: str = _by_place()
    """Data set: a folder, a COCO file or a data YAML."""
    dst: str = _by_place()
    """Folder to make; in the same format, where none is asked for."""


@dataclass
class _Drawn(_Written):
    """What every command that draws a data set takes."""

    dst: str = _by_place()
    """Folder to make."""
    images: int = limited(200, 1)
    """Images in all."""
    size: int = limited(320, *SIZES)
    """Side of an image in pixels."""
    format: Literal["coco", "voc", "yolo"] = "coco"
    """Format of the data set."""
    seed: int = limited(0, 0)
    """All choices, pixels and boxes follow from it."""
    val: float = limited(0.15, 0, 1, below=True)
    """Share of the images for validation."""
    test: float = limited(0.15, 0, 1, below=True)
    """Share of the images for testing."""
    workers: int = limited(0, 0)
    """Threads; 0: one per core."""


@dataclass
class _Measured(Options):
    """What every command that examines a data set takes."""

    src: str = _by_place()
    """Data set: a folder, a COCO file or a data YAML."""
    name: str = ""
    """The result's folder in --save, the data's name if empty."""


@dataclass
class ReviewOptions(_Written):
    """Write the labels that a person corrected and signed on review.html as a data set."""

    EXAMPLES: ClassVar[str] = """
    leuko data apply-review review.json datasets/corrected                    # of leuko predict
    leuko data apply-review runs/predict/fcos datasets/corrected --format yolo   # all review*.json there
    leuko data apply-review review.json datasets/corrected --data slides      # of leuko val --ensemble
    """

    review: str = _by_place()
    """review.json, or a folder that holds those of all pages of one prediction."""
    dst: str = _by_place()
    """Folder to make."""
    data: str = ""
    """The data set that was validated, where the review is about its labels."""
    images: str = ""
    """Folder that holds the images now, if they were moved since the prediction."""
    format: str = ""
    """Format to write: voc, coco or yolo; the data set's own, or coco, if empty."""
    unsigned: bool = False
    """Take a review that nobody signed."""


@dataclass
class CheckOptions(_Measured):
    """Find what is wrong with a data set. Exits with status 1 where a person must decide."""

    EXAMPLES: ClassVar[str] = """
    leuko data check slides
    leuko data check slides.yaml --labels-only
    """

    labels_only: bool = False
    """Do not decode the images, and do not look for duplicates."""
    save: str = "runs/check"
    """Folder of results."""


@dataclass
class ConvertOptions(_Changed):
    """Write a data set in another format, keeping all but COCO's masks."""

    EXAMPLES: ClassVar[str] = """
    leuko data convert slides datasets/slides --to coco
    leuko data convert slides.yaml datasets/slides --to yolo --force
    leuko data convert train.json datasets/official --to voc --voc-origin 1
    """

    to: str = ""
    """Format to write: voc, coco or yolo."""
    voc_origin: int = limited(0, 0, 1)
    """0: VOC as LabelImg writes it; 1: the official convention."""


@dataclass
class SplitOptions(_Changed):
    """Divide a data set anew, all its splits together, stratified by type, groups of images together."""

    EXAMPLES: ClassVar[str] = """
    leuko data split slides datasets/slides --ratios 4:1
    leuko data split slides datasets/slides --ratios 7:1:2 --group-by "smear(\\d+)"
    leuko data split slides datasets/folds --folds 5 --group-by smears.csv
    """

    ratios: str = "4:1"
    """Wanted shares, two or more."""
    names: str = ""
    """The splits' names, separated by commas: train,test or train,val,test if empty."""
    folds: int = 0
    """K equal parts, and fold1.yaml ... foldK.yaml, for cross-validation."""
    group_by: str = ""
    """Images that stay together: a CSV file with the columns image and group, or a regular expression that is searched
    in the image's path and whose first bracket (or all of it) is the group."""
    seed: int = 0
    """Which of equally good divisions is taken."""


@dataclass
class StatsOptions(_Measured):
    """Count cells, images and factors, and measure sizes and colours."""

    EXAMPLES: ClassVar[str] = """
    leuko data stats slides
    leuko data stats slides.yaml --name slides
    """

    save: str = "runs/stats"
    """Folder of results."""


@dataclass
class ResizeOptions(_Changed):
    """Scale all images and boxes."""

    EXAMPLES: ClassVar[str] = """
    leuko data resize slides datasets/mini --size 600
    """

    size: int = limited(600, *SIZES)
    """Longer side in pixels."""


@dataclass
class FactorOptions(_Changed):
    """Put an interference factor on every image, tagged."""

    EXAMPLES: ClassVar[str] = """
    leuko data factors slides datasets/blurred --factor defocus --severity 4
    leuko data factors slides datasets/each --factor all
    """

    factor: str = ""
    """Name of a factor, several separated by commas, or all; of several, each image gets one in turn."""
    severity: int = 3
    """How strong, 1 to 5."""
    seed: int = 0
    """All choices follow from it."""


@dataclass
class ComposeOptions(_Drawn):
    """Compose fields with several leukocytes from crops of single ones."""

    EXAMPLES: ClassVar[str] = """
    leuko data compose datasets/composed --donors crops
    leuko data compose datasets/composed --donors crops --images 1000 --cells 2-8 --format yolo
    """

    donors: str = ""
    """A folder with one folder of crops per class."""
    size: int = limited(600, *SIZES)
    """Side of a field in pixels."""
    cells: str = "1-6"
    """Leukocytes per field, least and most."""


@dataclass
class SynthOptions(_Drawn):
    """Render a data set of stained fields with the five leukocyte types."""

    EXAMPLES: ClassVar[str] = """
    leuko data synth datasets/demo
    leuko data synth datasets/demo --images 1000 --size 600 --format voc --seed 7
    leuko data synth datasets/paper --preset paper --size 600
    leuko data synth datasets/demo --force --val 0.2 --test 0
    """

    preset: Literal["demo", "paper"] = "demo"
    """paper: images and cells per type and split as in Li et al. 2022, factors tagged."""
    images: int = limited(0, 0)
    """Images in all; 0: 200, or the paper's 6273."""
