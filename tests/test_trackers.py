import math
import os
import sys
import types

import pytest
import torch

from trqam_fast.errors import Stopped, UsageError
from trqam_fast.training import trackers as module
from trqam_fast.training.trackers import Trackers

CONFIG = {"env_name": "task", "algo": "qam", "seeds": (0, 1), "lr": 3e-4}
METRICS = {"stage": "pretrain", "step": 250, "seed": 0, "bc_loss": "0.5", "lam": "", "note": "x"}
EVAL = {"stage": "offline", "step": "250", "seed": 1, "success": 0.25, "return": "-10"}


class FakeRun:
    def __init__(self, options):
        self.options, self.rows, self.finished, self.defined = options, [], False, []

    def define_metric(self, *names, **options):
        self.defined.append((names, options))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A stand-in for the package, and nobody logged in."""
    fake = types.ModuleType("wandb")
    fake.runs = []
    server = {"base_url": "https://api.wandb.example", "finish_timeout": 0}
    fake.Settings = lambda **options: types.SimpleNamespace(**server, **options)

    def init(**options):
        fake.runs.append(FakeRun(options))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "WANDB_PROJECT",
        "WANDB_RUN_GROUP",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    return fake


def start(folder, *, tensorboard=False, wandb=True):
    return Trackers(folder, CONFIG, tensorboard=tensorboard, wandb=wandb)


def test_nothing_asked_for_does_nothing(tmp_path, wandb):
    trackers = start(tmp_path, wandb=False)
    trackers.log("metrics", METRICS)
    trackers.close()
    assert list(tmp_path.iterdir()) == [] and wandb.runs == []


def test_rows_become_tags(tmp_path, wandb, capsys):
    trackers = start(tmp_path)
    trackers.log("metrics", METRICS)
    trackers.log("eval", EVAL)
    trackers.close()
    first, second = wandb.runs
    assert first.rows == [{"pretrain/bc_loss": 0.5, "step": 250}]
    assert second.rows == [
        {"offline/eval_success": 0.25, "offline/eval_return": -10.0, "step": 250}
    ]
    for seed, run in enumerate(wandb.runs):
        assert run.defined == [(("*",), {"step_metric": "step"})]
        assert run.finished and run.options["resume"] == "allow"
        assert run.options["config"] == CONFIG | {"seed": seed}
        assert run.options["name"] == f"qam task seed {seed}"
    assert first.options["group"] == second.options["group"] == first.options["id"]
    assert first.options["id"] != second.options["id"]
    assert "wandb sync" in capsys.readouterr().out


def test_means_over_seeds(tmp_path, wandb):
    """Of metrics and evaluations, once the next step or the end comes; not logged twice."""
    for repeat in range(2):
        trackers = start(tmp_path)
        for step in (250, 500):
            for seed, loss in ((0, "0.5"), (1, "1.5")):
                trackers.log("metrics", METRICS | {"step": step, "seed": seed, "bc_loss": loss})
        trackers.log("eval", EVAL)
        trackers.close()
        means = [row for row in wandb.runs[2 * repeat].rows if "mean/pretrain/bc_loss" in row]
        expected = [{"mean/pretrain/bc_loss": 1.0, "step": step} for step in (250, 500)]
        assert means == ([] if repeat else expected)
        assert not any("mean/offline/eval_success" in row for row in wandb.runs[0].rows)


def test_project_group_name_and_tags(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "from_outside")
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
    start(tmp_path / "a")
    assert (wandb.runs[-1].options["project"], wandb.runs[-1].options["group"]) == (
        "from_outside", "sweep",
    )  # fmt: skip
    asked = {"project": "p", "group": "g", "name": "n", "tags": ("t",)}
    config = CONFIG | {f"wandb_{key}": value for key, value in asked.items()}
    Trackers(tmp_path / "b", config, tensorboard=False, wandb=True)
    options = wandb.runs[-1].options
    assert {key: options[key] for key in asked} == {
        "project": "p", "group": "g", "name": "n seed 1", "tags": ["qam", "task", "t"],
    }  # fmt: skip


def test_offline_unless_logged_in(tmp_path, wandb, monkeypatch):
    start(tmp_path / "a")
    assert wandb.runs[-1].options["mode"] == "offline"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine other.org login me password secret\n")
    start(tmp_path / "b")
    assert wandb.runs[-1].options["mode"] == "offline"
    netrc = tmp_path / "home" / ".netrc"
    netrc.chmod(0o600)
    for host in ("api.wandb.example", "api.wandb.ai"):
        netrc.write_text(f"machine {host} login user password secret\n")
        start(tmp_path / host)
        assert wandb.runs[-1].options["mode"] == "online"
    assert wandb.runs[-1].options["settings"].finish_timeout > 0
    netrc.write_text("not a netrc file")
    start(tmp_path / "d")
    assert wandb.runs[-1].options["mode"] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    start(tmp_path / "e")
    assert wandb.runs[-1].options["mode"] == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    start(tmp_path / "f")
    assert wandb.runs[-1].options["mode"] == "disabled"


def test_a_resumed_run_keeps_its_id_and_logs_no_row_twice(tmp_path, wandb):
    first = start(tmp_path)
    first.log("metrics", METRICS)
    first.log("metrics", METRICS | {"step": 500})
    second = start(tmp_path)
    for step in (500, 750):
        for seed in (0, 1):
            second.log("metrics", METRICS | {"step": str(step), "seed": str(seed)})
    second.log("eval", METRICS | {"step": 500})
    zero, one = ([sorted(row)[0] for row in run.rows] for run in wandb.runs[2:])
    assert zero == ["mean/pretrain/bc_loss", "pretrain/bc_loss", "pretrain/eval_bc_loss"]
    assert one == ["pretrain/bc_loss", "mean/pretrain/bc_loss", "pretrain/bc_loss"]
    ids = [run.options["id"] for run in wandb.runs]
    assert ids[:2] == ids[2:]
    start(tmp_path / "other")
    assert wandb.runs[-1].options["id"] not in ids


@pytest.mark.parametrize("content", ["", "abc", "\x1b[2J\nwrote /etc/x"])
def test_an_id_that_is_none_is_replaced(content, tmp_path, wandb):
    """What a full disk left of it, say."""
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "wandb_id").write_text(content)
    start(tmp_path)
    start(tmp_path)
    first, other, second, _ = (run.options["id"] for run in wandb.runs)
    assert first == second and len(first) == 12 and other == f"{first}-1"


def test_odd_files_cost_no_run(tmp_path, wandb, capsys):
    """A pipe is not waited for, and an error reaches no terminal raw."""
    (tmp_path / "trackers").mkdir()
    for name in ("logged.csv", "wandb_id"):
        os.mkfifo(tmp_path / "trackers" / name)
    start(tmp_path, wandb=True).log("metrics", METRICS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: --wandb failed (no regular file); the run goes on without it"
    (tmp_path / "trackers" / "wandb_id").unlink()
    trackers = start(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the journal of trackers failed (no regular file)")
    trackers.log("metrics", METRICS)
    assert len(wandb.runs[-2].rows) == 1

    def fail(_):
        raise ConnectionError("\x1b[2Jno route")

    wandb.runs[-2].log = fail
    trackers.log("metrics", METRICS | {"step": 500})
    assert r"--wandb failed (\x1b[2Jno route); the run" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_tracker_is_reported_once(where, tmp_path, wandb, monkeypatch, capsys):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    if where == "init":
        wandb.init = fail
    else:
        monkeypatch.setattr(FakeRun, where, fail)
    state = torch.get_rng_state()
    trackers = start(tmp_path)
    for step in range(3):
        trackers.log("metrics", METRICS | {"step": step})
    trackers.close()
    trackers.close()
    assert torch.equal(state, torch.get_rng_state())
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: --wandb failed (no route); the run goes on without it"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped("stopped")], ids=repr)
def test_a_stop_is_no_failure(stop, tmp_path, wandb, monkeypatch):
    def interrupt(*_):
        raise stop

    monkeypatch.setattr(FakeRun, "log", interrupt)
    trackers = start(tmp_path)
    with pytest.raises(type(stop)):
        trackers.log("metrics", METRICS)
    assert list(trackers.trackers) == ["wandb"]


def test_one_failing_tracker_leaves_the_other(tmp_path, wandb, monkeypatch):
    class Other:
        def __init__(self, folder, config):
            self.rows = []
            folder.mkdir(parents=True)

        def log(self, values, step):
            self.rows.append((values, step))

    monkeypatch.setattr(module, "TensorBoardTracker", Other)
    monkeypatch.setattr(module, "check_packages", lambda *_: None)
    monkeypatch.setattr(FakeRun, "log", lambda *_: 1 / 0)
    trackers = start(tmp_path, tensorboard=True)
    for step in (1, 2):
        trackers.log("metrics", METRICS | {"step": step})
    assert [step for _, step in trackers.trackers["tensorboard"].rows] == [1, 2]
    assert list(trackers.trackers) == ["tensorboard"]


def test_a_tracker_gets_what_it_missed(tmp_path, wandb, monkeypatch):
    """Rows that one tracker has and another has not, as it failed or was not asked for."""
    rows = []

    class Other:
        def __init__(self, folder, config):
            folder.mkdir(parents=True, exist_ok=True)

        def log(self, values, step):
            rows.append(step)

    monkeypatch.setattr(module, "TensorBoardTracker", Other)
    monkeypatch.setattr(module, "check_packages", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(FakeRun, "log", lambda *_: 1 / 0)
        first = start(tmp_path, tensorboard=True)
        for step in (1, 2):
            first.log("metrics", METRICS | {"step": step})
    second = start(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        second.log("metrics", METRICS | {"step": step})
    assert rows == [1, 2, 3]
    assert [row["step"] for row in wandb.runs[-2].rows] == [1, 2, 3]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(name, tmp_path, monkeypatch):
    missing = "torch.utils.tensorboard" if name == "tensorboard" else "wandb"
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"--{name}.*trqam_fast\[{name}\]") as error:
        start(tmp_path, tensorboard=name == "tensorboard", wandb=name == "wandb")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_real_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((250, 500), (500, 750)):
        trackers = start(tmp_path, tensorboard=True, wandb=False)
        for step in steps:
            trackers.log("metrics", METRICS | {"step": step, "bc_loss": f"{step / 1000}"})
        trackers.log("eval", EVAL | {"success": math.nan, "step": steps[0]})
        trackers.close()
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("pretrain/bc_loss/seed0")] == [
        (250, 0.25),
        (500, 0.5),
        (750, 0.75),
    ]
    assert [e.step for e in events.Scalars("offline/eval_success/seed1")] == [250, 500]


def test_real_wandb_offline(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for step in (250, 500):
        trackers = start(tmp_path)
        trackers.log("metrics", METRICS | {"step": step})
        trackers.close()
    run_id = (tmp_path / "trackers" / "wandb_id").read_text().strip()
    files = list((tmp_path / "trackers" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert files
    assert "warning" not in capfd.readouterr().err
