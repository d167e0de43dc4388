"""What all pages have in common: their templates, escaped throughout, the colours of types, and pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from ..cells import colour
from .pictures import encoded


def render(template: str, **values: object) -> str:
    """A page of a template, whose macros know the values, too. These are escaped; none may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= values
    return environment.get_template(template).render()


def link(data: bytes | memoryview, kind: str = "jpeg") -> str:
    """The bytes of an image file as the text of a link."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def data_uri(image: np.ndarray, quality: int = 85) -> str:
    """An image [H, W, 3] uint8 RGB as the text of a link, a JPEG of this quality."""
    return link(encoded(image.copy(), ".jpg", quality))


def css_colours(types: Sequence[str]) -> list[str]:
    """The colour of each type as a page takes it."""
    return [f"rgb{colour(name, i)}" for i, name in enumerate(types)]
