"""Label Studio: tasks with predictions, which a person corrects there. Written, not read: what was corrected comes back
as COCO or YOLO, which Label Studio exports.

``SPLIT.json`` holds the tasks to import, ``config.xml`` the project's labelling interface. Images are named by
``/data/local-files/?d=images/NAME``, which Label Studio serves where LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED is true,
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the folder of these files, and its ``images`` is a local storage of the
project. Rectangles are in percent of the image as Label Studio shows it, which is as EXIF turns it.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from ...cells import colour
from ...io import make_folder, write_json, write_text
from ..dataset import Dataset, Sample
from ..header import image_header, turn_boxes
from .files import place_images

IMAGES = "images"
URL = f"/data/local-files/?d={IMAGES}/"
_FROM, _TO = "label", "image"  # the names of the rectangles and of the image in the labelling interface


def write(dataset: Dataset, folder: str | Path, split: str, model_version: str = "") -> list[Path]:
    """Write one split as tasks beside ``images/`` (linked or copied), the cells as predictions of ``model_version``
    whose scores are the attribute ``score``. A task's own score is its least certain cell's, by which Label Studio can
    sort. Returns the images' new paths; raises LeukoError."""
    folder = make_folder(Path(folder))
    images = place_images([sample.image for sample in dataset.samples], folder / IMAGES)
    tasks = []
    for sample, image in zip(dataset.samples, images, strict=True):
        scores = [attributes["score"] for attributes in sample.attributes if "score" in attributes]
        prediction = {"model_version": model_version, "result": _rectangles(sample, dataset.types)}
        prediction |= {"score": min(scores)} if scores else {}
        tasks.append({"data": {"image": URL + quote(image.name)}, "predictions": [prediction]})
    write_json(folder / f"{split}.json", tasks)
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(colour(name, i)).hex()}"/>\n'
        for i, name in enumerate(dataset.types)
    )
    rectangles = f'  <RectangleLabels name="{_FROM}" toName="{_TO}">\n{labels}  </RectangleLabels>\n'
    config = f'<View>\n  <Image name="{_TO}" value="$image" zoom="true"/>\n{rectangles}</View>\n'
    write_text(folder / "config.xml", config, errors="strict")
    return images


def _rectangles(sample: Sample, types: list[str]) -> list[dict]:
    """The cells of a sample as regions."""
    header = image_header(sample.image, inf)
    width, height = header.shown_size
    percent = 100 * turn_boxes(sample.boxes.astype(np.float64), header) / np.array([width, height] * 2)
    about = {"type": "rectanglelabels", "from_name": _FROM, "to_name": _TO}
    about |= {"original_width": width, "original_height": height, "image_rotation": 0}
    regions = []
    for i, (x0, y0, x1, y1) in enumerate(percent.tolist()):
        value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0}
        value |= {"rectanglelabels": [types[sample.labels[i]]]}
        score = {key: v for key, v in sample.attributes[i].items() if key == "score"}
        regions.append({"id": f"{sample.id}-{i + 1}", **about, "value": value, **score})
    return regions
