"""Noise schedules: values, tables, known answers of the losses, the schedules of other paths."""

import dataclasses
import math

import pytest
import torch

from tests.helpers import assert_equal64, draw, make_field
from trqam_fast.kernels import (
    AffinePath,
    BackendError,
    Context,
    NoiseSchedule,
    adjoint_matching,
    lean_adjoint,
    path_kl,
    sde_rollout,
    velocity_along,
)

STEPS, BATCH, DIM = 4, 5, 3


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
    for decay in (0.0, float("nan")):
        with pytest.raises(ValueError, match=rf"decay_times is \({decay},\); all must be positive"):
            NoiseSchedule((0.0,), (1.0,), (1.0,), (decay,))
    NoiseSchedule((0.0,), (1.0,), (1.0,), (math.inf,))  # where alpha no longer grows
    NoiseSchedule.flow(2)  # made, and equal to one of 2.0 steps
    for make in (NoiseSchedule.flow, NoiseSchedule.bridge, AffinePath.cosine().noise_schedule):
        with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
            make(0)
        with pytest.raises(TypeError, match="steps is 2.0; pass an integer"):
            make(2.0)


# Other paths


def gaussian(path, mean, std):
    """The exact velocity of N(mean, std^2) data along a path: v = offset(t) + slope(t) x."""

    def coefficients(t):
        t = torch.as_tensor(t, dtype=torch.float64)
        a, b = path.alpha(t), path.beta(t)
        up, down = path.slopes(t)
        slope = (up * a * std**2 + down * b) / (b * b + a * a * std**2)
        return float(up * mean - slope * a * mean), float(slope)

    return coefficients


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_linear_path_is_the_flows_own(steps):
    """Exactly, so that compiled code takes it; and by the formula of all paths, to rounding."""
    own, path = NoiseSchedule.flow(steps), AffinePath.linear()
    assert path.noise_schedule(steps) == own
    made = path._noise_schedule(steps)
    for name in ("times", "step_sizes", "g_squared", "decay_times"):
        assert getattr(made, name) == pytest.approx(getattr(own, name), rel=1e-14)


@pytest.mark.parametrize("path", [AffinePath.linear(), AffinePath.cosine()], ids=["lin", "cos"])
def test_diffusion_tends_to_the_memoryless_one(path):
    """g^2 = 2 beta (beta alpha'/alpha - beta') and alpha'/alpha, in the limit of small steps."""
    schedule = path.noise_schedule(20_000)
    for k in (2_000, 10_000, 17_000):
        t = torch.tensor(schedule.times[k], dtype=torch.float64)
        up, down = path.slopes(t)
        rate, beta = float(up / path.alpha(t)), float(path.beta(t))
        assert schedule.g_squared[k] == pytest.approx(
            2 * beta * (beta * rate - float(down)), rel=2e-3
        )
        assert 1 / schedule.decay_times[k] == pytest.approx(rate, rel=2e-3)


@pytest.mark.parametrize("path", [AffinePath.linear(), AffinePath.cosine()], ids=["lin", "cos"])
def test_rollout_keeps_the_marginals_of_its_path(path):
    """Mean and variance of X_K, by the recursion of a linear chain, tend to those of the data.

    And X_0 and X_K become independent: memoryless. By the rollout itself: the recursion's
    coefficients are read off chains without noise, from x0 = 0 and 1.
    """
    mean, std, errors = 0.3, 0.5, []
    exact = gaussian(path, mean, std)

    def field(s, x, t):
        offset, slope = exact(float(t[0, 0, 0]))
        return offset + slope * x

    for steps in (50, 400):
        schedule = path.noise_schedule(steps)
        eye = torch.eye(steps, dtype=torch.float64)[: steps - 1]
        # Rows: nothing, x0 = 1, and each eps_k = 1 alone.
        x0 = torch.zeros(1, steps + 1, 1, dtype=torch.float64)
        x0[0, 1] = 1
        noise = torch.zeros(1, steps - 1, steps + 1, 1, dtype=torch.float64)
        noise[0, :, 2:, 0] = eye[:, : steps - 1]
        end = sde_rollout(field, field, Context(None), x0, noise, schedule=schedule)
        end = end.trajectory[0, -1, :, 0]
        influence = end[1:] - end[0]
        errors.append((float(end[0]) - mean, float(influence.square().sum()) - std**2))
        memory = float(influence[0])
    assert abs(memory) < 0.02
    for coarse, fine in zip(*errors, strict=True):
        assert abs(fine) < 0.2 * abs(coarse) + 1e-3 and abs(fine) < 0.02


def test_path_kl_of_any_path_is_that_of_its_gaussian_steps():
    """Each step is a pair of Gaussians N(. + 2 h v, h g^2); the last one's, too, by convention."""
    schedule = AffinePath.cosine().noise_schedule(STEPS)
    v, u = draw(1, STEPS, BATCH, DIM), draw(1, STEPS, BATCH, DIM, seed=1)
    total = 0.0
    for k in range(STEPS):
        h, g2 = schedule.step_sizes[k], schedule.g_squared[k]
        step = [torch.distributions.Normal(2 * h * f[:, k], math.sqrt(h * g2)) for f in (v, u)]
        total = total + torch.distributions.kl_divergence(*step).sum(-1)
    for backend in ("cpp", "reference"):
        found = path_kl(v, u, schedule=schedule, reduction="none", backend=backend)
        assert_equal64([found], [total])


def test_sweep_of_any_path_is_a_product_of_matrices():
    schedule = AffinePath.cosine().noise_schedule(STEPS)
    matrix, s = draw(DIM, DIM, seed=5), draw(1, BATCH, 2)
    points, terminal = draw(1, STEPS + 1, BATCH, DIM, seed=1), draw(1, BATCH, DIM, seed=2)
    called = []

    def field(s, x, t):
        called.append(float(t[0, 0, 0]))
        return x @ matrix.T

    found = lean_adjoint(field, s, points, terminal, schedule=schedule)
    assert called == pytest.approx([1.0, 0.75, 0.5, 0.25])
    adjoint = terminal
    for k in reversed(range(STEPS)):
        # alpha / alpha' of the cosine path is tan(pi t / 2) / (pi / 2).
        decay = math.tan(math.pi * called[STEPS - 1 - k] / 2) / (math.pi / 2)
        h = 1 / STEPS
        adjoint = adjoint + h * (2 * adjoint @ matrix - adjoint / decay)
        assert_equal64([found[:, k]], [adjoint])


def test_other_paths_run_with_the_reference():
    field, base = (make_field(2, DIM, seed=seed).detach() for seed in (1, 50))
    s, terminal = draw(1, BATCH, 2), draw(1, BATCH, DIM, seed=2)
    points = draw(1, STEPS + 1, BATCH, DIM, seed=1)
    noise, schedule = points[:, 1:STEPS], AffinePath.cosine().noise_schedule(STEPS)
    rollout = sde_rollout(field, base, s, terminal, noise, schedule=schedule)
    own = NoiseSchedule.flow(STEPS)
    for backend in ("cpp", "reference"):
        a = sde_rollout(field, base, s, terminal, noise, schedule=own, backend=backend)
        b = sde_rollout(field, base, s, terminal, noise, backend=backend)
        assert torch.equal(a.trajectory, b.trajectory)
    assert not torch.allclose(rollout.trajectory, a.trajectory)

    def other_times(schedule):
        return dataclasses.replace(schedule, times=tuple(0.9 * t for t in schedule.times))

    calls = (
        lambda **o: sde_rollout(field, base, s, terminal, noise, **o),
        lambda **o: lean_adjoint(base, s, points, terminal, **o),
        lambda **o: velocity_along(base, s, points[:, 1:], **o),
    )
    for call in calls:
        with pytest.raises(BackendError, match="the flow's own schedule; another one runs with"):
            call(schedule=other_times(schedule), backend="cpp")
        with pytest.raises(ValueError, match="schedule has 3 steps"):
            call(schedule=NoiseSchedule.flow(3))
    for call in calls[:2]:
        with pytest.raises(BackendError, match="the flow's own schedule; another one runs with"):
            call(schedule=schedule, backend="cpp")
    # Of which velocities read the times alone.
    assert torch.equal(calls[2](schedule=schedule, backend="cpp"), calls[2](backend="cpp"))
    alone = NoiseSchedule((0.0, 0.5), (0.5, 0.5), (2.0, 1.0))
    with pytest.raises(ValueError, match="schedule has no decay_times"):
        lean_adjoint(base, s, points[:, :3], terminal, schedule=alone)
