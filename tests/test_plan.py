"""How an update is computed on a GPU: what is timed, taken, remembered and kept."""

import contextlib
import dataclasses
import errno
import json

import pytest
import torch

from tests.helpers import draw
from tests.kill_run import compare_runs
from tests.runs import run
from trqam_fast import train
from trqam_fast.damage import Damaged, Unreadable
from trqam_fast.data.dataset import Dataset
from trqam_fast.errors import RunError, UsageError
from trqam_fast.kernels import BackendError
from trqam_fast.report.find import find
from trqam_fast.training import backend, plan, updater
from trqam_fast.training.backend import check_asked
from trqam_fast.training.flags import parse_config
from trqam_fast.training.loop import Trainer
from trqam_fast.training.plan import Choice, kept_choice, read_choice, settle_plan, write_choice
from trqam_fast.training.presets import make_config
from trqam_fast.training.updater import UPDATES_PER_REPLAY, WARMUP, Updater

GPU = "Imagined GPU"
TIMES = {"tiles": 3.0, "tiles-pdl": 3.2, "layers": 2.0}


DEEP = "[" * 100_000
"""JSON that no parser follows to its end."""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretend that there is a GPU whose kernels have these problems; a cache folder of its own."""
    problems = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    monkeypatch.setattr(backend, "triton_problems", lambda *_: problems)
    before = torch.get_float32_matmul_precision()
    yield problems
    torch.set_float32_matmul_precision(before)


def make_dataset(rows=60):
    arrays = {
        "observations": draw(rows, 3, seed=1), "actions": draw(rows, 2, seed=2).clamp(-1, 1),
        "rewards": -draw(rows, seed=3).abs(), "masks": torch.ones(rows),
        "terminals": torch.zeros(rows), "next_observations": draw(rows, 3, seed=4),
    }  # fmt: skip
    return Dataset.from_arrays({name: tensor.float() for name, tensor in arrays.items()})


def settle(times, *flags, kept=None):
    """The settled configuration, the choice, and the plans that were timed."""
    timed = []

    def timer(settled, dataset):
        timed.append((settled.plan, settled.backend, settled.precision))
        if isinstance(times[settled.plan], Exception):
            raise times[settled.plan]
        return times[settled.plan]

    config = parse_config(["--device", "cuda", *flags])
    check_asked(config)
    return *settle_plan(config, make_dataset(), kept, timer), timed


@pytest.mark.parametrize(
    ("times", "fastest", "computed_by"),
    [
        (TIMES, "layers", "reference"),
        (TIMES | {"tiles": 1.5}, "tiles", "triton"),
        (TIMES | {"tiles-pdl": 0.9}, "tiles-pdl", "triton_pdl"),
    ],
)
def test_the_fastest_plan_wins(times, fastest, computed_by, gpu):
    config, choice, timed = settle(times)
    backends = {"tiles": "triton", "tiles-pdl": "triton_pdl", "layers": "reference"}
    assert timed == [(name, each, "tf32") for name, each in backends.items()]
    assert choice == Choice(fastest, "tf32", "measured", times)
    assert (config.plan, config.backend, config.precision) == (fastest, computed_by, "tf32")
    in_tf32 = torch.get_float32_matmul_precision() == "high"
    assert in_tf32 == (fastest == "layers")
    shown = choice.in_words()
    assert shown.startswith(f"plan: {fastest}, tf32 (tiles {times['tiles']:.3f} ms, ")


def test_times_are_remembered_for_equal_cases(gpu, monkeypatch):
    settle(TIMES)
    _, choice, timed = settle({})
    assert timed == [] and choice == Choice("layers", "tf32", "remembered", TIMES)
    assert "by an earlier run" in choice.in_words()
    faster = TIMES | {"tiles": 1.0}
    for flags in (["--seeds", "0", "1"], ["--batch-size", "32"], ["--precision", "ieee"]):
        assert settle(faster, *flags)[1].plan == "tiles", flags
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert settle(faster)[1].how == "measured"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    assert settle({})[1].plan == "layers", "the others took nothing from it"
    monkeypatch.setattr(plan, "code_digest", lambda: "changed")
    assert settle(faster)[1].how == "measured"


def test_times_are_of_the_code_of_an_algorithm_of_ones_own(monkeypatch, tmp_path):
    assert plan.own_digest("trqam") is None
    digests = []
    for source in ("first", "second"):
        (tmp_path / "own.py").write_text(source)
        monkeypatch.setattr(plan.inspect, "getsourcefile", lambda _: str(tmp_path / "own.py"))
        digests.append(plan.own_digest("examples.annealed_qam:AnnealedQAM"))
    assert None not in digests and len(set(digests)) == 2
    # A class of a notebook is in no file: its times are never remembered.
    monkeypatch.setattr(plan.inspect, "getsourcefile", lambda _: None)
    nowhere = {plan.own_digest("examples.annealed_qam:AnnealedQAM") for _ in range(2)}
    assert len(nowhere) == 2 and None not in nowhere


def test_times_are_of_the_code_of_an_update(tmp_path):
    kept = [tmp_path / name for name in plan.TIMED]
    kept = [path if path.suffix else path / "deep" / "one.py" for path in kept]
    for path in (*kept, tmp_path / "report" / "one.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("first")
    digests = [plan.code_digest(tmp_path)]
    for path in kept:
        path.write_text("second")
        digests.append(plan.code_digest(tmp_path))
    assert len(set(digests)) == len(digests)
    (tmp_path / "report" / "one.py").write_text("second")
    assert plan.code_digest(tmp_path) == digests[-1] != plan.code_digest()


@pytest.mark.parametrize("damage", ["{", "[1]", '{"a": 1}', '{"a": {"tiles": "x"}}', DEEP])
def test_a_damaged_cache_is_measured_anew(damage, gpu):
    settle(TIMES)
    plan.cache_path().write_text(damage)
    assert settle(TIMES)[1].how == "measured"
    assert settle({})[1].how == "remembered"


def test_a_cache_that_cannot_be_read_is_left_alone(gpu, refused):
    settle(TIMES)
    plan.write_cache(plan.read_cache() | {"another case": TIMES})
    before = plan.cache_path().read_bytes()
    with refused(plan.cache_path(), errno.EIO):
        assert settle(TIMES)[1].how == "measured"
    assert plan.cache_path().read_bytes() == before


def test_a_cache_that_cannot_be_written_is_done_without(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert settle(TIMES)[1].how == "measured"


def test_a_plan_with_problems_is_not_timed(gpu, capsys):
    gpu.append("mlp is off")
    config, choice, timed = settle({})
    assert timed == [] and choice == Choice("layers", "tf32", "alone", {})
    assert config.backend == "reference" and torch.get_float32_matmul_precision() == "high"
    warned = capsys.readouterr().err
    for name in ("tiles", "tiles-pdl"):
        assert warned.count(f"plan {name} cannot be used on cuda: mlp is off") == 1
    with pytest.raises(BackendError, match="--plan tiles cannot be used: mlp is off; take another"):
        settle({}, "--plan", "tiles")
    with pytest.raises(BackendError, match="--precision bf16 needs the Triton kernels: mlp is off"):
        settle({}, "--precision", "bf16")


def test_a_plan_that_fails_while_it_is_timed_is_left_out(gpu, capsys):
    times = TIMES | {"tiles": RuntimeError("out of memory\nmore")}
    _, choice, _ = settle(times)
    left = {name: ms for name, ms in times.items() if name != "tiles"}
    assert choice == Choice("layers", "tf32", "measured", left)
    assert capsys.readouterr().err == "warning: plan tiles is left out: out of memory\n"
    times = TIMES | {"tiles": 1.0}
    assert settle(times)[1].plan == "tiles", "a failure is not remembered"
    broken = dict.fromkeys(TIMES, RunError("")) | {"layers": RunError("lost too")}
    with pytest.raises(RunError, match="an update runs with no plan on cuda: lost too"):
        settle(broken, "--batch-size", "32")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--plan", "layers", "--precision", "ieee"], Choice("layers", "ieee", "asked", {})),
        (["--plan", "tiles"], Choice("tiles", "tf32", "asked", {})),
        (["--plan", "tiles-pdl"], Choice("tiles-pdl", "tf32", "asked", {})),
        (["--backend", "triton"], None),
        (["--backend", "reference"], None),
    ],
)
def test_what_is_asked_for_is_not_timed(flags, expected, gpu):
    _, choice, timed = settle({}, *flags)
    assert timed == [] and choice == expected


def test_dependent_launches_are_offered_where_the_gpu_has_them(gpu, monkeypatch, capsys):
    times = TIMES | {"tiles": 1.0, "tiles-pdl": 0.9}
    assert settle(times)[1].plan == "tiles-pdl"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    _, choice, timed = settle(times)
    assert [name for name, *_ in timed] == ["tiles", "layers"], "a case of its own"
    assert choice.plan == "tiles" and capsys.readouterr().err == "", "nothing is missing"
    for flags, kept in (["--plan", "tiles-pdl"], None), ([], choice._replace(plan="tiles-pdl")):
        with pytest.raises(BackendError, match=r"launches need a GPU of compute capability 9\.0"):
            settle({}, *flags, kept=kept)


@pytest.mark.parametrize(
    ("flags", "kind", "match"),
    [
        (["--device", "cpu", "--plan", "tiles"], UsageError, "is of a GPU, and --device is cpu"),
        (["--plan", "tiles", "--backend", "triton"], UsageError, "exclude each other"),
        (["--plan", "layers", "--precision", "fp16"], BackendError, "has no precision 'fp16'"),
    ],
)
def test_flags_that_contradict_a_plan(flags, kind, match, gpu):
    with pytest.raises(kind, match=match):
        settle({}, *flags)


def test_a_run_keeps_its_plan(gpu, tmp_path):
    path, kept = tmp_path / "update_plan.json", Choice("tiles", "bf16", "measured", {"tiles": 1.0})
    write_choice(path, kept)
    assert read_choice(path) == kept
    config, choice, timed = settle({}, kept=kept)
    assert timed == [] and choice == kept
    assert (config.plan, config.precision) == ("tiles", "bf16")
    assert settle({}, "--plan", "layers", kept=kept)[1].plan == "layers"
    dependent = kept._replace(plan="tiles-pdl")
    assert settle({}, kept=dependent)[:2] == (
        dataclasses.replace(config, plan="tiles-pdl", backend="triton_pdl"), dependent,
    )  # fmt: skip
    gpu.append("mlp is off")
    with pytest.raises(BackendError, match="--plan tiles cannot be used: mlp is off"):
        settle({}, kept=kept)
    assert read_choice(tmp_path / "none") is None
    write_choice(path, kept._replace(plan="of another version"))
    assert read_choice(path) is None


def test_a_plan_that_cannot_be_kept_is_not_measured_anew(gpu, tmp_path, refused):
    """Another one would give other bits; neither is it where flags or the device need none."""
    path, kept = tmp_path / "update_plan.json", Choice("tiles", "bf16", "measured", {"tiles": 1.0})
    ours, asked, cpu = (
        make_config(**{"device": "cuda", **more})
        for more in ({}, {"plan": "tiles"}, {"device": "cpu"})
    )
    for odd in ({"plan": ["tiles"]}, {"precision": "bf8"}, {"times_ms": 3}):
        write_choice(path, kept)
        assert kept_choice(path, ours) == kept
        path.write_text(json.dumps(kept._asdict() | odd))
        with pytest.raises(Damaged, match=f"{path} is damaged .*; name the run's plan with --plan"):
            kept_choice(path, ours)
    for damage in ("{", '{"plan": "other"}', "[]", DEEP):
        path.write_text(damage)
        with pytest.raises(Damaged, match="is damaged"):
            kept_choice(path, ours)
    with refused(path, errno.EACCES), pytest.raises(Unreadable, match="cannot be read"):
        kept_choice(path, ours)
    assert kept_choice(path, asked) is None and kept_choice(path, cpu) is None


class FakeGraph:
    """Stands in for a captured graph: a replay runs what was captured."""

    count = 0

    def __init__(self):
        self.captured = []
        FakeGraph.count += 1

    def pool(self):
        return self

    def replay(self):
        for function in self.captured:
            function()


@pytest.fixture
def graphs_on_the_cpu(monkeypatch):
    """Both plans on the CPU, in graphs whose replays run what was captured."""

    @contextlib.contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        real = Updater.update
        with monkeypatch.context() as patch:
            patch.setattr(
                Updater, "update",
                lambda self, count=1: graph.captured.append(lambda: real(self, count)),
            )  # fmt: skip
            yield

    FakeGraph.count = 0
    init = Updater.__init__

    def with_graph(self, *arguments, graph, streams):
        init(self, *arguments, graph=graph, streams=streams)
        self.graph = graph

    monkeypatch.setattr(updater.torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(updater.torch.cuda, "graph", capture)
    monkeypatch.setattr(updater.torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(updater.torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(updater.torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Updater, "warm_up", lambda self: self.update())
    monkeypatch.setattr(Updater, "__init__", with_graph)
    monkeypatch.setattr(backend, "PLANS", {"tiles": "cpp", "layers": "reference"})
    for module in (backend, plan):
        monkeypatch.setattr(module, "takes_plan", lambda config: config.backend == "auto")
    monkeypatch.setattr(backend, "find_problem", lambda *_: None)


def test_a_plan_is_timed_in_graphs(gpu, graphs_on_the_cpu):
    config = parse_config(
        ["--preset", "smoke", "--batch-size", "8", "--backend", "cpp", "--precision", "ieee"]
    )
    updates, real = [], Updater.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "ROUNDS", 2)
        patch.setattr(
            Updater, "update",
            lambda self, count=1: updates.append(count) or real(self, count),
        )  # fmt: skip
        assert plan.measure(config, make_dataset()) > 0
    assert FakeGraph.count == 1
    assert sum(updates) == WARMUP + UPDATES_PER_REPLAY + 2 * plan.UPDATES


def test_a_run_stores_its_plan_and_continues_with_it(
    flags, tmp_path, gpu, graphs_on_the_cpu, monkeypatch, capsys
):
    """The other plan, the fastest by the time it goes on, would give other bits."""
    flags = [*flags, "--precision", "ieee", "--algo", "bc", "--eval-interval", "0"]
    times = {"tiles": 2.0, "layers": 1.0}
    monkeypatch.setattr(plan, "measure", lambda settled, dataset: times[settled.plan])
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(flags, whole) == 0
    assert "plan: layers, ieee (tiles 2.000 ms, layers 1.000 ms an update)" in (
        capsys.readouterr().out
    )
    stored = json.loads((whole / "update_plan.json").read_text())
    assert stored == {
        "plan": "layers", "precision": "ieee", "how": "measured", "times_ms": times,
    }  # fmt: skip
    assert find(whole).runs == [whole]  # and no sweep, whose plan is another
    assert json.loads((whole / "config.json").read_text())["plan"] == "auto"
    assert json.loads((whole / "summary.json").read_text())["backend"] == "reference"

    class Killed(Exception):
        pass

    check = Trainer.check_finite

    def interrupt(self, stage):
        check(self, stage)
        if stage.step >= 13:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "check_finite", interrupt)
        with pytest.raises(Killed):
            train.main([*flags, "--run-dir", str(halves)])
    plan.cache_path().unlink()
    times["layers"] = 9.0
    assert run(flags, halves, "--resume") == 0
    assert read_choice(halves / "update_plan.json").plan == "layers"
    assert compare_runs(whole, halves) == []
