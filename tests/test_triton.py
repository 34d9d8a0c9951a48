"""Every Triton kernel against the float64 reference: on a GPU, or under Triton's interpreter.

The interpreter must be on before Triton is imported, so it takes a process of its own:

    TRITON_INTERPRET=1 pytest -m interpreter
"""

import pytest
import torch

from tests.helpers import error, gradients, poisoned_memory
from tests.triton_cases import (
    DEVICE,
    FIELDS,
    INTERPRETED,
    NEEDS_TRITON,
    PRECISIONS,
    cast,
    check,
    counters,
    draw,
    make,
    make_mlp,
)  # fmt: skip
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import (
    Philox,
    adjoint_matching,
    lean_adjoint,
    mlp,
    ode_rollout,
    philox_normal,
    sde_rollout,
    velocity_along,
)

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FIELDS)
def test_sde_rollout(name, precision):
    fields, data, (ode_s, ode_x) = make(**FIELDS[name])

    def run(backend, dtype):
        fine, base = (cast(field, dtype) for field in fields)
        rollout = sde_rollout(
            fine, base, *(t.to(dtype) for t in data),
            ode_observations=ode_s.to(dtype), ode_x0=ode_x.to(dtype),
            backend=backend, precision=precision if backend == "triton" else "ieee",
        )  # fmt: skip
        assert not rollout.trajectory.requires_grad and not rollout.ode_x.requires_grad
        return [*rollout, *gradients([rollout.velocity], fine.tensors)]

    check(run, precision)


@pytest.mark.parametrize("name", ["two tiles", "uneven"])
def test_rollout_without_gradients_keeps_no_tape(name):
    """The same numbers from two alternating layers of scratch."""
    (fine, base), data, ode = make(**FIELDS[name])
    arguments = [cast(fine, torch.float32), cast(base, torch.float32)]
    data, ode = [t.float() for t in data], [t.float() for t in ode]
    rows = dict(zip(("ode_observations", "ode_x0"), ode, strict=True), backend="triton")
    kept = sde_rollout(*arguments, *data, **rows)
    with torch.no_grad(), poisoned_memory():
        bare = sde_rollout(*arguments, *data, **rows)
        acted = ode_rollout(arguments[0], *ode, data[2].shape[1] + 1, backend="triton")
    # Two compilations on a GPU, which may contract products and sums differently.
    for ours, theirs in zip((*bare, acted), (*kept, kept.ode_x), strict=True):
        assert error(ours, theirs.double()) <= (0 if INTERPRETED else 1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FIELDS)
def test_lean_adjoint(name, precision):
    (_, base), (s, x, _), _ = make(**FIELDS[name])
    points = draw(x.shape[0], FIELDS[name]["steps"] + 1, *x.shape[1:], seed=7)

    def run(backend, dtype):
        return [
            lean_adjoint(
                cast(base, dtype), s.to(dtype), points.to(dtype), x.to(dtype),
                backend=backend, precision=precision if backend == "triton" else "ieee",
            )
        ]  # fmt: skip

    check(run, precision)


@pytest.mark.parametrize("name", ["one row", "two tiles", "uneven"])
def test_velocity_along(name):
    (field, _), (s, x, _), _ = make(**FIELDS[name])
    points = draw(x.shape[0], FIELDS[name]["steps"] + 1, *x.shape[1:], seed=7)[:, :-1]

    def run(backend, dtype):
        return [velocity_along(cast(field, dtype), s.to(dtype), points.to(dtype), backend=backend)]

    check(run)


@pytest.mark.parametrize(
    "case",
    [
        dict(runs=1, hidden=(32, 32), layer_norm=True, ensemble=3),
        dict(runs=3, hidden=(16, 24), layer_norm=True, ensemble=2),
        dict(runs=2, hidden=(64,), layer_norm=False),
        dict(runs=1, hidden=(48,) * 3, layer_norm=False, ensemble=1),
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_mlp(case, precision):
    weights, inputs = make_mlp(7, 2, seed=3, **case), draw(case["runs"], 37, 7, seed=4)

    def run(backend, dtype):
        net, x = cast(weights, dtype), inputs.to(dtype).requires_grad_()
        result = mlp(
            net, x, backend=backend, precision=precision if backend == "triton" else "ieee"
        )
        return [result, *gradients([result], [x, *net.tensors])]

    check(run, precision)


def test_mlp_gradients_that_are_not_needed():
    """Inputs alone, as for the terminal adjoint, and weights alone, as for a critic's loss."""
    weights = cast(make_mlp(5, 1, layer_norm=True, ensemble=2), torch.float32)
    inputs = draw(1, 9, 5).float().requires_grad_()
    frozen, fixed = weights.detach(), inputs.detach()
    for net, x, wanted in ((frozen, inputs, [inputs]), (weights, fixed, weights.tensors)):
        with poisoned_memory():
            ours = gradients([mlp(net, x, backend="triton")], wanted)
        theirs = gradients([mlp(net, x, backend="reference")], wanted)
        for a, b in zip(ours, theirs, strict=True):
            assert error(a, b.double()) < 1e-5
    with torch.no_grad():
        assert not mlp(weights, inputs, backend="triton").requires_grad


@pytest.mark.parametrize("shape", [(1, 4, 7, 3), (3, 2, 1, 1), (2, 3, 65, 32)])
def test_adjoint_matching(shape):
    v, u, a = (draw(*shape, seed=s) for s in range(3))
    lam = draw(shape[0], seed=4).abs() + 0.1

    def run(backend, dtype):
        velocity = v.to(dtype).requires_grad_()
        rest = [t.to(dtype) for t in (u, a, lam)]
        loss, kl = adjoint_matching(velocity, *rest, horizon=2, backend=backend)
        assert not kl.requires_grad
        return [loss, kl, *gradients([loss], [velocity])]

    check(run)


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
def test_adjoint_matching_bounds_lam(lam):
    v, u, a = (draw(2, 3, 5, 2, seed=s).float() for s in range(3))
    lams = torch.tensor([lam, 0.7], device=DEVICE)
    ours = adjoint_matching(v, u, a, lams, backend="triton")
    theirs = adjoint_matching(v, u, a, lams, backend="reference")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0, equal_nan=True)


def test_noise_in_the_kernel_is_the_documented_noise():
    fields, (s, x, _), _ = make(**FIELDS["uneven"])
    fields = [cast(field, torch.float32).detach() for field in fields]
    s, x = s.float(), x.float()
    noise = counters([5, 2**40 + 1, -3], 2**31 + 9)
    eps = philox_normal(noise, (3, *x.shape[1:]))
    drawn = sde_rollout(*fields, s, x, noise, flow_steps=4, backend="triton")
    given = sde_rollout(*fields, s, x, eps, backend="triton")
    assert error(drawn.trajectory, given.trajectory.double()) < 1e-6
    # Seeds need not lie side by side.
    shared = Philox(noise.seed[:1].expand(3), noise.offset)
    ours, theirs = (
        sde_rollout(*fields, s, x, shared, flow_steps=4, backend=backend).trajectory
        for backend in ("triton", "reference")
    )
    assert error(ours, theirs.double()) < 1e-5
    # With zero fields the noise itself can be read from the trajectory: X_2 - X_1 (1 - 1/2).
    silent = [field.map(torch.zeros_like) for field in fields]
    points = sde_rollout(*silent, s, x, noise, flow_steps=4, backend="triton").trajectory
    scale = (2.0 * (4 - 1 + 1) / (4 * 2)) ** 0.5
    assert error((points[:, 2] - 0.5 * points[:, 1]) / scale, eps[:, 1].double()) < 1e-5


def test_half_precision_operands(monkeypatch):
    """float16 takes bfloat16's way through the kernels, which the interpreter gets wrong."""
    import triton.language as tl

    from trqam_fast.kernels.mlp import network

    if INTERPRETED:
        monkeypatch.setitem(network.OPERANDS, "bf16", tl.float16)
    coarse = 1 if INTERPRETED else 8
    fields, data, _ = make(**FIELDS["uneven"])
    fine, base = (cast(field, torch.float32) for field in fields)
    data = [t.float() for t in data]
    half = sde_rollout(fine, base, *data, backend="triton", precision="bf16")
    exact = sde_rollout(fine, base, *data, backend="reference")
    assert 1e-6 < error(half.trajectory, exact.trajectory.double()) < 3e-3 * coarse
    ours = gradients([half.velocity], fine.tensors)
    theirs = gradients([exact.velocity], fine.tensors)
    assert all(error(a, b.double()) < 6e-3 * coarse for a, b in zip(ours, theirs, strict=True))
    points = exact.trajectory
    adjoint = [
        lean_adjoint(base, data[0], points, data[1], **options)
        for options in (dict(backend="triton", precision="bf16"), dict(backend="reference"))
    ]
    assert 1e-6 < error(adjoint[0], adjoint[1].double()) < 3e-3 * coarse


def test_weights_are_read_in_place():
    """Packed parameters of full blocks are not copied; anything else gives the same result."""
    from trqam_fast.kernels.mlp import network
    from trqam_fast.networks import MLPShape, ParameterBlock

    shape = MLPShape(6, (32, 32), 2, layer_norm=True, ensemble=3)
    block = ParameterBlock({"other": MLPShape(3, (5,), 1), "net": shape}, 2, device=DEVICE)
    block.initialise([torch.Generator().manual_seed(s) for s in range(2)])
    packed = block.networks["net"]
    plan = network.make_plan(packed, "ieee", obs=6, train=False)
    net = network.make_network(packed, plan)
    assert net.w_hid.data_ptr() == packed.kernels[1].data_ptr()
    assert net.shift.data_ptr() == packed.norm_biases[0].data_ptr()
    assert net.kernel_stride == block.flat.stride(0)
    loose = packed.map(lambda t: t.clone())
    assert network.make_network(loose, plan).w_hid.data_ptr() != loose.kernels[1].data_ptr()
    inputs = draw(2, 5, 6).float()
    results = [mlp(net, inputs, backend="triton") for net in (packed, loose)]
    assert torch.equal(*results)


def test_sliced_inputs():
    fields, (s, x, eps), _ = make(**FIELDS["two tiles"])
    fields = [cast(field, torch.float32) for field in fields]

    def sliced(t):
        return t.float().repeat_interleave(2, -1)[..., ::2]

    ours = sde_rollout(*fields, sliced(s), sliced(x), sliced(eps), backend="triton")
    theirs = sde_rollout(*fields, s.float(), x.float(), eps.float(), backend="triton")
    assert torch.equal(ours.trajectory, theirs.trajectory)
    for points in (ours.trajectory, ours.trajectory.transpose(2, 3).contiguous().transpose(2, 3)):
        adjoint = lean_adjoint(fields[1], sliced(s), points, sliced(x), backend="triton")
        along = velocity_along(fields[0], sliced(s), points[:, :-1], backend="triton")
        assert error(along, ours.velocity.double()) < 1e-6
        assert adjoint.isfinite().all()


def test_a_run_that_diverged_does_not_touch_the_others():
    fields, data, ode = make(**FIELDS["uneven"])
    fields = [cast(field, torch.float32).detach() for field in fields]
    data = [t.float() for t in data]
    clean = sde_rollout(*fields, *data, backend="triton")
    sweep = lean_adjoint(fields[1], data[0], clean.trajectory, data[1], backend="triton")
    for tensor in (fields[0].kernels[1], fields[1].biases[0]):
        tensor[1] = float("nan")
    dirty = sde_rollout(*fields, *data, backend="triton")
    swept = lean_adjoint(fields[1], data[0], clean.trajectory, data[1], backend="triton")
    for a, b in ((clean.trajectory, dirty.trajectory), (sweep, swept)):
        assert b[1].isnan().any() and torch.equal(a[[0, 2]], b[[0, 2]])


def test_an_update_equals_the_reference():
    """Two updates of TRQAM with an ensemble, LayerNorm, chunks and best of two."""
    config = TRQAMConfig(
        batch_size=6, actor_hidden_dims=(32, 32), actor_layer_norm=True, value_hidden_dims=(16,),
        num_qs=3, flow_steps=3, horizon_length=2, action_chunking=True, best_of_n=2,
    )  # fmt: skip
    batch = Batch(
        draw(2, 6, 3).float(), draw(2, 6, 2, 2, seed=1).float().clamp(-1, 1),
        draw(2, 6, seed=2).float(), *torch.ones(2, 2, 6, device=DEVICE).unbind(0),
        draw(2, 6, 3, seed=3).float(),
    )  # fmt: skip
    agents = []
    for backend in ("triton", "reference"):
        agent = TRQAMAgent(config, 3, 2, [0, 1], backend=backend, device=DEVICE)
        generators = [torch.Generator(DEVICE).manual_seed(s) for s in range(2)]
        for _ in range(2):
            terms = agent.update(batch, agent.draw_noise(generators))
        agents.append(
            (agent.online.flat, agent.target.flat, agent.dual.lam, *terms.metrics.values())
        )
    for ours, theirs in zip(*agents, strict=True):
        assert error(ours, theirs.double()) < 1e-4
