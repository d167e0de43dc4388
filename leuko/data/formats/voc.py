"""VOC: one XML file an image, as LabelImg writes it; splits are lists of stems in ``ImageSets/Main``.

``xmin ymin xmax ymax`` are read as LabelImg writes them, corners counted from 0. The official VOC convention
(``voc_origin=1``) names the first and the last pixel inside the box, counted from 1: its 1 1 10 10 is 0 0 10 10 here.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from ...errors import LeukoError
from ...io import make_folder, one_line, read_text, write_text
from ..dataset import Dataset, LabelWarning, Sample
from ..images import is_image, list_images
from ..validate import validate
from .names import keep_names, names_in
from .place import place_images
from .records import Cell, Labels, Problems, Record
from .sidecar import category_ids, keep

IMAGE_FOLDERS = ("JPEGImages", "images", ".")  # the first that exists beside the annotations holds the images
_OWN = (
    "name",
    "bndbox",
    "factor",
    "part",
    "polygon",
    "attribute",
)  # elements of an object that are no plain attributes
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find(folder: Path) -> dict[str, Path]:
    """Return the splits that a folder holds as VOC, by name; a set that is not split is called ``all``."""
    if (folder / "Annotations").is_dir():
        main = folder / "ImageSets" / "Main"
        lists = sorted(p for p in main.iterdir() if p.suffix.lower() == ".txt") if main.is_dir() else []
        return {p.stem: p for p in lists} or {"all": folder}
    return {"all": folder} if next(_xml_files(folder), None) else {}


def read(part: str | Path, types: Sequence[str] | None = None, voc_origin: int = 0) -> Dataset:
    """Read and check one split: a folder (``Annotations`` and images, or both in one) or an ``ImageSets`` list.

    The classes are those found, the five types first, unless ``classes.txt`` or ``types`` tells. Raises LeukoError.
    """
    problems = Problems()
    labels = parse(Path(part), problems, voc_origin)
    return validate(Path(part), [labels], problems, names=names_beside(Path(part)), types=types)


def parse(part: Path, problems: Problems, voc_origin: int = 0) -> Labels:
    """Read the annotations of a folder, or those that a list of stems or of image paths names."""
    labels = Labels()
    images = _ImagesByStem()
    for file, image in annotations(part):
        if not file.is_file():
            remedy = "label it, or save it in LabelImg without objects if it has no cells"
            problems.add("annotation", f"{part}: {file.stem}: no annotation {file}; {remedy}")
            continue
        try:
            labels.records.append(_record(file, image, images, voc_origin))
        except LeukoError as error:
            problems.add("annotation", str(error))
    labels.categories = category_ids(part if part.is_dir() else _root(part))
    if part.is_dir() and not labels.records:
        problems.add("empty", f"{part}: no annotations (.xml); label images with LabelImg or name another folder")
    if part.is_dir():
        labelled = {record.image for record in labels.records}
        for image in images.all():
            if image not in labelled:
                labels.warnings.append(
                    LabelWarning(image, "annotation", "the image has none", "left out (not known to be empty)")
                )
    return labels


def class_names(parts: Iterable[Path], skip_broken: bool = False) -> set[str]:
    """Return the classes found in all parts, so that every split of a source gets the same list of types."""
    names: set[str] = set()
    for file in sorted({file for part in parts for file, _ in annotations(part) if file.is_file()}):
        try:
            names |= {_text(cell, "name", file) for cell in read_xml(file).iterfind("object")}
        except LeukoError:
            if not skip_broken:
                raise
    return names


def names_beside(part: Path) -> list[str]:
    """Return the classes listed in the set's ``classes.txt`` (leuko and LabelImg write one), or []."""
    file = (part if part.is_dir() else _root(part)) / "classes.txt"
    return list(names_in(file).values()) if file.is_file() else []


def annotations(part: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield (annotation, image or None where it is to be found by its name) of a folder or list."""
    if part.is_dir():
        folder = part / "Annotations"
        yield from ((file, None) for file in _xml_files(folder if folder.is_dir() else part))
        return
    folder = _root(part) / "Annotations"
    for line in read_text(part).splitlines():
        if line and (folder / f"{line}.xml").is_file():  # a stem as it stands, be it "#12", " 7" or "scan.tif"
            yield folder / f"{line}.xml", None
            continue
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not is_image(line):
            yield folder / f"{line}.xml", None
        elif "/" not in line and folder.is_dir():
            yield folder / f"{Path(line).stem}.xml", None
        else:
            image = part.parent / line
            beside = image.with_suffix(".xml")
            yield beside if beside.is_file() else image.parent.parent / "Annotations" / beside.name, image


def _root(list_file: Path) -> Path:
    """Return the folder with ``Annotations`` above a list, usually two up (``ImageSets/Main/train.txt``)."""
    return next((p for p in list_file.absolute().parents if (p / "Annotations").is_dir()), list_file.parent)


def _xml_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() == ".xml" and not p.name.startswith("."))


class _ImagesByStem:
    """The images that belong to folders of annotations, each folder listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def of(self, file: Path) -> dict[str, list[Path]]:
        """Map stems to images for the annotations beside ``file``."""
        if file.parent not in self._folders:
            root = file.parent.parent if file.parent.name == "Annotations" else file.parent
            folder = next(root / name for name in IMAGE_FOLDERS if (root / name).is_dir())
            by_stem = defaultdict(list)
            for image in list_images(folder):
                by_stem[image.stem].append(image)
            self._folders[file.parent] = by_stem
        return self._folders[file.parent]

    def all(self) -> Iterator[Path]:
        for by_stem in self._folders.values():
            for images in by_stem.values():
                yield from images


def read_xml(file: Path) -> ElementTree.Element:
    """Parse an XML file; a DOCTYPE is refused, and with it entity bombs and external entities. Raises LeukoError."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        line = parser.CurrentLineNumber
        raise LeukoError(f"{file}: line {line}: a DOCTYPE or entity declaration is not accepted; remove it")

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(file.read_bytes(), True)
        return builder.close()
    except OSError as error:
        raise LeukoError(f"{file}: cannot be read: {error.strerror}") from error
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise LeukoError(f"{file}: line {error.lineno}: broken XML: {reason}; correct it or save it anew") from error
    except LeukoError:
        raise
    except (LookupError, ValueError) as error:  # an encoding that is unknown or that expat does not know
        raise LeukoError(f"{file}: line 1: {error}; save the file as UTF-8") from error


def _record(file: Path, image: Path | None, images: _ImagesByStem, voc_origin: int) -> Record:
    root = read_xml(file)
    if root.tag != "annotation":
        raise LeukoError(f"{file}: line 1: <{root.tag}> is no VOC annotation; remove the file")
    return Record(
        file,
        image or _image(file, (root.findtext("filename") or "").strip(), images.of(file)),
        [_cell(file, i, element, voc_origin) for i, element in enumerate(root.iterfind("object"), 1)],
        id=_id(root),
        size=_size(root),
        factors=_factors(root),
        group=(root.findtext("group") or "").strip(),
    )


def _image(file: Path, name: str, by_stem: dict[str, list[Path]]) -> Path:
    """Find the image of an annotation: the one with its stem; ``filename`` decides between several, or helps out."""
    found = by_stem.get(file.stem, [])
    named = [p for p in found or by_stem.get(Path(name).stem, []) if p.name == name]
    if len(found) > 1 and len(named) != 1:
        raise LeukoError(f"{file}: several images fit ({', '.join(map(str, found))}); keep one")
    if not found and not named:
        raise LeukoError(f'{file}: filename "{name}": no image called {file.stem}; add the image or remove the file')
    return (named or found)[0]


def _id(root: ElementTree.Element) -> int | None:
    """The image's id, which leuko writes where it is not the image's place in the list."""
    text = (root.findtext("id") or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return (width, height) as stated; (0, 0) for nonsense, which is then mended; None where nothing is stated."""
    texts = root.findtext("size/width"), root.findtext("size/height")
    if None in texts:
        return None
    try:
        return int(float(texts[0])), int(float(texts[1]))
    except (ValueError, OverflowError):
        return 0, 0


def _cell(file: Path, number: int, element: ElementTree.Element, voc_origin: int) -> Cell:
    where = f"object {number}"
    place = f"{file}: {where}"
    name = _text(element, "name", place)
    where += f" ({name})"
    corners = []
    for key in _CORNERS:
        text = _text(element, f"bndbox/{key}", place)
        try:
            corners.append(float(text))
        except ValueError:
            raise LeukoError(f'{place}: {key} "{text}" is not a number; correct it') from None
    x0, y0, x1, y1 = corners
    attributes = {child.tag: _value(child.text) for child in element if child.tag not in _OWN and not len(child)}
    crowd = bool(attributes.pop("crowd", False))
    for child in element.iterfind("attribute"):
        try:
            attributes[child.get("name", "")] = json.loads(child.text or "null")
        except (ValueError, RecursionError) as error:
            raise LeukoError(
                f"{place}: attribute {child.get('name')}: no JSON ({error}); correct or remove it"
            ) from None
    return Cell(where, name, (x0 - voc_origin, y0 - voc_origin, x1, y1), crowd, _factors(element), attributes)


def _text(element: ElementTree.Element, path: str, place: str | Path) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise LeukoError(f"{place}: no {path}; add it or remove the object")
    return text


def _factors(element: ElementTree.Element) -> tuple[str, ...]:
    return tuple((child.text or "").strip() for child in element.iterfind("factor"))


def _value(text: str | None) -> int | float | str:
    text = (text or "").strip()
    return json.loads(text) if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", text) else text


def write(dataset: Dataset, folder: str | Path, split: str, voc_origin: int = 0) -> None:
    """Write one split into a VOC folder: annotations, images (linked or copied) and its ``ImageSets`` list.

    Factors, groups, crowds and ids become the extra elements ``factor``, ``group``, ``crowd`` and ``id``; attributes
    are elements of their own or, where that would not give the same value back, ``attribute`` elements with JSON in
    them. ``classes.txt`` keeps the order of the types, the side file their ids. Coordinates come back bit for bit.
    Raises LeukoError.
    """
    folder = Path(folder)
    lists = make_folder(folder / "ImageSets" / "Main")
    labels = make_folder(folder / "Annotations")
    keep_names(folder / "classes.txt", dataset.types)
    numbered = all(sample.id == i for i, sample in enumerate(dataset.samples, 1))

    def text(number: int, image: Path, id_there: int | None = None) -> str:
        with_id = not numbered or id_there is not None  # another split may need the id that this one's order gives
        return _xml(dataset.samples[number], image, dataset.types, voc_origin, with_id)

    def there(image: Path) -> tuple[str, int | None]:
        """What another split says of the image at that place, but for its id, and that."""
        file = labels / f"{image.stem}.xml"
        return _apart(read_text(file)) if file.is_file() else ("", None)

    def says_the_same(number: int, image: Path) -> bool:
        """Whether another split may have labelled the image at that place: not if it says anything else of it."""
        said, identity = there(image)
        return not said or (said == _apart(text(number, image))[0] and identity in (None, dataset.samples[number].id))

    images = place_images([sample.image for sample in dataset.samples], folder / "JPEGImages", says_the_same)
    for number, image in enumerate(images):
        if len(image.stem.splitlines()) != 1:
            raise LeukoError(f"{one_line(str(dataset.samples[number].image))}: its name breaks a line; rename it")
        write_text(labels / f"{image.stem}.xml", text(number, image, there(image)[1]))
    keep(folder, dataset)
    write_text(lists / f"{split}.txt", "".join(f"{image.stem}\n" for image in images))


def _xml(sample: Sample, image: Path, types: Sequence[str], voc_origin: int, with_id: bool) -> str:
    lines = [
        "<annotation>",
        *_element("folder", image.parent.name, 1),
        *_element("filename", image.name, 1),
        f"\t<size><width>{sample.width}</width><height>{sample.height}</height><depth>3</depth></size>",
        *(_element("id", str(sample.id), 1) if with_id else []),
        *(_element("group", sample.group, 1) if sample.group else []),
        *(line for factor in sample.factors for line in _element("factor", factor, 1)),
    ]
    for i, box in enumerate(sample.boxes.tolist()):
        lines += ["\t<object>", *_element("name", types[sample.labels[i]], 2)]
        lines += [line for key, value in sample.attributes[i].items() for line in _attribute(key, value)]
        lines += [line for factor in sample.cell_factors[i] for line in _element("factor", factor, 2)]
        lines += _element("crowd", "1", 2) if sample.crowd[i] else []
        corners = (box[0] + voc_origin, box[1] + voc_origin, box[2], box[3])
        numbers = "".join(f"<{k}>{_number(v)}</{k}>" for k, v in zip(_CORNERS, corners, strict=True))
        lines += [f"\t\t<bndbox>{numbers}</bndbox>", "\t</object>"]
    return "\n".join([*lines, "</annotation>", ""])


def _apart(text: str) -> tuple[str, int | None]:
    """A file's text without the image's id, and that id if there is one."""
    found = re.search(r"^\t<id>(-?\d+)</id>\n", text, flags=re.MULTILINE)
    return (text[: found.start()] + text[found.end() :], int(found[1])) if found else (text, None)


def _attribute(key: str, value: object) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value)
    plain = type(value) in (str, int, float) and re.fullmatch(r"[A-Za-z_][\w.-]*", key, re.ASCII)
    if plain and key not in (*_OWN, "crowd") and not re.search(r"[\x00-\x1f]", text):
        back = _value(text)
        if back == value and type(back) is type(value):
            return _element(key, text, 2)
    _check_text("attribute", key)
    return [f"\t\t<attribute name={quoteattr(key)}>{escape(json.dumps(value))}</attribute>"]


def _element(tag: str, text: str, depth: int) -> list[str]:
    _check_text(tag, text)
    return ["\t" * depth + f"<{tag}>{escape(text)}</{tag}>"]


def _check_text(tag: str, text: str) -> None:
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text):
        raise LeukoError(f"{tag} {text!r}: XML cannot hold control characters; rename it")


def _number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point, as LabelImg writes them."""
    return str(int(value)) if value == int(value) else repr(value)
