import pytest
import torch

from tests.helpers import (
    assert_equal64,
    assert_within_budget,
    draw,
    gradients,
    poisoned_memory,
)
from trqam_fast.kernels import BackendError, path_kl
from trqam_fast.kernels.path_kl import ops, reference

SIZES = [(1, 10, 63, 25), (3, 4, 1, 1), (2, 2, 5, 7), (1, 10, 256, 5), (2, 3, 17, 128)]


def both(*size, dtype=torch.float64):
    return [draw(*size, seed=s, dtype=dtype).requires_grad_() for s in (1, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cpp_equals_reference_in_float64(size, reduction):
    results = []
    for backend in ("cpp", "reference"):
        v, u = both(*size)
        out = path_kl(v, u, horizon=3, reduction=reduction, backend=backend)
        results.append([out, *gradients([out], [v, u])])
    assert_equal64(*results)


@pytest.mark.parametrize("size", SIZES)
def test_cpp_within_float32_budget(size):
    results = []
    for backend, dtype in (
        ("cpp", torch.float32),
        ("reference", torch.float32),
        ("reference", torch.float64),
    ):
        v, u = both(*size, dtype=dtype)
        out = path_kl(v, u, backend=backend)
        results.append([out, *gradients([out], [v, u])])
    assert_within_budget(*results)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_does_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    v, u = both(2, 5, 63, 3, dtype=torch.float32)
    expected = path_kl(v, u, reduction="none", backend="cpp")
    try:
        torch.set_num_threads(threads)
        assert torch.equal(path_kl(v, u, reduction="none", backend="cpp"), expected)
    finally:
        torch.set_num_threads(before)


def test_sliced_inputs():
    v, u = draw(2, 11, 9, 8, seed=1)[:, ::2, 1:, ::2], draw(9, 6, 2, 4, seed=2).permute(2, 1, 0, 3)
    u = u[:, :, 1:]
    expected = path_kl(v, u, backend="reference", reduction="none")
    assert_equal64([path_kl(v, u, backend="cpp", reduction="none")], [expected])


def test_every_output_element_is_written():
    with poisoned_memory():
        v, u = both(3, 4, 7, 5)
        out = path_kl(v, u, reduction="none", backend="cpp")
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in gradients([out], [v, u]))


def test_gradcheck_of_reference():
    v, u = both(2, 3, 4, 2)
    assert torch.autograd.gradcheck(lambda a, b: reference.path_kl(a, b, 2), (v, u))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    v, u = (t.detach() for t in both(2, 3, 4, 2, dtype=dtype))
    torch.library.opcheck(torch.ops.trqam_fast.path_kl.default, (v, u, 2))
    grad = draw(2, 4, dtype=dtype)
    torch.library.opcheck(torch.ops.trqam_fast.path_kl_backward.default, (v, u, grad, 2))


def test_double_backward_raises():
    v, u = both(1, 3, 4, 2)
    (grad,) = torch.autograd.grad(ops.path_kl(v, u, 1)[1].sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


def test_nan_stays_in_its_run():
    v, u = (t.detach() for t in both(3, 4, 5, 2))
    v[1, 2, 3, 0] = float("nan")
    out = path_kl(v, u, backend="cpp")
    assert out.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"velocity": torch.zeros(2, 3, 4)}, ValueError, "velocity has shape"),
        ({"base_velocity": torch.zeros(1, 3, 4, 3)}, ValueError, "base_velocity has shape"),
        ({"velocity": torch.zeros(1, 3, 4, 2, dtype=torch.int64)}, TypeError, "velocity has dtype"),
        (
            {"velocity": torch.zeros(1, 3, 4, 2).double()},
            ValueError,
            "base_velocity is torch.float32",
        ),
        ({"horizon": 0}, ValueError, "horizon is 0"),
        ({"reduction": "sum"}, ValueError, "reduction is 'sum'"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'"),
        ({"backend": "triton"}, BackendError, "triton"),
        ({"velocity": [1.0]}, TypeError, "velocity is a list"),
    ],
)
def test_bad_input(change, kind, message):
    arguments = {
        "velocity": torch.zeros(1, 3, 4, 2),
        "base_velocity": torch.zeros(1, 3, 4, 2),
    } | change
    with pytest.raises(kind, match=message):
        path_kl(**arguments)


def test_extension_refuses_bad_sizes():
    from trqam_fast import _C

    v = torch.zeros(1)
    with pytest.raises(ValueError, match="steps is 0"):
        _C.path_kl_forward_float32(
            False, v.data_ptr(), v.data_ptr(), v.data_ptr(), v.data_ptr(), 1, 0, 1, 1, 1, 1
        )
    with pytest.raises(ValueError, match="mean is a null address"):
        _C.path_kl_forward_float32(
            False, v.data_ptr(), v.data_ptr(), v.data_ptr(), 0, 1, 1, 1, 1, 1, 1
        )


def test_torch_compile_fullgraph():
    v, u = (t.detach() for t in both(2, 3, 4, 2))
    compiled = torch.compile(
        lambda a, b: torch.ops.trqam_fast.path_kl(a, b, 1)[1], fullgraph=True, backend="aot_eager"
    )
    assert_equal64([compiled(v, u)], [path_kl(v, u, backend="reference")])
