"""The detectors of a prediction at work on new images, one after the other; what they find is kept as it goes."""

from __future__ import annotations

import base64
import contextlib
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..config import PredictOptions
from ..data.header import ImageHeader
from ..data.images import is_image, memory_errors_as
from ..data.loader import LoadedImage, file_images, worker_count
from ..detections import Detections
from ..errors import LeukoError, one_line
from ..io import make_folder, write_bytes
from ..metrics import counting, doubles
from ..report import plots
from ..report.journal import Journal
from . import thresholds
from .ensemble import EnsembleMember, Fusion, finished_runs, load_members, places, without_weak
from .evaluate import choose_device
from .thresholds import Threshold


@dataclass(frozen=True)
class Models:
    """The detectors of a prediction, how they are fused if there are several, and the score from which they count."""

    members: list[EnsembleMember]
    device: torch.device
    fusion: Fusion
    calibrated: bool
    threshold: Threshold

    @classmethod
    def of(cls, options: PredictOptions) -> Models:
        """The models that the options name; LeukoError where they do not fit each other or the options."""
        device = choose_device(options.device)
        named = [options.weights] if options.ensemble is None else options.ensemble or finished_runs(options.project)
        members = load_members(named, device, *options.looking)
        members = without_weak(members, named=options.ensemble != [])
        for member in members:
            member.labels_in(members[0].types)
            if options.calibrated:
                member.calibrated([])
        fusion = Fusion(options.fusion_iou, options.fusion_score, options.fusion_weights)
        if len(members) > 1:
            fusion.votes(members)
        threshold = thresholds.kept(members, fusion, options.calibrated) or Threshold()
        if options.threshold is not None:
            threshold = Threshold(options.threshold, "as --threshold says")
        return cls(members, device, fusion, options.calibrated, threshold)

    @property
    def name(self) -> str:
        """What the folder of results is called."""
        return "ensemble" if len(self.members) > 1 else self.members[0].name

    @property
    def types(self) -> list[str]:
        """The types in the order of the labels."""
        return list(self.members[0].types)

    @property
    def views(self) -> list[int]:
        """The sizes in which they look at whole images."""
        return list(dict.fromkeys(size for member in self.members for size in member.views))

    def at_network(self, size: tuple[int, int]) -> float:
        """How many pixels of the network a cell has on an image of ``size``, of the model that sees it largest; inf
        where that is not known, or images are cut into tiles."""
        seen = [m.cell * max(m.sizes) / max(size) if m.cell and not m.tiling else math.inf for m in self.members]
        return max(seen)

    def __call__(self, image: LoadedImage) -> Detections:
        """Detections of one image, fused if there are several members."""
        predictions = [member.relabel(member.detect([image], self.device), self.types) for member in self.members]
        if self.calibrated:
            predictions = [member.calibrated(p) for member, p in zip(self.members, predictions, strict=True)]
        is_alone = len(self.members) == 1
        found = predictions[0][0] if is_alone else self.fusion(self.members, predictions, [image.size])[0]
        return replace(found, types=tuple(self.types))


@dataclass(frozen=True)
class ImagePrediction:
    """What was found on an image: its file (with ``--originals`` that of its original), ``size`` (width, height), the
    cells (of ``counting.classify``), their looks [N, 32, 32] (see ``doubles``), and what the file says of itself, with
    the ``bits`` that its channels use; ``is_full`` where there may be more cells, beyond ``--max-detections``."""

    path: Path
    size: tuple[int, int]
    cells: Detections
    looks: np.ndarray
    header: ImageHeader
    bits: int
    is_full: bool

    @classmethod
    def of(cls, record: dict, types: Sequence[str]) -> ImagePrediction:
        """From a record of the journal."""
        number = len(record["boxes"])
        scores = np.array(record["type_scores"], np.float32).reshape(number, len(types))
        why = np.array(record["why"], object).reshape(number)
        looks = np.frombuffer(base64.b64decode(record["looks"]), np.uint8).reshape(number, doubles.SIDE, doubles.SIDE)
        labels = scores.argmax(1) if number else []
        cells = Detections(record["boxes"], scores.max(1, initial=0), labels, tuple(types), scores, why)
        header, about = ImageHeader(*record["header"]), (record["bits"], record["is_full"])
        return cls(Path(record["path"]), tuple(record["size"]), cells, looks, header, *about)


def predict_images(
    models: Models, paths: Sequence[Path], originals: dict[Path, Path], journal: Journal, options: PredictOptions
) -> list[ImagePrediction | LeukoError]:
    """What is found on each image, and its picture in the journal's folder; or the error for which it is not read.
    Images that the journal has, with their picture, and that have not changed since are not looked at again."""
    folder = make_folder(journal.folder / "images")
    known, records, found = {}, {}, {}
    for record in journal.records:
        with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):  # one that is damaged is none
            known[record["picture"]] = record, ImagePrediction.of(record, models.types)
    for path, picture in named_pictures(paths):
        about = {"image": str(path), "picture": picture, "stat": stat_of(path, originals.get(path, path))}
        record, prediction = known.get(picture, ({}, None))
        if about.items() <= record.items() and (folder / picture).exists():
            records[path], found[path] = record, prediction
        else:
            records[path] = about
    todo = [path for path in paths if path not in found]
    if found:
        print(f"goes on in {one_line(str(journal.folder))}: {len(found)} of {len(paths)} images are done")
    images = file_images(todo, models.views, min(worker_count(options.workers), len(todo) // 8), options.max_pixels)
    bar = tqdm(images, "predicting", len(paths), unit="image", initial=len(found))
    for path, image in zip(todo, bar, strict=True):
        record = records[path]
        try:
            if isinstance(image, LeukoError):
                raise image
            with memory_errors_as(path):
                detections = models(image)
                places_taken = places(models.members, detections.above(models.threshold.value), image)
                is_full = places_taken >= options.max_detections
                cells = counting.one_type(detections, len(models.types))
                if options.originals:
                    image, cells = on_original(originals[path], image, cells, options.max_pixels)
                cells = counting.classify(cells, image.size, models.threshold.value)
                looks = [doubles.look(image.pixels, box).tobytes() for box in cells.boxes]
                drawn = plots.draw_classified(image.pixels, cells, models.threshold.value)
                image.pixels = None  # where it is large, one copy is enough
                data = plots.encoded(drawn, Path(record["picture"]).suffix)
        except LeukoError as error:
            found[path] = error
            continue
        write_bytes(folder / record["picture"], data)
        record |= {"path": str(image.path), "size": image.size, "header": image.header, "bits": image.bits}
        record |= {"boxes": cells.boxes, "type_scores": cells.type_scores, "why": cells.why.tolist()}
        record |= {"is_full": is_full, "looks": base64.b64encode(b"".join(looks)).decode()}
        found[path] = ImagePrediction.of(journal.append(record), models.types)
    for picture in {p.name for p in folder.iterdir()} - {r["picture"] for r in records.values() if "boxes" in r}:
        (folder / picture).unlink()  # of an image that is no longer there
    return [found[path] for path in paths]


def without_doubles(predictions: list[ImagePrediction]) -> list[ImagePrediction]:
    """The same with the cells unclassified that an earlier field of their slide, the folder, shows, too."""
    slides: dict[Path, list[int]] = {}
    for i, prediction in enumerate(predictions):
        slides.setdefault(prediction.path.parent, []).append(i)
    for slide in slides.values():
        classified = [(i, k) for i in slide for k in np.flatnonzero(predictions[i].cells.why == "")]
        if not classified:
            continue
        looks = np.stack([predictions[i].looks[k] for i, k in classified])
        for (i, k), is_double in zip(classified, doubles.doubles(looks, [i for i, _ in classified]), strict=True):
            if is_double:
                predictions[i].cells.why[k] = counting.DOUBLE
    return predictions


def stat_of(*paths: Path) -> list[list[int]]:
    """Size and time of files: what shows that they have changed; [] for one that cannot be asked."""
    stats = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            stats.append([status.st_size, status.st_mtime_ns])
    return stats


def named_pictures(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each file with the name of its picture; files of one name in different folders get a number."""
    named: dict[str, Path] = {}
    for path in paths:
        suffix = path.suffix.lower() if is_image(path) else ".jpg"
        names = (f"{path.stem}{suffix}" if i == 1 else f"{path.stem}-{i}{suffix}" for i in itertools.count(1))
        named[next(name for name in names if name not in named)] = path
    return [(path, name) for name, path in named.items()]


def on_original(path: Path, image: LoadedImage, cells: Detections, max_pixels: float) -> tuple[LoadedImage, Detections]:
    """The original of a resized image, and the detections on it."""
    whole = LoadedImage.of_file(path, (), with_pixels=True, max_pixels=max_pixels)
    scale = np.array([new / old for new, old in zip(whole.size, image.size, strict=True)] * 2, dtype=np.float32)
    return whole, replace(cells, boxes=cells.boxes * scale)
