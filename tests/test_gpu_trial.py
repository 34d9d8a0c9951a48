"""The trial's own machinery; .ci/run rehearses its stages."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from tools import gpu_trial
from tools.trial import contact, deep, record, train
from tools.trial.record import RESULTS, Trial
from trqam_fast import op_cases
from trqam_fast.kernels.dispatch import OPS


def trial(out, **changes):
    known = dict(
        stage="test", device="cpu", dry=True, out=out, identity="now", commit="abc", wheels=out,
        reference=None, until=time.monotonic() + 60,
    )  # fmt: skip
    return Trial(**known | changes)


def lines(out):
    return [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]


def test_every_stage_exists():
    modules = {"contact": contact, "deep": deep, "train": train}
    for stage, module in gpu_trial.MODULES.items():
        assert getattr(modules[module], stage).__doc__, stage


def test_a_measurement_is_one_line(tmp_path):
    seconds = [3e-6, 1e-6, 2e-6]
    trial(tmp_path).emit("update", size={"runs": 2}, seconds=seconds, predicted_us=4.0)
    (line,) = lines(tmp_path)
    assert (line["q1_us"], line["median_us"], line["q3_us"], line["n"]) == (1.0, 2.0, 3.0, 3)
    assert line["commit"] == "abc" and line["torch"] and line["error"] is None
    assert gpu_trial.surprise(line) == pytest.approx(2.0)


@pytest.mark.parametrize(("gpu", "known"), [("NVIDIA H100 80GB HBM3", True), ("H200", False)])
def test_a_kernel_is_held_to_the_model_of_its_own_gpu(gpu, known, monkeypatch):
    monkeypatch.setattr(record, "versions", lambda _: {"gpu": gpu})
    record.model.cache_clear()
    found = record.predicted_kernel(True, "hidden_layer_kernel", "fp16", 1)
    record.model.cache_clear()
    assert (found is not None) == known


def test_a_program_that_fails_or_hangs_is_told(tmp_path, capsys):
    one = trial(tmp_path)
    python = [sys.executable, "-c"]
    assert one.run([*python, "print('fine')"], 20) == "fine\n"
    assert one.run([*python, "raise SystemExit('no kernel')"], 20) is None
    # What it has started ends with it, however long that would go on.
    other = "import subprocess, time; subprocess.Popen(['sleep', '61']); time.sleep(60)"
    assert one.run([*python, other], 2) is None
    assert subprocess.run(["pgrep", "-f", "sleep 61"]).returncode == 1
    failed, hung = lines(tmp_path)
    assert not failed["ok"] and failed["note"].endswith("status 1; no kernel")
    assert not hung["ok"] and "took too long" in hung["note"]
    assert "no kernel" in capsys.readouterr().out, "the whole output goes to the log"


def test_a_stage_that_breaks_does_not_end_the_trial(tmp_path, monkeypatch, capsys):
    """One dies beside two that need each other, one hangs, one has no time left; all is told."""
    made = "import sys, pathlib; pathlib.Path(sys.argv[1], sys.argv[2]).touch()"
    both = "\nwhile len(list(pathlib.Path(sys.argv[1]).glob('runs.*'))) < 2: pass"
    codes = {
        "dies": "import os; os.abort()", "hangs": "import time; time.sleep(60)",
        "runs": made + both,
    }  # fmt: skip

    def command_of(stage, args, limit):
        code = codes.get(stage.partition(".")[0], made)
        return [sys.executable, "-c", code, str(tmp_path), stage]

    groups = [{"dies.now": 5, "runs.1": 5, "runs.2": 5, "left_out": 5}, {"hangs": 60}, {"late": 5}]
    monkeypatch.setattr(gpu_trial, "CALLS", {"train": groups})
    monkeypatch.setattr(gpu_trial, "command_of", command_of)
    monkeypatch.setattr(gpu_trial, "LEAST", 3)
    monkeypatch.setattr(gpu_trial, "commit_of_the_code", lambda: "abc")
    monkeypatch.setitem(gpu_trial.MODULES, "left_out", "train")
    words = ["train", "--out", str(tmp_path), "--limit", "6", "--skip", "left_out"]
    assert gpu_trial.main(words) == 1
    ran = {"wheels", "runs.1", "runs.2"}
    assert ran < {path.name for path in tmp_path.iterdir()} and not (tmp_path / "left_out").exists()
    told = {line["stage"]: line["note"] for line in lines(tmp_path)}
    assert told["dies.now"].startswith("status -6")
    assert told["hangs"].startswith("time limit")
    assert told["late"] == "not run: the call's time was up"
    assert "3 measurements, 3 not as they should be" in capsys.readouterr().out


def test_the_table_begins_with_what_is_wrong(capsys):
    rows = [
        {"stage": "a", "name": "as expected", "ok": True, "median_us": 10, "predicted_us": 9},
        {"stage": "a", "name": "slow", "ok": True, "median_us": 90, "predicted_us": 9},
        {"stage": "a", "name": "broken", "ok": False, "note": "why"},
        {"stage": "b", "name": "tile", "ok": True, "median_us": 3, "size": {"runs": 1}},
        {"stage": "b", "name": "tile", "ok": True, "median_us": 2, "size": {"runs": 1}},
        {"stage": "c", "name": "op", "ok": True, "error": 1e-4, "size": {"case": "small"}},
        {"stage": "c", "name": "op", "ok": True, "error": 2e-4, "size": {"case": "wide"}},
    ]
    for row in rows:
        row |= {"q1_us": row.get("median_us"), "q3_us": row.get("median_us")}
    gpu_trial.print_table(rows)
    shown = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[1] for line in shown] == ["broken", "slow", "as", "tile", "op"]
    assert "WRONG why" in shown[0] and " 2 (2-2)" in shown[3] and "error 2.0e-04" in shown[4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one of contact, deep, train and all"),
        (["deep", "--skip", "tune,tuen"], "--skip names tuen; stages: extension"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as raised:
        gpu_trial.main(words)
    assert raised.value.code == 2 and message in capsys.readouterr().err


NCU = """==PROF== Connected to process 7
"ID","Process ID","Process Name","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","python","sde_rollout_kernel (8, 1, 1)x(256, 1, 1)","lts__t_bytes.sum","byte","75,000"
"0","7","python","sde_rollout_kernel (8, 1, 1)x(256, 1, 1)","gpu__time_duration.sum","ns","900,000"
"1","7","python","mlp_forward_kernel (40, 1, 1)x(256, 1, 1)","lts__t_bytes.sum","byte","1"
==PROF== Disconnected
"""


def test_counters_are_read_by_launch():
    (name, values), (other, _) = deep.read_counters(NCU)
    assert (name.strip(), other.strip()) == ("sde_rollout_kernel", "mlp_forward_kernel")
    assert values == {"lts__t_bytes.sum": "75,000", "gpu__time_duration.sum": "900,000"}


def test_counters_are_of_every_kernel():
    sources = (gpu_trial.ROOT / "trqam_fast" / "kernels").rglob("triton*.py")
    named = {
        name for path in sources for name in re.findall(r"\ndef (\w+_kernel)\(", path.read_text())
    }
    assert set(deep.KERNELS) == named


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck, of extra 'test'")
def test_the_wheelhouse_script_is_sound():
    script = gpu_trial.ROOT / "tools" / "wheelhouse.sh"
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_sanitizers_see_what_training_launches(tmp_path, monkeypatch):
    """All passes in the precisions of training, of one tile and of several rows and features."""
    seen = set()

    def evaluate(case, sizes, **how):
        seen.add((case.op, how.get("precision"), sizes.batch > 64 and max(sizes.hidden) > 64))

    monkeypatch.setattr(op_cases, "draw_inputs", lambda case, sizes, **_: sizes)
    monkeypatch.setattr(op_cases, "evaluate", evaluate)
    deep.small_ops(trial(tmp_path, device="cuda"))
    assert seen == {
        (op, precision, several)
        for op, has in OPS.items() if has.triton
        for precision in (("tf32", "fp16") if has.networks else (None,))
        for several in (False, True)
    }  # fmt: skip
