"""Foreign, damaged and hostile pickles."""

import collections
import contextlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pickles import REAL, plain, write
from trqam_fast import convert, flax_pickle
from trqam_fast.errors import UsageError


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_forms(protocol, tmp_path):
    """Protocols, orders, byte orders, scalars and ordered dictionaries read as they were."""
    kept = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f8"),
        "int": np.arange(4, dtype=np.int64)[::2],
        "flags": np.array([True, False]),
        "scalar": np.float32(0.5),
        "empty": np.zeros((0, 3), np.float16),
        "zero_d": np.array(7, np.int32),
    }
    path = write(
        tmp_path / "a.pkl", collections.OrderedDict(kept, extra=[1, (2, "x"), None]), protocol
    )
    found = flax_pickle.read(path)
    assert found.pop("extra") == [1, (2, "x"), None]
    assert set(found) == set(kept)
    for name, value in kept.items():
        np.testing.assert_array_equal(found[name].value, value)
        assert found[name].value.dtype == value.dtype and found[name].value.shape == value.shape


def test_frozen_dict_and_old_numpy_names(tmp_path):
    data = REAL.read_bytes()
    old = b"numpy.core.multiarray"
    new = data.replace(b"\x8c\x16numpy._core.multiarray", bytes([0x8C, len(old)]) + old)
    assert new != data
    (tmp_path / "old.pkl").write_bytes(unframed(new))
    expected, found = plain(flax_pickle.read(REAL)), plain(flax_pickle.read(tmp_path / "old.pkl"))
    np.testing.assert_array_equal(found["agent"]["lam"], expected["agent"]["lam"])
    frozen = b"\x80\x04cflax.core.frozen_dict\nFrozenDict\n}\x8c\x01aK\x05s\x85R."
    (tmp_path / "frozen.pkl").write_bytes(frozen)
    assert flax_pickle.read(tmp_path / "frozen.pkl") == {"a": 5}


def unframed(data):
    """The pickle with its first frame's length corrected by what `data` has lost."""
    (length,) = struct.unpack("<Q", data[3:11])
    return data[:3] + struct.pack("<Q", length - 1) + data[11:]


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments, self.state)[: 2 if self.state is None else 3]


class WithState:
    def __setstate__(self, state):
        raise AssertionError("executed")

    def __getstate__(self):
        return {"a": 1}


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def names(module, attribute, end=b"."):
    return b"\x80\x04" + text(module) + text(attribute) + b"\x93" + end


REDUCED = [
    (Call(os.system, "touch executed"), "names posix.system"),
    (Call(eval, "open('executed', 'w')"), "names builtins.eval"),
    (Call(exec, "open('executed', 'w')"), "names builtins.exec"),
    (Call(getattr, "", "__class__"), "names builtins.getattr"),
    (Call(subprocess.check_call, ["touch", "executed"]), "names subprocess.check_call"),
    (Call(np.load, "x.npy"), "names numpy.load"),
    (Call(torch.load, "x.pt"), "names torch"),
    (Call(os.open, "executed", 64), "names posix.open"),
    (Path("x"), "names pathlib"),
    (WithState(), "names tests.test_flax_pickle.WithState"),
    (json.loads, "names json.loads"),
    ({1, 2}, "EMPTY_SET"),
    (1j, "names builtins.complex"),
    (np.array([object()], object), "numbers of type O8"),
    (np.array(["a"]), "numbers of type U1"),
    (np.zeros(2, [("a", "f4")]), "numbers of type V4"),
    (np.array(["2020"], "M8[D]"), "numbers of type M8"),
    (Call(np.dtype, "O"), "numbers of type O"),
    (Call(collections.OrderedDict, [(1, 2)]), "dictionary of something else"),
    ({(1, 2): 3}, "tuple as a key"),
]  # fmt: skip

RECONSTRUCT = names("numpy._core.multiarray", "_reconstruct", b"")
NDARRAY = names("numpy", "ndarray", b"")[2:]
EMPTY_ARRAY = RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R"
DTYPE = (
    names("numpy", "dtype", b"")[2:]
    + text("f4")
    + b"\x85R(K\x03"
    + text("<")
    + b"NNNK\x00K\x00K\x00tb"
)
SHAPE_OF_A_TERABYTE = b"\x8a\x06" + struct.pack("<q", 2**38)[:6] + b"\x85"

ASSEMBLED = {
    "classic": (b"cos\nsystem\n(S'touch executed'\ntR.", "names os.system"),
    "instance": (b"(S'touch executed'\nios\nsystem\n.", "STRING|INST"),
    "dotted attribute": (names("numpy", "core.os.system"), "names numpy.core.os.system"),
    "builtins through a module": (names("numpy", "__builtins__"), "names numpy.__builtins__"),
    "dunder": (names("numpy.dtype", "__reduce__"), "names numpy.dtype.__reduce__"),
    "module that is not text": (b"\x80\x04K\x01" + text("x") + b"\x93.", "not text"),
    "attribute from the memo": (
        b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x94h\x00h\x01\x93.",
        "names os.system",
    ),
    "memo overwritten": (
        b"\x80\x04" + text("numpy") + b"q\x00" + text("os") + b"q\x00" + text("system")
        + b"q\x01h\x00h\x01\x93.", "names os.system"),
    "terminal escapes": (names("\x1b[2J", "x"), r"names \\x1b\[2J.x"),
    "call of a class": (names("numpy", "ndarray", b"K\x05\x85R."), "calls numpy.ndarray"),
    "call of a number": (b"\x80\x04K\x05)R.", "calls int"),
    "new object": (names("numpy", "ndarray", b"K\x05\x85\x81."), "NEWOBJ"),
    "extension registry": (b"\x80\x04\x82\x01.", "EXT1"),
    "persistent id": (b"Pexecuted\n.", "PERSID"),
    "state of a function": (
        RECONSTRUCT + b"}" + text("__defaults__") + b"N\x85sb.", "state of a Global",
    ),
    "state of a dictionary": (b"\x80\x04}}b.", "state of a dict"),
    "state twice": (
        EMPTY_ARRAY + b"\x94" + (b"(K\x01)" + DTYPE + b"\x89C\x04abcdtb") * 2 + b".", "unknown way",
    ),
    "items of an array": (EMPTY_ARRAY + b"K\x01K\x01s.", "adds items to a Array"),
    "array of a foreign class": (RECONSTRUCT + b"K\x05K\x00\x85C\x01b\x87R.", "unknown class"),
    "array of a list": (EMPTY_ARRAY + b"(K\x01K\x01\x85" + DTYPE + b"\x89]tb.", "array of objects"),
    "terabyte": (
        EMPTY_ARRAY + b"(K\x01" + SHAPE_OF_A_TERABYTE + DTYPE + b"\x89C\x04abcdtb.", "another size",
    ),
    "negative shape": (
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\x04abcdtb.", "another size",
    ),
    "jax array of another function": (
        names("jax._src.array", "_reconstruct_array", b"(") + names("numpy", "dtype", b"")[2:]
        + text("f4") + b"\x85)}tR.", "something else than a numpy array"),
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Reads bytes in an empty folder and returns the refusal; nothing may appear there."""
    monkeypatch.chdir(tmp_path)

    def refusal(data):
        Path("hostile.pkl").write_bytes(data)
        with pytest.raises(UsageError) as error:
            convert.main(["hostile.pkl", "out.pt"])
        assert os.listdir() == ["hostile.pkl"]
        message = str(error.value)
        assert "\n" not in message and len(message) < 400 and message.isprintable()
        return message

    return refusal


@pytest.mark.parametrize("case", REDUCED, ids=lambda case: case[1])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_hostile_objects_are_refused_by_name(case, protocol, hostile):
    value, expected = case
    message = hostile(pickle.dumps({"agent": value}, protocol))
    if protocol == 3:
        expected = expected.replace("EMPTY_SET", "names builtins.set")
    assert expected in message, message
    assert "nothing in it was executed" in message


@pytest.mark.parametrize("name", ASSEMBLED)
def test_hostile_programs_are_refused(name, hostile):
    data, expected = ASSEMBLED[name]
    message = hostile(data)
    assert re.search(expected, message), message
    assert "refused" in message


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63 + 1) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x04N" + b"r" + struct.pack("<I", 2**32 - 1) + b"0.",
        b"\x80\x04j" + struct.pack("<I", 2**32 - 1) + b".",
        b"",
        b"no pickle at all",
        b"\x80\x04.",
        b"\x80\x04((.",
        b"\x80\x04t.",
        b"\x80\x04}K\x01u.",
        b"\x80\x04N",
        b"\x80\x04I" + b"9" * 5000 + b"\n.",
    ],
)
def test_damaged_and_oversized_files(data, hostile):
    hostile(data)


def test_every_truncation_is_one_sentence(tmp_path):
    data = REAL.read_bytes()
    for length in [*range(0, 400), *range(400, len(data), 7919), len(data) - 1]:
        path = tmp_path / "short.pkl"
        path.write_bytes(data[:length])
        with pytest.raises(UsageError, match="damaged or no pickle") as error:
            flax_pickle.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_changed_bytes_never_escape_as_another_error(tmp_path):
    data, random = REAL.read_bytes()[:3000], np.random.default_rng(0)
    path = tmp_path / "changed.pkl"
    for _ in range(600):
        changed = bytearray(data)
        for position in random.integers(0, len(data), 3):
            changed[position] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UsageError):
            flax_pickle.read(path)


def test_endless_nesting_is_cheap(tmp_path):
    """Thirty levels of pairs of the level before would be a billion items if walked through."""
    pairs = b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(30))
    (tmp_path / "nested.pkl").write_bytes(b"\x80\x04]\x94" + pairs + b".")
    with pytest.raises(UsageError, match="has no 'agent'"):
        convert.main([str(tmp_path / "nested.pkl"), str(tmp_path / "out.pt")])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x04(" + b"}" * 5_000_000 + b"l.", "refused because it has more than 262,144 op"),
        (b"\x80\x04)" + b"\x85" * 200_000 + b"\x94}h\x00Ns.", "refused because it uses a tuple as"),
        (b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".", "has no 'agent'"),
    ],
)
def test_a_small_file_asks_for_little_memory(data, said, tmp_path):
    """Objects, the depth of a key and the index of the memo are the file's, memory is ours."""
    code = (
        "import resource, sys; from trqam_fast import convert\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: convert.main(sys.argv[1:])\n"
        "except Exception as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    (tmp_path / "a.pkl").write_bytes(data)
    argv = [sys.executable, "-c", code, tmp_path / "a.pkl", tmp_path / "out.pt"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    message, grown = done.stdout.splitlines()
    assert said in message and int(grown) < 100


def test_reading_imports_no_jax():
    code = (
        "import sys; from pathlib import Path; from trqam_fast import flax_pickle\n"
        f"flax_pickle.read(Path({str(REAL)!r})); print('jax' in sys.modules, 'flax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
