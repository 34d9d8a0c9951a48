"""What a stage of a trial is given, and the lines of JSON that it leaves."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, LOG = "results.jsonl", "log.txt"


@dataclass(frozen=True)
class Trial:
    """A stage of a trial.

    Attributes:
        stage: Its name.
        device: ``cuda``, or ``cpu`` to rehearse.
        dry: Small sizes and few repeats: only that everything runs.
        out: Folder of the results.
        identity: Name of the trial.
        commit: Commit of the code.
        wheels: Folder of wheels that may be missing on this machine.
        reference: Checkout of the authors' code, or None.
        until: When the stage's time is up, as `time.monotonic` tells it.
    """

    stage: str
    device: str
    dry: bool
    out: Path
    identity: str
    commit: str
    wheels: Path
    reference: Path | None
    until: float

    @property
    def gpu(self) -> bool:
        """Whether the stage runs on a GPU."""
        return self.device == "cuda"

    @property
    def paper(self) -> bool:
        """Whether it does what benchmarks/gpu_model.py has computed: paper scale, on a GPU."""
        return self.gpu and not self.dry

    def emit(
        self,
        name: str,
        *,
        size: dict[str, Any] | None = None,
        precision: str = "",
        variant: str = "",
        mode: str = "",
        seconds: list[float] | None = None,
        count: int | None = None,
        predicted_us: float | None = None,
        error: float | None = None,
        ok: bool = True,
        note: str = "",
    ) -> None:
        """Append one measurement to the results.

        Args:
            name: What was measured.
            size: Sizes by name.
            precision: Operands of products.
            variant: Whose code, e.g. tiles, baseline or jax.
            mode: latency or throughput.
            seconds: Times, from which median and quartiles are taken.
            count: How many there were, if `seconds` are only their median and quartiles.
            predicted_us: Microseconds that were expected.
            error: Deviation from what it should be.
            ok: Whether it is as it should be.
            note: Anything else, one line.
        """
        low, median, high = quartiles_us(seconds)
        line = {
            "trial": self.identity, "stage": self.stage, "name": name, "size": size or {},
            "precision": precision, "variant": variant, "mode": mode, "median_us": median,
            "q1_us": low, "q3_us": high, "n": count or len(seconds or []),
            "predicted_us": predicted_us,
            "error": error, "ok": ok, "note": note, "commit": self.commit,
            "sm_clock_mhz": sm_clock() if self.gpu and seconds else None, **versions(self.gpu),
        }  # fmt: skip
        with open(self.out / RESULTS, "a") as file:
            file.write(json.dumps(line) + "\n")

    def run(self, command: list[str], timeout: float, **environment: str) -> str | None:
        """Run a program to its end; return what it printed, or None and a line if it failed.

        Its output goes to the log. The line names the program, its status and its last words. The
        stage keeps a few seconds to tell of a program that it had to end.
        """
        words = [str(word) for word in command]
        left = self.until - time.monotonic() - 3
        status, printed = run_program(words, min(timeout, max(left, 1)), os.environ | environment)
        print(f"$ {' '.join(words)}\n{printed}", flush=True)
        if status == 0:
            return printed
        last = (printed.strip().splitlines() or ["no message"])[-1]
        why = "took too long" if status is None else f"status {status}"
        self.emit(Path(words[0]).name, ok=False, note=f"{' '.join(words[:4])}: {why}; {last}"[:300])
        return None


def run_program(
    command: list[str], timeout: float, environment: dict[str, str]
) -> tuple[int | None, str]:
    """Run a program; return its status and output. After `timeout` end it and all that it started.

    The status is None then.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment, cwd=ROOT,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=timeout)
        return process.returncode, printed
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return None, process.communicate()[0]


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            own, _, rest = stat.read_text().rpartition(")")
            children.setdefault(int(rest.split()[1]), []).append(int(own.split()[0]))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def quartiles_us(seconds: list[float] | None) -> tuple[float | None, float | None, float | None]:
    """Return first quartile, median and third quartile in microseconds."""
    if not seconds:
        return None, None, None
    values = [1e6 * value for value in seconds]
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return round(low, 3), round(median, 3), round(high, 3)


@cache
def versions(gpu: bool) -> dict[str, str]:
    """Return the GPU and the versions that times depend on."""
    found = {"gpu": "", "python": sys.version.split()[0]}
    if gpu:
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    for package in ("torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


@cache
def model(known: bool) -> tuple[dict[str, Any], str]:
    """Return what benchmarks/gpu_model.py has computed, and the nearest of its GPUs."""
    if not known:
        return {"updates": {}, "kernels": {}}, ""
    found = json.loads((ROOT / "benchmarks" / "results" / "gpu_model.json").read_text())
    return found, next((m for m in found["machine"] if m in versions(True)["gpu"]), "H100")


def predicted_update(
    known: bool, plan: str, precision: str, runs: int, streams: bool
) -> float | None:
    """Return the model's microseconds of an update at paper scale, None where it has none."""
    found, machine = model(known)
    return (
        found["updates"]
        .get(f"{plan} {precision} S={runs}", {})
        .get(f"{machine}_branches_us" if streams else f"{machine}_us")
    )


def predicted_kernel(known: bool, name: str, precision: str, runs: int) -> float | None:
    """Return the model's microseconds of all launches of a kernel, None for another GPU's."""
    found, machine = model(known)
    rows = found["kernels"].get(f"tiles {precision} S={runs} {machine}", {})
    return rows.get(name, {}).get("total_us")


def sm_clock() -> int | None:
    """Return the clock of the multiprocessors now, in MHz."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return int(done.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
