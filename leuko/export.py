"""``leuko export``: a trained detector as a file for ONNX Runtime or OpenVINO, which runs without PyTorch."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("export")

from dataclasses import asdict
from pathlib import Path

from . import __version__
from .config import ExportOptions
from .data import source
from .data.images import read_image
from .engine import exporter, parity
from .engine.ensemble import EnsembleMember, load_members
from .engine.finished import finished_runs
from .errors import LeukoError
from .io import write_json
from .report.run import whole_run
from .runtime.ensemble import write_manifest


def export(options: ExportOptions) -> Path:
    """Export by these options and return the folder of the files. What does not say the same as its detector is not
    left there. Raises LeukoError."""
    options.check()
    exporter.check_packages(options.format)
    named = [options.weights] if options.ensemble is None else options.ensemble or finished_runs(options.project)
    sizes = [options.imgsz] if options.imgsz else ()
    members = load_members(named, "cpu", sizes, options.max_detections)
    name = options.name or (members[0].name if len(members) == 1 else "ensemble")
    bounds = parity.HALF if options.half else parity.Bounds()
    with whole_run(options.save, name) as folder:
        paths = []
        for member in members:
            path = folder / f"{member.name}{exporter.FORMATS[options.format]}"
            files = exporter.write(member, path, options.half)
            shown = parity.check(member, path, fields_of(options, member), bounds)
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            print(f"{path}: {megabytes:.1f} MB\n{shown}")
            write_json(folder / f"{member.name}.json", {"leuko": __version__, "parity": asdict(shown)})
            paths.append(path)
        if len(members) > 1:
            write_manifest(folder, paths)
    print(f"\nresults: {folder}")
    return folder


def fields_of(options: ExportOptions, member: EnsembleMember) -> list:
    """The fields on which parity is shown: those of a data set's split, or rendered ones."""
    if not options.data:
        return parity.rendered(options.fields, member.sizes[0])
    samples = source.load(options.data, options.split).samples[: options.fields]
    if len(samples) < 2:
        raise LeukoError(f"{options.data}: {options.split} has {len(samples)} images; two or more are needed")
    return [read_image(sample.image) for sample in samples]
