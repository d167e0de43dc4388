"""leuko: train, measure and fuse detectors of leukocytes in blood-smear images.

``Detector`` is the Python face of a trained model, ``Predictor`` that for batches of images in many processes;
``create`` builds an untrained one.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "Predictor", "__version__", "create"]

if TYPE_CHECKING:
    from .detections import Detections
    from .detector import Detector
    from .engine.predictor import Predictor
    from .models import create


_HOMES = {"Detections": "detections", "Detector": "detector", "Predictor": "engine.predictor", "create": "models"}


def __getattr__(name: str) -> object:
    """Import on first use, so that ``leuko --help`` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'leuko' has no attribute {name!r}")
