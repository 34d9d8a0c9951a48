"""Every Triton kernel compiled for GPUs that are not there: registers, spills, shared memory."""

import pytest

pytest.importorskip("triton", reason="needs Triton, from the extra 'test'")

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from tests.aot import ARCHITECTURES, SHARED_LIMIT, compile_all, compiling, network
from trqam_fast.kernels import PRECISIONS

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET=1 replaces the compiler"),
]

KERNELS = {
    "sde_rollout_kernel", "lean_adjoint_kernel", "mlp_forward_kernel", "mlp_pullback_kernel",
    "weight_gradient_kernel", "adjoint_matching_kernel",
}  # fmt: skip
MATRIX = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}


def check(architecture, precision, **options):
    found = compile_all(architecture, precision, **options)
    assert {kernel.name for kernel in found} == KERNELS
    for kernel in found:
        assert kernel.spills == 0, kernel
        assert 0 < kernel.registers <= 255, kernel
        assert kernel.shared <= SHARED_LIMIT[architecture], kernel
        products = kernel.name != "adjoint_matching_kernel" and precision != "ieee"
        # Blocks of narrow layers and of many outputs are too small for wgmma.
        small = options.get("width", 512) < 64 or options.get("dim", 25) > 32
        expected = "mma.sync" if small and kernel.matrix == "mma.sync" else MATRIX[architecture]
        assert kernel.matrix == (expected if products else ""), kernel


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_paper_scale(architecture, precision, layer_norm):
    check(architecture, precision, layer_norm=layer_norm)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "width", "depth"),
    [("tf32", 1024, 6), ("bf16", 1024, 4), ("ieee", 128, 3), ("bf16", 32, 1)],
)
def test_other_shapes(precision, width, depth):
    check(90, precision, layer_norm=True, width=width, depth=depth)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_outputs(precision):
    """Tiles of fewer rows, which wgmma does not take."""
    check(90, precision, layer_norm=True, dim=128, depth=2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gpus_with_less_shared_memory(precision):
    check(89, precision, layer_norm=True)


def test_the_number_of_rows_compiles_nothing_anew(monkeypatch):
    """Evaluations act for as many environments as are left."""
    compiled, compile_one = [], JITFunction._do_compile

    def count(self, *arguments):
        compiled.append(self.fn.__name__)
        return compile_one(self, *arguments)

    monkeypatch.setattr(JITFunction, "_do_compile", count)
    net = network(6, 2, (32,), True)
    tensors, ops = list(net.tensors), torch.ops.trqam_fast
    with compiling(90) as launched:
        for rows in (3, 1, 16, 65):
            s, x = torch.empty(1, rows, 3), torch.empty(1, rows, 2)
            none, noise = x[:, :0], torch.empty(1, 3, 0, 2)
            ops.sde_rollout_triton(
                tensors, tensors, True, s[:, :0], none, noise, None, None, s, x, 4, "tf32", False
            )
            points = torch.empty(1, 4, rows, 2)
            ops.mlp_triton_forward(tensors, True, s, points, 4, 0, "tf32", False)
    assert len(launched) == 8
    assert sorted(compiled) == ["mlp_forward_kernel", "sde_rollout_kernel"]


@triton.jit
def greedy_kernel(source, into, SIZE: tl.constexpr):
    """Keeps more values alive than 32 registers hold."""
    at = tl.arange(0, SIZE)
    values = tl.load(source + at)
    total = tl.zeros((SIZE,), tl.float32)
    for i in range(4):
        total += tl.sum(values * i) * values
    tl.store(into + at, total)


@pytest.mark.parametrize(("registers", "spilled"), [(32, True), (255, False)])
def test_the_check_finds_a_spill(registers, spilled):
    data = torch.empty(8192)
    with compiling(90) as found:
        greedy_kernel[(1,)](data, data, 8192, num_warps=4, maxnreg=registers)
    (kernel,) = found
    assert (kernel.spills > 0) == spilled, kernel
