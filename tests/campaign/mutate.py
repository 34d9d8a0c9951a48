"""Mutations of files: of bytes, of values, of what a file is; all follow from one generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from trqam_fast import flax_pickle

Mutation = Callable[[Path, Random], str]
"""Changes a file in place; returns in words what it did."""

SPARSE = 2**40
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**400, 1e308, 5e-324, -0.5, float("nan"),
    float("inf"), "", "x", "1", "../../../escaped", "/etc/x", "a\nb", "\x1b[2J\x1b[31mowned", "\0",
    "é" * 300, [], [[]], [None], ["x", 3], [10**30], {}, {"x": {}}, {"1": None},
)  # fmt: skip
RAW = (
    "nan", "inf", "-1", "1e400", "9" * 5000, "[" * 100_000, "[" * 900 + "]" * 900, '"', "{", "}",
    '"\\ud800"', "\x00", "\x1b[31m", "'''", "= =", ",,,,", "\n", "1\n2", "true", "²", "#",
    "1979-05-27", "0x7f",
)  # fmt: skip
"""Words that take a value's place in a text."""
VALUE = re.compile(rb'"[^"\n]*"|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|true|false|null|NaN')


def flip(data: bytearray, random: Random) -> str:
    where = random.randrange(len(data))
    bit = random.randrange(8)
    data[where] ^= 1 << bit
    return f"bit {bit} of byte {where} flipped"


def flip_in_front(data: bytearray, random: Random) -> str:
    """Where headers are."""
    where = random.randrange(min(160, len(data)))
    data[where] ^= 1 << random.randrange(8)
    return f"a bit of byte {where} flipped"


def flip_in_directory(data: bytearray, random: Random) -> str:
    """In a zip's end, which names its members."""
    where = max(0, len(data) - 1 - random.randrange(400))
    data[where] ^= 1 << random.randrange(8)
    return f"a bit of byte {where} of {len(data)} flipped"


def cut(data: bytearray, random: Random) -> str:
    size = random.randrange(len(data))
    del data[size:]
    return f"cut to {size} bytes"


def remove(data: bytearray, random: Random) -> str:
    where, count = random.randrange(len(data)), random.randint(1, 64)
    del data[where : where + count]
    return f"{count} bytes at {where} removed"


def insert(data: bytearray, random: Random) -> str:
    where, count = random.randrange(len(data) + 1), random.randint(1, 64)
    data[where:where] = random.randbytes(count)
    return f"{count} bytes put in at {where}"


def overwrite(data: bytearray, random: Random) -> str:
    where, count = random.randrange(len(data)), random.randint(1, 512)
    block = random.choice((bytes(count), b"\xff" * count, random.randbytes(count)))
    data[where : where + count] = block
    return f"{count} bytes at {where} replaced, the first by {block[0]}"


def append(data: bytearray, random: Random) -> str:
    data += random.choice((bytes(100), random.randbytes(100), bytes(data)))
    return "bytes appended"


BYTES = (flip, flip, flip_in_front, flip_in_front, flip_in_directory, cut, remove, insert,
         overwrite, append)  # fmt: skip


def mutate_bytes(path: Path, random: Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return become_something_else(path, random)
    said = random.choice(BYTES)(data, random)
    path.write_bytes(data)
    return said


def become_something_else(path: Path, random: Random) -> str:
    """Replace a file by what is no file, or none of that kind."""
    what = random.choice(("nothing", "empty", "pipe", "folder", "loop", "dangling link", "sparse",
                          "random bytes", "text", "device"))  # fmt: skip
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    match what:
        case "empty":
            path.touch()
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "dangling link":
            path.symlink_to("nowhere")
        case "sparse":
            path.touch()
            os.truncate(path, SPARSE)
        case "random bytes":
            path.write_bytes(random.randbytes(5000))
        case "text":
            path.write_text("hello\n" * 100)
        case "device":
            path.symlink_to("/dev/zero")
    return f"replaced by {what}"


def mutate_text(path: Path, random: Random) -> str:
    """Put something else in the place of a value, or move lines."""
    data = path.read_bytes()
    values, lines = list(VALUE.finditer(data)), data.splitlines(keepends=True)
    if not lines:
        return become_something_else(path, random)
    what = random.choice(("value", "value", "value", "twice", "line", "lines", "not UTF-8"))
    if what == "value" and values:
        match = random.choice(values)
        word = random.choice(RAW)
        path.write_bytes(data[: match.start()] + word.encode() + data[match.end() :])
        return f"{match[0][:40]!r} at {match.start()} replaced by {word[:20]!r}"
    where = random.randrange(len(lines))
    if what == "twice":
        lines.insert(random.randrange(len(lines)), lines[where])
    elif what == "line":
        del lines[where]
    elif what == "lines":
        random.shuffle(lines)
    else:
        lines[where] = b"\xff\xfe" + lines[where]
    path.write_bytes(b"".join(lines))
    return f"line {where}: {what}"


def mutate_values(values: Any, random: Random) -> str:
    """Replace, remove or add something somewhere in nested lists and dictionaries."""
    where, node = [], values
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return "nothing to change"
        key = random.choice(keys)
        where.append(str(key)[:40])
        if isinstance(node[key], dict | list) and node[key] and random.random() < 0.75:
            node = node[key]
            continue
        break
    what = random.choice(("replaced", "replaced", "replaced", "removed", "added"))
    odd = random.choice(ODD)
    if what == "replaced":
        node[key] = odd
    elif what == "removed":
        del node[key]
    elif isinstance(node, dict):
        node[f"{key}_more"] = odd
    else:
        node.append(odd)
    return f"{'/'.join(where)} {what}, {str(odd)[:40]!r}"


def mutate_json(path: Path, random: Random) -> str:
    values = json.loads(path.read_text())
    said = mutate_values(values, random)
    path.write_text(json.dumps(values))
    return said


def mutate_safetensors(path: Path, random: Random) -> str:
    """Another header, of which the length fits."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    values = json.loads(data[8:end])
    said = mutate_values(values, random)
    header = json.dumps(values).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    return said


def mutate_checkpoint(path: Path, random: Random) -> str:
    """Other values, or another tensor, in a file that torch itself has written."""
    state = torch.load(path, weights_only=True)
    if random.random() < 0.7:
        said = mutate_values(state, random)
    else:
        part = state["agent"]
        name = random.choice(list(part))
        kinds = {
            "zero strides": lambda t: torch.zeros(1).as_strided((10**5, 10**5), (0, 0)),
            "integers": lambda t: t.long(),
            "complex": lambda t: torch.zeros(t.shape, dtype=torch.complex64),
            "half": lambda t: t.half(),
            "flat": lambda t: t.flatten(),
            "empty": lambda t: t[:0],
            "meta": lambda t: t.to("meta"),
            "sparse": lambda t: t.to_sparse(),
            "nan": lambda t: torch.full_like(t, float("nan")),
            "infinite": lambda t: torch.full_like(t, float("inf")),
        }
        kind = random.choice(list(kinds))
        part[name] = kinds[kind](part[name])
        said = f"{name} is {kind}"
    torch.save(state, path)
    return said


def mutate_npz(path: Path, random: Random) -> str:
    """Another header, other numbers or another set of arrays; the checksums fit."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(members))
    what = random.choice(("header", "header", "array", "array", "missing", "renamed", "raw"))
    if what == "header":
        content = bytearray(members[name])
        head = bytes(content[10 : 10 + int.from_bytes(content[8:10], "little")])
        values = list(re.finditer(rb"\d+|[<>|=][a-zA-Z]\d+|True|False|[(){},']", head))
        match = random.choice(values)
        word = random.choice((b"0", b"-1", b"1000000000000", b"9" * 30, b"(", b"'", b"<f2", b"|O8",
                              b"<M8", b"<U9", b"True", b"\n", b"#", b"[[", b"1,1"))  # fmt: skip
        head = (head[: match.start()] + word + head[match.end() :]).rstrip()
        pad = -(len(head) + 11) % 64
        head += b" " * pad + b"\n"
        begin = content[:8] + len(head).to_bytes(2, "little")
        members[name] = (
            bytes(begin) + head + bytes(content[10 + int.from_bytes(content[8:10], "little") :])
        )
        said = f"{match[0]!r} in the header of {name} replaced by {word!r}"
    elif what == "array":
        array = np.load(io.BytesIO(members[name]), allow_pickle=False)
        changes = {
            "nan": lambda a: np.full(a.shape, np.nan),
            "infinite": lambda a: np.full(a.shape, np.inf),
            "short": lambda a: a[: len(a) // 2] if a.ndim else a,
            "scalar": lambda a: np.float64(3),
            "transposed": lambda a: a.T,
            "flat": lambda a: a.ravel(),
            "empty": lambda a: a[:0],
            "text": lambda a: np.full(a.shape, "x"),
            "complex": lambda a: np.zeros(a.shape, complex),
            "whole": lambda a: np.zeros(a.shape, np.int64),
            "half": lambda a: np.zeros(a.shape, "<f2"),
            "huge": lambda a: np.full(a.shape, 1e300),
            "deep": lambda a: np.zeros((1,) * 20),
            "time": lambda a: np.zeros(a.shape, "M8[s]"),
            "big": lambda a: np.ones(a.shape, ">f4"),
            "record": lambda a: np.zeros(a.shape, [("x", "<f4")]),
            "truth": lambda a: np.ones(a.shape, bool),
        }
        kind = random.choice([k for k in changes if array.ndim or k not in ("empty", "short")])
        file = io.BytesIO()
        np.save(file, changes[kind](array))
        members[name] = file.getvalue()
        said = f"{name} is {kind}"
    elif what == "missing":
        del members[name]
        said = f"{name} is missing"
    elif what == "renamed":
        other = random.choice(("../x.npy", "x", "\x1b[2J.npy", name.upper(), "é.npy", ".npy"))
        members[other] = members.pop(name)
        said = f"{name} is now {other!r}"
    else:
        content = bytearray(members[name])
        said = f"{name}: {random.choice(BYTES)(content, random)}"
        members[name] = bytes(content)
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA,
                            zipfile.ZIP_BZIP2))  # fmt: skip
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return said


def plain(tree: Any) -> Any:
    """Return a read checkpoint of the authors with arrays in place of stand-ins."""
    if isinstance(tree, flax_pickle.Array):
        return tree.value
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    return tree


def mutate_pickle(path: Path, random: Random) -> str:
    """Other values in the authors' tree, in any protocol."""
    tree = plain(flax_pickle.read(path))
    said = mutate_values(tree, random)
    path.write_bytes(pickle.dumps(tree, random.randrange(6)))
    return said


KINDS: dict[str, tuple[Mutation, ...]] = {
    ".npz": (mutate_bytes, mutate_npz, mutate_npz),
    ".npy": (mutate_bytes,),
    ".hdf5": (mutate_bytes,),
    ".parquet": (mutate_bytes,),
    ".pt": (mutate_bytes, mutate_checkpoint, mutate_checkpoint),
    ".pkl": (mutate_bytes, mutate_pickle),
    ".safetensors": (mutate_bytes, mutate_safetensors),
    ".json": (mutate_bytes, mutate_json, mutate_json, mutate_text),
    ".csv": (mutate_bytes, mutate_text, mutate_text),
    ".toml": (mutate_bytes, mutate_text, mutate_text),
    "": (mutate_bytes, mutate_text),
}
"""Mutations by a file's ending."""


def mutate(path: Path, random: Random) -> str:
    """Change a file; return in words what was done."""
    if random.random() < 0.06:
        return become_something_else(path, random)
    return random.choice(KINDS[path.suffix])(path, random)
