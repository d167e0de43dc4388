"""A detector at work on images, be it a network of torch's or an export, for which nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.images import LoadedImage
from ..detections import Detections
from ..runtime import ExportedDetector
from ..runtime.typing_stage import TypingStage
from . import fusion

if TYPE_CHECKING:
    from .network import Network
    from .tiling import Tiling


def detect(
    model: Network | ExportedDetector,
    images: Sequence[LoadedImage],
    typing: TypingStage | None = None,
    tiling: Tiling | None = None,
) -> list[Detections]:
    """Detections of each image, in pixels of the stored image: of its views or, with a ``tiling``, of its tiles. A
    ``typing`` stage then gives them their types. Both look at the stored pixels."""
    found = [tiling(model, image) for image in images] if tiling else detect_views(model, images)
    return typing(images, found) if typing else found


def detect_views(model: Network | ExportedDetector, images: Sequence[LoadedImage]) -> list[Detections]:
    """Detections of each image, in pixels of the stored image. Of several views of an image (test-time augmentation)
    the detections are fused, one vote per view."""
    per_view = []
    for size in images[0].views:
        views = [image.views[size] for image in images]
        pairs = zip(model.detect(views), images, views, strict=True)
        per_view.append([found.scaled(image.size, view.shape[1::-1]) for found, image, view in pairs])
    found = per_view[0]
    if len(per_view) > 1:
        found = fusion.fuse(per_view, [image.size for image in images], max_detections=model.max_detections)
    return found
