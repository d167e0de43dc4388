"""What every detector is: preprocess -> backbone -> FPN -> its own heads -> boxes in the pixels of the image given.

Letters used in the models: N images, C channels, R points, anchors or RoIs, M ground-truth boxes and D detections of an
image, K classes. Boxes are float32 xyxy; inside a detector they are in pixels of the resized image, whose ``sizes``
[N, 2] are (height, width). Labels are 0-based. What differs in number between images is padded, so that one operator
does the work of all images: with boxes of zeros, labels or scores of -1 (see :mod:`leuko.ops.boxes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..detections import MAX_DETECTIONS
from ..errors import LeukoError
from ..ops import boxes as box_ops
from ..ops import ranks
from ..ops.boxes import Found, batched_nms, best_first, box_voting
from .batch_norm import IMAGE, fuse_conv_bn
from .preprocess import Preprocess, scales, upload

LIMITS: dict[str, tuple[float, float]] = {
    "image_size": (1, 2**13),
    "channels": (1, 2**10),
    "fc_channels": (1, 2**12),
    "proposals": (0, 10**5),
    "rois": (1, 10**5),
    "max_detections": (1, 10**5),
    "score_threshold": (0.0, 1.0),
    "vote": (0.0, 1.0),
}
"""Lowest and highest value of an option of a model; integers where these are integers."""

Target = dict[str, Tensor]
Detection = dict[str, Tensor]


class Targets(NamedTuple):
    """The ground truth of a batch, padded."""

    boxes: Tensor  # [N, M, 4]
    labels: Tensor  # [N, M]


@dataclass(frozen=True)
class ModelOptions:
    """The options of all detectors; a detector ignores those that do not concern it."""

    image_size: int = 600
    """Longer side in pixels to which images are scaled."""
    channels: int = 256
    """Channels of the FPN and of the convolutions in the heads."""
    fc_channels: int = 1024
    """Width of the fully-connected layers of the R-CNN heads."""
    proposals: int = 0
    """Proposals per image from the RPN; 0 is the detector's default (1,000 or 2,000)."""
    rois: int = 512
    """RoIs per image on which an R-CNN head is trained."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the classification loss; () is 1 for all."""
    score_threshold: float | None = None
    """Detections need a higher score than this; None is the detector's default (.05, Grid R-CNN .03)."""
    max_detections: int = MAX_DETECTIONS
    """Most detections per image; the attribute ``max_detections`` of a detector, which starts with it, decides."""
    vote: float = 0.0
    """IoU at which a box that NMS drops votes on the one it keeps; 0: no votes, as the detectors were published.
    For Faster, Double-Head and Cascade R-CNN, whose scores say little about how well a box fits."""

    def __post_init__(self) -> None:
        for key, (low, high) in LIMITS.items():
            value, kinds = getattr(self, key), (int,) if isinstance(low, int) else (int, float)
            if not (type(value) in kinds and low <= value <= high) and not (key == "score_threshold" and value is None):
                raise LeukoError(
                    f"model option {key}={value!r:.40}: give a number of at least {low} and at most {high}"
                )
        if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in self.class_weights):
            raise LeukoError("model option class_weights: give numbers from 0 on")


class DetectionModel(nn.Module):
    """A detector by torchvision's contract.

    ``model(images, targets)``: images are a list of [3, H, W] RGB in 0..1 of any size; targets a list of
    ``{"boxes": [M, 4], "labels": [M]}``, M >= 0, in pixels of their image, labels in 0..K-1. Training mode returns a
    dict of scalar losses; eval mode a list of ``{"boxes", "labels", "scores"}`` in pixels of the image given, in
    descending order of score.

    A detector defines two methods: :meth:`losses` and :meth:`detect`.
    """

    default_score_threshold = 0.05
    nms_threshold = 0.5
    box_voting = False  # whether options.vote applies
    default_lr = 0.01  # SGD's learning rate for batches of 8, as in Li et al. 2022
    default_clip = 35.0  # largest norm of the gradients, as in MMDetection
    wants_normalized_features = True  # whether maps with standard deviations far from 1 are normalised
    # Factor on the learning rate of parameters, by the start of their names.
    lr_multipliers: Mapping[str, float] = MappingProxyType({})
    channels_multiple = 1  # group norms need ``channels`` to be a multiple of this

    def __init__(
        self, *, preprocess: Preprocess, backbone: nn.Module, fpn: nn.Module, num_classes: int, options: ModelOptions
    ):
        super().__init__()
        self.preprocess, self.backbone, self.fpn = preprocess, backbone, fpn
        self.num_classes, self.options = num_classes, options
        self.max_detections = options.max_detections

    @property
    def score_threshold(self) -> float:
        """Detections need a higher score than this."""
        chosen = self.options.score_threshold
        return self.default_score_threshold if chosen is None else chosen

    @property
    def crowding(self) -> float:
        """Factor on the numbers of candidates in eval mode, which are enough for 100 detections per image."""
        return max(1.0, self.max_detections / MAX_DETECTIONS)

    def fusible(self) -> list[tuple[nn.Module, tuple[int, int, int]]]:
        """Parts whose BatchNorm can be fused into convolutions for inference, and the shape of the input of each."""
        return [(self.backbone, IMAGE)]

    def fuse(self) -> None:
        """Fuse the norms into the convolutions before them. The outputs are the same up to rounding, but the model can
        no longer be trained."""
        for network, shape in self.fusible():
            fuse_conv_bn(network, shape, for_inference=True)

    def for_export(self) -> None:
        """Take the form in which the network is traced, where that is another."""

    def losses(self, pyramid: list[Tensor], sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Scalar losses by name; targets in pixels of the resized images."""
        raise NotImplementedError

    def detect(self, pyramid: list[Tensor], sizes: Tensor) -> Found:
        """Detections of a batch, in pixels of the resized images."""
        raise NotImplementedError

    def select(self, scores: Tensor, boxes: Tensor) -> Found:
        """Threshold, NMS per class and voting: scores [N, R, K], boxes [N, R, 1 or K, 4]."""
        rows, classes = scores.shape[1:]
        scores = torch.where(scores > self.score_threshold, scores, -1.0).flatten(1)
        labels = torch.arange(classes, device=scores.device).repeat(rows).expand_as(scores)
        boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)
        found = batched_nms(boxes, scores, labels, self.nms_threshold, self.max_detections)
        if self.box_voting and self.options.vote:
            candidates = best_first(boxes, scores, labels)
            return found._replace(boxes=box_voting(found, candidates, self.options.vote))
        return found

    def forward(
        self, images: Sequence[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Detection]:
        batch, sizes = self.preprocess(images)
        originals = [tuple(image.shape[-2:]) for image in images]
        device_sizes = upload(torch.tensor(sizes, dtype=torch.float32), batch.device)
        if self.training:
            if targets is None:
                raise LeukoError("a detector in training mode needs targets; call model.eval() to detect")
            padded = self._pad_targets(targets, scales(originals, sizes), batch.device)
            return self.losses(self.fpn(self._features(batch)), device_sizes, padded)
        found = self.detect(self.fpn(self._features(batch)), device_sizes)
        scale, limits = (upload(t, batch.device) for t in (scales(originals, sizes), torch.tensor(originals)))
        boxes = box_ops.clip(found.boxes.float() / scale, limits)
        counts = (found.scores >= 0).sum(1).tolist()
        per_image = zip(boxes, found.labels, found.scores, counts, strict=True)
        return [{"boxes": b[:n], "labels": label[:n], "scores": s[:n]} for b, label, s, n in per_image]

    def _features(self, batch: Tensor) -> list[Tensor]:
        """The backbone's maps. On a CPU, training leaves channels-last memory here if the backbone uses it: the
        gradients of the 3x3 convolutions in FPN and heads take up to twice as long in that layout."""
        maps = self.backbone(batch)
        return [m.contiguous() for m in maps] if self.training and batch.device.type == "cpu" else maps

    def _pad_targets(self, targets: list[Target], scale: Tensor, device: torch.device) -> Targets:
        """Check the targets, scale their boxes to the resized images by ``scale`` [N, 1, 4], and pad them. Targets on
        the CPU are copied to the device at once, without waiting for it."""
        if len(targets) != len(scale):
            raise LeukoError(f"{len(scale)} images and {len(targets)} targets; give one per image")
        for i, target in enumerate(targets):
            if missing := {"boxes", "labels"} - target.keys():
                raise LeukoError(
                    f'image {i} of the batch has no "{min(missing)}"; give boxes and labels, also if empty'
                )
            if target["labels"].shape != target["boxes"].shape[:1]:
                shapes = f"boxes {list(target['boxes'].shape)} and labels {list(target['labels'].shape)}"
                raise LeukoError(f"image {i} of the batch has {shapes}; give one label per box")
        counts = [len(target["boxes"]) for target in targets]
        (most,) = ranks.largest(max(1, *counts))  # the place of a box or proposal decides on what it draws
        rows = targets[0]["boxes"].new_zeros(len(targets), most, 5, dtype=torch.float32)
        rows[..., 4] = -1
        for row, target, count in zip(rows, targets, counts, strict=True):
            if count:
                row[:count, :4], row[:count, 4] = target["boxes"], target["labels"]
        has_box = torch.isfinite(rows[..., :4]).all(2) & box_ops.has_area(rows[..., :4])
        has_label = (rows[..., 4] >= 0) & (rows[..., 4] < self.num_classes) & (rows[..., 4] % 1 == 0)
        is_given = torch.arange(most, device=rows.device) < rows.new_tensor(counts)[:, None]
        wrong = is_given & ~(has_box & has_label)
        if wrong.any():
            i, k = torch.nonzero(wrong)[0].tolist()
            *box, label = rows[i, k].tolist()
            problem = f"the label {label:g}, which is not in 0..{self.num_classes - 1}"
            if not has_box[i, k]:
                problem = f"a box {box} that is not x0 < x1, y0 < y1"
            raise LeukoError(f"image {i} of the batch has {problem}; fix its annotation")
        rows[..., :4] *= upload(scale, rows.device)
        rows = upload(rows, device)
        return Targets(rows[..., :4], rows[..., 4].long())


def param_groups(model: DetectionModel) -> list[dict]:
    """The trainable parameters as groups for an optimiser of torch, ``{"params": [...], "lr_multiplier": float}``: one
    per factor in ``model.lr_multipliers``, the group of factor 1 first."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((f for start, f in model.lr_multipliers.items() if name.startswith(start)), 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "lr_multiplier": factor} for factor, parameters in groups.items()]
