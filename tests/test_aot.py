"""Every Triton kernel compiled for GPUs that are not there: registers, spills, shared memory."""

import pytest

pytest.importorskip("triton", reason="needs Triton, from the extra 'test'")

import torch
import triton
import triton.language as tl
from triton import knobs

from tests.aot import ARCHITECTURES, SHARED_LIMIT, compile_all, compiling
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
        # Blocks of narrow layers are too small for wgmma.
        narrow = options.get("width", 512) < 64
        expected = "mma.sync" if narrow and kernel.matrix == "mma.sync" else MATRIX[architecture]
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
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gpus_with_less_shared_memory(precision):
    check(89, precision, layer_norm=True)


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
