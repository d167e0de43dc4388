"""The label formats. Each module has the same shape:

``find(folder)`` gives the splits in a folder by name; ``parse(part, problems, options)`` reads one of them, where
``options`` are what a data YAML says (``ReadOptions``); ``write(dataset, folder, split)`` adds a split to a
folder and returns where its images are now. ``IMAGES`` is the folder of a split's images, ``PART`` what a data YAML
names for the split.
"""

from . import coco, voc, yolo

FORMATS = {"voc": voc, "coco": coco, "yolo": yolo}
