"""One update of TRQAM and QAM in plain PyTorch, in the order of docs/algorithm.md.

This is the whole algorithm in one function: autograd alone, one run, nothing fused. Agents are
tested against it with random values of the paper's settings.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.agents.base import Noise
from trqam_fast.agents.qam import QAMAgent
from trqam_fast.agents.trqam import TRQAMAgent
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights, mlp


class Updated(NamedTuple):
    """What an update makes of a run: numbers, and one tensor for each leaf.

    Attributes:
        gradient: Of the sum of the losses, not clipped.
        weights: Of v_ft, v_bc and Q.
        exp_avg: Adam's first moments.
        exp_avg_sq: Adam's second moments.
        targets: Of v_base and Q'.
        path_kl: Of the update's trajectories.
        lam: lambda of the next update; None for QAM.
        kl_ema: Smoothed path KL; None for QAM.
    """

    gradient: list[Tensor]
    weights: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    targets: list[Tensor]
    path_kl: float
    lam: float | None = None
    kl_ema: float | None = None


def reference_update(agent: QAMAgent, batch: Batch, noise: Noise) -> Updated:
    """Return what an update makes of the only run of `agent`, which is left as it is."""
    c, K = agent.config, agent.config.flow_steps
    h = 1 / K
    v_ft, v_bc, Q = (agent.online.networks[n] for n in ("actor_fast", "actor_slow", "critic"))
    Q_target, v_base = agent.target.networks["critic"], agent.base
    s, s_next, R, m, valid = (
        batch.observations[0], batch.next_observations[0], batch.rewards[0], batch.masks[0],
        batch.valid[0],
    )  # fmt: skip
    a = batch.actions[0].flatten(-2) if c.action_chunking else batch.actions[0][:, 0]
    noise = {name: tensor[0] for name, tensor in noise.items()}
    lam = agent.temperature()[0].clamp(min=1e-8)

    # Critic: a' is the best of N samples of the flow.
    with torch.no_grad():
        x = noise["next_action"]
        for k in range(K):
            x = x + h * velocity(v_ft, s_next[:, None], x, k / K)
        x = x.clamp(-1, 1)
        best = values(Q, s_next[:, None], x).mean(0).argmax(1)
        q_next = values(Q_target, s_next, x[torch.arange(len(x)), best])
        pessimistic = q_next.mean(0) - c.rho * q_next.std(0, correction=0)
        y = R + c.discount**c.horizon_length * m * pessimistic
    loss = ((values(Q, s, a) - y) ** 2 * valid).mean()

    # Behaviour cloning.
    x0, t = noise["bc_x0"], noise["bc_t"]
    error = velocity(v_bc, s, (1 - t) * x0 + t * a, t) - (a - x0)
    loss = loss + ((error**2).mean(-1) * valid).mean()

    # Rollout.
    X = [noise["sde_x0"]]
    with torch.no_grad():
        for k in range(K - 1):
            t = k / K
            g = math.sqrt(2 * (1 - t + h) / (t + h))
            drift = 2 * velocity(v_ft, s, X[k], t) - X[k] / (t + h)
            X.append(X[k] + h * drift + math.sqrt(h) * g * noise["sde_eps"][k])
        X.append(X[-1] + h * velocity(v_base, s, X[-1], (K - 1) / K))

    # Terminal adjoint.
    judge = Q_target if c.use_target_grad else Q.detach()
    x = X[-1].clone().requires_grad_()
    value = values(judge, s, x.clamp(-1, 1) if c.clip_adj else x).mean(0).sum()
    adjoint = -getattr(c, "inv_temp", 1.0) * torch.autograd.grad(value, x)[0]

    # Lean adjoint sweep, adjoint-matching loss and path KL, step by step from the end.
    path_kl = 0.0
    for k in range(K - 1, -1, -1):
        t = k / K
        x = X[k].clone().requires_grad_()
        drift = 2 * velocity(v_base, s, x, t + h) - x / (t + h)
        adjoint = adjoint + h * torch.autograd.grad(drift, x, adjoint)[0]
        g_squared = 2 * (1 - t + h) / (t + h)
        sigma = math.sqrt(g_squared / lam)
        delta = velocity(v_ft, s, X[k], t) - velocity(v_base, s, X[k], t).detach()
        loss = loss + (2 * delta / sigma + sigma * adjoint).square().sum(-1).mean()
        path_kl += float((2 * h / g_squared * delta.detach().square().sum(-1)).mean())
    path_kl /= c.chunk_length

    # Optimiser: the gradient's global norm is clipped, then Adam.
    gradient = [each[0] for each in torch.autograd.grad(loss, agent.online.leaves)]
    norm = math.sqrt(sum(float(each.square().sum()) for each in gradient))
    clip = 1 / max(norm, 1.0) if c.clip_grad else 1.0
    step, weights, exp_avg, exp_avg_sq = float(agent.steps) + 1, [], [], []
    moments = (agent.online.unflatten(each) for each in (agent.exp_avg, agent.exp_avg_sq))
    for w, g, m, v in zip(agent.online.leaves, gradient, *moments, strict=True):
        exp_avg.append(0.9 * m[0] + 0.1 * clip * g)
        exp_avg_sq.append(0.999 * v[0] + 0.001 * (clip * g) ** 2)
        scale = (exp_avg_sq[-1] / (1 - 0.999**step)).sqrt() + 1e-8
        weights.append(w[0].detach() - c.lr / scale * exp_avg[-1] / (1 - 0.9**step))

    # Targets move toward the weights as they were before the step.
    targets = [
        target[0] + c.tau * (now[0].detach() - target[0])
        for name, network in agent.target.networks.items()
        for target, now in zip(network.tensors, agent.online.networks[name].tensors, strict=True)
    ]
    updated = Updated(gradient, weights, exp_avg, exp_avg_sq, targets, path_kl)
    if not isinstance(agent, TRQAMAgent):
        return updated

    # Dual update.
    kl_ema, clipped = float(agent.dual.kl_ema), min(path_kl, c.kl_clip_coef * c.kl_budget)
    kl_ema += c.kl_ema_coef * (clipped - kl_ema)
    lam = float(agent.dual.lam) + c.eta_lambda * (kl_ema - c.kl_budget)
    return updated._replace(lam=min(max(lam, c.lambda_min), c.lambda_max), kl_ema=kl_ema)


def velocity(field: MLPWeights, s: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
    """v(s, x, t) `[..., D]` for x `[..., D]`; s and t are broadcast."""
    return network(field, s.expand(*x.shape[:-1], -1), x, torch.zeros_like(x[..., :1]) + t)


def values(critic: MLPWeights, s: Tensor, x: Tensor) -> Tensor:
    """Q_e(s, x) `[E, ...]` for x `[..., D]`; s is broadcast."""
    return network(critic, s.expand(*x.shape[:-1], -1), x).squeeze(-1)


def network(weights: MLPWeights, *inputs: Tensor) -> Tensor:
    """Apply the network of the only run to inputs `[..., n]`, side by side."""
    x = torch.cat(inputs, dim=-1)
    outputs = mlp(weights, x.flatten(0, -2).unsqueeze(0), backend="reference").squeeze(0)
    return outputs.unflatten(-2, x.shape[:-1])
