"""Modules that are a command when run and a function when called, such as `trqam_fast.train`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module whose call is that of its function of the same name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **options)


def make_callable(name: str) -> None:
    """Let a module be called; without effect on one that runs as the program."""
    if name != "__main__":
        sys.modules[name].__class__ = CallableModule
