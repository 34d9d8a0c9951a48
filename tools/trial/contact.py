"""First contact: installation, correctness of every kernel, times of an update."""

from __future__ import annotations

import functools
import importlib.util
import math
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tools.trial.record import ROOT, Trial, predicted_update

PYTEST = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
RECORDINGS = ("trqam_single_step", "trqam_chunked", "qam_chunked")


def environment(trial: Trial) -> None:
    """Name the machine; measure a copy and a product, which bound everything else."""
    import torch

    if trial.gpu:
        properties = torch.cuda.get_device_properties(0)
        trial.run(["nvidia-smi"], 30)
        trial.emit(
            "device",
            note=f"{properties.multi_processor_count} multiprocessors, L2 "
            f"{properties.L2_cache_size / 2**20:.0f} MiB, "
            f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}",
        )
    else:
        trial.emit("device", note=f"CPU, {torch.get_num_threads()} threads: a rehearsal")
    count = 2**18 if trial.dry else 2**28
    source = torch.randn(count, device=trial.device)
    target = torch.empty_like(source)
    seconds = times(trial, lambda: target.copy_(source))
    rate = 2e-12 * source.nbytes / median(seconds)
    trial.emit("copy", size={"bytes": source.nbytes}, seconds=seconds, note=f"{rate:.2f} TB/s")
    side = 64 if trial.dry else 8192
    a, b = (torch.randn(side, side, device=trial.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = times(trial, lambda: a @ b)
    rate = 2e-12 * side**3 / median(seconds)
    note = f"{rate:.2f} TFLOP/s"
    trial.emit("product", size={"side": side}, precision="bf16", seconds=seconds, note=note)


def wheels(trial: Trial) -> None:
    """Install wheels that were carried along."""
    found = sorted(trial.wheels.glob("*.whl"))
    if found:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        site = ["--no-compile", "--upgrade", "--target", trial.wheels / "site"]
        trial.run([*pip, *site, *found], 120)
        trial.emit("wheels", note=f"{len(found)} installed in {trial.wheels.name}/site")


def extension(trial: Trial) -> None:
    """Compile the extension if it does not import."""
    state = extension_state()
    wanted = ("CPU and CUDA",) if trial.gpu else ("CPU and CUDA", "CPU")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    for cuda in "10" if trial.gpu and state not in wanted else "0":
        if state in wanted:
            break
        trial.run([*install, "-e", ROOT], 240, TRQAM_CUDA=cuda)
        state = extension_state()
        wanted = ("CPU and CUDA", "CPU")
    # The Triton kernels, and so an update on a GPU, do without it.
    trial.emit("extension", ok=state in wanted, note=state)


def extension_state() -> str:
    """Return what a fresh process finds of the compiled extension."""
    code = "from trqam_fast.runs.versions import versions; print(versions()['extension'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def self_test(trial: Trial, backend: str, precision: str) -> None:
    """Every op and size against float64; on a GPU each call of a kernel ten times over."""
    from trqam_fast.kernels.dispatch import OPS, PRECISIONS_OF, TRITON
    from trqam_fast.op_cases import CASES
    from trqam_fast.self_test import SMALL, TOLERANCE, WIDE, deviation

    if backend in TRITON and backend not in backends_of(trial):
        return
    sizes = [("small", SMALL)] if trial.dry else [("small", SMALL), *zip("ab", WIDE, strict=True)]
    device = trial.device
    for name, case in CASES.items():
        has = OPS[case.op]
        if not (has.runs_by(backend) if backend in TRITON else device in has.cpp):
            continue
        if precision not in (PRECISIONS_OF[backend] if has.networks else ("ieee",)):
            continue
        for label, size in sizes:
            call = functools.partial(deviation, name, backend, device, precision, size)
            found, note = attempt(call)
            trial.emit(
                name, size={"case": label}, precision=precision, variant=backend,
                error=found, ok=found is not None and found <= TOLERANCE[precision], note=note,
            )  # fmt: skip


def warm_up(trial: Trial, backend: str, precision: str) -> None:
    """Compile what the updates at paper scale launch, so that nothing that is timed does."""
    from dataclasses import replace

    from benchmarks.sizes import PAPER, make_agent
    from benchmarks.test_update import make_updater

    if trial.dry or backend not in backends_of(trial):
        return
    for runs in (1, 8):
        size = replace(PAPER, runs=runs)
        agent = make_agent(size, trial.device, backend, precision)
        make_updater(agent, size, trial.device, graph=False)


def backends_of(trial: Trial) -> list[str]:
    """Return the backends of Triton kernels that the device has."""
    from trqam_fast.training.backend import PLANS

    return [PLANS[plan] for plan in plans_of(trial)] if trial.gpu else []


def plans_of(trial: Trial) -> list[str]:
    """Return the plans of this project's kernels that the device has."""
    import torch

    from trqam_fast.kernels.dispatch import has_dependent_launches

    dependent = has_dependent_launches(torch.device(trial.device))
    return ["tiles", "tiles-pdl"] if dependent else ["tiles"]


def parity(trial: Trial) -> None:
    """Replay the recorded runs of the authors' code in float32."""
    from trqam_fast.parity import ParityArgs, replay

    backend = "triton" if trial.gpu else "cpp"
    for name in RECORDINGS[: 1 if trial.dry else None]:
        path = ROOT / "tests" / "data" / f"{name}.npz"
        args = ParityArgs(path, backend=backend, device=trial.device, dtype="float32")
        worst, note = attempt(lambda args=args: max(replay(args).values()))
        trial.emit(
            name, precision="ieee", variant=backend, error=worst,
            ok=worst is not None and worst < 1e-4, note=note,
        )  # fmt: skip


def kernel_tests(trial: Trial) -> None:
    """Run the kernels' own tests, on a GPU all, else a few under Triton's interpreter."""
    few = ["-k", "bounds_lam or unsupported"] if trial.dry else []
    interpret = {} if trial.gpu else {"TRITON_INTERPRET": "1"}
    # Compiling takes the most of it.
    workers = ["-n", "8"] if trial.gpu and importlib.util.find_spec("xdist") else []
    files = ["tests/test_triton.py", "tests/test_op_contract.py", *workers]
    run_tests(trial, [*files, "-m", "interpreter", "--maxfail=10", *few], 240, **interpret)


def graph(trial: Trial) -> None:
    """Captured updates against eager ones, bit for bit."""
    chosen = ["tests/test_updater.py", "tests/test_acting.py", "tests/test_baselines.py"]
    chosen += ["-k", "on_a_gpu or graphed"]
    if not trial.gpu:
        chosen = ["tests/test_updater.py", "-k", "replays"]
    run_tests(trial, chosen, 170)


def run_tests(trial: Trial, chosen: list[str], timeout: float, **env: str) -> None:
    """Run tests, and say which did not pass."""
    printed = trial.run([*PYTEST, *chosen], timeout, **env)
    if printed is not None:
        trial.emit("tests", note=printed.strip().splitlines()[-1], variant=Path(chosen[0]).stem)


def bench_tiles(trial: Trial) -> None:
    """Time the trainer's updates with this project's kernels, dependent launches in turn."""
    for runs in (1,) if trial.dry else (1, 8, 2, 4, 16):
        own = ("tf32", "fp16", "bf16") if runs in (1, 8) else ("tf32",)
        for precision in own if trial.gpu else ("ieee",):
            for plan in plans_of(trial):
                bench(trial, plan, runs, precision)
    bench(trial, "tiles", 1, "tf32" if trial.gpu else "ieee", streams=False)


def bench_baseline(trial: Trial) -> None:
    """Time the same with a library's product for each layer: what the kernels must beat.

    By hand, in `benchmarks.baselines`, and by the trainer's plan `layers`.
    """
    for variant, sizes in (("baseline", (1, 8, 2)), ("layers", (1, 8))):
        for runs in (1,) if trial.dry else sizes:
            bench(trial, variant, runs, "tf32" if trial.gpu else "ieee")


def bench(trial: Trial, variant: str, runs: int, precision: str, *, streams: bool = True) -> None:
    """Time updates of one size, sampling and metrics included, in graphs of ten."""
    from dataclasses import replace

    import torch

    from benchmarks.baselines import EagerAgent
    from benchmarks.compare_reference import time_block
    from benchmarks.graphs import event_seconds
    from benchmarks.sizes import PAPER, PAPER_SMALL, make_agent
    from benchmarks.test_update import make_updater
    from trqam_fast.agents import TRQAMAgent
    from trqam_fast.kernels.dispatch import TRITON
    from trqam_fast.training.backend import PLANS
    from trqam_fast.training.updater import UPDATES_PER_REPLAY

    size = replace(PAPER_SMALL if trial.dry else PAPER, runs=runs)
    backend = PLANS.get(variant, "reference")
    backend = "cpp" if backend in TRITON and not trial.gpu else backend
    kind = TRQAMAgent if variant in PLANS else EagerAgent
    draws = "reference" if variant == "layers" else "auto"  # as in training
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def measure() -> tuple[list[float], str]:
        own = precision if variant in PLANS else "ieee"  # the baseline has but PyTorch's products
        agent = make_agent(size, trial.device, backend, own, agent_class=kind)
        replays = 2 if trial.dry else 20
        interval = UPDATES_PER_REPLAY * (replays + 3)
        updater = make_updater(
            agent, size, trial.device, graph=trial.gpu, interval=interval, streams=streams,
            draws=draws,
        )  # fmt: skip
        if not trial.gpu:
            return time_block(updater.update, 3), "without a graph"
        torch.cuda.reset_peak_memory_stats()
        updater.run(UPDATES_PER_REPLAY)
        updater.history.collect()
        seconds = event_seconds(updater.graphs[UPDATES_PER_REPLAY], UPDATES_PER_REPLAY, replays)
        updater.history.advance(UPDATES_PER_REPLAY * (replays + 1))
        if not updater.history.collect().isfinite().all():
            raise FloatingPointError("a metric is not finite")
        return seconds, f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"

    found, note = attempt(measure)
    seconds, told = found or (None, note)
    trial.emit(
        "update", size=vars(size), precision=precision, mode="throughput",
        variant=variant if streams else f"{variant}, one stream",
        seconds=seconds, ok=seconds is not None, note=told,
        predicted_us=predicted_update(trial.paper, variant, precision, runs, streams),
    )  # fmt: skip


def warm_reference(trial: Trial) -> None:
    """Compile the authors' update into JAX's cache, so that `reference` need not wait for it."""
    from benchmarks.reference import Reference
    from benchmarks.sizes import PAPER

    if trial.reference is None or not trial.gpu or trial.dry:
        return
    worker = Reference(trial.reference, Path(sys.executable), trial.device)
    try:
        worker.ask(do="prepare", name=PAPER.name, size=vars(PAPER))
        worker.ask(do="time", name=PAPER.name, updates=1, every=1)
    finally:
        worker.close()


def reference(trial: Trial) -> None:
    """Time the authors' JAX code against ours, with a wait at every update and without."""
    if trial.reference is None:
        trial.emit("jax", note="not run: no checkout given with --reference")
        return
    from benchmarks import compare_reference as compare
    from benchmarks.reference import Reference
    from benchmarks.sizes import PAPER, PAPER_SMALL

    name, size = ("small", PAPER_SMALL) if trial.dry else ("paper", PAPER)
    case = compare.Case(name, size, "tf32" if trial.gpu else "ieee", 2 if trial.dry else 20)
    worker = Reference(trial.reference, Path(sys.executable), trial.device)
    try:
        versions = worker.ask(do="describe")
        results, note = attempt(
            lambda: compare.compare_all([case], worker, trial.device, 1 if trial.dry else 4)
        )
    finally:
        worker.close()
    if results is None:
        trial.emit("update", size=vars(size), variant="jax", ok=False, note=note)
        return
    for result in results.values():
        for side, variant in (("reference", "jax"), ("ours", "tiles")):
            spread = [1e-3 * result[side][f"{key}_ms"] for key in ("quartile_1", "median")]
            spread.append(1e-3 * result[side]["quartile_3_ms"])
            told = f"jax {versions['jax']}; ratio {result['ratio']:.3g}"
            kernels = result.get("reference_kernels")
            if kernels:
                told += f"; {kernels}"
            trial.emit(
                "update alone", size=vars(size), precision=case.precision, variant=variant,
                mode=result["mode"], seconds=spread, count=result["updates"],
                note=told if variant == "jax" else "",
            )  # fmt: skip


def attempt(call: Callable):
    """Return what `call` returns and no note, or None and why not; the log has it in full."""
    try:
        return call(), ""
    except Exception as error:  # whatever a new GPU, driver or compiler raises
        traceback.print_exc(file=sys.stdout)
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0]}"[:300]


def times(trial: Trial, call: Callable) -> list[float]:
    """Return seconds of some calls, by events on a GPU, by the clock elsewhere."""
    import torch

    from benchmarks.compare_reference import time_block

    if not trial.gpu:
        return time_block(call, 5)[1:]
    for _ in range(3):
        call()
    seconds = []
    for _ in range(20):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        torch.cuda.synchronize()
        seconds.append(1e-3 * before.elapsed_time(after))
    return seconds


def median(values: list[float]) -> float:
    """Return the middle of some values."""
    return sorted(values)[len(values) // 2] if values else math.nan
