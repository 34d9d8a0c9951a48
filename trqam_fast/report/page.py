"""The pages: one HTML file each, which holds everything it shows, and the files beside it."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from trqam_fast.errors import RunError
from trqam_fast.files import make_folder, write_text
from trqam_fast.report import comparison_tables, run_tables
from trqam_fast.report.aggregate import REPS
from trqam_fast.report.collect import Result
from trqam_fast.report.comparison import COMMON, SETTLING, Comparison
from trqam_fast.report.comparison_figures import draw_all, file_name
from trqam_fast.report.published import read_published
from trqam_fast.report.svg import alone, svg_of
from trqam_fast.report.table import breakable
from trqam_fast.runs.plots import draw_picture, looks_of, panels_of, title_of
from trqam_fast.runs.read import Run, encodable
from trqam_fast.text import count_of

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("trqam_fast.report"), autoescape=True, trim_blocks=True,
    lstrip_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip
TEMPLATES.filters["pieces"] = breakable


def render(template: str, **values: Any) -> str:
    """Return a page."""
    return TEMPLATES.get_template(template).render(values)


def write_files(out: Path, texts: Mapping[str, str]) -> None:
    """Write text files to a folder."""
    for name, text in texts.items():
        write_text(out / name, encodable(text))


def write_report(runs: list[Run], out: Path) -> Path:
    """Write ``index.html`` and one SVG file for each picture.

    Args:
        runs: At least one.
        out: Folder to write to; made if needed.

    Returns:
        The page, which needs none of the other files.

    Raises:
        UsageError: the folder takes no files.
        RunError: writing fails later.
    """
    seeds = sum(len(run.seeds) for run in runs)
    try:
        make_folder(out)
        pictures, files = [], {}
        for panel in panels_of(runs):
            text = f"{panel.title}: {panel.label} over the steps of every run"
            name = panel.file.removesuffix(".svg")
            files[panel.file] = alone(svg_of(draw_picture(panel, runs), name, text))
            pictures.append(Markup(svg_of(draw_picture(panel, runs, legend=False), name, text)))
        page = render(
            "runs.html.j2",
            title=run_tables.title(runs),
            headline=run_tables.headline(runs),
            subtitle=f"{count_of(len(runs), 'run')}, {count_of(seeds, 'seed')} in all",
            problems=[(run.name, run.problems) for run in runs if run.problems],
            runs=run_tables.runs(runs),
            legend=[
                (title_of(run, runs), look.colour, look.stroke_dasharray)
                for run, look in zip(runs, looks_of(runs), strict=True)
            ],
            pictures=pictures,
            differences=run_tables.settings(runs, differing=True),
            evaluations=run_tables.evaluations(runs),
            settings=run_tables.settings(runs),
            versions=run_tables.versions(runs),
        )
        write_files(out, files | {"index.html": page})
    except OSError as error:
        raise RunError(f"cannot write the report to --out {out}: {error}") from None
    return out / "index.html"


def write_comparison(
    comparison: Comparison, results: list[Result], notes: list[str], out: Path
) -> Path:
    """Write ``index.html``, SVG files, CSV files and ``success.tex``.

    Args:
        comparison: What to show.
        results: Its results and those of pretraining.
        notes: Whatever was lacking when runs were read.
        out: Folder to write to; made if needed.

    Returns:
        The page, which needs none of the other files.

    Raises:
        UsageError: the folder takes no files.
        RunError: writing fails later.
    """
    c, tables, published = comparison, comparison_tables, read_published()
    pairs, path_kl = tables.pairs(c), tables.path_kl(c)
    try:
        make_folder(out)
        pictures = {
            name: svg_of(picture, name, name.replace("_", " "))
            for name, picture in draw_all(c).items()
        }

        def shown(names: list[str]) -> list[Markup]:
            return [Markup(pictures[name]) for name in names if name in pictures]

        page = render(
            "comparison.html.j2",
            title=f"{count_of(len(c.methods), 'method')} on {count_of(len(c.tasks), 'task')}",
            headline=tables.headline(c),
            subtitle=states_of(c),
            problems=tables.problems(results),
            notes=notes,
            overall=tables.overall(c),
            differences=tables.settings(c, differing=True),
            settings=tables.settings(c, differing=False),
            legend=[(m, c.looks[m].colour, c.looks[m].stroke_dasharray) for m in c.methods],
            common=COMMON in c.groups,
            reps=REPS,
            heads=shown(["intervals", "profiles", "improvement"]),
            domains=tables.domains(c),
            beside=tables.beside_published(c, published, shared=True),
            published=published,
            tasks=tables.tasks(c),
            pairs=pairs.pick("X > Y", "P(X > Y)", "tasks", "runs of X", "runs of Y")
            if c.pairs
            else None,
            curves=shown([f"curves_{file_name(task)}" for task in c.tasks]),
            settling=SETTLING,
            path_kl_of_methods=tables.path_kl_of_methods(c),
            path_kl_pictures=shown([f"path_kl_{file_name(task)}" for task in c.tasks]),
            path_kl=path_kl if c.deviations else None,
        )
        texts = {f"{name}.svg": alone(svg) for name, svg in pictures.items()}
        texts |= {
            "scores.csv": tables.scores(c).csv(),
            "summary.csv": tables.summaries(c, published).csv(),
            "improvement.csv": pairs.csv(),
            "path_kl.csv": path_kl.csv(),
            "success.tex": tables.latex_table(c, published),
            "index.html": page,
        }
        write_files(out, texts)
    except OSError as error:
        raise RunError(f"cannot write the report to --out {out}: {error}") from None
    return out / "index.html"


def states_of(c: Comparison) -> str:
    """Return how many runs are in which state."""
    states = collections.Counter(result.status for result in c.results)
    total = f"{count_of(len(c.results) - states['missing'], 'run')}: {states['done']} done"
    others = [(states[name], words) for name, words in comparison_tables.WORDS.items()]
    return total + "".join(f", {number} {words}" for number, words in others if number)
