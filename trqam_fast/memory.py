"""Memory of an update on the CPU: its bound, and what happens to it between updates."""

from __future__ import annotations

import ctypes
import sys

from trqam_fast.agents import AgentConfig, TRQAMAgent
from trqam_fast.kernels.mlp.constants import aligned

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER, _STEP = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next update instead of returning them to the system.

    By default it maps every block above 32 MiB anew, and an update then spends up to a quarter of
    its time on page faults of its tapes. The setting holds for the whole process; elsewhere than
    on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_TOP_PAD, _STEP)


def update_bytes(
    config: AgentConfig, obs_dim: int, act_dim: int, *, runs: int = 1, threads: int = 1
) -> dict[str, int]:
    """Bound the memory of TRQAM updates with the compiled float32 passes on the CPU.

    With P parameters of a run, T(net) tape elements of a row (two for each hidden unit, widths
    padded to 32, one more a layer with LayerNorm), and the symbols of docs/algorithm.md::

        held      = 4 S 5 P                     parameters, gradient, two moments, targets
        temporary = 4 S B ((K + 1) T(field) + 2 E T(critic) + (K + N + 3) (O + 12 D + 16))
        scratch   = 4 threads (2 Q + w (256 (3 L + 9) + L K B))

    Q is a padded network's size, w its largest padded width and L its depth, each for the larger
    of field and critic.

    Args:
        config: Hyperparameters of the agent.
        obs_dim: O.
        act_dim: Width of one action; D is that times the length of a chunk.
        runs: S.
        threads: torch's number of threads.

    Returns:
        Bytes: ``held`` between updates, ``temporary`` during one, ``scratch`` of the passes.
    """
    field = TRQAMAgent.field_shape(config, obs_dim, act_dim)
    critic = TRQAMAgent.critic_shape(config, obs_dim, act_dim)
    dim, steps, batch = act_dim * config.chunk_length, config.flow_steps, config.batch_size

    def tape(shape) -> int:
        return sum(2 * aligned(width) + shape.layer_norm for width in shape.hidden_dims)

    def packed(shape) -> int:
        widths = [aligned(w) for w in (shape.in_features, *shape.hidden_dims, shape.out_features)]
        return sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))

    shapes = (field, critic)
    widest = max(aligned(max(shape.in_features, *shape.hidden_dims)) for shape in shapes)
    depth = max(len(shape.hidden_dims) for shape in shapes)
    small = (steps + config.best_of_n + 3) * (obs_dim + 12 * dim + 16)
    rows = (steps + 1) * tape(field) + 2 * config.num_qs * tape(critic) + small
    per_thread = 2 * max(map(packed, shapes)) + widest * (
        256 * (3 * depth + 9) + depth * steps * batch
    )
    return {
        "held": 4 * runs * 5 * (2 * field.size + critic.size),
        "temporary": 4 * runs * batch * rows,
        "scratch": 4 * threads * per_thread,
    }
