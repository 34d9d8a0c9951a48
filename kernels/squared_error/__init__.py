"""Mean squared error over the rows that count."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.checks import check_not_empty, check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.squared_error import ops, reference


def squared_error(
    prediction: Tensor, target: Tensor, valid: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Squared error of an ensemble's predictions, the loss of critics and of the cloned field.

    ::

        loss = mean_{e,b} [ mean_d (prediction_ebd - target_bd)^2 valid_b ]

    Source: docs/algorithm.md, "Behaviour cloning".

    Args:
        prediction: `[S, E, B, D]`, float32 or float64.
        target: `[S, B, D]`, a constant.
        valid: Weights of the rows, `[S, B]`, constants.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Returns:
        The loss, `[S]`, differentiable once in `prediction`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or a size is 0.
        BackendError: the backend asked for cannot run.
        RuntimeError: in the backward pass, if `target` or `valid` need a gradient.
    """
    op = "squared_error"
    check_tensor(op, "prediction", prediction, ("S", "E", "B", "D"))
    check_not_empty(op, "prediction", prediction)
    runs, _, batch, dim = prediction.shape
    check_tensor(op, "target", target, (runs, batch, dim))
    check_tensor(op, "valid", valid, (runs, batch))
    check_same(op, prediction=prediction, target=target, valid=valid)
    if choose_backend(op, backend, prediction.device, dtype=prediction.dtype) == "reference":
        return reference.squared_error(prediction, target, valid)
    return ops.squared_error(prediction, target, valid)


__all__ = ["squared_error"]
