"""Self-contained HTML pages: tables and pictures that open from a file, print, and are legible in the dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.dataset import Dataset
from ..data.images import read_image
from ..data.tools.check import Finding, counted
from ..errors import LeukoError

THUMBNAIL = 180  # pixels
SHOWN = 12  # findings of a kind that are shown with their images; all are listed
STYLE = """
:root {
  color-scheme: light dark; --line: #d0d4da; --soft: #f4f6f8;
  --decide: #b3261e; --mended: #8a5a00; --note: #0b57a4 }
@media (prefers-color-scheme: dark) {
  :root { --line: #444a52; --soft: #1d2126; --decide: #ff8a80; --mended: #f2bd63; --note: #8ab8f0 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
h1, h2 { line-height: 1.25 } h2 { margin-top: 2.2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere }
figure { display: inline-block; margin: .4rem .6rem .4rem 0; vertical-align: top }
figure img, p img { max-width: 100%; border-radius: 3px }
.plot figure { display: block; min-width: 720px }
figcaption { font-size: .8rem; max-width: 180px; overflow-wrap: anywhere }
details { background: var(--soft); padding: .5rem 1rem; border-radius: 5px; margin: .5rem 0 }
li { overflow-wrap: anywhere }
.decide { color: var(--decide) } .mended { color: var(--mended) } .note { color: var(--note) }
@media print { details { break-inside: avoid } body { margin: 0 } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of HTML ``parts``."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{text(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>{''.join(parts)}</body></html>\n"


def text(value: object) -> str:
    """Text as it has to be written in HTML."""
    return html.escape(str(value))


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head; the first column is aligned left, the others right."""
    rows = ["".join(f"<td>{text(c)}</td>" for c in line) for line in lines[1:]]
    head = "".join(f"<th>{text(c)}</th>" for c in lines[0])
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def figure(image: np.ndarray, caption: str = "", alt: str = "", lossless: bool = False) -> str:
    """A picture [H, W, 3] uint8 RGB within the page, and its caption."""
    kind, quality = ("png", []) if lossless else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    _, data = cv2.imencode(f".{kind}", image[:, :, ::-1], quality)
    source = f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" alt="{text(alt or caption)}">{below}</figure>'


def thumbnail(path: Path) -> str:
    """An image file as a small figure; its name alone where it cannot be read."""
    try:
        image = read_image(path, THUMBNAIL)
    except LeukoError:
        return f"<figure><figcaption>{text(path.name)} (cannot be read)</figcaption></figure>"
    scale = THUMBNAIL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return figure(cv2.resize(image, size, interpolation=cv2.INTER_AREA), path.name)


def check_report(
    src: str | Path, datasets: dict[str, Dataset], findings: Sequence[Finding], counts: Sequence[Sequence[str]]
) -> str:
    """The doctor's report on a data set as a page. ``counts`` is the paper's Table 1 of it."""
    levels = {
        "decide": "to be decided by a person",
        "mended": "mended by leuko as it reads",
        "note": "worth a look",
    }
    numbers = [sum(f.level == level for f in findings) for level in levels]
    said = ", ".join(f"<b class={lv}>{n}</b> {text(t)}" for (lv, t), n in zip(levels.items(), numbers, strict=True))
    parts = [f"<h1>{text(src)}</h1><p>{sum(map(len, datasets.values()))} images in {len(datasets)} splits: {said}.</p>"]
    if counts:
        parts += ["<h2>Cells (images)</h2>", table(counts)]
    for level, kind, number, _ in counted(findings):
        mine = [f for f in findings if (f.level, f.kind) == (level, kind)]
        images = list(dict.fromkeys(i for f in mine[:SHOWN] for i in f.images if i.suffix.lower() != ".xml"))
        parts.append(f"<h2><span class={level}>{text(kind)}</span> ({number})</h2>")
        parts.append("".join(thumbnail(image) for image in images[: 2 * SHOWN] if image.is_file()))
        listed = "".join(f"<li>{text(f.split)}: {text(f.text)}</li>" for f in mine)
        is_open = " open" if number <= SHOWN else ""
        parts.append(f"<details{is_open}><summary>all {number}</summary><ul>{listed}</ul></details>")
    return page(f"leuko check: {src}", parts)
