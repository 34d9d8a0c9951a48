"""Rollouts: the equations step by step, rows of the noise-free flow, fields that are not ours."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_equal64, draw, gradients, make_field
from trqam_fast.kernels import (
    BackendError,
    ode_rollout,
    rollout_operands,
    sde_rollout,
    velocity_along,
)
from trqam_fast.kernels.fields import as_function

CASES = [
    dict(runs=1, batch=63, obs=6, dim=5, steps=10, hidden=(16, 24), layer_norm=False),
    dict(runs=3, batch=1, obs=2, dim=1, steps=2, hidden=(8,), layer_norm=True),
    dict(runs=2, batch=63, obs=3, dim=2, steps=4, hidden=(8, 12, 16), layer_norm=True),
]


def make(runs, batch, obs, dim, steps, hidden, layer_norm):
    options = dict(runs=runs, hidden=hidden, layer_norm=layer_norm)
    fields = [make_field(obs, dim, seed=s, **options) for s in (1, 50)]
    data = [
        draw(runs, batch, obs, seed=2),
        draw(runs, batch, dim, seed=3),
        draw(runs, steps - 1, batch, dim, seed=4),
    ]
    return fields, data


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_follows_the_equation(backend):
    """One chain, step by step, from the text of the algorithm."""
    (field, base), (s, x, eps) = make(**CASES[0])
    steps, h = 10, 0.1
    v, u = as_function(field), as_function(base)
    rollout = sde_rollout(field, base, s, x, eps, backend=backend)
    for k in range(steps):
        t = torch.full_like(x[..., :1], k / steps)
        assert_equal64([rollout.trajectory[:, k], rollout.velocity[:, k]], [x, v(s, x, t)])
        g = (2 * (1 - k * h + h) / (k * h + h)) ** 0.5
        if k < steps - 1:
            x = x + h * (2 * v(s, x, t) - x / (k * h + h)) + h**0.5 * g * eps[:, k]
        else:
            x = x + h * u(s, x, t)
    assert_equal64([rollout.trajectory[:, -1]], [x])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ode_rows_share_the_call(backend):
    (field, base), data = make(**CASES[2])
    s, x = draw(2, 11, 3, seed=7), draw(2, 11, 2, seed=8)
    rollout = sde_rollout(field, base, *data, ode_observations=s, ode_x0=x, backend=backend)
    expected = x
    for k in range(4):
        t = torch.full_like(x[..., :1], k / 4)
        expected = expected + 0.25 * as_function(field)(s, expected, t)
    assert_equal64([rollout.ode_x], [expected])
    tracked = field.map(lambda t: t.detach().requires_grad_())
    found = ode_rollout(tracked, s, x.requires_grad_(), 4, backend=backend)
    assert_equal64([found], [expected])
    for constant in (found, rollout.ode_x, rollout.trajectory):
        assert not constant.requires_grad


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_nothing_is_prepared_on_a_cpu(backend):
    (field, base), data = make(**CASES[2])
    assert rollout_operands(field, base, backend=backend) == []
    assert rollout_operands(as_function(field), base) == []
    tracked = field.map(lambda t: t.clone().requires_grad_())
    assert sde_rollout(tracked, base, *data, with_base=True, backend=backend).base is None
    found = sde_rollout(field, base, *data, operands=[], backend=backend)
    expected = sde_rollout(field, base, *data, backend=backend)
    assert torch.equal(found.trajectory, expected.trajectory)
    with pytest.raises(ValueError, match=f"backend {backend} takes none; pass what rollout_op"):
        sde_rollout(field, base, *data, operands=[data[0]], backend=backend)
    (other, _), _ = make(**CASES[2] | {"hidden": (7,)})
    with pytest.raises(ValueError, match="velocity and base_velocity differ in their shapes"):
        rollout_operands(field, other, backend=backend)


def test_velocity_along_trajectories():
    (field, _), (s, _, _) = make(**CASES[2])
    points = draw(2, 5, 63, 2, seed=5)[:, :-1]
    expected = [
        as_function(field)(s, points[:, k], torch.full_like(points[:, 0, :, :1], k / 4))
        for k in range(4)
    ]
    for backend in ("cpp", "reference"):
        found = velocity_along(field, s, points, backend=backend)
        assert_equal64([found], [torch.stack(expected, 1)])


class Module(nn.Module):
    """A field with parameters of its own, as a large policy's action head would be."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, s, x, t):
        return self.net(torch.cat([s, x, t], -1)).tanh()


def test_callable_field_trains_its_own_parameters():
    torch.manual_seed(0)
    module, (_, data) = Module(), make(**CASES[2])
    rollout = sde_rollout(module, module, *data)
    x = rollout.trajectory
    rows = [module(data[0], x[:, k], torch.full_like(x[:, 0, :, :1], k / 4)) for k in range(4)]
    expected = torch.stack(rows, 1)
    parameters = list(module.parameters())
    assert_equal64(
        [rollout.velocity, *gradients([rollout.velocity], parameters)],
        [expected, *gradients([expected], parameters)],
    )
    with pytest.raises(BackendError, match="MLPWeights"):
        sde_rollout(module, module, *data, backend="cpp")


def test_a_wrong_number_of_axes_is_told_with_what_to_pass():
    """The axes by name; a run's axis is missing, or a chunk's rows are not flat."""
    module, right = Module(), {"observations": draw(1, 5, 3), "x0": draw(1, 5, 2)}
    right["noise"] = draw(1, 3, 5, 2)
    axes = {"observations": "[S, B, O]", "x0": "[1, 5, D]", "noise": "[1, K - 1, 5, 2]"}
    for name, tensor in right.items():
        chunk = tensor.unflatten(-1, (-1, 1))
        for wrong, run, call in (
            (tensor[0], "for one run ", "[None]"),
            (chunk, "", ".flatten(-2)"),
            (chunk[0], "for one run ", ".flatten(-2)[None]"),
        ):
            if name == "observations" and wrong.dim() == 3:  # what S and B are is theirs to say
                continue
            with pytest.raises(ValueError) as raised:
                sde_rollout(module, module, **right | {name: wrong})
            says = f"{name} has shape {list(wrong.shape)}; expected {axes[name]}; {run}pass "
            if name == "x0" and "flatten" in call:
                call += ", and the module as FlowField(module, action_shape=(2, 1))"
            assert str(raised.value) == f"sde_rollout: {says}{name}{call}"
            passed = eval(name + call.split(",")[0], {name: wrong})
            sde_rollout(module, module, **right | {name: passed})


def test_bad_input():
    (field, base), (s, x, eps) = make(**CASES[2])
    with pytest.raises(ValueError, match="x0 has shape"):
        sde_rollout(field, base, s, x[:, 1:], eps)
    with pytest.raises(ValueError, match=r"leading axes \[2\]; expected \[1\]"):
        sde_rollout(field, base, s[:1], x[:1], eps[:1])
    with pytest.raises(ValueError, match=r"velocity.kernels\[0\] has shape"):
        sde_rollout(field, base, s[..., 1:], x, eps)
    with pytest.raises(ValueError, match="go together"):
        sde_rollout(field, base, s, x, eps, ode_x0=x)
    with pytest.raises(TypeError, match="velocity is a int"):
        sde_rollout(3, base, s, x, eps)
    with pytest.raises(ValueError, match="flow_steps is 0"):
        ode_rollout(field, s, x, 0)
    with pytest.raises(BackendError, match="triton"):
        sde_rollout(field, base, s, x, eps, backend="triton")
