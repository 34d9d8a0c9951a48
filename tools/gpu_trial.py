"""First half hour on a GPU: install, check every kernel, time updates, profile, train.

    python tools/gpu_trial.py contact            # is it right, and how fast: under ten minutes
    python tools/gpu_trial.py deep               # where the time goes
    python tools/gpu_trial.py train              # whole runs
    python tools/gpu_trial.py all --device cpu --dry     # a rehearsal without a GPU

Every stage is a process with a time limit of its own, so that one that breaks the GPU's context, or
hangs, does not end the trial. Measurements are lines of JSON in OUT/results.jsonl, what the stages
print is in OUT/log.txt, and a table comes last. docs/gpu.md explains it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.trial.record import LOG, RESULTS, ROOT, Trial, run_program

Group = dict[str, int]

PLANS = ("triton", "triton_pdl")
PRECISIONS = ("ieee", "tf32", "fp16", "bf16")
SELF_TESTS = [f"self_test.{plan}.{precision}" for plan in PLANS for precision in PRECISIONS]
WARM_UPS = [f"warm_up.{plan}.{precision}" for plan in PLANS for precision in PRECISIONS[1:]]
SANITIZERS = [f"sanitize.{tool}" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")]
DEFAULT_TASKS = [f"default_task.{precision}" for precision in PRECISIONS[1:]]

PREPARE: list[Group] = [{"wheels": 60}]
CALLS: dict[str, list[Group]] = {
    "contact": [
        {"extension": 180},
        {
            **dict.fromkeys(["graph", "kernel_tests", "warm_reference", "parity"], 180),
            **dict.fromkeys([*SELF_TESTS, "self_test.cpp.ieee", *WARM_UPS], 180),
        },
        {"environment": 60}, {"bench_tiles": 180}, {"bench_baseline": 90}, {"reference": 150},
    ],
    "deep": [
        {"extension": 180}, {"profile.tf32": 90}, {"profile.fp16": 90}, {"micro": 90},
        {"counters.tf32": 120}, {"counters.fp16": 120},
        dict.fromkeys(SANITIZERS, 200), {"tune": 140},
    ],
    "train": [
        {"extension": 180}, {"auto_plan": 120}, dict.fromkeys([*DEFAULT_TASKS, "resume"], 240),
        {"paper_task.1": 120}, {"paper_task.8": 120},
    ],
}  # fmt: skip
"""Groups of stages with their time limits in seconds, the dispensable ones last.

Those of one group run side by side: what compiles, and what is only right or wrong. A stage that
takes a time has the machine to itself. After a stage's name come its arguments.
"""
HELPERS = {"one_update": "deep", "small_ops": "deep"}
MODULES = {
    stage.partition(".")[0]: call
    for call, groups in CALLS.items() for group in groups for stage in group
} | HELPERS  # fmt: skip
MODULES |= {"wheels": "contact", "extension": "contact"}
LEAST = 15
"""Seconds that must be left for a stage to begin."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("call", nargs="?", choices=[*CALLS, "all"], help="which stages to run")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--out", type=Path, default=Path("trial"), help="folder of the results")
    parser.add_argument("--skip", default="", help="stages to leave out, separated by commas")
    parser.add_argument("--limit", type=float, default=570, help="seconds of a call")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="wheels to install")
    parser.add_argument("--reference", type=Path, help="checkout of yonghdong/trqam")
    parser.add_argument("--commit", default="", help="commit of the code, if there is no git here")
    parser.add_argument("--identity", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.call is None) == (args.stage is None):
        parser.error("name one of contact, deep, train and all")
    skipped = filter(None, args.skip.split(","))
    unknown = {name for name in skipped if name.partition(".")[0] not in MODULES}
    if unknown:
        parser.error(f"--skip names {', '.join(sorted(unknown))}; stages: {', '.join(MODULES)}")
    args.out, args.wheels = args.out.resolve(), args.wheels.resolve()
    args.reference = args.reference and args.reference.resolve()
    return args


def run_stage(args: argparse.Namespace) -> int:
    """Run one stage in this process."""
    args.out.mkdir(parents=True, exist_ok=True)
    trial = Trial(
        args.stage.partition(".")[0], args.device, args.dry, args.out, args.identity, args.commit,
        args.wheels, args.reference, time.monotonic() + args.limit,
    )  # fmt: skip
    name, *words = args.stage.split(".")
    module = importlib.import_module(f"tools.trial.{MODULES[name]}")
    getattr(module, name)(trial, *words)
    return 0


def command_of(stage: str, args: argparse.Namespace, limit: float) -> list[str]:
    """Return the command line of a stage's process, which has so many seconds."""
    words = [sys.executable, str(Path(__file__)), "--stage", stage, "--device", args.device]
    words += ["--out", str(args.out), "--wheels", str(args.wheels), "--identity", args.identity]
    words += ["--commit", args.commit, "--limit", f"{limit:.1f}"]
    words += ["--reference", str(args.reference)] if args.reference else []
    return [*words, "--dry"] if args.dry else words


def run_groups(groups: list[Group], args: argparse.Namespace, until: float) -> None:
    """Run groups of stages one after another, the stages of a group side by side."""
    skipped = set(args.skip.split(","))
    for group in groups:
        stages = {k: v for k, v in group.items() if not skipped & {k, k.partition(".")[0]}}
        with ThreadPoolExecutor(max_workers=max(len(stages), 1)) as pool:
            crowded = len(stages) > 1
            running = [
                pool.submit(run_one, stage, args, until, limit, crowded)
                for stage, limit in stages.items()
            ]
            for done in as_completed(running):
                report(args, *done.result())


def run_one(
    stage: str, args: argparse.Namespace, until: float, limit: float, crowded: bool
) -> tuple[str, float | None, int | None, str]:
    """Run a stage; return its name, seconds (None if there was no time), status and output."""
    start = time.monotonic()
    limit = min(limit, until - start)
    if limit < LEAST:
        return stage, None, None, ""
    status, printed = run_program(command_of(stage, args, limit), limit, environment(args, crowded))
    return stage, time.monotonic() - start, status, printed


def report(
    args: argparse.Namespace, stage: str, seconds: float | None, status: int | None, printed: str
) -> None:
    """Keep what a stage has printed, and say how it went."""
    if seconds is None:
        note(args, stage, "not run: the call's time was up", ok=False)
        return
    with open(args.out / LOG, "a") as file:
        file.write(f"==== {stage}: status {status}, {seconds:.1f} s\n{printed}\n")
    if status != 0:
        last = (printed.strip().splitlines() or ["no message"])[-1]
        why = "time limit" if status is None else f"status {status}"
        note(args, stage, f"{why}; {last}"[:300], ok=False)
    print(f"{stage:28} {seconds:6.1f} s  {'' if status == 0 else 'FAILED'}", flush=True)


def commit_of_the_code() -> str:
    """Ask another process, as this one imports nothing that a new machine may lack."""
    code = "from benchmarks.records import commit; print(commit())"
    status, printed = run_program([sys.executable, "-c", code], 60, dict(os.environ))
    return printed.strip() if status == 0 else "unknown"


def environment(args: argparse.Namespace, crowded: bool) -> dict[str, str]:
    """Return what a stage's process finds: carried wheels, and one thread beside others."""
    paths = [str(ROOT), str(args.wheels / "site"), os.environ.get("PYTHONPATH", "")]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found |= {"JAX_COMPILATION_CACHE_DIR": str(args.out / "jax_cache")}
    found |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    found |= {"PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return found | {"OMP_NUM_THREADS": "1"} if args.dry or crowded else found


def note(args: argparse.Namespace, stage: str, text: str, ok: bool) -> None:
    """Append a line about a stage itself."""
    line = {"trial": args.identity, "stage": stage, "name": "stage", "ok": ok, "note": text}
    with open(args.out / RESULTS, "a") as file:
        file.write(json.dumps(line) + "\n")


def rows_of(args: argparse.Namespace) -> Iterator[dict]:
    """Read this trial's measurements."""
    path = args.out / RESULTS
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if row["trial"] == args.identity:
            yield row


def surprise(row: dict) -> float:
    """Return how far a measurement is from its prediction, as a factor; 1 without one."""
    measured, predicted = row.get("median_us"), row.get("predicted_us")
    return math.exp(abs(math.log(measured / predicted))) if measured and predicted else 1.0


def short_size(row: dict) -> str:
    """Return a size in a few letters."""
    size = row.get("size") or {}
    return f"S={size['runs']}" if "runs" in size else " ".join(map(str, size.values()))[:9]


def condense(rows: list[dict]) -> list[dict]:
    """Keep of equal measurements the largest error or the shortest time, and all that is wrong."""
    kept: dict[tuple, dict] = {}
    for index, row in enumerate(rows):
        what = [row.get(key) for key in ("stage", "name", "variant", "precision", "mode")]
        key = (*what, "" if row.get("error") is not None else short_size(row))
        before = kept.setdefault(key if row["ok"] else (index,), row)
        worse = (row.get("error") or 0.0) > (before.get("error") or 0.0)
        faster = (row.get("median_us") or math.inf) < (before.get("median_us") or math.inf)
        if worse or faster:
            kept[key] = row
    return list(kept.values())


def print_table(rows: list[dict]) -> None:
    """Print what is wrong, then predictions that missed most, then the rest as it came."""
    print(f"\n{'stage':13}{'what':32}{'size':10}{'how':23}{'us':>24}{'predicted':>11}  note")
    for row in sorted(condense(rows), key=lambda row: (row["ok"], -surprise(row))):
        short = short_size(row)
        how = " ".join(filter(None, (row.get(k) for k in ("variant", "precision", "mode"))))
        spread = ""
        if row.get("median_us") is not None:
            spread = f"{row['median_us']:.5g} ({row['q1_us']:.4g}-{row['q3_us']:.4g})"
        predicted = f"{row['predicted_us']:.4g}" if row.get("predicted_us") else ""
        told = "" if row.get("error") is None else f"error {row['error']:.1e} "
        told = f"{'' if row['ok'] else 'WRONG '}{told}{row.get('note', '')}"[:110]
        print(
            f"{row['stage']:13}{row['name'][:31]:32}{short:10}{how[:22]:23}{spread:>24}"
            f"{predicted:>11}  {told}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the trial; the exit status is 1 if anything is not as it should be."""
    args = parse(argv)
    if args.stage is not None:
        return run_stage(args)
    args.identity = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    args.out.mkdir(parents=True, exist_ok=True)
    args.commit = args.commit or commit_of_the_code()
    until = time.monotonic() + args.limit
    run_groups(PREPARE, args, until)
    for name in CALLS if args.call == "all" else [args.call]:
        print(f"-- {name}", flush=True)
        run_groups(CALLS[name], args, until)
        until = time.monotonic() + args.limit
    rows = list(rows_of(args))
    print_table(rows)
    wrong = sum(not row["ok"] for row in rows)
    print(f"{len(rows)} measurements, {wrong} not as they should be; in {args.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
