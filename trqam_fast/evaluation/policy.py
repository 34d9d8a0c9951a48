"""Policy calls whose rows do not depend on the size of the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from trqam_fast.agents import Agent
from trqam_fast.agents.acting import act
from trqam_fast.evaluation.episodes import Request

# Matrix products pick their way of summing by the number of rows, so a row's last bits depend on
# it; every call has this many. The time of a call hardly falls below it (docs/evaluation.md).
ROWS = 16


def choose_chunks(agent: Agent, run: int, requests: Sequence[Request]) -> list[np.ndarray]:
    """Return the actions of the policy of one run, `[H, A]` for each request.

    Args:
        agent: The agent; its acting field is used.
        run: Index of the run in [0, S).
        requests: Observations and noise; a row's result depends on neither the others nor their
            number.
    """
    chunks: list[np.ndarray] = []
    for first in range(0, len(requests), ROWS):
        block = requests[first : first + ROWS]
        rows = np.minimum(np.arange(ROWS), len(block) - 1)
        observations = np.stack([request.observation for request in block])[rows]
        noise = np.stack([request.noise for request in block])[rows]
        seen, drawn = (
            torch.as_tensor(array, dtype=agent.dtype, device=agent.device).unsqueeze(0)
            for array in (observations, noise)
        )
        actions = act(agent, seen, drawn, run)
        numbers = actions[0, : len(block)].cpu().numpy()
        chunks.extend(numbers.reshape(len(block), -1, agent.act_dim))
    return chunks


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Let torch compute with one thread: faster beside workers, and the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
