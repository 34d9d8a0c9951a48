"""The published success rates, as their authors give them."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import NamedTuple

ALL = "all"
"""The column of the mean over all domains."""


class Rate(NamedTuple):
    """A published success rate in percent and its standard deviation over seeds, if given."""

    mean: float
    deviation: float | None


class Published(NamedTuple):
    """The published table.

    Attributes:
        source: What it says about itself, a line each.
        domains: In its order.
        rates: By method, then by domain or `ALL`.
    """

    source: list[str]
    domains: list[str]
    rates: dict[str, dict[str, Rate]]


def read_published() -> Published:
    """Return the table that is installed with the package."""
    text = (files(__package__) / "published_success.csv").read_text(encoding="utf-8")
    lines = text.splitlines()
    source = [line.lstrip("# ") for line in lines if line.startswith("#")]
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    rates = {
        row["method"]: {name: parse_rate(cell) for name, cell in row.items() if name != "method"}
        for row in rows
    }
    domains = [name for name in rows[0] if name not in ("method", ALL)]
    return Published(source, domains, rates)


def parse_rate(cell: str) -> Rate:
    """Read ``38±9`` or ``38``."""
    value, _, deviation = cell.partition("±")
    return Rate(float(value), float(deviation) if deviation else None)
