"""Wide fields and slides: cells on every seam and corner are counted once, at the scale of the training."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import table

from leuko import Detector
from leuko.config import EXAMPLES
from leuko.data.crops import stain_of
from leuko.data.fit import fit
from leuko.data.images import ImageFile, LoadedImage, open_image, read_image
from leuko.data.slides import Slide
from leuko.data.source import load
from leuko.data.tools.builder import save_image
from leuko.detections import Detections
from leuko.engine.checkpoint import load_weights, save
from leuko.engine.detect import Pipeline
from leuko.engine.tiling import Tiling
from leuko.errors import LeukoError
from leuko.metrics.counting import one_type
from leuko.ops.pairs import box_iou, overlapping_pairs, share_of_smaller
from leuko.report.tables import odd_cells
from leuko.synth.render import render

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("openslide")
LIGHT = 250
NETWORK = 12.0  # pixels of a cell in the stand-in's training
TYPES = ("A", "B")


class Eye:
    """A stand-in for a detector that sees every cell, a spot in its type's grey, and what a seam leaves of one: as two
    types, with a score that is the higher the less of it is seen."""

    max_detections, is_on_cpu = 100, True

    def detect(self, views: list[np.ndarray]) -> list[Detections]:
        return [self.look(view) for view in views]

    def look(self, view: np.ndarray) -> Detections:
        grey = view[..., 0]
        number, _, stats, _ = cv2.connectedComponentsWithStats((grey < 200).astype(np.uint8))
        rows = []
        for k in range(1, number):
            x, y, w, h, area = stats[k].tolist()
            label = int(grey[y : y + h, x : x + w].min() > 90)
            score = 0.9 - area / 10_000
            rows += [(x, y, x + w, y + h, score, label), (x, y, x + w, y + h, score / 2, 1 - label)]
        rows = np.array(sorted(rows, key=lambda row: -row[4]), dtype=np.float32).reshape(-1, 6)
        return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(int))


def field(size: tuple[int, int], cells: list[tuple[float, float, float, float, int]]) -> np.ndarray:
    """An image [H, W, 3] with cells (middle, half axes, label) that do not touch."""
    image = np.full((size[1], size[0], 3), LIGHT, np.uint8)
    for x, y, a, b, label in cells:
        ends = (round(x), round(y)), (round(a), round(b))
        cv2.ellipse(image, *ends, 0, 0, 360, (120, 120, 120) if label else (60, 60, 60), -1)
    return image


def seen(image: np.ndarray, tiling: Tiling | None, model: Eye) -> Detections:
    views = [] if tiling else [max(image.shape[:2])]
    (found,) = Pipeline(model, tuple(views), tiling=tiling).detect([LoadedImage.of_pixels(image, views)])
    return found


def tiling_of(given: float, sizes: tuple[int, ...] = (64,)) -> Tiling:
    return Tiling(NETWORK, 20.0, given, sizes, own=64)


def best(found: Detections) -> np.ndarray:
    """Box and label of each cell, [N, 5]."""
    cells = one_type(found, len(TYPES))
    return np.column_stack([cells.boxes, cells.labels])


@pytest.mark.parametrize(("cell", "size"), [(12, (431, 307)), (24, (1000, 260)), (9, (95, 400)), (12, (100, 90))])
def test_cells_on_every_seam_and_corner_are_counted_once(cell, size):
    """As many as without tiles, of the same types, in the same boxes; whatever their sizes, up to 1.7 cells."""
    tiling, rng = tiling_of(cell), np.random.default_rng(cell)
    columns, rows = tiling.grid(size, cell)
    seams = [[0, *(edge for span in spans for edge in span)] for spans in (columns, rows)]
    places = [(x + dx * cell, y + dy * cell) for x in seams[0] for y in seams[1] for dx in (0, 3) for dy in (0, -3)]
    places += rng.uniform(0, size, (60, 2)).tolist()
    cells: list[tuple] = []
    for x, y in places:
        half = rng.uniform(0.3, 0.85, 2) * cell
        far = all(abs(x - c[0]) > half[0] + c[2] + 3 or abs(y - c[1]) > half[1] + c[3] + 3 for c in cells)
        if far and 0 <= x < size[0] and 0 <= y < size[1]:
            cells.append((x, y, *half, int(rng.integers(2))))
    image = field(size, cells)
    untiled, found = seen(image, None, Eye()), seen(image, tiling, Eye())
    assert len(columns) * len(rows) > 1 or max(size) <= 10 * cell
    assert len(best(untiled)) == len(cells) > 10 and len(found) == 2 * len(cells)
    apart = np.abs(best(found)[:, None] - best(untiled)).max(2)
    assert apart.min(0).max() < 2.5 * cell / NETWORK and sorted(apart.argmin(0)) == list(range(len(cells)))
    assert (np.diff(found.scores) <= 0).all() and found.boxes.min() >= 0 and (found.boxes <= [*size, *size]).all()


def test_a_cell_is_counted_once_wherever_it_lies():
    """Brute force: one cell at every place around a corner of four tiles; and one that is wider than the overlap."""
    tiling, size = tiling_of(12), (230, 230)
    (spans, _) = tiling.grid(size, 12)
    assert spans == [(0, 120), (110, 230)] or len(spans) == 3, spans
    edge = spans[0][1]
    for half in (4, 7, 10):
        for x in range(edge - 40, edge + 28, 3):
            for y in range(edge - 40, edge + 28, 17):
                (cell,) = best(seen(field(size, [(x, y, half, half, 1)]), tiling, Eye()))
                np.testing.assert_allclose(cell, [x - half, y - half, x + half + 1, y + half + 1, 1], atol=1)
    for x in range(edge - 40, edge + 28, 3):  # three cells wide: no tile need have all of it
        assert len(best(seen(field(size, [(x, 60, 18, 10, 0)]), tiling, Eye()))) == 1


def test_sizes_are_looked_at_in_proportion():
    """Of --imgsz, each tile is shown at the training's scale times size / the model's own."""
    shown = []

    class Noting(Eye):
        def look(self, view):
            shown.append(view.shape[:2])
            return super().look(view)

    found = seen(field((500, 130), [(250, 60, 10, 10, 0)]), tiling_of(24, (32, 64, 96)), Noting())
    assert len(best(found)) == 1 and set(shown) == {(32, 60), (65, 120), (98, 180)}


def test_pairs_are_those_of_the_whole_table():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (1500, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 30, (1500, 2))])
    boxes[::50, 2] = boxes[::50, 0]  # no area
    for least, overlap in ((0.5, box_iou), (2 / 3, share_of_smaller), (0.0, box_iou)):
        whole = np.argwhere(np.triu(overlap(boxes, boxes), 1) > least)
        assert len(whole) > 20 and overlapping_pairs(boxes, least, overlap).tolist() == whole.tolist()
    assert overlapping_pairs(boxes[:0], 0.5).shape == (0, 2)


# ---------------------------------------------------------------- how large cells are


def test_a_training_keeps_how_large_cells_were(project, data, faster):
    samples = load(data, "train").samples
    sides = np.concatenate([np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(1)) for s in samples])
    kept = load_weights(project / "faster").about["cell"]
    assert kept == {
        "stored": pytest.approx(np.median(sides), abs=0.01),
        "network": pytest.approx(np.median(sides) * 64 / 80, abs=0.01),
    }
    old = load_weights(faster)
    del old.about["cell"]
    save(old)
    with pytest.raises(LeukoError, match=r"does not say how large cells were.*--resume"):
        Detector(faster, tiles=True)
    small = load_weights("leuko-small")
    small.path, small.typer = faster / "copy.safetensors", None
    small.types = ["leukocyte"]
    assert small.cell_sides == {"network": 101.0, "stored": 143.0}  # the same detector in another file


def test_found_cells_tell_that_their_size_is_another():
    assert odd_cells([(60.0, 143.0)] * 5).endswith("--cell-size 60 shows them as in training")
    assert odd_cells([(100.0, 143.0)] * 5) == odd_cells([(60.0, 143.0)] * 4) == ""


def test_a_wide_field_shows_its_stain():
    """Cells that would have 8 pixels are looked at one by one: the stain is that of a field that shows them large."""
    rng = np.random.default_rng(4)
    picture = render(rng, 512, 512, ["NG", "L", "M", "EG"], red_cell_px=50)
    wide = np.tile(picture.image, (12, 12, 1))
    boxes = np.concatenate([picture.boxes + [512 * x, 512 * y] * 2 for x, y in ((0, 0), (5, 7), (11, 11))])
    near, far = stain_of(picture.image, picture.boxes), stain_of(wide, boxes)
    np.testing.assert_allclose(far.nuclei, near.nuclei, atol=0.15)
    np.testing.assert_allclose(far.white, near.white, atol=9)
    np.testing.assert_allclose(far.red_cells, near.red_cells, atol=0.08)


# ---------------------------------------------------------------- slides


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A folder with a field of 750 x 600 pixels, twelve cells of the example fields, each 65 pixels wide and three of
    them on a seam of its two tiles: as a PNG, and as a slide."""
    folder = tmp_path_factory.mktemp("wide")
    cells = []
    for name, width in (("krd_1", 140), ("krd_2", 105), ("pbc_1", 135), ("pbc_2", 190)):
        image = read_image(EXAMPLES / f"{name}.jpg")
        image = cv2.resize(image, None, fx=65 / width, fy=65 / width, interpolation=cv2.INTER_AREA)
        top, left = (max(side - 200, 0) // 2 for side in image.shape[:2])
        image = image[top : top + 200, left : left + 200]
        beside = [((200 - side) // 2, 200 - side - (200 - side) // 2) for side in image.shape[:2]]
        cells.append(np.pad(image, (*beside, (0, 0)), mode="edge"))
    image = np.vstack([np.hstack(np.roll(cells, k, axis=0)) for k in range(3)])[:, 50:]
    save_image(folder / "field.png", image)
    with tifffile.TiffWriter(folder / "slide.svs") as file:
        per_cm = (10_000 / 0.2, 10_000 / 0.2)
        about = {"tile": (128, 128), "photometric": "rgb"}
        file.write(image, resolution=per_cm, resolutionunit="CENTIMETER", **about)
        for part in (2, 4):
            smaller = cv2.resize(image, None, fx=1 / part, fy=1 / part, interpolation=cv2.INTER_AREA)
            file.write(smaller, subfiletype=1, **about)
    return folder


def test_a_slide_is_read_as_its_pixels_are(wide, monkeypatch, tmp_path):
    image, slide = read_image(wide / "field.png"), Slide(wide / "slide.svs")
    assert slide.shape == image.shape and slide.microns == pytest.approx(0.2, rel=1e-3)
    assert np.array_equal(slide[100:500, 33:750], image[100:500, 33:750])
    assert np.array_equal(slide[-5:2000, 5:2], image[-5:2000, 5:2])
    assert np.array_equal(pickle.loads(pickle.dumps(slide))[:9, :9], image[:9, :9])
    for side in (700, 375, 100):
        near = slide.view(side).astype(int) - fit(image, side)
        assert near.shape == fit(image, side).shape and np.abs(near).mean() < 3, side
    monkeypatch.setattr("leuko.data.slides.BLOCK", 100)
    near = slide.part((50, 60, 650, 510), 200).astype(int) - fit(image[60:510, 50:650], 200)
    assert np.abs(near).mean() < 3
    tiff = shutil.copy(wide / "slide.svs", tmp_path / "large.tif")
    assert isinstance(open_image(tiff, 1), ImageFile) and isinstance(open_image(tiff, 0.1), Slide)
    (tmp_path / "torn.svs").write_bytes((wide / "slide.svs").read_bytes()[:5000])
    for path, words in ((tmp_path / "torn.svs", "not a readable image"), (tmp_path / "none.svs", "no such file")):
        with pytest.raises(LeukoError, match=words):
            Slide(path)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(LeukoError, match=r"pip install 'leuko\[slides\]'"):
        Slide(wide / "slide.svs")


def test_leuko_small_counts_a_wide_field_and_a_slide(wide, leuko, tmp_path):
    """Twelve cells, each once, in the same places of the image and of the slide, which shows them once more; without
    tiles some are missed, and a line says why."""
    common = ["predict", "--source", wide, "--workers", "0", "--save", tmp_path]
    done = leuko(*common, "--tiles", "--cell-size", "65", "--name", "tiles")
    assert done.code == 0, done.err
    cells = table(tmp_path / "tiles/cells.csv")
    places = {(c["x0"], c["y0"], c["x1"], c["y1"], c["best"]) for c in cells}
    assert [c["why"] for c in cells] == [""] * 12 + ["on another field, too"] * 12 and len(places) == 12, cells
    middles = [[(float(c["x0"]) + float(c["x1"])) / 2, (float(c["y0"]) + float(c["y1"])) / 2] for c in cells[:12]]
    there = [[50 + 200 * x, 100 + 200 * y] for y in range(3) for x in range(4)]
    apart = np.abs(np.array(middles)[:, None] - there).max(2)
    assert apart.min(0).max() < 55 and sorted(apart.argmin(1)) == list(range(12))
    assert all(name in (tmp_path / "tiles/review.html").read_text() for name in ("slide.svs", "data:image"))
    assert cv2.imread(str(tmp_path / "tiles/images/slide.jpg")).shape == (600, 750, 3)
    shrunk = leuko(*common, "--name", "shrunk", "--cell-size", "37")
    assert shrunk.code == 0 and "2 images are shrunk so far that a cell has less than 25 pixels" in shrunk.err
    leuko("predict", "--source", wide, "--tiles", "--cell-size", "2").refused("--cell-size 2", "4 to 4,096")
