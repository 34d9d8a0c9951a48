"""How many kernels one update launches, counted where torch and Triton dispatch them.

Every operation that is neither a view nor an allocation counts as one launch, a view that has to
copy too. It is what a GPU launches as long as ATen needs one kernel for an operation, which a
profiler must confirm.
"""

import collections
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.launches import ALLOCATES, FREE, IMPLEMENTATIONS, copies, launches_of, recording
from tests.helpers import draw
from tests.races import Careless, races
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.agents.branches import MAIN
from trqam_fast.data.dataset import FIELDS, Dataset
from trqam_fast.op_cases import CASES, Sizes, draw_inputs, evaluate
from trqam_fast.randomness import Randomness
from trqam_fast.training.history import History
from trqam_fast.training.updater import Updater

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
    ),
]


class Launches(TorchDispatchMode):
    """Counts operations by name, those inside this project's ops too."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name, _ = str(func).split(".")
        if namespace == "trqam_fast":
            with self:
                return IMPLEMENTATIONS[name](*args, **(kwargs or {}))
        found = func(*args, **(kwargs or {}))
        if copies(func, args, found):
            self.counts["clone"] += 1
        elif namespace == "aten" and not func.is_view and name not in ALLOCATES + FREE:
            self.counts[name] += 1
        return found


def updates(runs):
    """What builds an updater with the paper's depth, ensemble and chunks, on narrow networks."""
    config = TRQAMConfig(
        batch_size=4, actor_hidden_dims=(32,) * 4, value_hidden_dims=(32,) * 4, num_qs=2,
        flow_steps=3, horizon_length=5, action_chunking=True,
    )  # fmt: skip
    widths = dict(zip(FIELDS, (3, 5, None, None, None, 3), strict=True))
    arrays = {name: draw(50, *([w] if w else []), seed=7) for name, w in widths.items()}
    dataset = Dataset.from_arrays({**arrays, "terminals": torch.zeros(50)})
    randomness = Randomness(range(runs), backend="triton")

    def build():
        agent = TRQAMAgent(config, 3, 5, list(range(runs)), backend="triton")
        return Updater(agent, dataset, randomness, History(10), graph=False)

    return build


# Of three flow steps, at depth 4. A step of the rollout is a launch and three layers, and so is one
# of the sweep; both end with one more. Four passes, three of them with LayerNorm, of which two
# share what is prepared; four pullbacks.
TRITON = {
    "rollout_step_kernel": 4, "sweep_step_kernel": 4, "hidden_layer_kernel": 3 * 3 + 4 * 3,
    "pull_hidden_kernel": 3 * 3 + 4 * 3, "pull_norm_kernel": 2 * 4,
    "prepare_kernel": 3, "gradient_operands_kernel": 3,
    "first_layer_kernel": 4, "output_kernel": 4, "pull_output_kernel": 2, "pull_inputs_kernel": 1,
    "adjoint_matching_kernel": 1, "weight_gradient_kernel": 3, "philox_kernel": 1,
    "adjoint_sizes_kernel": 1, "squared_error_kernel": 1, "td_loss_kernel": 1,
    "action_gradient_kernel": 1, "flow_matching_inputs_kernel": 1, "gather_sequences_kernel": 1,
    "dual_update_kernel": 1, "record_metrics_kernel": 1, "gradient_norm_kernel": 1,
    "adam_step_kernel": 1,
}  # fmt: skip


@pytest.mark.parametrize("runs", [1, 3])
def test_an_update_launches_few_kernels(runs, monkeypatch):
    """As many with several runs.

    One run's kernels do their work. Of three, for which the interpreter takes three times as long,
    they are counted and left undone, but for the batch's numbers: no launch depends on a value.
    """
    from triton.runtime.interpreter import GridExecutor

    launches, run = Launches(), GridExecutor.__call__

    def count(self, *arguments, **options):
        launches.counts[self.fn.__name__] += 1
        if runs == 1 or self.fn.__name__ == "philox_kernel":
            with _disable_current_modes():
                run(self, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", count)
    updating = updates(runs)()
    updating.run(1)
    launches.counts.clear()
    with launches:
        updating.run(1)
    triton = {name: n for name, n in launches.counts.items() if name.endswith("_kernel")}
    assert triton == TRITON
    assert launches.counts.total() == 93, launches.counts
    # Listed without doing the work, they are the same, but for the step of the critics, which a
    # graph of several updates has apart.
    listed = launches_of(updates(runs), updates=2)
    expected = launches.counts + collections.Counter(["adam_step_kernel"])
    assert collections.Counter(launch.name for launch in listed) == expected + expected
    assert {launch.place[0] for launch in listed} == {
        MAIN, "critic", "operands", "cloning", "log", "sample"
    }  # fmt: skip
    assert races(listed) == []
    # The fields are prepared before the critics' step of the update before fills the chip.
    main = [launch.name for launch in listed if launch.place[0] == MAIN]
    (late, _) = (
        each for each in listed if each.name == "adam_step_kernel" and each.place[0] != MAIN
    )
    done = late.place[1][MAIN]
    assert main[done - 1] == "prepare_kernel"
    assert main[done] == "rollout_step_kernel"
    # Of what Triton alone makes before: the target critics' operands.
    for forgotten in ((MAIN, "operands"), ("critic", "operands")) if runs == 1 else ():
        assert races(launches_of(updates(1), clock=Careless(*forgotten))), forgotten


@pytest.mark.parametrize(("op", "prepared"), [("ode_rollout", [2]), ("sde_rollout", [4, 2])])
def test_a_rollout_prepares_the_fields_that_rows_follow(op, prepared):
    """Acting has no rows of the base field. Without gradients its velocities are a pass apart."""
    inputs = draw_inputs(CASES[op], Sizes(2, 4, 3, 2, (32,), True), dtype=torch.float32)
    with recording() as recorder:
        evaluate(CASES[op], inputs, wanted=(), backend="triton")
    launches = [each for each in recorder.launches if each.name == "prepare_kernel"]
    assert [len(launch.arguments["prepared"].first) for launch in launches] == prepared
