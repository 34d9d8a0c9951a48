"""The model of an update's time: its counts, and the tables that show it."""

import json
import os
from dataclasses import replace

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks import gpu_model
from benchmarks.gpu_model import MACHINES, PLANS, cost, longest, make_updater
from benchmarks.launches import Launch, launches_of
from benchmarks.sizes import PAPER
from benchmarks.work import flops
from trqam_fast.errors import UsageError

pytestmark = pytest.mark.interpreter
H100 = MACHINES["H100"]


@pytest.fixture(scope="module")
def fused():
    return launches_of(make_updater("fused", PAPER, "tf32"))


def test_tables_are_up_to_date():
    assert gpu_model.main(["--check"]) == 0


@pytest.fixture(scope="module")
def tiles():
    return launches_of(make_updater("tiles", PAPER, "tf32"))


@pytest.mark.parametrize("plan", ["fused", "tiles"])
def test_operations_are_those_of_an_update(plan, request):
    """Kernels' operations come from their launches, `flops` from the sizes."""
    launches = request.getfixturevalue(plan)
    found = sum(cost(launch, "tf32", H100).flop for launch in launches)
    assert found == pytest.approx(flops(PAPER)["update"], rel=0.01)


def test_a_layer_has_programs_for_the_chip(fused, tiles):
    """Rows by features; launches of a chain wait for each other, though they share a tape."""
    hidden = [launch for launch in tiles if launch.name == "hidden_layer_kernel"]
    assert max(launch.grid for launch in hidden[:27]) == (8, 8, 1)
    steps = [cost(launch, "tf32", H100) for launch in hidden[:3]]
    assert [found.programs for found in steps] == [64, 64, 64]
    # Two passes of the weights and rows: what a layer touches, not the tape of all steps.
    assert steps[0].bytes == 512 * 512 * 4 + 512 * 512 * (4 + 4 + 4)
    chain = [launch for launch in tiles if launch.name.startswith(("hidden", "rollout"))]
    assert longest(chain[:12], [1.0] * 12) == 12.0
    both = [longest(found, [1.0 * cost(each, "tf32", H100).products for each in found])
            for found in (fused, tiles)]  # fmt: skip
    assert both[0] == both[1] == 120


def test_bytes_of_the_optimiser(fused):
    """Parameters, moments and targets read and written, the gradient read twice."""
    norm, adam = (launch for launch in fused if launch.name in ("gradient_norm_kernel",
                                                                "adam_step_kernel"))  # fmt: skip
    count, targets = (adam.arguments[name].numel() for name in ("online", "targets"))
    assert norm.bytes == pytest.approx(4 * count, rel=1e-3)
    assert adam.bytes == pytest.approx(4 * (7 * count + 2 * targets), rel=1e-3)


def test_a_rollout_has_the_programs_of_its_tiles(fused):
    (rollout,) = (launch for launch in fused if launch.name == "sde_rollout_kernel")
    assert rollout.grid == (8, 1)
    found = cost(rollout, "tf32", H100)
    assert (found.programs, found.products) == (8, 55)
    # What one multiprocessor loads bounds it: fewer bytes a clock, more time.
    slow = cost(rollout, "tf32", replace(H100, sm_bytes_clk=32.0))
    assert slow.us > 1.5 * found.us


@pytest.mark.parametrize("plan", sorted({plan for plan, _ in PLANS}))
def test_runs_multiply_the_work_of_a_plan(plan):
    one, three = (
        launches_of(make_updater(plan, replace(PAPER, runs=runs), "tf32")) for runs in (1, 3)
    )
    work = [sum(cost(launch, "tf32", H100).flop for launch in found) for found in (one, three)]
    assert work[1] == pytest.approx(3 * work[0], rel=1e-6)


def launch(reads, writes):
    def spans(names):
        return frozenset((ord(name), 0, 4) for name in names)

    return Launch("op", [], 0.0, 8, spans(reads), spans(writes))


@pytest.mark.parametrize(
    ("launches", "expected"),
    [
        ([("a", "b"), ("b", "c"), ("c", "d")], 7.0),
        ([("a", "b"), ("a", "c"), ("a", "d")], 4.0),
        ([("a", "b"), ("a", "c"), ("bc", "d")], 6.0),
        ([("a", "b"), ("c", "a")], 3.0),  # overwritten after it was read
        ([("a", "b"), ("c", "b")], 3.0),
    ],
)
def test_the_longest_chain(launches, expected):
    found = [launch(*names) for names in launches]
    assert longest(found, [1.0, 2.0, 4.0][: len(found)]) == expected


def test_parts_of_packed_weights_do_not_wait_for_each_other():
    one, other, both = ((0, 0, 4), (0, 4, 8), (0, 2, 6))
    first = Launch("op", [], 0.0, 4, frozenset(), frozenset([one]))
    second = Launch("op", [], 0.0, 4, frozenset([other]), frozenset())
    third = Launch("op", [], 0.0, 4, frozenset([both]), frozenset())
    assert longest([first, second], [1.0, 1.0]) == 1.0
    assert longest([first, third], [1.0, 1.0]) == 2.0


def test_measured_limits_take_the_place_of_assumed_ones(tmp_path):
    path = tmp_path / "micro.json"
    path.write_text(json.dumps({"node_us": 2.5, "l2_sm_bytes_clk": 48.0, "mma_clk": 1000}))
    (machine,) = gpu_model.with_measured(path).values()
    assert machine == replace(H100, node_us=2.5, sm_bytes_clk=48.0)
    path.write_text("{}")
    with pytest.raises(UsageError, match="has none of multiprocessors"):
        gpu_model.with_measured(path)


def test_an_unknown_kernel_is_refused(fused):
    (rollout,) = (launch for launch in fused if launch.name == "sde_rollout_kernel")
    with pytest.raises(ValueError, match="other_kernel"):
        cost(replace(rollout, name="other_kernel"), "tf32", H100)
