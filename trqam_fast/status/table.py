"""Lines as a table for a terminal of any width."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from trqam_fast.status.lines import Line, sweep_left
from trqam_fast.text import duration, one_line

COLUMNS = (
    "#", "run", "task", "method", "seeds", "stage", "step", "updates/s", "left", "success",
    "lambda", "path-KL", "state",
)  # fmt: skip
LEAST = {"run": 6, "task": 8, "method": 5, "seeds": 3, "state": 9}
"""Columns that a narrow terminal cuts, and how much of them stays."""
ENOUGH = {"run": 14, "task": 14, "method": 8, "seeds": 5, "state": 12}
"""How much of them is easy to read."""
LESSER = ("lambda", "path-KL", "updates/s", "stage")
"""Columns that it leaves out, in this order, where cutting would leave less."""
QUIET = ("queued", "waiting", "done")
"""Kinds of lines that a terminal has no room for first."""
OTHER_ROWS = 4
"""Rows of a terminal that the totals, the line above them, the clock and the cursor take."""
LEFT_ALIGNED = ("run", "task", "method", "seeds", "stage", "state")


def rounded_steps(steps: int) -> str:
    """Return a number of steps, large ones in thousands."""
    return str(steps) if steps < 100_000 else f"{steps // 1000}k"


def optional(value: float | None, form: str) -> str:
    """Return a formatted value, or a dash."""
    return "-" if value is None else format(value, form)


def cut(text: str, width: int, column: str) -> str:
    """Return a column's text in at most `width` characters.

    Tasks lose first what all of them share; names lose their middle, states their end.
    """
    if len(text) > width and column == "task":
        text = text.replace("-singletask", "").removesuffix("-v0")
    if len(text) <= width:
        return text
    tail = 0 if column == "state" else (width - 2) // 2
    return f"{text[: width - 2 - tail]}..{text[len(text) - tail :]}"


def ranges(seeds: str) -> str:
    """Return seeds with three or more in a row as a range: "0-2 7" of "0 1 2 7"."""
    runs: list[list[str]] = []
    for seed in seeds.split():
        if runs and seed.isdecimal() and runs[-1][-1] == str(int(seed) - 1):
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return " ".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else " ".join(r) for r in runs)


def cells_of(line: Line, number: int) -> dict[str, str]:
    """Return a line's cells by column."""
    progress = line.progress
    began = line.kind not in ("queued", "waiting", "blocked")
    end = max(progress.ends.values(), default=0)
    return {
        "#": str(number),
        "run": one_line(line.name),
        "task": one_line(line.task),
        "method": one_line(line.method),
        "seeds": ranges(line.seeds),
        "stage": one_line(progress.stage) if began else "-",
        "step": f"{rounded_steps(progress.step)}/{rounded_steps(end)}" if end else "-",
        "updates/s": optional(progress.rate, ".1f"),
        "left": "-" if line.left is None or line.kind != "running" else duration(line.left),
        "success": optional(progress.success, ".0%"),
        "lambda": optional(progress.lam, ".3g"),
        "path-KL": optional(progress.path_kl, ".3g"),
        "state": one_line(line.state),
    }


def render(
    lines: Sequence[Line], runs: bool, width: int | None = None, height: int | None = None
) -> str:
    """Return the table, what did not fit into it, and the totals.

    Args:
        lines: What to show.
        runs: Whether these are runs outside of a sweep, which are told apart by their folders.
        width: Columns of the terminal; None if there is no limit.
        height: Its rows; a longer table leaves out jobs that wait or are done, and says so.
    """
    numbered = list(enumerate(lines, 1))
    folders = runs and len(lines) > 1
    shown = table_of(numbered, folders, width)
    if height is not None and len(shown) + OTHER_ROWS > height:
        hidden = Counter(line.kind for line in lines if line.kind in QUIET)
        shown = table_of([pair for pair in numbered if pair[1].kind not in QUIET], folders, width)
        words = ", ".join(f"{count} {kind}" for kind, count in hidden.items())
        shown += wrapped(f"not shown here, only without --watch: {words or 'nothing'}", width)
    return "\n".join([*shown, "", *wrapped(totals(lines, runs), width)])


def table_of(numbered: Sequence[tuple[int, Line]], folders: bool, width: int | None) -> list[str]:
    """Return the table's rows, its head first, and below them whole what was cut in them.

    A task without what all tasks share is whole; of others that were cut a name is told where the
    table has two that look the same.
    """
    rows = [cells_of(line, number) for number, line in numbered]
    columns = [name for name in COLUMNS[1:] if name != "run" or folders]
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in COLUMNS}
    gap = "  "
    if width is not None and sum(widths[name] + 2 for name in columns) - 2 > width:
        columns, gap = ["#", *columns], " "
        for name in LESSER:
            if sum(min(widths[c], ENOUGH.get(c, widths[c])) + 1 for c in columns) - 1 > width:
                columns.remove(name)
        shrink(widths, columns, width)
    shown = [gap.join(pad(name, widths[name], name) for name in columns).rstrip()]
    below: list[str] = []
    seen: dict[tuple[str, str], set[str]] = {}
    cut_rows = [{name: cut(row[name], widths[name], name) for name in columns} for row in rows]
    for row, cells in zip(rows, cut_rows, strict=True):
        for name in columns:
            seen.setdefault((name, cells[name]), set()).add(row[name])
    for row, cells in zip(rows, cut_rows, strict=True):
        shown.append(gap.join(pad(cells[n], widths[n], n) for n in columns).rstrip())
        unclear = any(len(seen[name, cells[name]]) > 1 for name in columns)
        if unclear or cells["state"] != row["state"] or cells["seeds"] != row["seeds"]:
            names = ", ".join(row[n] for n in ("run", "task", "method") if n in columns)
            text = f"{row['#']}: {names}, seeds {row['seeds']}: {row['state']}"
            below += wrapped(text, width)
    return [*shown, *([""] if below else []), *below]


def shrink(widths: dict[str, int], columns: Sequence[str], width: int) -> None:
    """Narrow the columns that may be cut, the widest first, until a table fits, if it can."""
    elastic = [name for name in columns if name in LEAST]
    while sum(widths[name] + 1 for name in columns) - 1 > width:
        name = max(elastic, key=lambda name: widths[name] - LEAST[name])
        if widths[name] <= LEAST[name]:
            return
        widths[name] -= 1


def wrapped(text: str, width: int | None) -> list[str]:
    """Return a text in lines that a terminal has room for."""
    return textwrap.wrap(text, width, subsequent_indent="   ") if width else [text]


def pad(cell: str, width: int, column: str) -> str:
    """Return a cell as wide as its column."""
    return cell.ljust(width) if column in LEFT_ALIGNED else cell.rjust(width)


def totals(lines: Sequence[Line], runs: bool) -> str:
    """Return how many jobs are in which state, and the time that is left."""
    count = Counter(line.kind for line in lines)
    kinds = ["running", "interrupted", "done"] if runs else ["running", "queued", "done", "failed"]
    kinds += [kind for kind in count if kind not in kinds]
    text = ", ".join(f"{count[kind]} {kind}" for kind in kinds)
    diverged = sum(bool(line.progress.failures) for line in lines if line.kind == "done")
    if diverged:
        text += f" ({diverged} of the done with failed seeds)"
    left = sweep_left(lines)
    if left is not None:
        text += f"; about {duration(left)} left with {count['running']} at a time"
    return text
