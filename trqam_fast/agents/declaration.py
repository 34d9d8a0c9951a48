"""What an algorithm says of itself, for those who read its runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from trqam_fast.agents.base import Agent
from trqam_fast.agents.config import names_of
from trqam_fast.text import printable

COLOUR = re.compile("#[0-9a-fA-F]{6}")


class Declaration(NamedTuple):
    """An algorithm's label, settings and metrics, as plain values.

    Attributes:
        label: Its name in tables and pictures.
        colour: Its colour in pictures; None takes one that is free.
        settings: Names of the hyperparameters that it uses.
        metrics: What it logs.
        fine_tunes: Whether it has stages after pretraining.
        budget: Whether it keeps its path KL to ``kl_budget``.
    """

    label: str
    colour: str | None = None
    settings: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    fine_tunes: bool = True
    budget: bool = False


def declare(kind: type[Agent]) -> Declaration:
    """Return what an algorithm's class declares."""
    return Declaration(
        kind.label, kind.colour, tuple(names_of(kind.Config)), kind.metrics, kind.fine_tunes,
        kind.controller is not None,
    )  # fmt: skip


def read_declaration(name: str, values: Mapping[str, Any]) -> Declaration:
    """Return the declaration in a run's algorithm.json; what is missing or odd has its default.

    Args:
        name: The algorithm's name, which is its label unless there is another.
        values: What the file holds.
    """

    def texts(key: str) -> tuple[str, ...]:
        found = values.get(key)
        return tuple(map(str, found)) if isinstance(found, list) else ()

    label, colour = values.get("label"), values.get("colour")
    return Declaration(
        printable(label if isinstance(label, str) and label else name),
        colour if isinstance(colour, str) and COLOUR.fullmatch(colour) else None,
        texts("settings"),
        texts("metrics"),
        values.get("fine_tunes") is not False,
        values.get("budget") is True,
    )
