"""Who changed what in a review, and how far the model agrees with the person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data.tools.review import Review, named, read_reviews
from ..metrics import differential
from .tables import rate

HEAD = ["type", "before", "after", "kept", "of those before", "of those after"]


def agreement(folder: Path) -> dict[str, Any] | None:
    """What the reviews in a folder changed, the values of ``agreement.html.j2``; None where there is none. Raises
    LeukoError for a broken one."""
    if not any(folder.glob("review*.json")):
        return None
    reviews = read_reviews(folder)
    types = reviews[0].types
    number = {name: i for i, name in enumerate(types)}
    matrix = np.zeros((len(types) + 1, len(types) + 1), dtype=int)  # rows: after; columns: before; last: neither
    for review in reviews:
        for cell in review.cells:
            matrix[number.get(cell.after, -1), number.get(cell.before, -1)] += 1
    table = [HEAD]
    for name, after, before, kept in zip(types, matrix.sum(1), matrix.sum(0), np.diag(matrix), strict=False):
        shares = [rate(kept / n) if n else "-" for n in (before, after)]
        table.append([name, *(f"{n:,}" for n in (before, after, kept)), *shares])
    return {
        "signatures": [_signature(review) for review in reviews],
        "cells": sum(len(review.cells) for review in reviews),
        "kappa": rate(differential.kappa(matrix)),
        "table": table,
        "changes": [
            (review.images[cell.image]["name"], named(cell.before), named(cell.after))
            for review in reviews
            for cell in review.changes()
        ],
    }


def _signature(review: Review) -> str:
    """The history of a review in words."""
    steps = [f"{event['event']} by {event['by']} at {event['at']}" for event in review.events]
    return f"{review.file.name}: {'; '.join(steps) or 'not signed'}"
