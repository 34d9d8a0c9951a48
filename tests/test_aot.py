"""Every Triton kernel compiled for GPUs that are not there: registers, spills, shared memory."""

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="needs Triton, from the extra 'test'")

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from tests.aot import ARCHITECTURES, PAPER, SHARED_LIMIT, compile_all, compiling, pretending
from trqam_fast.kernels import PRECISIONS, adam_step
from trqam_fast.op_cases import CASES, Sizes, draw_inputs, evaluate

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET=1 replaces the compiler"),
]

PRODUCTS = {
    "sde_rollout_kernel",
    "lean_adjoint_kernel",
    "mlp_forward_kernel",
    "mlp_pullback_kernel",
    "weight_gradient_kernel",
}
OPTIMISER = {"gradient_norm_kernel", "adam_step_kernel"}
SMALL = {
    "adjoint_matching_kernel",
    "adjoint_sizes_kernel",
    "dual_update_kernel",
    "gather_sequences_kernel",
    "philox_kernel",
    "squared_error_kernel",
    "td_target_kernel",
}
KERNELS = {*PRODUCTS, *OPTIMISER, *SMALL}
TILES = {
    "first_layer_kernel",
    "hidden_layer_kernel",
    "output_kernel",
    "rollout_step_kernel",
    "pull_output_kernel",
    "pull_hidden_kernel",
    "pull_inputs_kernel",
    "sweep_step_kernel",
    "weight_gradient_kernel",
}
NORMS = {"fold_kernel", "pull_norm_kernel"}
MATRIX = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}


def check(architecture, precision, width=512, depth=4, **options):
    sizes = replace(PAPER, hidden=(width,) * depth, **options)
    found = compile_all(architecture, precision, sizes)
    assert {kernel.name for kernel in found} == KERNELS
    for kernel in found:
        assert kernel.spills == 0, kernel
        assert 0 < kernel.registers <= 255, kernel
        assert kernel.shared <= SHARED_LIMIT[architecture], kernel
        products = kernel.name in PRODUCTS and precision != "ieee"
        # Blocks of narrow layers and of many outputs are too small for wgmma.
        small = width < 64 or sizes.dim > 32
        expected = "mma.sync" if small and kernel.matrix == "mma.sync" else MATRIX[architecture]
        assert kernel.matrix == (expected if products else ""), kernel


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_paper_scale(architecture, precision, layer_norm):
    check(architecture, precision, layer_norm=layer_norm)


def check_tiles(architecture, precision, registers=168, width=512, **options):
    """One launch for each layer: several programs share a multiprocessor."""
    sizes = replace(PAPER, hidden=(width,) * 4, **options)
    found = compile_all(architecture, precision, sizes, "tiles")
    assert {kernel.name for kernel in found} == TILES | (NORMS if sizes.layer_norm else set())
    for kernel in found:
        assert kernel.spills == 0, kernel
        # Steps are two products in a row; a block of weight gradients has a multiprocessor alone.
        alone = "step" in kernel.name or kernel.name == "weight_gradient_kernel"
        limit = 255 if alone else registers
        assert kernel.registers <= limit, kernel
        assert kernel.shared <= SHARED_LIMIT[architecture], kernel
        if kernel.name in TILES and precision != "ieee":
            assert kernel.matrix in (MATRIX[architecture], "mma.sync"), kernel
        if kernel.name in ("hidden_layer_kernel", "pull_hidden_kernel") and precision != "ieee":
            assert kernel.matrix == MATRIX[architecture], kernel


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_launch_for_each_layer(architecture, precision, layer_norm):
    check_tiles(architecture, precision, layer_norm=layer_norm)


@pytest.mark.slow
def test_a_launch_for_each_layer_in_float32():
    check_tiles(90, "ieee", registers=255, layer_norm=True)


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


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, 89])
def test_the_optimiser_over_packed_parameters(architecture):
    """Their sizes are multiples of 32 elements, so that loads and stores are of 16 bytes."""
    params, gradient, m, v = torch.rand(4, 2, 4096)
    with compiling(architecture) as found, pretending():
        for targets in (None, params[:, 1024:].clone()):
            adam_step(
                params, gradient, m, v, torch.zeros(()), lr=1e-3, targets=targets, backend="triton"
            )
    assert {kernel.name for kernel in found} == OPTIMISER
    assert all(kernel.spills == 0 and kernel.registers <= 128 for kernel in found), found


def test_the_number_of_rows_compiles_nothing_anew(monkeypatch):
    """Evaluations act for as many environments as are left."""
    compiled, compile_one = [], JITFunction._do_compile

    def count(self, *arguments):
        compiled.append(self.fn.__name__)
        return compile_one(self, *arguments)

    monkeypatch.setattr(JITFunction, "_do_compile", count)
    with compiling(90) as launched, pretending():
        for rows in (3, 1, 16, 65):
            for name in ("ode_rollout", "velocity_along", "philox"):
                sizes = Sizes(1, rows, 3, 2, (32,), True)
                inputs = draw_inputs(CASES[name], sizes, dtype=torch.float32)
                evaluate(CASES[name], inputs, backend="triton")
    assert len(launched) == 12
    # Once, or not at all where a test before had the same.
    assert len(compiled) == len(set(compiled))
    assert set(compiled) <= {"mlp_forward_kernel", "philox_kernel", "sde_rollout_kernel"}


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
