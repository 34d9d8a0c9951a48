"""Memory of an update on the CPU: its bound, and what happens to it between updates."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from trqam_fast.agents import Agent
from trqam_fast.kernels.mlp.constants import aligned
from trqam_fast.networks import MLPShape

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER, _STEP = -1, 64 * 2**20


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
    kind: type[Agent], config: Any, obs_dim: int, act_dim: int, *, runs: int = 1, threads: int = 1
) -> dict[str, int]:
    """Bound the memory of an algorithm's updates with the compiled float32 passes on the CPU.

    With P parameters of a run, Q of them with targets, T(net) tape elements of a row (two for each
    hidden unit, widths padded to 32, one more a layer with LayerNorm), r(net) the batches whose
    tapes an update keeps (`Agent.tapes`), and the symbols of docs/algorithm.md::

        held      = 4 S (4 P + Q + 80)          parameters, gradient, two moments, targets, rest
        temporary = 4 S B (sum r(net) E T(net) + (K + N + 3) (O + 12 D + 16))
        scratch   = 4 threads (2 M + w (256 (3 L + 9) + L K B))

    M is a padded network's size, w its largest padded width and L its depth, each for the largest
    of the networks.

    Args:
        kind: The algorithm.
        config: Its hyperparameters.
        obs_dim: O.
        act_dim: Width of one action; D is that times the length of a chunk.
        runs: S.
        threads: torch's number of threads.

    Returns:
        Bytes: ``held`` between updates, ``temporary`` during one, ``scratch`` of the passes.
    """
    shapes = kind.stored_shapes(config, obs_dim, act_dim)
    networks = {name: net for name, net in shapes.items() if isinstance(net, MLPShape)}
    dim, steps, batch = act_dim * config.chunk_length, config.flow_steps, config.batch_size

    def tape(net: MLPShape) -> int:
        row = sum(2 * aligned(width) + net.layer_norm for width in net.hidden_dims)
        return row * (net.ensemble or 1)

    def packed(net: MLPShape) -> int:
        widths = [aligned(w) for w in (net.in_features, *net.hidden_dims, net.out_features)]
        return sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))

    widest = max(aligned(max(net.in_features, *net.hidden_dims)) for net in networks.values())
    depth = max(len(net.hidden_dims) for net in networks.values())
    candidates = getattr(config, "best_of_n", 1)
    rows = sum(count * tape(networks[name]) for name, count in kind.tapes(config).items())
    rows += (steps + candidates + 3) * (obs_dim + 12 * dim + 16)
    per_thread = 2 * max(map(packed, networks.values())) + widest * (
        256 * (3 * depth + 9) + depth * steps * batch
    )
    parameters = sum(shape.size for shape in shapes.values())
    followed = sum(shapes[name].size for name in kind.targets)
    return {
        "held": 4 * runs * (4 * parameters + followed + 80),
        "temporary": 4 * runs * batch * rows,
        "scratch": 4 * threads * per_thread,
    }
