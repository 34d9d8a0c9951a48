"""Pages whose code runs as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trqam_fast.agents
import trqam_fast.experts
import trqam_fast.kernels
from trqam_fast.runs.read import read_run

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def execute(command, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stderr[-2000:])
    return done.stdout


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^::: \S+\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert len(set(listed)) == len(listed)
    for module in (trqam_fast, trqam_fast.agents, trqam_fast.experts, trqam_fast.kernels):
        assert set(module.__all__) <= set(listed), module.__name__


def test_equations_that_docstrings_name_are_there():
    """As ``docs/algorithm.md, "Rollout"`` or ``TRQAM section "Rollout" (docs/algorithm.md)``."""
    rows = re.findall(r"^\| ([\w -]+) \|", (DOCS / "algorithm.md").read_text(), re.MULTILINE)
    sources = [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "trqam_fast").rglob("*.py")]
    named = []
    for path in sources:
        text = " ".join(path.read_text().split())
        for after in re.findall(r'docs/algorithm\.md,? ((?:(?:and )?"[^"]+",? ?)+)', text):
            named += re.findall('"([^"]+)"', after)
        for before in re.findall(r"TRQAM sections? ([^(]+) \(docs/algorithm\.md\)", text):
            named += re.findall('"([^"]+)"', before)
    assert len(set(named)) > 8 and set(named) <= set(rows), set(named) - set(rows)


def own_loop(folder, updates):
    """Run examples/own_policy.py on the page's data; return what it printed."""
    for _, code in BLOCK.findall((DOCS / "your_own_task.md").read_text())[:2]:
        (folder / code.partition("\n")[0].removeprefix("# ")).write_text(code)
    code = (ROOT / "examples" / "own_policy.py").read_text()
    loop = code.replace("= 0, 1000, 3000, 500", f"= {updates}")
    assert (folder / "reach.py").exists() and loop != code
    (folder / "own_policy.py").write_text(loop)
    execute([sys.executable, "collect.py"], folder)
    return execute([sys.executable, "own_policy.py"], folder)


def test_a_loop_of_ones_own_runs(tmp_path):
    printed = own_loop(tmp_path, "0, 20, 2, 2")
    found = r"cloned: \d+%\n2: \d+%, path KL 0\.\d\d, lambda 0.9\d\d\n$"
    assert re.search(found, printed), printed


@pytest.mark.slow
def test_a_loop_of_ones_own_learns(tmp_path):
    shares = re.findall(r": (\d+)%", own_loop(tmp_path, "0, 1000, 2500, 2500"))
    assert int(shares[0]) < 50 and int(shares[-1]) > 90, shares


@pytest.mark.slow
def test_your_own_task(tmp_path):
    printed = ""
    for language, code in BLOCK.findall((DOCS / "your_own_task.md").read_text()):
        name = code.partition("\n")[0].removeprefix("# ")
        if language == "bash":
            for line in code.splitlines():
                words = line.split()
                assert words[0] == "python"
                printed += execute([sys.executable, *words[1:]], tmp_path)
            continue
        (tmp_path / name).write_text(code)
        if name in ("collect.py", "act.py"):
            printed += execute([sys.executable, name], tmp_path)
    text = (DOCS / "your_own_task.md").read_text()
    (said,) = (line for line in text.splitlines() if line.startswith("environment reach:Reach"))
    assert said in printed and "reach.npz is whole" in printed
    summary = read_run(tmp_path / "run").summary
    assert summary["pretrained_success"] < 0.5 and summary["offline_success"] > 0.9
    assert re.search(r"reached True in \d+ steps", printed)
    assert read_run(tmp_path / "online").summary["pretrained_success"] > 0.9  # as it was left
    assert (tmp_path / "page" / "index.html").exists()


@pytest.mark.slow
def test_python(tmp_path, generated):
    """The blocks of the page, one after another, on data that are there already."""
    code = "\n".join(
        code for language, code in BLOCK.findall((DOCS / "python.md").read_text())
        if language == "python"
    )  # fmt: skip
    small = (
        f'tf.train(preset="smoke", generated_dir={str(generated)!r}, generated_noise=0.5, '
        "generated_transitions=3000, bc_steps=60, offline_steps=60, online_steps=60, "
        "eval_episodes=2, "
    )
    code = code.replace('tf.train(preset="smoke", ', small)
    (tmp_path / "page.py").write_text(code)
    execute([sys.executable, "page.py"], tmp_path)
    shutil.rmtree(tmp_path / "smoke")
