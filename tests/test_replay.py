"""The replay buffer equals one long dataset, for every run its own."""

import numpy as np
import pytest
import torch

from tests.helpers import draw
from trqam_fast.data.dataset import FIELDS, Dataset
from trqam_fast.data.replay import ReplayBuffer
from trqam_fast.randomness import Randomness

OFFLINE, ONLINE, RUNS = 23, 17, 2


def transitions(count, seed):
    arrays = {
        "observations": draw(count, 3, seed=seed),
        "actions": draw(count, 2, seed=seed + 1).clamp(-1, 1),
        "rewards": -draw(count, seed=seed + 2).abs(),
        "masks": (draw(count, seed=seed + 3) > -1).double(),
        "terminals": (draw(count, seed=seed + 4) > 1).double(),
        "next_observations": draw(count, 3, seed=seed + 5),
    }
    arrays["terminals"][-1] = 1.0
    return {name: value.float().numpy() for name, value in arrays.items()}


def filled(horizon, balanced=False):
    offline = transitions(OFFLINE, 1)
    online = [transitions(ONLINE, 100 * (run + 1)) for run in range(RUNS)]
    buffer = ReplayBuffer(
        Dataset.from_arrays(offline), RUNS, ONLINE + 5, horizon, balanced=balanced
    )
    for row in range(ONLINE):
        buffer.add({name: np.stack([data[name][row] for data in online]) for name in FIELDS})
    joined = [
        Dataset.from_arrays({n: np.concatenate([offline[n], data[n]]) for n in FIELDS})
        for data in online
    ]
    return buffer, joined


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_sequences_are_those_of_one_array(horizon):
    buffer, joined = filled(horizon)
    starts = torch.arange(OFFLINE + ONLINE - horizon + 1).expand(RUNS, -1)
    batch = buffer.gather(starts, horizon, 0.9)
    for run, dataset in enumerate(joined):
        expected = dataset.gather(starts[run : run + 1], horizon, 0.9)
        for ours, theirs in zip(batch, expected, strict=True):
            torch.testing.assert_close(ours[run], theirs[0], atol=1e-6, rtol=1e-6)


def test_all_transitions_are_equally_likely():
    buffer, joined = filled(2)
    randomness = Randomness((5, 6))
    batch = buffer.sample(randomness, 20_000, 2, 0.9)
    for run, dataset in enumerate(joined):
        every = dataset.gather(torch.arange(OFFLINE + ONLINE - 1)[None], 2, 0.9).observations[0]
        drawn = (batch.observations[run, :, None] == every).all(-1).float().mean(0)
        assert drawn.sum() == pytest.approx(1.0)
        assert drawn.min() > 0.8 / len(every) and drawn.max() < 1.2 / len(every)


def test_half_of_a_balanced_batch_is_online():
    buffer, joined = filled(3, balanced=True)
    randomness = Randomness((5, 6))
    batch = buffer.sample(randomness, 1001, 3, 0.9)
    for run, dataset in enumerate(joined):
        every = dataset.gather(torch.arange(OFFLINE + ONLINE - 2)[None], 3, 0.9).observations[0]
        same = (batch.observations[run, :, None] == every).all(-1)
        assert (same.sum(-1) == 1).all()
        start = same.float().argmax(-1)
        assert set(start[:500].tolist()) == set(range(OFFLINE - 2))
        assert set(start[500:].tolist()) == set(range(OFFLINE, OFFLINE + ONLINE - 2))


def test_batches_do_not_depend_on_the_other_runs():
    buffer, _ = filled(2)
    both = Randomness((5, 6))
    swapped = Randomness((9, 6))
    for ours, theirs in zip(
        buffer.sample(both, 16, 2, 0.9), buffer.sample(swapped, 16, 2, 0.9), strict=True
    ):
        assert torch.equal(ours[1], theirs[1])


def test_state_is_restored():
    buffer, _ = filled(3)
    other = ReplayBuffer(buffer.offline, RUNS, ONLINE, 3)
    other.load_state_dict(buffer.state_dict())
    starts = torch.arange(OFFLINE + ONLINE - 2).expand(RUNS, -1)
    for ours, theirs in zip(
        other.gather(starts, 3, 0.9), buffer.gather(starts, 3, 0.9), strict=True
    ):
        assert torch.equal(ours, theirs)
