"""The dual variable's step: what it and its controller refuse, before anything is computed."""

import math

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON
from trqam_fast.agents import DualController
from trqam_fast.kernels import dual_update

SETTINGS = {"eta": 0.1, "ema": 0.3, "clip": 2.0, "bracket": (0.01, 100.0)}
IMPOSSIBLE = [
    ({"budget": -1.0}, "budget is -1.0; use a positive number"),
    ({"budget": math.nan}, "budget is nan; use a positive number"),
    ({"eta": -0.1}, "eta is -0.1; use zero or more"),
    ({"ema": 5.0}, r"ema is 5.0; use a number in \[0, 1\]"),
    ({"clip": 0.0}, "clip is 0.0; use a positive number"),
    ({"bracket": (100.0, 0.01)}, r"bracket is \(100.0, 0.01\); use \(lower, upper\)"),
    ({"bracket": (-1.0, 1.0)}, r"bracket is \(-1.0, 1.0\); use \(lower, upper\)"),
    ({"bracket": (1.0,)}, r"bracket is \(1.0,\); use \(lower, upper\)"),
    ({"rule": "linear"}, "rule is 'linear'; use 'additive' or 'log'"),
]
TENSORS = [
    ({"budget": torch.ones(3)}, ValueError, r"budget has shape \[3\]; expected \[2\]"),
    ({"budget": torch.tensor(1)}, TypeError, "budget has dtype torch.int64"),
    ({"budget": torch.tensor(1.0, device="meta")}, ValueError, "budget is on meta, lam on cpu"),
    ({"active": torch.tensor([True, False])}, ValueError, r"active is \[2\] on cpu; expected \[\]"),
    ({"active": torch.tensor(1.0)}, TypeError, "active is torch.float32; pass a bool tensor"),
    ({"active": True}, TypeError, "active is a bool; pass a bool tensor"),
]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [*((change, ValueError, message) for change, message in IMPOSSIBLE), *TENSORS],
)
def test_bad_input(change, kind, message):
    """Nothing is written."""
    lam, kl_ema, path_kl = torch.ones(2), torch.zeros(2), torch.tensor([3.0, 0.1])
    arguments = {"budget": 0.5} | SETTINGS | change
    with pytest.raises(kind, match=f"dual_update: {message}"):
        dual_update(lam, kl_ema, path_kl, **arguments)
    assert lam.tolist() == [1.0, 1.0] and kl_ema.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *IMPOSSIBLE,
        ({"runs": 0}, "runs is 0; it must be at least 1"),
        ({"scale": 0.0}, "scale is 0.0; use a positive number"),
        ({"lam": -1.0}, "lam is -1.0; use a positive number"),
    ],
)
def test_a_controller_refuses_when_it_is_made(change, message):
    with pytest.raises(ValueError, match=f"DualController: {message}"):
        DualController(**({"runs": 2, "budget": 0.5} | change))


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_float64_budget_of_float32_runs(shape, backend):
    device = DEVICE if backend == "triton" else "cpu"
    lam, kl_ema, path_kl = torch.tensor([[1.0], [0.0], [3.0]], device=device)
    budget = torch.full(shape, 0.1, dtype=torch.float64, device=device)
    copies = dual_update(lam, kl_ema, path_kl, budget, **SETTINGS, backend=backend)
    for found, expected in ((lam, 1 + 0.1 * (0.06 - 0.1)), (kl_ema, 0.3 * 0.2)):
        torch.testing.assert_close(found.cpu(), torch.tensor([expected]), rtol=1e-6, atol=0)
    assert torch.equal(lam, copies[0]) and torch.equal(kl_ema, copies[1])


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
def test_every_run_may_have_a_budget_of_its_own(backend):
    device = DEVICE if backend == "triton" else "cpu"
    budgets = torch.tensor([1.0, 9.0, 5.0, 9.0], device=device)[::2]

    def after(budget, runs):
        lam, kl_ema = torch.ones(runs, device=device), torch.zeros(runs, device=device)
        path_kl = torch.full((runs,), 3.0, device=device)
        return torch.stack(
            dual_update(lam, kl_ema, path_kl, budget, **SETTINGS, backend=backend)
        ).cpu()

    together = after(budgets, 2)
    assert torch.equal(together, torch.cat([after(1.0, 1), after(5.0, 1)], dim=1))
    assert together[0, 0] != together[0, 1]
