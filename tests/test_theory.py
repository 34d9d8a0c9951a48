"""Known answers from theory: docs/algorithm.md, "What theory says"."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import assert_equal64, draw, make_field, make_mlp
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import (
    NoiseSchedule,
    adjoint_matching,
    lean_adjoint,
    mlp,
    ode_rollout,
    path_kl,
    sde_rollout,
    velocity_along,
)
from trqam_fast.randomness import Randomness


def g_squared(steps):
    return torch.tensor(NoiseSchedule.flow(steps).g_squared, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_path_kl_is_the_log_likelihood_ratio_of_the_chain(backend):
    """Monte-Carlo estimate of log dP^u/dP^base, step by step, against the terms of D."""
    steps, batch, dim, h = 6, 60_000, 2, 1 / 6
    field, base = (make_field(1, dim, seed=s).detach() for s in (1, 2))
    s = draw(1, 1, 1).expand(1, batch, 1).contiguous()
    eps = draw(1, steps - 1, batch, dim, seed=3)
    rollout = sde_rollout(field, base, s, draw(1, batch, dim, seed=4), eps, backend=backend)
    u = velocity_along(base, s, rollout.trajectory[:, :-1], backend=backend)
    ratio = torch.zeros(batch, dtype=torch.float64)
    for k in range(steps - 1):
        x, following, t = rollout.trajectory[0, k], rollout.trajectory[0, k + 1], k / steps
        g_squared = 2 * (1 - t + h) / (t + h)
        squares = [
            (following - x - h * (2 * v[0, k] - x / (t + h))).square().sum(-1)
            for v in (rollout.velocity, u)
        ]
        ratio += (squares[1] - squares[0]) / (2 * h * g_squared)
    # The last step is the base field's in both processes, so its term of D has no counterpart.
    schedule = NoiseSchedule.flow(steps)
    alone = NoiseSchedule(*((values[-1],) for values in dataclasses.astuple(schedule)))
    ends = (rollout.velocity[:, -1:], u[:, -1:])
    last = path_kl(*ends, schedule=alone, reduction="none", backend=backend)
    terms = path_kl(rollout.velocity, u, reduction="none", backend=backend)[0] - last[0]
    deviation = ratio - terms
    assert abs(deviation.mean()) < 4 * deviation.std() / math.sqrt(batch)
    assert ratio.mean() > 10 * deviation.std() / math.sqrt(batch)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equal_fields(backend):
    """v_ft = v_base: D = 0 and the loss is mean_b sum_k sigma_k^2 ||a_k||^2."""
    v, a = draw(2, 5, 7, 3), draw(2, 5, 7, 3, seed=1)
    lam = torch.tensor([0.5, 4.0], dtype=torch.float64)
    loss, kl = adjoint_matching(v, v, a, lam, backend=backend)
    sigma_squared = g_squared(5).view(1, 5, 1) / lam.view(2, 1, 1)
    expected = (sigma_squared * a.square().sum(-1)).sum(1).mean(-1)
    assert kl.tolist() == [0.0, 0.0]
    assert_equal64([loss], [expected])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_minimiser_of_the_loss(backend):
    """At Delta_k = -sigma_k^2 a_k / 2 the loss and its gradient vanish."""
    u, a = draw(2, 5, 7, 3), draw(2, 5, 7, 3, seed=1)
    lam = torch.tensor([0.5, 4.0], dtype=torch.float64)
    sigma_squared = g_squared(5).view(1, 5, 1, 1) / lam.view(2, 1, 1, 1)
    v = (u - sigma_squared * a / 2).requires_grad_()
    loss, _ = adjoint_matching(v, u, a, lam, backend=backend)
    (grad,) = torch.autograd.grad(loss.sum(), v)
    assert float(loss.detach().max()) < 1e-25
    assert float(grad.abs().max()) < 1e-13


MEAN, VARIANCE, LAM = 0.3, 0.25, 0.7


def gaussian_field(mean, variance):
    """Exact flow-matching field of N(mean, variance), independent in each dimension."""

    def field(s, x, t):
        slope = (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance)
        return mean + slope * (x - t * mean)

    return field


@pytest.mark.parametrize(
    ("steps", "mean", "variance"), [(10, 0.590, 0.100), (40, 0.582, 0.135), (160, 0.589, 0.1430)]
)
def test_tilted_gaussian_with_affine_corrections(steps, mean, variance):
    """The fixed point of least-squares adjoint matching is the exponentially tilted Gaussian.

    Base N(0.3, 0.25), Q = -(x - 1)^2, lam 0.7: the target has mean 0.5917 and variance 0.1458; the
    figures are those of the discretised process at K steps.
    """
    base = gaussian_field(MEAN, VARIANCE)
    correction = torch.zeros(steps, 2, dtype=torch.float64)

    def tuned(s, x, t):
        slope, offset = correction[round(float(t[0, 0, 0]) * steps)]
        return base(s, x, t) + slope * x + offset

    batch = 40_000
    s = torch.zeros(1, batch, 1, dtype=torch.float64)
    sigma_squared = g_squared(steps) / LAM
    x0 = draw(1, batch, 1, seed=1)
    noise = draw(1, steps - 1, batch, 1, seed=2)
    for _ in range(60):
        before = correction.clone()
        rollout = sde_rollout(tuned, base, s, x0, noise)
        terminal = 2 * (rollout.trajectory[:, -1] - 1)
        adjoint = lean_adjoint(base, s, rollout.trajectory, terminal)
        target = -0.5 * sigma_squared.view(1, -1, 1, 1) * adjoint
        x, y = rollout.trajectory[0, :-1, :, 0], target[0, :, :, 0]
        x_mean, y_mean = x.mean(1), y.mean(1)
        covariance = ((x - x_mean[:, None]) * (y - y_mean[:, None])).mean(1)
        slope = covariance / x.var(1, correction=0)
        correction = torch.stack([slope, y_mean - slope * x_mean], 1)
        if float((correction - before).abs().max()) < 1e-6:
            break
    else:
        pytest.fail("the corrections did not reach a fixed point")
    samples = torch.zeros(1, 200_000, 1, dtype=torch.float64)
    x = ode_rollout(tuned, samples, draw(1, 200_000, 1, seed=3), steps)
    assert abs(float(x.mean()) - mean) < 0.004
    assert abs(float(x.var()) - variance) < 0.003


def test_base_ode_has_its_own_discretisation_error():
    base = gaussian_field(MEAN, VARIANCE)
    s = torch.zeros(1, 200_000, 1, dtype=torch.float64)
    for steps, variance in ((10, 0.185), (40, 0.232), (160, 0.245)):
        x = ode_rollout(base, s, draw(1, 200_000, 1, seed=3), steps)
        assert abs(float(x.var()) - variance) < 0.003


@pytest.mark.slow
def test_trained_network_in_two_dimensions():
    """An MLP trained by adjoint matching reaches the tilted Gaussian of each dimension.

    pi ~ N(m, v) exp(-w (x - c)^2 / lam) has precision 1 / v + 2 w / lam in every dimension.
    """
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    variance = torch.tensor([0.25, 0.5], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5], dtype=torch.float64)
    centre = torch.tensor([1.0, -1.0], dtype=torch.float64)
    lam = torch.tensor([0.7], dtype=torch.float64)
    precision = 1 / variance + 2 * weight / lam
    target_variance = 1 / precision
    target_mean = target_variance * (mean / variance + 2 * weight * centre / lam)

    base = gaussian_field(mean, variance)
    weights = make_mlp(4, 2, (32, 32), seed=1)
    with torch.no_grad():
        weights.kernels[-1].zero_()
        weights.biases[-1].zero_()

    def tuned(s, x, t):
        return base(s, x, t) + mlp(weights, torch.cat([s, x, t], -1))

    steps, batch = 40, 128
    optimiser = torch.optim.Adam(weights.tensors, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
    s = torch.zeros(1, batch, 1, dtype=torch.float64)
    for update in range(250):
        noise = draw(1, steps, batch, 2, seed=update)
        rollout = sde_rollout(tuned, base, s, noise[:, 0], noise[:, 1:])
        terminal = 2 * weight * (rollout.trajectory[:, -1] - centre)
        adjoint = lean_adjoint(base, s, rollout.trajectory, terminal)
        u = velocity_along(base, s, rollout.trajectory[:, :-1])
        loss, _ = adjoint_matching(rollout.velocity, u, adjoint, lam)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        schedule.step()
    s = torch.zeros(1, 20_000, 1, dtype=torch.float64)
    x = ode_rollout(tuned, s, draw(1, 20_000, 2, seed=999), 160).detach()[0]
    assert float((x.mean(0) - target_mean).abs().max()) < 0.06
    assert float((x.var(0) / target_variance - 1).abs().max()) < 0.15
    # Far from where it started: the base has mean (0.3, -0.2) and variance (0.25, 0.5).
    assert float((target_mean - mean).abs().min()) > 0.25
    assert float((variance / target_variance).min()) > 1.3


BANDIT = TRQAMConfig(
    batch_size=64,
    actor_hidden_dims=(32, 32),
    value_hidden_dims=(32, 32),
    num_qs=2,
    flow_steps=5,
    lr=1e-3,
    tau=0.02,
)


def make_bandit(config, runs, generator):
    """One-step episodes: a ~ N(0, 0.3^2), reward -4 (a - 0.9)^2, summed over dimensions."""
    actions = 0.3 * torch.randn(runs, config.batch_size, 1, 2, generator=generator)
    actions = actions.clamp(-1, 1)
    rewards = -4 * (actions[:, :, 0] - 0.9).square().sum(-1)
    s = torch.zeros(runs, config.batch_size, 1)
    return Batch(s, actions, rewards, torch.zeros_like(rewards), torch.ones_like(rewards), s)


@pytest.mark.slow
def test_controller_keeps_the_path_kl_at_its_budget():
    """Where the constraint binds, kl_ema settles at eps_KL within 10 %, for two budgets at once."""
    config, seeds = replace(BANDIT, eta_lambda=0.02), [0, 1, 0, 1]
    agent, randomness = TRQAMAgent(config, 1, 2, seeds), Randomness(seeds)
    agent.dual.budget = torch.tensor([0.3, 0.3, 1.0, 1.0])
    data, tail = torch.Generator().manual_seed(7), []
    for update in range(1800):
        batch = Batch(*(tensor[seeds] for tensor in make_bandit(config, 2, data)))
        terms = agent.update(batch, agent.draw_noise(randomness))
        if update >= 1400:
            tail.append(terms.metrics["kl_ema"])
    settled = torch.stack(tail).mean(0)
    assert float((settled / agent.dual.budget - 1).abs().max()) < 0.1, settled
    lam = agent.dual.lam
    assert bool((lam > config.lambda_min).all() and (lam < config.lambda_max).all())


def test_raising_lambda_shrinks_the_path_kl():
    """Three runs that differ in a fixed lambda alone."""
    config = replace(BANDIT, eta_lambda=0.0)
    agent = TRQAMAgent(config, 1, 2, [0, 1, 2])
    agent.online.flat.copy_(agent.online.flat[:1].clone().expand(3, -1))
    agent.copy_targets()
    agent.dual.lam.copy_(torch.tensor([0.3, 1.0, 5.0]))
    data, kl = torch.Generator().manual_seed(7), []
    for update in range(500):
        randomness = Randomness([update] * 3)
        batch = Batch(*(t[:1].expand(3, *t.shape[1:]) for t in make_bandit(config, 1, data)))
        terms = agent.update(batch, agent.draw_noise(randomness))
        kl.append(terms.metrics["path_kl"])
    low, middle, high = torch.stack(kl[-100:]).mean(0).tolist()
    assert low > 1.3 * middle > 1.69 * high > 0
