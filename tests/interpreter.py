"""Triton's interpreter as the tests need it."""

from __future__ import annotations

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
