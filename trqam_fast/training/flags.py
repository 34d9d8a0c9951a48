"""The trainer's command line: flags in groups, on top of a preset or of a run's configuration."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from trqam_fast.agents import ALGORITHMS, algorithm
from trqam_fast.agents.config import Group, groups_of, names_of, select
from trqam_fast.damage import reading
from trqam_fast.data.names import nearest
from trqam_fast.errors import UsageError
from trqam_fast.kinds import is_a, kind_in_words
from trqam_fast.runs.values import load_json, load_toml
from trqam_fast.training.config import PATHS, FolderConfig, TrainConfig, flag_hints, run_flags
from trqam_fast.training.presets import (
    HELP,
    by_one_name,
    flag_of,
    make_config,
    unused_flags,
    unused_in_words,
)

PROG = "python -m trqam_fast.train"
CONFIG_FILE = """--config FILE.toml takes flags from a file, by name, --config RUN/config.json those
of a run; those of the command line override them."""
OF_ONE_RUN = ("run_dir", "resume", "overwrite", "pretrained_seed")
"""Flags that are not taken over from another run's configuration."""


def read_choices(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the flags that decide what the others mean, by name, and the remaining words."""
    parser = argparse.ArgumentParser(PROG, add_help=False, allow_abbrev=False)
    options: dict[str, Any] = {"default": argparse.SUPPRESS}
    for name in ("env_name", "algo", "preset", "dataset"):
        names = ("env_name", "env_id") if name == "env_name" else (name,)
        spelled = dict.fromkeys(spelling for n in names for spelling in (flag_of(n), f"--{n}"))
        parser.add_argument(*spelled, dest=name, **options)
    for name in ("pretrained", "run_dir", "config"):
        spelled = dict.fromkeys((flag_of(name), f"--{name}"))
        parser.add_argument(*spelled, dest=name, type=Path, **options)
    parser.add_argument("--resume", nargs="?", const="yes", **options)
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, **options)
    known, words = parser.parse_known_args(argv)
    chosen = vars(known)
    resume, choices = chosen.get("resume", "no"), get_args(get_type_hints(FolderConfig)["resume"])
    if resume not in choices:
        raise UsageError(
            f"--resume is {resume!r}; give {' or '.join(choices)}, and a run's folder as "
            f"--resume --run-dir {resume}"
        )
    file = chosen.pop("config", None)
    return (chosen if file is None else read_file(file) | chosen), words


def read_file(path: Path) -> dict[str, Any]:
    """Return the flags of a file, by name with underscores; `env_id` is `env_name`.

    Args:
        path: A TOML file, or the config.json of a run or an export.

    Raises:
        UsageError: there is no such file, or something in it is wrong: the sentence names it.
    """
    found = settings_of(path) if path.suffix == ".json" else load_toml(path)
    values = {name.replace("-", "_"): value for name, value in found.items()}
    if len(values) < len(found):
        raise UsageError(f"{path} has a flag twice, with dashes and with underscores; drop one")
    try:
        values = by_one_name(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    algo = values.get("algo", TrainConfig.algo)
    if not isinstance(algo, str):
        raise UsageError(f"{path}: algo is {algo!r}; give text in quotes")
    hints = flag_hints(algo)
    for name, value in values.items():
        if name not in hints:
            raise UsageError(
                f"{path} has {name!r}, which means nothing{nearest(name, [*hints], HELP)}"
            )
        if not is_a(value, hints[name]):
            raise UsageError(f"{path}: {name} is {value!r}; give {kind_in_words(hints[name])}")
    return {n: Path(v) if n in PATHS else v for n, v in values.items()}


def settings_of(path: Path) -> dict[str, Any]:
    """Return the flags in a config.json that another run can share, so not where it started from.

    Raises:
        UsageError: it is none of a run or an export.
    """
    with reading(path, "is not the config.json of a run or an export", "name another file"):
        values = load_json(path)
        values = dict(values.get("settings", values))  # an export has them by themselves
    started = values.pop("pretrained", path) is not None  # an export leaves out a path
    if started and values.get("bc_steps") == 0:  # as its start implied
        del values["bc_steps"]
    return {name: value for name, value in values.items() if name not in OF_ONE_RUN}


def parse_config(argv: list[str], base: TrainConfig | None = None) -> TrainConfig:
    """Parse flags on top of `base`, or of the preset and the task that they name or imply.

    Raises:
        UsageError: unknown preset, task, algorithm or flag, a file without one, or impossible
            values.
    """
    chosen, words = read_choices(argv)
    flag, before = "", ""
    for word in words:
        flag = word if word.startswith("--") else flag
        takes = before.startswith("--") and "=" not in before or flag == flag_of("wandb_tags")
        if word.endswith((".toml", ".json")) and not takes and word != flag:
            raise UsageError(f"{word} follows no flag; write --config {word}")
        before = word
    algo = chosen.get("algo", TrainConfig.algo if base is None else base.algo)
    unused = unused_flags(algo, chosen)
    chosen = {name: value for name, value in chosen.items() if name not in unused}
    if base is None:
        base = make_config(**chosen)
    elif chosen:
        base = TrainConfig.from_dict(base.to_dict() | chosen)
    words, more = without_unused(algo, words)
    unused += more
    groups = parser_groups(TrainConfig, type(base.agent))
    values = vars(base) | vars(base.agent)
    parts = {name: group(**select(group, values)) for name, group in groups.items()}
    flags = dataclasses.make_dataclass("Flags", list(groups.items()))
    paragraphs = (*group_help(TrainConfig).split("\n\n"), CONFIG_FILE)
    text = "\n\n".join(map(one_line, paragraphs))
    parsed = tyro.cli(flags, args=words, default=flags(**parts), prog=PROG, description=text)
    values = {k: v for name in groups for k, v in vars(getattr(parsed, name)).items()}
    own = {name: values[name] for name in run_flags()}
    kind = type(base.agent)
    config = TrainConfig(**own, agent=kind(**select(kind, values)))
    if unused:
        print(f"note: {unused_in_words(algo, unused)}", file=sys.stderr)
    return config


def without_unused(algo: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words without flags that only other algorithms use, and the names of those.

    Raises:
        UsageError: there is no such flag at all.
    """
    own = names_of(algorithm(algo).Config)

    def name_of(word: str) -> str:
        """Return the name of the value that a flag sets: ``clip_grad`` of ``--no-clip-grad``."""
        name = word[2:].partition("=")[0].replace("-", "_")
        return name if name in own else name.removeprefix("no_")

    names = [name_of(word) for word in words if word.startswith("--") and word != "--help"]
    unused = unused_flags(algo, names)
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = name_of(word) in unused
        if not dropping:
            kept.append(word)
    return kept, unused


def parser_groups(*configs: type[Group]) -> dict[str, type]:
    """Return the groups of configurations as classes for a parser, by title.

    Each holds the fields that one class adds, with their defaults, and with what stands below a
    field as its help.
    """
    groups: dict[str, type] = {}
    for config in configs:
        hints = get_type_hints(config)
        fields_of = dataclasses.fields(config)  # type: ignore[arg-type]  # `Group` itself has none
        found = {field.name: field for field in fields_of if field.name != "agent"}
        for kind, names in groups_of(config).items():
            fields = parser_fields(kind, [found[name] for name in names if name in found], hints)
            name = kind.__name__.removesuffix("Config") or "Own"
            title = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            while title in groups:  # a user's class has the name of another
                title += "_"
            if fields:
                groups[title] = dataclasses.make_dataclass(
                    title, fields, namespace={"__doc__": group_help(kind)}
                )
    return groups


def parser_fields(
    kind: type, fields: list[dataclasses.Field], hints: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return fields that a class adds as a parser takes them: name, type with help, default."""
    help_of, found = field_help(kind), []
    for field in fields:
        argument = tyro.conf.arg(prefix_name=False, help=help_of.get(field.name))
        default = dataclasses.field(
            default=field.default, default_factory=field.default_factory, kw_only=True
        )
        found.append((field.name, Annotated[hints[field.name], argument], default))
    return found


def group_help(kind: type) -> str:
    """Return the docstring of a group; of one without, which a dataclass fills in, its name."""
    text = kind.__doc__ or ""
    generated = not text or text.startswith(f"{kind.__name__}(")
    return f"What {kind.__qualname__} adds." if generated else text


def one_line(text: str) -> str:
    """Return text without the line breaks of its source, for the parser to wrap."""
    return " ".join(text.split())


def field_help(kind: type) -> dict[str, str]:
    """Return the text that stands below each field of a class."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a class that was not written in a file
        return {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    body = definition.body
    names = ", ".join(ALGORITHMS)
    return {
        field.target.id: one_line(below.value.value).replace("{algorithms}", names)
        for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }
