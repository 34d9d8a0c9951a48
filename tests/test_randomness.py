"""Random numbers of several runs."""

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON, assert_equal64
from trqam_fast.randomness import Randomness
from trqam_fast.training.seeding import STREAMS, make_randomness


def numbers(randomness, dtype=torch.float64):
    return randomness.draw(normals=7, uniforms=5, integers=3, high=10, dtype=dtype)


def test_a_run_has_its_own_numbers():
    together, alone = Randomness([3, 4]), Randomness([4])
    for _ in range(3):
        for both, one in zip(numbers(together), numbers(alone), strict=True):
            assert torch.equal(both[1:], one) and not torch.equal(both[:1], one)


def test_every_call_draws_anew_and_any_can_be_gone_back_to():
    randomness = Randomness([3])
    first, second = numbers(randomness), numbers(randomness)
    assert randomness.position() == 2
    randomness.seek(1)
    again = numbers(randomness)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(b, c) and not torch.equal(a, b)


def test_backends_agree():
    """Uniforms and integers bit for bit, normals to a few units in the last place."""
    ours, theirs = (numbers(Randomness([3, 4], backend=name)) for name in ("auto", "reference"))
    assert torch.equal(ours.uniforms, theirs.uniforms)
    assert torch.equal(ours.integers, theirs.integers)
    assert_equal64([ours.normals], [theirs.normals])


@pytest.mark.parametrize(
    "backend", ["reference", "cpp", pytest.param("triton", marks=NEEDS_TRITON)]
)
def test_two_calls_at_once_draw_what_they_would_apart(backend):
    """And count as two; no programs for no numbers count too."""
    device, dtype = DEVICE if backend == "triton" else "cpu", torch.float32
    apart, together = (Randomness([3, 4], device, backend) for _ in range(2))
    for normals, uniforms, integers in ((700, 5, 3), (0, 0, 9), (1, 0, 0), (0, 0, 0)):
        first = apart.draw(integers=integers, high=10, dtype=dtype).integers
        second = apart.draw(normals=normals, uniforms=uniforms, dtype=dtype)
        found = together.draw_two(
            integers=integers, high=10, normals=normals, uniforms=uniforms, dtype=dtype
        )
        assert all(map(torch.equal, found, (*second[:2], first)))
        assert apart.position() == together.position()
        assert int(together.ended) == 0


def test_streams_and_seeds_have_keys_of_their_own():
    keys = [make_randomness((0, 1), stream, "cpu").keys for stream in STREAMS]
    assert torch.cat(keys).unique().numel() == 2 * len(STREAMS)
