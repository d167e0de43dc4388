"""Options of the commands, one dataclass per command (those of ``leuko data`` are in ``data/config.py``).

A field's docstring is its help text, ``EXAMPLES`` ends the help (see ``cli``).
"""

from .detect import EXAMPLES, LABELS, MAX_PICTURES, DetectOptions, MergeOptions, PredictOptions, ValOptions, is_table
from .files import DownloadOptions, ExportOptions, ReportOptions
from .limits import (
    LEAST_SIDE,
    MAX_PIXELS,
    MOST_DETECTIONS,
    MOST_SIDE,
    POSITIONAL,
    check_cell_size,
    check_max_detections,
    check_pixels,
    check_sizes,
    check_workers,
)
from .train import PRESETS, SIX, CompareOptions, TrainOptions, is_comparison, model_names, preset
from .typing import AdaptOptions, TypeOptions
