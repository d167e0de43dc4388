"""Changed copies of files, for `mutations.py`."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml

HOSTILE = [
    b"1",
    b"2",
    b"7",
    b"0.5",
    b"64",
    b"",
    b"nan",
    b"NaN",
    b"-inf",
    b"Infinity",
    b"1e400",
    b"-1",
    b"0",
    b"1.5",
    b"1e308",
    b"2147483648",
]
HOSTILE += [b"99999999999999999999", b"9" * 5000, b"1" + b"0" * 5000, b"0x10", b"1_000", "٣".encode(), b"true", b"null"]
HOSTILE += [b"[]", b"{}", b'""', b'"1"', b"[1, 2]", b'{"a": 1}', b"- a\n- b", b"a: b", b"../x", b"../../../etc/passwd"]
HOSTILE += [b"/etc/passwd", b"\\\\x\\y", b"//x/y", b"C:\\x", b"\0", b"\n", b"\r", b"\n\n", b"\x1b[2J", b"\xff\xfe"]
HOSTILE += ["\u2028".encode(), "\u202e".encode(), "e\u0301".encode(), b"[" * 99_999, b'{"a":' * 99_999, b"<a>" * 99_999]
HOSTILE += [b"- " * 9_999, b"x" * 999_999, b"&lol;", b"*a", b"&a [*a, *a]", b"!!python/object:os.system", b"=1+1", b"#"]
VALUES = [
    None,
    True,
    "",
    "1",
    -1,
    0,
    1,
    2,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    10**25,
    10**400,
    [],
    {},
    [1, 2],
    {"a": 1},
]
VALUES += [word.decode() for word in HOSTILE if len(word) < 9999 and word.isascii()]
TOKEN = re.compile(rb"""<[^<>]*>|"[^"\n]*"|[-+]?[\w.]+""")
NUMBER = re.compile(rb"[-+]?\d[\d.]*")
KEY = re.compile(rb"""(?<=<)[A-Za-z_]+|\b[A-Za-z_]+(?="?\s*:)""")


def mutated(data: bytes, suffix: str, rng: np.random.Generator) -> tuple[bytes, int]:
    """A changed copy of a file whose name ends in ``suffix``, and the number of changes, 1 to 3."""
    changes = int(rng.choice([1, 1, 1, 2, 3]))
    for number in range(changes):
        if not number and suffix in CODECS and rng.random() < 0.5:  # only a sound file is read here
            data = _node(data, *CODECS[suffix], rng)
        else:
            data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    return data, changes


# ---------------------------------------------------------------- changes of what a file says


def _read_weights(data: bytes) -> dict:
    """The head of a safetensors file with leuko's document in it, and what follows."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    head["__metadata__"]["leuko"] = json.loads(head["__metadata__"]["leuko"])
    return {"head": head, "tensors": data[end:]}


def _write_weights(content: dict) -> bytes:
    head = content["head"]
    head["__metadata__"]["leuko"] = json.dumps(head["__metadata__"]["leuko"])
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + content["tensors"]


def _write_torch(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


CODECS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    ".json": (json.loads, lambda content: json.dumps(content).encode()),
    ".yaml": (yaml.safe_load, lambda content: yaml.safe_dump(content, sort_keys=False).encode()),
    ".pt": (lambda data: torch.load(io.BytesIO(data), weights_only=True), _write_torch),
    ".pth": (lambda data: torch.load(io.BytesIO(data), weights_only=True), _write_torch),
    ".safetensors": (_read_weights, _write_weights),
}


def _node(data: bytes, read: Callable, write: Callable, rng: np.random.Generator) -> bytes:
    """A file with one value of it lost, doubled, or replaced by a hostile one or by another one of the file."""
    content = read(data)
    places, level = [], [content]
    while level:
        level = [each for each in level if isinstance(each, dict | list)]
        inside = [(each, key) for each in level for key in (each if isinstance(each, dict) else range(len(each)))]
        places += inside
        level = [each[key] for each, key in inside]
    (parent, key), (other, at) = (places[i] for i in rng.integers(0, len(places), 2))
    way = int(rng.integers(4))
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = copy.deepcopy(other[at]) if way == 1 else VALUES[int(rng.integers(len(VALUES)))]
    try:
        return write(content)
    except (KeyError, TypeError, AttributeError):  # no longer what can be written, such as weights without a head
        return _flip(data, rng)


# ---------------------------------------------------------------- changes of bytes


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    for at in rng.integers(0, len(array), int(rng.integers(1, 9))) if len(array) else ():
        array[at] ^= 1 << int(rng.integers(8))
    return array.tobytes()


def _cut_off(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data) + 1))]


def _slice(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    at = int(rng.integers(0, len(data) + 1))
    return at, at + int(rng.integers(1, 200))


def _double(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _slice(data, rng)
    return data[:end] + data[start:end] * int(rng.choice([1, 1, 1, 50])) + data[end:]


def _lose(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _slice(data, rng)
    return data[:start] + data[end:]


def _double_line(data: bytes, rng: np.random.Generator) -> bytes:
    lines = data.splitlines(keepends=True)
    at = int(rng.integers(len(lines))) if lines else 0
    return b"".join(lines[: at + 1] + lines[at:])


def _hostile(pattern: re.Pattern) -> Callable[[bytes, np.random.Generator], bytes]:
    def replace(data: bytes, rng: np.random.Generator) -> bytes:
        hits = list(pattern.finditer(data))
        word = HOSTILE[int(rng.integers(len(HOSTILE)))]
        start, end = hits[int(rng.integers(len(hits)))].span() if hits else _slice(data, rng)
        return data[:start] + word + data[end:]

    return replace


def _rename(data: bytes, rng: np.random.Generator) -> bytes:
    """A key everywhere: in capitals, in the plural, or another one."""
    keys = sorted(set(KEY.findall(data)))
    if not keys:
        return _flip(data, rng)
    key = keys[int(rng.integers(len(keys)))]
    new = [key.title(), key.upper(), key + b"s", key[:-1], b"x", key + b" "][int(rng.integers(6))]
    return re.sub(rb"\b" + re.escape(key) + rb"\b", lambda _: new, data)


MUTATIONS = [_flip, _cut_off, _double, _lose, _double_line, _rename]
MUTATIONS += [_hostile(TOKEN), _hostile(NUMBER), _hostile(NUMBER)]
