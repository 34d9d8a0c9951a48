"""Ahead-of-time compilation of Triton kernels for GPUs that are not there.

A stub driver names the architecture, and launches are turned into compilations, so that the
launchers run as they are and every kernel is compiled exactly as a launch would.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from trqam_fast.kernels import dispatch
from trqam_fast.kernels.dispatch import OPS
from trqam_fast.op_cases import CASES, Inputs, Sizes, draw_inputs, evaluate

ARCHITECTURES = (80, 90, 100)
DOCUMENTED = ("ieee", "tf32", "fp16")
"""Precisions in the table of docs/kernels.md."""
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory that one program may have, in bytes (CUDA programming guide)."""


class StubDriver(DriverBase):
    """Claims a GPU of one architecture; nothing can be launched on it."""

    def __init__(self, architecture: int, report: bool) -> None:
        self.architecture, self.report = architecture, report
        self.utils = self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self.architecture]}

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        # Compiled kernels are kept by device, so every architecture is another one, with and
        # without reports.
        return 2 * self.architecture + self.report

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_benchmarker(self):
        raise NotImplementedError


@dataclass(frozen=True)
class Compiled:
    """What the compilers report of one kernel."""

    name: str
    registers: int
    spills: int
    shared: int
    matrix: str
    """``wgmma``, ``mma.sync``, ``tcgen05`` or empty."""
    dependent: bool
    """Whether it may be launched before the launch before it has ended."""
    disorder: str
    """What is wrong with its waiting for that one, as `disorder` says."""


def keep_report(*arguments):
    """Have Triton keep what ptxas reports with the kernel, so that it assembles once.

    Triton calls it with the backend and its stages before it compiles
    (``knobs.runtime.add_stages_inspection_hook``), and from 3.7 on without arguments for the key
    and the hash of the change.
    """
    if not arguments:
        return "keep_report", "keep_report"
    stages = arguments[1]
    assemble = stages["cubin"]

    def assemble_and_keep(ptx, metadata):
        with knobs.nvidia.scope(), contextlib.redirect_stdout(io.StringIO()) as report:
            knobs.nvidia.dump_ptxas_log = True
            cubin = assemble(ptx, metadata)
        metadata["ptxas_report"] = report.getvalue()
        return cubin

    stages["cubin"] = assemble_and_keep


WAIT = "griddepcontrol.wait;"
OWN_MEMORY = (
    "mov", "cvt", "and", "or", "xor", "not", "shl", "shr", "add", "sub", "mul", "mad", "min", "max",
    "setp", "selp", "bar.sync", "ld.param", "ld.shared", "st.shared", "tcgen05.alloc",
    "tcgen05.relinquish_alloc_permit",
)  # fmt: skip
"""Instructions that touch no memory but the program's own and neither jump nor return."""


def instructions(ptx: str) -> list[str]:
    """Return the instructions of a kernel's entry function, and labels that are jumped to."""
    entry = ptx.partition(".entry")[2].partition("{")[2].partition("// -- End function")[0]
    lines = (line.partition("//")[0].strip() for line in entry.splitlines())
    return [line for line in lines if line and not re.match(r"[.}]|\$L__(tmp|func)", line)]


def disorder(ptx: str, dependent: bool) -> str:
    """Return what is wrong with a kernel's waiting for the launch before it; empty if nothing.

    A dependent launch must wait in its first basic block, before it loads, stores or copies
    anything. Other kernels do not wait, and none lets the launch behind begin before its own end.
    """
    found = instructions(ptx)
    for line in found:
        if "griddepcontrol" in line and not (dependent and line == WAIT):
            return line
    if not dependent:
        return ""
    if WAIT not in found:
        return "it does not wait"
    for line in found[: found.index(WAIT)]:
        opcode = re.sub(r"^@!?%\w+\s+", "", line)
        if not re.match(rf"({'|'.join(map(re.escape, OWN_MEMORY))})\b", opcode):
            return f"before it waits: {line}"
    return ""


def describe(name: str, kernel) -> Compiled:
    """Read the compilers' reports of a compiled kernel."""
    ptx, report = kernel.asm["ptx"], kernel.metadata.ptxas_report
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    spills = sum(int(size) for size in re.findall(r"(\d+) bytes spill", report))
    matrix = next((word for word in ("wgmma", "tcgen05.mma", "mma.sync") if word in ptx), "")
    dependent = kernel.metadata.launch_pdl
    return Compiled(
        name, registers, spills, kernel.metadata.shared, matrix, dependent, disorder(ptx, dependent)
    )


@contextlib.contextmanager
def compiling(architecture: int, *, report: bool = True) -> Iterator[list[Any]]:
    """Compile the kernels launched inside for `architecture`; yields their descriptions.

    Without `report` it yields the kernels, which are then those that a launch on a GPU finds in
    Triton's cache. Those with a report lie in a folder of their own within it, as Triton 3.6 would
    take one for the other.
    """
    found: list[Any] = []
    described: dict[str, Compiled] = {}
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if report and kernel.hash not in described:
            described[kernel.hash] = describe(self.fn.__name__, kernel)
        found.append(described[kernel.hash] if report else kernel)

    before = driver._active
    driver.set_active(StubDriver(architecture, report))
    JITFunction.run = compile_only
    try:
        with knobs.runtime.scope(), knobs.cache.scope():
            if report:
                knobs.runtime.add_stages_inspection_hook = keep_report
                knobs.cache.dir = str(Path(knobs.cache.dir) / "with_report")
            yield found
    finally:
        JITFunction.run = launch
        driver._active = before


@contextlib.contextmanager
def pretending() -> Iterator[None]:
    """Let the ops take Triton for tensors on the CPU; only inside `compiling`."""
    before = dispatch.unavailable
    dispatch.unavailable = lambda *_, **__: None
    try:
        yield
    finally:
        dispatch.unavailable = before


PAPER = Sizes(1, 256, 28, 25, (512,) * 4, False, ode_batch=256)


@functools.cache
def inputs_of(op: str, sizes: Sizes) -> Inputs:
    """Return random inputs of an op, drawn once for all architectures and precisions."""
    return draw_inputs(CASES[op], sizes, dtype=torch.float32)


def compile_all(architecture: int, precision: str, sizes: Sizes) -> list[Compiled]:
    """Compile every kernel as the ops launch it, for each input with a gradient."""
    with compiling(architecture) as found, pretending():
        for op, has in OPS.items():
            if not has.triton:
                continue
            case = CASES[op]
            options = {"backend": "triton"} | ({"precision": precision} if has.networks else {})
            for wanted in case.differentiable or [None]:
                only = [] if wanted is None else [wanted]
                evaluate(case, inputs_of(op, sizes), wanted=only, **options)
    return found


def cells(architecture: int, precision: str, layer_norm: bool) -> dict[str, str]:
    """Return what the compilers report of the worst variant of each kernel at paper scale."""
    worst: dict[str, Compiled] = {}
    sizes = dataclasses.replace(PAPER, layer_norm=layer_norm)
    for kernel in compile_all(architecture, precision, sizes):
        before = worst.get(kernel.name, kernel)
        worst[kernel.name] = max(before, kernel, key=lambda k: (k.spills, k.registers))
    return {
        name: f"{k.registers}, {k.shared / 1024:.0f} KiB, {k.spills}"
        + (f", {k.matrix}" if k.matrix else "")
        for name, k in worst.items()
    }


def table(precisions: Sequence[str] = DOCUMENTED) -> list[str]:
    """Return the lines of the table of docs/kernels.md.

    Kernels that are the same whatever the precision, with LayerNorm and without, come last.
    """
    settings = list(itertools.product(precisions, ("off", "on")))
    rows: dict[tuple[str, str, str], str] = {}
    for precision, norm in settings:
        columns = [cells(each, precision, norm == "on") for each in ARCHITECTURES]
        for name in columns[0]:
            rows[name, precision, norm] = " | ".join(column[name] for column in columns)
    times = collections.Counter((name, row) for (name, *_), row in rows.items())
    heads = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    lines = [f"| kernel | precision | LayerNorm | {heads} |"]
    lines += ["|---" * (3 + len(ARCHITECTURES)) + "|"]
    for (name, precision, norm), row in rows.items():
        if times[name, row] < len(settings):
            lines.append(f"| `{name}` | {precision} | {norm} | {row} |")
    lines += [f"| `{name}` | any | any | {row} |"
              for (name, row), n in times.items() if n == len(settings)]  # fmt: skip
    return lines


if __name__ == "__main__":
    print(*table(sys.argv[1:] or DOCUMENTED), sep="\n")
