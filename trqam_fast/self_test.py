"""Self-test of the ops: every backend in float32 against the float64 reference on the CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch

from trqam_fast.kernels.dispatch import OPS, TRITON
from trqam_fast.op_cases import CASES, Sizes, draw_inputs, evaluate

TOLERANCE = {"ieee": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 1e-1}
"""Largest deviation from the reference by precision, relative to a tensor's largest element."""

SMALL = Sizes(2, 7, 3, 2, (16, 24), True)
DIM = 25
"""Numbers of a policy's output, D, of the larger sizes, unless others are asked for."""
# Several tiles of rows, blocks of columns and steps of a product, as in training.
WIDE = (
    Sizes(2, 150, 28, DIM, (256,) * 3, False, ode_batch=150),
    Sizes(1, 150, 28, DIM, (256,) * 3, True, ode_batch=150),
)
REPEATS = 10
"""Calls whose results must be equal: the kernels add in a fixed order, so a change is a race."""


def deviation(
    op: str, backend: str, device: str, precision: str = "ieee", sizes: Sizes = SMALL
) -> float:
    """Return the deviation of an op in float32 from the float64 reference on the CPU.

    That of random numbers is from the float32 reference. It is relative to each tensor's largest
    element; infinite if the op returned something that is not finite, or on a GPU something else
    when called again.
    """
    case = CASES[op]
    options: dict[str, Any] = {"backend": backend}
    if OPS[case.op].networks:
        options["precision"] = precision
    exact = torch.float64 if case.rounds else torch.float32
    expected = evaluate(case, draw_inputs(case, sizes, dtype=exact), backend="reference")
    inputs = draw_inputs(case, sizes, dtype=torch.float32, device=device)
    found = evaluate(case, inputs, **options)
    worst = 0.0
    for name, reference in expected.items():
        reference = reference.double()
        scale = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = (found[name].cpu().double() - reference).abs() / scale
        worst = max(worst, float(difference.nan_to_num(nan=torch.inf).max()))
    if backend in TRITON and torch.device(device).type == "cuda":
        for _ in range(REPEATS):
            again = evaluate(case, inputs, **options)
            if not all(torch.equal(found[name], again[name]) for name in found):
                return float("inf")
    return worst


def launch_errors() -> tuple[type[Exception], ...]:
    """Return what compiling and launching a kernel can raise."""
    known = (
        RuntimeError, ValueError, TypeError, LookupError, AssertionError, OSError,
        subprocess.SubprocessError,
    )  # fmt: skip
    if importlib.util.find_spec("triton") is None:
        return known
    from triton.errors import TritonError

    return (*known, TritonError)


def problem(
    op: str, backend: str, device: str, precision: str = "ieee", dim: int = DIM
) -> tuple[str, str]:
    """Run one self-test; return the verdict to print and the problem, empty if there is none."""
    name = f"{op} with backend {backend} on {device}"
    if precision != "ieee" and OPS[CASES[op].op].networks:
        name += f" in {precision}"
    sizes = [SMALL]
    if backend in TRITON and torch.device(device).type == "cuda":
        sizes += [replace(size, dim=dim) for size in WIDE]
    try:
        found = max(deviation(op, backend, device, precision, size) for size in sizes)
    except launch_errors() as failure:
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        return "FAILS", f"{name} fails: {reason}"
    limit = TOLERANCE[precision if OPS[CASES[op].op].networks else "ieee"]
    if found <= limit:
        return f"ok, deviation {found:.1e}", ""
    return (
        f"WRONG, deviation {found:.1e}",
        f"{name} deviates by {found:.1e}, more than {limit:g}; use --backend reference",
    )


def triton_problems(
    device: str, precision: str, backend: str = "triton", dim: int = DIM
) -> list[str]:
    """Return what is wrong with the Triton kernels on `device`, launched as `backend` does.

    The tiles of a flow's steps depend on `dim`, the numbers of the policy's output. Those without
    dependent launches of their own count too: an update by `backend` has them all.
    """
    names = [name for name, case in CASES.items() if OPS[case.op].triton]
    found = (problem(name, backend, device, precision, dim)[1] for name in names)
    return [text for text in found if text]


if __name__ == "__main__":
    sys.exit("error: the self-test is part of another command; run python -m trqam_fast.doctor")
