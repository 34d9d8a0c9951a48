"""Algorithms: one file and one line of the registry for each, S independent runs at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from trqam_fast.agents import critics
from trqam_fast.agents.base import (
    Agent,
    Losses,
    Metrics,
    Networks,
    Noise,
    Recorded,
    Shapes,
    Terms,
    field_shape,
)
from trqam_fast.agents.bc import BCAgent
from trqam_fast.agents.branches import MAIN
from trqam_fast.agents.config import (
    AdjointConfig,
    AnchorConfig,
    ByDomain,
    CloningConfig,
    CriticConfig,
    Setting,
    TrustRegionConfig,
)
from trqam_fast.agents.declaration import (
    Declaration,
    check_declaration,
    declare,
    read_declaration,
)
from trqam_fast.agents.dsrl import DSRLAgent, DSRLConfig
from trqam_fast.agents.dual import DualController
from trqam_fast.agents.fql import FQLAgent, FQLConfig
from trqam_fast.agents.qam import QAMAgent, QAMConfig
from trqam_fast.agents.qam_e import QAMEAgent, QAMEConfig
from trqam_fast.agents.sqam import SQAMAgent, SQAMConfig
from trqam_fast.agents.trqam import TRQAMAgent, TRQAMConfig
from trqam_fast.errors import UsageError
from trqam_fast.importing import import_own
from trqam_fast.networks import MLPShape, ScalarShape

ALGORITHMS: dict[str, type[Agent]] = {
    "bc": BCAgent,
    "fql": FQLAgent,
    "dsrl": DSRLAgent,
    "qam": QAMAgent,
    "qam-e": QAMEAgent,
    "trqam": TRQAMAgent,
    "sqam": SQAMAgent,
}
"""The algorithms of this package by the name that ``--algo`` takes, in the order of tables."""


def algorithm(name: str) -> type[Agent]:
    """Return the class of an algorithm.

    Args:
        name: One of `ALGORITHMS`, or ``PACKAGE.MODULE:CLASS`` for a subclass of `Agent` elsewhere,
            which is imported.

    Raises:
        UsageError: there is none of that name, it is no algorithm, or lacks what one declares.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    module, separator, attribute = name.partition(":")
    if not separator:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"--algo is {name!r}; choose one of {', '.join(ALGORITHMS)}, or name a class of your "
            f"own as PACKAGE.MODULE:CLASS{hint}"
        )
    kind = getattr(import_own("--algo", name), attribute, None)
    if kind is None:
        raise UsageError(
            f"--algo is {name!r}, but {module} has no {attribute}; name a class in it as "
            "PACKAGE.MODULE:CLASS"
        )
    if not (isinstance(kind, type) and issubclass(kind, Agent)):
        raise UsageError(f"--algo is {name!r}, which is no subclass of trqam_fast.agents.Agent")
    check_declaration(kind)
    return kind


def declaration(name: str, saved: Mapping[str, Any] | None = None) -> Declaration:
    """Return what the algorithm of a run declares, without importing anything for it.

    Args:
        name: What the run's configuration calls it.
        saved: What its run folder holds of it, for an algorithm that is not of this package.
    """
    if name in ALGORITHMS:
        return declare(ALGORITHMS[name])
    return read_declaration(name, saved or {})


__all__ = [
    "ALGORITHMS",
    "MAIN",
    "AdjointConfig",
    "Agent",
    "AnchorConfig",
    "BCAgent",
    "ByDomain",
    "CloningConfig",
    "CriticConfig",
    "DSRLAgent",
    "DSRLConfig",
    "Declaration",
    "DualController",
    "FQLAgent",
    "FQLConfig",
    "Losses",
    "MLPShape",
    "Metrics",
    "Networks",
    "Noise",
    "QAMAgent",
    "QAMConfig",
    "QAMEAgent",
    "QAMEConfig",
    "Recorded",
    "SQAMAgent",
    "SQAMConfig",
    "ScalarShape",
    "Setting",
    "Shapes",
    "TRQAMAgent",
    "TRQAMConfig",
    "Terms",
    "TrustRegionConfig",
    "algorithm",
    "critics",
    "declaration",
    "declare",
    "field_shape",
]
