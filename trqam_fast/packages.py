"""Versions of installed packages, and the commit of a checkout."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

GIT_SECONDS = 10
"""Longest wait for git, whose disk may be a slow one."""


def version_of(package: str) -> str:
    """Return the version of a package, "not installed" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a git checkout, with + if files differ from it.

    Args:
        checkout: Its root.

    Returns:
        None if it is none, or git is missing, refuses or takes too long.
    """
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout), *words],
            capture_output=True, text=True, check=True, timeout=GIT_SECONDS, env=environment,
        )  # fmt: skip
        return done.stdout.strip()

    if not (checkout / ".git").exists():  # a folder in a checkout of something else
        return None
    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
