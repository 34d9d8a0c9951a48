"""Small agents and batches for the tests of agents."""

import torch

from tests.helpers import draw
from trqam_fast.agents import TRQAMAgent
from trqam_fast.agents.config import select
from trqam_fast.data.batch import Batch
from trqam_fast.randomness import Randomness

OBS, ACT = 3, 2
SMALL = dict(
    batch_size=16,
    actor_hidden_dims=(16, 16),
    value_hidden_dims=(16, 12),
    num_qs=3,
    horizon_length=2,
    action_chunking=True,
    flow_steps=4,
    lr=1e-3,
)


def make_batch(seed, runs=1, config=None, dtype=torch.float64):
    b, h = config.batch_size, config.horizon_length
    return Batch(
        draw(runs, b, OBS, seed=seed, dtype=dtype),
        draw(runs, b, h, ACT, seed=seed + 1, dtype=dtype).clamp(-1, 1),
        -draw(runs, b, seed=seed + 2, dtype=dtype).abs(),
        (draw(runs, b, seed=seed + 3, dtype=dtype) > -1).to(dtype),
        (draw(runs, b, seed=seed + 4, dtype=dtype) > -1).to(dtype),
        draw(runs, b, OBS, seed=seed + 5, dtype=dtype),
    )


def train(agent, seeds, updates, batches=None):
    randomness = Randomness([100 + seed for seed in seeds])
    for u in range(updates):
        rows = [make_batch(1000 * seed + 10 * u, config=agent.config) for seed in seeds]
        batch = Batch(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
        if batches is not None:
            batch = batches(u, batch)
        terms = agent.update(batch, agent.draw_noise(randomness))
    return terms


def make(config, seeds, kind=TRQAMAgent, **options):
    """An agent with those values of a configuration that it has, and `options` of its own."""
    own = {name: options.pop(name) for name in list(options) if hasattr(kind.Config, name)}
    config = kind.Config(**select(kind.Config, vars(config)) | own)
    return kind(config, OBS, ACT, list(seeds), **({"dtype": torch.float64} | options))
