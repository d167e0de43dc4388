"""``--engine ray``: a prediction on a cluster. Ray Data reads the images, runs the detectors on its workers, with GPUs
where there are, restarts workers that die, and writes Parquet; of this the journal is filled.

Nothing of Ray is imported before it is asked for. Its usage statistics are off.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import is_table
from ..errors import LeukoError, one_line
from ..io import make_folder, plain
from ..report.journal import Journal
from ..report.predictions import Lazy
from .predictor import Item, Predictor

if TYPE_CHECKING:
    import pyarrow
    import ray.data

FOLDER = "parquet"  # of the results
BATCH = 16  # images that a worker takes at once; on a CPU, it looks at them one by one


def predict_on_ray(predictor: Predictor, paths: Sequence[Path], journal: Journal, source: str) -> Sequence[list[dict]]:
    """The records of images, each a list of one: of these files, or without any of what the ``source`` holds. Images
    that the journal or the Parquet of an earlier process has, without an error and unchanged since, are not looked at
    again."""
    data = started()
    folder = make_folder(journal.folder / FOLDER)
    numbers = {record["image"]: number for number, (record,) in enumerate(journal) if is_current(record)}
    for record in filter(is_current, stored(folder, numbers)):
        numbers[record["image"]] = journal.append([record])
    if done := frozenset(numbers):
        print(f"goes on in {one_line(str(journal.folder))}: {len(done)} images are done")
    left = [{"path": str(path)} for path in paths if str(path) not in done]
    if left:
        run(data.from_items(left), predictor, folder)
    if not paths:
        run(of_source(data, source).filter(lambda row: row["path"] not in done), predictor, folder)
    errors = {}
    for record in stored(folder, numbers):
        if "error" in record:
            errors[record["image"]] = record
        else:
            numbers[record["image"]] = journal.append([record])
    for image in errors.keys() - numbers.keys():
        numbers[image] = journal.append([errors[image]])
    order = [str(path) for path in paths] or sorted(numbers)
    return Lazy(len(order), lambda i: journal[numbers[order[i]]])


def is_current(record: dict) -> bool:
    """Whether an image was read, and its file is still the same."""
    return "error" not in record and Item(Path(record["image"])).about["stat"] == record["stat"]


def stored(folder: Path, known: Container[str]) -> Iterator[dict]:
    """The records in the Parquet files of a folder that are of images not ``known`` yet. A file that a process has not
    finished is removed."""
    from pyarrow import ArrowInvalid, parquet

    for path in sorted(folder.rglob("*.parquet")):
        try:
            file = parquet.ParquetFile(path)
        except ArrowInvalid:
            path.unlink()
            continue
        with file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    if row["image"] not in known:
                        yield {name: value for name, value in row.items() if value is not None}


def started() -> ray.data:
    """Ray Data, on the cluster that RAY_ADDRESS names or on this machine alone; LeukoError without the package."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import pyarrow.parquet  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise LeukoError("--engine ray: Ray is not installed; pip install 'leuko[ray]'") from error
    if not ray.is_initialized():
        local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    return ray.data


def of_source(data: ray.data, source: str) -> ray.data.Dataset:
    """The images of an object store's address, or of Parquet with ``path``, and ``bytes`` where the files are not to be
    had by it."""
    try:
        return data.read_parquet(source) if is_table(source) else data.read_binary_files(source, include_paths=True)
    except (OSError, ValueError) as error:
        raise LeukoError(f"{source}: Ray cannot read it: {error}; check the address and your rights") from error


def run(images: ray.data.Dataset, predictor: Predictor, folder: Path) -> None:
    """Predict on the images and write Parquet into the folder."""
    import ray

    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    with_gpu = gpus > 0 and predictor.options.device != "cpu"
    workers = ray.data.ActorPoolStrategy(min_size=1, max_size=gpus if with_gpu else max(cpus - 1, 1))
    options = {"batch_size": BATCH, "compute": workers, "num_gpus": int(with_gpu), "num_cpus": 1}
    results = images.map_batches(Worker, fn_constructor_args=(asdict(predictor.options),), **options)
    try:
        results.write_parquet(str(folder))
    except (ray.exceptions.RayError, OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise LeukoError(f"--engine ray: {cause}; the same command goes on where this one stopped") from error


class Worker:
    """The detectors in a process of Ray's."""

    def __init__(self, options: dict):
        self.predictor = Predictor(**options)

    def __call__(self, batch: dict) -> pyarrow.Table:
        """Records of the images of a batch, as a table."""
        import pyarrow

        data = batch.get("bytes", [b""] * len(batch["path"]))
        items = [Item(Path(path), data=content) for path, content in zip(batch["path"], data, strict=True)]
        records = self.predictor.predict(items)
        rows = [item.about | record for item, record in zip(items, records, strict=True)]
        for row, path in zip(rows, batch["path"], strict=True):
            row["image"] = str(path)  # an address of an object store is no path
        return pyarrow.Table.from_pylist(plain(rows), schema())


def schema() -> pyarrow.Schema:
    """The columns of the Parquet: those of a record (see :class:`ImagePrediction`)."""
    import pyarrow as pa

    text, numbers, rows = pa.string(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.float32()))
    columns = {"image": text, "picture": text, "stat": pa.list_(numbers), "error": text, "path": text, "size": numbers}
    columns |= {"header": numbers, "bits": pa.int64(), "boxes": rows, "type_scores": rows, "why": pa.list_(text)}
    return pa.schema(columns | {"is_full": pa.bool_(), "cell": pa.list_(pa.float64()), "looks": text})
