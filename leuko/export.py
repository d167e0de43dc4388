"""``leuko export``: a trained detector as a file for ONNX Runtime or OpenVINO, which runs without PyTorch."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("export")

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import __version__
from .config import ExportOptions
from .data import source
from .data.images import read_image
from .engine import exporter, parity
from .engine.ensemble import EnsembleMember
from .errors import LeukoError
from .io import write_json
from .report.run import whole_run


def export(options: ExportOptions) -> Path:
    """Export by these options and return the folder of the files. What does not say the same as its detector is not
    left there. Raises LeukoError."""
    exporter.check_packages(options.format)
    sizes = [options.imgsz] if options.imgsz else ()
    member = EnsembleMember.load(options.weights, "cpu", sizes, options.max_detections)
    fields = _fields(options, member.sizes[0])
    with whole_run(options.save, options.name or member.name) as folder:
        path = folder / f"{member.name}{exporter.FORMATS[options.format]}"
        files = exporter.write(member, path)
        shown = parity.check(member, path, fields)
        print(f"{path}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB\n{shown}")
        write_json(folder / f"{member.name}.json", {"leuko": __version__, "parity": asdict(shown)})
    print(f"\nresults: {folder}")
    return folder


def _fields(options: ExportOptions, size: int) -> Sequence[np.ndarray]:
    """The fields on which parity is shown: rendered ones of a model's image ``size``, or those of a data set."""
    if not options.data:
        return parity.rendered(options.fields, size)
    samples = source.load(options.data, options.split).samples[: options.fields]
    if len(samples) < 2:
        raise LeukoError(f"{options.data}: {options.split} has {len(samples)} images; two or more are needed")
    return [read_image(sample.image) for sample in samples]
