"""What every test process needs, and fixtures of tests that train or of what the system refuses."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

# cuBLAS needs it for what PyTorch calls deterministic, and reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# A shell that starts the tests in the background lets them, and the commands they start, ignore it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.interpreter import accept_new_numpy, patch_language_once

    accept_new_numpy()
    patch_language_once()


def pytest_addoption(parser):
    parser.addoption(
        "--instruction-set",
        help="have the extension use this one of its instruction sets, not the fastest",
    )


def pytest_configure(config):
    name = config.getoption("--instruction-set")
    if name is None:
        return
    from trqam_fast.kernels import cpp
    from trqam_fast.kernels.dispatch import extension

    known = extension().instruction_sets()
    if name not in known:
        raise pytest.UsageError(f"--instruction-set is {name}; this processor has {known}")
    cpp.instruction_set = name


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    from trqam_fast.data.generate.recipe import Recipe  # Here: tests of kernels need no simulator.

    folder = tmp_path_factory.mktemp("generated")
    Recipe("pointmaze-medium-navigate-v0", 3000, 0.5, 0, True).ensure(folder, progress=False)
    return folder


@pytest.fixture
def flags(generated):
    return [
        "--preset", "smoke", "--generated-dir", str(generated), "--generated-transitions", "3000",
        "--generated-noise", "0.5", "--bc-steps", "20", "--offline-steps", "20",
        "--online-steps", "0",
        "--log-interval", "5", "--eval-interval", "10", "--save-interval", "5",
        "--eval-episodes", "1", "--eval-envs", "1", "--max-episode-steps", "50",
        "--batch-size", "8",
        "--actor-hidden-dims", "16", "16", "--value-hidden-dims", "16", "16",
    ]  # fmt: skip


@pytest.fixture
def refused(monkeypatch):
    """Makes the system refuse to open a file, with an error of that number."""

    @contextlib.contextmanager
    def refuse(path, number):
        opened = os.open

        def refusing(name, *arguments, **options):
            if Path(name) == Path(path):
                raise OSError(number, os.strerror(number), str(path))
            return opened(name, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refusing)
            yield

    return refuse
