"""The authors' JAX code in a process of its own, which answers requests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from trqam_fast.errors import RunError, UsageError


def check_checkout(checkout: Path) -> None:
    """Raise `UsageError` unless a folder holds the authors' code."""
    if not (checkout / "agents" / "trqam.py").is_file():
        raise UsageError(
            f"--reference is {checkout}, which has no agents/trqam.py; give a checkout of "
            "https://github.com/yonghdong/trqam"
        )


class Reference:
    """The authors' code in a process of its own."""

    def __init__(self, checkout: Path, python: Path, device: str) -> None:
        worker = Path(__file__).with_name("reference_worker.py")
        paths = [str(checkout.resolve()), os.environ.get("PYTHONPATH", "")]
        environment = dict(
            os.environ, JAX_PLATFORMS=device, PYTHONPATH=os.pathsep.join(filter(None, paths)),
            XLA_PYTHON_CLIENT_PREALLOCATE="false",  # else it takes most of the GPU from ours
        )  # fmt: skip
        self.process = subprocess.Popen(
            [str(python), str(worker)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **request: object) -> dict:
        """Send one request and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # It has ended; its last words say why.
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            words = self.process.stderr.read().strip().splitlines() or ["no message"]
            raise RunError(
                f"the reference stopped ({words[-1]}); check --reference and --reference-python"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
