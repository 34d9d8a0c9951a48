"""What turns measurements into files, tables and drawings."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import algorithms, compare_reference, graphs, phases, plot, scaling, table, test_ops
from benchmarks.reference import Reference
from benchmarks.sizes import PAPER_SMALL, make_network
from benchmarks.work import flops
from trqam_fast.agents import ALGORITHMS, algorithm
from trqam_fast.errors import RunError, UsageError
from trqam_fast.kernels import mlp
from trqam_fast.kernels.dispatch import OPS

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc")


def test_readme_is_up_to_date():
    assert table.main(["--check"]) == 0


def test_drawings(tmp_path):
    assert plot.main(["--to", str(tmp_path)]) == 0
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    assert drawn == {"comparison", "ops", "roofline", "phases", "scaling"}
    assert drawn == {path.stem for path in (ROOT / "docs" / "plots").glob("*.svg")}
    with pytest.raises(UsageError, match="holds no result"):
        plot.main(["--results", str(tmp_path)])


def test_results_name_their_origin():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        record = json.loads(path.read_text())
        missing = {"what", "machine", "commit"} - record.keys()
        assert not missing, (path.name, missing)


@pytest.mark.parametrize("critic", [False, True])
def test_operations_are_counted_as_pytorch_counts_them(critic):
    network = make_network(PAPER_SMALL, "cpu", critic=critic)
    width = network.in_features
    x = torch.randn(1, PAPER_SMALL.batch, width)
    name = "critics" if critic else "field"
    with FlopCounterMode(display=False) as counter:
        out = mlp(network, x, backend="reference")
    assert counter.get_total_flops() == flops(PAPER_SMALL)[name]
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(out.sum(), network.tensors)
    assert counter.get_total_flops() == flops(PAPER_SMALL)[f"{name} backward"]


def test_every_phase_is_found_under_its_own_name(monkeypatch):
    """By what the call gets: ten target critics keep no tape, and a field is a single network."""
    label, seen = phases.label, []

    def noted(name, fields, *rest):
        seen.append((label(name, fields, *rest), fields))
        return seen[-1][0]

    monkeypatch.setattr(phases, "label", noted)
    result = phases.profile(PAPER_SMALL, "ieee", 2)
    passes = [(phase, fields.network[1], fields.tape is None) for phase, fields in seen
              if type(fields).__name__ == "MLPForward"]  # fmt: skip
    members = PAPER_SMALL.ensemble
    assert set(passes) == {
        ("critics", members, False), ("target critics", members, True), ("cloned field", 1, False),
    }  # fmt: skip
    assert set(phases.WORK) <= set(result["phases"])
    assert sum(phase["share"] for phase in result["phases"].values()) == pytest.approx(1, abs=0.01)


def test_every_op_is_timed():
    """The networks' passes are, as critics and fields, in benchmarks/test_networks.py."""
    timed = {"mlp", "action_gradient", *test_ops.SMALL_OPS}
    assert [op for op in OPS if op not in timed and not hasattr(test_ops, f"test_{op}")] == []


def test_every_fine_tuning_algorithm_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "SIZES", {"small": replace(PAPER_SMALL, width=8, batch=4)})
    path = tmp_path / "times.json"
    assert algorithms.main(["--turns", "2", "--json", str(path)]) == 0
    found = json.loads(path.read_text())["cases"]["small"]
    assert set(found) == {name for name in ALGORITHMS if algorithm(name).fine_tunes}
    assert found["trqam"]["ratio"] == 1.0
    assert all(times["median_ms"] > 0 for times in found.values())


def test_exponent_is_that_of_a_power():
    values = [1, 2, 4, 8, 16]
    assert scaling.exponent(values, [3 * v**1.5 for v in values]) == pytest.approx(1.5)


def test_comparison_names_what_is_wrong(tmp_path):
    with pytest.raises(UsageError, match=r"has no agents/trqam.py; give a checkout"):
        compare_reference.main(["--reference", str(tmp_path)])
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "trqam.py").write_text("")
    done = subprocess.run(
        [sys.executable, "benchmarks/compare_reference.py", "--reference", str(tmp_path),
         "--threads", "100000"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "--threads is 100000; this process may use" in done.stderr


FAKE = """
import os, types
import distrax
import present
from tensorflow_probability.substrates import jax as tfp
assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
class Tanh(distrax.Transformed): pass
class Squashed(tfp.distributions.TransformedDistribution): pass
class Agent:
    network = types.SimpleNamespace(params=0)
    @staticmethod
    def create(*args): return Agent()
    def update(self, batch):
        assert batch["next_observations"].shape == (64, 5, 28)
        return self, {}
TRQAMAgent = Agent
def get_config(): return types.SimpleNamespace()
"""


def test_comparison_with_a_reference_that_does_nothing(tmp_path, monkeypatch):
    """The protocol with the worker, with stand-ins for JAX and the authors' agent."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    (tmp_path / "agents" / "trqam.py").write_text(FAKE)
    (tmp_path / "jax.py").write_text(
        "import types\n__version__ = '0'\n"
        "def devices(): return [types.SimpleNamespace(platform='cpu', device_kind='none')]\n"
        "def device_put(x): return x\ndef block_until_ready(x): return x\n"
    )
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "present.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    reference = Reference(tmp_path, Path(sys.executable), "cpu")
    try:
        assert reference.ask(do="describe")["jax"] == "0"
        case = compare_reference.Case("small", PAPER_SMALL, "ieee", 2)
        results = compare_reference.compare_all([case], reference, "cpu", 2)
        every = reference.ask(do="time", name="small", updates=6, every=3)["seconds"]
        assert len(every) == 2
        assert reference.ask(do="profile", name="small").keys() == {"problem"}
        with pytest.raises(RunError, match="the reference stopped"):
            reference.ask(do="time", name="nothing", updates=1, every=1)
    finally:
        reference.close()
    (result,) = results.values()
    assert result["updates"] == 4 and len(result["ratio_of_each_turn"]) == 2
    assert 0 < result["ratio"] < 1


@pytest.mark.skipif(NVCC is None, reason="needs nvcc, from the CUDA toolkit")
def test_the_limits_of_a_gpu_compile(tmp_path):
    command = [NVCC, "-std=c++17", "-cubin", "-gencode=arch=compute_90a,code=sm_90a"]
    command += ["-Werror=all-warnings", "--resource-usage", "-o", tmp_path / "out.cubin"]
    source = ROOT / "benchmarks" / "gpu_micro.cu"
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = [line for line in done.stderr.splitlines() if "spill" in line]
    assert spills and all("0 bytes spill stores, 0 bytes spill loads" in x for x in spills)


def test_seconds_by_events(monkeypatch):
    """Replays of ten updates, each a millisecond longer than the one before."""
    clock, replays = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def elapsed_time(self, later):
            return later.at - self.at

    class Graph:
        def replay(self):
            replays.append(len(replays))
            clock[0] += len(replays)

    monkeypatch.setattr(graphs.torch.cuda, "Event", Event)
    monkeypatch.setattr(graphs.torch.cuda, "synchronize", lambda: None)
    assert graphs.event_seconds(Graph(), 10, 3) == pytest.approx([2e-4, 3e-4, 4e-4])
    assert len(replays) == 4
