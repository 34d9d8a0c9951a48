"""The plain npz: one array for each of `whole.SHAPES`."""

from __future__ import annotations

from pathlib import Path

from trqam_fast.damage import reading
from trqam_fast.data.npz import headers_of, read_arrays
from trqam_fast.data.readers import Arrays
from trqam_fast.data.readers.whole import SHAPES, check_numbers, check_present
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, open_file
from trqam_fast.text import printable

BROKEN = "is truncated, damaged or no npz file", "save it again"
"""What is said of a damaged file, and what helps."""


def read(place: str, keys: tuple[str, ...] = ()) -> tuple[Arrays, list[str]]:
    """Return the arrays of a file, and the names of those that nobody uses; see `readers.read`."""
    if keys:
        raise UsageError(f"{place} has no parts to choose; drop #{','.join(keys)}")
    path = expanded(Path(place))
    with reading(path, *BROKEN), open_file(path) as file:
        headers = headers_of(file)
    check_present(headers, place)
    for name in SHAPES:
        if name in headers:
            check_numbers(headers[name][1], name, place)
    unused = [printable(name) for name in headers if name not in SHAPES]
    notes = [f"{place} has arrays that are not used: {', '.join(unused)}"] if unused else []
    return read_arrays(path, *BROKEN, names=SHAPES), notes
