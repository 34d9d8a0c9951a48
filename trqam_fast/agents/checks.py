"""What an algorithm of one's own must be, in one sentence each where it is not."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trqam_fast.errors import UsageError
from trqam_fast.networks import MLPShape, ScalarShape

if TYPE_CHECKING:
    from trqam_fast.agents.base import Agent, Shapes


def mistake(kind: type[Agent], what: str, remedy: str) -> UsageError:
    """Return the error of an algorithm that is not as docs/your_own_algorithm.md says."""
    return UsageError(
        f"--algo is {name_of(kind)}, but {what}; {remedy} (docs/your_own_algorithm.md)"
    )


def name_of(kind: type[Agent]) -> str:
    """Return what ``--algo`` calls a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


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


class DrawnNoise(dict[str, Tensor]):
    """The noise of an update by name, which says of a name that was not drawn how to draw it."""

    def __init__(self, kind: type[Agent], noise: dict[str, Tensor]) -> None:
        super().__init__(noise)
        self.kind = kind

    def __missing__(self, name: str) -> Tensor:
        """Raise `UsageError`: there is no noise `name`."""
        raise mistake(
            self.kind, f"it reads the noise {name!r}, which it does not draw",
            "add it to what its draws returns",
        )  # fmt: skip


REBUILT = {"branches", "config", "online", "options", "policy_graphs", "steps", "target"}
"""Attributes of every agent that `state` need not hold, or holds under other names."""
LARGEST = 2**26
"""Bytes of what is compared; a data set that is kept for convenience is not."""


def unsaved(agent: Agent, update: Callable[[], object]) -> list[str]:
    """Return the attributes that an update changes and that no checkpoint holds.

    Numbers, tensors, arrays and generators are looked at, also those in lists, tuples, dicts,
    deques, modules and other objects. What the first update makes and later ones leave alone is not
    among them.

    Args:
        agent: Of an algorithm; it is updated twice.
        update: Does one update of it.
    """
    update()
    before = contents(agent)
    update()
    return [name for name, value in contents(agent).items() if before.get(name) != value]


def contents(agent: Agent) -> dict[str, str | bytes]:
    """Return the numbers that an agent keeps beside its state, as their bits, by where they are."""
    saved = {tensor.untyped_storage().data_ptr() for tensor in agent.state().values()}
    found: dict[str, str | bytes] = {}
    seen: dict[int, object] = {}  # kept, so that no other object takes the number
    left = deque((name, value) for name, value in vars(agent).items() if name not in REBUILT)
    while left:
        name, value = left.popleft()
        if id(value) in seen:
            continue
        try:
            if isinstance(value, str | bytes | type | ModuleType) or inspect.isroutine(value):
                continue
            if value is None or isinstance(value, int | float | complex | np.generic):
                found[name] = repr(value)
                continue
            seen[id(value)] = value
            if isinstance(value, torch.Generator):
                value = value.get_state()
            if isinstance(value, Tensor | np.ndarray):
                bits = bits_of(value, saved)
                if bits is not None:
                    found[name] = bits
                continue
            left.extend((f"{name}{place}", inner) for place, inner in parts_of(value))
        except ReferenceError:  # what a weak reference was of is gone
            continue
    return found


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, and where."""
    if isinstance(value, Mapping):
        for index, (key, inner) in enumerate(value.items()):
            yield f"[{key!r}]" if isinstance(key, str | int) else f"[key {index}]", inner
    elif isinstance(value, list | tuple | deque):
        for index, inner in enumerate(value):
            yield f"[{index}]", inner
    else:
        for key, inner in getattr(value, "__dict__", {}).items():
            yield f".{key}", inner


def bits_of(value: Tensor | np.ndarray, saved: set[int]) -> bytes | None:
    """Return the bits of a tensor or an array; None of what is saved, large or not all numbers."""
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype.kind in "biufc" and value.nbytes <= LARGEST else None
    if value.layout != torch.strided or value.is_meta or value.nbytes > LARGEST:
        return None
    if value.untyped_storage().data_ptr() in saved:
        return None
    plain = value.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def check_draws(kind: type[Agent], draws: Any) -> None:
    """Raise `UsageError` unless what `draws` of an algorithm returned is shapes by name."""
    remedy = "give shapes without the run axis by name, such as (self.config.batch_size, self.dim)"
    if not isinstance(draws, dict):
        raise mistake(kind, f"what its draws returned is {form_of(draws)}", remedy)
    for name, shape in draws.items():
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape):
            raise mistake(kind, f"its draw {name!r} is {shape!r}", remedy)


def check_named(
    kind: type[Agent], attribute: str, names: Iterable[str], known: Iterable[str], what: str
) -> None:
    """Raise `UsageError` unless all that an attribute of a class names is known."""
    for name in names:
        if name not in known:
            raise mistake(
                kind, f"its {attribute} names {name!r}, which is no {what}",
                f"name one of {', '.join(known)}",
            )  # fmt: skip


def check_networks(
    kind: type[Agent], shapes: Shapes, field: MLPShape, *, by_flow: bool = True
) -> None:
    """Raise `UsageError` unless all networks are architectures, and those that a class names exist.

    Args:
        kind: The algorithm.
        shapes: Architecture of its online networks by name.
        field: That of the field which behaviour cloning trains.
        by_flow: Whether it acts by the flow of its `acting_field`.
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
        check_named(kind, attribute, names, known, "network it has")
    for name in kind.cloned:
        if shapes[name] != field:
            raise mistake(
                kind, f"its network {name!r} cannot start from a cloned field",
                "give it field_shape(config, obs_dim, act_dim)",
            )  # fmt: skip
    acting_shape = shapes[kind.acting_field.removeprefix("target_")]
    if by_flow and not (isinstance(acting_shape, MLPShape) and same_ends(acting_shape, field)):
        raise mistake(
            kind, f"its acting_field {kind.acting_field!r} is no velocity field",
            "give it the inputs and outputs of field_shape(config, obs_dim, act_dim), or define "
            "propose",
        )  # fmt: skip


def same_ends(shape: MLPShape, other: MLPShape) -> bool:
    """Whether two architectures take and give the same, whatever lies between."""
    ends = ("in_features", "out_features", "ensemble", "heads")
    return all(getattr(shape, name) == getattr(other, name) for name in ends)


def check_candidates(kind: type[Agent], config: Any, shapes: Shapes) -> None:
    """Raise `UsageError` if nothing chooses among the candidates that a configuration asks for.

    Args:
        kind: An algorithm that chooses as `Agent` does.
        config: Its hyperparameters, or another algorithm's, whose field it clones.
        shapes: Its networks by name.
    """
    count = getattr(config, "best_of_n", 1)
    if count > 1 and hasattr(kind.Config, "best_of_n") and "critic" not in shapes:
        raise mistake(
            kind, f"it has no network 'critic' to choose among --best-of-n {count} candidates",
            "name its critics so, define choose, or use --best-of-n 1",
        )  # fmt: skip
