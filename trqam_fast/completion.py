"""Print a completion script for the command trqam: python -m trqam_fast.completion SHELL."""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import dataclasses
import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from trqam_fast.agents import ALGORITHMS
from trqam_fast.agents.config import Group
from trqam_fast.convert import ConvertArgs
from trqam_fast.data.__main__ import Command
from trqam_fast.doctor import DoctorArgs
from trqam_fast.evaluate import EvaluateArgs
from trqam_fast.export import ExportArgs
from trqam_fast.parity import ParityArgs
from trqam_fast.report.__main__ import ReportArgs
from trqam_fast.status.__main__ import StatusArgs
from trqam_fast.sweep.__main__ import SweepArgs
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.flags import parser_groups

Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True)
class CompletionArgs:
    """Print a completion script of all commands and their flags; the shell runs it.

    bash: source <(trqam completion bash). zsh: write it to _trqam in a folder of fpath. fish: write
    it to ~/.config/fish/completions/trqam.fish.
    """

    shell: tyro.conf.Positional[Shell]
    """Shell that completes."""


def train_flags() -> type:
    """Return a class of the trainer's flags, those of every algorithm among them, each once."""
    groups: dict[str, list[tuple]] = {}
    seen: set[str] = set()
    configs: list[type[Group]] = [TrainConfig, *(kind.Config for kind in ALGORITHMS.values())]
    for config in configs:
        for title, group in parser_groups(config).items():
            new = [field for field in dataclasses.fields(group) if field.name not in seen]
            groups.setdefault(title, []).extend((field.name, field.type, field) for field in new)
            seen.update(field.name for field in new)
    made = [(title, dataclasses.make_dataclass(title, fields)) for title, fields in groups.items()]
    parts = [(title, group, dataclasses.field(default_factory=group)) for title, group in made]
    others = [("config", Path | None, None), ("env_id", str | None, None)]
    return dataclasses.make_dataclass("TrainFlags", [*others, *parts])


def commands() -> dict[str, Any]:
    """Return what each command parses its words into, by its name."""
    data = dataclasses.make_dataclass("DataArgs", [("command", Command)])
    return {
        "train": train_flags(), "evaluate": EvaluateArgs, "report": ReportArgs,
        "status": StatusArgs, "sweep": SweepArgs, "data": data, "convert": ConvertArgs,
        "export": ExportArgs, "doctor": DoctorArgs, "completion": CompletionArgs,
        "parity": tyro.conf.PositionalRequiredArgs[ParityArgs],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print the script."""
    args = tyro.cli(CompletionArgs, args=argv, prog="python -m trqam_fast.completion")
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands().items()]
    any_command: Any = functools.reduce(operator.or_, kinds)
    tyro.cli(
        any_command,
        args=["--tyro-print-completion", args.shell],
        prog="trqam",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
