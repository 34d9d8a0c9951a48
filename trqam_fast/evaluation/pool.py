"""Processes that play: their handle, and what runs in them.

A worker is a fresh interpreter without torch, started by file name rather than by
`multiprocessing`, which would import the program's main module, and torch with it, once more. It
ends when the other side of its pipe is gone, so no worker outlives the program.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from trqam_fast.cli import in_words
from trqam_fast.errors import RunError
from trqam_fast.evaluation.episodes import Order, Reply, Troupe

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class Here:
    """Plays in this process; has the interface of `Worker`."""

    def __init__(self, env_id: str, options: dict[str, Any]) -> None:
        self.troupe = Troupe(env_id, options)
        self.sent: deque[list[tuple[int, Order]]] = deque()

    def send(self, orders: list[tuple[int, Order]]) -> None:
        """Take orders for several slots."""
        self.sent.append(orders)

    def receive(self) -> list[Reply]:
        """Carry out the oldest orders and return their replies."""
        return self.troupe.play(self.sent.popleft())

    def close(self) -> None:
        """Forget the orders and close the environments."""
        self.sent.clear()
        self.troupe.close()


class Worker:
    """A process that plays, started when it is first needed."""

    def __init__(
        self, env_id: str, options: dict[str, Any], environment: dict[str, str] | None = None
    ) -> None:
        self.task = (env_id, options)
        self.environment = ONE_THREAD | (environment or {})
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process."""
        self.connection, theirs = Pipe()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        number = theirs.fileno()
        with theirs:
            # In a session of its own, so that Ctrl-C reaches the program alone.
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", __name__, str(number)],
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | self.environment | {"PYTHONPATH": path},
            )
        self._post(self.task)

    def send(self, orders: list[tuple[int, Order]]) -> None:
        """Send orders for several slots; replies come in the order of sending."""
        if self.process is None:
            self.start()
        self._post(orders)

    def _post(self, message: Any) -> None:
        # An error means that the process is dead, which `receive` will report.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> list[Reply] | None:
        """Return the replies to the oldest orders, or None if the process has died.

        Raises:
            RunError: an environment failed there; the sentence says how.
        """
        try:
            replies = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(replies, str):
            raise RunError(replies)
        return replies

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.connection.close()


def serve(connection: Connection) -> None:
    """Receive a task, then carry out orders until the other side is gone."""
    with contextlib.suppress(EOFError, ConnectionError):
        troupe = Troupe(*connection.recv())
        with contextlib.closing(troupe):
            while True:
                orders = connection.recv()
                replies: list[Reply] | str
                try:
                    replies = troupe.play(orders)
                except Exception as error:  # it would only fail again
                    replies = in_words(error)
                connection.send(replies)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
