"""Published settings of every OGBench domain, and where each value comes from."""

from __future__ import annotations

from trqam_fast.agents import algorithm
from trqam_fast.agents.config import Setting
from trqam_fast.data.names import parse_task
from trqam_fast.data.tasks import find_task

README = "authors' README"
HERE = "this project"

NAVIGATION = ("pointmaze", "antmaze", "humanoidmaze", "antsoccer")
PUBLISHED = {
    "antmaze-large", "antmaze-giant", "humanoidmaze-medium", "humanoidmaze-large", "cube-double",
    "cube-triple", "cube-quadruple", "scene", "puzzle-3x3", "puzzle-4x4",
}  # fmt: skip
WIDE = {"antmaze-giant", "cube-triple", "cube-quadruple", "puzzle-4x4"}


def domain_of(env_name: str) -> str:
    """Return the domain of a single task: ``cube-double`` of ``cube-double-play-singletask-v0``."""
    return parse_task(env_name).env_id.partition("-singletask")[0]


def setting_domain(env_name: str) -> str:
    """Return the domain whose settings a task takes: its own, or of one's own task its name.

    Raises:
        UsageError: no such task.
    """
    own = find_task(env_name).dataset_name is None
    return env_name if own else domain_of(env_name)


def domain_settings(env_name: str, algo: str) -> dict[str, Setting]:
    """Return the settings of a task's domain, and of an algorithm there, by flag name.

    Domains that the authors did not train on take the values of their kind: those of the other
    mazes, or of the other manipulation domains.
    """
    domain = setting_domain(env_name)
    family = domain.partition("-")[0]
    source = README if domain in PUBLISHED else f"{HERE}, as in the published domains"
    navigation, humanoid = family in NAVIGATION, family == "humanoidmaze"
    rewards = "authors' code"
    if family in ("scene", "puzzle"):
        rewards += "; QAM's authors use sparse rewards here"
    widths = (1024,) * 4 if domain in WIDE else (512,) * 4
    return {
        "actor_hidden_dims": Setting(widths, source),
        "value_hidden_dims": Setting(widths, source),
        "actor_layer_norm": Setting(domain in WIDE, source),
        "horizon_length": Setting(1 if navigation else 5, source),
        "action_chunking": Setting(not navigation, source),
        "discount": Setting(0.999 if humanoid else 0.995, source),
        "rho": Setting(0.0 if humanoid else 0.5, source),
        "sparse": Setting(False, rewards),
    } | {
        name: entry.values.get(domain, entry.otherwise)
        for name, entry in algorithm(algo).published.items()
    }
