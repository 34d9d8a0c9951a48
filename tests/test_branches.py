"""Branches of an update: every order of work that they allow gives the same bits.

What every operation reads and writes is recorded as it is dispatched, and what its branch had
waited for by then. That two operations are ordered if one of them needs the other, or overwrites
what the other needs, is checked on the record; and the record is done again in other orders.

Longer than 400 lines, as the record is of use to these tests alone.
"""

import contextlib
import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.launches import ALLOCATES, FREE, Clock, Place, Span, spans, storage
from tests.factories import SMALL, make, make_batch
from tests.helpers import INTERPRETED
from tests.races import Careless, races
from trqam_fast.agents import ALGORITHMS, QAMAgent, TRQAMConfig, algorithm
from trqam_fast.agents.branches import MAIN, Branches
from trqam_fast.data.batch import Batch
from trqam_fast.errors import UsageError
from trqam_fast.randomness import Randomness
from trqam_fast.training.history import History
from trqam_fast.training.updater import Updater

CASES = {name: (name, {}) for name in ALGORITHMS} | {
    "qam-e": ("qam-e", {"best_of_n": 2}),
    "qam, base frozen": ("qam", {"freeze_base": True}),
    "trqam, everything": (
        "trqam",
        {"best_of_n": 2, "value_penalty": 0.3, "critic_warmup": 1, "budget_ramp": 3,
         "lambda_start": "closed-form", "critic": "implicit"},
    ),
}  # fmt: skip


class Operation(NamedTuple):
    """One operation of an update, and memory that it reads and writes."""

    func: Any
    args: tuple
    kwargs: dict
    results: list[Tensor]
    place: Place
    reads: frozenset[Span]
    writes: frozenset[Span]


def written(func, args, kwargs):
    """Arguments that an operation writes."""
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    found = [
        named[a.name]
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in named
    ]
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


class Record(TorchDispatchMode):
    """Records operations; with `keep`, so that they can be done again.

    Attributes:
        crossing: Storages that another branch used than the one that made them, and the operation.
    """

    def __init__(self, clock, *, keep):
        super().__init__()
        self.clock, self.keep = clock, keep
        self.operations, self.crossing = [], {}
        self.made, self.alive = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func).split(".")[1]
        if func.is_view or name in FREE:
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        mine, changed = set(map(storage, inputs)), written(func, args, kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        new = [tensor for tensor in outputs if storage(tensor) not in set(map(storage, changed))]
        for tensor in new:
            # Weak, but no other storage takes the number meanwhile.
            reference = StorageWeakRef(tensor.untyped_storage())
            self.made[storage(tensor)] = (self.clock.branch, reference)
        # What the main branch reads between updates may die then: all branches wait for it.
        between = self.clock.branch == MAIN and not self.clock.begun
        for key in mine & self.made.keys():
            if self.made[key][0] != self.clock.branch and not between:
                self.crossing[key] = name
        if name in ALLOCATES:
            self.alive += new if self.keep else []
            return result
        reads = frozenset(span for tensor in inputs for span in spans(tensor))
        writes = frozenset(span for tensor in new + changed for span in spans(tensor))
        kept = (args, kwargs, new) if self.keep else ((), {}, [])
        self.operations.append(Operation(func, *kept, self.clock.launch(), reads, writes))
        return result

    def lost(self):
        """Which of the tensors that crossed to another branch are gone by now, by their use."""
        return [name for key, name in self.crossing.items() if self.made[key][1].expired()]


def updating(case, backend="reference"):
    """An agent after one update, and the batch and noise of the next."""
    name, settings = case
    kind = algorithm(name)
    config = TRQAMConfig(**SMALL)
    dtype = torch.float32 if backend == "triton" else torch.float64
    agent = make(config, (0, 1), kind, backend=backend, dtype=dtype, **settings)
    randomness = Randomness([7, 8])
    batch = make_batch(3, 2, agent.config, dtype)
    agent.update(batch, agent.draw_noise(randomness))
    return agent, batch, agent.draw_noise(randomness)


def state_of(agent):
    return [*agent.state().values(), agent.steps, agent.online.gradient]


def record(agent, batch, noise, clock=None, *, keep=False, update=None):
    """Record an update, and what was lost at its end.

    Where a part of the optimiser's step may go on beside the next update, that is recorded too.
    """
    agent.branches = clock = clock or Clock()
    recorded, finish, lost = Record(clock, keep=keep), clock.finish, []

    def watched():
        lost.extend(recorded.lost())
        recorded.crossing.clear()
        finish()

    clock.finish = watched
    update = update or (lambda: agent.update(batch, noise))
    with recorded, clock.one_after_another():
        update()
        if clock.left or clock.deferred:
            update()
    return recorded.operations, lost


def orders(operations, count):
    """Orders that the branches allow: each branch as early or late as it can be, and at random."""
    branches = sorted({operation.place[0] for operation in operations})
    generator = random.Random(0)
    preferences = [branches[i:] + branches[:i] for i in range(len(branches))]
    preferences += [p[::-1] for p in preferences]
    for number in range(len(preferences) + count):
        waiting = {b: [o for o in operations if o.place[0] == b] for b in branches}
        done, order = dict.fromkeys(branches, 0), []
        while len(order) < len(operations):
            ready = [
                b for b in branches if waiting[b] and all(
                    done.get(other, 0) >= n for other, n in waiting[b][0].place[1].items()
                )
            ]  # fmt: skip
            if number < len(preferences):
                branch = min(ready, key=preferences[number].index)
            else:
                branch = generator.choice(ready)
            order.append(waiting[branch].pop(0))
            done[branch] += 1
        yield order


@torch.no_grad()
def do(order):
    """Do recorded operations again, to the memory that they had."""
    for operation in order:
        results = operation.func(*operation.args, **operation.kwargs)
        found = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        kept = set(map(storage, written(operation.func, operation.args, operation.kwargs)))
        found = [tensor for tensor in found if storage(tensor) not in kept]
        for tensor, result in zip(operation.results, found, strict=True):
            tensor.copy_(result)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_memory_is_shared_by_operations_that_wait(case, backend):
    """And what crosses to another branch lives until the end."""
    operations, lost = record(*updating(case, backend))
    steps = [o.place[0] for o in operations if str(o.func) == "trqam_fast.adam_step.default"]
    if backend == "cpp":
        late = algorithm(case[0]).late
        assert steps == ([MAIN] if late is None else [MAIN, late] * 2)
    assert len(operations) > 5
    assert races(operations) == []
    assert lost == []


@pytest.mark.interpreter
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_what_triton_alone_prepares_lives_until_the_end():
    """The target critics' operands, which a branch of their own makes."""
    operations, lost = record(*updating(CASES["trqam"], "triton"))
    assert "trqam_fast.mlp_operands.default" in {str(operation.func) for operation in operations}
    assert races(operations) == []
    assert lost == []


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_order_gives_the_same_bits(case, backend):
    agent, batch, noise = updating(case, backend)
    before = [tensor.clone() for tensor in state_of(agent)]
    operations, _ = record(agent, batch, noise, keep=True)
    after = [tensor.clone() for tensor in state_of(agent)]
    assert not all(map(torch.equal, before, after))
    found = list(orders(operations, 6))
    several = {operation.place[0] for operation in operations} != {MAIN}
    assert several == any([*map(id, order)] != [*map(id, operations)] for order in found)
    for order in found:
        for tensor, value in zip(state_of(agent), before, strict=True):
            tensor.copy_(value)
        for operation in operations:
            for tensor in operation.results:
                if tensor.is_floating_point():
                    tensor.detach().fill_(torch.nan)
        do(order)
        assert all(map(torch.equal, state_of(agent), after))


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [
        ("trqam", ("critic", MAIN)), ("trqam", ("anchor", MAIN)), ("trqam", (MAIN, "anchor")),
        ("trqam", ("log", MAIN)), ("fql", (MAIN, "cloning")),
    ],
)  # fmt: skip
def test_a_forgotten_wait_is_found(name, forgotten):
    agent, batch, noise = updating((name, {}))
    operations, _ = record(agent, batch, noise, Careless(*forgotten))
    assert races(operations)


class Source:
    """Copies a batch, as sampling makes a new one."""

    def __init__(self, batch):
        self.batch = batch

    def sample(self, *_):
        return Batch(*map(torch.clone, self.batch))


def three_updates(clock=None):
    """Record three updates in a row, and what was lost."""
    agent, batch, noise = updating(("trqam", {}), "cpp")
    updater = Updater(agent, Source(batch), Randomness([7, 8]), History(8), graph=False)
    once = iter([lambda: updater.update(3)])
    return record(agent, batch, noise, clock, update=lambda: next(once, lambda: None)())


def test_updates_in_a_row_draw_and_store_beside_each_other():
    """Metrics beside the next update, and what it needs beside the one before."""
    operations, lost = three_updates()
    places = {
        name: [o.place[0] for o in operations if str(o.func) == f"aten.{name}.default"]
        for name in ("index_copy_", "clone")
    }
    assert places["index_copy_"] == ["log"] * 3
    drawn = len(Batch._fields)
    assert places["clone"][:drawn] == [MAIN] * drawn
    assert places["clone"].count("sample") == 2 * drawn
    assert races(operations) == [] and lost == []


def test_a_forgotten_wait_before_drawing_is_found():
    class Hasty(Clock):
        @contextlib.contextmanager
        def later(self, name):
            mine = self.done[MAIN]
            if name == "sample":
                self.done[MAIN] = {}
            with super().later(name):
                self.done[MAIN] = mine
                yield

    assert races(three_updates(Hasty())[0])


def test_a_forgotten_wait_for_the_update_before_is_found():
    class Hasty(Clock):
        def catch_up(self):
            pass

    operations, _ = record(*updating(("trqam", {}), "cpp"), Hasty())
    found = {str(second.func) for _, second in races(operations)}
    assert "trqam_fast.action_gradient.default" in found


def test_a_forgotten_end_is_found():
    agent, batch, noise = updating(("trqam", {}))
    clock = Clock()
    clock.end = lambda: None
    operations, _ = record(agent, batch, noise, clock)
    assert races(operations)


def test_memory_that_is_given_up_too_early_is_found():
    class Forgetful(QAMAgent):
        def critic_loss(self, batch, q, next_actions, *others):
            return super().critic_loss(batch, q, next_actions.clone(), *others)

        def sample(self, batch, noise):
            path, next_actions = super().sample(batch, noise)
            self.copy = next_actions.clone()
            return path, next_actions

        def loss(self, batch, noise):
            losses, terms = super().loss(batch, noise)
            with self.branches.on("critic"):
                losses["critic"] = losses["critic"] + 0.0 * self.copy.sum()
            del self.copy
            return losses, terms

    agent = make(TRQAMConfig(**SMALL), (0,), Forgetful)
    noise = agent.draw_noise(Randomness([7]))
    _, lost = record(agent, make_batch(3, 1, agent.config), noise)
    assert lost


def test_on_a_gpu_branches_are_streams_that_wait(monkeypatch):
    """By what is called: no GPU is needed."""
    calls = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            calls.append(("event", self.name))
            return f"start of {self.name}"

        def wait_event(self, event):
            calls.append((self.name, event))

        def wait_stream(self, other):
            calls.append((self.name, other.name))

    made = iter(["first", "second"])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: Stream(next(made)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("caller"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    branches = Branches(torch.device("cuda"))
    for _ in range(2):
        calls.clear()
        with branches.side_by_side():
            with branches.on("critic"), branches.on("base", after=(MAIN, "critic")):
                branches.keep("something")
            with branches.on(MAIN, after=("base",)):
                assert branches.kept == ["something"]
        assert branches.kept == []
        assert calls == [
            ("event", "caller"), ("first", "start of caller"), ("second", "start of caller"),
            ("second", "caller"), ("second", "first"), ("caller", "second"),
            ("caller", "first"), ("caller", "second"),
        ]  # fmt: skip
    with branches.on("critic"):
        pass
    assert len(calls) == 8
    # Part of an update beside the next one, which waits for it where it must, and at the end.
    calls.clear()
    with branches.later("critic"):
        branches.catch_up()
    assert calls == []
    with branches.one_after_another():
        for _ in range(2):
            with branches.side_by_side():
                branches.catch_up()
            branches.keep("something")
            with branches.later("critic"):
                assert branches.kept == ["something"]
    assert branches.kept == [] and branches.left == {} and not branches.joined
    left = [("first", "caller"), ("event", "first")]
    caught = [("caller", "start of first")]
    assert calls == [
        ("event", "caller"), *left, ("event", "caller"), *caught, *caught, *left, *caught,
    ]  # fmt: skip
    # What is deferred begins behind what the next update lets go first, or where it is needed.
    for needs in (branches.begin_deferred, branches.catch_up, lambda: None):
        calls.clear()
        with branches.one_after_another():
            branches.defer("critic", lambda: calls.append("work"))
            with branches.side_by_side():
                assert "work" not in calls
                needs()
                assert ("work" in calls) == (needs in (branches.begin_deferred, branches.catch_up))
        assert calls.count("work") == 1 and calls.index(("first", "caller")) < calls.index("work")
        assert calls.index("work") < calls.index(("caller", "start of first"))
    with pytest.raises(ZeroDivisionError), branches.one_after_another():
        branches.defer("critic", lambda: calls.append("work"))
        raise ZeroDivisionError
    assert calls.count("work") == 1 and branches.deferred == {}
    branches.defer("critic", lambda: calls.append("at once"))
    assert calls[-1] == "at once"
    # An error inside leaves no stream behind.
    with pytest.raises(ZeroDivisionError), branches.side_by_side(), branches.on("critic"):
        raise ZeroDivisionError
    assert calls[-1] == ("caller", "first") and branches.begun == {}


def test_a_network_whose_last_step_is_under_way_is_waited_for(monkeypatch):
    """Its optimiser's step may go on beside this update; the fields' is over."""
    agent = make(TRQAMConfig(**SMALL), (0, 1))
    waits = []
    monkeypatch.setattr(agent.branches, "catch_up", lambda: waits.append("critic"))
    s, a, t = (torch.zeros(2, 5, width, dtype=agent.dtype) for width in (3, agent.dim, 1))
    agent.network("actor_fast", s, a, t)
    assert waits == []
    agent.network("critic", s, a)
    assert waits == ["critic"]


def test_a_branch_that_has_not_begun_cannot_be_waited_for():
    branches = Branches()
    with branches.side_by_side(), branches.on("critic"):
        with pytest.raises(ValueError, match="'base' is to wait for 'critics', which this update"):
            branches.on("base", after=("critics",))
        branches.on("base", after=(MAIN, "critic"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loss: loss, r"what its loss returned is a tuple \(Tensor, Terms\)"),
        (lambda loss: {MAIN: loss.sum()}, r"its loss 'main' is a tensor \[\]"),
        (lambda loss: {MAIN: loss.detach()}, "none of the losses it returned is differentiable"),
    ],
)
def test_other_losses_than_those_of_runs_are_refused(spoil, message):
    class Mine(QAMAgent):
        def loss(self, batch, noise):
            losses, terms = super().loss(batch, noise)
            return spoil(losses[MAIN]), terms

    agent = make(TRQAMConfig(**SMALL), (0, 1), Mine)
    noise = agent.draw_noise(Randomness([7, 8]))
    with pytest.raises(UsageError, match=rf"Mine, but {message}; "):
        agent.update(make_batch(3, 2, agent.config), noise)
