"""What an algorithm says of itself, for those who read its runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from trqam_fast.agents.base import Agent
from trqam_fast.agents.checks import check_named, form_of, mistake
from trqam_fast.agents.config import ByDomain, CloningConfig, lost_names, names_of
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


def check_declaration(kind: type[Agent]) -> None:
    """Raise `UsageError` unless an algorithm's class has what it must define and declare.

    What depends on a task's sizes, `Agent.stored_shapes` checks; what `loss` returns, `update`.
    """
    for name in ("network_shapes", "draws", "loss"):
        if inspect.getattr_static(kind, name) is vars(Agent)[name]:
            raise mistake(kind, f"it has no {name}", "define it")
    try:
        options = dict.fromkeys(("dtype", "device", "backend", "precision"))
        inspect.signature(kind).bind("config", "obs_dim", "act_dim", "seeds", **options)
    except TypeError as error:
        raise mistake(
            kind, f"its __init__ does not take what Agent's does ({error})",
            "write def __init__(self, *args, **options), and super().__init__(*args, **options) "
            "in it",
        ) from None  # fmt: skip
    label, config = getattr(kind, "label", None), kind.Config
    if not isinstance(label, str) or not label:
        raise mistake(kind, "it has no label", f'write label = "{kind.__name__}" in it')
    for name in ("metrics", "targets", "cloned"):
        found = getattr(kind, name)
        if not isinstance(found, tuple | list) or not all(isinstance(each, str) for each in found):
            raise mistake(kind, f"its {name} is {found!r}", 'give a tuple of names, ("a",) of one')
    if kind.colour is not None and not (
        isinstance(kind.colour, str) and COLOUR.fullmatch(kind.colour)
    ):
        raise mistake(kind, f"its colour is {kind.colour!r}", 'give one such as "#0072b2", or none')
    if kind.late not in (None, *kind.targets[-1:]):
        raise mistake(
            kind, f"its late is {kind.late!r}, not the last of its targets", "write late = None"
        )
    if not (isinstance(config, type) and issubclass(config, CloningConfig)):
        raise mistake(
            kind, "its Config does not inherit CloningConfig",
            "begin it with @dataclass(frozen=True) and class Config(CloningConfig)",
        )  # fmt: skip
    lost = lost_names(config)
    if lost:
        losing = next(iter(lost.values())).__name__
        raise mistake(
            kind, f"its Config would lose {', '.join(lost)} (no field of a dataclass)",
            f"write @dataclass(frozen=True) above class {losing}, and a type for each",
        )  # fmt: skip
    # What it inherits may be of a setting that its own Config leaves out.
    bases = [each for each in kind.__mro__ if issubclass(each, Agent) and hasattr(each, "Config")]
    known = dict.fromkeys(name for each in bases for name in names_of(each.Config))
    for attribute in ("first_updates", "published"):
        names = getattr(kind, attribute)
        check_named(kind, attribute, names, known, "setting of its Config")
    for name, values in kind.published.items():
        if not isinstance(values, ByDomain):
            raise mistake(
                kind, f"its published {name!r} is {form_of(values)}",
                "give ByDomain({}, Setting(value, source))",
            )  # fmt: skip
    if kind.targets and "tau" not in names_of(config):
        raise mistake(kind, "it has targets, and its Config no tau", "inherit CriticConfig too")


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
