"""leuko against torchvision, ResNet-50 at 600 x 600: seconds per training step and per image, and peak memory.

    python benchmarks/speed.py --repeats 7 --threads 2

Both run in one process by turns, so that a change of the machine's pace meets both. torchvision has two of the six
detectors; the others are held against that one of the two which is nearer. Memory is the peak resident size of
a fresh process that runs this one case; it imports both libraries, so that what is compared is the work alone.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from leuko.engine.network import prepare
from leuko.models import Backbone, DetectionModel, create

TYPES = 5
BATCH = 2
TOLERANCE = 1e-3  # of the prepared model's scores, and of its boxes relative to their coordinates
LIBRARIES = ("leuko", "torchvision")
MIB = 1024 if sys.platform == "linux" else 1024**2  # ru_maxrss counts kilobytes on Linux, bytes on macOS


@dataclass(frozen=True)
class Case:
    """What is timed: a training step (2 images) or the inference of one image."""

    detector: str
    training: bool
    about: str
    few: bool = False  # FCOS has candidates on one level only, near the cells; Double-Head has 100 RoIs to move

    @property
    def dense(self) -> bool:
        """One stage, to be held against torchvision's FCOS; else against its Faster R-CNN."""
        return self.detector in ("fcos", "fsaf")


# leuko's FCOS does not run its box tower on a level without candidates (class scores above .05). An untrained one,
# whose scores are all near .01, would skip every level, and its time would say nothing. So "fcos" raises the class bias
# of both libraries' models until every point of every level is a candidate, the most work there can be. A trained one
# finds its cells on one or two levels: "fcos_few" has 64 candidates on P3, the largest map, and none elsewhere.
# Likewise Double-Head's convolutions see only RoIs that may be a cell; untrained, all of the 1,000 may.
CASES = {
    "fcos_train": Case("fcos", True, "FCOS, training step"),
    "faster_rcnn_train": Case("faster_rcnn", True, "Faster R-CNN, training step"),
    "fcos": Case("fcos", False, "FCOS, inference, candidates on every level"),
    "fcos_few": Case("fcos", False, "FCOS, inference, candidates on one level", few=True),
    "faster_rcnn": Case("faster_rcnn", False, "Faster R-CNN, inference"),
    "fsaf_train": Case("fsaf", True, "FSAF, training step, against FCOS"),
    "grid_rcnn_train": Case("grid_rcnn", True, "Grid R-CNN, training step, against Faster R-CNN"),
    "double_head_rcnn_train": Case("double_head_rcnn", True, "Double-Head R-CNN, training step, against Faster R-CNN"),
    "cascade_rcnn_train": Case("cascade_rcnn", True, "Cascade R-CNN, training step, against Faster R-CNN"),
    "fsaf": Case("fsaf", False, "FSAF, inference, candidates on every level, against FCOS"),
    "grid_rcnn": Case("grid_rcnn", False, "Grid R-CNN, inference, 100 boxes, against Faster R-CNN"),
    "double_head_rcnn": Case("double_head_rcnn", False, "Double-Head, inference, 1,000 RoIs to move, against Faster"),
    "double_head_few": Case("double_head_rcnn", False, "Double-Head, inference, 100 to move, against Faster", few=True),
    "cascade_rcnn": Case("cascade_rcnn", False, "Cascade R-CNN, inference, against Faster R-CNN"),
}
OWN = [name for name, case in CASES.items() if case.detector in ("fcos", "faster_rcnn")]  # which torchvision has too


# ---------------------------------------------------------------------- models


@torch.no_grad()
def calibrate(backbone: Backbone) -> Backbone:
    """Give an untrained backbone the norm layers of a trained one: scales of about 1, statistics of its own maps.

    (As initialised, timm's norm layers silence the residual branches, and torchvision's let the maps grow.)
    """
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
        norm.train()
        norm.momentum = 1.0
    backbone(torch.randn(2, 3, 224, 224))
    return backbone.train()


def leuko_model(case: Case, size: int, backbone: str = "resnet50") -> DetectionModel:
    """leuko's detector; its stem and first stage don't learn."""
    model = create(case.detector, TYPES, backbone, image_size=size)
    calibrate(model.backbone)
    if case.dense and not case.training:
        place_candidates(model.head.cls_logits, case.few, size)
    elif case.few:
        model.head.cls_logits.register_forward_hook(be_background)
    return model


def torchvision_model(case: Case, size: int, backbone: str = "resnet50") -> nn.Module:
    """torchvision's, as fcos_resnet50_fpn and fasterrcnn_resnet50_fpn make it for pretrained weights.

    FrozenBatchNorm, and the stem and first stage don't learn. (Given no weights, those functions freeze nothing,
    whatever trainable_backbone_layers says.)
    """
    if case.dense:
        body = resnet_fpn_backbone(
            backbone_name=backbone,
            weights=None,
            trainable_layers=3,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        model = FCOS(body, TYPES, min_size=size, max_size=size)
    else:
        body = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=3)
        model = FasterRCNN(body, TYPES + 1, min_size=size, max_size=size)
    body.body.load_state_dict(calibrate(Backbone(backbone)).body.state_dict())
    if case.dense and not case.training:
        place_candidates(model.head.classification_head.cls_logits, case.few, size)
    return model


def place_candidates(cls_logits: nn.Conv2d, few: bool, size: int) -> None:
    """Make class scores of .5 everywhere, or (``few``) of .98 at 8 x 8 points of P3 and .01 elsewhere."""
    if not few:
        nn.init.zeros_(cls_logits.bias)
        return
    finest = -(-size // 32) * 4

    def raise_scores(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.shape[-1] == finest:
            start = finest // 3
            output[:, 0, start : start + 8, start : start + 8] += 8.5

    cls_logits.register_forward_hook(raise_scores)


def be_background(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Make all RoIs but the best 100 surely background."""
    output[100:, -1] += 20.0


# ---------------------------------------------------------------------- work


def example(case: Case, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise, with two or three cells of 110 pixels (at 600) an image."""
    torch.manual_seed(1)
    cells = torch.tensor([[60, 80, 170, 190], [330, 290, 445, 395], [400, 60, 505, 175]]) * size / 600
    images = [torch.rand(3, size, size) for _ in range(BATCH if case.training else 1)]
    targets = [{"boxes": cells[i:], "labels": torch.arange(1, 4 - i)} for i in range(len(images))]
    return images, targets


def work(case: Case, library: str, size: int) -> Callable[[], object]:
    """The function to time."""
    torch.manual_seed(0)
    model = leuko_model(case, size) if library == "leuko" else torchvision_model(case, size)
    images, targets = example(case, size)
    if not case.training:
        model = prepare(model, torch.device("cpu")) if library == "leuko" else model.eval()
        return torch.inference_mode()(lambda: model(images))

    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A rate of next to nothing: the untrained model stays as it is, and each step is the same work.
    optimiser = torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        sum(model(images, targets).values()).backward()
        optimiser.step()

    return step


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(case: Case, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each library's runs, taken by turns after one run each to warm up."""
    runs = {library: work(case, library, size) for library in LIBRARIES}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for _ in range(repeats):
        for library, run in runs.items():
            times[library].append(seconds(run))
    return times


def peak_memory(name: str, library: str, size: int, threads: int) -> float:
    """Peak resident size in MiB of a process of its own."""
    command = [sys.executable, __file__, "--peak", library, "--cases", name]
    command += ["--size", str(size), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(case: Case, library: str, size: int) -> float:
    """Run a case twice (the second training step has the optimiser's state) and return this process' peak in MiB."""
    run = work(case, library, size)
    run()
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


# ---------------------------------------------------------------------- agreement


@torch.inference_mode()
def disagreement(case: Case, size: int) -> tuple[float, int, int]:
    """How far the prepared model's detections lie from the plain model's, one way and the other.

    Returns the largest difference between counterparts (of scores, and of boxes relative to their coordinates, from 1
    pixel on), the number of detections without a counterpart within the tolerance, and the number that was compared.
    """
    torch.manual_seed(0)
    plain = leuko_model(case, size).eval()
    images, _ = example(case, size)
    a, b = plain(images)[0], prepare(plain, torch.device("cpu"))(images)[0]
    limit = plain.options.max_detections
    apart = torch.cat([distance_to_nearest(a, b, limit), distance_to_nearest(b, a, limit)])
    good = apart <= TOLERANCE
    return max(apart[good].tolist(), default=0.0), int((~good).sum()), len(apart)


def distance_to_nearest(some: dict[str, Tensor], others: dict[str, Tensor], limit: int) -> Tensor:
    """For each detection, how far the nearest of the same type lies: [N], inf where there is none.

    Scores of an untrained model lie so close together that rounding changes their order, which is why the nearest is
    looked for; those that the limit of detections could cut off on one side only are left out.
    """
    boxes = (some["boxes"][:, None] - others["boxes"]).abs() / some["boxes"][:, None].abs().clamp(min=1)
    apart = torch.maximum(boxes.amax(2), (some["scores"][:, None] - others["scores"]).abs())
    apart[some["labels"][:, None] != others["labels"]] = float("inf")
    nearest = torch.cat([apart, apart.new_full((len(apart), 1), float("inf"))], dim=1).amin(1)
    if len(nearest) == limit:
        nearest = nearest[some["scores"] > some["scores"].min() + TOLERANCE]
    return nearest


# ---------------------------------------------------------------------- the command


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=OWN)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each library")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=600, help="side of the images in pixels")
    parser.add_argument("--peak", choices=LIBRARIES, help="only print this library's peak memory, in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(own_peak(CASES[options.cases[0]], options.peak, options.size))
        return

    print(f"torch {torch.__version__}, {options.threads} threads, {options.size} px, medians of {options.repeats}")
    # Memory first: a process inherits its parent's peak, and this one still is small.
    peaks = {
        name: {library: peak_memory(name, library, options.size, options.threads) for library in LIBRARIES}
        for name in options.cases
    }
    for name in options.cases:
        case, peak = CASES[name], peaks[name]
        times = compare(case, options.size, options.repeats)
        median = {library: statistics.median(values) for library, values in times.items()}
        print(f"\n{case.about} ({name})")
        for library in LIBRARIES:
            listed = " ".join(f"{t:.3f}" for t in times[library])
            print(f"  {library:<12} {median[library]:.3f} s  ({listed})  peak {peak[library]:.0f} MiB")
        speed = median["torchvision"] / median["leuko"]
        memory = peak["leuko"] / peak["torchvision"]
        print(f"  torchvision's time / leuko's: {speed:.2f}; leuko's memory / torchvision's: {memory:.2f}")
        if not case.training:
            worst, missing, number = disagreement(case, options.size)
            verdict = f"{missing} WITHOUT COUNTERPART" if missing else "agrees" if number else "NOTHING COMPARED"
            print(f"  prepared against plain: {number} detections, largest difference {worst:.1e}, {verdict}")
        gc.collect()


if __name__ == "__main__":
    main()
