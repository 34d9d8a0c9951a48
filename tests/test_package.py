"""Build, imports, optional parts."""

import ast
import graphlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

import trqam_fast
from trqam_fast.kernels.dispatch import OPS
from trqam_fast.op_cases import CASES
from trqam_fast.packages import commit_of
from trqam_fast.runs import versions

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc")

UPDATE = """
import torch
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import BackendError, path_kl
from trqam_fast.randomness import Randomness

config = TRQAMConfig(batch_size=4, actor_hidden_dims=(8,), value_hidden_dims=(8,), num_qs=2)
agent = TRQAMAgent(config, 3, 2, [0])
batch = Batch(torch.zeros(1, 4, 3), torch.zeros(1, 4, 1, 2), torch.zeros(1, 4), torch.ones(1, 4),
              torch.ones(1, 4), torch.zeros(1, 4, 3))
terms = agent.update(batch, agent.draw_noise(Randomness([0])))
assert all(value.isfinite().all() for value in terms.metrics.values())
"""


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )


def test_trains_without_triton(tmp_path):
    done = python(f"import sys\nsys.modules['triton'] = None\n{UPDATE}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_updates_without_simulators_or_command_line(tmp_path):
    """Where only the kernels are of interest, none of these packages needs to be installed."""
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ogbench", "gymnasium", "mujoco", "dm_control", "tyro", "tqdm"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, {str(ROOT)!r})
{UPDATE}
import benchmarks.compare_reference
import benchmarks.test_update
import tests.conftest
import tests.helpers
import trqam_fast.self_test
from benchmarks.sizes import PAPER_SMALL, make_agent
from trqam_fast import parity
from trqam_fast.data.dataset import Dataset

updater = benchmarks.test_update.make_updater(
    make_agent(PAPER_SMALL, "cpu", "auto", "ieee"), PAPER_SMALL, "cpu", graph=False
)
assert isinstance(updater.source, Dataset) and updater.history.values.isfinite().all()
assert trqam_fast.self_test.deviation("mlp", "reference", "cpu") < 1e-4
recording = parity.Path({str(ROOT)!r}, "tests/data/trqam_single_step.npz")
assert max(parity.replay(parity.ParityArgs(recording)).values()) < 1e-10
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_trains_without_the_extension(tmp_path):
    code = f"""
import sys
sys.modules['trqam_fast._C'] = None
{UPDATE}
try:
    path_kl(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), backend="cpp")
except BackendError as error:
    assert "pip install -e ." in str(error)
else:
    raise AssertionError
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_doctor_reports_a_missing_extension(tmp_path):
    code = """
import sys
sys.modules['trqam_fast._C'] = None
from trqam_fast import doctor
sys.exit(doctor.main([]))
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("problem: ") == 1 and "pip install -e ." in done.stderr


def test_doctor_finds_no_problem(capsys):
    from trqam_fast import doctor

    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    names = ", ".join(name for name, case in CASES.items() if OPS[case.op].triton)
    assert f"triton on cpu is not available for {names}: its kernels need a GPU" in said
    names = ", ".join(name for name, case in CASES.items() if OPS[case.op].networks)
    assert f"triton_pdl on cpu is not available for {names}: its dependent launches" in said
    lacking = ", ".join(name for name, case in CASES.items() if not OPS[case.op].cpp)
    assert f"cpp on cpu is not available for {lacking}: it has no C++ code" in said
    for name, case in CASES.items():
        for backend in ("reference", "cpp") if OPS[case.op].cpp else ("reference",):
            assert any(x.split()[:2] == [name, backend] and "ok" in x for x in printed.splitlines())


def test_doctor_notices_a_wrong_op(capsys, monkeypatch):
    from trqam_fast import doctor
    from trqam_fast.kernels.path_kl import ops

    def wrong(v, u, schedule, horizon):
        return ((v - u) ** 2).sum((1, 3)), ((v - u) ** 2).sum((1, 2, 3))

    monkeypatch.setattr(ops, "path_kl", wrong)
    assert doctor.main([]) == 1
    assert "path_kl with backend cpp on cpu deviates" in capsys.readouterr().err


def imports_of(path):
    """Modules of this package that a file imports when it is imported."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ImportFrom(module=str(module)):
                yield module
            case ast.Import(names=names):
                yield from (alias.name for alias in names)


def test_imports_of_the_parts_have_no_circle():
    """A part is a folder of the package, or a module beside them; kernels know none of it."""
    above = {}
    package = ROOT / "trqam_fast"
    for path in (*package.rglob("*.py"), *(package / "kernels").rglob("*.py")):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        parts = {name.split(".")[1] for name in imports_of(path) if name.startswith("trqam_fast.")}
        above.setdefault(part, set()).update(parts - {part})
    order = graphlib.TopologicalSorter(above)
    order.prepare()  # which raises at a circle, and names it
    assert not above["kernels"] - {"_C"}
    assert all("train" not in above[part] for part in ("training", "runs", "report", "status"))


def names_in(node):
    """What an import names, as modules."""
    match node:
        case ast.ImportFrom(module=str(module), names=names):
            return [f"{module}.{alias.name}" for alias in names]
        case ast.Import(names=names):
            return [alias.name for alias in names]
    return []


def test_tests_import_no_other_test():
    """What they share lies in modules beside them."""
    found = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in names_in(node)
        if name.startswith("tests.test_")
    }
    assert found == set()


def test_one_version_everywhere():
    version = trqam_fast.__version__
    assert importlib.metadata.version("trqam_fast") == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    """Of its root alone: an environment may lie in a checkout of something else."""

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.c"]
        command += ["-c", "commit.gpgsign=false"]
        return subprocess.check_output([*command, *words], text=True).strip()

    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("")
    git("init", "-q")
    assert commit_of(tmp_path) is None  # nothing is committed yet
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    assert commit_of(tmp_path) == head and commit_of(tmp_path / "inner") is None
    (tmp_path / "inner" / "file").write_text("changed")
    assert commit_of(tmp_path) == f"{head}+"
    monkeypatch.setattr(versions, "CHECKOUT", tmp_path)
    assert versions.versions()["commit"] == f"{head}+"
    monkeypatch.setenv("PATH", "")
    assert commit_of(tmp_path) is None and "commit" not in versions.versions()


def pyproject():
    tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_torch_is_not_needed_to_build():
    requires = pyproject()["build-system"]["requires"]
    assert not any(name.startswith("torch") for name in requires)


def test_wheels_are_tested_by_all_tests_of_kernels():
    """By their files: a marker would have pytest import all, which needs more than a wheel has."""
    command = pyproject()["tool"]["cibuildwheel"]["test-command"].split()
    listed = {word for word in command if word.startswith("tests/")}
    assert all((ROOT / name).exists() for name in listed)
    kernels = {f"tests/test_{path.stem}.py" for path in (ROOT / "kernels").iterdir()}
    assert {name for name in kernels if (ROOT / name).exists()} <= listed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is compiled")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere nothing is compiled")
def test_a_compiler_that_lacks_what_csrc_needs_is_told_before_it_is_called(tmp_path):
    """As GCC 9 says it, which has vectors, but not all of their instructions."""
    for module, version in (("setuptools", "77"), ("pybind11", None), ("ninja", None)):
        pytest.importorskip(module, version, reason=f"building needs {module}")
    compiler = tmp_path / "g++-9"
    said = "<stdin>:5: error: attribute target is not known: avx512bf16"
    compiler.write_text(f"#!/bin/sh\ncat >{tmp_path}/probe\necho '{said}' >&2\nexit 1\n")
    compiler.chmod(0o755)
    for wanted, start in (("auto", "installing without"), ("1", "TRQAM_EXTENSION=1, but")):
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)],
            cwd=ROOT, env=os.environ | {"TRQAM_EXTENSION": wanted, "CXX": str(compiler)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert start in done.stderr and f"cannot compile an extension ({said})" in done.stderr
        assert (done.returncode == 0) == (wanted == "auto")
    assert "avx512bf16" in (tmp_path / "probe").read_text()
    shutil.rmtree(tmp_path / "trqam_fast.egg-info")


def test_a_source_distribution_holds_what_its_tests_need(tmp_path):
    for module, version in (("setuptools", "77"), ("pybind11", None), ("ninja", None)):
        pytest.importorskip(module, version, reason=f"building needs {module}")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    environment = os.environ | {"TRQAM_EXTENSION": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    held = (tmp_path / "trqam_fast.egg-info" / "SOURCES.txt").read_text().splitlines()
    for part in ("benchmarks", "csrc", "docs", "examples", "sweeps", "tests", "tools"):
        files = (path for path in (ROOT / part).rglob("*") if path.is_file())
        names = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
        assert names <= set(held), part
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "mkdocs.yml"} <= set(held)


def test_every_folder_with_code_is_a_package():
    """The kernels' too, by way of the link in the package, in whose place an sdist has them."""
    kernels = ROOT / "trqam_fast" / "kernels"
    assert kernels.resolve() == ROOT / "kernels" or not kernels.is_symlink()
    walk = os.walk(ROOT / "trqam_fast", followlinks=True)
    folders = {Path(name) for name, _, files in walk if any(f.endswith(".py") for f in files)}
    found = set(find_packages(str(ROOT), include=["trqam_fast*"]))
    assert found == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


@pytest.mark.skipif(NVCC is None, reason="needs nvcc, from the CUDA toolkit")
@pytest.mark.parametrize("architecture", ["80", "90", "100"])
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "csrc").glob("*.cu")))
def test_cuda_sources_compile(source, architecture, tmp_path):
    command = [NVCC, "-std=c++17", "-cubin", f"-arch=sm_{architecture}", "-Werror=all-warnings"]
    command += ["--resource-usage", str(ROOT / "csrc" / source), "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = [line for line in done.stderr.splitlines() if "spill" in line]
    assert spills and all("0 bytes spill stores, 0 bytes spill loads" in x for x in spills)
