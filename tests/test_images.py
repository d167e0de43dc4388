"""Images as they are met: deep, turned, hidden, hostile; and a prediction that none of them stops, nor a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import in_child, table, untrained
from PIL import Image

from leuko import predict
from leuko.data.images import image_header, is_hidden, list_images, read_image
from leuko.errors import LeukoError

TYPES = ["NG", "BG", "EG", "L", "M"]


def write_png(path: Path, width: int, height: int) -> None:
    """A black PNG of one bit per pixel, compressed row by row."""
    pack = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT" + pixels, b"IEND")
    data = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


# ------------------------------------------------------------------------------------------------------- pixels


def test_pixels_are_read_as_stored(tmp_path):
    """Grey, 16 bit, transparent, palette and EXIF-turned images become [H, W, 3] uint8 RGB of the stored pixels."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    deep = rng.integers(0, 1 << 16, (40, 30), dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colour).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.dstack([colour, colour[..., 0]])).save(tmp_path / "alpha.png")
    Image.fromarray(colour).quantize(256).save(tmp_path / "palette.png")
    cv2.imwrite(str(tmp_path / "deep.PNG"), deep)
    for path in list_images(tmp_path):
        image = read_image(path)
        assert (image.shape, image.dtype, image_header(path)[:2]) == ((40, 30, 3), np.uint8, (30, 40)), path
    assert len(list_images(tmp_path)) == 4
    assert all((read_image(tmp_path / name) == colour).all() for name in ("turned.png", "alpha.png"))
    assert np.abs(read_image(tmp_path / "deep.PNG")[..., 0] - deep / 257.0).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_not_turned(tmp_path, orientation):
    """OpenCV turns it, whatever it is told: at 8 and 16 bit, and as BigTIFF."""
    colour = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    deep = colour[..., 0] * np.uint16(257)
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "turned.tif"
    for pixels, stored, big in ((colour, colour, False), (colour, colour, True), (deep, np.dstack([deep] * 3) >> 8, 0)):
        Image.fromarray(pixels).save(path, exif=exif, big_tiff=big)
        image = read_image(path)
        assert image_header(path)[:3] == (30, 40, orientation)
        assert (image == stored).all() and image.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.98])
def test_truncated_images_are_refused(tmp_path, suffix, kept):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    thumbnail = b"\xff\xd8 a small JPEG with its own end \xff\xd9"
    exif[37510] = thumbnail
    path = tmp_path / f"cut{suffix}"
    image.save(path, exif=exif)
    assert read_image(path).shape == (60, 80, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    problem = "the JPEG is truncated" if suffix == ".jpg" and kept else "not a readable image"
    with pytest.raises(LeukoError, match=rf"cut\{suffix}: {problem}"):
        read_image(path)


def blood() -> np.ndarray:
    """A picture [60, 80, 3] uint8 as bright as a smear: a background of 240, and darker cells."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), (0, 0), 4)
    return cv2.normalize(picture, None, 60, 240, cv2.NORM_MINMAX)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_pixels_are_the_picture_that_they_are_at_8_bits(tmp_path, suffix, bits):
    """A camera's 10 to 14 bits in a file of 16, in colour and in grey."""
    picture, path = blood(), tmp_path / f"deep{suffix}"
    for eight, stored in ((picture, picture[..., ::-1]), (np.dstack([picture[..., 0]] * 3), picture[..., 0])):
        cv2.imwrite(str(path), stored.astype(np.uint16) << (bits - 8))
        assert image_header(path).depth == 16 and (read_image(path) == eight).all()


def test_packed_12_bits_need_no_guess(tmp_path):
    """Even where they are dark, since the file says how many they are."""
    grey = blood()[..., 0].astype(np.uint16) // 8
    bits = (grey[..., None] << 4 >> np.arange(11, -1, -1) & 1).astype(np.uint8)
    pixels = np.packbits(bits.reshape(60, -1), axis=1).tobytes()
    values = {256: 80, 257: 60, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: 60, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    (tmp_path / "packed.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, 9) + entries + bytes(4) + pixels)
    assert (read_image(tmp_path / "packed.tif")[..., 0] == grey).all()


@pytest.mark.parametrize("kind", ["F", "I"])
def test_pixels_without_a_black_and_a_white_are_refused(tmp_path, kind):
    Image.new(kind, (40, 30)).save(tmp_path / "a.tif")
    with pytest.raises(LeukoError, match=f"a.tif: .*32-bit {'float' if kind == 'F' else 'signed'}.* save as 8-bit"):
        read_image(tmp_path / "a.tif")


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    """6 kB that are decoded for seconds, and 1 MB for ten minutes."""
    _, data = cv2.imencode(".jpg", np.full((900, 900), 128, np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    whole = data.tobytes()
    last = whole[whole.rfind(b"\xff\xda") : -2]
    for scans, is_read in ((20, True), (100, False)):
        (tmp_path / "a.jpg").write_bytes(whole[:-2] + scans * last + b"\xff\xd9")
        if is_read:
            assert (read_image(tmp_path / "a.jpg") == 128).all()
        else:
            with pytest.raises(LeukoError, match=r"a.jpg: a progressive JPEG of 10\d scans"):
                read_image(tmp_path / "a.jpg")


# ------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_headers_tell_the_orientation(tmp_path, suffix):
    path, image = tmp_path / f"a{suffix}", Image.new("RGB", (40, 30))
    for orientation, told in ((1, 1), (3, 3), (6, 6), (9, 1)):
        exif = Image.Exif()
        exif[274] = orientation
        image.save(path, exif=exif)
        header = image_header(path)
        assert header == (40, 30, told, 1, 8) and header.quarter_turn == (told == 6)
    image.save(path)
    assert image_header(path).orientation == 1


def test_a_png_may_tell_its_orientation_behind_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[274] = 8
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    whole = (tmp_path / "a.png").read_bytes()
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(whole[:-12] + late + whole[-12:])
    assert image_header(tmp_path / "a.png").orientation == 8


def test_pages_are_counted_but_not_thumbnails(tmp_path):
    pages = [Image.new("L", (40, 30), grey) for grey in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert image_header(tmp_path / "a.tif").pages == 3 and (read_image(tmp_path / "a.tif") == 10).all()
    pages[2].encoderinfo = {"tiffinfo": {254: 1}}  # a smaller copy
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    assert image_header(tmp_path / "b.tif").pages == 2


def test_what_is_no_picture_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    write_png(tmp_path / "huge.png", 13_500, 13_500)
    for path, words in (
        (tmp_path / "fifo.jpg", "pipe or a device"),
        (Path("/dev/zero"), "pipe or a device"),
        (tmp_path, "is a folder"),
        (tmp_path / "nul\0.jpg", "no such file"),
        (tmp_path / "huge.png", r"13500x13500 is too large \(182 megapixels; up to 80 are read\); cut it into fields"),
    ):
        for read in (image_header, read_image):
            with pytest.raises(LeukoError, match=words):
                read(path)
    assert image_header(tmp_path / "huge.png", max_pixels=183)[:2] == (13_500, 13_500)


# ------------------------------------------------------------------------------------------------------- hidden


def test_hidden_images_are_passed_over_and_counted(tmp_path):
    """By names below the folder that is named, whatever that is called itself."""
    home = tmp_path / ".cache" / "slides"
    seen = [home / "a.jpg", home / "b" / "c.png"]
    hidden = [home / name for name in ("._a.jpg", ".Trash-1/files/d.jpg", "b/@eaDir/c.png", "__MACOSX/b/._c.png")]
    hidden += [home / name for name in ("$RECYCLE.BIN/e.tif", "System Volume Information/f.bmp")]
    for path in [*seen, *hidden, home / "Thumbs.db", home / ".ipynb_checkpoints" / "note.txt"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (home / ".all").symlink_to(home / "b")  # is entered by its visible name
    passed_over: list[Path] = []
    assert list_images(home, recursive=True, hidden=passed_over) == seen and sorted(hidden) == passed_over
    assert list_images(home) == seen[:1] and not is_hidden("..") and is_hidden("lost+found")
    source = predict.find_images(str(home))
    assert (source.images, source.skipped, source.hidden) == (seen, [], passed_over)
    source = predict.find_images(f"{home}/**/*.*g")
    assert (source.images, source.hidden) == (seen, [home / "b/@eaDir/c.png"])
    assert predict.find_images(f"{home}/b/@eaDir/*.png").images == [home / "b/@eaDir/c.png"]  # which the user named


# ------------------------------------------------------------------------------------------------------- a prediction


@pytest.fixture
def words(tmp_path) -> list:
    """A prediction that finds many cells: the model has learned nothing."""
    weights = untrained(tmp_path / "untrained.safetensors", TYPES)
    return [
        "--weights",
        weights,
        "--threshold",
        "0.15",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--save",
        tmp_path / "out",
    ]


def test_no_image_takes_down_a_prediction(tmp_path, words):
    """A bomb, a pipe, a device, a large image, a cut one and none; turned, deep and stacked ones; names that a terminal
    would obey."""
    home = tmp_path / "slides"
    home.mkdir()
    picture = Image.fromarray(blood())
    exif = Image.Exif()
    exif[274] = 6
    picture.save(home / "good.png", exif=exif)
    cv2.imwrite(str(home / "deep.tif"), blood()[..., ::-1].astype(np.uint16) << 4)
    picture.save(home / "stack.tif", save_all=True, append_images=[picture, picture])
    write_png(home / "bomb.png", 32_000, 32_000)
    write_png(home / "large.png", 12_000, 12_000)
    os.mkfifo(home / "fifo.jpg")
    (home / "zero.png").symlink_to("/dev/zero")
    (home / "text\n\x1b[2J\u202e.jpg").write_text("no image")
    picture.save(home / "cut.jpg")
    (home / "cut.jpg").write_bytes((home / "cut.jpg").read_bytes()[:700])
    [(result, seconds)], peak = in_child([["predict", *words, "--source", home, "--name", "p"]])
    told = result.err
    assert result.code == 0 and seconds < 60 and peak < 0.5, (told, seconds, peak)
    document = json.loads((tmp_path / "out/p/cells.json").read_text())
    assert {Path(c["image"]).name for c in document["cells"]} == {"good.png", "deep.tif", "stack.tif"}
    lines = ["bomb.png: 32000x32000 is too large (1024 megapixels", "large.png: 12000x12000", "--max-pixels 145"]
    lines += ["fifo.jpg: is no regular file", "zero.png: is no regular file", "cut.jpg: the JPEG is truncated"]
    lines += [
        "not turned: 1 images",
        "pages left out: 2, all but the first of 1 TIFFs",
        "brightened: 1 images of 16 bits use only 12",
    ]
    for line in lines:
        assert line in told, (line, told)
    assert len(document["unreadable"]) == 6 and sum(line.startswith("not read: ") for line in told.splitlines()) == 6
    assert len(document["notes"]) >= 3 and "\x1b" not in told and "\u202e" not in told


def test_a_limit_can_be_raised(tmp_path, words, leuko):
    write_png(tmp_path / "wide.png", 1000, 1001)
    words += ["--source", tmp_path / "wide.png", "--max-pixels"]
    leuko("predict", *words, 1).refused("1000x1001 is too large", "--max-pixels 2")
    assert not any((tmp_path / "out").iterdir())
    assert leuko("predict", *words, 2).code == 0
    leuko("predict", *words, 2000).refused("--max-pixels 2000", "1 to 1,000")


def test_an_image_for_which_memory_is_lacking_is_not_read(tmp_path, words, leuko, monkeypatch):
    for name in ("a.png", "b.png"):
        Image.fromarray(blood()).save(tmp_path / name)
    detect, failed = predict.Models.__call__, []

    def fails_once(models: predict.Models, image: object) -> object:
        if not failed:
            failed.append(True)
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"
            )
        return detect(models, image)

    monkeypatch.setattr(predict.Models, "__call__", fails_once)
    result = leuko("predict", *words, "--source", tmp_path / "*.png")
    assert result.code == 0 and "not read" in result.err and "a.png: there is not enough memory" in result.err
    assert "1 images" in result.out


def test_a_killed_prediction_goes_on(tmp_path, words, start, leuko):
    """The same command takes up the batches that a killed one has done, predicts anew what has changed since, and ends
    as if it had never been stopped. While another process works on the folder, it takes another."""
    home, out = tmp_path / "slides", tmp_path / "out"
    home.mkdir()
    for i in range(30):
        Image.fromarray(np.roll(blood(), i, 1)).save(home / f"{i:02}.png")
    words += ["--source", home, "--name", "p", "--batch", "3"]
    process = start("leuko.predict", *words, "--workers", "2")
    journal = out / "p" / "unfinished.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)
    assert leuko("predict", *words).code == 0 and (out / "p-2/cells.json").exists()
    process.kill()
    process.wait()
    assert journal.exists() and not (out / "p/cells.json").exists()
    with open(journal, "ab") as file:
        file.write(b'{"image": "cut o')
    (out / "p/images/.00.png.1234.tmp").write_bytes(b"half a picture")
    shutil.copy(home / "09.png", home / "00.png")
    (home / "29.png").unlink()
    result = leuko("predict", *words)
    assert result.code == 0 and "goes on in" in result.out and "of 29 images are done" in result.out
    shutil.rmtree(out / "p-2")
    assert leuko("predict", *words).code == 0
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (out / "p", out / "p-2")]
    pages = [of_run.pop(Path("report.html")).decode() for of_run in files]
    assert pages[0] == pages[1].replace("p-2", "p"), "but for its folder's name"
    assert files[0] == files[1] and len(files[0]) == 29 + 5 and len(table(out / "p/cells.csv")) > 29


def test_only_the_same_prediction_goes_on(tmp_path, words, leuko, monkeypatch):
    Image.fromarray(blood()).save(tmp_path / "a.png")
    words += ["--source", tmp_path / "a.png", "--name", "p"]
    with monkeypatch.context() as patch:
        # The power fails before the results are written.
        patch.setattr(predict.prediction, "write", lambda *_, **__: sys.exit(9))
        assert leuko("predict", *words).code == 9
    journal = tmp_path / "out/p/unfinished.jsonl"
    kept = journal.read_bytes()
    assert leuko("predict", *words, "--threshold", "0.2").code == 0 and (tmp_path / "out/p-2/cells.csv").exists()
    untrained(tmp_path / "untrained.safetensors", TYPES)  # other weights of the same name
    assert leuko("predict", *words).code == 0 and (tmp_path / "out/p-3/cells.csv").exists()
    assert journal.read_bytes() == kept
