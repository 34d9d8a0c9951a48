"""What an agent that is thrown away tells of an algorithm of one's own, before it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trqam_fast.agents.acting import asked
from trqam_fast.agents.base import BY_FLOW, Agent, Noise, inherits
from trqam_fast.agents.checks import DrawnNoise, form_of, mistake, name_of, unsaved
from trqam_fast.data.batch import Batch

Drawn = tuple[Batch, Noise]
"""What one update is given."""


def try_out(
    agent: Agent,
    make: Callable[[], Agent],
    draw: Callable[[], Drawn],
    update: Callable[[], object],
) -> list[str]:
    """Let an algorithm act and update, and save and restore its state.

    Args:
        agent: Of the algorithm; it is changed.
        make: Builds another one with the same weights.
        draw: Draws a batch and noise of all runs.
        update: Does one update of `agent`.

    Returns:
        Sentences on what may be meant, but loses something.

    Raises:
        UsageError: losses, metrics, draws, actions or state are not what they must be, or runs are
            not independent.
    """
    name, drawn = name_of(type(agent)), draw()
    check_rows(agent)
    check_actions(agent, drawn[0].observations[:, :2].contiguous())
    notes = compare_updates(type(agent), make, drawn, draw())
    field = acting_field(agent)
    before = {} if field is None else {field: agent.online.span(field).clone()}
    notes += [
        f"an update of {name} changes self.{lost}, which state() does not return, so a resumed run "
        "begins with what __init__ gives it; return it there if updates or actions read it"
        for lost in unsaved(agent, update)
    ]
    notes += [
        f"the first updates of {name} leave {field}, by which it acts, as it is; add a loss that "
        "it is in, or name what acts in acting_field"
        for field, weights in before.items()
        if torch.equal(agent.online.span(field), weights)
    ]
    check_restored(agent, make())
    return notes


def check_rows(agent: Agent) -> None:
    """Raise `UsageError` unless its state is tensors with a row for each run."""
    for name, tensor in agent.state().items():
        if not isinstance(tensor, Tensor) or tensor.shape[:1] != (agent.runs,):
            raise mistake(
                type(agent), f"its state {name!r} is {form_of(tensor)}",
                f"give a tensor [{agent.runs}, ...], a row for each run",
            )  # fmt: skip


def check_restored(agent: Agent, other: Agent) -> None:
    """Raise `UsageError` unless another agent takes over all that is saved of one."""
    kind, saved = type(agent), agent.state_dict()
    try:
        other.load_state_dict(saved)
    except (KeyError, ValueError) as error:
        raise mistake(
            kind, f"its state cannot be restored ({error})", "return tensors of floats in state()"
        ) from error
    for name, found in other.state_dict().items():
        if not same(found, saved[name]):
            raise mistake(
                kind, f"its state {name!r} is not restored when a run continues",
                "return the tensor itself in state(), no copy, as it is written to",
            )  # fmt: skip


def check_actions(agent: Agent, observations: Tensor) -> None:
    """Raise `UsageError` unless it acts, with all runs and with one, by as many numbers as D.

    Args:
        agent: The agent.
        observations: `[S, n, O]`.
    """
    noise = observations.new_ones(*observations.shape[:2], agent.candidates, agent.noise_dim)
    for run, runs in ((None, agent.runs), (0, 1)):
        found = asked(agent, observations[:runs], noise[:runs], run)
        expected = (runs, observations.shape[1], agent.dim)
        if not isinstance(found, Tensor) or found.shape != expected:
            raise mistake(
                type(agent), f"what it acts with is {form_of(found)}",
                f"give a tensor {list(expected)}, self.dim numbers for each observation",
            )  # fmt: skip


def compare_updates(
    kind: type[Agent], make: Callable[[], Agent], drawn: Drawn, other: Drawn
) -> list[str]:
    """Do the first update of one agent thrice, the last time with other data of all runs but one.

    Args:
        kind: The algorithm.
        make: Builds an agent of it, always with the same weights.
        drawn: What the update is given.
        other: The other data.

    Returns:
        What differs that must not.

    Raises:
        UsageError: runs are not independent. On a GPU, where sums may have no fixed order, that is
            returned.
    """

    def updated(others: Drawn) -> dict[str, Tensor]:
        agent = make()
        batch = Batch(*map(first_beside, drawn[0], others[0]))
        noise = {name: first_beside(rows, others[1][name]) for name, rows in drawn[1].items()}
        agent.update(batch, DrawnNoise(kind, noise))
        return agent.state_dict()

    first = updated(drawn)
    if not all(map(same, first.values(), updated(drawn).values())):
        return [
            f"two updates of {name_of(kind)} with the same batch and noise differ, so its runs are "
            "not reproducible; declare the random numbers that it draws in draws, and on a GPU sum "
            "in a fixed order"
        ]
    if all(same(a[0], b[0]) for a, b in zip(first.values(), updated(other).values(), strict=True)):
        return []
    problem = mistake(
        kind, "what an update makes of a run changes with the data of others",
        "reduce over a run's own axes, as mean((1, 2)) and mean(-1, keepdim=True) do, not over "
        "the first",
    )  # fmt: skip
    if drawn[0].observations.device.type == "cpu":
        raise problem
    return [str(problem)]


def first_beside(mine: Tensor, others: Tensor) -> Tensor:
    """Return the rows of the first run of one tensor and those of the others of another."""
    return torch.cat([mine[:1], others[1:]])


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of a state are equal."""
    return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def acting_field(agent: Agent) -> str | None:
    """Return the network whose flow acts; None where another does, or first updates may rest it."""
    kind, config = type(agent), agent.config
    begins = any(getattr(config, n, 0) != getattr(kind.Config, n, 0) for n in kind.first_updates)
    if begins or not inherits(kind, *BY_FLOW):
        return None
    return agent.acting_field.removeprefix("target_")
