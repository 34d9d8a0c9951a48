"""Ops of TRQAM: networks, rollout, lean adjoint, losses, optimiser, random numbers, batches.

Every op takes data with a leading axis of independent runs, `[S, B, D]`, its noise as an argument,
and a `backend`. The reference in plain PyTorch is the specification of each.
"""

from trqam_fast.kernels.action_gradient import action_gradient
from trqam_fast.kernels.adam_step import AdamNorm, adam_norm, adam_step
from trqam_fast.kernels.adjoint_matching import adjoint_matching
from trqam_fast.kernels.adjoint_matching.steps import StepLoss, adjoint_matching_steps
from trqam_fast.kernels.adjoint_sizes import AdjointSizes, adjoint_sizes
from trqam_fast.kernels.dispatch import BACKENDS, PRECISIONS, Backend, BackendError, Precision
from trqam_fast.kernels.dual_update import dual_update
from trqam_fast.kernels.fields import Context, Velocity
from trqam_fast.kernels.flow_matching_inputs import FlowMatching, flow_matching_inputs
from trqam_fast.kernels.gather_sequences import Sequences, gather_sequences
from trqam_fast.kernels.lean_adjoint import lean_adjoint
from trqam_fast.kernels.mlp import (
    GradientMemory,
    MLPWeights,
    both_with_operands,
    mlp,
    with_operands,
)
from trqam_fast.kernels.noise_schedule import AffinePath, NoiseSchedule
from trqam_fast.kernels.path_kl import path_kl
from trqam_fast.kernels.philox import Draws, philox
from trqam_fast.kernels.record_metrics import record_metrics
from trqam_fast.kernels.sde_rollout import (
    BasePass,
    Rollout,
    ode_rollout,
    rollout_operands,
    sde_rollout,
)
from trqam_fast.kernels.squared_error import squared_error
from trqam_fast.kernels.td_loss import TDLoss, td_loss
from trqam_fast.kernels.td_target import td_target
from trqam_fast.kernels.velocity_along import velocity_along

__all__ = [
    "AdamNorm",
    "AdjointSizes",
    "AffinePath",
    "BACKENDS",
    "Backend",
    "BackendError",
    "BasePass",
    "Context",
    "Draws",
    "FlowMatching",
    "GradientMemory",
    "MLPWeights",
    "NoiseSchedule",
    "PRECISIONS",
    "Precision",
    "Rollout",
    "Sequences",
    "StepLoss",
    "TDLoss",
    "Velocity",
    "action_gradient",
    "adam_norm",
    "adam_step",
    "adjoint_matching",
    "adjoint_matching_steps",
    "adjoint_sizes",
    "both_with_operands",
    "dual_update",
    "flow_matching_inputs",
    "gather_sequences",
    "lean_adjoint",
    "mlp",
    "ode_rollout",
    "path_kl",
    "philox",
    "record_metrics",
    "rollout_operands",
    "sde_rollout",
    "squared_error",
    "td_loss",
    "td_target",
    "velocity_along",
    "with_operands",
]
