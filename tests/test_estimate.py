"""How long a run takes, said before it begins; rows that fit a terminal."""

from tests.runs import run
from trqam_fast.training import estimate
from trqam_fast.training.estimate import updates_left
from trqam_fast.training.presets import make_config


def test_updates_that_are_left():
    config = make_config(
        preset="smoke", bc_steps=100, offline_steps=200, online_steps=50, start_training=20,
        utd_ratio=2,
    )  # fmt: skip
    assert updates_left(config) == {"bc": 100, "trqam": 260}
    assert updates_left(config, 150) == {"bc": 0, "trqam": 210}
    assert updates_left(config, 310) == {"bc": 0, "trqam": 60}
    assert updates_left(config, 340) == {"bc": 0, "trqam": 20}
    assert updates_left(make_config(algo="bc", preset="smoke", bc_steps=7)) == {"bc": 7}


def test_an_estimate_of_the_whole_run_in_words(monkeypatch):
    seconds = {"bc": 0.1, "trqam": 0.5}
    monkeypatch.setattr(estimate, "seconds_per_update", lambda agent, source: seconds[agent])
    config = make_config("cube-double-play-singletask-task1-v0")
    assert estimate.estimate(config, 0, str, None) == (
        "updates: about 6.1 d on this machine (300k of bc at 10/s, 1M of trqam at 2/s)"
    )
    seconds["bc"] = 0.0007
    assert "(300k of bc at 1429/s," in estimate.estimate(config, 0, str, None)


def test_rows_of_a_run_fit_eighty_columns(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "LEAST_UPDATES", 10)
    assert run(flags, tmp_path / "run", "--seeds", "0", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith(("pretrain ", "offline ", "step ", "upd"))]
    assert len(shown) > 8 and max(map(len, shown)) <= 80
    assert any(line.startswith("updates: about ") for line in shown)
    assert not any("bc_loss" in line for line in shown if line.startswith("offline"))
