"""``leuko merge``: put the shards of a prediction together."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("merge")

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .config import MergeOptions
from .data.formats.files import link_or_copy
from .errors import LeukoError, one_line
from .io import io_errors_as, make_folder, write_yaml
from .predict import SHARD
from .report import prediction
from .report.journal import FILE, Journal
from .report.prediction import About
from .report.records import Predictions
from .report.run import whole_run


def merge(options: MergeOptions) -> Path:
    """Put shards together and return the folder of the results, which are those of one process. Raises LeukoError."""
    shards = in_order(options.shards)
    head, number = shards[0].head, len(shards)
    about = About.of(head["about"])
    about = replace(about, options=replace(about.options, shard=""))
    predictions = Predictions([(shards[i % number], i // number) for i in range(head["batches"])], about.types)
    if not predictions:
        raise LeukoError(f"{about.options.source}: none of its {len(predictions.errors)} files is a readable image")
    with whole_run(options.save, options.name or about.options.name or about.model) as folder:
        write_yaml(folder / "args.yaml", asdict(about.options))
        has_pictures = (Path(options.shards[0]) / "images").is_dir()
        if has_pictures:
            make_folder(folder / "images")
            with io_errors_as("copied"):
                for picture in (picture for shard in options.shards for picture in (Path(shard) / "images").iterdir()):
                    link_or_copy(picture, folder / "images" / picture.name)
        prediction.write(folder, about, predictions, with_review=has_pictures)
    print(f"\nresults: {one_line(str(folder))}")
    return folder


def in_order(folders: Sequence[str]) -> list[Journal]:
    """What the shards of these folders have found, by their numbers, a record per batch; LeukoError where one is
    missing, not finished, there twice, or of another prediction."""
    if not folders:
        raise LeukoError("no shards: name their folders (see leuko merge --help)")
    found: dict[int, Journal] = {}
    for folder in folders:
        if (Path(folder) / FILE).exists():
            raise LeukoError(f"{folder}: is not finished; run its leuko predict --shard again, which goes on")
        if not (Path(folder) / SHARD).is_file():
            raise LeukoError(f"{folder}: holds no {SHARD}; name folders that leuko predict --shard has written")
        shard = Journal.read(Path(folder) / SHARD)
        index, number = shard.head["shard"]
        if index in found:
            problem = f"is shard {index + 1} of {number}, as is {found[index].folder}"
            raise LeukoError(f"{folder}: {problem}; name one of them")
        found[index] = shard
        first = next(iter(found.values()))
        if shard.head | {"shard": [], "about": {}} != first.head | {"shard": [], "about": {}}:
            problem = f"is of another prediction than {first.folder}"
            raise LeukoError(f"{folder}: {problem}: options, images or place differ")
    if missing := [i + 1 for i in range(number) if i not in found]:
        raise LeukoError(f"shard {missing[0]} of {number} is missing; name the folders of all of them")
    return [found[i] for i in range(number)]
