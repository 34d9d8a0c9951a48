"""Noise schedules: their values, their tables, known answers of the losses on them."""

import dataclasses

import pytest
import torch

from tests.helpers import assert_equal64, draw
from trqam_fast.kernels import NoiseSchedule, adjoint_matching


def test_values():
    flow = NoiseSchedule.flow(4)
    assert flow.times == (0.0, 0.25, 0.5, 0.75) and flow.step_sizes == (0.25,) * 4
    assert flow.g_squared == (10.0, 4.0, 2.0, 1.0)
    bridge = NoiseSchedule.bridge(4)
    assert bridge.times == (0.25, 0.5, 0.75, 1.0) and bridge.step_sizes == (0.25,) * 4
    assert bridge.g_squared == (4.0, 2.0, 1.0, 0.4)


def test_equal_schedules_are_one_key():
    assert NoiseSchedule.flow(5) is NoiseSchedule.flow(5)
    copy = NoiseSchedule(*dataclasses.astuple(NoiseSchedule.flow(5)))
    assert {copy: 1}[NoiseSchedule.flow(5)] == 1 and copy != NoiseSchedule.bridge(5)


def test_table_is_made_once_for_a_type_and_rounded_once():
    schedule, cpu = NoiseSchedule.flow(10), torch.device("cpu")
    table = schedule.table(torch.float32, cpu)
    assert table is schedule.table(torch.float32, cpu)
    exact = torch.tensor([schedule.step_sizes, schedule.g_squared], dtype=torch.float64)
    assert torch.equal(table, exact.float())
    assert torch.equal(schedule.table(torch.float64, cpu), exact)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_path_kl_at_the_minimiser_over_a_bridge(backend):
    """At Delta_j = g_j^2 tau_j G / (2 lam), D lam^2 is 0.1792 E||G||^2 for ten states."""
    states, lam = 10, torch.tensor([0.5, 3.0], dtype=torch.float64)
    schedule = NoiseSchedule.bridge(states)
    gradient, base = draw(2, 1, 200, 6), draw(2, states, 200, 6, seed=1)
    tau, g_squared = (
        torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1)
        for x in (schedule.times, schedule.g_squared)
    )
    adjoint = -tau * gradient
    v = (base - g_squared / lam.view(2, 1, 1, 1) * adjoint / 2).requires_grad_()
    loss, kl = adjoint_matching(v, base, adjoint, lam, schedule=schedule, backend=backend)
    assert float(loss.detach().max()) < 1e-25
    assert float(torch.autograd.grad(loss.sum(), v)[0].abs().max()) < 1e-13
    size = gradient.square().sum(-1).mean((1, 2))
    factor = 0.5 * (0.1 * g_squared * tau.square()).sum()
    assert abs(float(factor) - 0.1792) < 5e-5
    assert_equal64([kl * lam.square()], [factor * size])


def test_bad_input():
    with pytest.raises(ValueError, match="2 times, 1 step sizes and 2 g_squared"):
        NoiseSchedule((0.0, 0.5), (0.5,), (1.0, 2.0))
    with pytest.raises(ValueError, match="0 times"):
        NoiseSchedule((), (), ())
    with pytest.raises(ValueError, match=r"g_squared is \(1.0, 0.0\)"):
        NoiseSchedule((0.0, 0.5), (0.5, 0.5), (1.0, 0.0))
    with pytest.raises(ValueError, match=r"step_sizes is \(nan, 0.5\)"):
        NoiseSchedule((0.0, 0.5), (float("nan"), 0.5), (1.0, 1.0))
