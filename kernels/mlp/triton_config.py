"""What the Triton kernels are compiled for, and the groups of pointers that they pass around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from trqam_fast.kernels.mlp.constants import ALIGNMENT, aligned


@dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for: architecture of the network, tile, arithmetic.

    Attributes:
        obs: Width of the inputs' first part (all of it for a plain MLP).
        dim: Width of the second part, x; 0 for none.
        time: 1 if a third part, the time, follows; else 0.
        widths: True hidden widths.
        width: Padded hidden width, a multiple of `block_n` and `block_k`.
        out: Output width.
        norm: LayerNorm after every hidden activation.
        ensemble: Members that share their inputs, E.
        train: Keep what a later pass needs: forward, the tape; pullback, the gradients of all
            pre-activations and the column sums.
        k_major: The hidden kernels of a forward pass are packed transposed, `[out, in]`, as the
            matrix units want tf32 operands; for weights that every program reads many times.
        block_m: Rows of a tile.
        block_n: Columns computed at a time.
        block_k: Depth of a product's step.
        block_w: Rows and columns of a block of a weight gradient.
        block_out: Power of two that holds the output, at least 16.
        operand: Element type of the products' operands.
        precision: ``ieee`` or ``tf32`` for float32 operands.
        alignment: Elements to which parts of packed weights are aligned; a field because compiled
            kernels are stored under the plan's values.
    """

    obs: int
    dim: int
    time: int
    widths: tuple[int, ...]
    width: int
    out: int
    norm: bool
    ensemble: int
    train: bool
    k_major: bool
    block_m: int
    block_n: int
    block_k: int
    block_w: int
    block_out: int
    operand: Any
    precision: str
    alignment: int = ALIGNMENT

    @property
    def kernel_offsets(self) -> tuple[int, int, int]:
        """Elements before a packed run's hidden kernels, before the last one, and in all."""
        first = aligned(self.ensemble * self.inputs * self.width)
        last = first + (self.depth - 1) * aligned(self.ensemble * self.width**2)
        return first, last, last + aligned(self.ensemble * self.width * self.out)

    @property
    def vector_offsets(self) -> tuple[int, int, int, int]:
        """Elements before a packed run's output biases, scales and shifts, and in all."""
        hidden = self.depth * aligned(self.ensemble * self.width)
        scales = hidden + aligned(self.ensemble * self.out)
        norms = hidden if self.norm else 0
        return hidden, scales, scales + norms, scales + 2 * norms

    @property
    def depth(self) -> int:
        """Hidden layers."""
        return len(self.widths)

    @property
    def inputs(self) -> int:
        """Input width."""
        return self.obs + self.dim + self.time


class Network(NamedTuple):
    """Packed weights of a stack: members of a run lie one after another, layers of a kind too.

    Attributes:
        w_in: Kernels of the first layer, `[E, inputs, width]` of each run.
        w_hid: Kernels between hidden layers, `[depth - 1, E, width, width]`.
        w_out: Kernels of the output layer, `[E, width, out]`.
        b_hid: Hidden biases, `[depth, E, width]`.
        b_out: Output biases, `[E, out]`.
        scale: LayerNorm scales, `[depth, E, width]`.
        shift: LayerNorm biases, likewise.
        kernel_stride: Elements between two runs of the kernels.
        vector_stride: Elements between two runs of the vectors.
    """

    w_in: Any
    w_hid: Any
    w_out: Any
    b_hid: Any
    b_out: Any
    scale: Any
    shift: Any
    kernel_stride: Any
    vector_stride: Any


class Tape(NamedTuple):
    """Activations: `[layers, G, rows, width]` and statistics `[depth, G, rows]`.

    Without `train`, `pre` has one layer and `out` two that take turns. `stride` and `stat_stride`,
    the elements between two layers of either kind, are set inside a kernel.
    """

    pre: Any
    out: Any
    mean: Any
    rstd: Any
    stride: Any = 0
    stat_stride: Any = 0


class Gradients(NamedTuple):
    """Pulled-back gradients: of pre-activations, `[layers, G, rows, width]`, and column sums.

    Without `train`, `pre` has two layers that take turns. `normed` is scratch `[G, rows, width]`;
    `sums` is `[3, depth, tiles, G, width]`: of dz, dscale, dshift.
    """

    pre: Any
    normed: Any
    sums: Any
    stride: Any
    sum_stride: Any


class Source(NamedTuple):
    """Where a tile's inputs `[s, x, t]` come from: pointers, and rows in each.

    With `SHARED`, `observations` is instead the share of s in the first pre-activation, rows of
    `width`, and `time` is a scalar.
    """

    observations: Any
    x: Any
    obs_row: Any
    x_row: Any
    time: Any
    mask: Any
