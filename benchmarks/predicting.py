"""How fast `leuko predict` is on many images, whether its memory stays flat, and whether kills change what it writes.

    python benchmarks/predicting.py --images 300 --repeats 3
    python benchmarks/predicting.py --checks --checked 5000 --imgsz 128

The peer is the simplest way from files to the same table, frozen here: one process that decodes an image, detects on it
(torch's own number of threads, or --threads), and writes a line per cell; no pictures, no journal. With --other, `leuko
predict` of another checkout runs by turns with both. Fields are rendered, 600 px, 0 to 3 cells each; the weights are
leuko-small. leuko makes no pictures, as of more than 1,000 images (--pictures). Times are of the whole command, less
that of a run on 16 images; processor seconds, which other programs on the machine disturb less, stand beside them.

--checks runs two commands on --checked images: one that is watched (memory of all its processes), and one that is
killed (SIGKILL) --kills times and started again; both must leave the same files.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from leuko.cells import TYPES
from leuko.data.tools.builder import save_image
from leuko.synth.render import render

ROOT = Path(__file__).parent.parent
SIZE, RENDERED, PER_SLIDE, FEW = 600, 40, 500, 16

PEER = """
import sys
from pathlib import Path
import torch
from leuko import Detector
if int(sys.argv[2]):
    torch.set_num_threads(int(sys.argv[2]))
detector = Detector(device="cpu", imgsz=[int(sys.argv[3])] if int(sys.argv[3]) else ())
with open(sys.argv[4], "w") as table:
    for path in sorted(Path(sys.argv[1]).rglob("*.jpg")):
        for cell in detector.predict(path):
            table.write(f"{path},{cell.type},{cell.score:.4f},{','.join(f'{v:.2f}' for v in cell.box)}\\n")
"""


def make_fields(folder: Path, number: int) -> Path:
    """So many fields in slides of 500: some are rendered, the others are links to them."""
    folder.mkdir(parents=True)
    rendered = []
    for i in range(number):
        path = folder / f"slide{i // PER_SLIDE:03}" / f"{i:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i < RENDERED:
            rng = np.random.default_rng([7, i])
            cells = [TYPES[k].code for k in rng.integers(0, len(TYPES), rng.integers(0, 4))]
            save_image(path, render(rng, SIZE, SIZE, cells, SIZE / 13).image)
            rendered.append(path)
        else:
            os.link(rendered[i % RENDERED], path)
    return folder


def ran(words: list, checkout: Path, threads: int) -> tuple[float, float]:
    """Seconds, and processor seconds of all processes, of a command that is to succeed."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=checkout, env=environment, capture_output=True)
    after = os.times()
    used = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return time.perf_counter() - start, used


def compare_speed(o: argparse.Namespace, home: Path) -> None:
    sizes = ["--imgsz", o.imgsz] if o.imgsz else []

    def words(side: str, fields: Path, out: Path) -> list:
        if side == "peer":
            return ["-c", PEER, fields, o.threads, o.imgsz, home / "peer.csv"]
        pictures = ["--pictures", o.pictures] if side == "leuko" else []
        return ["-m", "leuko.predict", "--source", fields, "--save", out, "--device", "cpu", *sizes, *pictures]

    sides = {"peer": ROOT, "leuko": ROOT} | ({"other": Path(o.other).resolve()} if o.other else {})
    few, many = (make_fields(home / f"fields{n}", n) for n in (FEW, o.images))
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(o.repeats):
        for side, checkout in sides.items():
            short, long = (ran(words(side, fields, home / side), checkout, o.threads) for fields in (few, many))
            rates[side].append(tuple((b - a) / (o.images - FEW) for a, b in zip(short, long, strict=True)))
            wall, used = rates[side][-1]
            print(f"{side:>6}: {1 / wall:6.2f} images/s, {1000 * used:6.1f} ms of processor time per image", flush=True)
    for side in sides:
        if side != "leuko":
            pairs = list(zip(rates[side], rates["leuko"], strict=True))
            ratios = [statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1)]
            print(f"leuko / {side}: {ratios[0]:.2f} times its images/s; processor time {1 / ratios[1]:.2f} times its")


def memory(pid: int) -> float:
    """Megabytes of a process and its children, shared pages divided among them."""
    total = 0.0
    for process in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
        except (OSError, StopIteration):  # it has just ended
            continue
    return total


def check(o: argparse.Namespace, home: Path) -> bool:
    fields = make_fields(home / "fields", o.checked)
    command = [sys.executable, "-m", "leuko.predict", "--source", fields, "--name", "p", "--device", "cpu"]
    command += ["--imgsz", str(o.imgsz)] * bool(o.imgsz) + ["--pictures", str(o.pictures)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(save: Path) -> subprocess.Popen:
        words = [*map(str, command), "--save", str(save)]
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def done(save: Path) -> int:
        journal = save / "p/unfinished.jsonl"
        return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else -1

    print(f"{'images':>7} {'MB':>6}")
    watched, peak, next_at = start(home / "watched"), 0.0, 0
    while watched.poll() is None:
        time.sleep(0.2)
        number = done(home / "watched")
        try:
            now = memory(watched.pid)
        except OSError:
            continue
        peak = max(peak, now) if number >= o.checked or number < 0 else peak
        if number >= next_at:
            print(f"{number:>7} {now:>6.0f}", flush=True)
            next_at = number + max(o.checked // 10, 1)
    print(f"writing {peak:>6.0f} at most", flush=True)

    draw, kills = random.Random(0), 0
    while True:
        process = start(home / "killed")
        before, goal = done(home / "killed"), draw.uniform(0.02, 1.5 / (o.kills + 1)) * o.checked
        while process.poll() is None and (kills >= o.kills or done(home / "killed") < max(before, 0) + goal):
            time.sleep(0.05)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        print(f"killed {kills} times, {done(home / 'killed')} images done", flush=True)
    files = [
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file() and p.name != "args.yaml"}
        for f in (home / "watched/p", home / "killed/p")
    ]
    is_same = files[0] == files[1] and process.returncode == watched.returncode == 0
    print(f"{len(files[0])} files after {kills} kills: {'the same' if is_same else 'DIFFERENT'}")
    return is_same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="of each timed run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="OMP_NUM_THREADS of all sides; 0: torch's own")
    parser.add_argument("--imgsz", type=int, default=0, help="instead of that of the weights")
    parser.add_argument("--other", default="", help="another checkout of leuko, to compare with")
    parser.add_argument("--checks", action="store_true", help="memory and kills instead of times")
    parser.add_argument("--checked", type=int, default=5000, help="images of the checks")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=0, help="as of leuko predict; 0: as of very many images")
    o = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="predicting-"))
    try:
        if o.checks:
            sys.exit(0 if check(o, home) else 1)
        compare_speed(o, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
