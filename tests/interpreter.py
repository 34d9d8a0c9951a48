"""Triton's interpreter as the tests need it."""

from __future__ import annotations

import functools

from triton import language
from triton.runtime import interpreter


def accept_new_numpy() -> None:
    """Let tensors of one element bound a loop, whatever numpy is installed.

    Triton 3.6 takes the number from an array of one dimension, which numpy 2.4 refuses. From 3.7 on
    Triton squeezes the array first, as here.
    """
    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_and_mend


def patch_language_once() -> None:
    """Put the interpreter's functions into triton.language once for each launch.

    Triton does it again whenever a kernel calls a device function, though they stay until the
    launch ends; looking for them takes up to half of an interpreted kernel's time.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[str] = set()

    @functools.cache
    def languages_of(fn):
        seen = fn.__globals__.values()
        return {each.__name__ for each in (language, language.core) if any(each is v for v in seen)}

    def patch_new(fn):
        if languages_of(fn) <= patched:
            return interpreter._LangPatchScope()
        patched.update(languages_of(fn))
        return patch(fn)

    def launch_and_forget(executor, *args, **kwargs):
        try:
            launch(executor, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = launch_and_forget
