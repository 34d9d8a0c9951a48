"""Builds ``trqam_fast._C`` from ``csrc/`` with pybind11 and ninja.

Metadata lives in pyproject.toml; this file only knows how to compile. ``TRQAM_EXTENSION`` chooses
whether: ``auto`` (the default) compiles on Linux x86-64 where a C++ compiler works, and installs
without elsewhere; ``1`` demands it, ``0`` leaves it out. ``TRQAM_CUDA`` chooses the CUDA part:
``auto`` (the default) adds it where a working nvcc is found, ``1`` demands it, ``0`` leaves it out.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CUDA_ARCHITECTURES = ("80", "90", "100")
WITHOUT = (
    "trqam_fast: installing without the compiled extension, because {}. Everything runs, but "
    "slower on the CPU (README.md, Benchmarks)."
)


PROBE = """
#include <Python.h>
#include <vector>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")
#include <immintrin.h>
typedef float Vector __attribute__((vector_size(64)));
typedef int Lanes __attribute__((vector_size(64)));
Vector shuffled(Vector v, Lanes l, __m512 x, __m512bh) {
    _mm512_cvtneps_pbh(x);
    return __builtin_shuffle(v, l);
}
#pragma GCC pop_options
"""
"""What csrc/ asks of a compiler: GCC's vectors, and AVX512-BF16, which has been there since 10."""


def request(name: str) -> str:
    """Value of a switch in the environment: auto, 0 or 1."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} is {value!r}; use auto, 0 or 1")
    return value


def extension_problem() -> str | None:
    """Why the extension cannot be compiled here, or None if the compiler can do what it needs."""
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        return f"csrc/ is for Linux on x86-64, and this is {sys.platform} on {machine}"
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++")
    probe = [*compiler, "-std=c++17", "-fopenmp", f"-I{sysconfig.get_path('include')}"]
    try:
        done = subprocess.run(
            [*probe, "-fsyntax-only", "-x", "c++", "-"],
            input=PROBE,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return f"there is no C++ compiler {compiler[0]}; install one, or name it in CXX"
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "error" in line] or lines
        said = (errors or [f"exit status {done.returncode}"])[0]
        return f"the C++ compiler {compiler[0]} cannot compile an extension ({said})"
    return None


def nvcc_toolkit(nvcc: str) -> Path:
    """Toolkit folder of `nvcc`, which may be a wrapper script, from its own dry run."""
    dryrun = subprocess.run(
        [nvcc, "--dryrun", "-c", "probe.cu"], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE)
    return Path(top.group(1).strip()) if top else Path(nvcc).resolve().parent.parent


def nvcc_flags(nvcc: str) -> list[str]:
    """Code generation flags for those of our architectures that `nvcc` knows."""
    listing = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout.split()
    known = [arch for arch in CUDA_ARCHITECTURES if f"sm_{arch}" in listing]
    if not known:
        raise RuntimeError(f"{nvcc} knows none of sm_80, sm_90 and sm_100")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    return [*flags, f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}"]


class NinjaBuild(build_ext):
    """Compile every source as one ninja edge: parallel, and rebuilt only when it changed.

    Every installation has an environment of its own, in a folder of another name. So objects are
    kept where the next one looks, and its pybind11 is reached through a link named by version.
    """

    def build_extension(self, ext: Pybind11Extension) -> None:
        cuda = request("TRQAM_CUDA")
        nvcc = shutil.which("nvcc") if cuda != "0" else None
        if cuda == "1" and nvcc is None:
            raise SystemExit("TRQAM_CUDA=1, but no nvcc is on the PATH: install the CUDA toolkit")
        try:
            self.run_ninja(ext, nvcc)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            if cuda == "1":
                raise
            if nvcc is None:
                raise SystemExit(f"{error}; TRQAM_EXTENSION=0 installs without csrc/") from None
            print(f"trqam_fast: the CUDA part failed ({error}); building the CPU part alone")
            self.run_ninja(ext, None)

    def run_ninja(self, ext: Pybind11Extension, nvcc: str | None) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        python = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build = ROOT.resolve() / "build" / f"ninja.{python}" / ("cuda" if nvcc else "cpu")
        build.mkdir(parents=True, exist_ok=True)
        headers = build / f"pybind11-{pybind11.__version__}"
        headers.unlink(missing_ok=True)
        headers.symlink_to(pybind11.get_include())
        cxx = [*self.compiler.compiler_so_cxx, *ext.extra_compile_args]
        # Headers of the system are none of those whose times -MMD has ninja compare.
        cxx += ["-isystem", str(headers), f"-I{sysconfig.get_path('include')}"]
        link = [*self.compiler.linker_so_cxx]
        libraries = ["-fopenmp"]
        sources = [Path(source) for source in ext.sources]
        rules = []
        if nvcc:
            toolkit = nvcc_toolkit(nvcc)
            cxx += ["-DTRQAM_WITH_CUDA"]
            compile_cu = [
                nvcc,
                "-O3",
                "-std=c++17",
                "--compiler-options",
                "-fPIC,-fvisibility=hidden",
            ]
            compile_cu += nvcc_flags(nvcc)
            library_dir = next(
                (
                    path
                    for path in (toolkit / "lib64", toolkit / "targets/x86_64-linux/lib")
                    if (path / "libcudart_static.a").exists()
                ),
                None,
            )
            if library_dir is None:
                raise RuntimeError(f"no libcudart_static.a in the CUDA toolkit {toolkit}")
            libraries += [str(library_dir / "libcudart_static.a"), "-lrt", "-ldl", "-lpthread"]
            sources += sorted((ROOT / "csrc").glob("*.cu"))
            rules += [
                "rule cu",
                f"  command = {quote(compile_cu)} -MMD -MF $out.d -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
            ]
        rules += [
            "rule cxx",
            f"  command = {quote(cxx)} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {quote(link)} $in {quote(libraries)} -o $out",
        ]
        objects, edges = [], []
        for source in sources:
            target = f"{source.name}.o"
            rule = "cu" if source.suffix == ".cu" else "cxx"
            edges.append(f"build {target}: {rule} {escape(source.resolve())}")
            objects.append(target)
        edges.append(f"build {escape(output)}: link {' '.join(objects)}")
        (build / "build.ninja").write_text("\n".join([*rules, *edges]) + "\n")
        subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", build], check=True)


def quote(words: list[str]) -> str:
    """Words as one shell command line inside a ninja file."""
    return subprocess.list2cmdline(words).replace("$", "$$")


def escape(path: Path) -> str:
    """A path inside a ninja build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def extensions() -> list[Pybind11Extension]:
    """The extension, if it is wanted and can be compiled."""
    wanted = request("TRQAM_EXTENSION")
    problem = "TRQAM_EXTENSION is 0" if wanted == "0" else extension_problem()
    if problem is not None and wanted == "1":
        raise SystemExit(f"TRQAM_EXTENSION=1, but {problem}")
    if problem is not None:
        print(WITHOUT.format(problem), file=sys.stderr)
        return []
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
    options = [
        "-O3",
        "-fopenmp",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
    ]
    return [Pybind11Extension("trqam_fast._C", sources, cxx_std=17, extra_compile_args=options)]


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
