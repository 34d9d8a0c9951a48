"""What every op promises, whatever it computes, by every compiled implementation that it has.

One test for each promise, over the table of `trqam_fast.op_cases`. C++ runs on the CPU, Triton's
kernels on a GPU or, with `TRITON_INTERPRET=1 pytest -m interpreter`, under its interpreter.

Longer than 400 lines, as each promise is a test of all ops.
"""

import functools
import sys
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.helpers import (
    DEVICE,
    INTERPRETED,
    NEEDS_TRITON,
    ErrorBudget,
    assert_equal64,
    error,
    make_mlp,
    mean_error,
    poisoned_memory,
)
from trqam_fast.kernels import (
    MLPWeights,
    NoiseSchedule,
    adjoint_matching,
    lean_adjoint,
    mlp,
    path_kl,
    rollout_operands,
    sde_rollout,
    velocity_along,
    with_operands,
)
from trqam_fast.kernels.checks import check_integers
from trqam_fast.kernels.dispatch import OPS, extension
from trqam_fast.op_cases import CASES, Sizes, convert, draw_inputs, evaluate, tensors_of

SETS = [name for name in extension().instruction_sets() if name != "avx512_bf16"]
FLOATING = [name for name, case in CASES.items() if case.rounds]
PASSES = [name for name, case in CASES.items() if OPS[case.op].networks]
WITH_CPP = [name for name, case in CASES.items() if OPS[case.op].cpp]
WITH_TRITON = [name for name, case in CASES.items() if OPS[case.op].triton]

# Odd batches around the tiles' 32 and 64 rows; widths that fill blocks, that do not, and that
# differ; one to six layers; D = 1 and D beyond a block of 32; K = 1; with and without an ensemble.
SIZES = {
    "one layer": Sizes(1, 5, 3, 2, (32,), False, steps=3, ensemble=None),
    "one row": Sizes(3, 1, 2, 1, (8,), True, steps=1, ensemble=1),
    "two tiles": Sizes(1, 65, 6, 5, (64, 64), False, steps=3, ensemble=3),
    "uneven": Sizes(2, 33, 3, 2, (16, 40, 24), True, steps=3, ensemble=None),
    "two blocks": Sizes(1, 7, 40, 37, (128, 96), True, steps=2),
    "many outputs": Sizes(1, 17, 2, 100, (32,), True, steps=2),
    "small": Sizes(2, 3, 2, 2, (8, 16), True, steps=2),
    "six layers": Sizes(2, 3, 1, 3, (16,) * 6, False, steps=2, ensemble=1),
}
# Narrow layers, which amplify rounding; several tiles, panels and tasks of rows, none of them full.
CPU_SIZES = {
    **SIZES,
    "narrow": Sizes(1, 63, 4, 1, (9, 7, 5, 3), True, ensemble=4),
    "ten steps": Sizes(1, 63, 6, 5, (16, 24), False, steps=10, ensemble=None),
    "wide": Sizes(2, 75, 11, 5, (70, 129, 33), True, ensemble=3, ode_batch=150),
    "many rows": Sizes(2, 300, 14, 5, (70, 129, 33), True, steps=2, ensemble=3),
}
SMALL = SIZES["small"]
DRAWS = 20
"""Independent runs over which an error budget is judged: each is a random draw."""


def enough_runs(size):
    """Runs that bring a budget at least four standard errors from its limit.

    One draw's ratio spreads by up to a factor of e where a tensor has few elements, or where
    narrow layers amplify rounding; elsewhere by a quarter of that.
    """
    return 5 * DRAWS if size == "narrow" or CPU_SIZES[size].batch < 8 else DRAWS


def implementations(cases, *, sets=False, precisions=False):
    """Parameters (case, backend, setting): an instruction set of C++, a precision of Triton."""
    chosen = []
    for name in cases:
        for setting in (SETS if sets else SETS[:1]) if name in WITH_CPP else ():
            chosen.append(pytest.param(name, "cpp", setting, id=f"{name}-cpp-{setting}"))
        for setting in ("ieee", "tf32") if precisions and name in PASSES else ("ieee",):
            if name in WITH_TRITON:
                identity = f"{name}-triton-{setting}"
                chosen.append(
                    pytest.param(name, "triton", setting, id=identity, marks=NEEDS_TRITON)
                )
    return pytest.mark.parametrize(("name", "backend", "setting"), chosen)


def on_the_cpu(cases):
    """Parameters (case, "cpp", instruction set)."""
    chosen = [(name, "cpp", setting) for name in cases for setting in SETS]
    return pytest.mark.parametrize(("name", "backend", "setting"), chosen)


@pytest.fixture
def options(name, backend, setting, monkeypatch):
    """Options of a call by an implementation."""
    if backend == "triton":
        return {"backend": backend} | ({"precision": setting} if name in PASSES else {})
    module = sys.modules["trqam_fast.kernels.cpp"]
    monkeypatch.setattr(module, "instruction_set", setting)
    return {"backend": "cpp"}


def draw(name, sizes, backend, seed=0):
    """Inputs where an implementation takes them: float32 for Triton, else float64."""
    if backend == "triton":
        return draw_inputs(CASES[name], sizes, seed, dtype=torch.float32, device=DEVICE)
    return draw_inputs(CASES[name], sizes, seed)


@functools.cache
def reference(name, sizes, dtype, device="cpu"):
    inputs = draw_inputs(CASES[name], sizes, dtype=dtype, device=device)
    return evaluate(CASES[name], inputs, backend="reference")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@on_the_cpu(WITH_CPP)
def test_float64_equals_reference(name, options):
    """At every size; memory that was not initialised is NaN.

    LayerNorm over three units amplifies rounding by up to 1e4; elsewhere errors are up to 4e-15.
    """
    for size, sizes in CPU_SIZES.items():
        limit = 1e-11 if size == "narrow" else 1e-13
        with poisoned_memory():
            found = evaluate(CASES[name], draw(name, sizes, "cpp"), **options)
        exact = reference(name, sizes, torch.float64)
        assert found.keys() == exact.keys(), size
        for key, value in found.items():
            assert value.shape == exact[key].shape, (size, key)
            assert error(value, exact[key]) <= limit, (size, key, error(value, exact[key]))


@implementations(FLOATING, sets=True, precisions=True)
def test_float32_within_budget(name, backend, setting, options):
    """Errors against float64 are at most twice those of plain PyTorch in float32.

    Judged for every size and tensor over `DRAWS` runs; under the interpreter, which is slow, for
    every kind of tensor over the runs of all sizes. TF32 operands have 10 bits on a GPU.
    """
    device, together = ("cpu", False) if backend == "cpp" else (DEVICE, INTERPRETED)
    budget = ErrorBudget()
    for size, sizes in (CPU_SIZES if backend == "cpp" else SIZES).items():
        missing = DRAWS - sum(each.runs for each in SIZES.values()) if size == "small" else 0
        sizes = replace(sizes, runs=sizes.runs + missing if together else enough_runs(size))
        inputs = draw_inputs(CASES[name], sizes, dtype=torch.float32, device=device)
        with poisoned_memory():
            found = evaluate(CASES[name], inputs, **options)
        plain, exact = (reference(name, sizes, t, device) for t in (torch.float32, torch.float64))
        assert found.keys() == exact.keys(), size
        for key, value in found.items():
            if setting == "tf32" and not INTERPRETED:
                assert mean_error(value, exact[key]) < 2e-3, (size, key)
                continue
            assert error(value, exact[key]) < 1e-3, (size, key)
            budget.add(
                key.split("[")[0] if together else (size, key), value, plain[key], exact[key]
            )
    budget.check(DRAWS)


def test_budget_notices_lost_accuracy():
    """Three times the error is found, however ill-conditioned some draws are; 1.4 times passes."""
    exact = torch.randn(DRAWS, 50, dtype=torch.float64)
    condition = 10 ** torch.linspace(-6.5, -4, DRAWS, dtype=torch.float64).unsqueeze(1)

    def noisy(factor):
        return (exact + factor * condition * torch.randn_like(exact)).float()

    for factor, sound in ((1.0, True), (1.4, True), (3.0, False)):
        budget = ErrorBudget()
        budget.add("tensor", noisy(factor), noisy(1.0), exact)
        if sound:
            budget.check(DRAWS)
        else:
            with pytest.raises(AssertionError, match="tensor"):
                budget.check(DRAWS)


@implementations(CASES)
def test_results_are_the_same_for_any_strides(name, backend, options):
    case, inputs = CASES[name], draw(name, SMALL, backend)
    if not case.strided:
        pytest.skip("takes contiguous tensors alone")

    def strided(tensor):
        if tensor.dim() < 2:
            return tensor.repeat_interleave(2, -1)[..., ::2]
        return tensor.transpose(-1, -2).repeat_interleave(2, -2)[..., ::2, :].transpose(-1, -2)

    changed = convert(inputs, strided)
    assert_equal(evaluate(case, changed, **options), evaluate(case, inputs, **options))


@implementations(CASES)
def test_inputs_are_not_written(name, backend, options):
    inputs = draw(name, SMALL, backend)
    copies = convert(inputs, torch.clone)
    evaluate(CASES[name], inputs, **options)
    names = [n for n, value in inputs.items() if isinstance(value, (torch.Tensor, MLPWeights))]
    assert_equal(tensors_of(inputs, names), tensors_of(copies, names))


@implementations(CASES)
def test_runs_are_independent(name, backend, options):
    """Two runs of four, read where they lie, give what they give among the others."""
    inputs = draw(name, replace(SMALL, runs=4), backend)
    together = evaluate(CASES[name], inputs, **options)

    def two_of(tensor):
        part = tensor[1:3] if tensor.shape[0] == 4 else tensor
        return part if CASES[name].strided else part.contiguous()

    alone = evaluate(CASES[name], convert(inputs, two_of), first_run=1, **options)
    assert_equal(alone, {key: value[1:3] for key, value in together.items()})


@implementations(FLOATING)
def test_nan_stays_in_its_run(name, backend, options):
    inputs = draw(name, replace(SMALL, runs=3), backend)
    clean = evaluate(CASES[name], inputs, **options)

    def poisoned(tensor):
        tensor = tensor.clone()
        tensor[1].view(-1)[0] = float("nan")
        return tensor

    dirty = evaluate(CASES[name], convert(inputs, poisoned), **options)
    assert any(value[1].isnan().any() for value in dirty.values())
    others = [0, 2]
    assert_equal(*({k: value[others] for k, value in found.items()} for found in (dirty, clean)))


@pytest.mark.parametrize("name", WITH_CPP)
def test_results_do_not_depend_on_the_threads(name):
    before, results = torch.get_num_threads(), []
    inputs = draw_inputs(CASES[name], CPU_SIZES["wide"], dtype=torch.float32)
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(evaluate(CASES[name], inputs, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_equal(other, results[0])


@pytest.mark.parametrize(
    "name",
    # Not the rollout's, whose velocities are differentiated with the points held fixed.
    [n for n, case in CASES.items() if case.differentiable and n != "sde_rollout"],
)
def test_gradcheck_of_reference(name):
    case = CASES[name]
    inputs = draw_inputs(case, Sizes(2, 3, 1, 2, (3, 2), True, steps=2))
    leaves = tensors_of(inputs, case.differentiable)
    for leaf in leaves.values():
        leaf.requires_grad_()

    def function(*_):
        outputs = case.call(inputs, backend="reference").values()
        return tuple(output for output in outputs if output.requires_grad)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
@pytest.mark.parametrize(
    "name",
    ["adjoint_matching", "path_kl", "adjoint_sizes", "squared_error", "td_loss", "td_target"],
)
def test_means_over_nothing_are_refused(name, backend):
    """Before a backend is chosen, so by all of them in the same words."""
    inputs = draw_inputs(CASES[name], replace(SMALL, batch=0))
    with pytest.raises(ValueError, match=rf"^{name}: \w+ has shape .*0.*; every size must be >= 1"):
        CASES[name].call(inputs, backend=backend)


def test_a_pool_holds_every_transition():
    inputs = draw_inputs(CASES["gather_sequences"], SMALL)
    rows = len(inputs["actions"])
    with pytest.raises(ValueError, match=f"pool has {rows - 1} rows for {rows} actions; pass the"):
        CASES["gather_sequences"].call(inputs | {"pool": inputs["pool"][: rows - 1]})


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("adjoint_matching", "horizon"),
        ("path_kl", "horizon"),
        ("gather_sequences", "horizon"),
        ("ode_rollout", "flow_steps"),
        ("philox", "stream"),
        ("philox", "normals"),
    ],
)
def test_whole_numbers_are_asked_for(name, argument, backend):
    inputs = draw_inputs(CASES[name], SMALL)
    with pytest.raises(TypeError, match=f"^{name}: {argument} is 2.5; pass an integer"):
        CASES[name].call(inputs | {argument: 2.5}, backend=backend)


@implementations([n for n, case in CASES.items() if case.differentiable])
def test_double_backward_raises(name, backend, options):
    case, inputs = CASES[name], draw(name, SMALL, backend)
    leaf, *_ = tensors_of(inputs, case.differentiable).values()
    leaf.requires_grad_()
    outputs = [o for o in case.call(inputs, **options).values() if o.requires_grad]
    weights = [torch.ones_like(output, requires_grad=True) for output in outputs]
    total = sum((w * output).sum() for w, output in zip(weights, outputs, strict=True))
    (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name, case in CASES.items()
        for backend in ("reference", *(["cpp"] if OPS[case.op].cpp else []))
        if case.differentiable and case.refused
    ],
)
def test_the_backward_pass_refuses_constants(name, backend):
    """The other outputs are constants."""
    case = CASES[name]
    for constant in case.refused:
        inputs = draw_inputs(case, SMALL)
        (leaf, *_), (refused,) = (
            list(tensors_of(inputs, names).values()) for names in (case.differentiable, (constant,))
        )
        leaf.requires_grad_()
        refused.requires_grad_()
        outputs = case.call(inputs, backend=backend)
        found = [key for key, value in outputs.items() if value is not None and value.requires_grad]
        assert found == {"sde_rollout": ["velocity"]}.get(name, ["loss"])
        with pytest.raises(
            RuntimeError, match=f"^{case.op}: no gradient with respect to {constant};"
        ):
            outputs[found[0]].sum().backward()


@implementations([n for n, case in CASES.items() if case.refused])
def test_unsupported_gradients_raise(name, backend, options):
    case = CASES[name]
    for refused in case.refused:
        inputs = draw(name, SMALL, backend)
        for leaf in tensors_of(inputs, (*case.differentiable, refused)).values():
            leaf.requires_grad_()
        with pytest.raises(RuntimeError, match=f"no gradient with respect to {refused}"):
            sum(
                o.sum() for o in case.call(inputs, **options).values() if o.requires_grad
            ).backward()


class Recorder(TorchDispatchMode):
    """Notes the calls of this project's registered ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "trqam_fast":
            detached = tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, args)
            self.calls.append((func, detached, kwargs or {}))
        return func(*args, **(kwargs or {}))


PREPARATIONS = (
    torch.ops.trqam_fast.mlp_operands.default, torch.ops.trqam_fast.rollout_operands.default,
)  # fmt: skip


@implementations(CASES)
def test_opcheck(name, backend, options):
    with Recorder() as recorder:
        inputs = draw(name, SMALL, backend)
        evaluate(CASES[name], inputs, **options)
        if name == "mlp":
            mlp(**inputs | {"weights": with_operands(inputs["weights"], **options)}, **options)
        if name == "sde_rollout":
            fields = inputs["velocity"], inputs["base_velocity"]
            operands = rollout_operands(*fields, **options)
            sde_rollout(**inputs, operands=operands, **options)
    assert recorder.calls
    for op, arguments, keywords in recorder.calls:
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        # What pads the C++ passes' tapes, and operands, is never written nor read: outputs differ.
        compared = name not in PASSES or backend == "triton"
        if compared and op not in PREPARATIONS:
            tests += ("test_aot_dispatch_dynamic",)
        torch.library.opcheck(op, arguments, keywords, test_utils=tests)


@pytest.mark.parametrize("backend", ["cpp", pytest.param("triton", marks=NEEDS_TRITON)])
def test_compiles_without_graph_breaks(backend):
    """The ops of an update one after another."""
    fields, matching = (draw(name, SMALL, backend) for name in ("sde_rollout", "adjoint_matching"))
    fine, base = fields["velocity"], fields["base_velocity"]
    s, x, bridge = fields["observations"], fields["x0"], NoiseSchedule.bridge(SMALL.steps)
    for tensor in fine.tensors:
        tensor.requires_grad_()

    def loss(s, x):
        operands = rollout_operands(fine, base, backend=backend)
        given = fields | {"observations": s, "x0": x, "operands": operands}
        rollout = sde_rollout(**given, with_base=True, backend=backend)
        tape = rollout.base.tape if rollout.base else None
        adjoint = lean_adjoint(base, s, rollout.trajectory, x, tape=tape, backend=backend)
        along = velocity_along(base, s, rollout.trajectory[:, :-1], backend=backend)
        if rollout.base:
            along = along + rollout.base.velocity
        lam = matching["lam"]
        value, kl = adjoint_matching(rollout.velocity, along, adjoint, lam, backend=backend)
        value = value + path_kl(rollout.velocity, along, schedule=bridge)
        prepared = with_operands(fine, backend=backend)
        cloned = mlp(prepared, torch.cat([s, x, x[..., :1]], -1), backend=backend)
        return value + cloned.square().mean((1, 2)), kl

    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        value, kl = function(s, x)
        results.append([value, kl, *torch.autograd.grad(value.sum(), fine.tensors)])
    if backend == "triton":
        assert all(torch.equal(ours, eager) for ours, eager in zip(*results, strict=True))
    else:
        assert_equal64(*results)


def test_weights_are_an_input_of_an_exported_program():
    class Velocity(torch.nn.Module):
        def forward(self, weights, x):
            return mlp(weights, x, backend="reference")

    weights, x = make_mlp(3, 2).detach(), torch.randn(1, 4, 3, dtype=torch.float64)
    found = torch.export.export(Velocity(), (weights, x)).module()
    assert torch.equal(found(weights, x), mlp(weights, x, backend="reference"))


def test_a_size_that_a_tracer_follows_is_a_whole_number():
    kinds = set()

    def checked(v):
        kinds.add(type(v.shape[2]))
        check_integers("op", horizon=v.shape[2])
        return 2.0 * v

    make_fx(checked, tracing_mode="symbolic")(torch.randn(1, 3, 4, 2))
    assert kinds == {torch.SymInt}
