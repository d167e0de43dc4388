"""Options of the commands, one dataclass per command (those of ``leuko data`` are in ``data/config.py``).

A field's docstring is its help text, ``EXAMPLES`` ends the help (see ``cli``). What numbers a field takes stands beside
its default (see ``limits``); ``check`` is about what several options say together.
"""

from .detect import EXAMPLES, MAX_PICTURES, DetectOptions, MergeOptions, PredictOptions, ValOptions, is_table
from .files import DownloadOptions, ExportOptions, ReportOptions
from .limits import MAX_PIXELS, MOST_DETECTIONS, POSITIONAL, SIZES, Options, flag, limited
from .train import PRESETS, SIX, CompareOptions, TrainOptions, is_comparison, model_names, preset
from .typing import AdaptOptions, TypeOptions
