"""A picture of the five types side by side, rendered, with their names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..cells import TYPES
from .render import Look, render


def portrait(rng: np.random.Generator, code: str, side: int, look: Look) -> np.ndarray:
    """One leukocyte in the middle of red cells, [side, side, 3] uint8 RGB."""
    while True:  # until the cell lies far enough from the border to be cut out with room around it
        field = render(rng, 3 * side, 3 * side, [code], 0.32 * side, look)
        x, y = ((field.boxes[0, :2] + field.boxes[0, 2:] - side) / 2).astype(int)
        if min(x, y) >= 0 and max(x, y) <= 2 * side:
            return field.image[y : y + side, x : x + side]


def types_sheet(seed: int = 0, side: int = 190) -> Image.Image:
    """The five types in the paper's order, each ``side`` pixels wide, in one look, with code and name below."""
    rng = np.random.default_rng(seed)
    look = replace(Look.draw(rng, 0.32 * side), crowding=0.5, pallor=0.6, glare=0.02, blur=0.6, noise=0.0)
    gap, caption = 8, 34
    sheet = Image.new("RGB", (len(TYPES) * (side + gap) - gap, side + caption), "white")
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(TYPES):
        x = i * (side + gap)
        sheet.paste(Image.fromarray(portrait(rng, cell.code, side, look)), (x, 0))
        centre = (x + side / 2, side + caption / 2)
        draw.text(centre, f"{cell.code}  {cell.name}", (40, 40, 40), ImageFont.load_default(side / 11), "mm")
    return sheet
