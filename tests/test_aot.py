"""Every Triton kernel compiled for GPUs that are not there: registers, spills, shared memory."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, from the extra 'test'")

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from tests.aot import (
    ARCHITECTURES,
    PAPER,
    SHARED_LIMIT,
    compile_all,
    compiling,
    inputs_of,
    pretending,
    table,
)
from trqam_fast.kernels import adam_step
from trqam_fast.op_cases import CASES, Sizes, draw_inputs, evaluate

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET=1 replaces the compiler"),
]

PRODUCTS = {
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
PREPARES = {"prepare_kernel", "gradient_operands_kernel"}
NORMS = {"pull_norm_kernel"}
OPTIMISER = {"gradient_norm_kernel", "adam_step_kernel"}
OTHERS = {
    "adjoint_matching_kernel", "adjoint_sizes_kernel", "dual_update_kernel",
    "action_gradient_kernel", "flow_matching_inputs_kernel", "record_metrics_kernel",
    "gather_sequences_kernel", "philox_kernel", "squared_error_kernel", "td_loss_kernel",
}  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
MATRIX = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}


def check(architecture, precision, width=512, depth=4, registers=168, **options):
    """No spills; several programs of most kernels share a multiprocessor."""
    sizes = replace(PAPER, hidden=(width,) * depth, **options)
    found = compile_all(architecture, precision, sizes)
    kernels = PRODUCTS | PREPARES | OPTIMISER | OTHERS | (NORMS if sizes.layer_norm else set())
    if depth == 1:
        kernels -= {"hidden_layer_kernel", "pull_hidden_kernel"}
    assert {kernel.name for kernel in found} == kernels
    # Blocks of narrow layers and of many outputs are too small for the larger instructions.
    check_each(found, architecture, precision, registers, full=width >= 64 and sizes.dim <= 32)
    assert not any(kernel.dependent for kernel in found)


def check_each(found, architecture, precision, registers, full):
    for kernel in found:
        assert kernel.spills == 0, kernel
        assert kernel.disorder == "", kernel
        # Steps are two products in a row; two blocks of weight gradients share a multiprocessor; a
        # pullback holds the pre-activations that it waits for.
        alone = "step" in kernel.name
        alone |= kernel.name in ("weight_gradient_kernel", "pull_hidden_kernel")
        assert 0 < kernel.registers <= (255 if alone else registers), kernel
        assert kernel.shared <= SHARED_LIMIT[architecture], kernel
        if kernel.name not in PRODUCTS or precision == "ieee":
            assert kernel.matrix == "", kernel
        elif kernel.name in ("hidden_layer_kernel", "pull_hidden_kernel") and full:
            assert kernel.matrix == MATRIX[architecture], kernel
        else:
            assert kernel.matrix in (MATRIX[architecture], "mma.sync"), kernel


@pytest.mark.slow
# The kernels with bf16 operands are those with fp16 less saturation and powers of two.
@pytest.mark.parametrize(
    ("precision", "layer_norm"),
    [("tf32", False), ("fp16", False), ("tf32", True), ("fp16", True), ("bf16", True)],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_paper_scale(architecture, precision, layer_norm):
    check(architecture, precision, layer_norm=layer_norm)


@pytest.mark.slow
@pytest.mark.skipif(
    f"by Triton {triton.__version__} " not in PAGE,
    reason="the table of docs/kernels.md is by another Triton",
)
def test_the_table_is_up_to_date():
    """`python -m tests.aot` prints it."""
    expected, lines = table(), PAGE.splitlines()
    begin = lines.index(expected[0])
    assert lines[begin : begin + len(expected) + 1] == [*expected, ""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision", "layer_norm"),
    [(90, "tf32", True), (100, "tf32", True), (90, "fp16", False)],
)
def test_dependent_launches_wait_for_the_one_before(architecture, precision, layer_norm):
    """Every kernel of a chain or a pass; `check` finds that no other launch is dependent."""
    sizes = replace(PAPER, layer_norm=layer_norm)
    options = {"backend": "triton_pdl", "precision": precision}
    with compiling(architecture) as found, pretending():
        for op in ("mlp", "sde_rollout", "lean_adjoint"):
            case = CASES[op]
            evaluate(case, inputs_of(op, sizes), wanted=case.differentiable, **options)
    expected = PRODUCTS | PREPARES | (NORMS if layer_norm else set())
    assert {kernel.name for kernel in found} == expected
    assert all(kernel.dependent for kernel in found)
    check_each(found, architecture, precision, registers=168, full=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision", "options"),
    [
        (90, "ieee", {}),
        (90, "tf32", {"width": 1024, "depth": 6}),
        (90, "fp16", {"width": 32, "depth": 1}),
        # Tiles of fewer rows.
        (90, "tf32", {"dim": 128, "depth": 2}),
        (90, "ieee", {"dim": 128, "depth": 2}),
        # A GPU with less shared memory.
        (89, "tf32", {}),
        (89, "fp16", {}),
    ],
)
def test_other_shapes(architecture, precision, options):
    registers = 255 if precision == "ieee" or options else 168
    check(architecture, precision, layer_norm=True, registers=registers, **options)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, 89])
def test_the_optimiser_over_packed_parameters(architecture):
    """Their sizes are multiples of 32 elements, so that loads and stores are of 16 bytes."""
    params, gradient, m, v = torch.rand(4, 2, 4096)
    with compiling(architecture) as found, pretending():
        for targets in (None, params[:, 1024:].clone()):
            adam_step(
                params, gradient, m, v, torch.zeros(()), lr=1e-3, targets=targets, tau=0.005,
                backend="triton",
            )  # fmt: skip
    assert {kernel.name for kernel in found} == OPTIMISER
    assert all(kernel.spills == 0 and kernel.registers <= 128 for kernel in found), found


def test_the_number_of_rows_compiles_nothing_anew(monkeypatch):
    """Evaluations act for as many environments as are left."""
    compiled, compile_one, by_then = [], JITFunction._do_compile, []

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
            by_then.append(len(compiled))
    assert len(launched) > 12
    # Or not at all, where a test before had the same.
    assert by_then == by_then[:1] * 4, compiled
    assert set(compiled) <= {*PRODUCTS, *PREPARES, *NORMS, "philox_kernel"}


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


def test_a_kernel_compiled_without_a_report_gets_one(monkeypatch, tmp_path):
    """In this process, and in another one that finds it on the disk."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    data = torch.empty(1024)
    for report in (False, True):
        with compiling(90, report=report) as found:
            greedy_kernel[(1,)](data, data, 1024, num_warps=4)
    assert found[0].registers > 0
    (kept,) = tmp_path.glob("*/*.cubin")
    (reported,) = tmp_path.glob("with_report/*/*.cubin")
    assert kept.name == reported.name == "greedy_kernel.cubin"


@triton.jit
def hasty_kernel(source, into, WAITS: tl.constexpr):
    """Waits for the launch before it at once, after a load, not always, or never."""
    if WAITS == "first" or WAITS == "and lets begin":
        tl.extra.cuda.gdc_wait()
    if WAITS == "and lets begin":
        tl.extra.cuda.gdc_launch_dependents()
    if WAITS == "not always":
        if tl.program_id(0) > 0:
            tl.extra.cuda.gdc_wait()
    value = tl.load(source)
    if WAITS == "after a load":
        tl.extra.cuda.gdc_wait()
    tl.store(into, value + 1.0)


@pytest.mark.parametrize(
    ("waits", "dependent", "problem"),
    [
        ("first", True, ""),
        ("never", True, "it does not wait"),
        ("after a load", True, "before it waits: .*ld.global"),
        ("not always", True, "before it waits: .*bra"),
        ("and lets begin", True, "griddepcontrol.launch_dependents"),
        ("never", False, ""),
        ("first", False, "griddepcontrol.wait"),
    ],
)
def test_the_check_finds_a_launch_that_does_not_wait(waits, dependent, problem):
    data = torch.empty(16)
    with compiling(90) as found:
        hasty_kernel[(2,)](data, data, waits, num_warps=4, launch_pdl=dependent)
    (kernel,) = found
    assert kernel.dependent == dependent
    assert re.match(problem, kernel.disorder) if problem else kernel.disorder == "", kernel


def test_kernels_compiled_to_be_carried(tmp_path):
    """What another process finds in a folder, and nothing besides."""
    words = [sys.executable, "tools/precompile.py", str(tmp_path), "--precisions", "ieee"]
    words += ["--ops", "td_loss", "squared_error"]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    folders = list(tmp_path.iterdir())
    assert sorted(done.stdout.split("\n"))[1:] == [
        f"triton ieee: {len(folders)} kernels", "triton_pdl ieee: 0 kernels"
    ]  # fmt: skip
    assert len(folders) >= 2
    for folder in folders:
        (compiled,) = folder.glob("*.cubin")
        assert compiled.stem in OTHERS and not list(folder.glob("*.ttir"))
