"""Every op, forward and with gradient, each backend beside the others."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import variants_of, without_products
from benchmarks.sizes import draw, make_network
from trqam_fast.kernels import (
    adam_step,
    adjoint_matching,
    lean_adjoint,
    ode_rollout,
    path_kl,
    philox,
    sde_rollout,
    velocity_along,
)
from trqam_fast.op_cases import CASES, Sizes, draw_inputs


def along(size, device, seed, points=0):
    """Numbers like velocities or the points of trajectories, `[S, K + points, B, D]`."""
    shape = (size.runs, size.flow_steps + points, size.batch, size.dim)
    return draw(*shape, device=device, seed=seed)


def start(size, device):
    """Observations and x_0."""
    shape = (size.runs, size.batch)
    return (
        draw(*shape, size.obs_dim, device=device, seed=5),
        draw(*shape, size.dim, device=device, seed=6),
    )


@without_products("path_kl")
def test_path_kl(measure, size, variant):
    v, u = (along(size, variant.device, seed) for seed in (1, 2))
    measure("path_kl", lambda: path_kl(v, u, backend=variant.backend), "path_kl")


@without_products("path_kl")
def test_path_kl_gradient(measure, size, variant):
    v, u = (along(size, variant.device, seed) for seed in (1, 2))
    v.requires_grad_()

    def step():
        return torch.autograd.grad(path_kl(v, u, backend=variant.backend).sum(), v)

    measure("path_kl with gradient", step, "path_kl gradient")


def matching(size, variant):
    v, u, a = (along(size, variant.device, seed) for seed in (1, 2, 3))
    lam = torch.ones(size.runs, device=variant.device)
    return v, lambda: adjoint_matching(v, u, a, lam, backend=variant.backend)[0]


@without_products("adjoint_matching")
def test_adjoint_matching(measure, size, variant):
    _, loss = matching(size, variant)
    measure("adjoint_matching", loss, "adjoint_matching")


@without_products("adjoint_matching")
def test_adjoint_matching_gradient(measure, size, variant):
    v, loss = matching(size, variant)
    v.requires_grad_()

    def step():
        return torch.autograd.grad(loss().sum(), v)

    measure("adjoint_matching with gradient", step, "adjoint_matching gradient")


def rollout(size, variant):
    device = variant.device
    field, base = (make_network(size, device, seed) for seed in (1, 2))
    noise = along(size, device, 4, -1)
    data = (base.detach(), *start(size, device), noise)
    return field, lambda field: sde_rollout(field, *data, **variant.options).velocity


def test_sde_rollout(measure, size, variant):
    field, run = rollout(size, variant)
    field = field.detach()
    measure("sde_rollout", lambda: run(field), "sde_rollout")


def test_sde_rollout_gradient(measure, size, variant):
    field, run = rollout(size, variant)
    ones = along(size, variant.device, 3)

    def step():
        return torch.autograd.grad(run(field), field.tensors, ones)

    measure("sde_rollout with gradient", step, "sde_rollout", "sde_rollout backward")


def test_ode_rollout(measure, size, variant):
    field = make_network(size, variant.device).detach()
    data = (*start(size, variant.device), size.flow_steps)
    measure("ode_rollout", lambda: ode_rollout(field, *data, **variant.options), "ode_rollout")


def test_lean_adjoint(measure, size, variant):
    device = variant.device
    base = make_network(size, device).detach()
    s, terminal = start(size, device)
    points = along(size, device, 3, 1)

    def sweep():
        return lean_adjoint(base, s, points, terminal, **variant.options)

    measure("lean_adjoint", sweep, "lean_adjoint")


def test_velocity_along(measure, size, variant):
    device = variant.device
    base, (s, _) = make_network(size, device).detach(), start(size, device)
    points = along(size, device, 3)

    def step():
        return velocity_along(base, s, points, **variant.options)

    measure("velocity_along", step, "velocity_along")


@without_products("adam_step")
def test_adam_step(measure, size, variant):
    """The parameters of both fields and the critics, targets for all but one field."""
    networks = (make_network(size, variant.device, critic=c) for c in (False, False, True))
    counts = [sum(t[0].numel() for t in network.tensors) for network in networks]
    params, gradient, moment = (
        draw(size.runs, sum(counts), device=variant.device, seed=seed) for seed in range(3)
    )
    state = (params, gradient, moment, moment.square(), torch.zeros((), device=variant.device))
    targets = params[:, counts[0] :].clone()
    measure(
        "adam_step",
        lambda: adam_step(
            *state, lr=1e-4, max_norm=1.0, targets=targets, tau=0.005, backend=variant.backend
        ),
    )


@without_products("philox")
def test_philox(measure, size, variant):
    """The normals of an update: three starts and the noise of K - 1 steps."""
    seeds = torch.arange(size.runs, device=variant.device)
    offset = torch.zeros(1, dtype=torch.int64, device=variant.device)
    count = size.batch * size.dim * (size.flow_steps + 2)

    def step():
        return philox(seeds, offset, stream=0, normals=count, backend=variant.backend)

    measure("philox", step)


@pytest.mark.parametrize("variant", [("cpu", "torch", "ieee")], ids="-".join, indirect=True)
def test_normals_of_torch(measure, size, variant):
    """The same from a generator for each run, PyTorch's own: the opponent of `philox`."""
    generators = [torch.Generator().manual_seed(run) for run in range(size.runs)]
    out = torch.empty(size.runs, size.batch * size.dim * (size.flow_steps + 2))

    def step():
        for run, generator in enumerate(generators):
            out[run].normal_(generator=generator)
        return out

    measure("philox", step)


SMALL_OPS = (
    "flow_matching_inputs", "squared_error", "td_loss", "td_target", "adjoint_sizes", "dual_update",
    "gather_sequences", "record_metrics",
)  # fmt: skip


@pytest.mark.parametrize(
    ("op", "variant"),
    [(op, variant) for op in SMALL_OPS for variant in variants_of(op)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value), indirect=["variant"],
)  # fmt: skip
def test_small_op(measure, size, op, variant):
    """What an update does besides, on inputs as the self-test draws them."""
    sizes = Sizes(
        size.runs, size.batch, size.obs_dim, size.dim, (size.width,) * size.depth, False,
        size.flow_steps, size.ensemble,
    )  # fmt: skip
    inputs = draw_inputs(CASES[op], sizes, dtype=torch.float32, device=variant.device)
    measure(op, lambda: CASES[op].call(inputs, backend=variant.backend))
