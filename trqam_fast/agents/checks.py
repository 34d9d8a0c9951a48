"""What an algorithm of one's own must be, in one sentence each where it is not."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trqam_fast.errors import UsageError
from trqam_fast.networks import MLPShape, ScalarShape

if TYPE_CHECKING:
    from trqam_fast.agents.base import Agent, Shapes


def mistake(kind: type[Agent], what: str, remedy: str) -> UsageError:
    """Return the error of an algorithm that is not as docs/your_own_algorithm.md says."""
    return UsageError(
        f"--algo is {kind.__module__}:{kind.__qualname__}, but {what}; {remedy} "
        "(docs/your_own_algorithm.md)"
    )


def form_of(value: Any) -> str:
    """Return what kind of thing a value is that should be another."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(type(each).__name__ for each in value)})"
    return f"of type {type(value).__name__}"


def check_numbers(kind: type[Agent], what: str, values: dict[str, Any], runs: int) -> None:
    """Raise `UsageError` unless an algorithm's values are one number of each run."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.shape != (runs,):
            raise mistake(
                kind, f"its {what} {name!r} is {form_of(value)}",
                f"give a tensor [{runs}], one number for each run",
            )  # fmt: skip


REBUILT = {"branches", "config", "online", "options", "policy_graphs", "steps", "target"}
"""Attributes of every agent that `state` need not hold, or holds under other names."""


def unsaved(agent: Agent, update: Callable[[], object]) -> list[str]:
    """Return the attributes that an update changes and that no checkpoint holds.

    Tensors and numbers are looked at, also those in lists, tuples, dicts and plain objects. What
    the first update makes and later ones leave alone is not among them.

    Args:
        agent: Of an algorithm; it is updated twice.
        update: Does one update of it.
    """
    saved = {tensor.untyped_storage().data_ptr() for tensor in agent.state().values()}
    update()
    before = contents(agent, saved)
    update()
    after = contents(agent, saved)
    return [name for name in after if not same(before.get(name), after[name])]


def contents(agent: Agent, saved: set[int]) -> dict[str, Tensor | float | None]:
    """Return copies of the tensors and numbers that an agent keeps, by where they stand.

    Args:
        agent: The agent.
        saved: Where the tensors lie in memory that a checkpoint holds.
    """
    found: dict[str, Tensor | float | None] = {}
    seen: set[int] = set()
    left = [(name, value) for name, value in vars(agent).items() if name not in REBUILT]
    while left:
        name, value = left.pop(0)
        if isinstance(value, Tensor):
            if value.untyped_storage().data_ptr() not in saved:
                found[name] = value.detach().clone()
        elif value is None or isinstance(value, int | float):
            found[name] = value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                left += [(f"{name}[{key!r}]", inner) for key, inner in value.items()]
            elif isinstance(value, list | tuple):
                left += [(f"{name}[{index}]", inner) for index, inner in enumerate(value)]
            elif not isinstance(value, ModuleType) and not callable(value):
                inside = getattr(value, "__dict__", {})
                left += [(f"{name}.{key}", inner) for key, inner in inside.items()]
    return found


def same(first: Tensor | float | None, second: Tensor | float | None) -> bool:
    """Whether two values are the same bits."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first.nan_to_num(), second.nan_to_num())
    return type(first) is type(second) and not isinstance(first, Tensor) and first == second


def check_draws(kind: type[Agent], draws: Any) -> None:
    """Raise `UsageError` unless what `draws` of an algorithm returned is shapes by name."""
    remedy = "give shapes without the run axis by name, such as (self.config.batch_size, self.dim)"
    if not isinstance(draws, dict):
        raise mistake(kind, f"what its draws returned is {form_of(draws)}", remedy)
    for name, shape in draws.items():
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape):
            raise mistake(kind, f"its draw {name!r} is {shape!r}", remedy)


def check_networks(kind: type[Agent], shapes: Shapes, field: MLPShape) -> None:
    """Raise `UsageError` unless all networks are architectures, and those that a class names exist.

    Args:
        kind: The algorithm.
        shapes: Architecture of its online networks by name.
        field: That of the field which behaviour cloning trains.
    """
    for name, shape in shapes.items():
        if not isinstance(shape, MLPShape | ScalarShape):
            raise mistake(
                kind, f"its network {name!r} is {form_of(shape)}",
                "give its architecture, MLPShape(in_features, hidden_dims, out_features)",
            )  # fmt: skip
    acting = (*shapes, *(f"target_{name}" for name in kind.targets))
    for attribute, names, known in (
        ("targets", kind.targets, shapes),
        ("cloned", kind.cloned, shapes),
        ("acting_field", (kind.acting_field,), acting),
    ):
        for name in names:
            if name not in known:
                raise mistake(
                    kind, f"its {attribute} names {name!r}, which is no network it has",
                    f"name one of {', '.join(known)}",
                )  # fmt: skip
    for name in kind.cloned:
        if shapes[name] != field:
            raise mistake(
                kind, f"its network {name!r} cannot start from a cloned field",
                "give it field_shape(config, obs_dim, act_dim)",
            )  # fmt: skip
