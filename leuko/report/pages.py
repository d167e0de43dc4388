"""HTML pages: ``report.html`` of a run or validation folder, several of them side by side, and a data set's check.

A page is one file that opens without a network. It is made from the folder's other files alone, so that it can be made
again at any time. The HTML is in ``templates``; here its data is gathered.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np

from ..config import ReportOptions
from ..data.dataset import Dataset
from ..data.images import fit, is_image, read_image
from ..data.tools.check import LEVELS, Finding, counted
from ..errors import LeukoError
from ..io import make_folder, read_text, write_text
from .run import read_evaluation
from .tables import MEASURES, per_class_lines, rate, table2_of

PICTURES = {  # file: title, text
    "results.png": ("Training", "Losses, measures on the validation split and learning rate per epoch."),
    "intervals.png": ("How certain the measures are", "95 % bootstrap intervals over images, or smears where known."),
    "precision_recall.png": ("Precision and recall", "The mean over the types, a panel per IoU threshold."),
    "precision_recall_types.png": ("Precision and recall per type", ""),
    "scores.png": ("Choosing a threshold", "F1, recall and precision of the detections above a score."),
    "confusion.png": ("Confusion", "Cells by their label (rows) and by their predicted type (columns)."),
    "factors.png": ("Interference factors", "Rates with 95 % intervals; in brackets the number of cells or images."),
    "severity.png": ("Severity", "mAP on these images with each factor added to them, by severity."),
    "consensus.jpg": ("Labels that the models doubt", "The surest first; all of them are in consensus.json."),
    "agreement.png": (
        "Differential count against the labels",
        "Bland-Altman charts of the shares in percent, per smear (or image).",
    ),
    "calibration.png": (
        "Scores",
        "How often detections of a score are true positives; above each bar, the number of detections.",
    ),
    "worst.jpg": ("The worst images", "Labels on the left, detections with a score of at least .3 on the right."),
    "predictions.jpg": ("Images from all over the data", "Labels on the left, detections on the right."),
    "val_predictions.jpg": ("Images from all over the data", "Labels on the left, detections on the right."),
    "labels.png": ("The labels", ""),
    "train_batch0.jpg": ("The first batch as the model sees it", ""),
}
OF_TRAINING_DATA = ("labels.png", "train_batch0.jpg")  # not compared
TABLES = {
    "differences.csv": ("Is it better, or is it noise?", "Paired bootstrap of the mAP."),
    "cost.csv": ("Cost", ""),
    "review_queue.csv": ("Images for a person to review", "The most doubtful first."),
}
DETAILS = {"args.yaml": "Options", "environment.json": "Environment"}
LEVEL_TEXTS = ("for a person to decide", "fixed by leuko while reading", "worth a look")
MAX_ROWS = 20  # of a table
MAX_WIDTH = 1600  # pixels of a picture
WIDE = 800  # pixels; a wider picture is scrolled on a narrow screen instead of shrunk
THUMBNAIL = 180  # pixels
MAX_SHOWN = 12  # findings of a kind that are shown with their images; all are listed


class Picture(NamedTuple):
    """A picture for a page; without a ``src`` (a data URI) only its caption is shown."""

    caption: str
    src: str = ""
    wide: bool = False


class Section(NamedTuple):
    """A heading with text, pictures, and a table whose first line is its head."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = ()
    more: str = ""


def run(options: ReportOptions) -> None:
    """``leuko report``: make the page of one folder again, or put several on one page. Raises LeukoError."""
    if not options.runs:
        raise LeukoError("name the folder of a run or of a validation, or several")
    folders = [Path(folder) for folder in options.runs]
    alone = len(folders) == 1
    out = Path(options.out or (folders[0] / "report.html" if alone else "runs/report/comparison.html"))
    content = build(folders[0]) if alone else compare(folders)
    make_folder(out.parent)
    write_text(out, content)
    print(f"report: {out}")


def build(folder: str | Path) -> str:
    """The page of one run or validation folder; LeukoError if it holds no results, or broken ones."""
    folder = Path(folder)
    evaluation, about = read_evaluation(folder)
    try:
        table, head = per_class_lines(evaluation), 1
        if (folder / "table.json").is_file():
            content = json.loads(read_text(folder / "table.json"))
            table, head = table2_of(content["rows"], content["cells"]), 2
        sections = [
            Section(title, text, [_picture(folder / file)])
            for file, (title, text) in PICTURES.items()
            if (folder / file).is_file()
        ]
        sections += [
            section
            for file, about_table in TABLES.items()
            if (folder / file).is_file() and (section := _table_section(folder / file, *about_table))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, LeukoError):
            raise
        raise LeukoError(f"{folder}: its results are broken ({error!r:.80}); validate again") from error
    return _render(
        "run.html.j2",
        name=folder.name,
        about=[about[key] for key in ("model", "data") if about.get(key)],
        evaluation=evaluation,
        table=table,
        head=head,
        sections=sections,
        details=[(title, read_text(folder / file)) for file, title in DETAILS.items() if (folder / file).is_file()],
    )


def compare(folders: Sequence[str | Path]) -> str:
    """Several folders on one page: a table, then their pictures by title. Raises LeukoError."""
    folders = [Path(f) for f in folders]
    read = [read_evaluation(f) for f in folders]
    types = list(dict.fromkeys(t.type for e, _ in read for t in e.per_class))
    lines = [["folder", "data", *MEASURES, *types]]
    for folder, (e, about) in zip(folders, read, strict=True):
        ap = {t.type: t.AP for t in e.per_class}
        rates = [rate(v) for v in (*(getattr(e, name) for name in MEASURES), *(ap.get(name) for name in types))]
        lines.append([folder.name, str(about.get("data", "")), *rates])
    sections = []
    for file, (title, text) in PICTURES.items():
        pictures = [_picture(f / file, f.name) for f in folders if (f / file).is_file()]
        if pictures and file not in OF_TRAINING_DATA:
            sections.append(Section(title, text, pictures))
    return _render("comparison.html.j2", number=len(folders), table=lines, sections=sections)


def check_page(
    src: str | Path, datasets: dict[str, Dataset], findings: Sequence[Finding], lines: Sequence[Sequence[str]]
) -> str:
    """The page of a data set's check (see ``leuko.data.tools.check``). ``lines`` is its Table 1, which may be empty."""
    kinds = []
    for level, kind, number, _ in counted(findings):
        of_kind = [f for f in findings if (f.level, f.kind) == (level, kind)]
        files = dict.fromkeys(file for f in of_kind[:MAX_SHOWN] for file in f.images)
        images = [file for file in files if is_image(file) and file.is_file()]
        thumbnails = [_thumbnail(image) for image in images[: 2 * MAX_SHOWN]]
        kinds.append({"level": level, "kind": kind, "number": number, "findings": of_kind, "thumbnails": thumbnails})
    totals = [(level, sum(f.level == level for f in findings)) for level in LEVELS]
    return _render(
        "check.html.j2",
        src=src,
        images=sum(map(len, datasets.values())),
        splits=len(datasets),
        totals=[(*total, text) for total, text in zip(totals, LEVEL_TEXTS, strict=True)],
        table=lines,
        kinds=kinds,
        max_shown=MAX_SHOWN,
    )


def _render(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def _picture(path: Path, caption: str = "") -> Picture:
    """An image file; a PNG, which is a chart, stays lossless."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        return Picture(f"{path.name} cannot be read")
    if image.shape[1] > MAX_WIDTH:
        height = round(image.shape[0] * MAX_WIDTH / image.shape[1])
        image = cv2.resize(image, (MAX_WIDTH, height), interpolation=cv2.INTER_AREA)
    return Picture(caption, _data_uri(image, lossless=path.suffix == ".png"), image.shape[1] > WIDE)


def _thumbnail(path: Path) -> Picture:
    try:
        image = fit(read_image(path, THUMBNAIL), THUMBNAIL)
    except LeukoError:
        return Picture(f"{path.name} (cannot be read)")
    return Picture(path.name, _data_uri(image[:, :, ::-1]))


def _data_uri(image: np.ndarray, lossless: bool = False) -> str:
    """An image [H, W, 3] uint8 BGR as the text of a link."""
    kind, quality = ("png", []) if lossless else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    _, data = cv2.imencode(f".{kind}", image, quality)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _table_section(path: Path, title: str, text: str) -> Section | None:
    """The first rows of a CSV file; None if it has no rows."""
    head, *rows = csv.reader(io.StringIO(read_text(path))) or [[]]
    if not rows:
        return None
    more = f"and {len(rows) - MAX_ROWS} more in {path.name}" if len(rows) > MAX_ROWS else ""
    return Section(title, text, table=[head, *([_short(v) for v in row] for row in rows[:MAX_ROWS])], more=more)


def _short(value: str) -> str:
    """A number with at most three decimals, and a path without its folders."""
    try:
        number = float(value)
        return value.removesuffix(".0") if number == int(number) else f"{number:.3f}".rstrip("0").rstrip(".")
    except (ValueError, OverflowError):  # text, nan, inf
        return Path(value).name if "/" in value else value
