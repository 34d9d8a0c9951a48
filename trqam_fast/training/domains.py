"""Published settings of every OGBench domain, and where each value comes from."""

from __future__ import annotations

from typing import Any, NamedTuple

from trqam_fast.data.names import parse_task

README = "authors' README"
QAM = "QAM's authors"
HERE = "this project"

NAVIGATION = ("pointmaze", "antmaze", "humanoidmaze", "antsoccer")
PUBLISHED = {
    "antmaze-large", "antmaze-giant", "humanoidmaze-medium", "humanoidmaze-large", "cube-double",
    "cube-triple", "cube-quadruple", "scene", "puzzle-3x3", "puzzle-4x4",
}  # fmt: skip
WIDE = {"antmaze-giant", "cube-triple", "cube-quadruple", "puzzle-4x4"}
INV_TEMPS = {
    "puzzle-3x3": 3.0, "scene": 1.0, "cube-double": 1.0, "antmaze-large": 10.0,
    "humanoidmaze-medium": 3.0, "cube-triple": 3.0, "cube-quadruple": 1.0, "antmaze-giant": 3.0,
    "humanoidmaze-large": 3.0, "puzzle-4x4": 30.0,
}  # fmt: skip


class Setting(NamedTuple):
    """A hyperparameter's value and who published it."""

    value: Any
    source: str


def domain_of(env_name: str) -> str:
    """Return the domain of a single task: ``cube-double`` of ``cube-double-play-singletask-v0``."""
    return parse_task(env_name).env_id.partition("-singletask")[0]


def domain_settings(env_name: str) -> dict[str, Setting]:
    """Return the settings of a task's domain by flag name.

    Domains that the authors did not train on take the values of their kind: those of the other
    mazes, or of the other manipulation domains.
    """
    domain = domain_of(env_name)
    family = domain.partition("-")[0]
    source = README if domain in PUBLISHED else f"{HERE}, as in the published domains"
    navigation, humanoid = family in NAVIGATION, family == "humanoidmaze"
    sparse = family in ("scene", "puzzle")
    widths = (1024,) * 4 if domain in WIDE else (512,) * 4
    budget = {
        "cube-triple": Setting(0.5, "authors' example"),
        "puzzle-4x4": Setting(2.0, f"{HERE}; the authors report that it prefers a loose one"),
    }.get(domain, Setting(0.5, f"{HERE}; the authors report small ones as best nearly everywhere"))
    return {
        "actor_hidden_dims": Setting(widths, source),
        "value_hidden_dims": Setting(widths, source),
        "actor_layer_norm": Setting(domain in WIDE, source),
        "horizon_length": Setting(1 if navigation else 5, source),
        "action_chunking": Setting(not navigation, source),
        "discount": Setting(0.999 if humanoid else 0.995, source),
        "rho": Setting(0.0 if humanoid else 0.5, source),
        "sparse": Setting(True, QAM) if sparse else Setting(False, "authors' code"),
        "kl_budget": budget,
        "inv_temp": Setting(INV_TEMPS.get(domain, 1.0), QAM if domain in INV_TEMPS else HERE),
    }
