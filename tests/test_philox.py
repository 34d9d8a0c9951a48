"""The counter-based noise against published vectors and against its distribution."""

import pytest
import torch

from tests.helpers import cast, draw, make_field
from trqam_fast.kernels import Philox, philox_normal, sde_rollout
from trqam_fast.kernels.philox.reference import philox

# Known answers of Philox 4x32-10 from the Random123 distribution: counters, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def counters(seeds=(0,), offset=0):
    return Philox(torch.tensor(seeds), torch.tensor(offset))


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter, key, expected):
    seed = key[0] | key[1] << 32
    seed -= 2**64 if seed >= 2**63 else 0
    found = philox(torch.tensor(seed), tuple(torch.tensor(c) for c in counter))
    assert tuple(int(value) for value in found) == expected


def kolmogorov_smirnov(values):
    """Largest distance between the empirical and the standard normal distribution, times sqrt n."""
    values = values.flatten().double().sort().values
    exact = torch.special.ndtr(values)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = torch.maximum((exact - steps[:-1]).max(), (steps[1:] - exact).max())
    return float(distance) * len(values) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_is_standard_normal(seed):
    """1.63 is the 1 % point of Kolmogorov's distribution; the seeds are fixed."""
    values = philox_normal(counters((seed,), 7), (9, 500, 25), torch.float64)
    assert kolmogorov_smirnov(values) < 1.63
    flat = values.flatten()
    for lag in (1, 25, 500 * 25):
        correlation = (flat[:-lag] * flat[lag:]).mean()
        assert abs(float(correlation)) < 4 / len(flat) ** 0.5
    assert kolmogorov_smirnov(values * 1.02) > 1.63, "the test would notice two per cent"


def test_runs_steps_and_offsets_differ_and_repeat():
    a = philox_normal(counters((3, 4), 5), (4, 6, 2))
    assert torch.equal(a, philox_normal(counters((3, 4), 5), (4, 6, 2)))
    assert torch.equal(a[1:], philox_normal(counters((4,), 5), (4, 6, 2)))
    assert torch.equal(a[:, :, :3], philox_normal(counters((3, 4), 5), (4, 3, 2)))
    for other in (a.flip(0), a.flip(1), philox_normal(counters((3, 4), 6), (4, 6, 2))):
        assert not torch.isclose(a, other).any()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_rollout_draws_the_same_numbers(backend):
    fields = [cast(make_field(3, 2, runs=2, seed=s), torch.float64) for s in (1, 50)]
    s, x = draw(2, 7, 3), draw(2, 7, 2, seed=1)
    noise = counters((8, 9), 3)
    drawn = sde_rollout(*fields, s, x, noise, flow_steps=4, backend=backend)
    eps = philox_normal(noise, (3, 7, 2), torch.float64)
    given = sde_rollout(*fields, s, x, eps, backend=backend)
    assert torch.equal(drawn.trajectory, given.trajectory)


def test_bad_counters():
    fields = [make_field(3, 2, seed=s) for s in (1, 50)]
    s, x = draw(1, 7, 3), draw(1, 7, 2, seed=1)
    with pytest.raises(ValueError, match="flow_steps is None; Philox noise needs K"):
        sde_rollout(*fields, s, x, counters())
    with pytest.raises(ValueError, match=r"noise.seed is torch.int64 \[2\].*expected int64 \[1\]"):
        sde_rollout(*fields, s, x, counters((1, 2)), flow_steps=3)
    with pytest.raises(ValueError, match="noise.offset is torch.float32"):
        bad = Philox(torch.tensor([1]), torch.tensor(1.0))
        sde_rollout(*fields, s, x, bad, flow_steps=3)
    with pytest.raises(ValueError, match="flow_steps is 5, but noise has 2 steps; drop one"):
        sde_rollout(*fields, s, x, draw(1, 2, 7, 2), flow_steps=5)
