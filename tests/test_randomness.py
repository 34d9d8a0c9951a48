"""Random numbers of several runs."""

import torch

from tests.helpers import assert_equal64
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


def test_streams_and_seeds_have_keys_of_their_own():
    keys = [make_randomness((0, 1), stream, "cpu").keys for stream in STREAMS]
    assert torch.cat(keys).unique().numel() == 2 * len(STREAMS)
