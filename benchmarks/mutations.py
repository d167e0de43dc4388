"""Mutated files for all of leuko's readers: does each end in one line of error, or with every cell accounted for?

    python benchmarks/mutations.py --cases 20000

Each case takes a sound small file, changes it in one to three ways (bits flipped, cut off, a slice doubled or lost, a
value replaced by a hostile one, a key renamed) and reads it through the public reader, in a process with 5 s of the
processor's time and 1 GB more memory than it had. Faults: an exception other than LeukoError, a message of several
lines, the limits, a process that dies, and cells of a mutated label file that are neither read nor listed as left out.
Cases depend on the seed and their number only. Prints a table, and of each kind of fault the case with the fewest
changes, which --keep writes to a folder; exits with status 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from limits import more_memory, run_all
from mutants import mutated
from readers import NO_DETECTOR, READERS, make

from leuko.errors import LeukoError

SECONDS, MEMORY = 5, 1 << 30
# ---------------------------------------------------------------- one case, in a process with limits


class Outcome(NamedTuple):
    """How a case ended: ``read``, ``refused`` or a kind of fault, and what there is to say about it."""

    case: int
    kind: str
    about: str = ""


def mutate(case: int, seed: int, template: Path) -> tuple[str, bytes, int]:
    """The reader of a case, its file's content, and the number of changes."""
    name = list(READERS)[case % len(READERS)]
    file = template / READERS[name].file
    data, changes = mutated(file.read_bytes(), file.suffix, np.random.default_rng([seed, case]))
    return name, data, changes


def run_case(case: int, seed: int, template: Path) -> Outcome:
    """Read the case's file in this process' own copy of all files, which is put right again."""
    folder = template.with_name(f"of process {os.getpid()}")
    if not folder.exists():
        shutil.copytree(template, folder)
        os.chdir(folder)
    name, data, _ = mutate(case, seed, template)
    reader = READERS[name]
    file = folder / reader.file
    file.write_bytes(data)
    try:
        with more_memory(MEMORY):
            read = reader.read(folder)
    except LeukoError as error:
        control = re.search(r"[\x00-\x1f\x7f-\x9f]", str(error))
        return Outcome(case, "message" if control else "refused", repr(str(error)[:300]))
    except MemoryError as error:
        return Outcome(case, "over 1 GB", _place(error))
    except BaseException as error:
        return Outcome(case, type(error).__name__, f"{_place(error)}: {str(error)[:200]!r}")
    finally:
        file.write_bytes((template / reader.file).read_bytes())
    cells = reader.cells(data) if reader.cells else None
    if cells is not None and read != cells:
        return Outcome(case, "cells lost" if read < cells else "cells from nowhere", f"{cells} there, {read} read")
    return Outcome(case, "read")


def _place(error: BaseException) -> str:
    """The last line of leuko's own that an exception passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/leuko/" in f.filename]
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else "outside leuko"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="a reader, such as COCO")
    parser.add_argument("--keep", type=Path, help="a folder for the file of each kind of fault")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive in the processes to come
    names = list(READERS)
    chosen = [c for c in range(options.cases) if options.only in ("", names[c % len(names)])]
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        template.mkdir()
        make(template)
        check_sound(template)
        case = partial(run_case, seed=options.seed, template=template)
        outcomes = [
            o if isinstance(o, Outcome) else Outcome(*o) for o in run_all(case, chosen, options.processes, SECONDS)
        ]
        return report(outcomes, options.seed, template, options.keep)


def check_sound(template: Path) -> None:
    """Read all files before they are changed, so that a mutation, and not the file, is at fault."""
    os.chdir(template)
    for name, reader in READERS.items():
        read = None if name in NO_DETECTOR else reader.read(template)
        cells = reader.cells((template / reader.file).read_bytes()) if reader.cells else read
        assert read == cells, f"{name}: {read} cells are read, {cells} are there"


def report(outcomes: list[Outcome], seed: int, template: Path, keep: Path | None) -> int:
    """Print the table and an example of each fault; 1 if there is one, else 0."""
    names = list(READERS)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    faults: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        name = names[outcome.case % len(names)]
        kind = outcome.kind if outcome.kind in ("read", "refused") else "faults"
        counts[name][kind] += 1
        if kind == "faults":
            faults[name, outcome.kind, outcome.about.split(": ")[0]].append(outcome)
    print(f"{'file':<18}{'cases':>8}{'read':>8}{'refused':>9}{'faults':>8}")
    for name in names:
        c = counts[name]
        print(f"{name:<18}{c.total():>8}{c['read']:>8}{c['refused']:>9}{c['faults']:>8}")
    for (name, kind, _), of_kind in sorted(faults.items()):
        first = min(of_kind, key=lambda o: (mutate(o.case, seed, template)[2], o.case))
        print(f"{name}: {kind}, {len(of_kind)} times, such as case {first.case}: {first.about}")
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            file = keep / f"{first.case} {Path(READERS[name].file).name}"
            file.write_bytes(mutate(first.case, seed, template)[1])
    print(f"{len(outcomes)} cases, {sum(c['faults'] for c in counts.values())} faults of {len(faults)} kinds")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
