"""A prediction on many images: divided into batches, detected on by worker processes, kept in a journal as it goes.

On a CPU each worker takes an image all the way, on one thread: several threads on one small image mostly wait for each
other. Beside a GPU the workers decode, and this process detects.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ..config import PredictOptions
from ..data.images import is_image, is_large
from ..data.workers import worker_count
from ..errors import LeukoError, one_line
from ..report.journal import Journal
from .predictor import Item, Predictor

FEW = 8  # images per process, below which its start takes longer than it saves
MOST_WORKERS = 16


def batches_of(paths: Sequence[Path], folder: Path | None, size: int) -> list[list[Item]]:
    """The images in batches of ``size``, with their pictures in the folder, if one is given."""
    pictures = named_pictures(paths) if folder else ((path, None) for path in paths)
    items = [Item(path, folder / name if name else None) for path, name in pictures]
    return [items[at : at + size] for at in range(0, len(items), size)]


def predict_batches(
    predictor: Predictor, batches: Sequence[Sequence[Item]], journal: Journal, options: PredictOptions
) -> list[int]:
    """The numbers of the journal's records, a list of those of each batch's images (see :meth:`Predictor.records`).
    Batches that it has, with their pictures and without an error, and whose files have not changed since, are not
    looked at again."""
    numbers = known_batches(journal, batches)
    todo = [i for i in range(len(batches)) if i not in numbers]
    images, left = (sum(len(batches[i]) for i in some) for some in (range(len(batches)), todo))
    if left < images:
        print(f"goes on in {one_line(str(journal.folder))}: {images - left} of {images} images are done")
    is_on_cpu = predictor.models.is_on_cpu
    workers = min(process_count(options.workers, is_on_cpu), images // FEW)
    work = predictor.predict if is_on_cpu else predictor.load
    with tqdm(desc="predicting", total=images, initial=images - left, unit="image") as bar:
        for i, done in zip(todo, each_done(work, [batches[i] for i in todo], workers), strict=True):
            if isinstance(done, LeukoError):  # of a picture that cannot be written, for example
                raise done
            done = work(batches[i]) if done is None else done
            if not is_on_cpu:
                done = predictor.records(batches[i], done)
            numbers[i] = journal.append([item.about | record for item, record in zip(batches[i], done, strict=True)])
            bar.update(len(batches[i]))
    return [numbers[i] for i in range(len(batches))]


def each_done(work: Callable, batches: Sequence[Sequence[Item]], workers: int) -> Iterator:
    """What ``work`` makes of each batch, in their order, by so many processes; None for one that is left to this."""
    if not workers:
        return map(work, batches)
    from ..data.loader import in_workers  # they are torch's

    return in_workers(functools.partial(_by_worker, work), batches, workers)


def _by_worker(work: Callable, items: Sequence[Item]) -> object:
    return None if any(is_large(item.path) for item in items) else work(items)


def known_batches(journal: Journal, batches: Sequence[Sequence[Item]]) -> dict[int, int]:
    """The numbers of the journal's records that are of a batch, by that of the batch."""
    by_image = {str(batch[0].path): i for i, batch in enumerate(batches)}
    numbers = {}
    for number, records in enumerate(journal):
        with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):  # one that is damaged is none
            i = by_image[records[0]["image"]]
            is_same = len(batches[i]) == len(records) and all(
                item.about.items() <= record.items()
                and "boxes" in record
                and (not item.picture or item.picture.exists())
                for item, record in zip(batches[i], records, strict=True)
            )
            if is_same:
                numbers[i] = number
    return numbers


def process_count(workers: int, is_on_cpu: bool) -> int:
    """The ``--workers`` option as a number: -1 is, on a CPU, one process per core, at most 16; else as for training.
    Without torch, whose worker processes they are, this process works alone."""
    if not importlib.util.find_spec("torch"):
        if workers > 0:
            raise LeukoError(f"--workers {workers}: processes need PyTorch, which is not installed; leave it out")
        return 0
    if workers >= 0 or not is_on_cpu:
        return worker_count(workers)
    return min(MOST_WORKERS, worker_count(workers) + 1)


def named_pictures(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each file with the name of its picture; files of one name in different folders get a number."""
    named: dict[str, Path] = {}
    for path in paths:
        suffix = path.suffix.lower() if is_image(path) else ".jpg"
        names = (f"{path.stem}{suffix}" if i == 1 else f"{path.stem}-{i}{suffix}" for i in itertools.count(1))
        named[next(name for name in names if name not in named)] = path
    return [(path, name) for name, path in named.items()]
