"""Downloads, from a server on this machine that redirects, refuses, cuts and lies."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from leuko import registry

CONTENT = os.urandom(3_000_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any path; the path's first part says how."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "missing":
            return self.send_error(404)
        if kind == "down":
            return self.send_error(503)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "whole"))
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:500_000] if kind == "cut" else CONTENT)
        return self.wfile.flush()

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
    kinds = ("whole", "cut", "moved", "missing", "down")
    listed = {k: {**entry, "url": f"{server.url}/{k}/{k}-{HASH[:8]}.pth", "sha256": HASH[:8]} for k in kinds}
    listed["wrong"] = {**entry, "url": f"{server.url}/whole/wrong.pth", "sha256": "0" * 64}
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(listed))
    monkeypatch.setattr(registry, "FOLDERS", (tmp_path,))
    monkeypatch.delenv("LEUKO_MIRROR", raising=False)
    return tmp_path / "weights"


@pytest.mark.parametrize("kind", ["whole", "moved"])
def test_download_arrives_whole(kind, server, weights, leuko):
    result = leuko("download", kind, "--to", weights)
    assert result.code == 0 and "only 8 of 64 digits of its SHA-256 are known" in result.out, result.err
    assert [p.name for p in weights.iterdir()] == [f"{kind}-{HASH[:8]}.pth"]
    assert (weights / f"{kind}-{HASH[:8]}.pth").read_bytes() == CONTENT
    before = len(server.asked)
    assert "is there and whole" in leuko("download", kind, "--to", weights).out and len(server.asked) == before


def test_download_says_what_is_wrong(server, weights, data, leuko):
    leuko("download", "missing", "--to", weights).refused(
        f"{server.url}/missing", "404", "--mirror", "carry the file into"
    )
    leuko("download", "down", "--to", weights).refused("503", "cannot be reached")
    leuko("download", "wrong", "--to", weights).refused("wrong.pth", HASH, "0" * 64)
    leuko("download", "cut", "--to", weights).refused(f"{server.url}/cut", HASH[:8], "try again")
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
    assert server.asked == [f"/whole/missing-{HASH[:8]}.pth"]
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
