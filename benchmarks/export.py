"""torch, ONNX Runtime and OpenVINO beside each other: time per field, start, peak memory and size of a detector.

    python benchmarks/export.py --weights leuko-small --threads 1

Times of all runtimes are taken by turns in one process, so that a change of the machine's pace meets all; a field is
detected on and its cells are typed, from pixels to cells. Start (from the start of Python to the first field's cells)
and peak memory (Linux) are each of a fresh process. The ratios to torch are printed; below 1 is faster, or less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FRESH = """
import re, sys
import numpy as np
field = np.load(sys.argv[2])
if sys.argv[1].endswith((".onnx", ".xml")):
    from leuko.runtime import ExportedDetector
    detector = ExportedDetector.load(sys.argv[1])
else:
    from leuko import Detector
    detector = Detector(sys.argv[1], device="cpu")
print(len(detector.predict(field)), int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="leuko-small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported

    import numpy as np
    import torch

    from leuko import Detector
    from leuko.engine import exporter, parity
    from leuko.engine.ensemble import EnsembleMember
    from leuko.runtime import ExportedDetector

    torch.set_num_threads(options.threads)
    member = EnsembleMember.load(options.weights)
    fields = parity.rendered(6, 600)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/field.npy", fields[0])
        detectors = {"torch": Detector(options.weights, device="cpu")}
        sources, megabytes = {"torch": str(member.weights.path)}, {"torch": member.weights.path.stat().st_size / 1e6}
        for name, suffix in (("ONNX Runtime", ".onnx"), ("OpenVINO", ".xml")):
            path = Path(folder, suffix[1:], f"model{suffix}")
            path.parent.mkdir()
            exporter.write(member, path)
            detectors[name], sources[name] = ExportedDetector.load(path), str(path)
            megabytes[name] = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
        seconds: dict[str, list[float]] = {name: [] for name in detectors}
        for repeat in range(options.repeats + 1):
            for name, detector in detectors.items():
                start = time.perf_counter()
                for field in fields:
                    detector.predict(field)
                if repeat:  # the first warms up
                    seconds[name].append((time.perf_counter() - start) / len(fields))
        fresh = {name: [_fresh(source, f"{folder}/field.npy") for _ in range(3)] for name, source in sources.items()}
    rows = {
        name: (
            1000 * statistics.median(seconds[name]),
            min(start for start, _ in fresh[name]),
            statistics.median(memory for _, memory in fresh[name]),
            megabytes[name],
        )
        for name in detectors
    }
    print(f"{options.weights}, {options.threads} threads, fields of 600 pixels, {options.repeats} repeats by turns")
    print("| | ms per field | start to first cells, s | peak memory, MiB | files, MB |\n|---|---|---|---|---|")
    for name, (ms, start, memory, size) in rows.items():
        print(f"| {name} | {ms:.0f} | {start:.1f} | {memory:.0f} | {size:.1f} |")
    for name, row in rows.items():
        print(f"{name} / torch:", *(f"{a / b:.2f}" for a, b in zip(row, rows["torch"], strict=True)))


def _fresh(source: str, field: str) -> tuple[float, float]:
    """Seconds from the start of a process to a field's cells, and its peak memory in MiB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", FRESH, source, field], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout.split()[1])


if __name__ == "__main__":
    main()
