"""Downloads, from a server on this machine that cuts connections, redirects, refuses and lies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from leuko import download, registry

CONTENT = os.urandom(3_000_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any path; the path's first part says how."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []  # path, Range
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.path, wanted))
        kind = self.path.split("/")[1]
        if kind == "missing":
            return self.send_error(404)
        if kind == "down":
            return self.send_error(503)
        if kind in ("moved", "astray"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "whole") if kind == "moved" else "ftp://lab/x.pth")
            return self.end_headers()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and kind != "rangeless" else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", "many" if kind == "endless" else str(len(body)))
        self.end_headers()
        if kind == "endless":
            with contextlib.suppress(ConnectionError):  # leuko hangs up
                self.wfile.write(bytes(9_000_000))
            return None
        cut = kind in ("cut", "rangeless") and len(self.server.asked) < 3
        self.wfile.write(body[: 500_000 + start // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def weights(server, tmp_path, monkeypatch) -> Path:
    """A folder for downloads, and a registry with an entry for each way the server has."""
    entry = {"model": "fcos", "size": "~3", "licence": "none", "source": "a test"}
    kinds = ("whole", "cut", "rangeless", "moved", "missing", "down", "astray", "endless")
    listed = {k: {**entry, "url": f"{server.url}/{k}/{k}-{HASH[:8]}.pth", "sha256": HASH[:8]} for k in kinds}
    listed["wrong"] = {**entry, "url": f"{server.url}/whole/wrong.pth", "sha256": "0" * 64}
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(listed))
    monkeypatch.setattr(registry, "FOLDERS", (tmp_path,))
    monkeypatch.delenv("LEUKO_MIRROR", raising=False)
    return tmp_path / "weights"


@pytest.mark.parametrize("kind", ["whole", "cut", "rangeless", "moved"])
def test_download_arrives_whole(kind, server, weights, leuko):
    """Where the connection breaks, each call goes on where the one before stopped."""
    for _ in range(2 if kind in ("cut", "rangeless") else 0):
        leuko("download", kind, "--to", weights).refused("the connection broke", "MB are kept", "the same command")
    result = leuko("download", kind, "--to", weights)
    assert result.code == 0 and "only 8 of 64 digits of its SHA-256 are known" in result.out, result.err
    assert [p.name for p in weights.iterdir()] == [f"{kind}-{HASH[:8]}.pth"]
    assert (weights / f"{kind}-{HASH[:8]}.pth").read_bytes() == CONTENT
    ranges = [r for _, r in server.asked]
    if kind == "cut":
        assert ranges[0] == "" and len(set(ranges)) == 3 and all(r.startswith("bytes=") for r in ranges[1:])
    before = len(server.asked)
    assert "is there and whole" in leuko("download", kind, "--to", weights).out and len(server.asked) == before


def test_download_goes_on_where_an_earlier_call_was_stopped(server, weights, leuko):
    weights.mkdir()
    part = weights / f".whole-{HASH[:8]}.pth.part"
    for start in (1_234_567, len(CONTENT)):
        part.write_bytes(CONTENT[:start])
        assert leuko("download", "whole", "--to", weights).code == 0
        assert server.asked[-1][1] == f"bytes={start}-"
        (weights / f"whole-{HASH[:8]}.pth").unlink()


def test_download_says_what_is_wrong(server, weights, data, leuko, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 2.0)
    leuko("download", "missing", "--to", weights).refused(
        f"{server.url}/missing", "404", "--mirror", "carry the file to"
    )
    leuko("download", "down", "--to", weights).refused("503", "cannot be reached")
    leuko("download", "wrong", "--to", weights).refused("wrong.pth", HASH, "0" * 64)
    leuko("download", "astray", "--to", weights).refused(f"{server.url}/astray", "--mirror")
    leuko("download", "endless", "--to", weights).refused("sends more than the 6 MB")
    assert not list(weights.iterdir())
    leuko("download", "whole", "--to", weights, "--mirror", "http://127.0.0.1:1").refused("127.0.0.1:1", "refused")
    leuko("download", "whole", "--to", weights, "--mirror", "mirror.lab/x").refused("--mirror mirror.lab/x", "https://")
    leuko("download", "whol").refused('"whol"', 'did you mean "whole"')
    assert not list(weights.iterdir())
    leuko("train", "--data", data, "--model", "fcos", "--weights", "whole").refused("leuko download whole")
    (weights / f"whole-{HASH[:8]}.pth").write_bytes(CONTENT[:-1])
    leuko("download", "whole", "--to", weights).refused("its SHA-256 is", "remove it")


def test_download_from_a_mirror_or_by_hand(server, weights, leuko, monkeypatch):
    monkeypatch.setenv("LEUKO_MIRROR", f"{server.url}/whole/")
    assert leuko("download", "missing", "--to", weights).code == 0
    assert server.asked == [(f"/whole/missing-{HASH[:8]}.pth", "")]
    carried = weights / f"down-{HASH[:8]}.pth"
    carried.write_bytes(CONTENT)
    assert "is there and whole" in leuko("download", "down", "--to", weights).out and len(server.asked) == 1
    listed = leuko("download", "--to", weights).out
    assert [line.split()[0] for line in listed.splitlines() if " here " in line] == ["down", "missing"]


def test_registry_of_the_repository_is_sound():
    first, *others = registry.registry().values()
    assert first.name == registry.DEFAULT and first.comes_with_leuko and first.licence == "CC-BY-4.0" and first.source
    for entry in others:
        assert entry.url.startswith("https://") and set(entry.sha256) <= set("0123456789abcdef")
        assert len(entry.sha256) == 64 or entry.sha256 in entry.file
        assert entry.licence and entry.source and float(entry.size.removeprefix("~")) > 0
