"""Passes through the field and the critics, each backend beside the others."""

from __future__ import annotations

import torch

from benchmarks.sizes import draw, make_network
from trqam_fast.kernels import action_gradient, mlp


def inputs(size, device, *, critic):
    width = size.obs_dim + size.dim + (0 if critic else 1)
    return draw(size.runs, size.batch, width, device=device)


def test_field(measure, size, variant):
    field, x = make_network(size, variant.device).detach(), inputs(
        size, variant.device, critic=False
    )  # fmt: skip
    measure("field", lambda: mlp(field, x, **variant.options), "field")


def test_field_gradient(measure, size, variant):
    field, x = make_network(size, variant.device), inputs(size, variant.device, critic=False)

    def step():
        return torch.autograd.grad(mlp(field, x, **variant.options).sum(), field.tensors)

    measure("field with gradient", step, "field", "field backward")


def test_critics(measure, size, variant):
    critics = make_network(size, variant.device, critic=True).detach()
    x = inputs(size, variant.device, critic=True)
    measure("critics", lambda: mlp(critics, x, **variant.options), "critics")


def test_critics_gradient(measure, size, variant):
    critics = make_network(size, variant.device, critic=True)
    x = inputs(size, variant.device, critic=True)

    def step():
        return torch.autograd.grad(mlp(critics, x, **variant.options).sum(), critics.tensors)

    measure("critics with gradient", step, "critics", "critics backward")


def test_action_gradient(measure, size, variant):
    critics = make_network(size, variant.device, critic=True).detach()
    s, x = inputs(size, variant.device, critic=True).split([size.obs_dim, size.dim], dim=-1)
    s, x = s.contiguous(), x.contiguous()

    def step():
        return action_gradient(critics, s, x, scale=-1.0, **variant.options)

    measure("action gradient", step, "action_gradient")
