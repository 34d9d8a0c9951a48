"""The page: one HTML file with everything in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from trqam_fast.errors import RunError
from trqam_fast.files import write_text
from trqam_fast.runs.plots import COLOURS, DASHES, Panel, draw_picture, panels_of, save
from trqam_fast.runs.read import Run, encodable
from trqam_fast.runs.values import numbers
from trqam_fast.text import exact_duration, printable

SEEDS_SHOWN = 8
LONGEST = 1000
"""Characters of a value that are shown."""

# Settings that tell runs apart but say nothing about them.
NO_SETTINGS = {"run_dir"}

CSS = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 84rem; color: #1d2430;
  background: #fff; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid #d8dde5; }
p { margin: .4rem 0 .8rem; max-width: 70ch; }
.note { color: #4a5464; font-size: .9rem; }
.box { overflow-x: auto; border: 1px solid #d8dde5; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: left; vertical-align: top; white-space: nowrap; }
th { background: #f3f5f8; font-weight: 600; }
tbody th { background: #fff; white-space: normal; min-width: 9rem; max-width: 16rem;
  overflow-wrap: anywhere; }
tr + tr > *, tbody tr:first-child > * { border-top: 1px solid #e6eaf0; }
.number { text-align: right; }
.range { color: #4a5464; font-size: .85em; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; margin: .5rem 0 1rem; padding: 0;
  list-style: none; font-size: .95rem; }
.legend li { display: flex; align-items: center; gap: .5rem; overflow-wrap: anywhere; }
.swatch { flex: none; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .5rem; border: 1px solid #e6eaf0; border-radius: 6px; }
figure img { display: block; width: 100%; height: auto; }
.problems { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .6rem 1rem;
  border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.problems ul { margin: .2rem 0 .6rem; padding-left: 1.2rem; }
.bad { color: #a34400; font-weight: 600; }
@media (max-width: 30rem) {
  body { padding: 1rem .75rem 2rem; }
  h1 { font-size: 1.3rem; }
}
"""


def write_report(runs: list[Run], out: Path) -> Path:
    """Write ``index.html`` and one PNG for each picture.

    Args:
        runs: At least one.
        out: Folder to write to; made if needed.

    Returns:
        The page, which needs none of the other files.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = []
        for panel in panels_of(runs):
            path = out / panel.file
            save(draw_picture(panel, runs), path)
            pictures.append((panel, path.read_bytes()))
        page = out / "index.html"
        write_text(page, encodable(render(runs, pictures)))
    except OSError as error:
        raise RunError(f"cannot write the report to --out {out}: {error}") from None
    return page


def render(runs: list[Run], pictures: list[tuple[Panel, bytes]]) -> str:
    """Return the page."""
    tasks = list(dict.fromkeys(str(run.config.get("env_name", "unknown task")) for run in runs))
    title = tasks[0] if len(tasks) == 1 else f"{len(runs)} runs on {len(tasks)} tasks"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{len(runs)} {"run" if len(runs) == 1 else "runs"}, '
        f"{sum(len(run.seeds) for run in runs)} seeds in all</p>",
        render_problems(runs),
        "<h2>Runs</h2>",
        render_runs(runs),
        f'<p class="note">{INTERVALS}</p>',
        "<h2>Curves</h2>",
        render_legend(runs),
        f'<p class="note">{CURVES}</p>',
        f'<div class="grid">{"".join(render_picture(*item) for item in pictures)}</div>'
        if pictures
        else "<p>No run has logged a value yet.</p>",
        render_differences(runs),
        "<h2>Versions</h2>",
        table(["run"], [run.name for run in runs], version_columns(runs)),
    ]
    return html_page(title, CSS, parts)


def html_page(title: str, style: str, parts: list[str]) -> str:
    """Return a page that needs nothing outside it; empty parts are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


INTERVALS = (
    "Success at the last evaluation of a stage, with its 95 % interval: Student's over the seeds' "
    "means where there are several, Wilson's over the episodes where there is one. Seeds that "
    "agree exactly give Student's interval no width; it then says nothing about the episodes."
)
CURVES = (
    "Lines are means over the seeds. Shaded: the 95 % interval of success, the range of Q over the "
    "batch, elsewhere the range over the seeds. Dashed: the path-KL budget. Dotted: a stage ends. "
    "Steps count updates, and environment steps where fine-tuning is online. kl_ema and "
    "adjoint_std are in metrics.csv only."
)


def render_problems(runs: list[Run]) -> str:
    """A box with everything missing, damaged or failed."""
    if not any(run.problems for run in runs):
        return ""
    lists = "".join(
        f"<strong>{escape(run.name)}</strong><ul>"
        + "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
        + "</ul>"
        for run in runs
        if run.problems
    )
    return f'<h2>Failed or missing</h2><div class="problems">{lists}</div>'


def swatch(number: int) -> str:
    """A line in the colour and dashes of run `number`, as inline SVG."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    dashes = "" if dash == "solid" else ",".join(str(2 * length) for length in dash[1])
    return (
        '<svg class="swatch" width="34" height="10" aria-hidden="true"><line x1="0" y1="5" x2="34" '
        f'y2="5" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="3" '
        f'stroke-dasharray="{dashes}"/></svg>'
    )


def render_legend(runs: list[Run]) -> str:
    """Names of the runs beside their lines."""
    items = "".join(
        f"<li>{swatch(number)}{escape(run.name)}</li>" for number, run in enumerate(runs)
    )
    return f'<ul class="legend">{items}</ul>'


def render_picture(panel: Panel, png: bytes) -> str:
    """One picture, inside the page."""
    data = base64.b64encode(png).decode("ascii")
    text = f"{panel.title}: {panel.label} over the steps of every run"
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}" loading="lazy">'
        "</figure>"
    )


def table(corner: list[str], names: list[str], columns: list[tuple[str, list[str], bool]]) -> str:
    """A table that scrolls inside its box.

    `columns` holds headings, cells as HTML, and whether these are numbers.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in corner)
    head += "".join(
        f"<th{NUMBER if number else ''}>{escape(heading)}</th>" for heading, _, number in columns
    )
    body = "".join(
        f'<tr><th scope="row">{breakable(name)}</th>'
        + "".join(f"<td{NUMBER if number else ''}>{cells[i]}</td>" for _, cells, number in columns)
        + "</tr>"
        for i, name in enumerate(names)
    )
    return (
        f'<div class="box" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


NUMBER = ' class="number"'


def breakable(name: str) -> str:
    """A name as HTML that may be broken where its parts meet."""
    return re.sub("([_/-])", r"\1<wbr>", escape(name))


def render_runs(runs: list[Run]) -> str:
    """Return the table of runs: what ran, success after each stage, time, state."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))

    def setting(name: str) -> Callable[[Run], str]:
        return lambda run: text_of(run.config.get(name))

    def settled(name: str) -> Callable[[Run], str]:
        return lambda run: text_of(run.summary.get(name, run.config.get(name)))

    columns: list[tuple[str, Callable[[Run], str], bool]] = [
        ("state", render_state, False),
        *(
            (f"after {stage}", lambda run, stage=stage: render_success(run, stage), True)
            for stage in stages
        ),
        ("time", render_time, True),
        ("updates/s", render_rates, False),
        ("time by part", render_parts, False),
        ("of the online stage", render_shares, False),
        ("task", setting("env_name"), False),
        ("algorithm", setting("algo"), False),
        ("seeds", lambda run: text_of(run.seeds), False),
        ("KL budget", render_budget, True),
        ("backend", settled("backend"), False),
        ("precision", settled("precision"), False),
        ("trqam_fast", lambda run: text_of(run.versions.get("trqam_fast")), False),
        ("torch", lambda run: text_of(run.versions.get("torch")), False),
        ("machine", lambda run: text_of(run.versions.get("gpu", run.versions.get("cpu"))), False),
        ("folder", lambda run: text_of(run.path), False),
    ]  # fmt: skip
    filled = [(name, [cell(run) for run in runs], number) for name, cell, number in columns]
    return table(["run"], [run.name for run in runs], filled)


def text_of(value: Any) -> str:
    """A value as HTML; lists without brackets, a dash for nothing."""
    if isinstance(value, (list, tuple)):
        value = " ".join(printable(item, LONGEST) for item in value)
    if value is None or value == "":
        return "–"
    return escape(f"{value:g}" if isinstance(value, float) else printable(value, LONGEST))


def render_state(run: Run) -> str:
    """Whether the run has ended well."""
    failed = run.summary.get("failures")
    if isinstance(failed, dict) and failed:
        return f'<span class="bad">{len(failed)} of {len(run.seeds)} seeds failed</span>'
    if not run.summary:
        return '<span class="bad">not finished</span>'
    return '<span class="bad">finished, see above</span>' if run.problems else "finished"


def render_success(run: Run, stage: str) -> str:
    """Success after a stage with its interval, and the seeds it lacks."""
    found = run.success_after(stage)
    if found is None:
        return "–"
    (value, low, high), rates = found
    shown = f'{100 * value:.0f} % <span class="range">{100 * low:.0f} to {100 * high:.0f}</span>'
    if 1 < len(rates) <= SEEDS_SHOWN:
        each = " ".join(f"{100 * rate:.0f}" for rate in rates)
        shown += f'<br><span class="range">seeds: {each}</span>'
    if len(rates) < len(run.seeds):
        shown += f'<br><span class="bad">{len(rates)} of {len(run.seeds)} seeds</span>'
    return shown


def render_time(run: Run) -> str:
    """The time of all parts together."""
    spent = seconds_of(run)
    return exact_duration(sum(spent.values())) if spent else "–"


def render_parts(run: Run) -> str:
    """The time of every part."""
    spent = seconds_of(run)
    parts = [f"{escape(name)} {exact_duration(value)}" for name, value in spent.items()]
    return ", ".join(parts) or "–"


def seconds_of(run: Run) -> dict[str, float]:
    """Seconds by part of the run, without those that took none."""
    return {name: value for name, value in numbers(run.summary.get("seconds")).items() if value}


def render_shares(run: Run) -> str:
    """Shares of the online stage that went to learning, acting, waiting and simulating."""
    online, total = numbers(run.summary.get("online_seconds")), seconds_of(run).get("online", 0.0)
    if not online or total <= 0:
        return "–"
    return ", ".join(f"{escape(name)} {part / total:.0%}" for name, part in online.items())


def render_rates(run: Run) -> str:
    """Updates per second of each stage."""
    rates = numbers(run.summary.get("updates_per_second"))
    return ", ".join(f"{escape(stage)} {rate:.1f}" for stage, rate in rates.items()) or "–"


def render_budget(run: Run) -> str:
    """Path-KL budgets of the stages."""
    budgets = dict.fromkeys(run.budget(stage) for stage in run.stages)
    return text_of([f"{budget:g}" for budget in budgets if budget is not None])


def render_differences(runs: list[Run]) -> str:
    """Return the table of settings that are not the same in all runs, if there is one."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in NO_SETTINGS)
    columns = []
    for name in names:
        cells = [text_of(run.config.get(name)) for run in runs]
        if len(set(cells)) > 1:
            columns.append((f"--{name.replace('_', '-')}", cells, False))
    if not columns:
        return ""
    return "<h2>Settings that differ</h2>" + table(["run"], [run.name for run in runs], columns)


def version_columns(runs: list[Run]) -> list[tuple[str, list[str], bool]]:
    """Columns of the table of versions."""
    names: Iterable[str] = dict.fromkeys(name for run in runs for name in run.versions)
    return [(name, [text_of(run.versions.get(name)) for run in runs], False) for name in names]
