"""The plain npz: one array for each of `whole.SHAPES`."""

from __future__ import annotations

from pathlib import Path

from trqam_fast.damage import reading
from trqam_fast.data.npz import headers_of, read_arrays
from trqam_fast.data.readers import Arrays, refuse_keys
from trqam_fast.data.readers.whole import SHAPES, check_arrays
from trqam_fast.files import expanded, open_file

BROKEN = "is truncated, damaged or no npz file", "save it again"
"""What is said of a damaged file, and what helps."""


def read(place: str, keys: tuple[str, ...] = ()) -> tuple[Arrays, list[str]]:
    """Return the arrays of a file, and the names of those that nobody uses; see `readers.read`."""
    refuse_keys(keys, place)
    path = expanded(Path(place))
    with reading(path, *BROKEN), open_file(path) as file:
        headers = headers_of(file)
    notes = check_arrays({name: dtype for name, (_, dtype) in headers.items()}, place)
    return read_arrays(path, *BROKEN, names=SHAPES), notes
