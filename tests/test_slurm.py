import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.sweep import __main__ as command
from trqam_fast.sweep.plan import Job
from trqam_fast.sweep.slurm import slurm_script
from trqam_fast.sweep.spec import Resources

SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

# Each notes how it was called.
FAKES = {
    "sbatch": 'echo "$(($(grep -c ^sbatch "$CALLS") + 99));mini"',
    "scontrol": """
        [[ "$1 $2" != "show config" ]] || echo "MaxArraySize            = $SIZE"
        [[ "$1 $2" != "show job" ]] || echo "JobId=12 JobState=${STATE:-RUNNING} Reason=None"
    """,
    "python": 'eval "$TRAINER"',
}
# Ends with status 75 a while after a signal, as the trainer does when it has saved.
TRAINER = """
    trap 'echo USR1 >> "$CALLS"; asked=1' USR1
    trap 'echo TERM >> "$CALLS"; asked=1' TERM
    asked=""
    echo ready >> "$CALLS"
    while [[ -z "$asked" ]]; do sleep 0.05; done
    for ((i = 0; i < 10; i++)); do sleep 0.05; done
    exit 75
"""


def make_jobs(count, algo="trqam", after="start"):
    return [
        Job(f"task/{algo}/seeds_{n}", "task", algo, None, (n,), after, {}) for n in range(count)
    ]


class Cluster:
    """Runs the script among fakes of Slurm's commands and of the trainer."""

    def __init__(self, folder):
        self.calls, self.out, self.bin = folder / "calls", folder / "out's 100%", folder / "bin"
        self.bin.mkdir()
        self.out.mkdir()
        for name, body in FAKES.items():
            path = self.bin / name
            words = f'printf "{name}" >> "$CALLS"; printf " <%s>" "$@" >> "$CALLS"'
            path.write_text(f'#!/bin/bash\n{words}; echo >> "$CALLS"\n{body}\n')
            path.chmod(0o755)

    def start(self, jobs, *arguments, **variables):
        script = self.out / "sweep.slurm"
        # The folder's quote is one too many for Slurm's lines, which bash does not read.
        script.write_text(slurm_script(jobs, Path("/sweep"), Resources()).replace(
            "out=/sweep", f'out="{self.out}"'
        ))  # fmt: skip
        self.calls.write_text("")
        outer = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        variables = {name: str(value) for name, value in variables.items()}
        return subprocess.Popen(
            ["bash", str(script), *map(str, arguments)], stdout=subprocess.PIPE,
            env=outer | {"CALLS": str(self.calls), "SIZE": "1001", "TRAINER": "exit 0"} | variables
            | {"PATH": f"{self.bin}:{outer['PATH']}"},
        )  # fmt: skip

    def run(self, *arguments, **variables):
        """Return the exit status and the calls."""
        process = self.start(*arguments, **variables)
        process.communicate(timeout=20)
        return process.returncode, self.calls.read_text().splitlines()

    def element(self, jobs, number, *arguments, **variables):
        ids = {"SLURM_ARRAY_JOB_ID": 12, "SLURM_ARRAY_TASK_ID": number}
        return self.start(jobs, *arguments, **ids, **variables)

    def run_element(self, *arguments, **variables):
        process = self.element(*arguments, **variables)
        process.communicate(timeout=20)
        return process.returncode, self.calls.read_text().splitlines()

    def wait_for(self, line, count=1):
        end = time.monotonic() + 15
        while self.calls.read_text().splitlines().count(line) < count:
            assert time.monotonic() < end, self.calls.read_text()
            time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def submissions(calls):
    """Arguments of each sbatch but the file's name."""
    lines = [line.split("> <") for line in calls if line.startswith("sbatch")]
    return [[w.rstrip(">") for w in words[1:] if "sweep.slurm" not in w] for words in lines]


def test_it_submits_itself_as_two_arrays(cluster):
    jobs = make_jobs(3) + make_jobs(2, "bc", None)
    status, calls = cluster.run(jobs)
    assert status == 0 and (cluster.out / "logs").is_dir()
    assert submissions(calls) == [
        ["--array=0-1", "0"],
        ["--array=0-2", "--dependency=afterany:100", "2"],
    ]


def test_an_empty_array_is_left_out(cluster):
    assert submissions(cluster.run(make_jobs(2, "bc", None))[1]) == [["--array=0-1", "0"]]
    assert submissions(cluster.run(make_jobs(1, after=None))[1]) == [["--array=0-0", "0"]]


def test_more_jobs_than_an_array_holds(cluster):
    jobs = make_jobs(5, "bc", None) + make_jobs(7)
    assert submissions(cluster.run(jobs, SIZE=4)[1]) == [
        ["--array=0-3", "0"],
        ["--array=0-0", "4"],
        ["--array=0-3", "--dependency=afterany:100:101", "5"],
        ["--array=0-2", "--dependency=afterany:100:101", "9"],
    ]
    assert len(submissions(cluster.run(make_jobs(1002), SIZE="")[1])) == 2


def test_a_refused_submission_ends_it(cluster):
    (cluster.bin / "sbatch").write_text('#!/bin/bash\necho "sbatch" >> "$CALLS"; exit 3\n')
    status, calls = cluster.run(make_jobs(1, "bc", None) + make_jobs(1))
    assert status == 1 and calls.count("sbatch") == 1


@pytest.mark.parametrize("status", [0, 1, 2, 139])
def test_an_element_runs_its_job_and_passes_its_status_on(cluster, status):
    jobs = [*make_jobs(2, "bc", None), Job("a b/it's $x/s", "a", "trqam", None, (0,), "b", ())]
    found, calls = cluster.run_element(jobs, 1, 1, TRAINER=f"exit {status}")
    out = f"<--out> <{cluster.out}>"
    assert calls == [f"python <-m> <trqam_fast.sweep> {out} <--job> <a b/it's $x/s>"]
    assert found == status


def test_a_stopped_job_is_queued_again(cluster):
    status, calls = cluster.run_element(make_jobs(5), 3, TRAINER="exit 75")
    assert "<task/trqam/seeds_3>" in calls[0]
    assert calls[1:] == ["scontrol <show> <job> <12_3>", "scontrol <requeue> <12_3>"]
    assert status == 75


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT"])
def test_a_cancelled_job_is_not_queued_again(cluster, state):
    status, calls = cluster.run_element(make_jobs(1), 0, TRAINER="exit 75", STATE=state)
    assert status == 75 and not any("requeue" in call for call in calls)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_the_trainer_which_is_waited_for(cluster, number):
    process = cluster.element(make_jobs(1), 0, TRAINER=TRAINER)
    cluster.wait_for("ready")
    process.send_signal(number)
    cluster.wait_for(number.name[3:])
    process.send_signal(number)
    assert process.wait(timeout=15) == 75
    calls = cluster.calls.read_text().splitlines()
    assert calls.count(number.name[3:]) == 2
    assert calls[-1] == "scontrol <requeue> <12_0>"


def test_a_signal_does_not_hide_another_status(cluster):
    trainer = TRAINER.replace("exit 75", "exit 3")
    process = cluster.element(make_jobs(1), 0, TRAINER=trainer)
    cluster.wait_for("ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=15) == 3
    assert "scontrol" not in cluster.calls.read_text()


def test_a_signal_before_the_trainer_listens(cluster):
    """Python dies of it while it imports; the job has lost nothing."""
    process = cluster.element(make_jobs(1), 0, TRAINER='echo ready >> "$CALLS"; exec sleep 20')
    cluster.wait_for("ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=15) == 128 + signal.SIGUSR1
    assert cluster.calls.read_text().endswith("scontrol <requeue> <12_0>\n")
    kill = "kill -s USR1 $$"
    assert "requeue" not in " ".join(cluster.run_element(make_jobs(1), 0, TRAINER=kill)[1])


def test_what_slurm_is_asked_for():
    resources = Resources(cpus=1.5, gpus=0.25, memory_gb=3.3, time="1-00:00:00", partition="gpu")
    text = slurm_script(make_jobs(1), Path("/a b/#100%/out"), resources)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in (
        "job-name=out", "requeue", "signal=B:USR1@120", "open-mode=append", "ntasks=1",
        "cpus-per-task=2", "gres=gpu:1", "mem=3380M", "time=1-00:00:00", "partition=gpu",
        'output="/a b/#100%%/out/logs/slurm-%A_%a.out"',
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines, option
    assert "# Slurm gives whole GPUs: 1 each, where the sweep has 0.25." in lines
    assert "# Submit with: bash '/a b/#100%/out/sweep.slurm'" in lines
    plain = slurm_script(make_jobs(1), Path("/out"), Resources())
    assert not any(word in plain for word in ("gres", "whole GPUs", "--time", "--partition"))
    assert slurm_script(make_jobs(1), Path("out"), Resources()).count(f"{Path.cwd()}/out") == 3


@pytest.mark.parametrize("name", ["a\nrm", 'a"b', "a'b", "a\\b"])
def test_a_folder_that_slurm_cannot_write_to(name):
    with pytest.raises(UsageError, match="another name"):
        slurm_script(make_jobs(1), Path("/tmp") / name, Resources())
    with pytest.raises(UsageError, match="--time"):
        slurm_script(make_jobs(1), Path("/tmp"), Resources(time=name))


def test_a_refused_script_leaves_nothing(tmp_path, capsys):
    words = ["sweeps/smoke.toml", "--slurm-script", "--out"]
    assert run_command(lambda: command.main([*words, str(tmp_path / "it's")])) == 2
    assert "use another name" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    assert command.main([*words, str(tmp_path / "its")]) == 0
    found = {path.name for path in (tmp_path / "its").iterdir()}
    assert found >= {"plan.json", "sweep.toml", "sweep.slurm"}
    copy = (tmp_path / "its/sweep.toml").read_bytes()
    assert copy == Path("sweeps/smoke.toml").read_bytes()


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(tmp_path):
    script = tmp_path / "sweep.slurm"
    script.write_text(slurm_script(make_jobs(3), tmp_path / "a b", Resources(gpus=0.5)))
    found = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_a_real_sbatch_takes_it(tmp_path):
    if shutil.which("sbatch") is None or subprocess.run(
        ["scontrol", "ping"], capture_output=True
    ).returncode:  # fmt: skip
        pytest.skip("no Slurm controller answers")
    script = tmp_path / "sweep.slurm"
    jobs = make_jobs(3)
    script.write_text(slurm_script(jobs, tmp_path, Resources(memory_gb=0.5, time="10:00")))
    found = subprocess.run(
        ["sbatch", "--test-only", "--array=0-2", script, "0"], capture_output=True, text=True
    )
    assert found.returncode == 0 and "to start at" in found.stderr
