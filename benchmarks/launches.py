"""The launches of an update, as torch and Triton dispatch them, without doing the work.

Every operation that is neither a view nor an allocation counts as one launch, a view that has to
copy too; a Triton kernel counts where the interpreter would run it. Shapes go through PyTorch's
meta kernels and memory is hardly touched, so an update of any size is listed within seconds on any
machine. Interpreted kernels must be asked for before Triton is imported: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from trqam_fast.agents.branches import MAIN, Branches
from trqam_fast.kernels import dispatch
from trqam_fast.kernels.action_gradient import ops as action_gradient_ops
from trqam_fast.kernels.adam_step import ops as adam_step_ops
from trqam_fast.kernels.adjoint_matching import ops as adjoint_matching_ops
from trqam_fast.kernels.adjoint_sizes import ops as adjoint_sizes_ops
from trqam_fast.kernels.dual_update import ops as dual_update_ops
from trqam_fast.kernels.flow_matching_inputs import ops as flow_matching_inputs_ops
from trqam_fast.kernels.gather_sequences import ops as gather_sequences_ops
from trqam_fast.kernels.lean_adjoint import ops as lean_adjoint_ops
from trqam_fast.kernels.mlp import ops as mlp_ops
from trqam_fast.kernels.philox import ops as philox_ops
from trqam_fast.kernels.record_metrics import ops as record_metrics_ops
from trqam_fast.kernels.sde_rollout import ops as sde_rollout_ops
from trqam_fast.kernels.squared_error import ops as squared_error_ops
from trqam_fast.kernels.td_loss import ops as td_loss_ops
from trqam_fast.kernels.velocity_along import ops as velocity_along_ops

Span = tuple[int, int, int]
"""A storage, and the bytes from and to which a tensor reaches in it."""

Place = tuple[str, dict[str, int]]
"""A launch's branch, and how many launches of every branch are done before it begins."""


class Clock(Branches):
    """Branches that keep account of what has waited for what; all is done in the code's order."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = MAIN
        self.before: dict[str, int] = {}
        self.done: dict[str, dict[str, int]] = {MAIN: {}}

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Let what is inside be an update; what the main branch was given before is done."""
        self.before = dict(self.done[MAIN])
        self.done = {name: self.done[name] for name in (MAIN, *self.left)}
        with super().side_by_side():
            yield
            self.end()

    def end(self) -> None:
        """Let the main branch wait for all others."""
        with self._on(MAIN, tuple(self.done)):
            pass

    @contextmanager
    def _on(self, name: str, after: tuple[str, ...]) -> Iterator[None]:
        waited = [self.done[other] for other in after]
        if name not in self.begun:
            waited.append(self.before)
        self.begun[name] = None
        self.wait(name, *waited)
        self.branch, before = name, self.branch
        yield
        self.branch = before

    def wait(self, name: str, *others: dict[str, int]) -> None:
        """Let branch `name` wait for what others have done."""
        done = self.done.setdefault(name, {})
        for other in others:
            for branch, count in other.items():
                done[branch] = max(done.get(branch, 0), count)

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Let what is inside be updates alone, as on a GPU."""
        self.joined = True
        try:
            yield
            self.begin_deferred()
        finally:
            self.joined = False
            self.deferred.clear()
            self.finish()

    @contextmanager
    def later(self, name: str) -> Iterator[None]:
        """Do what is inside on branch `name` beside the next update."""
        if not self.joined:
            yield
            return
        self.wait(name, self.done[self.branch])
        self.branch, before = name, self.branch
        yield
        self.branch = before
        self.left[name] = dict(self.done[name])

    def catch_up(self) -> None:
        """Let the current branch wait for what the last update left for later."""
        self.begin_deferred()
        self.wait(self.branch, *self.left.values())

    def keep(self, *things: Any) -> None:
        """Keep what is to live until the end, as on a GPU."""
        self.kept += things

    def launch(self) -> Place:
        """Place a launch on the current branch."""
        done = self.done[self.branch]
        place = (self.branch, dict(done))
        done[self.branch] = done.get(self.branch, 0) + 1
        return place


@dataclass(frozen=True)
class Launch:
    """One launch of an update.

    Attributes:
        name: Operation of PyTorch, or Triton kernel.
        shapes: Of its tensors, in the order of its arguments.
        flop: Of matrix products, two for each multiply-add; Triton's are added by the model.
        bytes: Read and written, each tensor once.
        reads: Memory that it reads.
        writes: Memory that it writes.
        place: Where it is among the update's branches.
        arguments: Of a Triton kernel, by name; empty for PyTorch's operations.
        grid: Programs of a Triton kernel by axis.
    """

    name: str
    shapes: list[tuple[int, ...]]
    flop: float
    bytes: int
    reads: frozenset[Span]
    writes: frozenset[Span]
    place: Place
    arguments: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, ...] = ()


IMPLEMENTATIONS: dict[str, Callable] = {
    "mlp_operands": mlp_ops._operands,
    "mlp_forward": mlp_ops._forward,
    "mlp_backward": mlp_ops._backward,
    "action_gradient": action_gradient_ops._gradient,
    "adam_norm": adam_step_ops._adam_norm,
    "adam_step": adam_step_ops._adam_step,
    "rollout_operands": sde_rollout_ops._operands,
    "sde_rollout": sde_rollout_ops._rollout,
    "velocity_along": velocity_along_ops._along,
    "sweep_tape": lean_adjoint_ops._tape,
    "lean_adjoint": lean_adjoint_ops._sweep,
    "adjoint_matching": adjoint_matching_ops._forward,
    "adjoint_sizes": adjoint_sizes_ops._sizes,
    "flow_matching_inputs": flow_matching_inputs_ops._inputs,
    "squared_error": squared_error_ops._forward,
    "td_loss": td_loss_ops._forward,
    "philox": philox_ops._philox,
    "philox_next": philox_ops._by_triton,
    "dual_update": dual_update_ops._dual_update,
    "gather_sequences": gather_sequences_ops._gather,
    "record_metrics": record_metrics_ops._record,
}
REWRITES = {
    "first_layer_kernel": ("tape",), "hidden_layer_kernel": ("tape",),
    "gradient_operands_kernel": ("into",),
    "rollout_step_kernel": ("tape", "trajectory", "velocity", "base_velocity", "ode_x"),
    "pull_output_kernel": ("grads",), "pull_hidden_kernel": ("grads",),
    "pull_norm_kernel": ("grads", "normed"), "sweep_step_kernel": ("grads", "adjoints"),
    "gradient_norm_kernel": ("step",), "weight_gradient_kernel": ("into",),
    "adam_step_kernel": ("online", "exp_avg", "exp_avg_sq", "targets"),
    "philox_kernel": ("offset", "ended"), "dual_update_kernel": ("lam", "kl_ema"),
    "record_metrics_kernel": ("table", "position"),
}  # fmt: skip
"""Arguments of Triton kernels that are written though something has written them before."""

ALLOCATES = ("empty", "new_empty", "empty_like", "empty_strided")
OVERWRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")
FREE = ("detach", "lift_fresh", "_unsafe_view", "alias")


def storage(tensor: Tensor) -> int:
    """Return a number that tells a tensor's storage from others."""
    return tensor.untyped_storage()._cdata


def spans(tensor: Tensor) -> list[Span]:
    """Return where a tensor lies: of a slice of packed weights, the part of every run."""
    if tensor.numel() == 0:
        return []
    packed = tensor.dim() > 1 and not tensor.is_contiguous() and tensor[0].is_contiguous()
    parts = tensor.unbind(0) if packed else [tensor]
    size, found = tensor.element_size(), []
    for part in parts:
        reach = sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True))
        begin = part.storage_offset() * size
        found.append((storage(part), begin, begin + (reach + 1) * size))
    return found


def copies(func: Any, args: Sequence[Any], found: Any) -> bool:
    """Whether what may be a view, as of `contiguous` and `reshape`, has become a copy."""
    return func.is_view and isinstance(found, Tensor) and storage(found) != storage(args[0])


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor, what is repeated by expansion once."""
    count = math.prod(n for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s != 0)
    return count * tensor.element_size()


class Recorder(TorchDispatchMode):
    """Lists launches; their results have the right shapes and no values.

    Attributes:
        launches: In the order of dispatch.
        clock: The branches that they are on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.launches: list[Launch] = []
        self.kept: list[Tensor] = []  # alive, so that no storage takes another's place
        self.written: set[int] = set()
        self.known: set[int] = set()
        self.results: dict[str, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        namespace, name, _ = str(func).split(".")
        if namespace == "trqam_fast":
            with self:
                return IMPLEMENTATIONS[name](*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in ALLOCATES:
            found = func(*args, **kwargs)
            self.kept.append(found)
            self.known.add(storage(found))
            return found
        if namespace != "aten" or name in FREE:
            return func(*args, **kwargs)
        if func.is_view:
            found = func(*args, **kwargs)
            if copies(func, args, found):
                self.kept.append(found)
                self.add("clone", inputs, [found])
            return found
        result, changed = self.shapes_of(func, args, kwargs)
        if name in OVERWRITES:
            inputs = [tensor for tensor in inputs if tensor is not changed[0]]
        outputs = changed or [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.kept += outputs
        flop = flop_registry.get(func._overloadpacket)
        count = flop(*args, **kwargs, out_val=result) if flop else 0.0
        self.add(name, inputs, outputs, count)
        return result

    def shapes_of(self, func, args, kwargs) -> tuple[Any, list[Tensor]]:
        """Return what `func` returns, without values, and the arguments that it changes."""
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and argument.name != "grads"  # of Adam, which writes them only to undo a scale
        ]
        if written:
            changed = [leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]
            return (written[0] if func._schema.returns else None), changed
        options = kwargs | ({"generator": None} if "generator" in kwargs else {})
        if "device" in options or not any(isinstance(a, Tensor) for a in tree_leaves(args)):
            options["device"] = torch.device("meta")
        with _disable_current_modes():
            key = str((func, tree_map(described, (args, options))))
            if key not in self.results:  # Layers repeat, and meta kernels take their time.
                shapeless = tree_map(without_values, (args, options))
                self.results[key] = func(*shapeless[0], **shapeless[1])
            return tree_map(with_memory, self.results[key]), []

    def add(self, name: str, inputs, outputs, flop: float = 0.0, **triton: Any) -> None:
        """Append a launch."""
        shapes = [tuple(tensor.shape) for tensor in inputs]
        reads, writes = (
            frozenset(span for tensor in tensors for span in spans(tensor))
            for tensors in (inputs, outputs)
        )
        if name == "index":  # A gather reads what it returns, not all that it could.
            moved = 2 * sum(map(bytes_of, outputs))
        else:
            moved = sum(map(bytes_of, [*inputs, *outputs]))
        self.written |= {name for name, *_ in writes}
        place = self.clock.launch()
        self.launches.append(Launch(name, shapes, flop, moved, reads, writes, place, **triton))

    def add_kernel(self, name: str, arguments: dict[str, Any], grid: tuple[int, ...]) -> None:
        """Append a Triton kernel: memory that nobody has written yet is what it writes.

        Arguments in `REWRITES` are read and written, as a whole.
        """
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        fresh = {storage(tensor) for tensor in tensors} & (self.known - self.written)
        inputs = [tensor for tensor in tensors if storage(tensor) not in fresh]
        outputs = [tensor for tensor in tensors if storage(tensor) in fresh]
        again = tree_leaves([arguments[argument] for argument in REWRITES.get(name, ())])
        outputs += [leaf for leaf in again if isinstance(leaf, Tensor) and leaf.numel()]
        self.add(name, inputs, outputs, arguments=arguments, grid=grid)


def described(value: Any) -> Any:
    """Return what a tensor's result depends on; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return (*value.size(), "by", *value.stride(), value.dtype)


def without_values(value: Any) -> Any:
    """Return a tensor's likeness on the meta device; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def with_memory(value: Any) -> Any:
    """Return a tensor on the CPU for its likeness, uninitialised: pages that are never touched."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)


@contextmanager
def recording() -> Iterator[Recorder]:
    """List what is launched inside, dependent launches too, which no interpreter has.

    Raises:
        RuntimeError: Triton would compile its kernels instead of interpreting them.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("set TRITON_INTERPRET=1 before the process starts")
    from triton.runtime.interpreter import GridExecutor

    recorder, run, has = Recorder(), GridExecutor.__call__, dispatch.has_dependent_launches

    def count(self, *arguments, **options):
        names = inspect.signature(self.fn).parameters
        options = {key: value for key, value in options.items() if key in names}
        bound = inspect.getcallargs(self.fn, *arguments, **options)
        recorder.add_kernel(self.fn.__name__, bound, tuple(self.grid))

    GridExecutor.__call__ = count
    dispatch.has_dependent_launches = lambda _: True
    try:
        with recorder:
            yield recorder
    finally:
        GridExecutor.__call__, dispatch.has_dependent_launches = run, has


def launches_of(
    make_updater: Callable[[], Any], updates: int = 1, clock: Clock | None = None
) -> list[Launch]:
    """Return the launches of updates after the first one, sampling and metrics included.

    Args:
        make_updater: Builds the updater; what it does is not counted.
        updates: How many, one after another as in a captured graph.
        clock: Keeps account of what waits for what; a new one by default.
    """
    with recording() as recorder:
        updater = make_updater()
        updater.update()
        updater.agent.branches = recorder.clock = clock or Clock()
        recorder.launches.clear()
        with recorder.clock.one_after_another():
            updater.update(updates)
        return list(recorder.launches)
