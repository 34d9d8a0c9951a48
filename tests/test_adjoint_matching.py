import pytest
import torch

from tests.helpers import (
    assert_equal64,
    assert_within_budget,
    draw,
    gradients,
    poisoned_memory,
)
from trqam_fast.kernels import BackendError, adjoint_matching
from trqam_fast.kernels.adjoint_matching import reference

SIZES = [(1, 10, 63, 25), (3, 4, 1, 1), (2, 2, 5, 7), (2, 3, 17, 128)]


def inputs(*size, dtype=torch.float64):
    v, u, a = (draw(*size, seed=s, dtype=dtype) for s in (1, 2, 3))
    lam = draw(size[0], seed=4, dtype=dtype).abs() + 0.1
    return v.requires_grad_(), u, a, lam


def run(backend, *arguments, horizon=2):
    loss, kl = adjoint_matching(*arguments, horizon=horizon, backend=backend)
    return [loss, kl, *gradients([loss], [arguments[0]])]


@pytest.mark.parametrize("size", SIZES)
def test_cpp_equals_reference_in_float64(size):
    assert_equal64(run("cpp", *inputs(*size)), run("reference", *inputs(*size)))


@pytest.mark.parametrize("size", SIZES)
def test_cpp_within_float32_budget(size):
    assert_within_budget(
        run("cpp", *inputs(*size, dtype=torch.float32)),
        run("reference", *inputs(*size, dtype=torch.float32)),
        run("reference", *inputs(*size)),
    )


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_vanishing_lam_is_floored(backend):
    v, u, a, _ = inputs(1, 3, 4, 2)
    floor = run(backend, v, u, a, torch.tensor([1e-8], dtype=v.dtype))
    for value in (0.0, -1.0, 1e-12):
        assert_equal64(run(backend, v, u, a, torch.tensor([value], dtype=v.dtype)), floor)


def test_sliced_inputs():
    v, u, a = (draw(2, 11, 9, 8, seed=s)[:, ::2, 1:, ::2] for s in (1, 2, 3))
    lam = draw(4, seed=4).abs()[::2]
    assert_equal64(run("cpp", v.requires_grad_(), u, a, lam), run("reference", v, u, a, lam))


def test_every_output_element_is_written():
    with poisoned_memory():
        assert all(out.isfinite().all() for out in run("cpp", *inputs(3, 4, 7, 5)))


def test_gradcheck_of_reference():
    v, u, a, lam = inputs(2, 3, 4, 2)
    assert torch.autograd.gradcheck(lambda x: reference.adjoint_matching(x, u, a, lam, 2)[0], (v,))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_opcheck(with_gradient):
    v, u, a, lam = inputs(2, 3, 4, 2)
    torch.library.opcheck(
        torch.ops.trqam_fast.adjoint_matching.default,
        (v.detach(), u, a, lam, 2, with_gradient, False),
    )


def test_double_backward_raises():
    v, *rest = inputs(1, 3, 4, 2)
    loss, _ = adjoint_matching(v, *rest, backend="cpp")
    (grad,) = torch.autograd.grad(loss.sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("position", [1, 2, 3])
def test_unsupported_gradient_raises(position):
    arguments = list(inputs(1, 3, 4, 2))
    arguments[position].requires_grad_()
    loss, _ = adjoint_matching(*arguments, backend="cpp")
    with pytest.raises(RuntimeError, match="no gradient with respect to"):
        loss.sum().backward()


def test_nan_stays_in_its_run():
    v, u, a, lam = inputs(3, 4, 5, 2)
    a[1, 0, 0, 0] = float("nan")
    loss, kl, grad = run("cpp", v, u, a, lam)
    assert loss.isnan().tolist() == [False, True, False]
    assert kl.isfinite().all()
    assert grad[0].isfinite().all() and grad[2].isfinite().all()


def test_inputs_are_not_written():
    arguments = inputs(2, 3, 4, 2)
    copies = [t.detach().clone() for t in arguments]
    run("cpp", *arguments)
    assert all(torch.equal(t.detach(), c) for t, c in zip(arguments, copies, strict=True))


def test_bad_input():
    v, u, a, lam = inputs(2, 3, 4, 2)
    with pytest.raises(ValueError, match=r"lam has shape \[1\]; expected \[2\]"):
        adjoint_matching(v, u, a, lam[:1])
    with pytest.raises(ValueError, match="adjoint has shape"):
        adjoint_matching(v, u, a[:, 1:], lam)
    with pytest.raises(ValueError, match="horizon is -1"):
        adjoint_matching(v, u, a, lam, horizon=-1)
    with pytest.raises(BackendError, match="triton"):
        adjoint_matching(v, u, a, lam, backend="triton")
