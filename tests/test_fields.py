"""Callable fields: what they may contain and return, contexts, one step at a time.

Longer than 400 lines, as each promise is held by every op that takes a field.
"""

import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_equal64, draw, gradients, make_field
from trqam_fast.kernels import (
    Context,
    NoiseSchedule,
    adjoint_matching,
    adjoint_matching_steps,
    lean_adjoint,
    ode_rollout,
    path_kl,
    sde_rollout,
    velocity_along,
)

STEPS, BATCH, DIM = 4, 5, 3


class Net(nn.Module):
    """Two layers on [s, x, t]; `inner` is what tests wrap."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2 + DIM + 1, 16, dtype=dtype)
        self.last = nn.Linear(16, DIM, dtype=dtype)

    def inner(self, hidden):
        return self.last(torch.tanh(hidden))

    def forward(self, s, x, t):
        return self.inner(self.first(torch.cat([s, x, t], -1)))


def data(dtype=torch.float64):
    s, points = draw(1, BATCH, 2, dtype=dtype), draw(1, STEPS + 1, BATCH, DIM, seed=1, dtype=dtype)
    return s, points, draw(1, BATCH, DIM, seed=2, dtype=dtype)


class Checkpointed(Net):
    reentrant = False

    def inner(self, hidden):
        return checkpoint(super().inner, hidden, use_reentrant=self.reentrant)


class OldTanh(torch.autograd.Function):
    """A Function without setup_context, as flash-attn and Liger-Kernel have them."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, cotangent):
        (y,) = ctx.saved_tensors
        return cotangent * (1 - y * y)


class OldStyle(Net):
    def inner(self, hidden):
        return self.last(OldTanh.apply(hidden))


def hooked():
    net = Net()
    net.last.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    return net


FIELDS = {
    "plain": Net,
    "checkpointed": Checkpointed,
    "old Function": OldStyle,
    "backward hook": hooked,
    "compiled eager": lambda: torch.compile(Net(), backend="eager"),
    "compiled aot_eager": lambda: torch.compile(Net(), backend="aot_eager"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_sweep_through_what_models_contain(kind):
    """The bits of torch.func.vjp of the same field without any of it."""
    s, points, terminal = data()
    plain, adjoint, expected = Net(), terminal, []
    for k in reversed(range(STEPS)):
        t = (k + 1) / STEPS
        drift = lambda x, t=t: 2.0 * plain(s, x, torch.full_like(x[..., :1], t)) - x / t  # noqa: E731
        adjoint = adjoint + torch.func.vjp(drift, points[:, k])[1](adjoint)[0] / STEPS
        expected.append(adjoint)
    field = FIELDS[kind]()
    found = lean_adjoint(field, s, points, terminal)
    expected = torch.stack(expected[::-1], 1)
    if kind == "old Function":  # its own arithmetic of tanh's derivative
        assert_equal64([found], [expected])
    else:
        assert torch.equal(found, expected)
    assert not found.requires_grad and all(p.grad is None for p in field.parameters())


def test_reentrant_checkpointing_is_named():
    field = Checkpointed()
    field.reentrant = True
    with pytest.raises(RuntimeError, match=r"reentrant gradient checkpointing.*use_reentrant=Fal"):
        lean_adjoint(field, *data())


@pytest.mark.parametrize("kind", ["no_grad", "inference_mode", "detached x", "detached v"])
def test_a_field_without_a_gradient_in_x_is_refused(kind):
    """The sweep would be that of -X / t alone."""
    net = Net()
    field = {
        "no_grad": torch.no_grad()(net.forward),
        "inference_mode": torch.inference_mode()(net.forward),
        "detached x": lambda s, x, t: net(s, x.detach(), t),
        "detached v": lambda s, x, t: net(s, x, t).detach(),
    }[kind]
    with pytest.raises(
        RuntimeError, match=r"^lean_adjoint: base_velocity returned .* without a gr"
    ):
        lean_adjoint(field, *data())


def test_other_errors_of_a_field_stay():
    def broken(s, x, t):
        raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match="^out of something$"):
        lean_adjoint(broken, *data())


def test_a_field_may_change_its_arguments_in_place():
    """Padding set to zero, time scaled: neither the caller's tensors nor the chain's change."""
    s, points, terminal = data()
    net, noise, lam = Net(), points[:, 1:STEPS], torch.ones(1, dtype=torch.float64)
    mask = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)

    def apart(s, x, t):
        return net(s, x * mask, t * 100.0)

    def in_place(s, x, t):
        x[..., 2:] = 0.0
        return net(s, x, t.mul_(100.0))

    def results(field):
        rollout = sde_rollout(field, field, s, terminal, noise, ode_observations=s, ode_x0=terminal)
        steps = adjoint_matching_steps(field, net, s, points[:, 1:], points[:, 1:], lam)
        return [
            *rollout[:3],
            ode_rollout(field, s, terminal, STEPS),
            velocity_along(field, s, points),
            lean_adjoint(field, s, points, terminal),
            *(value for share in steps for value in share),
        ]

    expected, before = results(apart), [points.clone(), terminal.clone()]
    assert_equal64(results(in_place), expected)
    assert torch.equal(points, before[0]) and torch.equal(terminal, before[1])


WRONG = {
    "no run axis": (lambda s, x, t: x[0], ValueError, r"returned \[5, 3\].*expected \[1, 5, 3\]"),
    "broadcasts": (lambda s, x, t: x[..., :1], ValueError, r"returned \[1, 5, 1\].*\[1, 5, 3\]"),
    "one row": (lambda s, x, t: x[:, :1], ValueError, r"returned \[1, 1, 3\].*\[1, 5, 3\]"),
    "integers": (lambda s, x, t: x.long(), TypeError, r"returned .*int64.*floating point"),
    "device": (lambda s, x, t: x.to("meta"), ValueError, r"returned .*on meta; expected.*on cpu"),
    "tuple": (lambda s, x, t: (x,), TypeError, r"returned a tuple; expected \[1, 5, 3\]"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_output_is_checked(kind):
    wrong, error, match = WRONG[kind]
    s, points, terminal = data()
    net, noise = Net(), points[:, 1:STEPS]
    lam = torch.ones(1, dtype=torch.float64)
    with pytest.raises(error, match=f"sde_rollout: velocity {match}"):
        sde_rollout(wrong, net, s, terminal, noise)
    with pytest.raises(error, match=f"sde_rollout: base_velocity {match}"):
        sde_rollout(net, wrong, s, terminal, noise)
    with pytest.raises(error, match=f"ode_rollout: velocity {match}"):
        ode_rollout(wrong, s, terminal, 2)
    with pytest.raises(error, match=f"lean_adjoint: base_velocity {match}"):
        lean_adjoint(wrong, s, points, terminal)
    with pytest.raises(error, match=f"velocity_along: velocity {match}"):
        velocity_along(wrong, s, points)
    with pytest.raises(error, match=f"adjoint_matching_steps: velocity {match}"):
        list(adjoint_matching_steps(wrong, net, s, points, points, lam))


@pytest.mark.parametrize("how", ["bfloat16 field", "autocast"])
def test_bfloat16_becomes_the_type_of_the_data(how):
    s, points, terminal = data(torch.float32)
    net, noise = Net(torch.float32), points[:, 1:STEPS]
    if how == "bfloat16 field":
        half = Net(torch.float32).bfloat16()
        field = lambda s, x, t: half(s.bfloat16(), x.bfloat16(), t.bfloat16())  # noqa: E731
        assert field(s, terminal, terminal[..., :1]).dtype == torch.bfloat16
    else:
        field = net
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        rollout = sde_rollout(field, field, s, terminal, noise)
        adjoint = lean_adjoint(field, s, rollout.trajectory, terminal)
        base = velocity_along(field, s, rollout.trajectory[:, :-1])
        loss, kl = adjoint_matching(rollout.velocity, base, adjoint, torch.ones(1))
        loss.sum().backward()
    assert {x.dtype for x in (*rollout[:2], adjoint, base, loss)} == {torch.float32}
    assert float(kl) == 0.0
    exact = lean_adjoint(net, s, rollout.trajectory, terminal)
    assert 0 < (adjoint - exact).abs().max() < 0.05 * exact.abs().max()


class Cached(nn.Module):
    """A field on a cache; it counts what it is called with."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = Net(), []

    def forward(self, cache, x, t):
        self.seen.append((id(cache), x.shape))
        return self.net(cache["keys"][0][cache["rows"]], x, t)


def test_context_is_passed_through_and_never_copied():
    s, points, terminal = data()
    cache = {"keys": [s], "rows": torch.zeros(1, dtype=torch.int64), "name": "prefix"}
    field, context, net = Cached(), Context(cache), Net()
    noise, lam = points[:, 1:STEPS], torch.ones(1, dtype=torch.float64)
    rollout = sde_rollout(
        field, field, context, terminal, noise, ode_observations=context, ode_x0=terminal
    )
    plain = sde_rollout(net, net, s, terminal, noise, ode_observations=s, ode_x0=terminal)
    assert_equal64(rollout[:3], plain[:3])
    x = rollout.trajectory
    adjoint = lean_adjoint(field, context, x, terminal)
    assert_equal64([adjoint], [lean_adjoint(net, s, x, terminal)])
    assert_equal64([velocity_along(field, context, x[:, :-1])], [rollout.velocity])
    assert_equal64([ode_rollout(field, context, terminal, STEPS)], [rollout.ode_x])
    for share in adjoint_matching_steps(field, field, context, x[:, :-1], adjoint, lam):
        assert float(share.path_kl) == 0
    assert {identity for identity, _ in field.seen} == {id(cache)}
    assert {shape for _, shape in field.seen} == {(1, BATCH, DIM)}


def test_context_needs_callables():
    s, points, terminal = data()
    packed = make_field(2, DIM)
    for call in (
        lambda c: lean_adjoint(packed, c, points, terminal),
        lambda c: velocity_along(packed, c, points),
        lambda c: ode_rollout(packed, c, terminal, 2),
        lambda c: sde_rollout(Net(), packed, c, terminal, points),
    ):
        with pytest.raises(TypeError, match="is a Context, but .*velocity is MLPWeights"):
            call(Context(s))
    with pytest.raises(ValueError, match=r"points is \[5, 3\]; expected"):
        velocity_along(Net(), Context(s), points[0, 0])


def matched(field, base, s, points, adjoint, lam, **options):
    """Loss, path KL and gradients by `adjoint_matching_steps`, backward at every step."""
    parameters = list(field.parameters())
    for parameter in parameters:
        parameter.grad = None
    loss = kl = 0.0
    for share in adjoint_matching_steps(field, base, s, points, adjoint, lam, **options):
        share.loss.sum().backward()
        loss, kl = loss + share.loss.detach(), kl + share.path_kl
    return [loss, kl, *(p.grad.clone() for p in parameters)]


def matching_problem(steps=STEPS):
    field, base = Net(), Net()
    with torch.no_grad():
        field.last.weight.add_(draw(DIM, 16, seed=5), alpha=0.3)
    s, points = draw(1, BATCH, 2), draw(1, steps, BATCH, DIM, seed=1)
    return field, base, s, points, draw(1, steps, BATCH, DIM, seed=3)


@pytest.mark.parametrize("schedule", [None, NoiseSchedule.bridge(STEPS)], ids=["flow", "bridge"])
def test_steps_sum_to_the_loss(schedule):
    field, base, s, points, adjoint = matching_problem()
    lam, mask = torch.full((1,), 0.7, dtype=torch.float64), torch.tensor([True, False, True])
    options = dict(horizon=2, schedule=schedule, action_mask=mask)
    found = matched(field, base, s, points, adjoint, lam, **options)
    times = (schedule or NoiseSchedule.flow(STEPS)).times
    rows = [field(s, points[:, k], points[:, k, :, :1] * 0 + t) for k, t in enumerate(times)]
    u = velocity_along(base, s, points, schedule=schedule)
    loss, kl = adjoint_matching(torch.stack(rows, 1), u, adjoint, lam, **options)
    expected = torch.autograd.grad(loss.sum(), list(field.parameters()))
    assert_equal64(found, [loss, kl, *expected])


@pytest.mark.parametrize("m", [1, 3])
def test_random_steps_are_unbiased(m):
    """Over all subsets of m steps, loss, path KL and gradients average to those of all steps."""
    problem, lam = matching_problem(), torch.full((1,), 0.7, dtype=torch.float64)
    exact = matched(*problem, lam)
    subsets = list(itertools.combinations(range(STEPS), m))
    sums = [torch.zeros_like(x) for x in exact]
    for subset in subsets:
        for total, value in zip(sums, matched(*problem, lam, steps=subset), strict=True):
            total += value / len(subsets)
    assert_equal64(sums, exact)
    with pytest.raises(ValueError, match="each once"):
        adjoint_matching_steps(*problem, lam, steps=[0, 0])
    with pytest.raises(ValueError, match=r"steps is \[4\]; pass some of 0..3"):
        adjoint_matching_steps(*problem, lam, steps=[STEPS])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"velocity": 1}, TypeError, "velocity is a int; pass MLPWeights or a callable"),
        ({"points": draw(1, STEPS, 0, DIM)}, ValueError, "points has shape"),
        ({"adjoint": draw(1, STEPS, BATCH, DIM).float()}, ValueError, "adjoint is torch.float32"),
        ({"lam": torch.ones(2).double()}, ValueError, r"lam has shape \[2\]; expected \[1\]"),
        ({"horizon": 2.5}, TypeError, "horizon is 2.5; pass an integer"),
        ({"action_mask": torch.ones(DIM)}, TypeError, "action_mask is torch.float32"),
    ],
)
def test_steps_are_checked_before_the_first_is_asked_for(change, kind, message):
    names = ("velocity", "base_velocity", "observations", "points", "adjoint")
    given = dict(zip(names, matching_problem(), strict=True))
    given |= {"lam": torch.ones(1, dtype=torch.float64)} | change
    with pytest.raises(kind, match=f"^adjoint_matching_steps: {message}"):
        adjoint_matching_steps(**given)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """The most bytes that graphs kept at any time, a module's parameters left out."""

    def __init__(self, module):
        self.own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.now = self.peak = 0
        super().__init__(self.pack, lambda kept: kept[0])

    def __enter__(self):
        super().__enter__()
        return self

    def pack(self, tensor):
        size = 0 if tensor.untyped_storage().data_ptr() in self.own else tensor.nbytes
        kept = [tensor.detach()]
        holder = type("Kept", (list,), {"__slots__": ("__weakref__",)})(kept)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(holder, self.free, size)
        return holder

    def free(self, size):
        self.now -= size


@pytest.mark.parametrize("steps", [2, 10])
def test_one_graph_at_a_time(steps):
    """Bytes that graphs keep do not grow with K; with the rollout's own graph they do."""
    field, base, s, points, adjoint = matching_problem(steps)
    lam, context = torch.ones(1, dtype=torch.float64), Context(s)
    with SavedBytes(field) as one:
        field(s, points[:, 0], points[:, 0, :, :1])
    with SavedBytes(field) as saved:
        with torch.no_grad():
            sde_rollout(field, base, context, points[:, 0], points[:, 1:])
        lean_adjoint(field, context, points[:, [0, *range(steps)]], adjoint[:, 0])
        matched(field, base, context, points, adjoint, lam)
    # Besides the field's graph, the loss keeps its gradient, and masks nothing.
    assert one.peak <= saved.peak <= one.peak + 3 * points[:, 0].nbytes
    with SavedBytes(field) as all_at_once:
        rollout = sde_rollout(field, base, context, points[:, 0], points[:, 1:])
    assert all_at_once.peak >= steps * one.peak
    assert rollout.velocity.requires_grad


# Padded dimensions


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_padded_dimensions_count_nowhere(backend):
    """Losses and gradients are those of the real dimensions alone, whatever the others hold."""
    mask = torch.tensor([True, False, True])
    v, u, a = (draw(1, STEPS, BATCH, DIM, seed=seed) for seed in (1, 2, 3))
    u[..., 1] = torch.inf
    v.requires_grad_()
    lam = torch.full((1,), 0.7, dtype=torch.float64)
    loss, kl = adjoint_matching(v, u, a, lam, action_mask=mask, backend=backend)
    real = [x.detach()[..., mask] for x in (v, u, a)]
    real[0].requires_grad_()
    expected, expected_kl = adjoint_matching(*real, lam, backend=backend)
    (found,) = gradients([loss], [v])
    assert_equal64(
        [loss, kl, found[..., mask]], [expected, expected_kl, *gradients([expected], real[:1])]
    )
    assert found[..., 1].eq(0).all()
    assert_equal64([path_kl(v, u, action_mask=mask, backend=backend)], [kl])
    with pytest.raises(TypeError, match="action_mask is torch.float32"):
        path_kl(v, u, action_mask=mask.float())
    with pytest.raises(ValueError, match=r"action_mask is \[2\] on cpu; expected \[3\]"):
        adjoint_matching(v, u, a, lam, action_mask=mask[1:])
