"""leuko: train, measure and fuse detectors of leukocytes in blood-smear images.

``Detector`` is the Python face of a trained model; ``create`` builds an untrained one.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "__version__", "create"]

if TYPE_CHECKING:
    from .detections import Detections
    from .detector import Detector
    from .models import create


def __getattr__(name: str) -> object:
    """Import on first use, so that ``leuko --help`` need not wait for torch."""
    if name == "Detections":
        from .detections import Detections

        return Detections
    if name == "Detector":
        from .detector import Detector

        return Detector
    if name == "create":
        from .models import create

        return create
    raise AttributeError(f"module 'leuko' has no attribute {name!r}")
