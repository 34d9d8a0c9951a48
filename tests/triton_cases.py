"""Fields, data and devices of the tests of the Triton kernels."""

import os

import pytest
import torch

from tests import helpers
from tests.helpers import assert_within_budget, mean_error, poisoned_memory
from trqam_fast.kernels import Philox

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

NEEDS_TRITON = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="needs a GPU or TRITON_INTERPRET=1",
    ),
]


def draw(*shape, **options):
    return helpers.draw(*shape, **options).to(DEVICE)


def cast(weights, dtype):
    return weights.map(lambda t: t.detach().to(DEVICE, dtype).requires_grad_())


def make_mlp(*arguments, dtype=torch.float64, **options):
    return cast(helpers.make_mlp(*arguments, **options), dtype)


def make_field(obs, dim, **options):
    return make_mlp(obs + dim + 1, dim, **options)


def counters(seeds, offset):
    return Philox(torch.tensor(seeds, device=DEVICE), torch.tensor(offset, device=DEVICE))


# Odd batches around the tiles' 32 and 64 rows; widths that fill blocks, that do not, and that
# differ; one to six layers; D = 1 and D beyond a block of 32.
FIELDS = {
    "one layer": dict(runs=1, batch=5, obs=3, dim=2, steps=3, hidden=(32,), layer_norm=False),
    "one row": dict(runs=3, batch=1, obs=2, dim=1, steps=2, hidden=(8,), layer_norm=True),
    "two tiles": dict(runs=1, batch=65, obs=6, dim=5, steps=3, hidden=(64, 64), layer_norm=False),
    "uneven": dict(runs=3, batch=33, obs=3, dim=2, steps=4, hidden=(16, 40, 24), layer_norm=True),
    "two blocks": dict(runs=1, batch=7, obs=40, dim=37, steps=2, hidden=(128, 96), layer_norm=True),
    "many outputs": dict(runs=1, batch=17, obs=2, dim=100, steps=2, hidden=(32,), layer_norm=True),
    "small": dict(runs=2, batch=3, obs=2, dim=2, steps=2, hidden=(8, 16), layer_norm=True),
    "six layers": dict(runs=2, batch=3, obs=1, dim=3, steps=2, hidden=(16,) * 6, layer_norm=False),
}
PRECISIONS = ["ieee", "tf32"]
"""The interpreter multiplies in float32 either way; the tiles differ."""


def make(runs, batch, obs, dim, steps, hidden, layer_norm):
    options = dict(runs=runs, hidden=hidden, layer_norm=layer_norm)
    fields = [make_field(obs, dim, seed=s, **options) for s in (1, 50)]
    data = [
        draw(runs, batch, obs, seed=2),
        draw(runs, batch, dim, seed=3),
        draw(runs, steps - 1, batch, dim, seed=4),
    ]
    ode = [draw(runs, 3, obs, seed=5), draw(runs, 3, dim, seed=6)]
    return fields, data, ode


def check(call, precision="ieee"):
    """Triton against the exact result, within the budget of plain PyTorch in float32.

    On a GPU TF32 operands have 10 bits, so there the mean error may be 2e-3.
    """
    with poisoned_memory():
        found = call("triton", torch.float32)
    plain, exact = call("reference", torch.float32), call("reference", torch.float64)
    if INTERPRETED or precision == "ieee":
        assert_within_budget(found, plain, exact)
    else:
        assert all(mean_error(ours, truth) < 2e-3 for ours, truth in zip(found, exact, strict=True))
