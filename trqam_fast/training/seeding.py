"""Random streams of a run: each depends on the run's seed alone."""

from __future__ import annotations

import numpy as np
import torch

STREAMS = {"pretrain": 1, "offline": 2, "online": 3, "acting": 4, "environment": 5}


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of one stream of a run's random numbers."""
    state = np.random.SeedSequence([seed, STREAMS[stream]]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def make_generators(
    seeds: tuple[int, ...], stream: str, device: torch.device | str
) -> list[torch.Generator]:
    """Return one generator for each seed; a stream's numbers depend on nothing else."""
    return [torch.Generator(device).manual_seed(stream_seed(seed, stream)) for seed in seeds]
