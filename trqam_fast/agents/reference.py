"""One update of TRQAM and QAM in plain PyTorch, in the order of docs/algorithm.md.

This is the whole algorithm on one screen: autograd alone, one run, nothing fused. Agents are tested
against it with random values of the paper's settings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trqam_fast.agents.base import Noise
from trqam_fast.agents.qam import QAMAgent
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights, mlp


def reference_update(agent: QAMAgent, batch: Batch, noise: Noise) -> tuple[list[Tensor], float]:
    """Return the gradient of the only run of `agent`, one tensor for each leaf, and its path KL."""
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
    gradients = torch.autograd.grad(loss, agent.online.leaves)
    return [gradient[0] for gradient in gradients], path_kl / c.chunk_length


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
