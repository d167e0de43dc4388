"""``leuko export``: a trained detector as a file for ONNX Runtime or OpenVINO, which runs without PyTorch."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("export")

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from . import __version__
from .config import ExportOptions
from .data import source
from .data.dataset import Dataset
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
    dataset = labelled(options, members) if options.data else None
    with whole_run(options.save, name) as folder:
        paths = []
        for member in members:
            path = folder / f"{member.name}{exporter.FORMATS[options.format]}"
            files = exporter.write(member, path, options.half)
            fields = [read_image(s.image) for s in dataset.samples[: options.fields]] if dataset else []
            shown = parity.check(member, path, fields or parity.rendered(options.fields, member.sizes[0]), bounds)
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            print(f"{path}: {megabytes:.1f} MB\n{shown}")
            about = {"leuko": __version__, "parity": asdict(shown)}
            if dataset:
                mAP, of_export = parity.check_mAP(member, path, dataset, bounds)
                on = f"{options.data}, {dataset.split}, {len(dataset)} images"
                print(f"mAP on {on}: {of_export:.4f}, of the detector {mAP:.4f}")
                about["mAP"] = {"data": options.data, "split": dataset.split, "export": of_export, "detector": mAP}
            write_json(folder / f"{member.name}.json", about)
            paths.append(path)
        if len(members) > 1:
            write_manifest(folder, paths)
    print(f"\nresults: {folder}")
    return folder


def labelled(options: ExportOptions, members: Sequence[EnsembleMember]) -> Dataset:
    """The split of a data set on which parity is shown, whose types must be those of the members."""
    dataset = source.load(options.data, options.split)
    if len(dataset) < 2:
        raise LeukoError(f"{options.data}: {options.split} has {len(dataset)} images; two or more are needed")
    if not dataset.counts().sum():
        raise LeukoError(
            f"{options.data}: {options.split} has no labelled cell, by which mAP is compared; name another"
        )
    for member in members:
        member.new_name = source.find(options.data).new_name
        member.labels_in(dataset.types)
    return dataset
