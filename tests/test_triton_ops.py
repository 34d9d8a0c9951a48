"""Registration, compilation, unsupported gradients and limits of the Triton ops."""

import pytest
import torch

from tests.triton_cases import (
    DEVICE,
    FIELDS,
    NEEDS_TRITON,
    cast,
    counters,
    draw,
    make,
    make_field,
    make_mlp,
)  # fmt: skip
from trqam_fast.kernels import (
    BackendError,
    adjoint_matching,
    lean_adjoint,
    mlp,
    sde_rollout,
    velocity_along,
)  # fmt: skip

pytestmark = NEEDS_TRITON


def test_double_backward_raises():
    (fine, base), data, _ = make(**FIELDS["one layer"])
    fine = cast(fine, torch.float32)
    rollout = sde_rollout(fine, cast(base, torch.float32), *(t.float() for t in data),
                          backend="triton")  # fmt: skip
    weight = torch.ones_like(rollout.velocity, requires_grad=True)
    (grad,) = torch.autograd.grad(
        (weight * rollout.velocity).sum(), fine.kernels[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("needed", ["observations", "x0", "noise"])
def test_unsupported_gradients_raise(needed):
    (fine, base), data, _ = make(**FIELDS["one layer"])
    data = dict(zip(("observations", "x0", "noise"), (t.float() for t in data), strict=True))
    data[needed].requires_grad_()
    rollout = sde_rollout(
        cast(fine, torch.float32), cast(base, torch.float32), **data, backend="triton"
    )
    with pytest.raises(RuntimeError, match=f"no gradient with respect to {needed}"):
        rollout.velocity.sum().backward()


def operations():
    """Arguments for opcheck of every registered op."""
    (fine, base), (s, x, eps), (ode_s, ode_x) = make(**FIELDS["small"])
    fine, base = (list(cast(f, torch.float32).detach().tensors) for f in (fine, base))
    s, x, eps, ode_s, ode_x = (t.float() for t in (s, x, eps, ode_s, ode_x))
    ops = torch.ops.trqam_fast
    points = draw(2, 3, 3, 2).float()
    yield ops.sde_rollout_triton, (
        fine, base, True, s, x, eps, None, None, ode_s, ode_x, 2, "ieee", True,
    )  # fmt: skip
    seed, offset = counters([1, 2], 0)
    yield ops.sde_rollout_triton, (
        fine, base, True, s, x, None, seed, offset, None, None, 2, "tf32", False,
    )  # fmt: skip
    yield ops.lean_adjoint_triton, (base, True, s, points, x, "ieee")
    yield ops.mlp_triton_forward, (fine, True, s, points, 2, 0, "ieee", False)
    _, *tape = ops.mlp_triton_forward(fine, True, s, points, 2, 0, "ieee", True)
    yield ops.mlp_triton_backward, (
        fine, True, s, points, 2, 0, *tape, draw(2, 2 * 3, 2).float(), "ieee", True, True,
    )  # fmt: skip
    v = draw(2, 2, 3, 2).float()
    yield ops.adjoint_matching, (v, v, v, torch.ones(2, device=DEVICE), 1, True, True)


def test_opcheck():
    for op, arguments in operations():
        torch.library.opcheck(op.default, arguments)


def test_compiles_without_graph_breaks():
    (fine, base), data, ode = make(**FIELDS["small"])
    fine, base = cast(fine, torch.float32), cast(base, torch.float32).detach()
    (s, x, eps), (ode_s, ode_x) = ([t.float() for t in group] for group in (data, ode))
    lam = torch.ones(2, device=DEVICE)

    def loss(fine, s, x, eps):
        rollout = sde_rollout(
            fine, base, s, x, eps, ode_observations=ode_s, ode_x0=ode_x, backend="triton"
        )
        adjoint = lean_adjoint(base, s, rollout.trajectory, x, backend="triton")
        along = velocity_along(base, s, rollout.trajectory[:, :-1], backend="triton")
        value, kl = adjoint_matching(rollout.velocity, along, adjoint, lam, backend="triton")
        cloned = mlp(fine, torch.cat([s, x, x[..., :1]], -1), backend="triton")
        return value + cloned.square().mean((1, 2)), kl

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, loss):
        value, kl = function(fine, s, x, eps)
        results.append([value, kl, *torch.autograd.grad(value.sum(), fine.tensors)])
    for ours, eager in zip(*results, strict=True):
        assert torch.equal(ours, eager)


def test_limits_are_named():
    s, x, eps = draw(1, 2, 3).float(), draw(1, 2, 2).float(), draw(1, 1, 2, 2).float()
    for hidden, match in (
        ((1040,), "up to 1024 units, and the network has 1040"),
        ((8,) * 7, "up to 6 hidden layers, and the network has 7"),
    ):
        field = make_field(3, 2, hidden=hidden, dtype=torch.float32)
        with pytest.raises(BackendError, match=match):
            sde_rollout(field, field, s, x, eps, backend="triton")
    fields = [make_field(3, 2, hidden=h, dtype=torch.float32) for h in ((8,), (16,))]
    with pytest.raises(BackendError, match="one architecture"):
        sde_rollout(*fields, s, x, eps, backend="triton")
    with pytest.raises(BackendError, match="compute in float32, not float64"):
        mlp(make_mlp(3, 2), draw(1, 2, 3), backend="triton")
    with pytest.raises(BackendError, match="up to 128 outputs, and the network has 129"):
        mlp(make_mlp(3, 129, dtype=torch.float32), s, backend="triton")
