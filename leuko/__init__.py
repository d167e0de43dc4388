"""leuko: train, measure and fuse detectors of leukocytes in blood-smear images.

``Detector`` is the Python face of a trained model, ``Predictor`` that for batches of images in many processes;
``create`` builds an untrained one.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "Predictor", "__version__", "create"]

if TYPE_CHECKING:
    from .detections import Detections
    from .detector import Detector
    from .engine.predictor import Predictor
    from .models import create


def __getattr__(name: str) -> object:
    """Import on first use, so that ``leuko --help`` need not wait for torch."""
    if name == "Detections":
        from .detections import Detections

        return Detections
    if name == "Detector":
        from .detector import Detector

        return Detector
    if name == "Predictor":
        from .engine.predictor import Predictor

        return Predictor
    if name == "create":
        from .models import create

        return create
    raise AttributeError(f"module 'leuko' has no attribute {name!r}")
