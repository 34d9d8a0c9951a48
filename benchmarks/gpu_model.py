"""A model of an update's time on a GPU: arithmetic, set beside measurements.

    python -m benchmarks.gpu_model                            # the table, for H100 and H200
    python -m benchmarks.gpu_model --constants gpu_micro.json # with measured limits
    python -m benchmarks.gpu_model --write                    # docs/kernels.md, benchmarks/results

A *plan* is a way of doing the update: `tiles`, the trainer's Triton kernels, `tiles-pdl`, the same
launched dependently, or `baseline`, a library's product for each layer by hand, as in
`benchmarks.baselines`; the trainer's plan `layers` is not among them. Its launches, with their
shapes, bytes and programs, are those that are dispatched (`benchmarks.launches`), none is typed
here. What a launch takes is computed from them and from the limits of a `Machine`:

* every launch waits for the one before it (`node_us`, a small kernel included; `dependent_us`, if
  both are dependent);
* a program that owns a tile of rows does `iterations` of loading and multiplying, bound by the
  matrix units, by what one multiprocessor can load from L2, or by the loop itself; each block of
  columns begins with an empty pipeline and ends with an epilogue (`fill_clk`, `epilogue_clk`);
* programs share multiprocessors and L2 between them; those that find no place wait for a wave;
* what is not a product moves its bytes, in L2 if they fit there, else in memory;
* the branches of an update (`trqam_fast.agents.branches`) run side by side, each launch with the
  time that it takes alone, but all of them no sooner than the whole chip could do their work; the
  time is that of one of the updates that a graph holds, the end of each beside the next one.

It is a lower bound where work overlaps badly, and knows nothing of caches' conflicts, clocks and
of kernels that PyTorch launches beyond one for an operation.

Longer than 400 lines, as the tables that it writes are checked against it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, by whatever comes next

import torch

from benchmarks.baselines import EagerAgent
from benchmarks.gpu_work import TILED, Work, kernel_bytes, kernel_work
from benchmarks.launches import Launch, launches_of
from benchmarks.sizes import PAPER, Size, make_agent
from trqam_fast.cli import run_command
from trqam_fast.data.dataset import Dataset
from trqam_fast.errors import UsageError
from trqam_fast.randomness import Randomness
from trqam_fast.training.backend import PLANS as PLAN_BACKENDS
from trqam_fast.training.history import History
from trqam_fast.training.updater import UPDATES_PER_REPLAY, Updater

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TABLE, RECORD = ROOT / "docs" / "kernels.md", RESULTS / "gpu_model.json"
BEGIN = "<!-- model: written by python -m benchmarks.gpu_model --write -->"
END = "<!-- end of model -->"
RUNS = (1, 8, 16)
PLANS = (
    ("tiles", "tf32"), ("tiles", "fp16"), ("tiles-pdl", "tf32"), ("tiles-pdl", "fp16"),
    ("baseline", "tf32"),
)  # fmt: skip
SHOWN = "fp16"
"""Operands of the tables by kernel."""
MULTIPLY_ADDS = {"ieee": 128, "tf32": 1024, "fp16": 2048, "bf16": 2048}
"""A clock and multiprocessor: float32 units, or dense products of the matrix units."""
BYTES = {"ieee": 4, "tf32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Machine:
    """Limits of a GPU, those of an H100 as measured (benchmarks/results/h100_micro.json).

    Those with a name in `MEASURED` are what benchmarks/gpu_micro.cu has found; the last three come
    from chains of a hidden layer's launch in a graph, 256 rows of width 512 (h100_tiles.json): 3.6
    microseconds each with 8 steps of float16 operands, 4.8 with 16 of TF32.

    Attributes:
        multiprocessors: Their number.
        sm_clk_us: Clocks a microsecond under load.
        sm_bytes_clk: Bytes a clock that one multiprocessor loads from L2.
        l2_bytes_us: Bytes a microsecond that all of them load from L2.
        memory_bytes_us: Bytes a microsecond of memory, read or written.
        l2_bytes: What L2 keeps; half of it is taken to be there when it is needed again.
        node_us: From the start of a small kernel in a graph to that of the next one.
        dependent_us: The same of dependent launches.
        fill_clk: From the first request of a block of columns to its first product.
        epilogue_clk: From its last product to its stores.
        loop_clk: The least that an iteration takes: barrier, wait, issue.
    """

    multiprocessors: int = 132
    sm_clk_us: float = 1991.0
    sm_bytes_clk: float = 90.9
    l2_bytes_us: float = 7.12e6
    memory_bytes_us: float = 3.0e6
    l2_bytes: float = 50e6
    node_us: float = 1.10
    dependent_us: float = 0.76
    fill_clk: float = 1600.0
    epilogue_clk: float = 1600.0
    loop_clk: float = 240.0


MACHINES = {"H100": Machine(), "H200": Machine(memory_bytes_us=4.3e6, l2_bytes=60e6)}
MEASURED = {
    "multiprocessors": "multiprocessors", "sm_clk_us": "sm_clk_us", "node_us": "node_us",
    "node_pdl_us": "dependent_us", "l2_sm_bytes_clk": "sm_bytes_clk", "l2_bytes_us": "l2_bytes_us",
    "copy_bytes_us": "memory_bytes_us",
}  # fmt: skip
RESIDENT = {
    "adjoint_matching_kernel": 5, **dict.fromkeys(TILED, 3), "rollout_step_kernel": 2,
    "sweep_step_kernel": 2, "pull_hidden_kernel": 2, "pull_inputs_kernel": 2,
    "weight_gradient_kernel": 2, "pull_norm_kernel": 4,
}  # fmt: skip
"""Programs that a multiprocessor's registers and shared memory hold; 1 for the others."""


class Cost(NamedTuple):
    """A launch as the model sees it.

    Attributes:
        name: Its name.
        programs: Programs that run.
        flop: Of matrix products, without padding.
        bytes: Read and written, each tensor once.
        products: Matrix products in sequence inside the launch.
        us: Microseconds on a machine, from its start to that of a launch that waits for it.
        chip_us: Microseconds that its work would take of the whole chip.
    """

    name: str
    programs: int
    flop: float
    bytes: int
    products: int
    us: float
    chip_us: float


def kernel_us(work: Work, programs: int, name: str, precision: str, machine: Machine) -> float:
    """Return the microseconds of a Triton kernel beyond those of any small kernel."""
    resident = RESIDENT.get(name, 1)
    waves = math.ceil(programs / (machine.multiprocessors * resident))
    on_one = math.ceil(programs / machine.multiprocessors)
    products = on_one * work.multiply_adds / MULTIPLY_ADDS[precision]
    loads = on_one * work.loaded / machine.sm_bytes_clk
    loop = waves * work.iterations * machine.loop_clk
    exposed = work.blocks * (machine.fill_clk + machine.epilogue_clk)
    busy = max(products, loads, loop) / machine.sm_clk_us
    busy = max(busy, programs * work.loaded / machine.l2_bytes_us)
    return busy + waves * exposed / machine.sm_clk_us


def library_us(launch: Launch, precision: str, machine: Machine) -> tuple[float, int]:
    """Return microseconds and programs of a library's product, for the best of some tiles.

    Where tiles are few, the depth is divided too, in parts of 512 at least.
    """
    *_, left, right = launch.shapes
    count, (rows, depth), columns = math.prod(left[:-2]), left[-2:], right[-1]
    found = []
    for m, n in ((64, 64), (128, 64), (128, 128)):
        tiles = count * math.ceil(rows / m) * math.ceil(columns / n)
        parts = max(1, min(2 * machine.multiprocessors // tiles, depth // 512))
        part = math.ceil(depth / parts)
        work = Work(part / 32, m * n * part, part * (m + n) * BYTES[precision], 1)
        us = kernel_us(work, tiles * parts, launch.name, precision, machine)
        found.append((us, tiles * parts))
    return min(found)


def is_dependent(launch: Launch | None) -> bool:
    """Whether a launch may begin before the one before it has ended."""
    return launch is not None and getattr(launch.arguments.get("C"), "dependent", False)


def costs_of(launches: list[Launch], precision: str, machine: Machine) -> list[Cost]:
    """Return what launches cost, each followed by the next one of its branch."""
    found: list[Cost] = []
    behind: dict[str, Launch] = {}
    for launch in reversed(launches):
        branch, _ = launch.place
        found.append(cost(launch, precision, machine, behind.get(branch)))
        behind[branch] = launch
    return found[::-1]


def cost(launch: Launch, precision: str, machine: Machine, behind: Launch | None = None) -> Cost:
    """Return what a launch costs, with `behind` the next one of its branch."""
    moved = kernel_bytes(launch) if launch.arguments else launch.bytes
    if launch.arguments:
        work, flop, programs = kernel_work(launch)
        us = kernel_us(work, programs, launch.name, precision, machine)
        us = max(us, move_us(moved, machine))
        products = work.products
        resident = machine.multiprocessors * RESIDENT.get(launch.name, 1)
    else:
        flop, products, programs = launch.flop, int(launch.flop > 0), 0
        us, resident = move_us(launch.bytes, machine), machine.multiprocessors
        if flop:
            product_us, programs = library_us(launch, precision, machine)
            us = max(us, product_us)
    share = min(1.0, programs / resident) if programs else 1.0
    early = is_dependent(launch) and is_dependent(behind)
    gap = machine.dependent_us if early else machine.node_us
    return Cost(launch.name, programs, flop, moved, products, gap + us, share * us)


def move_us(amount: int, machine: Machine) -> float:
    """Return the microseconds of moving so many bytes."""
    fits = amount < machine.l2_bytes / 2
    return amount / (machine.l2_bytes_us if fits else machine.memory_bytes_us)


def longest(launches: list[Launch], weights: list[float]) -> float:
    """Return the heaviest chain of launches of which each needs what one before it has written.

    What is overwritten must have been read, and written, before, too.
    """
    writes: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    reads: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    best = 0.0
    for launch, weight in zip(launches, weights, strict=True):
        ready = 0.0
        for mine, others in (
            (launch.reads, (writes,)), (launch.writes, (writes, reads)),
        ):  # fmt: skip
            for storage, begin, end in mine:
                for other in others:
                    ready = max(
                        [ready, *(at for b, e, at in other[storage] if b < end and begin < e)]
                    )
        done = ready + weight
        best = max(best, done)
        for mine, into in ((launch.reads, reads), (launch.writes, writes)):
            for storage, begin, end in mine:
                into[storage].append((begin, end, done))
    return best


def along_branches(launches: list[Launch], costs: list[Cost]) -> float:
    """Return the microseconds until the last of the branches' launches is done."""
    ends: dict[str, list[float]] = defaultdict(list)
    for launch, price in zip(launches, costs, strict=True):
        branch, done = launch.place
        ready = max((ends[other][count - 1] for other, count in done.items() if count), default=0.0)
        ends[branch].append(ready + price.us)
    return max(max(max(times) for times in ends.values()), sum(price.chip_us for price in costs))


class TogetherAgent(EagerAgent):
    """The per-layer update as a GPU gets it."""

    batched, stepwise = True, False


def make_updater(plan: str, size: Size, precision: str) -> Callable[[], Updater]:
    """Return what builds the trainer's loop body of a plan."""
    count = 1000
    ones = torch.ones(count)
    arrays = {
        "observations": torch.randn(count, size.obs_dim),
        "actions": torch.rand(count, size.act_dim), "rewards": -ones, "masks": ones,
        "terminals": torch.zeros(count), "next_observations": torch.randn(count, size.obs_dim),
    }  # fmt: skip
    dataset = Dataset.from_arrays(arrays)
    randomness = Randomness(range(size.runs), backend="triton")

    def build() -> Updater:
        match plan:
            case "baseline":
                agent = make_agent(size, "cpu", "reference", "ieee", agent_class=TogetherAgent)
            case _:
                agent = make_agent(size, "cpu", PLAN_BACKENDS[plan], precision)
        return Updater(agent, dataset, randomness, History(10), graph=False)

    return build


def in_a_graph(one: list[Launch], two: list[Launch], precision: str, machine: Machine) -> float:
    """Return the microseconds of one of `UPDATES_PER_REPLAY`, from graphs of one and of two."""
    first, both = (
        along_branches(launches, costs_of(launches, precision, machine)) for launches in (one, two)
    )
    return (first + (UPDATES_PER_REPLAY - 1) * (both - first)) / UPDATES_PER_REPLAY


def summary(
    one: list[Launch], two: list[Launch], precision: str, machines: dict[str, Machine]
) -> dict[str, Any]:
    """Return what the table shows of an update, from one and two: counts, times by machine."""
    found: dict[str, Any] = {}
    for name, machine in machines.items():
        costs = costs_of(one, precision, machine)
        if not found:
            found = {
                "launches": len(one),
                "in_sequence": int(longest(one, [float(c.products) for c in costs])),
                "gflop": round(1e-9 * sum(c.flop for c in costs), 1),
                "gb": round(1e-9 * sum(c.bytes for c in costs), 2),
            }
        found[f"{name}_us"] = round(sum(c.us for c in costs))
        found[f"{name}_branches_us"] = round(in_a_graph(one, two, precision, machine))
    return found


def kernels(launches: list[Launch], precision: str, machine: Machine) -> dict[str, Any]:
    """Return launches, programs and microseconds by the name of a kernel, the rest together."""
    found: dict[str, list[Cost]] = defaultdict(list)
    for launch, each in zip(launches, costs_of(launches, precision, machine), strict=True):
        name = launch.name if launch.arguments else "PyTorch's operations"
        found[name].append(each)
    return {
        name: {
            "launches": len(costs),
            "programs": [c.programs for c in costs] if name.endswith("_kernel") else [],
            "us": [round(c.us) for c in costs] if name.endswith("_kernel") else [],
            "total_us": round(sum(c.us for c in costs)),
        }
        for name, costs in sorted(found.items(), key=lambda item: -sum(c.us for c in item[1]))
    }


def floors(launches: list[Launch], machines: dict[str, Machine]) -> dict[str, Any]:
    """Return the least milliseconds of a run by its operations, and by its optimiser's bytes.

    Every plan must do the operations, at the matrix units' rate at best, and read the gradient,
    parameters, moments and targets and write the last three, once each.
    """
    flop = sum(cost(launch, "tf32", MACHINES["H100"]).flop for launch in launches)
    moved = sum(launch.bytes for launch in launches if launch.name == "adam_step_kernel")
    found = {}
    for name, machine in machines.items():
        rate = 2.0 * machine.multiprocessors * machine.sm_clk_us
        for precision in ("tf32", "bf16"):
            us = flop / (rate * MULTIPLY_ADDS[precision])
            found[f"{name}, operations in {precision}"] = round(1e-3 * us, 3)
        found[f"{name}, the optimiser's bytes"] = round(1e-3 * moved / machine.memory_bytes_us, 3)
    return found


def predictions(machines: dict[str, Machine]) -> dict[str, Any]:
    """Return everything that the tables show."""
    table, by_kernel = {}, {}
    for plan, precision in PLANS:
        for runs in RUNS:
            size = replace(PAPER, runs=runs)
            build = make_updater(plan, size, precision)
            launches, two = launches_of(build), launches_of(build, updates=2)
            key = f"{plan} {precision} S={runs}"
            table[key] = summary(launches, two, precision, machines)
            if plan == "tiles" and runs in RUNS[:2]:
                name, machine = next(iter(machines.items()))
                by_kernel[f"{key} {name}"] = kernels(launches, precision, machine)
            if (plan, precision, runs) == (*PLANS[0], 1):
                least = floors(launches, machines)
    return {"updates": table, "floors_ms": least, "kernels": by_kernel}


def format_tables(found: dict[str, Any], machines: dict[str, Machine]) -> str:
    """Return the tables in Markdown, with what an H100 has measured where it has."""
    heads = " | ".join(f"{m}, ms a run | branches | measured" for m in machines)
    lines = [
        f"| plan, operands, runs | launches | products in sequence | GFLOP | GB | {heads} |",
        "|---" * (5 + 3 * len(machines)) + "|",
    ]
    for key, row in found["updates"].items():
        plan, precision, runs = key.split()
        count = int(runs.removeprefix("S="))
        cells = [f"{row[c]}" for c in ("launches", "in_sequence", "gflop", "gb")]
        for machine in machines:
            for column in (f"{machine}_us", f"{machine}_branches_us"):
                cells.append(f"{1e-3 * row[column] / count:.2f}")
            cells.append(measured_update(plan, precision, count) if machine == "H100" else "")
        lines.append(f"| {plan}, {precision}, {runs} | {' | '.join(cells)} |")
    lines += ["", "What bounds every plan, ms a run:", "", "| bound | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in found["floors_ms"].items()]
    for key, rows in found["kernels"].items():
        plan, precision, runs, machine = key.split()
        if precision != SHOWN:
            continue
        measured = measured_kernels(precision, int(runs.removeprefix("S=")))
        lines += ["", f"By kernel, {key.replace(' S=', ', S = ')}:", ""]
        lines += ["| kernel | launches | programs | µs each | µs in all | measured |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, row in rows.items():
            programs, each = (counted(row[column]) for column in ("programs", "us"))
            shown = f"`{name}`" if name.endswith("_kernel") else name
            took = measured.get(name, "") if machine == "H100" else ""
            cells = [shown, str(row["launches"]), programs, each, str(row["total_us"]), took]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_update(plan: str, precision: str, runs: int) -> str:
    """Return the milliseconds a run that an update of a plan has taken on an H100, if any has.

    The last trial that has timed it counts: the record ends with that of the kernels as they are.
    """
    found = ""
    for trial in json.loads((RESULTS / "h100_trial.json").read_text())["trials"]:
        for row in trial["measurements"]:
            named = row["name"], row.get("variant"), row.get("precision"), row.get("runs")
            if named == ("update", plan, precision, runs):
                found = f"{1e-3 * row['median_us'] / runs:.2f}"
    return found


def measured_kernels(precision: str, runs: int) -> dict[str, str]:
    """Return the microseconds of an update's kernels in the last profile on an H100, by name."""
    rows = json.loads((RESULTS / "h100_profile.json").read_text())["kernels"]
    own = [row for row in rows if (row["precision"], row["runs"]) == (precision, runs)]
    return {row["name"]: f"{row['us']:.0f}" for row in own if row["code"] == own[-1]["code"]}


def counted(values: list[int]) -> str:
    """Return values in words, each once with how often it occurs."""
    found = Counter(values)
    return ", ".join(f"{n} × {value}" if n > 1 else f"{value}" for value, n in found.items())


def with_measured(path: Path) -> dict[str, Machine]:
    """Return the machine that benchmarks/gpu_micro.cu has measured.

    Raises:
        UsageError: the file holds none of its numbers.
    """
    try:
        values = json.loads(path.read_text())
        measured = {name: values[key] for key, name in MEASURED.items() if key in values}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--constants {path} cannot be read ({error})") from None
    if not measured:
        known = ", ".join(MEASURED)
        raise UsageError(f"--constants {path} has none of {known}; give gpu_micro's results")
    return {"measured": replace(MACHINES["H100"], **measured)}


def document(tables: str) -> str:
    """Return docs/kernels.md with these tables in their place."""
    before, _, rest = TABLE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"


def main(argv: list[str] | None = None) -> int:
    """Print, write or check the tables."""
    import tyro

    args = tyro.cli(ModelArgs, args=argv, prog="python -m benchmarks.gpu_model")
    machines = MACHINES if args.constants is None else with_measured(args.constants)
    found = predictions(machines)
    tables = format_tables(found, machines)
    record = {
        "what": "arithmetic from measured limits: updates at paper scale, benchmarks/gpu_model.py",
        "machine": {
            name: {f.name: getattr(m, f.name) for f in fields(m)} for name, m in machines.items()
        },
        "commit": "of the code beside it: a test holds it to the model",
        **found,
    }
    text = json.dumps(record, indent=1) + "\n"
    if args.write:
        TABLE.write_text(document(tables))
        RECORD.write_text(text)
    elif args.check:
        stale = [path.name for path, new in ((TABLE, document(tables)), (RECORD, text))
                 if path.read_text() != new]  # fmt: skip
        if stale:
            print(f"{', '.join(stale)}: not what the model says; run with --write")
            return 1
    else:
        print(tables)
    return 0


@dataclass(frozen=True)
class ModelArgs:
    """Print what an update costs on a GPU by arithmetic."""

    constants: Path | None = None
    """Numbers of benchmarks/gpu_micro.cu, a JSON object, in the place of assumed ones."""
    write: bool = False
    """Write the tables of docs/kernels.md and benchmarks/results/gpu_model.json."""
    check: bool = False
    """Exit with 1 if these are not up to date."""


if __name__ == "__main__":
    sys.exit(run_command(main))
