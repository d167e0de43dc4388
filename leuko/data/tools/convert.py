"""From one format to another, with all that a ``Dataset`` holds: ``leuko data convert``."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from ...errors import LeukoError, nearest
from ...io import write_yaml
from ..dataset import Dataset
from ..formats import FORMATS, voc
from .builder import building, read_source, write_warnings


def convert(
    src: str | Path, dst: str | Path, to: str, *, voc_origin: int = 0, force: bool = False, progress: bool = False
) -> dict[str, Dataset]:
    """Write all splits of a data set in another format (or the same), and return them as they were read.

    Boxes come back bit for bit, with class names and ids, splits, factors, groups, crowds and attributes; images are
    linked or copied, never encoded again. What reading fixes is written fixed, and listed in ``warnings.txt``.
    The official VOC convention (``voc_origin=1``) gets a data YAML that says so. For the arguments see
    ``config.ConvertOptions``. Raises LeukoError.
    """
    if to not in FORMATS:
        raise LeukoError(f"--to {to}: is not a format{nearest(to, FORMATS)}; give {', '.join(FORMATS)}")
    if voc_origin and to != "voc":
        raise LeukoError(f"--voc-origin: is about VOC, not {to}; leave it out")
    _, datasets = read_source(src, dst, to)
    with building(dst, force) as folder:
        for split, dataset in tqdm(datasets.items(), desc="writing", unit="split", disable=not progress):
            FORMATS[to].write(dataset, folder, split, **({"voc_origin": 1} if voc_origin else {}))
        if voc_origin:
            splits = {split: voc.PART.format(split=split) for split in datasets}
            names = next(iter(datasets.values())).types
            info = {"path": ".", "splits": splits, "names": names, "format": "voc", "voc_origin": 1}
            write_yaml(folder / "data.yaml", info)
        write_warnings(folder, datasets)
    return datasets
