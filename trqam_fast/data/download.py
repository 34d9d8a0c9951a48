"""Downloads OGBench's files: resumed, retried, verified, once however many processes ask.

What came of a file lies next to it until all of it is there, and any later connection goes on from
its end: after a cut, after a killed process, at the next host. That it became the right file is
told by the checksums in the archive, before it gets its name; a part that fits no host is fetched
anew.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import requests
import urllib3
from tqdm import tqdm

from trqam_fast.damage import is_damage, reason_of
from trqam_fast.data.names import LARGE_SETS, parse_dataset
from trqam_fast.data.npz import is_damaged, whole_headers_of
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import expanded, locked, open_file
from trqam_fast.text import printable

REQUIRED = {"observations", "actions", "terminals"}
BLOCK = 2**18
PASSING = (408, 416, 425, 429)
"""Statuses below 500 that another try may change."""
PATIENCE = 4
"""Timeouts without anything that came of a connection, which may ask several addresses."""
AHEAD = 4
"""Blocks that are read before the disk takes them."""


@dataclass(frozen=True)
class Patience:
    """How stubborn a download is, and how patient.

    Attributes:
        attempts: Failures in a row after which the next host is asked. A connection that brought
            new bytes at `slowest` a second or more, waits included, begins a new row.
        first_wait: Seconds before the second try; each further wait is twice as long.
        longest_wait: Most seconds of a wait.
        timeout: Seconds without an answer after which a connection counts as cut.
        slowest: Bytes a second; a connection that brings fewer for `timeout` seconds is cut.
        largest: Bytes of a file; no file of OGBench is nearly as large.
        sleep: Waits that many seconds.
    """

    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 30.0
    timeout: float = 30.0
    slowest: float = 1000.0
    largest: int = 2**36
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int) -> None:
        """Wait after that many failures in a row."""
        self.sleep(min(self.first_wait * 2 ** (failures - 1), self.longest_wait))


class Refused(Exception):
    """A host's answer that another try will not change."""


class Broken(Exception):
    """A host's answer that another try may change."""


FAILURES = (
    Broken, requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError,
)  # fmt: skip
"""What a connection that fails raises."""


def plan(name: str, folder: Path) -> list[tuple[str, Path]]:
    """Return the files of a dataset: where below a host's address, and where on this machine.

    Args:
        name: A dataset, e.g. ``cube-double-play-v0``: train and -val file; a large set, e.g.
            ``cube-triple-play-10m-v0``: its train files, in a folder of that name; or a task.
        folder: Folder of datasets.

    Raises:
        UsageError: OGBench has no such dataset.
    """
    folder = expanded(folder)
    if name in LARGE_SETS:
        large = LARGE_SETS[name]
        return [(f"{large.folder}/{file}", folder / name / file) for file in large.file_names]
    stem = parse_dataset(name).dataset_name
    if any(stem == large.dataset_name for large in LARGE_SETS.values()) and "octuple" in stem:
        raise UsageError(f"{name!r} has no file of 1M; get cube-octuple-play-100m-v0 or -10m-v0")
    return [(file, folder / file) for file in (f"{stem}.npz", f"{stem}-val.npz")]


def get(
    name: str,
    folder: Path,
    mirrors: list[str] | None = None,
    patience: Patience | None = None,
    progress: bool = True,
) -> list[Path]:
    """Fetch the files of a dataset that are not in `folder` yet.

    Args:
        name: See `plan`.
        folder: Where they go.
        mirrors: Addresses to ask before the official one, in this order.
        patience: How stubborn to be.
        progress: Show a progress bar on a terminal.

    Returns:
        The files.

    Raises:
        UsageError: unknown name, or an address that is none.
        RunError: no host gave a whole file.
    """
    from ogbench.utils import DATASET_URL

    hosts = [*(mirrors or []), DATASET_URL]
    for host in hosts:
        check_address(host)
    files = plan(name, folder)
    for address, path in files:
        urls = [f"{host.rstrip('/')}/{address}" for host in hosts]
        fetch(urls, path, patience or Patience(), progress)
    return [path for _, path in files]


def check_address(mirror: str) -> None:
    """Raise `UsageError` if a mirror's address is none."""
    try:
        parts = urllib.parse.urlsplit(mirror)
        whole = bool(parts.hostname) and parts.port != 0 and " " not in parts.netloc
    except ValueError:
        whole = False
    if not whole or parts.scheme not in ("http", "https"):
        raise UsageError(
            f"--mirror {printable(mirror.rpartition('@')[2])!r} is no address; begin it with "
            "http:// or https:// and a host's name"
        )


def public(text: str) -> str:
    """Return a text fit for a terminal whose addresses lack login and query, which are secrets."""
    return printable(re.sub(r"(?<=//)[^/\s]*@|\?\S*", "", text), 200)


def fetch(urls: list[str], path: Path, patience: Patience, progress: bool = True) -> None:
    """Fetch one archive from the first address that gives a whole one, unless it is there.

    One that is there but damaged is replaced, by a whole one alone.

    Raises:
        RunError: none did; the message says why for each. What came is kept and gone on with.
        Unreadable: there is one, but the system does not let us read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not is_damaged(path):
        return
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists() and not is_damaged(path):
            return
        partial = path.with_name(f".{path.name}.partial")
        try:
            fetch_first(urls, partial, patience, progress)
        finally:
            if partial.exists() and partial.stat().st_size == 0:
                partial.unlink()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)


def fetch_first(urls: list[str], partial: Path, patience: Patience, progress: bool) -> None:
    """Make the partial file a whole archive from the first address that gives one.

    Raises:
        RunError: none does.
    """
    if partial.exists() and problem_of(partial) is None:
        return  # The process was killed before the file got its name.
    reasons = []
    for url in urls:
        try:
            parts = Transfer(url, partial, patience, progress).run()
            problem = problem_of(partial)
            if problem is not None and parts:
                partial.unlink()
                Transfer(url, partial, patience, progress).run()
                problem = problem_of(partial)
            if problem is None:
                return
            partial.unlink()
            reasons.append(f"{public(url)}: {problem}")
        except Refused as error:
            reasons.append(f"{public(url)}: {error}")
    kept = "; what came is kept" if partial.exists() and partial.stat().st_size else ""
    raise RunError(
        f"cannot fetch {partial.name[1:].removesuffix('.partial')} ({'; '.join(reasons)}){kept}; "
        "try --mirror with another host"
    )


def problem_of(path: Path) -> str | None:
    """Read a whole archive; return what is wrong with it as one of OGBench, or None."""
    try:
        with open_file(path) as file:
            missing = sorted(REQUIRED - whole_headers_of(file).keys())
    except Exception as error:
        if not is_damage(error):
            raise
        return f"the file is truncated, damaged or no npz file ({reason_of(error)})"
    if missing:
        return f"the file has no array {missing[0]!r}; it is not a dataset of OGBench"
    return None


def in_thread(items: Generator[Any, None, None], patience: float) -> Generator[Any, None, None]:
    """Yield what a generator yields in a thread of its own.

    The thread is left to itself where it stays behind: a host may send a byte now and then of what
    has to be whole before anything comes of it, as headers have.

    Raises:
        Broken: nothing came for `patience` seconds.
    """
    came: queue.Queue[Any] = queue.Queue(AHEAD)
    left = threading.Event()

    def fill() -> None:
        with contextlib.closing(items):
            try:
                for item in items:
                    came.put(item)
                    if left.is_set():
                        return
                came.put(None)
            except Exception as error:
                came.put(error)

    threading.Thread(target=fill, daemon=True).start()
    try:
        while True:
            try:
                item = came.get(timeout=patience)
            except queue.Empty:
                item = Broken(f"nothing came for {patience:g} seconds")
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        left.set()
        while not came.empty():  # or it would wait for room
            came.get()


class Transfer:
    """The download of one address to the end of one file, over as many connections as it takes."""

    def __init__(self, url: str, path: Path, patience: Patience, progress: bool) -> None:
        self.url, self.path, self.patience = url, path, patience
        self.bar = tqdm(
            desc=path.name[1:].removesuffix(".partial"), unit="B", unit_scale=True,
            disable=not progress,
        )  # fmt: skip

    def run(self) -> bool:
        """Download all of it; return whether it came in parts, which may be of two versions.

        Raises:
            Refused: the host does not give it.
            RunError: the disk does not take it.
        """
        patience, failures, clock = self.patience, 0, time.monotonic()
        with self.bar, open(self.path, "ab", buffering=0) as file:
            best, parts = file.tell(), file.tell() > 0
            while True:
                try:
                    self.connect(file)
                    return parts
                except FAILURES as error:
                    reason = public(reason_of(cause_of(error)))
                # Only what never came before is progress, else a host that keeps beginning anew
                # would be asked for ever, and so would one that sends a byte at a time.
                enough = patience.slowest * (time.monotonic() - clock)
                failures = 1 if file.tell() - best > enough else failures + 1
                best, parts, clock = max(best, file.tell()), True, time.monotonic()
                if failures >= patience.attempts:
                    raise Refused(f"{reason}, after {failures} attempts")
                patience.wait(failures)

    def connect(self, file: BinaryIO) -> None:
        """Ask for what is missing and write it; raise one of `FAILURES` unless all of it came."""
        have = file.tell()
        headers = {"Accept-Encoding": "identity", "User-Agent": "trqam_fast"}
        if have:
            headers["Range"] = f"bytes={have}-"
        asked = in_thread(self.ask(headers), PATIENCE * self.patience.timeout)
        with contextlib.closing(asked):
            answer = next(asked)
            status = answer.status_code
            span, _, total = answer.headers.get("Content-Range", "").partition("/")
            part = status == 206 and span.startswith(f"bytes {have}-")
            if not part and status in (200, 206, 416):  # all of it, or nothing that goes on
                file.seek(0)
                file.truncate()
            if status == 200:
                total = answer.headers.get("Content-Length", "")
            elif status == 206 and not part:
                raise Broken("another part came than was asked for")
            elif not part:
                passing = status >= 500 or status in PASSING
                raise (Broken if passing else Refused)(f"status {status}")
            size = int(total) if re.fullmatch("[0-9]{1,18}", total) else None
            self.bar.reset(size)
            self.bar.update(file.tell())
            self.receive(asked, file, size)
        if size not in (None, file.tell()):
            raise Broken(f"{file.tell()} of {size} bytes came")

    def ask(self, headers: dict[str, str]) -> Generator[Any, None, None]:
        """Yield the answer to a request, then the blocks of its body as they come."""
        with requests.get(
            self.url, headers=headers, stream=True, timeout=self.patience.timeout
        ) as answer:
            answer.raw.enforce_content_length = False  # the sizes are compared by `connect`
            yield answer
            while block := answer.raw.read1(BLOCK):
                yield block

    def receive(self, blocks: Iterator[bytes], file: BinaryIO, size: int | None) -> None:
        """Write a body as it comes, so that a connection that stands still loses nothing."""
        patience, came, clock = self.patience, 0, time.monotonic()
        while max(size or 0, file.tell()) <= patience.largest:
            block = next(blocks, b"")
            if not block:
                return
            try:
                while block:
                    done = file.write(block)
                    self.bar.update(done)
                    block, came = block[done:], came + done
            except OSError as error:
                raise RunError(
                    f"cannot write to {self.path.parent} ({reason_of(error)}); what came is kept, "
                    "and the same command goes on from there"
                ) from None
            seconds = time.monotonic() - clock
            if seconds > patience.timeout:
                if came < patience.slowest * seconds:
                    raise Broken(f"{came / seconds:.0f} bytes a second came")
                came, clock = 0, time.monotonic()
        self.path.unlink()
        raise Refused(f"the host sends more than {patience.largest:,} bytes")


def cause_of(error: BaseException) -> BaseException:
    """Return what is at the bottom of a chain of exceptions: that of the system, mostly."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error
