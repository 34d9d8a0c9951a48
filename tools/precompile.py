"""Compile the kernels for a GPU that is not here, into a cache to carry to one.

    python tools/precompile.py /opt/kernels --architecture 90
    TRITON_CACHE_DIR=/opt/kernels python tools/gpu_trial.py contact    # where the GPU is

What a machine finds there it does not compile. It must have the same Triton, and the cache must lie
at the same path. Compiled are the self-test of every plan and precision, and updates at paper scale
but in float32, a process for each; docs/gpu.md tells when it pays.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PLANS = ("triton", "triton_pdl")
PRECISIONS = ("fp16", "tf32", "bf16", "ieee")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of the compiled kernels")
    architectures = {"type": int, "default": 90, "choices": (80, 89, 90, 100)}
    parser.add_argument("--architecture", help="compute capability, times ten", **architectures)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--ops", nargs="+", help="of the self-test; without the updates")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def compile_part(backend: str, precision: str, architecture: int, ops: list[str] | None) -> int:
    """Compile what one plan launches in one precision; return the number of kernels."""
    import torch

    from tests.aot import compiling, pretending
    from trqam_fast.kernels import dispatch
    from trqam_fast.kernels.dispatch import OPS
    from trqam_fast.op_cases import CASES, draw_inputs, evaluate
    from trqam_fast.self_test import SMALL, WIDE

    with compiling(architecture, report=False) as found, pretending():
        for case in CASES.values():
            has = OPS[case.op]
            if ops is not None and case.op not in ops:
                continue
            if not has.runs_by(backend) or not (has.networks or precision == "ieee"):
                continue
            options = {"backend": backend} | ({"precision": precision} if has.networks else {})
            for size in (SMALL, *WIDE):
                evaluate(case, draw_inputs(case, size, dtype=torch.float32), **options)
        # An update's random numbers may come from anywhere but an extension for the CPU.
        dispatch.unavailable = lambda op, chosen, *_, **__: "no" if chosen == "cpp" else None
        for runs in (1, 8) if ops is None and precision != "ieee" else ():
            update(runs, backend, precision)
    return len({kernel.hash for kernel in found})


def update(runs: int, backend: str, precision: str) -> None:
    """Warm an updater up at paper scale; nothing but the launches counts."""
    from dataclasses import replace

    from benchmarks.sizes import PAPER, make_agent
    from benchmarks.test_update import make_updater

    size = replace(PAPER, runs=runs)
    make_updater(make_agent(size, "cpu", backend, precision), size, "cpu", graph=False)


def main(argv: list[str] | None = None) -> int:
    """Compile everything; the exit status is 1 if a part failed."""
    args = parse(argv)
    if args.part:
        count = compile_part(*args.part, args.architecture, args.ops)
        print(f"{' '.join(args.part)}: {count} kernels", flush=True)
        return 0
    own = {"TRITON_CACHE_DIR": str(args.cache.resolve()), "OMP_NUM_THREADS": "1"}
    own |= {"TRITON_STORE_BINARY_ONLY": "1"}
    plans = PLANS if args.architecture >= 90 else PLANS[:1]  # no dependent launches before
    parts = [(plan, precision) for precision in args.precisions for plan in plans]
    words = [sys.executable, __file__, str(args.cache), f"--architecture={args.architecture}"]
    words += ["--ops", *args.ops] if args.ops else []

    def run(part: tuple[str, str]) -> int:
        return subprocess.run([*words, "--part", *part], env=os.environ | own, cwd=ROOT).returncode

    with ThreadPoolExecutor(max_workers=max(args.jobs or 1, 1)) as pool:
        return 1 if any(pool.map(run, parts)) else 0


if __name__ == "__main__":
    sys.exit(main())
