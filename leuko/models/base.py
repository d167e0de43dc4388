"""What every detector is: preprocess -> backbone -> FPN -> its own heads -> boxes in the pixels of the image given.

Letters used in the models: N images, C channels, R points, anchors or RoIs, M ground-truth boxes of an image,
K classes. Boxes are float32 xyxy; inside a detector they are in pixels of the resized image. Labels are 0-based.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import LeukoError
from ..ops import boxes as box_ops
from . import folding
from .folding import IMAGE
from .preprocess import Preprocess, Size

Target = dict[str, Tensor]
Detection = dict[str, Tensor]


@dataclass(frozen=True)
class ModelOptions:
    """What can be chosen about a detector, the same for all; a detector leaves aside what it has no use for."""

    image_size: int = 600
    """Longer side in pixels to which images are scaled."""
    channels: int = 256
    """Channels of the FPN and of the convolutions in the heads."""
    fc_channels: int = 1024
    """Width of the fully-connected layers of the R-CNN heads."""
    proposals: int = 0
    """Proposals an image that the RPN hands on; 0 is the detector's own number (1,000 or 2,000)."""
    rois: int = 512
    """RoIs an image on which an R-CNN head is trained."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the loss of the classes; none is 1 for all."""
    score_threshold: float | None = None
    """Detections of no higher score are dropped; None is the detector's own threshold (.05, Grid R-CNN .03)."""
    max_detections: int = 100
    """Detections an image, at most."""
    vote: float = 0.0
    """IoU at which a box that NMS drops has a vote on the one it keeps; 0: none has, as the detectors were published.
    For Faster, Double-Head and Cascade R-CNN, whose scores tell little about how well a box fits."""


class DetectionModel(nn.Module):
    """A detector by torchvision's contract.

    ``model(images, targets)``: images are a list of [3, H, W] RGB in 0..1 of any size; targets a list of
    ``{"boxes": [M, 4], "labels": [M]}``, M >= 0, in pixels of their image. Training mode returns a dict of scalar
    losses; eval mode a list of ``{"boxes", "labels", "scores"}`` in pixels of the image given, by falling score.

    A detector says what it is by two methods: :meth:`losses` and :meth:`detect`.
    """

    options: ModelOptions
    default_score_threshold = 0.05
    default_lr = 0.01  # SGD's learning rate for batches of 8, as in Li et al. 2022
    default_clip = 35.0  # largest norm of the gradients, as in MMDetection
    wants_normalized_features = True  # whether a backbone made for maps of unit deviation is calibrated
    lr_multipliers: Mapping[str, float] = {}  # factor on the learning rate of parameters, by how their names begin

    def __init__(self, *, preprocess: Preprocess, backbone: nn.Module, fpn: nn.Module):
        super().__init__()
        self.preprocess, self.backbone, self.fpn = preprocess, backbone, fpn

    def foldable(self) -> list[tuple[nn.Module, tuple[int, int, int]]]:
        """Parts whose BatchNorm can be folded into convolutions for inference, and the shape of what each takes."""
        return [(self.backbone, IMAGE)]

    def fold(self) -> None:
        """Make the norms a part of the convolutions before them. The outputs are the same to rounding, but the model
        can no longer be trained."""
        for network, shape in self.foldable():
            folding.keep(network, shape)

    @property
    def score_threshold(self) -> float:
        """Score above which a detection counts."""
        chosen = self.options.score_threshold
        return self.default_score_threshold if chosen is None else chosen

    def losses(self, pyramid: list[Tensor], sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        """Scalar losses by name; targets in pixels of the resized images."""
        raise TypeError(f"{type(self).__name__} does not define losses")

    def detect(self, pyramid: list[Tensor], sizes: list[Size]) -> list[Detection]:
        """Detections of each image, in pixels of the resized images, by falling score."""
        raise TypeError(f"{type(self).__name__} does not define detect")

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> dict[str, Tensor] | list[Detection]:
        batch, sizes = self.preprocess(images)
        originals = [tuple(image.shape[-2:]) for image in images]
        pyramid = self.fpn(self._maps(batch))
        if self.training:
            if targets is None:
                raise LeukoError("a detector in training mode needs targets; call model.eval() to detect")
            return self.losses(pyramid, sizes, self._scale_targets(targets, originals, sizes))
        detections = self.detect(pyramid, sizes)
        for found, original, size in zip(detections, originals, sizes, strict=True):
            boxes = found["boxes"].float() / self.preprocess.scale(original, size, found["boxes"].float())
            found["boxes"] = box_ops.clip(boxes, original)
        return detections

    def _maps(self, batch: Tensor) -> list[Tensor]:
        """The backbone's maps. On a CPU, training leaves channels-last memory here if the backbone is kept in it: the
        gradients of the 3x3 convolutions in FPN and heads take up to twice as long in that layout."""
        maps = self.backbone(batch)
        return [m.contiguous() for m in maps] if self.training and batch.device.type == "cpu" else maps

    def _scale_targets(self, targets: list[Target], originals: list[Size], sizes: list[Size]) -> list[Target]:
        scaled = []
        for i, (target, original, size) in enumerate(zip(targets, originals, sizes, strict=True)):
            boxes = target["boxes"].float().reshape(-1, 4)
            good = torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            if not good.all():
                worst = boxes[~good][0].tolist()
                raise LeukoError(
                    f"image {i} of the batch has a box {worst} that is not x0 < x1, y0 < y1; mend its label"
                )
            scaled.append(
                {"boxes": boxes * self.preprocess.scale(original, size, boxes), "labels": target["labels"].long()}
            )
        return scaled
