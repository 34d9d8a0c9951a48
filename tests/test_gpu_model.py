"""The model of an update's time: its counts, and the tables that show it."""

import collections
import itertools
import json
import os
from dataclasses import replace

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks import gpu_model
from benchmarks.gpu_model import (
    MACHINES,
    PLANS,
    Cost,
    along_branches,
    cost,
    costs_of,
    in_a_graph,
    is_dependent,
    longest,
    make_updater,
)
from benchmarks.gpu_work import TILED
from benchmarks.launches import Launch, launches_of
from benchmarks.sizes import PAPER
from benchmarks.work import flops
from trqam_fast.agents.branches import MAIN
from trqam_fast.errors import UsageError

pytestmark = pytest.mark.interpreter
H100 = MACHINES["H100"]
MAIN_FIRST = ("main", {})


def test_tables_are_up_to_date():
    assert gpu_model.main(["--check"]) == 0


@pytest.fixture(scope="module")
def tiles():
    return launches_of(make_updater("tiles", PAPER, "tf32"))


def test_operations_are_those_of_an_update(tiles):
    """Kernels' operations come from their launches, `flops` from the sizes."""
    found = sum(cost(launch, "tf32", H100).flop for launch in tiles)
    assert found == pytest.approx(flops(PAPER)["update"], rel=0.01)


def test_a_layer_has_programs_for_the_chip(tiles):
    """Rows by features; launches of a chain wait for each other, though they share a tape."""
    main = [launch for launch in tiles if launch.place[0] == MAIN]
    hidden = [launch for launch in main if launch.name == "hidden_layer_kernel"]
    assert {launch.grid for launch in hidden[:30]} == {(16, 8, 1)}
    steps = [cost(launch, "tf32", H100) for launch in hidden[:3]]
    assert [found.programs for found in steps] == [128, 128, 128]
    # Both fields' weights, and rows of four kinds: what a layer touches, not the tape of all steps.
    assert steps[0].bytes == 2 * 512 * 512 * 4 + 1024 * 512 * (4 + 4 + 4)
    half = [
        launch for launch in launches_of(make_updater("tiles", PAPER, "fp16"))
        if launch.place[0] == MAIN and launch.name in ("hidden_layer_kernel", "prepare_kernel")
    ]  # fmt: skip
    prepared, layer = (cost(launch, "fp16", H100).bytes for launch in half[:2])
    weights = 3 * 512 * 512 + 512 * (64 + 64 + 32)
    assert prepared == 2 * weights * (4 + 2 + 2)
    assert layer == 2 * 512 * 512 * 2 + 1024 * 512 * (2 + 2 + 2)
    chain = [launch for launch in main if launch.name.startswith(("hidden", "rollout"))]
    assert longest(chain[:12], [1.0] * 12) == 12.0
    products = [1.0 * cost(each, "tf32", H100).products for each in tiles]
    assert longest(tiles, products) == 113
    # What one multiprocessor loads bounds it: fewer bytes a clock, more time.
    slow = cost(hidden[0], "tf32", replace(H100, sm_bytes_clk=8.0))
    assert slow.us > 1.5 * steps[0].us


def test_dependent_launches_follow_each_other_sooner(tiles):
    dependent = launches_of(make_updater("tiles-pdl", PAPER, "tf32"))
    assert [launch.name for launch in dependent] == [launch.name for launch in tiles]
    early = [launch for launch in dependent if is_dependent(launch)]
    assert {launch.name for launch in early} == set(TILED)
    assert not any(map(is_dependent, tiles))
    branches = collections.defaultdict(list)
    for launch in dependent:
        branches[launch.place[0]].append(is_dependent(launch))
    pairs = sum(sum(map(all, itertools.pairwise(each))) for each in branches.values())
    times = [sum(each.us for each in costs_of(found, "tf32", H100)) for found in (tiles, dependent)]
    saved = H100.node_us - H100.dependent_us
    assert times[0] - times[1] == pytest.approx(saved * pairs) and pairs > 100


def test_bytes_of_the_optimiser(tiles):
    """Parameters, moments and targets read and written, the gradient read twice."""
    (norm,) = (launch for launch in tiles if launch.name == "gradient_norm_kernel")
    parts = [launch for launch in tiles if launch.name == "adam_step_kernel"]
    count, targets = (
        sum(part.arguments[name].numel() for part in parts) for name in ("online", "targets")
    )
    assert [part.place[0] for part in parts] == ["main", "critic"]
    assert norm.bytes == pytest.approx(4 * count, rel=1e-3)
    moved = sum(part.bytes for part in parts)
    assert moved == pytest.approx(4 * (7 * count + 2 * targets), rel=1e-3)


def test_branches_run_side_by_side():
    """A launch waits for what its branch has waited for; the chip does no more than all of it."""

    def at(branch, us, chip_us=0.0, **done):
        place = (branch, done)
        return Launch("op", [], 0.0, 8, frozenset(), frozenset(), place), Cost(
            "op", 1, 0.0, 8, 0, us, chip_us
        )

    found = [at("main", 1.0), at("critic", 5.0), at("main", 2.0, main=1),
             at("main", 1.0, main=2, critic=1)]  # fmt: skip
    assert along_branches(*zip(*found, strict=True)) == 6.0
    assert along_branches(*zip(*found[:3], strict=True)) == 5.0
    busy = [*found, at("base", 1.0, chip_us=9.0)]
    assert along_branches(*zip(*busy, strict=True)) == 9.0


def test_the_step_of_the_critics_goes_on_beside_the_next_update():
    one, two = (launches_of(make_updater("tiles", PAPER, "tf32"), updates=n) for n in (1, 2))
    assert sorted(2 * [launch.name for launch in one]) == sorted(launch.name for launch in two)
    costs = costs_of(one, "tf32", H100)
    late = max(each.us for each in costs if each.name == "adam_step_kernel")
    expected = along_branches(one, costs) - 0.9 * late
    assert late > 50 and in_a_graph(one, two, "tf32", H100) == pytest.approx(expected, abs=25)


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

    return Launch("op", [], 0.0, 8, spans(reads), spans(writes), MAIN_FIRST)


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
    first = Launch("op", [], 0.0, 4, frozenset(), frozenset([one]), MAIN_FIRST)
    second = Launch("op", [], 0.0, 4, frozenset([other]), frozenset(), MAIN_FIRST)
    third = Launch("op", [], 0.0, 4, frozenset([both]), frozenset(), MAIN_FIRST)
    assert longest([first, second], [1.0, 1.0]) == 1.0
    assert longest([first, third], [1.0, 1.0]) == 2.0


def test_measured_limits_take_the_place_of_assumed_ones(tmp_path):
    path = tmp_path / "micro.json"
    path.write_text(json.dumps({"node_us": 2.5, "node_pdl_us": 1.5, "l2_sm_bytes_clk": 48.0}))
    (machine,) = gpu_model.with_measured(path).values()
    assert machine == replace(H100, node_us=2.5, dependent_us=1.5, sm_bytes_clk=48.0)
    path.write_text("{}")
    with pytest.raises(UsageError, match="has none of multiprocessors"):
        gpu_model.with_measured(path)


def test_an_unknown_kernel_is_refused(tiles):
    rollout = next(launch for launch in tiles if launch.name == "rollout_step_kernel")
    with pytest.raises(ValueError, match="other_kernel"):
        cost(replace(rollout, name="other_kernel"), "tf32", H100)
