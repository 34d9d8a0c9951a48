"""The squared error in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trqam_fast.kernels.checks import refusing


def squared_error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the loss, `[S]`; see the package's `squared_error`."""
    constants, valid = {"target": target, "valid": valid}, valid.detach()
    target = target.detach().unsqueeze(1).expand_as(prediction)
    error = F.mse_loss(prediction, target, reduction="none")
    error = error.mean(-1) if error.shape[-1] > 1 else error.squeeze(-1)
    return refusing("squared_error", (error * valid.unsqueeze(1)).mean((1, 2)), **constants)
