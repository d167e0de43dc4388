"""VOC: one XML file per image, as LabelImg writes it; splits are lists of stems in ``ImageSets/Main``.

``xmin ymin xmax ymax`` are read as LabelImg writes them, corners counted from 0. The official VOC convention
(``voc_origin=1``) names the first and the last pixel inside the box, counted from 1: its 1 1 10 10 is 0 0 10 10 here.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ...errors import LeukoError
from ...io import make_folder, parse_json, read_list, read_text, read_xml, write_text
from ..dataset import Dataset, LabelWarning, Sample
from ..images import is_hidden, is_image, list_images
from . import sidecar
from .files import check_names, inside, place_images, spelled
from .records import Annotation, Labels, Problems, ReadOptions, Record, read_names

IMAGES, PART = "JPEGImages", "ImageSets/Main/{split}.txt"
ANNOTATIONS = "Annotations"
ANNOTATION_FOLDERS = (ANNOTATIONS, "annotations", "labels")  # the last two, if they hold XML
IMAGE_FOLDERS = (IMAGES, "images", "data", ".")  # the first that exists beside the annotations holds the images
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NO_ATTRIBUTES = ("name", "bndbox", "factor", "part", "polygon", "attribute", "attributes")  # elements of an object


# ---------------------------------------------------------------- reading


def find(folder: Path) -> dict[str, Path]:
    """The splits that a folder holds as VOC, by name; a data set that is not split is called ``all``."""
    if _annotations(folder):
        main = folder / "ImageSets" / "Main"
        lists = sorted(p for p in main.iterdir() if p.suffix.lower() == ".txt") if main.is_dir() else []
        return {p.stem: p for p in lists if not is_hidden(p.name) and not _is_of_class(p)} or {"all": folder}
    return {"all": folder} if _xml_files(folder) else {}


def _annotations(root: Path) -> Path | None:
    """The folder of annotations of a data set; None where they lie beside the images."""
    folders = (root / name for name in ANNOTATION_FOLDERS)
    return next((f for f in folders if f.is_dir() and (f.name == ANNOTATIONS or _xml_files(f))), None)


def _is_of_class(file: Path) -> bool:
    """Whether a list tells for each image whether a class is on it, as the official VOC's ``dog_train.txt`` do."""
    lines = [line.split() for line in read_list(file)]
    return bool(lines) and all(len(line) == 2 and line[1] in ("-1", "0", "1") for line in lines)


def parse(part: Path, problems: Problems, options: ReadOptions) -> Labels:
    """Read the annotations of a folder, or those that a list names."""
    labels = Labels()
    root = _root(part)
    images = _Images(part, problems.hidden)
    for file in annotation_files(part, problems.hidden):
        if not file.is_file():
            remedy = "label it, or save it in LabelImg without objects if it has no cells"
            problems.add("annotation", f"{part}: {file.stem}: no annotation {file}; {remedy}")
            continue
        with problems.catch("annotation"):
            element = read_xml(file)
            if element.tag != "annotation":
                raise LeukoError(f"{file}: line 1: <{element.tag}> is not a VOC annotation; remove the file")
            image = images.of(file, (element.findtext("filename") or "").strip())
            size, group = _size(element), (element.findtext("group") or "").strip()
            labels.records.append(Record(file, image, [], size=size, factors=_factors(element), group=group))
            with problems.catch("unread", str(file)):
                _check_all_read(element)
            for i, cell in enumerate(element.iterfind("object"), 1):
                with problems.catch("annotation", f"{file}: object {i}"):
                    labels.records[-1].annotations.append(_annotation(i, cell, options.voc_origin))
    if (classes := root / "classes.txt").is_file():
        labels.names = read_names(classes)
    extra = sidecar.read(root)
    labels.categories = extra.get("category_ids", {})
    if not part.is_dir():
        ids = extra.get("ids", {}).get(part.stem, {})
        for record in labels.records:
            record.id = ids.get(record.image.name)
    elif not labels.records:
        problems.add("empty", f"{part}: no annotations (.xml); label images with LabelImg or name another folder")
    else:
        labelled = {record.image for record in labels.records}
        action = "left out (not known to be empty)"
        others = (image for image in images.found if image not in labelled)
        problems.warnings += [LabelWarning(image, "annotation", "the image has none", action) for image in others]
    return labels


def annotation_files(part: Path, hidden: list[Path] | None = None) -> Iterator[Path]:
    """The annotations of a folder, or those that a list names by stems or by images, there or not. Hidden ones of a
    folder are appended to ``hidden``, if it is given.

    Raises LeukoError where an entry of a list leaves the data set's folder.
    """
    root = _root(part)
    folder = _annotations(root) or root
    if part.is_dir():
        yield from _xml_files(folder, hidden)
        return
    for line in read_text(part).splitlines():
        name = line.strip().replace("\\", "/")
        stem = name.rsplit(".", 1)[0] if is_image(name) else name
        as_it_is, named = (inside(root, folder, f"{each}.xml") for each in (line, stem))
        if line and as_it_is and as_it_is.is_file():
            yield as_it_is  # even "#12", " 7" or "scan.tif"
        elif name and not name.startswith("#"):
            if named is None:
                raise LeukoError(f'{part}: "{name}" leaves the data set\'s folder, {root}; name what is inside it')
            of_path = folder / f"{PurePosixPath(stem).name}.xml"  # JPEGImages/a.jpg has Annotations/a.xml
            yield of_path if is_image(name) and of_path.is_file() and not named.is_file() else named


def _root(part: Path) -> Path:
    """The folder of the data set: for a list the one with ``Annotations`` above it, usually two levels up."""
    if part.is_dir():
        return part
    return next((p for p in part.absolute().parents if _annotations(p)), part.parent)


def _xml_files(folder: Path, hidden: list[Path] | None = None) -> list[Path]:
    """The annotations in a folder and, if it is one of annotations only, in its sub-folders (CVAT)."""
    paths = folder.rglob("*") if folder.name in ANNOTATION_FOLDERS else folder.iterdir()
    files = sorted(path for path in paths if path.suffix.lower() == ".xml")
    ignored = [file for file in files if any(map(is_hidden, file.relative_to(folder).parts))]
    if hidden is not None:
        hidden += ignored
    return [file for file in files if file not in ignored]


class _Images:
    """The images of a data set, in the folder of images beside its annotations, or beside each annotation."""

    def __init__(self, part: Path, hidden: list[Path]) -> None:
        root = _root(part)
        self.annotations = _annotations(root) or root
        self.folder = next(root / name for name in IMAGE_FOLDERS if (root / name).is_dir())
        self.recursive = self.folder != root or not part.is_dir()
        self.hidden = hidden

    @cached_property
    def found(self) -> list[Path]:
        """All of them."""
        return list_images(self.folder, recursive=self.recursive, hidden=self.hidden)

    @cached_property
    def by_stem(self) -> dict[str, list[Path]]:
        """They by their names without suffix."""
        by_stem = defaultdict(list)
        for image in self.found:
            by_stem[spelled(image.stem)].append(image)
        return by_stem

    def of(self, file: Path, name: str) -> Path:
        """The image of an annotation: the one of its stem, in the same sub-folder if there is one; ``name``, its
        ``filename``, decides between several, or is used instead. Raises LeukoError."""
        same_stem = self.by_stem.get(spelled(file.stem), [])
        place = spelled(os.path.relpath(file.parent, self.annotations))
        same_place = [p for p in same_stem if spelled(str(p.relative_to(self.folder).parent)) == place]
        fitting = same_place or same_stem or self.by_stem.get(spelled(Path(name).stem), [])
        same_name = [p for p in fitting if spelled(p.name) == spelled(name)]
        images = same_name or (same_stem and fitting)
        if len(images) > 1:
            raise LeukoError(f"{file}: several images fit ({', '.join(map(str, images))}); keep one")
        if not images:
            remedy = "add the image or remove the file"
            raise LeukoError(f'{file}: filename "{name}": no image called {file.stem}; {remedy}')
        return images[0]


def _check_all_read(root: Element) -> None:
    """Raise LeukoError where the file has boxes or objects that are not read."""
    cells = root.findall("object")
    read = {*cells, *(box for cell in cells for box in (cell.find("bndbox"), *cell.iterfind("part/bndbox")))}
    for element in root.iter():
        if element.tag.lower().rstrip("s") in ("object", "bndbox") and element not in read:
            others = f"a second <{element.tag}>" if element.tag == "bndbox" else f"<{element.tag}>"
            raise LeukoError(f"{others} is not read: a cell is an <object> with one <bndbox>; correct the file")


def _size(root: Element) -> tuple[int, int] | None:
    """The stated (width, height); (0, 0) for nonsense, which is then fixed; None where nothing is stated."""
    texts = root.findtext("size/width"), root.findtext("size/height")
    if None in texts:
        return None
    try:
        return int(float(texts[0])), int(float(texts[1]))
    except (ValueError, OverflowError):
        return 0, 0


def _annotation(number: int, element: Element, voc_origin: int) -> Annotation:
    name = _text(element, "name")
    corners = []
    for key in _CORNERS:
        text = _text(element, f"bndbox/{key}")
        try:
            corners.append(float(text))
        except ValueError:
            raise LeukoError(f'{key} "{text}" is not a number; correct it') from None
    x0, y0, x1, y1 = corners
    attributes = {e.tag: _value(e.text) for e in element if e.tag not in _NO_ATTRIBUTES and not len(e)}
    crowd = bool(attributes.pop("crowd", False))
    for child in element.iterfind("attributes/attribute"):  # as CVAT writes them
        attributes[(child.findtext("name") or "").strip()] = _value(child.findtext("value"))
    for child in element.iterfind("attribute"):
        key = child.get("name", "")
        try:
            attributes[key] = parse_json(child.text or "null")
        except ValueError as error:
            raise LeukoError(f"attribute {key}: not JSON ({error}); correct or remove it") from None
    box = (x0 - voc_origin, y0 - voc_origin, x1, y1)
    return Annotation(f"object {number} ({name})", name, box, crowd, _factors(element), attributes)


def _text(element: Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise LeukoError(f"no {path}; add it or remove the object")
    return text


def _factors(element: Element) -> tuple[str, ...]:
    return tuple((child.text or "").strip() for child in element.iterfind("factor"))


def _value(text: str | None) -> int | float | str:
    """An attribute's value: a number where the text is one, with digits that Python agrees to read."""
    text = (text or "").strip()
    is_number = len(text) < 400 and re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", text)
    return json.loads(text) if is_number else text


# ---------------------------------------------------------------- writing


def write(dataset: Dataset, folder: str | Path, split: str, voc_origin: int = 0) -> list[Path]:
    """Write one split into a VOC folder: annotations, images (linked or copied) and its ``ImageSets`` list.

    Factors, groups and crowds become the extra elements ``factor``, ``group`` and ``crowd``; attributes are elements of
    their own or, where that would not give the same value back, ``attribute`` elements with JSON. ``classes.txt`` keeps
    the order of the types, the sidecar the ids. Coordinates come back bit for bit. An image that two splits label
    differently becomes two. Returns the images' new paths; raises LeukoError.
    """
    folder = Path(folder)
    lists = make_folder(folder / "ImageSets" / "Main")
    labels = make_folder(folder / "Annotations")
    classes = folder / "classes.txt"
    check_names(classes, list(read_names(classes).values()) if classes.is_file() else dataset.types, dataset.types)
    write_text(classes, "".join(f"{name}\n" for name in dataset.types), errors="strict")

    def text(number: int, image: Path) -> str:
        return _xml(dataset.samples[number], image, dataset.types, voc_origin)

    def fits(number: int, image: Path) -> bool:
        file = labels / f"{image.stem}.xml"
        return not file.is_file() or read_text(file) == text(number, image)

    images = place_images([sample.image for sample in dataset.samples], folder / IMAGES, fits)
    for number, image in enumerate(images):
        if len(image.stem.splitlines()) != 1:
            raise LeukoError(f"{dataset.samples[number].image}: its name breaks a line; rename it")
        write_text(labels / f"{image.stem}.xml", text(number, image), errors="strict")
    write_text(lists / f"{split}.txt", "".join(f"{image.stem}\n" for image in images), errors="strict")
    ids = [sample.id for sample in dataset.samples]
    by_name = {image.name: i for image, i in zip(images, ids, strict=True)}
    usual = ids == list(range(1, len(ids) + 1))
    sidecar.update(folder, category_ids=sidecar.category_ids(dataset), ids={split: {} if usual else by_name})
    return images


def _xml(sample: Sample, image: Path, types: Sequence[str], voc_origin: int) -> str:
    root = Element("annotation")
    _add(root, "folder", image.parent.name)
    _add(root, "filename", image.name)
    size = ElementTree.SubElement(root, "size")
    for tag, number in (("width", sample.width), ("height", sample.height), ("depth", 3)):
        _add(size, tag, str(number))
    if sample.group:
        _add(root, "group", sample.group)
    for factor in sample.factors:
        _add(root, "factor", factor)
    for i, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
        cell = ElementTree.SubElement(root, "object")
        _add(cell, "name", types[sample.labels[i]])
        for key, value in sample.attributes[i].items():
            _add_attribute(cell, key, value)
        for factor in sample.cell_factors[i]:
            _add(cell, "factor", factor)
        if sample.crowd[i]:
            _add(cell, "crowd", "1")
        box = ElementTree.SubElement(cell, "bndbox")
        for tag, number in zip(_CORNERS, (x0 + voc_origin, y0 + voc_origin, x1, y1), strict=True):
            _add(box, tag, str(int(number)) if number == int(number) else repr(number))
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: Element, tag: str, text: str, **attributes: str) -> None:
    for each in (text, *attributes.values()):
        if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", each):
            raise LeukoError(f"{tag} {each!r}: XML cannot hold control characters; rename it")
    ElementTree.SubElement(parent, tag, attributes).text = text


def _add_attribute(parent: Element, key: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    is_plain = type(value) in (str, int, float) and re.fullmatch(r"[A-Za-z_][\w.-]*", key, re.ASCII)
    if is_plain and key not in (*_NO_ATTRIBUTES, "crowd") and not re.search(r"[\x00-\x1f]", text):
        back = _value(text)
        if back == value and type(back) is type(value):
            _add(parent, key, text)
            return
    _add(parent, "attribute", json.dumps(value), name=key)
