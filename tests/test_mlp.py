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
    count = [len(group) for group in weights[:4]]

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
