"""What a typing stage costs: seconds per image of `leuko predict` with and without one, on rendered fields of 600 px.

    python benchmarks/typing_stage.py --repeats 7 --threads 1

The weights are `leuko-small`'s, or those of --weights. So that a field has the stated number of cells for both, the
boxes that were drawn take the place of what the detector has found, after all its work. Both run by turns, so that a
change of the machine's pace meets both. `predict` is the whole way from file to picture, `detect` that from an image in
memory to types: the detector's network and, with a stage, crops and typing network.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from leuko.cells import TYPES
from leuko.config import PredictOptions
from leuko.data.images import LoadedImage
from leuko.data.tools.builder import save_image
from leuko.engine.on_processes import batches_of
from leuko.engine.predictor import Predictor
from leuko.registry import DEFAULT
from leuko.synth.render import render

SIZE, FIELDS = 600, 6


def drawn_fields(folder: Path, cells: int) -> dict[Path, np.ndarray]:
    """Rendered fields with so many cells each: file -> boxes [N, 4]."""
    fields: dict[Path, np.ndarray] = {}
    seed = 0
    while len(fields) < FIELDS:
        rng = np.random.default_rng([cells, seed := seed + 1])
        picture = render(rng, SIZE, SIZE, [TYPES[k].code for k in rng.integers(0, len(TYPES), cells)], SIZE / 13)
        if len(picture.boxes) == cells:
            fields[folder / f"{cells}-{seed}.jpg"] = picture.boxes
            save_image(folder / f"{cells}-{seed}.jpg", picture.image)
    return fields


class Case:
    """Models at work on fields, of which they find the given cells."""

    def __init__(self, typer: str, options: PredictOptions, fields: dict[Path, np.ndarray]):
        self.predictor, self.fields = Predictor(**{**vars(options), "typer": typer}), fields
        self.models = self.predictor.models
        self.queue: list[np.ndarray] = []
        self.models.members[0].model.model.register_forward_hook(self._given)

    def _given(self, model: torch.nn.Module, inputs: tuple, outputs: list[dict]) -> list[dict]:
        found = []
        for image, _ in zip(inputs[0], outputs, strict=True):
            boxes = self.queue.pop(0) * (image.shape[-1] / SIZE)
            about = {"scores": torch.linspace(0.95, 0.8, len(boxes)), "labels": torch.zeros(len(boxes)).long()}
            found.append({"boxes": torch.from_numpy(boxes), **about})
        return found

    def predict(self) -> float:
        """Seconds per image of a whole prediction."""
        self.queue = list(self.fields.values())
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for batch in batches_of(list(self.fields), Path(folder), 1):
                self.predictor.predict(batch)
            return (time.perf_counter() - start) / len(self.fields)

    def detect(self) -> float:
        """Seconds per image from memory to types."""
        images = [LoadedImage.of_file(path, self.models.views, True) for path in self.fields]
        self.queue = list(self.fields.values())
        start = time.perf_counter()
        for image in images:
            self.models([image])
        return (time.perf_counter() - start) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=DEFAULT, help="of a detector with a typing stage")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2, 4, 8], help="per field")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    options = PredictOptions(weights=o.weights, workers=0, device="cpu")
    print(f"{'cells':>5} {'way':>8} {'alone, ms':>10} {'typed, ms':>10} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for cells in o.cells:
            fields = drawn_fields(Path(folder), cells)
            cases = [Case(typer, options, fields) for typer in ("off", "")]
            for way in (Case.predict, Case.detect):
                pairs = [[way(case) for case in cases] for _ in range(o.repeats + 1)][1:]  # the first warms up
                alone, typed = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
                ratio = statistics.median(b / a for a, b in pairs)
                print(f"{cells:>5} {way.__name__:>8} {alone:>10.1f} {typed:>10.1f} {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
