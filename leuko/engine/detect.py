"""From images to detections: a detector's network, how it looks at images, and its typing stage. The network is torch's
or an export, for which nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import MOST_DETECTIONS
from ..data.images import LoadedImage
from ..detections import Detections
from ..runtime import ExportedDetector
from ..runtime.typing_stage import TypingStage
from .fusion import Fusion

if TYPE_CHECKING:
    from .network import Network
    from .tiling import Tiling


@dataclass
class Pipeline:
    """A detector ready for use: its network, the image sizes that it looks at, its typing stage, if it has one, and how
    it cuts images into tiles, if it does."""

    model: Network | ExportedDetector
    sizes: tuple[int, ...]
    typing: TypingStage | None = None
    tiling: Tiling | None = None

    @property
    def views(self) -> tuple[int, ...]:
        """The sizes in which it looks at whole images: none where it cuts them into tiles."""
        return () if self.tiling else self.sizes

    @property
    def largest(self) -> float:
        """The largest of these; inf where it cuts them."""
        return max(self.views, default=math.inf)

    @property
    def needs_pixels(self) -> bool:
        """Whether it looks at an image's stored pixels, too."""
        return bool(self.typing or self.tiling)

    @property
    def parameters(self) -> int:
        """The parameters of its networks."""
        return self.model.parameters + (self.typing.parameters if self.typing else 0)

    @property
    def max_detections(self) -> int:
        """Most detections per image: of a tile the model's, of all together any number."""
        return MOST_DETECTIONS if self.tiling else self.model.max_detections

    def find(self, images: Sequence[LoadedImage]) -> list[Detections]:
        """What the network finds on each image, in pixels of the stored image: on its views or on its tiles."""
        if self.tiling:
            return [self.tiling(self.model, image) for image in images]
        return detect_views(self.model, images, self.sizes)

    def detect(self, images: Sequence[LoadedImage]) -> list[Detections]:
        """The same, with the types that the typing stage gives."""
        found = self.find(images)
        return self.typing([image.pixels for image in images], found) if self.typing else found


def detect_views(
    model: Network | ExportedDetector, images: Sequence[LoadedImage], sizes: Sequence[int]
) -> list[Detections]:
    """Detections of each image, in pixels of the stored image. Of several views of an image (test-time augmentation)
    the detections are fused, one vote per view."""
    per_view = []
    for size in sizes:
        views = [image.views[size] for image in images]
        pairs = zip(model.detect(views), images, views, strict=True)
        per_view.append([found.scaled(image.size, view.shape[1::-1]) for found, image, view in pairs])
    if len(per_view) == 1:
        return per_view[0]
    return Fusion()(per_view, [image.size for image in images], model.max_detections)
