"""What counts as damage, and how files are read."""

import errno
import io
import os
import tokenize
import zipfile
import zlib

import numpy as np
import pytest
import torch

from trqam_fast.damage import Damaged, Unreadable, is_damage, reading
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, open_file, read_text
from trqam_fast.text import printable

SYSTEM = ("EACCES", "EIO", "EMFILE", "ESTALE", "ENOMEM", "ENOENT", "ETIMEDOUT")


def caught(action):
    with pytest.raises(Exception) as error:
        action()
    return error.value


@pytest.mark.parametrize("name", SYSTEM)
def test_a_refusal_of_the_system_is_no_damage(name, tmp_path):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(tmp_path / "a"))
    assert not is_damage(error)
    with pytest.raises(Unreadable, match=f"a cannot be read .{error.strerror}") as told:
        with reading(tmp_path, "is damaged", "delete it"):
            raise error
    assert "delete" not in str(told.value)
    assert told.value.status == (2 if name == "ENOENT" else 1)


def test_lack_of_memory_is_no_damage(tmp_path):
    for action in (lambda: np.empty(10**17), lambda: torch.empty(10**15)):
        error = caught(action)
        assert not is_damage(error)
        with pytest.raises(Unreadable, match="too little memory"), reading(tmp_path, "", ""):
            raise error


def test_damage_of_contents(tmp_path):
    """What zipfile, numpy and torch raise at it, errors without and with a number among it."""
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    header = io.BytesIO(b"\x93NUMPY\x01\x00\x04\x00{'a\n")
    errors = [
        caught(lambda: torch.load(tmp_path / "a.pt", weights_only=True)),
        caught(lambda: np.load(header)),
        caught(lambda: open_file(tmp_path / "a.pt").seek(-200, os.SEEK_END)),
        OSError("Invalid data stream"),
        zipfile.BadZipFile("no"), zlib.error("no"), tokenize.TokenError("no"), RecursionError("no"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "no"), IndexError("no"), OverflowError("no"),
    ]  # fmt: skip
    for error in errors:
        assert is_damage(error), repr(error)
        with pytest.raises(Damaged, match=r"is no run \(.+\); delete it") as told:
            with reading(tmp_path, "is no run", "delete it"):
                raise error
        assert "\n" not in str(told.value)


def test_other_errors_pass_through(tmp_path):
    """A mistake of this package is no damage, and what is already a sentence stays one."""
    for error in (NameError("x"), AssertionError("x"), UsageError("x"), KeyboardInterrupt()):
        assert not is_damage(error)
        with pytest.raises(type(error)) as told, reading(tmp_path, "", ""):
            raise error
        assert told.value is error


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="no regular file"):
            open_file(path)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)


def test_texts_are_bounded(tmp_path):
    path = tmp_path / "a"
    path.write_text("ä" * 50)
    assert read_text(path, 100) == "ä" * 50
    with pytest.raises(ValueError, match="larger than 99 bytes"):
        read_text(path, 99)
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match="larger than 67,108,864 bytes"):
        read_text(path)


def test_nobodys_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(tmp_path.__class__("~/a")) == tmp_path / "a"
    with pytest.raises(UsageError, match="~nobody-at-all/a names nobody's home"):
        expanded(tmp_path.__class__("~nobody-at-all/a"))


def test_foreign_text():
    assert printable("höst é 漢") == "höst é 漢"
    assert printable("a\x1b[2Jb\nc\r\x00\x9b\u202e\ud800") == (
        r"a\x1b[2Jb\nc\r\x00\x9b\u202e\ud800"
    )
    assert printable("x" * 200, 10) == "xxxxxxx..."
    assert len(printable("\x1b" * 500)) == 120
    assert printable(10**5000) == "an unusual int"
