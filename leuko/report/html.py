"""What all pages have in common: their templates, escaped throughout, and pictures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import jinja2
import numpy as np


def environment(**values: object) -> jinja2.Environment:
    """The templates, with ``values`` known to all of them. What they are given is escaped; nothing may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= values
    return environment


def data_uri(image: np.ndarray, kind: str = "jpeg", quality: int = 85) -> str:
    """An image [H, W, 3] uint8 BGR as the text of a link."""
    _, data = cv2.imencode(f".{kind}", image, [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else [])
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
