"""Random numbers: published answers, distributions, independence, the same bits everywhere.

Seeds are fixed, so every test of a distribution passes or fails for good. Its limit says how often
it would fail for numbers that are what they should be: 1.63 is the 1 % point of Kolmogorov's
distribution, and a mean beyond 4.5 standard errors happens once in 150,000 times.
"""

import math
import sys

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON
from trqam_fast.kernels import BackendError, philox
from trqam_fast.kernels.dispatch import extension
from trqam_fast.kernels.philox.reference import philox4x32

SETS = [name for name in extension().instruction_sets() if name != "avx512_bf16"]
FLOATS = [torch.float32, torch.float64]
TRITON = pytest.param("triton", marks=NEEDS_TRITON)
BACKENDS = ["reference", "cpp", TRITON]
KS_LIMIT, STANDARD_ERRORS = 1.63, 4.5

# Known answers of Philox4x32-10 from the Random123 distribution: counters, key, result.
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


def draw(backend, seeds=(0,), offset=0, *, stream=0, **options):
    device = DEVICE if backend == "triton" else "cpu"
    seeds, offset = (torch.tensor(x, device=device) for x in (seeds, [offset]))
    return philox(seeds, offset, stream=stream, backend=backend, **options)


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers_of_the_reference(counter, key, expected):
    seed = key[0] | key[1] << 32
    seed -= 2**64 if seed >= 2**63 else 0
    found = philox4x32(torch.tensor(seed), tuple(torch.tensor(c) for c in counter))
    assert tuple(int(value) for value in found) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_normals_come_from_the_published_words(backend):
    """Block 0 of seed, offset and stream 0 is the first vector."""
    words = VECTORS[0][2]
    normals = draw(backend, normals=256).normals[0].tolist()
    for pair in (0, 1):
        u, turn = ((word + 0.5) / 2**32 for word in words[2 * pair : 2 * pair + 2])
        radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * (turn - 2**-33)
        assert normals[128 * pair] == pytest.approx(radius * math.cos(angle), rel=1e-6)
        assert normals[128 * pair + 64] == pytest.approx(radius * math.sin(angle), rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_first_normals_in_float64_use_64_bits_each(backend):
    words = VECTORS[0][2]
    low, high = (words[2 * pair] | words[2 * pair + 1] << 32 for pair in (0, 1))
    u, turn = ((low >> 11) + 0.5) / 2**53, (high >> 11) / 2**53
    radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * turn
    normals = draw(backend, normals=128, dtype=torch.float64).normals[0].tolist()
    assert normals[0] == pytest.approx(radius * math.cos(angle), rel=1e-14)
    assert normals[64] == pytest.approx(radius * math.sin(angle), rel=1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", [*SETS, TRITON])
def test_backends_agree(backend, dtype, monkeypatch):
    """Uniforms and integers to the bit, normals to 4 units in the last place."""
    count = 20_000 if backend == "triton" else 300_000
    if backend != "triton":
        monkeypatch.setattr(sys.modules["trqam_fast.kernels.cpp"], "instruction_set", backend)
        backend = "cpp"
    elif dtype == torch.float64:
        with pytest.raises(BackendError, match="compute in float32, not float64"):
            draw(backend, normals=1, dtype=dtype)
        return
    numbers = {"normals": count, "uniforms": 1001, "integers": 1003, "high": 2**31, "dtype": dtype}
    seeds, offset = (3, 2**62 + 5, -9), 2**40 + 7
    ours = draw(backend, seeds, offset, stream=2**30 - 1, **numbers)
    exact = draw("reference", seeds, offset, stream=2**30 - 1, **numbers)
    assert torch.equal(ours.uniforms.cpu(), exact.uniforms)
    assert torch.equal(ours.integers.cpu(), exact.integers)
    apart = (ours.normals.cpu() - exact.normals).abs() / exact.normals.abs()
    assert float(apart.max()) <= 4 * torch.finfo(dtype).eps


def kolmogorov_smirnov(values, distribution):
    """Largest distance from the distribution function, times sqrt n."""
    values = values.flatten().double().sort().values
    exact = distribution(values)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = torch.maximum((exact - steps[:-1]).max(), (steps[1:] - exact).max())
    return float(distance) * len(values) ** 0.5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [0, 1, 2**62, -5])
def test_normals_are_standard_normal(seed, dtype):
    values = draw("cpp", (seed,), 7, normals=200_000, dtype=dtype).normals[0].double()
    assert kolmogorov_smirnov(values, torch.special.ndtr) < KS_LIMIT
    assert kolmogorov_smirnov(values * 1.02, torch.special.ndtr) > KS_LIMIT, "two per cent show"
    root = len(values) ** 0.5
    # Moments of x^n: mean, and variance of its estimate times n.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        moved = float((values**power).mean() - mean)
        assert abs(moved) < STANDARD_ERRORS * variance**0.5 / root, power
    # Neighbours, both numbers of a pair, neighbouring groups.
    for lag in (1, 64, 128, 256):
        correlation = float((values[:-lag] * values[lag:]).mean())
        squares = float(((values[:-lag] ** 2 - 1) * (values[lag:] ** 2 - 1)).mean()) / 2
        assert max(abs(correlation), abs(squares)) < STANDARD_ERRORS / root, lag


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniforms_are_uniform(dtype):
    values = draw("cpp", (11,), 7, uniforms=200_000, dtype=dtype).uniforms[0].double()
    assert 0 <= float(values.min()) < 1e-4 and 1 - 1e-4 < float(values.max()) < 1
    assert kolmogorov_smirnov(values, lambda x: x) < KS_LIMIT
    assert kolmogorov_smirnov(values**1.02, lambda x: x) > KS_LIMIT
    centred = values - 0.5
    for lag in (1, 64, 128, 256):
        correlation = float((centred[:-lag] * centred[lag:]).mean()) * 12
        assert abs(correlation) < STANDARD_ERRORS / len(values) ** 0.5, lag


@pytest.mark.parametrize("high", [1, 7, 1000, 2**31])
def test_integers_are_uniform(high):
    values = draw("cpp", (11,), 7, integers=200_000, high=high).integers[0]
    assert int(values.min()) >= 0 and int(values.max()) < high
    cells = min(high, 100)
    counts = torch.bincount(values * cells // high, minlength=cells).double()
    # Cells of a bound that they do not divide hold one value more or less.
    edges = torch.arange(cells + 1) * high
    widths = (-(-edges // cells)).diff().double() / high
    chi_squared = float((counts / len(values) - widths).square().div(widths).sum() * len(values))
    freedom = cells - 1
    assert chi_squared <= freedom + STANDARD_ERRORS * math.sqrt(2 * freedom)


def test_float64_has_its_own_resolution():
    draws = draw("cpp", normals=10_000, uniforms=10_000, dtype=torch.float64)
    for values in draws[:2]:
        assert (values.float().double() != values).float().mean() > 0.99
        # Of the last three bits of the mantissa, all values occur.
        assert len((values.view(torch.int64) & 7).unique()) == 8
    # As many different numbers as there are: float32 would repeat some.
    assert len(draws.uniforms[0].unique()) == 10_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends_of_the_radius(backend):
    """Words next to 2^32 make u = 1, whose logarithm must not be positive; small ones are far."""
    # Found by search: the first words of block 0 are 0xFFFFFFF3 and 1.
    near = draw(backend, offset=50_893_511, normals=128).normals[0]
    assert near[0] == 0 and near[64] == 0 and near.isfinite().all()
    far = draw(backend, offset=84_170_650, normals=128).normals[0]
    expected = math.sqrt(-2 * math.log(1.5 / 2**32))
    assert float(torch.hypot(far[0], far[64])) == pytest.approx(expected, rel=1e-6)


def test_seeds_offsets_streams_and_kinds_are_independent():
    """No correlation, also of squares, and no number in common at a place."""
    n = 50_000
    base = dict(seeds=(3,), offset=5, stream=6)
    first = draw("cpp", **base, normals=n).normals[0]
    others = [
        draw("cpp", **(base | change), normals=n).normals[0]
        for change in (
            {"seeds": (4,)},
            {"seeds": (3 + 2**32,)},
            {"offset": 6},
            {"offset": 5 + 2**32},
            {"stream": 7},
        )
    ]
    uniforms = draw("cpp", **base, uniforms=n).uniforms[0].double()
    others.append(torch.special.ndtri(uniforms.clamp(1e-9)).float())
    for index, other in enumerate(others):
        assert not torch.isclose(first, other, rtol=1e-7, atol=0).any(), index
        for power in (1, 2):
            a, b = (x**power - (power - 1) for x in (first, other))
            correlation = float((a * b).mean()) / power
            assert abs(correlation) < STANDARD_ERRORS / n**0.5, (index, power)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_depends_on_neither_counts_nor_runs(backend):
    few = draw(backend, (8, 9), 3, normals=100, uniforms=7, integers=300, high=50)
    many = draw(backend, (9, 8, 7), 3, normals=600, uniforms=400, integers=301, high=50)
    for ours, theirs in zip(few, many, strict=True):
        assert torch.equal(ours[1], theirs[0, : ours.shape[1]])
        assert torch.equal(ours[0], theirs[1, : ours.shape[1]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_offset_is_read_where_it_lies(backend):
    device = DEVICE if backend == "triton" else "cpu"
    seeds, offset = torch.tensor([1], device=device), torch.tensor([2**32 - 1], device=device)
    first = philox(seeds, offset, stream=0, normals=9, backend=backend).normals
    offset.add_(1)
    second = philox(seeds, offset, stream=0, normals=9, backend=backend).normals
    assert not torch.isclose(first, second).any()
    assert torch.equal(second, draw(backend, (1,), 2**32, normals=9).normals)


def test_nothing_is_drawn_unless_it_is_asked_for():
    draws = draw("cpp", (1, 2))
    assert [tuple(x.shape) for x in draws] == [(2, 0)] * 3


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"seeds": torch.tensor([1.0])}, TypeError, "seeds is torch.float32; pass an int64 tensor"),
        ({"offset": 3}, TypeError, "offset is int; pass an int64 tensor"),
        ({"seeds": torch.tensor([[1]])}, ValueError, r"expected \[S\] and \[1\]"),
        ({"offset": torch.tensor(1)}, ValueError, r"offset \[\]; expected \[S\] and \[1\]"),
        ({"offset": torch.zeros(1, dtype=torch.int64, device="meta")}, ValueError, "on meta"),
        ({"dtype": torch.float16}, TypeError, "dtype is torch.float16"),
        ({"stream": 2**30}, ValueError, "stream is 1073741824"),
        ({"stream": -1}, ValueError, "stream is -1"),
        ({"high": 0}, ValueError, "high is 0"),
        ({"high": 2**31 + 1}, ValueError, "high is 2147483649"),
        ({"normals": -1}, ValueError, "normals=-1"),
        ({"uniforms": 2**31}, ValueError, "uniforms=2147483648"),
        ({"ended": 3}, TypeError, "ended is int; pass an int32 tensor"),
        ({"ended": torch.zeros(1)}, TypeError, "ended is torch.float32; pass an int32 tensor"),
        ({"ended": torch.zeros((), dtype=torch.int32)}, ValueError, r"ended has shape \[\] on cpu"),
        ({"ended": torch.zeros(1, dtype=torch.int32, device="meta")}, ValueError, "on meta"),
        ({"calls": 2}, ValueError, "calls is 2; use 1, or 2 if ended is given"),
        ({"backend": "triton"}, BackendError, "backend 'triton' is not available"),
    ],
)
def test_bad_input(change, kind, message):
    arguments = {"seeds": torch.tensor([1]), "offset": torch.tensor([0]), "stream": 0, "normals": 1}
    with pytest.raises(kind, match=message):
        philox(**(arguments | change))
