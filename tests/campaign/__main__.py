"""Mutate files, read them, count what came of it: python -m tests.campaign --cases N.

A case is one mutation of one file for one command, which runs in a forked process with a limit of
memory and of time. It is handled if the command ends with status 1 or 2 and one sentence, accepted
if it ends with 0; a traceback, also one that the last resort wrote to a file, the death of the
process, a hang, and a file's control character on the terminal are failures.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a process that has threads cannot be forked

import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, NamedTuple

import tyro

from tests.campaign.mutate import mutate
from tests.campaign.readers import READERS, Reader, build, shorten
from trqam_fast.cli import run_command

OUTCOMES = ("handled", "accepted", "tracebacks", "hangs")
FAILURES = ("tracebacks", "hangs")
LAST_RESORT = "trace is in"


@dataclass(frozen=True)
class Args:
    """Mutate files, read them, and print what came of it; the exit status is 1 if any failed."""

    cases: int = 300
    """How many, shared by all readers."""
    seed: int = 0
    """Of the mutations; case N of a seed is always the same."""
    minutes: float | None = None
    """Begin no case after so many; without it all are done."""
    limit: float = 120.0
    """Seconds of a case, after which it hangs."""
    memory_gb: float = 8.0
    """Address space of a case."""
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Cases at a time."""
    only: Annotated[tuple[int, ...], tyro.conf.arg(name="case")] = ()
    """Numbers of cases to do, with all that they print."""


class Case(NamedTuple):
    """A case that runs.

    Attributes:
        number: Of the case.
        reader: Which command.
        folder: Its own, with ``files``, ``shown``, ``said`` and ``tmp``.
        what: The mutation in words.
        end: When it hangs, on the monotonic clock.
    """

    number: int
    reader: Reader
    folder: Path
    what: str
    end: float


def begin(number: int, args: Args, whole: Path, root: Path) -> tuple[int, Case]:
    """Copy and mutate the files of a case, start its process; return that and the case.

    The files of a negative number stay whole.
    """
    random = Random(f"{args.seed}/{number}")
    reader = READERS[number % len(READERS)]
    folder = root / str(number)
    files = folder / "files"
    shutil.copytree(whole / reader.folder, files)
    (folder / "tmp").mkdir()
    what = "whole"
    if number >= 0:
        found = sorted(path for pattern in reader.files for path in files.glob(pattern))
        target = random.choice([path for path in found if path.is_file()])
        what = f"{target.relative_to(files)}: {mutate(target, random)}"
    case = Case(number, reader, folder, what, time.monotonic() + args.limit)
    pid = os.fork()
    if pid == 0:
        work(case, args, whole)
    return pid, case


def work(case: Case, args: Args, whole: Path) -> None:
    """Run the command of a case in this process, and leave it with its exit status."""
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "shown"), (2, "said")):
            os.dup2(os.open(case.folder / name, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout = open(1, "w")
        sys.stderr = open(2, "w", errors="backslashreplace")  # as Python opens it
        tempfile.tempdir = str(case.folder / "tmp")
        os.chdir(case.folder / "tmp")
        size = int(args.memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        words = [
            word.replace("{}", str(case.folder / "files")).replace(
                "GENERATED", str(whole / "generated")
            )
            for word in case.reader.words
        ]
        code = run_command(lambda: case.reader.main(words))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode(errors="replace"))
        os._exit(99)


def outcome_of(status: int, shown: str, said: str) -> str:
    """Return what became of a case, by its exit status and its standard output and error."""
    if "Traceback" in said or LAST_RESORT in said or "\x1b" in shown + said:
        return "tracebacks"
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "accepted"
    return "handled" if code in (1, 2) else "tracebacks"


def last_line(said: str) -> str:
    """Return the end of what a command said."""
    return (said.strip().splitlines() or ["nothing was said"])[-1][:300]


def finish(status: int, case: Case, hang: bool, loud: bool) -> str:
    """Remove a case's files; return what became of it, and print it if it failed."""
    shown, said = (
        path.read_text(errors="replace") if path.exists() else ""
        for path in (case.folder / "shown", case.folder / "said")
    )
    outcome = "hangs" if hang else outcome_of(status, shown, said)
    if outcome in FAILURES or loud:
        print(f"case {case.number}, {case.reader.name}: {outcome}\n  {case.what}\n  "
              f"{said if loud else last_line(said)}", flush=True)  # fmt: skip
        if loud:
            for log in (case.folder / "tmp").glob("*.log"):
                print(log.read_text())
    shutil.rmtree(case.folder, ignore_errors=True)
    return outcome


def run_cases(
    args: Args, whole: Path, root: Path, numbers: Iterable[int]
) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """Run cases, some at a time.

    Returns:
        How many of each reader came to what, and the processor's seconds of each.
    """
    numbers = iter(numbers)
    counts: Counter[tuple[str, str]] = Counter()
    seconds: Counter[str] = Counter()
    running: dict[int, Case] = {}
    began = time.monotonic()
    over = False
    while True:
        while not over and len(running) < args.jobs:
            late = args.minutes is not None and time.monotonic() - began > 60 * args.minutes
            number = None if late else next(numbers, None)
            if number is None:
                over = True
                break
            pid, case = begin(number, args, whole, root)
            running[pid] = case
        if not running:
            return counts, seconds
        pid, status, used = os.wait4(-1, os.WNOHANG)
        hang = False
        if pid == 0:
            pid = next((p for p, c in running.items() if time.monotonic() > c.end), 0)
            if pid == 0:
                time.sleep(0.002)
                continue
            os.kill(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            hang = True
        case = running.pop(pid, None)
        if case is not None:
            counts[case.reader.name, finish(status, case, hang, bool(args.only))] += 1
            seconds[case.reader.name] += used.ru_utime + used.ru_stime
            if args.only:
                print(f"  {used.ru_utime + used.ru_stime:.1f} s", flush=True)


def table(counts: Counter[tuple[str, str]], seconds: Counter[str]) -> str:
    """Return what came of the cases of every reader, and the processor's seconds of one case."""
    width = max(len(reader.name) for reader in READERS)
    heads = "".join(f"  {name:>10}" for name in OUTCOMES)
    lines = [f"{'':{width}}  {'tried':>6}{heads}  {'s a case':>8}"]
    rows = {reader.name: [counts[reader.name, name] for name in OUTCOMES] for reader in READERS}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    times = Counter(seconds, all=seconds.total())
    for name, row in rows.items():
        mean = times[name] / max(1, sum(row))
        lines.append(
            f"{name:{width}}  {sum(row):6}" + "".join(f"  {n:10}" for n in row) + f"  {mean:8.2f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; return 1 if a case failed."""
    args = tyro.cli(Args, args=argv, prog="python -m tests.campaign")
    shorten()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        whole, root = Path(name) / "whole", Path(name) / "cases"
        whole.mkdir()
        root.mkdir()
        build(whole)
        ready = time.monotonic()
        before, _ = run_cases(args, whole, root, range(-len(READERS), 0))
        refused = [name for name, outcome in before if outcome != "accepted"]
        if refused:
            print(f"whole files are refused by {', '.join(refused)}")
            return 1
        counts, seconds = run_cases(args, whole, root, args.only or range(args.cases))
    print(table(counts, seconds))
    print(
        f"{counts.total()} cases in {time.monotonic() - ready:.0f} s, after {ready - began:.0f} s "
        f"of preparation; --seed {args.seed}"
    )
    return int(any(counts[reader.name, name] for reader in READERS for name in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
