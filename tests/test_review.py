"""The page to review and sign, driven in a browser, and what reads back what it gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, CTRL, SHIFT, Browser
from conftest import HEIGHT, TYPES, WIDTH, Result, table
from PIL import Image

from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.formats import coco as coco_format
from leuko.data.tools.review import CONSENSUS, page_digest
from leuko.detections import Detections
from leuko.metrics import binomial
from leuko.metrics.consensus import Suspect, Vote
from leuko.report import review
from leuko.report.review import ReviewField, field_of, write_pages, write_suspects

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (apt-get install chromium)")
NASTY = "</script><script>alert(1)</script>\"'&<b>"
BOXES = [(5.0, 5, 25, 35), (30, 20, 50, 40.5), (60, 10, 90, 40)]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, tmp_path) -> Browser:
    """The browser, without what an earlier test left; no page may log an error."""
    chromium.folder, chromium.errors, chromium.keys = tmp_path / "downloads", [], 0
    chromium.js("try { localStorage.clear() } catch {}")
    chromium.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(chromium.folder))
    yield chromium
    assert not chromium.errors


def field(path: Path, types: list[str], *cells: tuple, size: tuple[int, int] = (WIDTH, HEIGHT)) -> ReviewField:
    """A field of a prediction with cells of (box, {type: score}, why it is unclassified)."""
    scores = np.array([[of.get(name, 0) for name in types] for _, of, _ in cells], np.float32).reshape(-1, len(types))
    why = np.array([reason for *_, reason in cells], object)
    found = Detections([box for box, *_ in cells], scores.max(1), scores.argmax(1), tuple(types), scores, why)
    return field_of(path, size, found)


def fields_of(pictures: list[Path]) -> list[ReviewField]:
    """Three fields: of two cells, one sure and one in doubt; of one that is unclassified; and an empty one."""
    sure = BOXES[0], {"NG": 0.95, "EG": 0.03}, ""
    doubtful = BOXES[1], {"NG": 0.55, "EG": 0.41}, ""
    border = BOXES[2], {"M": 0.7, "L": 0.2}, "border"
    return [field(p, TYPES, *cells) for p, cells in zip(pictures, [[sure, doubtful], [border], []], strict=True)]


def many(folder: Path, cells: int, types: list[str] = TYPES) -> list[ReviewField]:
    """Fields of 20 cells each, of every type in turn."""
    rng = np.random.default_rng(1)
    fields = []
    for i in range(-(-cells // 20)):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (120, 150, 3), np.uint8)).save(path)
        boxes = [(30 * (n % 5) + 2, 30 * (n // 5) + 2, 30 * (n % 5) + 28, 30 * (n // 5) + 28) for n in range(20)]
        scores = rng.uniform(0.5, 1, 20)
        named = [{types[n % len(types)]: score} for n, score in enumerate(scores)]
        of_field = [(*cell, "") for cell in zip(boxes, named, strict=True)][: cells - 20 * i]
        fields.append(field(path, types, *of_field, size=(150, 120)))
    return fields


def page_of(folder: Path, fields: list[ReviewField], types: list[str] = TYPES, **about: str) -> Path:
    return write_pages(folder, types, fields, **{"title": "slides/7", "threshold": "score >= 0.5"} | about)[0]


def content_of(page: Path) -> dict:
    """The review.json that a page gives when nothing was done, as the page holds it, with a signature."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1]
    content = json.loads(text)
    for cell in content["cells"]:
        del cell["text"], cell["why"], cell["suggestion"]
        cell |= {"after": cell["before"], "checked": False, "added": False}
    for image in content["images"]:
        del image["others"]
    del content["file"]
    signed = {"event": "signed", "by": "A. B.", "at": "2026-01-02T03:04:05.000Z"}
    return content | {"events": [signed]}


def counts(browser: Browser) -> list[str]:
    """The cells of each gallery: unclassified, the types, no leukocyte."""
    return browser.js("all('.gallery small').map(e => e.textContent).join(' ')").split()


# ---------------------------------------------------------------------- in the browser


@needs_browser
def test_a_person_corrects_signs_and_downloads(browser, pictures, tmp_path, leuko):
    page = page_of(tmp_path, fields_of(pictures))
    browser.open(page)
    assert counts(browser) == ["1", "2", "0", "0", "0", "0", "0"]
    browser.key("End", "ArrowDown", "3")  # the doubtful one is the first NG
    assert counts(browser) == ["1", "1", "0", "1", "0", "0", "0"]
    browser.key("z")
    assert counts(browser) == ["1", "2", "0", "0", "0", "0", "0"]
    browser.key("z", modifiers=SHIFT)
    assert counts(browser) == ["1", "1", "0", "1", "0", "0", "0"]
    at = browser.middle(".gallery.t1 .cell")  # NG is dragged to L
    to = browser.js(
        "(e => [e.x + 20, e.y + 5])(document.querySelector('tr[data-group=\"4\"]').getBoundingClientRect())"
    )
    browser.mouse(at, (at[0] - 20, at[1]), tuple(to))
    assert counts(browser) == ["1", "0", "0", "1", "1", "0", "0"]
    browser.js("go(order()[0])")
    browser.key("a")  # what is suggested for the cell on the border
    assert counts(browser) == ["0", "0", "0", "1", "1", "1", "0"]

    x, y = browser.middle('[data-field="2"]')
    browser.mouse((x, y))
    browser.wait("$('view').open")
    corners = [
        browser.js(f"(p => [p.x, p.y])(new DOMPoint({x}, {y}).matrixTransform(svg.getScreenCTM()))")
        for x, y in ((10, 20), (40, 50))
    ]
    browser.mouse(*map(tuple, corners))
    assert browser.js("draft.map(Math.round).join()") == "10,20,40,50"
    browser.key("2")
    browser.key("Escape")
    browser.wait("!$('view').open")
    assert counts(browser) == ["0", "0", "1", "1", "1", "1", "0"]
    browser.wait("items.at(-1).querySelector('img').src.startsWith('data:image/jpeg')")

    browser.key("Enter", modifiers=CTRL)
    browser.send("Input.insertText", text="Dr. Ä <b>")
    browser.key("Enter")
    file = browser.download("review.json")
    browser.key("5")  # it is closed now
    assert counts(browser) == ["0", "0", "1", "1", "1", "1", "0"]
    browser.open(page)  # as after a closed tab
    assert counts(browser) == ["0", "0", "1", "1", "1", "1", "0"]
    assert "Dr. Ä <b>" in browser.js("$('signature').textContent")

    result = leuko("data", "apply-review", file, tmp_path / "new", "--format", "voc")
    assert result.code == 0 and "4 cells changed" in result.out, result.err
    first, second, third = source.load(tmp_path / "new", "all", TYPES).samples
    by_box = {
        tuple(b): (TYPES[n], a)
        for s in (first, second)
        for b, n, a in zip(s.boxes.tolist(), s.labels, s.attributes, strict=True)
    }
    assert {box: label for box, (label, _) in by_box.items()} == dict(zip(BOXES, ("L", "EG", "M"), strict=True))
    assert by_box[BOXES[1]][1] == {"label_before": "NG", "score": 0.55, "reviewed_by": "Dr. Ä <b>"}
    np.testing.assert_allclose(third.boxes, [[10, 20, 40, 50]], atol=1)
    assert third.attributes == [{"label_before": "no leukocyte", "reviewed_by": "Dr. Ä <b>"}]
    rows = table(tmp_path / "new/reviewed.csv")
    assert [(r["before"], r["after"]) for r in rows if r["image"].endswith("2.png")] == [("no leukocyte", "BG")]
    leuko("data", "apply-review", file, tmp_path / "new").refused("new", "not empty")

    browser.js("$('by').value = 'Second'; document.querySelector('[data-signed]:is(button)').click()")
    browser.key("x")
    file.unlink()
    browser.mouse(browser.middle("#download"))
    again = json.loads(browser.download("review.json").read_text())
    assert [(e["event"], e["by"]) for e in again["events"]] == [("signed", "Dr. Ä <b>"), ("reopened", "Second")]
    leuko("data", "apply-review", file, tmp_path / "x").refused("review.json", "not signed", "--unsigned")
    assert leuko("data", "apply-review", file, tmp_path / "x", "--unsigned").code == 0


@needs_browser
def test_a_review_by_the_keyboard_alone(browser, tmp_path):
    """200 cells, every tenth corrected: an arrow per cell that is right, one key per cell that is not."""
    browser.open(page_of(tmp_path, many(tmp_path, 200)))
    before = browser.js("cells.map(c => c.before)")
    wanted = {i: TYPES[i % 5] for i in range(0, 200, 10)} | {i: None for i in range(5, 200, 50)}
    keys = {None: "x"} | {name: str(i) for i, name in enumerate(TYPES, 1)}
    seen: set[int] = set()
    while len(seen) < 200:
        cell = browser.js("current")
        is_wrong = cell in wanted and browser.js(f"cells[{cell}].after") != wanted[cell]
        browser.key(keys[wanted[cell]] if is_wrong else "ArrowRight")
        seen.add(cell)
    assert browser.js("cells.map(c => c.after)") == [wanted.get(i, kind) for i, kind in enumerate(before)]
    moved = browser.js("cells.filter(c => c.after !== c.before).length")
    assert moved > 10 and browser.keys <= 200 + moved, "a key for each cell, and one to pass each that was moved ahead"
    browser.key("Enter", modifiers=CTRL)
    browser.key(*"Ada", "Enter")
    signed = json.loads(browser.download("review.json").read_text())
    assert signed["events"][-1]["by"] == "Ada" and len(signed["cells"]) == 200


@needs_browser
def test_arrows_ranges_and_the_field(browser, tmp_path):
    browser.open(page_of(tmp_path, many(tmp_path, 60, ["A", "B"]), ["A", "B"]))
    columns = browser.js("all('.t1 .cell').filter(e => e.offsetTop === all('.t1 .cell')[0].offsetTop).length")
    order = browser.js("order()")
    browser.key("ArrowDown", "ArrowRight")
    assert browser.js("current") == order[columns + 1]
    browser.key("ArrowUp", "ArrowLeft")
    assert browser.js("current") == order[0]
    browser.key("ArrowUp")
    assert browser.js("current") == order[0]
    browser.key("End", "ArrowDown")
    rest = 29 % columns
    assert browser.js("current") == order[30 + rest], "from the last row into the next gallery"
    browser.key("ArrowUp")
    assert browser.js("current") == order[29]
    browser.key("ArrowLeft", "ArrowLeft", modifiers=SHIFT)
    browser.key("u")
    assert counts(browser) == ["3", "27", "30", "0"]
    browser.key("a", modifiers=CTRL)  # the next gallery
    browser.key("x")
    assert counts(browser) == ["3", "27", "0", "30"]
    browser.key("z", "z")
    assert counts(browser) == ["0", "30", "30", "0"]
    browser.js("go(order()[0])")
    browser.key(" ")
    browser.wait("$('view').open")
    browser.key("2", "ArrowRight", "+", "ArrowRight", "ArrowDown")
    box = browser.js("draft.join()").split(",")
    browser.key("ArrowRight", modifiers=SHIFT)
    grown = browser.js("draft.join()").split(",")
    assert grown[:2] == box[:2] and float(grown[2]) > float(box[2]) and grown[3] == box[3]
    browser.key("Escape")
    assert browser.js("draft === null && $('view').open")
    browser.key("+", "1", "Escape")
    assert counts(browser) == ["0", "30", "31", "0"]
    browser.key("z", "z")
    assert counts(browser) == ["0", "30", "30", "0"] and browser.js("order().length") == 60


@needs_browser
def test_a_file_goes_on_in_another_browser(browser, pictures, tmp_path):
    page = page_of(tmp_path, fields_of(pictures))
    browser.open(page)
    browser.key("3")
    content = browser.js("JSON.stringify(review())")
    browser.js("localStorage.clear()")
    browser.open(page)
    assert counts(browser)[:2] == ["1", "2"]
    for text in ("{", content.replace(json.loads(content)["digests"][0], "0" * 64)):
        browser.js(f"load(new File([{json.dumps(text)}], 'other.json'))")
        assert "other.json cannot be taken" in browser.js("$('notice').textContent") and counts(browser)[0] == "1"
    browser.js(f"load(new File([{json.dumps(content)}], 'review.json'))")
    assert counts(browser)[0] == "0" and browser.js("$('notice').textContent") == ""


@needs_browser
def test_a_finger_chooses_and_the_bar_relabels(browser, pictures, tmp_path):
    browser.open(page_of(tmp_path, fields_of(pictures)))
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.send("Emulation.setDeviceMetricsOverride", **phone)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        for selector in (".gallery.t1 .cell", "#bar button:nth-child(4)"):
            x, y = browser.middle(selector)
            for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
                browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        browser.wait("$('bar').classList.contains('on') === false")
        assert counts(browser)[:5] == ["1", "1", "0", "0", "1"]
    finally:
        browser.send("Emulation.setTouchEmulationEnabled", enabled=False)
        browser.send("Emulation.clearDeviceMetricsOverride")


@needs_browser
def test_limits_are_those_of_the_exact_binomial(browser, pictures, tmp_path):
    browser.open(page_of(tmp_path, fields_of(pictures)))

    for k, n in ((0, 5), (5, 5), (1, 1), (3, 100), (62, 200), (199, 200), (250, 500), (12, 5000)):
        assert browser.js(f"limits({k}, {n})") == pytest.approx(binomial.percent_of(k, n)[1:], abs=1e-6), (k, n)


@needs_browser
def test_values_never_become_code(browser, pictures, tmp_path):
    """Names of types, files and slides with markup; the page asks the network for nothing, whatever it holds."""
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(hostile)
    types = [NASTY, "${alert(1)}", "{{ 7*7 }}"]
    cells = (BOXES[0], {NASTY: 0.9, types[1]: 0.1}, ""), (BOXES[1], {types[2]: 0.9}, NASTY)
    page = page_of(tmp_path, [replace(field(hostile, types, *cells), group=NASTY)], types, title=NASTY)
    text = page.read_text()
    assert len(re.findall("<script", text)) == 2 and "<img src=x" not in text
    assert "default-src 'none'" in text and "unsafe" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    browser.open(page)
    browser.key("2", " ")
    assert browser.js("$('where').textContent") == hostile.name
    assert browser.js("[...document.querySelectorAll('h2 span')].map(e => e.textContent)[1]") == NASTY
    assert browser.js("document.querySelectorAll('img:not(.cell img):not([data-field] img), b img').length") == 0
    foreign = '<img src="https://localhost:1/x" onerror="window.hit = 1">'
    browser.js(f"document.body.insertAdjacentHTML('beforeend', '{foreign}')")
    assert browser.js("new Promise(done => setTimeout(() => done(window.hit), 100))") is None
    assert any("Content Security Policy" in json.dumps(error) for error in browser.errors)
    browser.errors.clear()


@needs_browser
def test_without_javascript_or_storage(browser, pictures, tmp_path):
    page = page_of(tmp_path, fields_of(pictures))
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=page.as_uri())
        browser.wait("document.readyState === 'complete'")
        shown = browser.js("document.body.innerText")
        assert "JavaScript is off" in shown and "border" in shown and "Sign" not in shown.replace("Signed", "")
        assert browser.js("document.querySelectorAll('.cell img').length") == 3
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused') }})"
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source=refuse)["identifier"]
    try:
        browser.open(page)
        assert "download the review before you close" in browser.js("$('notice').textContent")
        browser.key("1")
        assert counts(browser)[:2] == ["0", "3"]
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
        browser.js("done = []")  # else the page asks before it is left


@needs_browser
@pytest.mark.parametrize("number", [1, 30])
def test_few_and_many_types(browser, tmp_path, number):
    """Types after the ninth take letters; with 30, every type has a key of its own."""
    types = [f"T{i}" for i in range(number)]
    browser.open(page_of(tmp_path, many(tmp_path, 40, types), types))
    keys = browser.js("GROUPS.map((_, i) => keyOf(i))")
    assert len(set(keys)) == number + 2 and all(keys)
    browser.js("go(order().at(-1))")
    browser.key(keys[number - 1] if number > 1 else "x")
    assert browser.js("cells.filter(c => c.after !== c.before).length") == 1


@needs_browser
def test_doubted_labels_are_reviewed_on_the_same_page(browser, data, tmp_path, leuko):
    dataset = source.load(data, "train")
    i, sample = next((i, s) for i, s in enumerate(dataset.samples) if len(s.boxes) > 1)
    label, gone = (dataset.types[n] for n in sample.labels[:2])
    other = next(t for t in dataset.types if t != label)
    vote = (Vote("a", other, 0.9, (1.0, 2, 3, 4)), Vote("b"))
    boxes = [tuple(round(float(v), 2) for v in box) for box in sample.boxes]
    suspects = [
        Suspect(i, "type", 0, label, other, boxes[0], 0.9, vote),
        Suspect(i, "missed", 1, gone, "", boxes[1], 0.8, vote),
        Suspect(i, "unlabelled", -1, "", "M", (1.0, 2, 30, 40), 0.7, vote),
    ]
    page = write_suspects(tmp_path, dataset, suspects)[0]
    browser.open(page)
    for suspect in range(3):
        browser.js(f"go({suspect})")
        browser.key("a")
    browser.js("$('by').value = 'C. D.'; document.querySelector('#sign button').click()")
    file = browser.download("review.json")
    leuko("data", "apply-review", file, tmp_path / "new").refused("--data")
    assert leuko("data", "apply-review", file, tmp_path / "new", "--data", data).code == 0
    after = next(s for s in source.load(tmp_path / "new", "train").samples if s.id == sample.id)
    assert [dataset.types[n] for n in after.labels] == [other, *(dataset.types[n] for n in sample.labels[2:]), "M"]
    assert after.attributes[0]["label_before"] == label and after.attributes[0]["reviewed_by"] == "C. D."
    problem = leuko("data", "apply-review", file, tmp_path / "twice", "--data", tmp_path / "new")
    problem.refused("review.json", "cell 1", "not corrected already")


# ---------------------------------------------------------------------- reading it back


def test_a_review_that_cannot_be_applied(pictures, tmp_path, leuko):
    page = page_of(tmp_path / "a", fields_of(pictures))
    whole, file, dst = content_of(page), tmp_path / "review.json", tmp_path / "new"

    def apply(content: dict | str, *words: str | Path) -> Result:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        result = leuko("data", "apply-review", file, dst, *words)
        assert result.code == 0 or not dst.exists()
        return result

    def changed(number: int = 0, **about: object) -> dict:
        cells = [dict(cell) for cell in whole["cells"]]
        cells[number] |= about
        return whole | {"cells": cells}

    apply("{", *()).refused("review.json", "broken JSON")
    apply("[]").refused("review.json", "not a review")
    apply(whole | {"events": []}).refused("not signed", "--unsigned")
    apply(whole | {"events": [{"event": "signed", "by": "a\nb", "at": "now"}]}).refused("no name")
    apply(changed(after="Q")).refused("cell 1", '"Q" is unknown')
    apply(changed(box=[5, 5, 2000, 35])).refused("not those of its prediction")
    apply(changed(before="EG")).refused("not those of its prediction")
    added = {
        "image": 2,
        "box": [1, 1, 999, 20],
        "before": None,
        "after": "NG",
        "score": None,
        "checked": True,
        "added": True,
    }
    apply(whole | {"cells": [*whole["cells"], added]}).refused("cell 4", "not inside")
    apply(whole | {"cells": [*whole["cells"], added | {"box": ["a", 1, 2, 3]}]}).refused("not a review")
    apply(whole | {"cells": [*whole["cells"], added | {"image": 3}]}).refused("no image 3")
    apply(whole, "--data", tmp_path).refused("prediction", "--data")
    apply({k: v for k, v in whole.items() if k != "images"}).refused("not a review")
    moved = [dict(image, path="/gone/" + image["name"]) for image in whole["images"]]
    apply(whole | {"images": moved}).refused("/gone/", "--images")
    other = [dict(image, sha256="0" * 64) for image in whole["images"]]
    apply(whole | {"images": other}).refused("has changed since its review")
    result = apply(whole | {"images": moved}, "--images", pictures[0].parent.parent)
    assert result.code == 0 and "1 warnings" in result.out, result.err
    assert "unclassified" in (dst / "warnings.txt").read_text()
    assert [len(s.boxes) for s in source.load(dst, "all").samples] == [2, 0, 0]


def test_reviews_of_a_folder_are_of_one_prediction(pictures, tmp_path, leuko, monkeypatch):
    """A prediction that is too large for one page is divided by slide; its reviews are applied together."""
    monkeypatch.setattr(review, "MAX_FIELDS", 2)
    fields = fields_of(pictures)
    pages = write_pages(tmp_path, TYPES, fields, title="all")
    assert [p.relative_to(tmp_path).as_posix() for p in pages] == ["review.html", "review/001.html", "review/002.html"]
    index = pages[0].read_text()
    assert all(f'href="review/00{i}.html"' in index for i in (1, 2)) and 'href="002.html"' in pages[1].read_text()
    contents = [content_of(page) for page in pages[1:]]
    assert [len(c["images"]) for c in contents] == [1, 2] and contents[0]["digests"] == contents[1]["digests"]
    assert [page_digest(c) for c in contents] == contents[0]["digests"]
    for i, content in enumerate(contents, 1):
        (tmp_path / f"review-{i:03}.json").write_text(json.dumps(content))
    assert leuko("data", "apply-review", tmp_path, tmp_path / "new", "--format", "yolo").code == 0
    assert sorted(len(s.boxes) for s in source.load(tmp_path / "new", "all").samples) == [0, 0, 2]

    assert leuko("data", "apply-review", tmp_path / "review-002.json", tmp_path / "half").code == 0
    assert "1 of 2 pages" in (tmp_path / "half/warnings.txt").read_text()
    (tmp_path / "review-003.json").write_text(json.dumps(contents[0]))
    leuko("data", "apply-review", tmp_path, tmp_path / "x").refused("review-003.json", "same page", "keep one")
    other = content_of(page_of(tmp_path / "other", fields[:2]))
    (tmp_path / "review-003.json").write_text(json.dumps(other))
    leuko("data", "apply-review", tmp_path, tmp_path / "x").refused("review-003.json", "another prediction")
    leuko("report", tmp_path).refused("review-003.json", "another prediction")
    (tmp_path / "empty").mkdir()
    leuko("data", "apply-review", tmp_path / "empty", tmp_path / "x").refused("no review*.json")
    assert not (tmp_path / "x").exists()


def test_the_report_shows_who_changed_what(pictures, tmp_path, leuko):
    content = content_of(page_of(tmp_path, fields_of(pictures)))
    by_box = {tuple(cell["box"]): cell for cell in content["cells"]}
    by_box[BOXES[1]]["after"], by_box[BOXES[2]]["after"] = "EG", "M"
    (tmp_path / "review.json").write_text(json.dumps(content))
    assert leuko("report", tmp_path).code == 0
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", (tmp_path / "reviewed.html").read_text()))
    assert "signed by A. B." in text and "2 of 3 cells changed" in text
    assert "NG 2 1 1 .500 1.000" in text and "EG 0 1 0 - .000" in text and "unclassified M" in text


def test_a_verdict_reaches_every_split_that_holds_the_image(pictures, tmp_path, leuko):
    """Another split may list the image with its cells in another order, or without one of them."""
    src, dst, file = tmp_path / "src", tmp_path / "dst", tmp_path / "review.json"
    for split, cells in (("val", [0, 1]), ("test", [1, 0]), ("train", [0])):
        sample = Sample(pictures[2], WIDTH, HEIGHT, [BOXES[i] for i in cells], [0] * len(cells), 1)
        coco_format.write(Dataset(["NG", "BG"], [sample]), src, split)
    dataset = source.load(src, "val")
    suspect = Suspect(0, "type", 1, "NG", "BG", BOXES[1], 0.9, ())
    content = content_of(write_suspects(tmp_path, dataset, [suspect])[0])
    assert content["kind"] == CONSENSUS
    content["cells"][0]["after"] = "BG"
    file.write_text(json.dumps(content))
    result = leuko("data", "apply-review", file, dst, "--data", src)
    assert result.code == 0 and "1 cells changed" in result.out, result.err
    for split, labels in (("val", [0, 1]), ("test", [1, 0]), ("train", [0])):
        assert source.load(dst, split).samples[0].labels.tolist() == labels
    assert "cell 1 of the review: is not in split train" in (dst / "warnings.txt").read_text()
    (tmp_path / "out.yaml").write_text(f"splits: {{../evil: {src}/val.json}}\n")
    leuko("data", "apply-review", file, tmp_path / "new/x", "--data", tmp_path / "out.yaml").refused("evil")
    assert not (tmp_path / "new").exists()


def test_a_prediction_becomes_a_field():
    cells = (BOXES[0], {"A": 0.9, "B": 0.2}, ""), (BOXES[1], {"C": 0.4}, "border")
    first, second = field(Path("a.png"), ["A", "B", "C"], *cells).cells
    assert (first.type, first.box, first.text, first.suggestion) == ("A", BOXES[0], "0.90 · B 0.20", "")
    assert (second.type, second.why, second.text, second.suggestion) == ("", "border", "C 0.40", "C")
    assert first.doubt == pytest.approx(0.3) and second.doubt == pytest.approx(0.6)


def test_a_field_that_is_gone_is_told(pictures, tmp_path):
    fields = fields_of(pictures)
    text = page_of(tmp_path, [replace(fields[0], path=tmp_path / "gone.png"), *fields[1:]]).read_text()
    assert text.count("cannot be read any more") == 1 and text.count('class="cell"') == 3
