"""Memory of an update on the CPU, measured."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from trqam_fast.agents import Agent


def temporary_bytes(update: Callable[[], object]) -> int:
    """Return the most bytes of tensors that one call of `update` has alive at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        update()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def held_bytes(agent: Agent) -> int:
    """Return the bytes that an agent keeps between updates."""
    blocks = [agent.online, getattr(agent, "target", None)]
    owners = [agent, *(block for block in blocks if block is not None)]
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for owner in owners
        for tensor in vars(owner).values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(tensors.values())


def scratch_bytes() -> int:
    """Return the bytes of the compiled passes' scratch memory."""
    return sys.modules["trqam_fast.kernels.cpp"].scratch_bytes()
