import pytest
import torch

from tests.helpers import (
    assert_equal64,
    assert_within_budget,
    cast,
    draw,
    gradients,
    make_mlp,
    poisoned_memory,
)
from trqam_fast.kernels import MLPWeights, mlp
from trqam_fast.kernels.mlp import reference
from trqam_fast.kernels.mlp.activation import gelu_, gelu_pullback

CASES = [
    dict(runs=1, hidden=(16, 24), layer_norm=False, ensemble=None),
    dict(runs=3, hidden=(8,), layer_norm=True, ensemble=None),
    dict(runs=1, hidden=(9, 7, 5, 3), layer_norm=True, ensemble=4),
    dict(runs=3, hidden=(16, 16), layer_norm=True, ensemble=1),
    dict(runs=2, hidden=(16, 16), layer_norm=False, ensemble=3),
]


def run(backend, weights, x):
    out = mlp(weights, x, backend=backend)
    return [out, *gradients([out], [x, *weights.tensors])]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 63])
def test_cpp_equals_reference_in_float64(case, rows):
    weights = make_mlp(5, 3, **case)
    x = draw(case["runs"], rows, 5).requires_grad_()
    assert_equal64(run("cpp", weights, x), run("reference", weights, x))


@pytest.mark.parametrize("case", CASES)
def test_cpp_within_float32_budget(case):
    weights = make_mlp(5, 3, **case)
    x = draw(case["runs"], 63, 5)
    results = []
    for backend, dtype in (
        ("cpp", torch.float32),
        ("reference", torch.float32),
        ("reference", torch.float64),
    ):
        results.append(run(backend, cast(weights, dtype), x.to(dtype).requires_grad_()))
    assert_within_budget(*results)


def test_gradcheck_of_reference():
    weights = make_mlp(3, 2, (4, 5), runs=2, layer_norm=True, ensemble=2)
    x = draw(2, 3, 3).requires_grad_()
    count = [len(group) for group in weights]

    def function(x, *tensors):
        groups, start = [], 0
        for size in count:
            groups.append(tuple(tensors[start : start + size]))
            start += size
        return reference.mlp(MLPWeights(*groups), x)

    assert torch.autograd.gradcheck(function, (x, *weights.tensors))


def test_every_output_element_is_written():
    weights = make_mlp(5, 3, runs=2, layer_norm=True, ensemble=2)
    x = draw(2, 7, 5).requires_grad_()
    with poisoned_memory():
        assert all(out.isfinite().all() for out in run("cpp", weights, x))


def test_double_backward_raises():
    weights, x = make_mlp(5, 3), draw(1, 4, 5).requires_grad_()
    (grad,) = torch.autograd.grad(mlp(weights, x, backend="cpp").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sliced", [False, True])
def test_gelu_and_its_pullback(dtype, sliced):
    near = torch.linspace(-12, 12, 2 * 37 * 33, dtype=torch.float64)
    far = torch.tensor([22.0, 50.0, 1e3, 1e9], dtype=torch.float64).repeat(2 * 33 // 4 + 1)
    far = torch.cat([far, -far])[: 2 * 3 * 33 // 2].repeat(2)
    z = torch.cat([near, far]).view(2, 40, 33).to(dtype).double()
    grad = draw(2, 40, 33, seed=1).to(dtype).double()
    rows = slice(3, 31) if sliced else slice(0, 40)
    given_z, given_grad = z.to(dtype)[:, rows], grad.to(dtype).clone()[:, rows]
    z, grad = z[:, rows], grad[:, rows]
    truth = z.clone().requires_grad_()
    exact = torch.nn.functional.gelu(truth, approximate="tanh")
    (exact_grad,) = torch.autograd.grad(exact, truth, grad)
    plain = given_z.clone().requires_grad_()
    plain_out = torch.nn.functional.gelu(plain, approximate="tanh")
    (plain_grad,) = torch.autograd.grad(plain_out, plain, given_grad)
    out = torch.full((2, 40, 33), float("nan"), dtype=dtype)[:, rows]
    gelu_(given_z, out)
    found = [out, gelu_pullback(given_z, given_grad)]
    if dtype == torch.float64:
        assert_equal64(found, [exact, exact_grad])
    else:
        assert_within_budget(found, [plain_out, plain_grad], [exact, exact_grad])


def test_gelu_of_extreme_values():
    z = torch.tensor([[[float("nan"), 1e4, -1e4, 0.0, 1e-30, -1e-30]]])
    out = torch.empty_like(z)
    gelu_(z, out)
    assert out[0, 0, 0].isnan()
    expected = torch.tensor([1e4, 0.0, 0.0])
    torch.testing.assert_close(out[0, 0, 1:4], expected, atol=1e-17, rtol=1e-6)
    torch.testing.assert_close(out[0, 0, 4:], z[0, 0, 4:] / 2, atol=0, rtol=1e-6)


def test_bad_input():
    weights, x = make_mlp(5, 3, runs=2), draw(2, 4, 5)
    with pytest.raises(ValueError, match=r"inputs has shape \[2, 4, 4\]; expected \[2, \?, 5\]"):
        mlp(weights, x[..., 1:])
    with pytest.raises(ValueError, match="float32"):
        mlp(weights, x.float())
    broken = weights._replace(biases=weights.biases[1:])
    with pytest.raises(ValueError, match="3 kernels and 2 biases"):
        mlp(broken, x)
    broken = weights._replace(
        kernels=(weights.kernels[0], *weights.kernels[:1], weights.kernels[2])
    )
    with pytest.raises(ValueError, match=r"weights.kernels\[1\] has shape"):
        mlp(broken, x)
    normed = make_mlp(5, 3, runs=2, layer_norm=True)
    with pytest.raises(ValueError, match="norm_biases has 1 entries"):
        mlp(normed._replace(norm_biases=normed.norm_biases[:1]), x)
