"""Damaged and foreign npz files."""

import errno
import io
import os
import resource
import zipfile

import numpy as np
import pytest

from tests.datasets import raw_arrays
from trqam_fast.damage import Damaged, Unreadable
from trqam_fast.data import __main__ as command
from trqam_fast.data.load import load_arrays
from trqam_fast.data.npz import (
    Layout,
    checksum,
    is_damaged,
    problems_of,
    read_arrays,
    read_headers,
    read_raw,
)
from trqam_fast.errors import UsageError


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return path


class TestBadFiles:
    def write(self, path, **changes):
        np.savez(path, **{k: v for k, v in {**raw_arrays(), **changes}.items() if v is not None})

    def load(self, path):
        return load_arrays(path, "pointmaze-medium-singletask-task1-v0")

    def test_truncated(self, archive):
        content = archive.read_bytes()
        for size in (0, 100, len(content) // 2, len(content) - 10):
            archive.write_bytes(content[:size])
            with pytest.raises(UsageError, match="truncated"):
                self.load(archive)

    def test_flipped_bit(self, archive):
        content = bytearray(archive.read_bytes())
        content[400] ^= 1  # among the observations
        archive.write_bytes(content)
        with pytest.raises(UsageError, match="Bad CRC-32 for file 'observations.npy'"):
            self.load(archive)

    def test_missing_key(self, archive):
        self.write(archive, qpos=None)
        with pytest.raises(UsageError, match=r"no array 'qpos' \[\?, \?\]"):
            self.load(archive)

    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("actions", (66, 3), r"\[\?, 2\]"),
            ("actions", (65, 2), r"\[\?, 2\]"),
            ("terminals", (66, 1), r"\[\?\]"),
        ],
    )
    def test_wrong_shape(self, archive, name, shape, expected):
        self.write(archive, **{name: np.zeros(shape, np.float32)})
        wrong = rf"{name} has shape \[{', '.join(map(str, shape))}\], expected {expected}"
        with pytest.raises(UsageError, match=wrong):
            self.load(archive)

    def test_pickled_object(self, archive):
        self.write(archive, actions=np.array([[{}, {}]] * 66, dtype=object))
        with pytest.raises(UsageError, match="damaged|truncated"):
            self.load(archive)

    def test_non_finite(self, archive):
        broken = raw_arrays()["observations"]
        broken[7, 1] = np.nan
        self.write(archive, observations=broken)
        with pytest.raises(UsageError, match="observations has non-finite values"):
            self.load(archive)

    def test_the_last_row_is_terminal(self, archive):
        terminals = raw_arrays()["terminals"]
        terminals[-1] = False
        self.write(archive, terminals=terminals)
        with pytest.raises(UsageError, match="last row is not terminal"):
            self.load(archive)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_every_byte(self, archive, save):
        """Whatever byte is changed, reading either works or is refused; no other error escapes."""
        arrays = raw_arrays(1, 3)
        del arrays["qvel"]
        save(archive, **arrays)
        content, layout = archive.read_bytes(), Layout(2, 2, ("qpos",))
        found = 0
        for position in range(len(content)):
            for flip in (0x01, 0xFF):
                changed = bytearray(content)
                changed[position] ^= flip
                archive.write_bytes(changed)
                found += bool(problems_of(archive, layout))
                is_damaged(archive)
                try:
                    read_raw(archive, layout)
                except UsageError:
                    continue
        assert len(content) < found < 2 * len(content)  # some bytes are not read by anybody


LAYOUT = Layout(2, 2, ("qpos",))


def npy(header, numbers=b""):
    """An npy file with this header, whose length fits."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + numbers


def claim(shape, descr="<f4"):
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()


def pack(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.filterwarnings("ignore")
def test_bits_of_every_header(archive):
    """A flipped bit is damage, or something that is not the header's: never another error."""
    arrays = raw_arrays(500)  # so large that a header is parsed before the checksum is known
    np.savez(archive, **arrays)
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as whole:
        starts = [info.header_offset for info in whole.infolist()]
    damaged, random = 0, np.random.default_rng(0)
    for start in starts:
        for position in range(start + 50, start + 170):
            for bit in random.choice(8, 2, replace=False):
                changed = bytearray(content)
                changed[position] ^= 1 << int(bit)
                archive.write_bytes(changed)
                damaged += is_damaged(archive)
    assert damaged > 800  # of 1200; the rest lies in the padding of the headers and behind them


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }x = (\n",  # TokenError
        b" {'descr': '<f4'}\n  x\n",  # IndentationError
        b"(" * 9000, b"-" * 9000, b"[" * 9000 + b"]" * 9000, b"{" * 65000,
        claim("(-1, -6)"), claim("(1000000000000, 2)"), claim(f"({'9' * 4000},)"),
        claim(f"({'9' * 4301},)"), claim("(True, 6)"), claim("(3,)", "|V0"),
        claim("()", "<f4" * 99), b"None\n", b"\xff\xfe\n", b"",
    ],
)  # fmt: skip
def test_crafted_headers(archive, header, capsys):
    whole = {name: save(array) for name, array in raw_arrays(1, 3).items()}
    pack(archive, **whole | {"observations": npy(header, bytes(24))})
    for _ in range(2):
        (problem, *_) = problems_of(archive, LAYOUT)
        assert problem.isprintable() and len(problem) < 500
        with pytest.raises(UsageError):
            read_raw(archive, LAYOUT)
    for words in (["list"], ["verify", str(archive)]):
        command.main([*words, "--dataset-dir", str(archive.parent)])


def save(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_no_memory_for_what_is_only_claimed(archive):
    """10^12 rows in every array, and a directory that lies along."""
    shapes = {"observations": "2", "actions": "2", "terminals": "", "qpos": "2"}
    pack(archive, **{name: npy(claim(f"(1000000000000, {n})")) for name, n in shapes.items()})
    with pytest.raises(Damaged, match="claims an array of shape .1000000000000, 2. in 0 bytes"):
        read_raw(archive, LAYOUT)
    content = bytearray(npy(claim("(1000000000, 2)")))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(archive, "w", method) as packed:
            packed.writestr("observations.npy", bytes(content))
            info = packed.infolist()[0]
            info.file_size = len(content) + 8 * 10**9
            if method == zipfile.ZIP_STORED:
                info.compress_size = info.file_size
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, hard))
        try:
            with pytest.raises(Damaged, match="packed as numpy packs nothing"):
                read_arrays(archive, "is no archive", "give another")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_not_damaged(archive, kind, refused, capsys):
    with refused(archive, kind):
        for action in (
            lambda: is_damaged(archive), lambda: read_raw(archive, LAYOUT),
            lambda: problems_of(archive, LAYOUT), lambda: checksum(archive),
            lambda: read_arrays(archive, "is no archive", "delete it"),
        ):  # fmt: skip
            with pytest.raises(Unreadable, match="navigate-v0.npz cannot be read") as error:
                action()
            assert "delete" not in str(error.value)
        argv = ["verify", str(archive), str(archive), "--dataset-dir", str(archive.parent)]
        assert command.main(argv) == 1
        assert capsys.readouterr().out.count("cannot be read") == 2


def test_lack_of_memory_is_not_damage(archive, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(Unreadable, match="too little memory.; it may be whole"):
        read_raw(archive, LAYOUT)


def test_a_pipe_in_the_place_of_an_archive(archive):
    archive.unlink()
    os.mkfifo(archive)
    with pytest.raises(Unreadable, match="no regular file"):
        read_raw(archive, LAYOUT)


def test_names_of_members_reach_no_terminal(archive):
    evil = "a\x1b[2J\nwrote /etc/x"
    np.savez(archive, **raw_arrays(), **{evil: np.array([np.nan])})
    problems = problems_of(archive, LAYOUT)
    assert len(problems) == 1 and problems[0].isprintable()
    pack(archive, **{evil: b"nothing"})
    with pytest.raises(Damaged) as error:
        read_headers(archive)
    assert str(error.value).isprintable()


def test_a_checksum_is_that_of_the_arrays(archive, tmp_path):
    other = tmp_path / "other.npz"
    np.savez_compressed(other, **raw_arrays())
    assert checksum(other) == checksum(archive)
    np.savez(other, **raw_arrays(seed=1))
    assert checksum(other) != checksum(archive)
