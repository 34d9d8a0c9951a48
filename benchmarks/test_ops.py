"""Every op: forward and gradient, each backend beside the others."""

from __future__ import annotations

import torch

from benchmarks.conftest import draw, make_field, synchronised, without_products
from trqam_fast.kernels import adjoint_matching, lean_adjoint, path_kl, sde_rollout


def trajectories(size, device):
    shape = (1, size.flow_steps, size.batch, size.dim)
    return [draw(*shape, device=device, seed=seed) for seed in (1, 2, 3)]


@without_products("reference", "cpp")
def test_path_kl(benchmark, size, variant):
    device = variant.device
    v, u, _ = trajectories(size, device)
    v.requires_grad_()

    def step():
        return torch.autograd.grad(path_kl(v, u, backend=variant.backend).sum(), v)

    benchmark.group = f"path_kl {size.name} {device}"
    benchmark(synchronised(step, device))


@without_products("reference", "cpp", "triton")
def test_adjoint_matching(benchmark, size, variant):
    device = variant.device
    v, u, a = trajectories(size, device)
    v.requires_grad_()
    lam = torch.ones(1, device=device)

    def step():
        return torch.autograd.grad(
            adjoint_matching(v, u, a, lam, backend=variant.backend)[0].sum(), v
        )

    benchmark.group = f"adjoint_matching {size.name} {device}"
    benchmark(synchronised(step, device))


def test_sde_rollout(benchmark, size, variant):
    device = variant.device
    field, base = (make_field(size, device, seed) for seed in (1, 2))
    s = draw(1, size.batch, size.obs_dim, device=device)
    x0 = draw(1, size.batch, size.dim, device=device, seed=3)
    noise = draw(1, size.flow_steps - 1, size.batch, size.dim, device=device, seed=4)

    def step():
        rollout = sde_rollout(field, base, s, x0, noise, **variant.options)
        return torch.autograd.grad(rollout.velocity.sum(), field.tensors)

    benchmark.group = f"sde_rollout {size.name} {device}"
    benchmark(synchronised(step, device))


def test_lean_adjoint(benchmark, size, variant):
    device = variant.device
    base = make_field(size, device).detach()
    s = draw(1, size.batch, size.obs_dim, device=device)
    points = draw(1, size.flow_steps + 1, size.batch, size.dim, device=device, seed=3)
    terminal = draw(1, size.batch, size.dim, device=device, seed=4)

    benchmark.group = f"lean_adjoint {size.name} {device}"
    benchmark(
        synchronised(lambda: lean_adjoint(base, s, points, terminal, **variant.options), device)
    )
