"""`python -m trqam_fast.status`: its table, states, columns, and how it watches.

Longer than 400 lines, as all of it reads the same small folders of runs and sweeps.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.runs.folder import KEYS, RunFolder
from trqam_fast.runs.progress import TAIL, newest_rows, read_progress, stage_ends
from trqam_fast.status import __main__ as command
from trqam_fast.status.lines import read_lines
from trqam_fast.status.table import COLUMNS, cut, ranges, render
from trqam_fast.sweep.plan import Job, write_plan
from trqam_fast.text import duration, exact_duration
from trqam_fast.training.presets import make_config

TASK = "cube-single-play-singletask-task1-v0"
HEADS = {
    "metrics": "stage,step,seed,bc_loss,path_kl,lam",
    "timing": "stage,step,updates_per_second,seconds",
    "eval": "step,success,stage,seed,episodes",
}
CONFIG = {"env_name": TASK, "seeds": [0, 1], "bc_steps": 0, "offline_steps": 1000}
STATE = {"reason": "", "host": "node7", "pid": 1, "attempt": 1, "started": 0.0, "ended": None}


def make_job(algo, seeds=(0, 1), method=None, after=None, steps=1000):
    flags = {"bc_steps": steps}
    if algo != "bc":
        flags = {"offline_steps": steps, "online_steps": 0, "pretrained": Path("x")}
    config = make_config(TASK, algo, "smoke", **flags).to_dict()
    tail = "_".join(map(str, seeds))
    name = f"{TASK}/{(method or algo).lower().replace(' ', '_')}/seeds_{tail}"
    return Job(name, TASK, algo, method, tuple(seeds), after, config)


def make_run(folder, *, logs=None, summary=None, **config):
    """A run folder; logs are rows by the stem of their file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"algo": "trqam"} | config))
    for name, rows in (logs or {}).items():
        (folder / f"{name}.csv").write_text("\n".join([HEADS[name], *rows]) + "\n")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def set_state(out, job, state, *, age=0.0, **values):
    path = out / "jobs" / f"{job.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(STATE | {"state": state} | values))
    os.utime(path, (time.time() - age,) * 2)


def table(out, width=None, height=None):
    """Cells by column of each line, and the text."""
    lines, runs = read_lines(out)
    text = render(lines, runs, width, height)
    head, *rows = text.split("\n")[: len(lines) + 1]
    names = re.split("  +", head.strip())
    return [dict(zip(names, re.split("  +", row.strip()), strict=True)) for row in rows], text


def status(*argv):
    return run_command(lambda: command.main([str(word) for word in argv]))


HALFWAY = {
    "metrics": ["offline,100,0,1,0.9,0.1", "offline,100,1,1,1.1,0.3"],
    "timing": ["offline,50,8,5", "offline,100,12.5,10"],
    "eval": ["0,0.1,pretrain,0,50", "0,0.3,pretrain,1,50", "100,0.4,offline,0,50",
             "100,1,offline,1,50"],
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    """A job in every state."""
    bc = make_job("bc", method="BC", steps=100)
    other = make_job("bc", (2, 3), steps=100)
    broken = make_job("bc", (4, 5), steps=100)
    jobs = {
        "bc": bc, "other": other, "broken": broken,
        "running": make_job("trqam", method="TRQAM", after=bc.name),
        "queued": make_job("qam", method="QAM", after=bc.name),
        "waiting": make_job("qam", (2, 3), "QAM", other.name),
        "blocked": make_job("qam", (4, 5), "QAM", broken.name),
        "stale": make_job("trqam", (6,), "TRQAM", bc.name),
        "stopped": make_job("trqam", (7,), "TRQAM", bc.name),
        "diverged": make_job("trqam", (8, 9), "TRQAM", bc.name),
    }  # fmt: skip
    write_plan(list(jobs.values()), tmp_path)
    seconds = {"data": 0.0, "pretrain": 10.0, "offline": 0.0, "online": 0.0, "evaluate": 0.0}
    make_run(
        bc.run_dir(tmp_path), algo="bc", bc_steps=100, summary={"failures": {}, "seconds": seconds},
        logs={"timing": ["pretrain,100,20,10"], "eval": ["100,0.1,pretrain,0,50"]},
    )  # fmt: skip
    set_state(tmp_path, bc, "done")
    set_state(tmp_path, other, "running", attempt=2)
    set_state(tmp_path, broken, "failed", reason="no data for it; generate some")
    set_state(tmp_path, jobs["running"], "running")
    make_run(jobs["running"].run_dir(tmp_path), logs=HALFWAY)
    set_state(tmp_path, jobs["stale"], "running", age=600)
    set_state(tmp_path, jobs["stopped"], "stopped", reason="stopped by SIGUSR1 after step 5")
    set_state(tmp_path, jobs["diverged"], "done")
    make_run(
        jobs["diverged"].run_dir(tmp_path),
        summary={"failures": {"9": "critic_loss is not finite at step 5"}},
    )
    return tmp_path, jobs


def test_every_state(sweep):
    out, jobs = sweep
    rows, text = table(out)
    assert list(rows[0]) == [name for name in COLUMNS if name not in ("#", "run")]
    assert dict(zip(jobs, [row["state"] for row in rows], strict=True)) == {
        "bc": "done",
        "other": "running, attempt 2",
        "broken": "failed: no data for it; generate some",
        "running": "running",
        "queued": "queued",
        "waiting": "waiting for its pretraining",
        "blocked": "blocked: its pretraining failed",
        "stale": "stale: no heartbeat for 10 min, host node7",
        "stopped": "stopped by SIGUSR1 after step 5",
        "diverged": "done, 1 of 2 seeds failed: seed 9: critic_loss is not finite at step 5",
    }
    assert [row["method"] for row in rows[:4]] == ["BC", "pretraining", "pretraining", "TRQAM"]
    assert rows[3] == {
        "task": TASK, "method": "TRQAM", "seeds": "0 1", "stage": "offline", "step": "100/1000",
        "updates/s": "12.5", "left": "2 min", "success": "70%", "lambda": "0.2", "path-KL": "1",
        "state": "running",
    }  # fmt: skip
    assert rows[4]["step"] == "0/1000" and rows[4]["stage"] == "-"
    totals = text.splitlines()[-1]
    assert totals.startswith("2 running, 1 queued, 2 done, 1 failed, ")
    for part in ("1 waiting", "1 blocked", "1 stale", "1 stopped", "(1 of the done with failed"):
        assert part in totals


@pytest.mark.parametrize("name", ["running", "stale", "stopped", "broken", "queued"])
def test_a_run_with_a_summary_is_over(sweep, name):
    """Whatever its state says: its process may have died before it wrote that it is done."""
    out, jobs = sweep
    number = list(jobs).index(name)
    assert read_lines(out)[0][number].kind != "done"
    make_run(jobs[name].run_dir(out), summary={"failures": {"4": "no"}})
    lines, _ = read_lines(out)
    assert lines[number].kind == "done" and lines[number].left is None
    assert lines[number].state == "done, 1 of 2 seeds failed: seed 4: no".replace(
        "of 2", f"of {len(jobs[name].seeds)}"
    )
    if name == "broken":  # what comes after it can begin
        assert lines[list(jobs).index("blocked")].kind == "queued"


def test_time_left(sweep):
    """Of the sweep: what is left of all over the jobs that run now, or its longest chain."""
    out, jobs = sweep
    lines, _ = read_lines(out)
    left = dict(zip(jobs, [line.left for line in lines], strict=True))
    assert left["running"] == pytest.approx(90)  # 900 steps at 10 a second
    assert left["other"] == pytest.approx(10)  # its pretraining, as fast as the other
    assert left["queued"] == pytest.approx(100) and left["bc"] is None
    assert left["blocked"] is None
    # 90 + 10 + 4 jobs of 100 (queued, waiting, stale, stopped), two at a time
    assert "about 4 min left with 2 at a time" in table(out)[1]
    make_run(
        jobs["diverged"].run_dir(out), logs={"timing": ["offline,1000,10,200"]},
        summary={"failures": {}, "seconds": {"offline": 200.0, "evaluate": 100.0}},
    )  # fmt: skip
    lines, _ = read_lines(out)
    left = dict(zip(jobs, [line.left for line in lines], strict=True))
    assert left["running"] == pytest.approx(135)  # evaluations took half as long as training
    assert left["queued"] == pytest.approx(1000 / 7.5)  # the median of 5 and 10


def test_no_estimate_without_speeds(tmp_path):
    job = make_job("trqam", method="TRQAM")
    write_plan([job], tmp_path)
    set_state(tmp_path, job, "running")
    rows, text = table(tmp_path)
    assert rows[0]["left"] == "-" and rows[0]["step"] == "0/1000"
    assert text.splitlines()[-1] == "1 running, 0 queued, 0 done, 0 failed"


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"algo": "bc"},
        {"algo": "bc", "env_name": TASK},
        {"algo": "bc", "env_name": TASK, "bc_steps": 70},
        {"env_name": TASK},
        {"env_name": TASK, "preset": "smoke", "offline_steps": 7, "online_steps": 70},
        {"pretrained": Path("x")},
        {"pretrained": Path("x"), "bc_steps": 30},
    ],
)
def test_a_plan_has_the_trainer_s_stages(flags):
    config = make_config(**flags)
    planned = stage_ends(config.to_dict())
    if config.algo == "bc":  # which is over after pretraining, whatever the other lengths are
        assert planned == {"pretrain": config.bc_steps}
        return
    lengths = (config.bc_steps, config.offline_steps, config.online_steps)
    ends = {s: e for (s, e), n in zip(config.stage_ends.items(), lengths, strict=True) if n > 0}
    assert planned == ends


def test_steps_count_on(tmp_path):
    """The newest row tells the stage; a rate is that of its stage alone."""
    logs = {"timing": ["pretrain,100,50,2", "offline,300,10,20", "online,350,30,10"]}
    run = make_run(tmp_path / "run", logs=logs, bc_steps=100, offline_steps=200, online_steps=200)
    progress = read_progress(run)
    assert (progress.stage, progress.step, progress.ends["online"]) == ("online", 350, 500)
    assert progress.speeds == {"pretrain": 50, "offline": 10, "online": 5}
    assert read_lines(run)[0][0].left == pytest.approx(30)


def test_only_the_tail_is_read(tmp_path):
    rows = [f"offline,{step},0,{'0' * 500},1,{step}" for step in range(1000, 5000)]
    path = make_run(tmp_path / "run", logs={"metrics": rows}) / "metrics.csv"
    length = len(rows[0]) + 1
    with open(path, "a") as file:  # so that the tail begins within a stage
        end = (TAIL + len("offl")) % length
        file.write(f"offline,5000,0,{'0' * (end + 500)},1,5000\n")
    assert path.stat().st_size > 2_000_000
    assert path.read_bytes()[-TAIL:].startswith(b"ine,")
    problems = []
    found = list(newest_rows(path, KEYS, problems))
    assert not problems
    assert 100 < len(found) < 140 and {row.stage for row in found} == {"offline"}
    assert found[0].values["lam"] == 5000 and read_progress(path.parent).step == 5000


def test_half_written_and_damaged_files(tmp_path):
    run = make_run(tmp_path / "run", logs=HALFWAY)
    for name, torn in (
        (
            "metrics",
            "offline,150,0,1,5,0.5\noffline,1x0,0,1,9,9\noffline,160,0,1,8,0.\0\n"
            "offline,150,1,1,7,0.1",
        ),
        ("timing", "offline,150,9"),
        ("eval", "150,1,offline,0,5\n150,0"),
    ):
        with open(run / f"{name}.csv", "a") as file:
            file.write(torn)
    progress = read_progress(run)
    assert (progress.step, progress.rate, progress.path_kl) == (150, 12.5, 5)
    assert progress.success == 1  # seed 1 has no whole row of this step, so it is gone
    (run / "summary.json").write_text('{"failures": ')
    (run / "config.json").write_bytes(b"\xff{")
    (run / "eval.csv").unlink()
    (run / "metrics.csv").unlink()
    (run / "metrics.csv").mkdir()
    progress = read_progress(run, make_config(preset="smoke").to_dict())
    assert (progress.ends["offline"], progress.step, progress.success) == (400, 100, None)
    assert read_lines(tmp_path)[0][0].kind == "unreadable"


def test_an_evaluation_that_is_under_way_waits_for_all_seeds(tmp_path):
    logs = HALFWAY | {"eval": HALFWAY["eval"][:3]}
    assert read_progress(make_run(tmp_path / "run", logs=logs)).success == pytest.approx(0.2)


def test_a_folder_that_disappears(sweep, monkeypatch):
    out, jobs = sweep

    def refuse(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("trqam_fast.status.outcome.read_state", refuse)
    lines, _ = read_lines(out)
    over = [lines[list(jobs).index(name)].kind for name in ("bc", "diverged")]
    assert over == ["done"] * 2 and [line.kind for line in lines].count("unreadable") == 8
    assert "Stale file handle" in lines[1].state
    monkeypatch.undo()
    (out / "jobs" / f"{jobs['stale'].name}.json").write_text("{")
    assert [line.kind for line in read_lines(out)[0]].count("unreadable") == 1


def test_plain_runs(tmp_path):
    one = make_run(tmp_path / "a" / "one", logs=HALFWAY)
    make_run(tmp_path / "b" / "two", logs=HALFWAY, algo="qam-e", summary={"failures": {}})
    make_run(one / "evaluation" / "no_run_of_its_own")
    (make_run(tmp_path / "export") / "model.safetensors").touch()
    rows, text = table(tmp_path)
    assert [(row["run"], row["method"]) for row in rows] == [("a/one", "TRQAM"), ("b/two", "QAM-E")]
    assert [row["state"] for row in rows] == ["interrupted, newest row under 1 min ago", "done"]
    assert text.splitlines()[-1] == "0 running, 1 interrupted, 1 done"
    rows, _ = table(one)
    assert len(rows) == 1 and "run" not in rows[0]


def test_a_narrow_terminal_cuts_and_shows_the_whole_below(sweep):
    out, _ = sweep
    whole = table(out)[1]
    assert TASK in whole.splitlines()[1] and "\n3: " not in whole
    width = max(map(len, whole.splitlines()))
    assert render(*read_lines(out), width) == whole
    for narrow in (80, 90, 110, 150):
        text = render(*read_lines(out), narrow)
        assert max(map(len, text.splitlines())) <= narrow
        below = " ".join(text.partition("\n\n")[2].split())
        assert f"3: {TASK}, pretraining, seeds 4 5: failed: no data for it; generate some" in below
        assert "1: " not in below  # it is done, and nothing of it is cut but what tasks share


def test_a_held_run_is_running_and_one_that_was_left_is_interrupted(tmp_path):
    run = make_run(tmp_path / "run", logs=HALFWAY)
    with RunFolder(run).held():
        (line,), _ = read_lines(tmp_path)
        assert line.kind == "running" and line.state == "running, newest row under 1 min ago"
        with pytest.raises(UsageError, match="another process"), RunFolder(run).held():
            pass
    (line,), _ = read_lines(tmp_path)
    assert line.kind == "interrupted"
    assert (run / "run.lock").exists() and line.left == pytest.approx(90)


def test_seeds_in_a_row_are_a_range():
    assert [ranges(s) for s in ("0 1 2", "0 1", "3 5 6 7 12", "")] == ["0-2", "0 1", "3 5-7 12", ""]


def test_a_low_terminal_shows_what_moves(sweep):
    out, _ = sweep
    assert "not shown" not in table(out, height=15)[1]
    text = render(*read_lines(out), height=14)
    assert len(re.findall(f"^{TASK}", text, re.M)) == 6
    assert "not shown here, only without --watch: 2 done, 1 queued, 1 waiting" in text


def test_texts_cannot_disturb_the_terminal(tmp_path):
    job = make_job("trqam", method="TRQAM")
    write_plan([job], tmp_path)
    set_state(tmp_path, job, "failed", reason="one\n\x1b[31mtwo\udce9")
    assert r"failed: one \x1b[31mtwo\udce9" in table(tmp_path)[1]


def test_exit_status_and_errors(sweep, tmp_path, capsys):
    out, jobs = sweep
    assert status(out) == 1
    set_state(out, jobs["broken"], "running")
    assert status(out) == 0
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert status(tmp_path / "missing") == 2
    assert status(tmp_path / "empty") == 2
    for interval in ("0", "inf", "nan"):
        assert status(out, "--watch", "--interval", interval) == 2
    (out / "plan.json").write_text("{")
    assert status(out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and all(line.startswith("error: ") for line in lines)


def test_watch_prints_what_changed_until_the_end(tmp_path, monkeypatch, capsys):
    job = make_job("trqam", method="TRQAM")
    write_plan([job], tmp_path)
    looks = iter(["running", "running", "failed"])
    monkeypatch.setattr(time, "sleep", lambda _: set_state(tmp_path, job, next(looks)))
    assert status(tmp_path, "--watch") == 1
    tables = capsys.readouterr().out.split("task ")[1:]
    totals = [text.strip().splitlines()[-1] for text in tables]
    assert totals == [
        "0 running, 1 queued, 0 done, 0 failed",
        "1 running, 0 queued, 0 done, 0 failed",
        "0 running, 0 queued, 0 done, 1 failed",
    ]


def test_watch_redraws_a_terminal(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", logs=HALFWAY)
    looks = iter([None, {"failures": {}}])
    monkeypatch.setattr(time, "sleep", lambda _: make_run(tmp_path / "run", summary=next(looks)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert status(tmp_path, "--watch", "--interval", "2") == 0
    screens = capsys.readouterr().out.split(command.CLEAR)
    assert len(screens) == 4 and "Ctrl-C" in screens[1] and "interrupted" in screens[2]


def test_ctrl_c_leaves_quietly(tmp_path):
    make_run(tmp_path / "run", logs=HALFWAY)
    process = subprocess.Popen(
        [sys.executable, "-m", "trqam_fast.status", str(tmp_path), "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "task" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_four_hundred_jobs_take_under_two_seconds(tmp_path):
    jobs = [make_job("trqam", (seed,), "TRQAM") for seed in range(400)]
    write_plan(jobs, tmp_path)
    rows = [f"offline,{step},0,1,1,0.5" for step in range(5000)]
    for job in jobs[:200]:
        make_run(job.run_dir(tmp_path), logs=HALFWAY | {"metrics": rows})
        set_state(tmp_path, job, "running")
    begin = time.perf_counter()
    assert len(table(tmp_path)[0]) == 400
    assert time.perf_counter() - begin < 2


def test_durations():
    words = [duration(s) for s in (4.4, 59, 90, 3600, 5400, 100_000, 200_000)]
    assert words == ["4 s", "59 s", "2 min", "60 min", "1.5 h", "27.8 h", "2.3 d"]
    exact = [exact_duration(s) for s in (4.44, 59.7, 65, 3900)]
    assert exact == ["4.4 s", "59.7 s", "1 min 05 s", "1 h 05 min"]


def test_what_is_cut():
    assert cut("abcdefghij", 10, "run") == "abcdefghij" and cut("abcdefghij", 7, "run") == "abc..ij"
    assert cut("abcdefghij", 7, "state") == "abcde.."
    assert cut(TASK, 22, "task") == "cube-single-play-task1"
    assert cut(TASK, 36, "task") == TASK
