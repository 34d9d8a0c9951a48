"""In the place of JAX, for agents that are made of four numbers."""

from types import SimpleNamespace

__version__ = "0"


def devices():
    return [SimpleNamespace(platform="cpu", device_kind="none")]


def device_get(values):
    return values


def unflatten(structure, leaves):
    kind, config = structure
    return kind(config, *leaves)


tree_util = SimpleNamespace(
    tree_leaves=lambda agent: list(agent.leaves),
    tree_structure=lambda agent: (type(agent), agent.config),
    tree_unflatten=unflatten,
)
