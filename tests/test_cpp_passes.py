"""The compiled CPU passes on every instruction set: large sizes, bf16, memory, threads."""

import sys

import pytest
import torch

from tests.helpers import (
    assert_equal64,
    assert_within_budget,
    cast,
    draw,
    gradients,
    make_field,
    make_mlp,
    mean_error,
)
from trqam_fast.kernels import (
    BackendError,
    GradientMemory,
    adjoint_matching,
    lean_adjoint,
    mlp,
    ode_rollout,
    sde_rollout,
    velocity_along,
)
from trqam_fast.kernels.dispatch import extension

# Several tiles, panels and tasks of rows, none of them full; another width in every layer.
WIDE = dict(hidden=(70, 129, 33), layer_norm=True)
SETS = extension().instruction_sets()
EXACT = [name for name in SETS if name != "avx512_bf16"]


@pytest.fixture
def use(monkeypatch):
    """Choose the instruction set of the passes."""
    module = sys.modules["trqam_fast.kernels.mlp.cpp"]
    return lambda name: monkeypatch.setattr(module, "instruction_set", name)


def pass_through_mlp(backend, dtype, precision="ieee"):
    weights = cast(make_mlp(19, 3, runs=2, ensemble=3, **WIDE), dtype)
    x = draw(2, 300, 19).to(dtype).requires_grad_()
    out = mlp(weights, x, backend=backend, precision=precision)
    return [out, *gradients([out], [x, *weights.tensors])]


def pass_through_field(backend, dtype, precision="ieee"):
    options = {"backend": backend, "precision": precision}
    fine, base = (cast(make_field(11, 5, runs=2, seed=s, **WIDE), dtype) for s in (0, 7))
    s, x, ode_s, ode_x = (
        draw(2, rows, width, seed=rows + width).to(dtype)
        for rows, width in ((75, 11), (75, 5), (150, 11), (150, 5))
    )
    noise = draw(2, 3, 75, 5, seed=4).to(dtype)
    rollout = sde_rollout(fine, base, s, x, noise, ode_observations=ode_s, ode_x0=ode_x, **options)
    grads = gradients([rollout.velocity], fine.tensors)
    # Points of a trajectory that does not depend on the precision.
    points = draw(2, 5, 75, 5, seed=5).to(dtype)
    return [
        *rollout, *grads,
        lean_adjoint(base.detach(), s, points, x, **options),
        velocity_along(fine, s, points[:, :-1], **options),
        ode_rollout(fine.detach(), ode_s, ode_x, 3, **options),
    ]  # fmt: skip


CALLS = [pass_through_mlp, pass_through_field]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", EXACT)
def test_float64_equals_reference(use, name, call):
    use(name)
    assert_equal64(call("cpp", torch.float64), call("reference", torch.float64))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", EXACT)
def test_float32_within_budget(use, name, call):
    use(name)
    assert_within_budget(
        call("cpp", torch.float32),
        call("reference", torch.float32),
        call("reference", torch.float64),
    )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", SETS)
def test_bf16_rounds_operands_alone(use, name, call):
    """Errors like those of operands with 8 bits, and the same on every instruction set."""
    use(name)
    found, exact = call("cpp", torch.float32, "bf16"), call("reference", torch.float64)
    errors = [mean_error(ours, truth) for ours, truth in zip(found, exact, strict=True)]
    assert 2**-12 < max(errors) < 2**-7
    # The last bias' gradient is a sum of float32 cotangents: no product, nothing is rounded.
    if call is pass_through_mlp:
        assert errors[9] < 1e-7
    use("baseline")
    for index, (ours, other) in enumerate(
        zip(found, call("cpp", torch.float32, "bf16"), strict=True)
    ):
        assert mean_error(ours, other.double()) < 1e-3, index


@pytest.mark.parametrize("call", CALLS)
def test_results_do_not_depend_on_the_threads(call):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(call("cpp", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_default_set_is_the_fastest(use):
    use("")
    default = pass_through_mlp("cpp", torch.float32)
    use(EXACT[0])
    chosen = pass_through_mlp("cpp", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(default, chosen, strict=True))
    use("avx1024")
    with pytest.raises(ValueError, match="'avx1024' is not available"):
        pass_through_mlp("cpp", torch.float32)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_of_near_and_extreme_values(use, name, dtype):
    """Through a network of identity kernels, which leaves nothing but the activation."""
    use(name)
    eye = torch.eye(32, dtype=dtype).unsqueeze(0)
    zero = torch.zeros(1, 32, dtype=dtype)
    weights = make_mlp(32, 32, (32,), dtype=dtype)._replace(kernels=(eye, eye), biases=(zero, zero))
    near = torch.linspace(-12, 12, 63 * 32, dtype=torch.float64)
    far = torch.tensor([22.0, 1e3, 1e9, 1e-30, 0.0], dtype=torch.float64)
    z = torch.cat([near, far, -far, near[:22]]).view(1, 64, 32).to(dtype)

    def run(backend, z):
        z = z.clone().requires_grad_()
        out = mlp(weights.map(lambda t: t.to(z.dtype)), z, backend=backend)
        return [out, *gradients([out], [z])]

    found, plain, exact = run("cpp", z), run("reference", z), run("reference", z.double())
    if dtype == torch.float64:
        assert_equal64(found, exact)
    else:
        for part in (slice(0, 60), slice(60, 64)):
            assert_within_budget(*([t[:, part] for t in ts] for ts in (found, plain, exact)))
    z[0, 0, 3] = float("nan")
    rows = run("cpp", z)[0].isnan().any(-1)
    assert rows[0, 0] and not rows[0, 1:].any()


def test_gradient_memory_is_used_once():
    weights = make_mlp(5, 3, runs=2, layer_norm=True, ensemble=2)
    x = draw(2, 9, 5)
    expected = gradients([mlp(weights, x, backend="cpp")], weights.tensors)
    memory = GradientMemory([torch.full_like(t, float("nan")) for t in weights.tensors])
    owned = weights._replace(memory=memory)
    first = gradients([mlp(owned, x, backend="cpp")], weights.tensors)
    assert [t.data_ptr() for t in first] == [t.data_ptr() for t in memory.tensors]
    # Autograd adds these two: they must not share memory.
    memory.release()
    twice = gradients([mlp(owned, x, backend="cpp") for _ in range(2)], weights.tensors)
    other = gradients([mlp(weights, x, backend="cpp") for _ in range(2)], weights.tensors)
    assert_equal64(twice, other)
    for ours, truth in zip(gradients([mlp(owned, x, backend="cpp")], weights.tensors), expected,
                           strict=True):  # fmt: skip
        assert torch.equal(ours, truth)


def test_no_rows():
    weights, x = make_mlp(5, 3, runs=2, layer_norm=True, ensemble=2), draw(2, 0, 5)
    x.requires_grad_()
    out = mlp(weights, x, backend="cpp")
    assert out.shape == (2, 2, 0, 3)
    assert all((g == 0).all() for g in gradients([out], [x, *weights.tensors]))
    field, s, points = make_field(3, 2), draw(1, 0, 3), draw(1, 4, 0, 2)
    assert lean_adjoint(field.detach(), s, points, points[:, 0], backend="cpp").numel() == 0


def test_sliced_weights_and_inputs():
    """Networks of a larger stack, strided rows and transposed kernels are read where they lie."""
    weights = make_mlp(5, 3, runs=4, layer_norm=True, ensemble=2)
    x = draw(4, 9, 10)[..., ::2]
    part = weights.map(lambda t: t[1:3])
    turned = part._replace(
        kernels=tuple(k.transpose(-1, -2).contiguous().transpose(-1, -2) for k in part.kernels)
    )
    whole = mlp(weights, x, backend="reference")[1:3]
    for some in (part, turned):
        assert_equal64([mlp(some, x[1:3], backend="cpp")], [whole])


def operations():
    fine, base = (list(make_field(3, 2, layer_norm=True, seed=s).detach().tensors) for s in (0, 1))
    s, x, eps, points = draw(1, 4, 3), draw(1, 4, 2), draw(1, 2, 4, 2), draw(1, 4, 4, 2)
    inputs, ops = draw(1, 4, 6), torch.ops.trqam_fast
    yield ops.sde_rollout_cpp, (fine, True, base, True, s, x, eps, s, x, 3, "ieee", True)
    yield ops.lean_adjoint_cpp, (base, True, s, points, x, "ieee")
    yield ops.velocity_along_cpp, (base, True, s, points, "ieee")
    yield ops.mlp_cpp_forward, (fine, True, inputs, "ieee", False)
    _, tape = ops.mlp_cpp_forward(fine, True, inputs, "ieee", True)
    memory = [torch.empty_like(t) for t in fine]
    yield ops.mlp_cpp_backward, (fine, True, inputs, tape, x, "ieee", True, memory)


@pytest.mark.parametrize("index", range(5))
def test_opcheck(index):
    op, arguments = list(operations())[index]
    # Unused rows of a tape's padding are never written, so outputs are compared by schema alone.
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op.default, arguments, test_utils=utils)


def test_compiles_without_graph_breaks():
    fine, base = (make_field(3, 2, layer_norm=True, seed=s) for s in (0, 1))
    base, s, x, eps = base.detach(), draw(1, 4, 3), draw(1, 4, 2), draw(1, 2, 4, 2)

    def loss(s, x, eps):
        rollout = sde_rollout(fine, base, s, x, eps, backend="cpp")
        adjoint = lean_adjoint(base, s, rollout.trajectory, x, backend="cpp")
        along = velocity_along(base, s, rollout.trajectory[:, :-1], backend="cpp")
        lam = torch.ones(1, dtype=x.dtype)
        value, kl = adjoint_matching(rollout.velocity, along, adjoint, lam, backend="cpp")
        cloned = mlp(fine, torch.cat([s, x, x[..., :1]], -1), backend="cpp")
        return value + cloned.square().mean((1, 2)), kl

    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        value, kl = function(s, x, eps)
        results.append([value, kl, *torch.autograd.grad(value.sum(), fine.tensors)])
    assert_equal64(*results)


def test_limits_are_named():
    deep = make_mlp(3, 2, (4,) * 17)
    with pytest.raises(BackendError, match="up to 16 hidden layers, and the network has 17"):
        mlp(deep, draw(1, 2, 3), backend="cpp")
    assert_equal64([mlp(deep, draw(1, 2, 3))], [mlp(deep, draw(1, 2, 3), backend="reference")])
    weights, x = make_mlp(3, 2), draw(1, 2, 3)
    with pytest.raises(BackendError, match="bf16 operands need float32 tensors"):
        mlp(weights, x, backend="cpp", precision="bf16")
    with pytest.raises(BackendError, match="has no precision 'tf32'; use 'ieee' or 'bf16'"):
        mlp(cast(weights, torch.float32), x.float(), backend="cpp", precision="tf32")
