"""Where the time goes: kernels, counters, limits of the machine, tiles; searching for races."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from tools.trial.contact import attempt
from tools.trial.record import ROOT, Trial, predicted_kernel
from trqam_fast.randomness import Randomness

COUNTERS = {
    "gpu__time_duration.sum": "ns",
    "lts__t_bytes.sum": "bytes of L2",
    "dram__bytes.sum": "bytes of memory",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% of warps",
}
"""What ncu is asked for."""
KERNELS = (
    "prepare_kernel", "rollout_step_kernel", "first_layer_kernel", "hidden_layer_kernel",
    "output_kernel", "sweep_step_kernel", "pull_output_kernel", "pull_hidden_kernel",
    "pull_norm_kernel", "pull_inputs_kernel", "gradient_operands_kernel",
    "weight_gradient_kernel", "gradient_norm_kernel", "adam_step_kernel",
    "adjoint_matching_kernel", "adjoint_sizes_kernel", "squared_error_kernel", "td_loss_kernel",
    "action_gradient_kernel", "flow_matching_inputs_kernel", "dual_update_kernel",
    "gather_sequences_kernel", "philox_kernel", "record_metrics_kernel",
)  # fmt: skip
"""Every Triton kernel; an update on a batch that lies ready gathers none."""
OUT_OF_TIME = 100.0
"""Seconds after which no further configuration of tiles is tried."""


def profile(trial: Trial, precision: str) -> None:
    """Share of every kernel of an update, by its name, from graphs that are replayed."""
    from dataclasses import replace

    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from benchmarks.sizes import PAPER, PAPER_SMALL, make_agent
    from benchmarks.test_update import make_updater
    from trqam_fast.training.updater import UPDATES_PER_REPLAY

    for runs in (1,) if trial.dry else (1, 8):
        size = replace(PAPER_SMALL if trial.dry else PAPER, runs=runs)
        backend, precision = ("triton", precision) if trial.gpu else ("cpp", "ieee")
        agent = make_agent(size, trial.device, backend, precision)
        rounds = 1 if trial.dry else 3
        interval = UPDATES_PER_REPLAY * (rounds + 2)
        updater = make_updater(agent, size, trial.device, graph=trial.gpu, interval=interval)
        updater.run(UPDATES_PER_REPLAY)
        updater.history.collect()
        updates = rounds * UPDATES_PER_REPLAY
        activity = ProfilerActivity.CUDA if trial.gpu else ProfilerActivity.CPU
        with record(activities=[activity]) as recorded:
            updater.run(updates)
            updater.history.collect()
        averages = recorded.key_averages()
        side = "self_device_time_total" if trial.gpu else "self_cpu_time_total"
        table = averages.table(sort_by=side, row_limit=60, max_name_column_width=70)
        (trial.out / f"profile_{precision}_s{runs}.txt").write_text(table)
        found = [e for e in averages if getattr(e, side) > 0]
        for event in sorted(found, key=lambda e: -getattr(e, side))[:14]:
            seconds = 1e-6 * getattr(event, side) / updates
            trial.emit(
                event.key[:80], size={"runs": runs}, precision=precision, variant="tiles",
                seconds=[seconds], count=event.count,
                predicted_us=predicted_kernel(trial.paper, event.key, precision, runs),
                note=f"{event.count / updates:.1f} an update",
            )  # fmt: skip
        total = 1e-6 * sum(getattr(e, side) for e in found) / updates
        calls = sum(e.count for e in found) / updates
        trial.emit(
            "all kernels", size={"runs": runs}, precision=precision, variant="tiles",
            seconds=[total], note=f"{calls:.1f} an update",
        )  # fmt: skip


def micro(trial: Trial) -> None:
    """Build benchmarks/gpu_micro.cu and run it: the constants of benchmarks/gpu_model.py."""
    nvcc, program = shutil.which("nvcc"), trial.out / "gpu_micro"
    if nvcc is None:
        trial.emit("nvcc", note="not run: no nvcc on the PATH")
        return
    source = ROOT / "benchmarks" / "gpu_micro.cu"
    flags = ["-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a"]
    built = trial.run([nvcc, *flags, source, "-o", program], 120)
    if built is None:
        return
    if not trial.gpu:
        trial.emit("gpu_micro", note="compiled for sm_90a; it needs a GPU to run")
        program.unlink()
        return
    printed = trial.run([program], 60)
    program.unlink()
    found = {}
    for line in (printed or "").splitlines():
        if line.startswith("{"):
            measured = json.loads(line)
            found[measured["name"]] = measured["value"]
            trial.emit(measured["name"], note=f"{measured['value']:.4g} {measured['unit']}")
    (trial.out / "gpu_micro.json").write_text(json.dumps(found, indent=1) + "\n")


def counters(trial: Trial, precision: str) -> None:
    """What the hardware counts in each launch of a Triton kernel in one eager update."""
    ncu = shutil.which("ncu")
    if ncu is None or not trial.gpu:
        trial.emit("ncu", note="not run: it needs a GPU and ncu on the PATH")
        return
    command = [ncu, "--clock-control", "none", "--cache-control", "none", "--csv"]
    command += ["--metrics", ",".join(COUNTERS), "-k", f"regex:^({'|'.join(KERNELS)})$"]
    printed = trial.run([*command, *child(f"one_update.{precision}", trial)], 120)
    for name, values in read_counters(printed or ""):
        words = [f"{values[key]} {unit}" for key, unit in COUNTERS.items() if key in values]
        trial.emit(name, precision=precision, variant="tiles", note="; ".join(words))


def read_counters(printed: str) -> list[tuple[str, dict[str, str]]]:
    """Return every launch's kernel and its metrics by name from what ncu printed."""
    rows = [line for line in printed.splitlines() if line.startswith('"')]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in csv.DictReader(rows):
        launch = row["ID"], row["Kernel Name"].split("(")[0]
        found.setdefault(launch, {})[row["Metric Name"]] = row["Metric Value"]
    return [(name, values) for (_, name), values in found.items()]


def one_update(trial: Trial, precision: str) -> None:
    """Do one eager update at paper size; what `counters` looks at."""
    from benchmarks.sizes import PAPER, PAPER_SMALL, make_agent, make_batch

    size = PAPER_SMALL if trial.dry else PAPER
    backend, precision = ("triton", precision) if trial.gpu else ("cpp", "ieee")
    agent = make_agent(size, trial.device, backend, precision)
    randomness = Randomness([0], trial.device)
    agent.update(make_batch(size, trial.device), agent.draw_noise(randomness))


def tune(trial: Trial) -> None:
    """Time the passes with other tiles, steps, pipelines and warps than the tables'.

    The steps of rollout and sweep keep their warps; the gradients of weights have other warps too.
    """
    if not trial.gpu:
        trial.emit("tiles", note="not run: it needs a GPU")
        return
    from dataclasses import replace

    from benchmarks.sizes import PAPER

    best: dict[str, tuple[float, str]] = {}
    began = time.monotonic()
    shapes = [(64, 64), (64, 128), (128, 64), (128, 128), (32, 64)]
    grid = itertools.product(shapes, (64, 32), (4, 8), (4, 3, 2), ("fp16", "tf32"))
    for (rows, features), depth, warps, stages, precision in grid:
        if time.monotonic() - began > OUT_OF_TIME:
            break
        told = (
            f"{rows} rows x {features} features, steps of {depth}, {stages} stages, {warps} warps"
        )
        with other_tiles(precision, rows, features, depth, warps, stages):
            for runs in (1, 8):
                for name, call in passes(replace(PAPER, runs=runs), precision).items():
                    found, note = attempt(lambda call=call: graph_seconds(call))
                    trial.emit(
                        name, size={"runs": runs}, precision=precision, variant="tiles",
                        seconds=found, ok=True, note=f"{told}{note and ': '}{note}",
                    )  # fmt: skip
                    if found:
                        middle = sorted(found)[len(found) // 2]
                        key = f"{name} {precision} S={runs}"
                        best[key] = min(best.get(key, (middle, told)), (middle, told))
    rows = {key: {"us": 1e6 * value, "tile": told} for key, (value, told) in best.items()}
    (trial.out / "tiles.json").write_text(json.dumps(rows, indent=1) + "\n")


def graph_seconds(call: Callable[[], object]) -> list[float]:
    """Return seconds of a call without the host's part."""
    from benchmarks.graphs import capture, event_seconds

    return event_seconds(capture(call, 3), 3, 10)


@contextlib.contextmanager
def other_tiles(
    precision: str, rows: int, features: int, depth: int, warps: int, stages: int
) -> Iterator[None]:
    """Replace what the tables say of one precision; kernels are compiled anew."""
    from trqam_fast.kernels.mlp.triton_config import BLOCK_SIZES, PASS_STAGES, WARPS

    block = BLOCK_SIZES[precision]
    before = WARPS[precision], PASS_STAGES[precision]
    BLOCK_SIZES[precision] = dataclasses.replace(
        block, block_m=rows, block_n=features, block_k=depth
    )
    WARPS[precision], PASS_STAGES[precision] = warps, (stages, stages)
    try:
        yield
    finally:
        BLOCK_SIZES[precision] = block
        WARPS[precision], PASS_STAGES[precision] = before


def passes(size, precision: str) -> dict:
    """Return a call of every kind of pass at a size."""
    import torch

    from benchmarks.sizes import draw, make_network
    from trqam_fast.kernels import lean_adjoint, mlp, sde_rollout

    options = {"backend": "triton", "precision": precision}
    runs, batch, steps, dim = size.runs, size.batch, size.flow_steps, size.dim
    field, base = (make_network(size, "cuda", seed).detach() for seed in (1, 2))
    critics = make_network(size, "cuda", critic=True)
    s, x = (draw(runs, batch, n, device="cuda", seed=n) for n in (size.obs_dim, dim))
    eps = draw(runs, steps - 1, batch, dim, device="cuda", seed=1)
    points = draw(runs, steps + 1, batch, dim, device="cuda", seed=2)
    inputs = torch.cat([s, x], -1)

    def critics_back() -> None:
        torch.autograd.grad(mlp(critics, inputs, **options).sum(), critics.tensors)

    return {
        "sde_rollout": lambda: sde_rollout(
            field, base, s, x, eps, ode_observations=s, ode_x0=x, **options
        ),
        "lean_adjoint": lambda: lean_adjoint(base, s, points, x, **options),
        "critics": lambda: mlp(critics.detach(), inputs, **options),
        "critics with gradient": critics_back,
    }


def sanitize(trial: Trial, tool: str) -> None:
    """The kernels at sizes of the self-test under one of compute-sanitizer's tools."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None or not trial.gpu:
        trial.emit(tool, note="not run: it needs a GPU and compute-sanitizer on the PATH")
        return
    printed = trial.run(
        [sanitizer, "--tool", tool, *child("small_ops", trial)], 300,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )  # fmt: skip
    if printed is not None:
        summary = [line for line in printed.splitlines() if "SUMMARY" in line] or ["none"]
        clean = " 0 errors" in summary[-1] or " 0 hazards" in summary[-1]
        trial.emit(tool, ok=clean, note=summary[-1].strip("= "))


def small_ops(trial: Trial) -> None:
    """Run every op once in the precisions of training, of one tile and of several.

    It is what `sanitize` looks at, by kernels that `self_test` has compiled.
    """
    import torch

    from trqam_fast.kernels.dispatch import OPS
    from trqam_fast.op_cases import CASES, draw_inputs, evaluate
    from trqam_fast.self_test import SMALL, WIDE

    backend = "triton" if trial.gpu else "cpp"
    sizes = (SMALL, WIDE[1]) if trial.gpu else (SMALL,)
    for name, case in CASES.items():
        has = OPS[case.op]
        if not (has.triton if trial.gpu else name == "path_kl"):
            continue
        ways = [{"precision": "tf32"}, {"precision": "fp16"}] if has.networks else [{}]
        for size, how in itertools.product(sizes, ways):
            inputs = draw_inputs(case, size, dtype=torch.float32, device=trial.device)
            evaluate(case, inputs, backend=backend, **how)


def child(stage: str, trial: Trial) -> list[str]:
    """Return the command of a stage whose measurements nobody keeps."""
    command = [sys.executable, "-m", "tools.gpu_trial", "--stage", stage]
    return [*command, "--device", trial.device, "--out", str(trial.out / "unused")]
