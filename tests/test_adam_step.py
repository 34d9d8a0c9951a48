"""The optimiser's step: sizes beyond a block of its sums, clipping, targets."""

import math

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON, ErrorBudget, assert_equal64, draw, error
from trqam_fast.kernels import adam_norm, adam_step

# Runs, parameters, targets; one size beyond a block of the sums.
SIZES = [(1, 1, 0), (3, 37, 20), (2, 40_000, 23_000), (1, 20_000, 20_000)]
BACKENDS = ["cpp", pytest.param("triton", marks=NEEDS_TRITON), "reference"]


def dtype_of(backend):
    """Triton computes in float32."""
    return torch.float32 if backend == "triton" else torch.float64


def make(runs, size, target, dtype=torch.float64, scale=1.0):
    params, gradient, exp_avg, exp_avg_sq = (
        (factor * draw(runs, size, seed=seed)).to(dtype)
        for seed, factor in enumerate((1.0, scale, 0.1, 0.1))
    )
    targets = draw(runs, target, seed=9).to(dtype) if target else None
    return [params, gradient, exp_avg, exp_avg_sq.square(), torch.tensor(3.0), targets]


def run(backend, tensors, steps=3, **options):
    device = DEVICE if backend == "triton" else "cpu"
    params, gradient, exp_avg, exp_avg_sq, step, targets = (
        t if t is None else t.clone().to(device) for t in tensors
    )
    options |= {"lr": 3e-4, "targets": targets, "tau": 0.005, "backend": backend}
    norms = [
        adam_step(params, gradient, exp_avg, exp_avg_sq, step, **options) for _ in range(steps)
    ]
    assert float(step) == 3.0 + steps
    assert torch.equal(gradient.cpu().nan_to_num(7.0), tensors[1].nan_to_num(7.0))
    found = [norms[-1], params, exp_avg, exp_avg_sq, *([] if targets is None else [targets])]
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
def test_cpp_equals_reference_in_float64(size, max_norm):
    tensors = make(*size)
    assert_equal64(
        run("cpp", tensors, max_norm=max_norm), run("reference", tensors, max_norm=max_norm)
    )


@pytest.mark.parametrize(
    ("backend", "size", "steps"),
    [("cpp", 17_000, 50), pytest.param("triton", 1_100, 15, marks=NEEDS_TRITON)],
)
def test_within_float32_budget_after_many_steps(backend, size, steps):
    single = make(20, size, 1_000, dtype=torch.float32)
    double = [t if i == 4 else t.double() for i, t in enumerate(single)]
    results = [
        run(name, tensors, steps=steps, max_norm=1.0)
        for name, tensors in ((backend, single), ("reference", single), ("reference", double))
    ]
    budget = ErrorBudget()
    names = ("norm", "params", "exp_avg", "exp_avg_sq", "targets")
    for name, *tensors in zip(names, *results, strict=True):
        budget.add(name, *tensors)
    budget.check(20)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
@pytest.mark.parametrize("backend", [pytest.param("triton", marks=NEEDS_TRITON)])
def test_sizes_in_float32(backend, size, max_norm):
    single = make(*size, dtype=torch.float32)
    double = [t if i == 4 or t is None else t.double() for i, t in enumerate(single)]
    exact = run("reference", double, max_norm=max_norm)
    for ours, truth in zip(run(backend, single, max_norm=max_norm), exact, strict=True):
        assert error(ours, truth) < 5e-7


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.0)])
def test_a_moment_that_keeps_nothing(backend, betas):
    tensors = make(2, 300, 200, dtype=torch.float32)
    tensors[3].zero_()  # What rounding leaves of a larger second moment would count.
    expected = run("reference", tensors, betas=betas, max_norm=1.0)
    for ours, theirs in zip(
        run(backend, tensors, betas=betas, max_norm=1.0), expected, strict=True
    ):
        assert error(ours, theirs) < 5e-7


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("begin", [1, 17_000, 20_001, 39_999])
def test_parts_leave_the_bits_of_the_whole(backend, begin):
    """In any order; targets follow the last 23,000 of 40,000 columns."""
    device = DEVICE if backend == "triton" else "cpu"
    tensors = make(2, 40_000, 23_000, dtype=torch.float32)
    *state, step, targets = (t.clone().to(device) for t in tensors)
    followed = max(0, begin - 17_000)
    parts = [
        ([t[:, :begin] for t in state], targets[:, :followed] if followed else None),
        ([t[:, begin:] for t in state], targets[:, followed:]),
    ]
    settings = {"lr": 3e-4, "tau": 0.005, "max_norm": 1.0}
    for order in (1, -1, 1):
        norm = adam_norm(state[1], step, backend=backend)
        norms = [
            adam_step(*part, step, targets=follow, norm=norm, **settings)
            for part, follow in parts[::order]
        ]
    assert float(step) == 6.0 and torch.equal(*norms)
    params, _, exp_avg, exp_avg_sq = state
    whole = run(backend, tensors, max_norm=1.0)
    for found, expected in zip(
        (norms[0], params, exp_avg, exp_avg_sq, targets), whole, strict=True
    ):
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_follows_the_equation(backend):
    state = make(2, 5, 3, scale=10.0, dtype=dtype_of(backend))
    params, gradient, m, v, step, targets = state
    norm, p, m1, v1, t1 = run(backend, state, steps=1, max_norm=1.0)
    expected_norm = gradient.square().sum(1).sqrt()
    assert (expected_norm > 1).all()
    g = gradient / expected_norm.unsqueeze(1)
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    moved = 3e-4 / (1 - 0.9**4) * m / ((v / (1 - 0.999**4)).sqrt() + 1e-8)
    old = params[:, 2:]
    expected = [expected_norm, params - moved, m, v, targets + 0.005 * (old - targets)]
    assert_equal64([norm, p, m1, v1, t1], expected, 1e-12 if backend != "triton" else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_not_finite_shows_it(backend):
    tensors = make(2, 37, 20, dtype=dtype_of(backend))
    alone = run(backend, [t if t.dim() == 0 else t[:1] for t in tensors], max_norm=1.0)
    tensors[1][1, 3] = math.nan
    both = run(backend, tensors, max_norm=1.0)
    assert_equal64([t[:1] for t in both], alone)
    assert both[0][1].isnan() and both[1][1].isnan().all()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_squares_that_float32_cannot_hold(backend):
    """The clipped step is that of the gradient's direction; Triton's is excepted."""
    small = run(backend, make(2, 37, 20, dtype=torch.float32, scale=10.0), max_norm=1.0)
    large = run(backend, make(2, 37, 20, dtype=torch.float32, scale=1e30), max_norm=1.0)
    assert error(large[0], small[0].double() * 1e29) < 1e-6
    for found, expected in zip(large[1:], small[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_results_do_not_depend_on_the_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tensors = make(2, 40_000, 23_000, dtype=torch.float32)
            results.append(run("cpp", tensors, max_norm=1.0))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_input():
    params, gradient, m, v, step, targets = make(2, 5, 3)
    with pytest.raises(ValueError, match=r"gradient has shape \[2, 4\]; expected \[2, 5\]"):
        adam_step(params, gradient[:, 1:], m, v, step, lr=1e-3)
    with pytest.raises(ValueError, match="it can have 5 columns at most"):
        adam_step(params, gradient, m, v, step, lr=1e-3, targets=torch.zeros(2, 6).double())
    with pytest.raises(ValueError, match="exp_avg is not contiguous"):
        adam_step(params, gradient, torch.zeros(5, 2).double().T, v, step, lr=1e-3)
    with pytest.raises(ValueError, match="gradient is not contiguous; pass all of it"):
        adam_norm(gradient[:, 1:], step)
    assert adam_norm(gradient, step, backend="reference") is None and float(step) == 3.0
    norm = adam_norm(gradient, step, backend="cpp")
    with pytest.raises(
        ValueError, match=r"exp_avg has strides \(3, 1\), where params has \(5, 1\)"
    ):
        part = params[:, :3], gradient[:, :3], m[:, :3].contiguous(), v[:, :3]
        adam_step(*part, step, lr=1e-3, norm=norm)
    with pytest.raises(ValueError, match="expected one float32 number"):
        adam_step(params, gradient, m, v, step.double(), lr=1e-3)
    with pytest.raises(ValueError, match="backend reference was asked for, and norm is of cpp"):
        adam_step(params, gradient, m, v, step, lr=1e-3, norm=norm, backend="reference")
    with pytest.raises(ValueError, match="tau is None; pass the step of the targets"):
        adam_step(params, gradient, m, v, step, lr=1e-3, targets=targets)
    with pytest.raises(ValueError, match=r"betas are \(2, 0\); use two numbers in \[0, 1\)"):
        adam_norm(gradient, step, betas=(2, 0))
    for name, value in {
        "lr": float("nan"), "eps": -1.0, "max_norm": 0.0, "tau": 1.5, "betas": (0.9, 1.0),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"adam_step: {name} (is|are) "):
            adam_step(params, gradient, m, v, step, **{"lr": 1e-3, name: value})
    for call in (
        lambda step: adam_step(params, gradient, m, v, step, lr=1e-3),
        lambda step: adam_norm(gradient, step),
    ):
        with pytest.raises(TypeError, match="adam_step: step is a int; pass a float32 tensor"):
            call(0)
