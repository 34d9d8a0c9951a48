"""The plain npz: one array for each of `whole.SHAPES`."""

from __future__ import annotations

from pathlib import Path

from trqam_fast.data.npz import read_arrays
from trqam_fast.data.readers import Arrays
from trqam_fast.data.readers.whole import SHAPES
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded


def read(place: str, keys: tuple[str, ...] = ()) -> tuple[Arrays, list[str]]:
    """Return the arrays of a file; see `readers.read`."""
    if keys:
        raise UsageError(f"{place} has no parts to choose; drop #{','.join(keys)}")
    arrays = read_arrays(
        expanded(Path(place)), "is truncated, damaged or no npz file", "save it again", "biufOUSV"
    )
    return {name: array for name, array in arrays.items() if name in SHAPES}, []
