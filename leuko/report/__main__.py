"""``python -m leuko.report``, which is the same as ``leuko report``."""

from leuko.cli import run_module

run_module("report")
