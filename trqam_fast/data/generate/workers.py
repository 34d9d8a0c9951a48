"""Makes shards in this process or in worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from trqam_fast.data.generate.expert import Expert
from trqam_fast.data.generate.shards import KEPT, Shard
from trqam_fast.errors import RunError

EPISODE, SHARD = 0, 1  # What a worker reports; an error is reported as its text.


def make_shards(
    shards: Sequence[Shard], make_expert: Callable[[], Expert], workers: int
) -> Iterator[None]:
    """Make shards, yielding after each trajectory.

    Closing the iterator, or an error, ends the workers. Workers whose parent was killed end after
    the trajectory that they are at.

    Args:
        shards: What is missing.
        make_expert: Makes a worker's expert; it is pickled.
        workers: Number of processes; 1 works in this one.

    Raises:
        RunError: a trajectory cannot be generated, or a worker died.
    """
    workers = min(workers, len(shards))
    if workers > 1:
        yield from in_processes(shards, make_expert, workers)
    elif shards:
        with contextlib.closing(make_expert()) as expert:
            for shard in shards:
                yield from shard.make(expert)


def in_processes(
    shards: Sequence[Shard], make_expert: Callable[[], Expert], workers: int
) -> Iterator[None]:
    """Make shards in worker processes, each of which gets a new shard when it has made one."""
    todo = iter(shards)
    running: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(workers):
            connection, process = start_worker(make_expert)
            running[connection] = process
            with reported(process):
                connection.send(next(todo))
        while running:
            for connection in wait(list(running)):
                with reported(running[connection]):
                    message = connection.recv()
                if message == EPISODE:
                    yield
                elif message == SHARD:
                    shard = next(todo, None)
                    with reported(running[connection]):
                        connection.send(shard)
                    if shard is None:
                        running.pop(connection).join()
                else:
                    raise RunError(message)
    finally:
        for process in running.values():
            process.kill()  # Shards are written whole, so nothing is lost but the present one.
            process.join()


@contextlib.contextmanager
def reported(process: BaseProcess) -> Iterator[None]:
    """Raise `RunError` where the other side of a pipe turns out to be gone."""
    try:
        yield
    except (EOFError, ConnectionError):
        process.join()
        raise RunError(f"a worker process died with exit code {process.exitcode}; {KEPT}") from None


def start_worker(make_expert: Callable[[], Expert]) -> tuple[Connection, BaseProcess]:
    """Start a worker that ignores Ctrl-C, which reaches this process too and ends the worker."""
    context = multiprocessing.get_context("spawn")  # A fork after torch's threads can hang.
    connection, theirs = context.Pipe()
    process = context.Process(target=work, args=(make_expert, theirs), daemon=True)
    resource_tracker.ensure_running()  # Its start would unblock the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return connection, process


def work(make_expert: Callable[[], Expert], connection: Connection) -> None:
    """Make one shard after the other, until there are no more or the parent is gone."""
    try:
        with contextlib.closing(make_expert()) as expert:
            while (shard := connection.recv()) is not None:
                for _ in shard.make(expert):
                    connection.send(EPISODE)
                connection.send(SHARD)
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        known = isinstance(error, RunError)
        text = str(error) if known else f"a worker failed ({type(error).__name__}: {error}); {KEPT}"
        with contextlib.suppress(ConnectionError):
            connection.send(text)
