"""Random streams of a run: each depends on the run's seed alone."""

from __future__ import annotations

import numpy as np
import torch

from trqam_fast.kernels import Backend
from trqam_fast.randomness import Randomness

STREAMS = {"pretrain": 1, "offline": 2, "online": 3, "acting": 4, "environment": 5}


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of one stream of a run's random numbers."""
    state = np.random.SeedSequence([seed, STREAMS[stream]]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def make_randomness(
    seeds: tuple[int, ...], stream: str, device: torch.device | str, backend: Backend = "auto"
) -> Randomness:
    """Return the random numbers of a stream; those of a seed depend on nothing else.

    Args:
        seeds: One for each run.
        stream: One of `STREAMS`.
        device: Where they are needed.
        backend: The agent's; only ``reference`` makes a difference.
    """
    keys = [stream_seed(seed, stream) for seed in seeds]
    return Randomness(keys, device, "reference" if backend == "reference" else "auto")
