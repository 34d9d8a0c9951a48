"""All commands under one name: trqam COMMAND, or python -m trqam_fast COMMAND.

A command is the module of its name, run as ``python -m trqam_fast.COMMAND`` runs it; the others are
not imported.
"""

from __future__ import annotations

import difflib
import runpy
import sys

from trqam_fast import __version__

COMMANDS = {
    "train": "pretrain a flow policy by behaviour cloning and fine-tune it",
    "evaluate": "play episodes with the policies of a run",
    "report": "make one page about a run, several, or a sweep",
    "status": "show what becomes of runs",
    "sweep": "train tasks x algorithms x seeds x settings",
    "data": "list, get, verify, generate and convert datasets",
    "convert": "read the checkpoints of the authors' code",
    "export": "write a run's weights as safetensors, with a model card",
    "doctor": "check the installation",
    "parity": "replay recorded updates of the authors' code",
    "completion": "print a completion script for a shell",
}
"""What each command does, in the order of the help."""


def usage() -> str:
    """Return the help."""
    lines = ["usage: trqam COMMAND ... | trqam COMMAND --help | trqam --version", ""]
    return "\n".join(lines + [f"  {name:<12}{text}" for name, text in COMMANDS.items()])


def main() -> int:
    """Run the command that the first argument names; return the exit status of the rest."""
    match sys.argv[1:]:
        case ["-h" | "--help"]:
            print(usage())
        case ["--version"]:
            print(f"trqam_fast {__version__}")
        case [name, *words] if name in COMMANDS:
            sys.argv = [f"trqam {name}", *words]
            runpy.run_module(f"trqam_fast.{name}", run_name="__main__", alter_sys=True)
        case [name, *_]:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
            print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
            return 2
        case _:
            print(usage(), file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
