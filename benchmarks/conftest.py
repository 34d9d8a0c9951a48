"""Fixtures of the benchmarks; see docs/performance.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.records import describe, save
from benchmarks.sizes import GRID, QUICK, Size
from benchmarks.work import copy_ceiling, flops, gemm_ceiling, traffic
from trqam_fast.kernels.dispatch import OPS
from trqam_fast.memory import keep_freed_memory

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
NETWORKS = {
    "cpu": [("reference", "ieee"), ("cpp", "ieee"), ("cpp", "bf16")],
    "cuda": [("reference", "ieee"), *(("triton", p) for p in ("ieee", "tf32", "fp16", "bf16"))],
}
VARIANTS = [(device, *variant) for device in DEVICES for variant in NETWORKS[device]]
"""Device, backend and precision of an op that passes through networks."""


@dataclass(frozen=True)
class Variant:
    """Where and how a benchmark runs."""

    device: str
    backend: str
    precision: str

    @property
    def options(self) -> dict[str, str]:
        return {"backend": self.backend, "precision": self.precision}


@pytest.fixture(
    params=[
        pytest.param(size, id=size.name, marks=[pytest.mark.quick] if size.name in QUICK else [])
        for size in GRID
    ]
)
def size(request) -> Size:
    return request.param


@pytest.fixture(params=VARIANTS, ids="-".join)
def variant(request) -> Variant:
    return Variant(*request.param)


def variants_of(op: str) -> list[tuple[str, str, str]]:
    """Return device, backend and precision of an op without matrix products, all that it has."""
    chosen = []
    for device in DEVICES:
        backends = ["reference", *(["cpp"] if device in OPS[op].cpp else [])]
        backends += ["triton"] if OPS[op].triton and device == "cuda" else []
        chosen += [(device, backend, "ieee") for backend in backends]
    return chosen


def without_products(op: str):
    """Run a benchmark of an op without matrix products once for each backend that has it."""
    return pytest.mark.parametrize("variant", variants_of(op), ids="-".join, indirect=True)


@pytest.fixture(scope="session", autouse=True)
def memory_is_kept():
    keep_freed_memory()


@pytest.fixture
def measure(benchmark, size, variant):
    """Time `function`, the device idle again at its end, as one of the group `name` and size.

    `work` names entries of `flops` or `traffic`, whose sum is what the function does.
    """

    def run(name: str, function, *work: str) -> None:
        device = variant.device

        def call():
            result = function()
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        # The ceilings are measured before, so that the machine is in the same state.
        ceiling = {"GFLOP/s": gemm_ceiling(device, variant.precision), "GB/s": copy_ceiling(device)}
        benchmark.group = f"{name} {size.name} {device}"
        call()
        benchmark(call)
        if not work or benchmark.stats is None:  # with --benchmark-disable
            return
        unit, amounts = ("GFLOP/s", flops(size)) if work[0] in flops(size) else (
            "GB/s", traffic(size)
        )  # fmt: skip
        reached = 1e-9 * sum(amounts[part] for part in work) / benchmark.stats.stats.median
        benchmark.extra_info[unit] = round(reached, 2)
        benchmark.extra_info["ceiling " + unit] = round(ceiling[unit], 1)
        benchmark.extra_info["share of the ceiling"] = round(reached / ceiling[unit], 3)

    return run


STANDARD = {*QUICK, "w512-b256-s1"}
"""Sizes without --full: the small one and the paper's."""
ROUNDS = 3
"""Least rounds of a case without --full, where an update of the paper's size takes a second."""


def pytest_addoption(parser):
    parser.addoption("--record", help="write medians and spreads to this JSON file")
    parser.addoption(
        "--full", action="store_true",
        help="all sizes and the compiled baseline; without it the small and the paper's size, "
        "under ten minutes on two cores",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads it
def pytest_configure(config):
    if not config.getoption("--full"):
        config.option.benchmark_min_rounds = min(ROUNDS, config.option.benchmark_min_rounds)


def pytest_collection_modifyitems(config, items):
    """Leave out what --full alone runs: other sizes, and torch.compile, which takes minutes."""
    if config.getoption("--full"):
        return

    def chosen(item):
        values = item.callspec.params if hasattr(item, "callspec") else {}
        size, variant = values.get("size"), values.get("variant", ())
        return (size is None or size.name in STANDARD) and "compiled" not in variant

    left_out = [item for item in items if not chosen(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if chosen(item)]


def pytest_sessionfinish(session):
    path = session.config.getoption("--record")
    found = getattr(session.config, "_benchmarksession", None)
    if path is None or found is None:
        return
    groups: dict[str, dict] = {}
    for result in found.benchmarks:
        if not result:
            continue
        stats = result.stats
        groups.setdefault(result.group, {})["-".join(result.params["variant"])] = {
            "median_ms": round(1e3 * stats.median, 4),
            "quartile_1_ms": round(1e3 * stats.q1, 4),
            "quartile_3_ms": round(1e3 * stats.q3, 4),
            "rounds": stats.rounds,
            **result.extra_info,
        }
    record = {**describe("median time of every op by backend and precision"), "groups": groups}
    save(Path(path), record)
