"""Downloads OGBench's files: resumed, retried, verified, once however many processes ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from trqam_fast.damage import Damaged, reading
from trqam_fast.data.names import LARGE_SETS, parse_dataset
from trqam_fast.data.npz import BROKEN as NO_ARCHIVE
from trqam_fast.data.npz import is_damaged, whole_headers_of
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import expanded, locked, open_file

REQUIRED = {"observations", "actions", "terminals"}
BLOCK = 2**18
BROKEN = (OSError, http.client.HTTPException, ValueError)
"""What a connection that fails raises; urllib's errors are OSErrors, a host that sends one to an
address that is none makes a ValueError."""


@dataclass(frozen=True)
class Policy:
    """How stubborn a download is.

    Attributes:
        attempts: Failures in a row after which the next host is asked; bytes that had not come
            before begin a new row.
        first_wait: Seconds before the second try; each further wait is twice as long.
        longest_wait: Most seconds of a wait.
        timeout: Seconds without an answer after which a connection counts as cut.
        sleep: Waits that many seconds.
    """

    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 30.0
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int) -> None:
        """Wait after that many failures in a row."""
        self.sleep(min(self.first_wait * 2 ** (failures - 1), self.longest_wait))


class Refused(Exception):
    """A host's answer that another try will not change."""


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
    policy: Policy | None = None,
    progress: bool = True,
) -> list[Path]:
    """Fetch the files of a dataset that are not in `folder` yet.

    Args:
        name: See `plan`.
        folder: Where they go.
        mirrors: Addresses to ask before the official one, in this order.
        policy: How stubborn to be.
        progress: Show a progress bar on a terminal.

    Returns:
        The files.

    Raises:
        UsageError: unknown name, or an address that is none.
        RunError: no host gave a whole file.
    """
    from ogbench.utils import DATASET_URL

    hosts = [*(quoted(mirror) for mirror in mirrors or []), DATASET_URL]
    files = plan(name, folder)
    for address, path in files:
        urls = [f"{host.rstrip('/')}/{address}" for host in hosts]
        fetch(urls, path, policy or Policy(), progress)
    return [path for _, path in files]


def quoted(mirror: str) -> str:
    """Return an address in the characters that are sent; raise `UsageError` if it is none."""
    try:
        parts = urllib.parse.urlsplit(mirror)
        host = f"{parts.hostname}:{parts.port}" if parts.hostname else ""
    except ValueError:
        host = ""
    if not host or not host.isascii() or " " in host or parts.scheme not in ("http", "https"):
        raise UsageError(
            f"--mirror {mirror!r} is no address; begin it with http:// or https:// and a host's "
            "name in ASCII"
        )
    return urllib.parse.quote(mirror, safe=string.punctuation)


def fetch(urls: list[str], path: Path, policy: Policy, progress: bool = True) -> None:
    """Fetch one archive from the first address that gives a whole one, unless it is there.

    One that is there but cut off is replaced. What came before a process was killed is kept and
    gone on with, if the host still has the same version.

    Raises:
        RunError: none did; the message says why for each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not is_damaged(path):
        return
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists() and not is_damaged(path):
            return
        temporary = path.with_name(f".{path.name}.partial")
        kept = Version.read(temporary)
        versions = [kept] if kept is not None and kept.url in urls else []
        try:
            fetch_first([*versions, *map(Version, urls)], temporary, path, policy, progress)
        except (RunError, OSError):
            Version.note(temporary).unlink(missing_ok=True)
            temporary.unlink(missing_ok=True)
            raise


def fetch_first(
    versions: list[Version], temporary: Path, path: Path, policy: Policy, progress: bool
) -> None:
    """Fetch the first version that is a whole archive; raise `RunError` if none is."""
    reasons = []
    for version in versions:
        try:
            Transfer(version, temporary, policy, progress).run()
            check_archive(temporary)
        except Refused as error:
            reasons.append(f"{version.url}: {error}")
            continue
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        Version.note(temporary).unlink(missing_ok=True)
        os.replace(temporary, path)
        return
    raise RunError(
        f"cannot fetch {path.name} ({'; '.join(reasons)}); try --mirror with another host"
    )


def check_archive(path: Path) -> None:
    """Read a fetched archive; raise `Refused` if it is none of OGBench or damaged."""
    try:
        with reading(path, *NO_ARCHIVE), open_file(path) as file:
            missing = sorted(REQUIRED - whole_headers_of(file).keys())
    except Damaged as error:
        raise Refused(f"the file {error}") from None
    if missing:
        raise Refused(f"the file has no array {missing[0]!r}; it is not a dataset of OGBench")


@dataclass(frozen=True)
class Version:
    """A file that a host has.

    Attributes:
        url: Its address.
        total: Its bytes, if known.
        tag: What stands for these bytes, its ETag or date; None if it has to be asked for.
    """

    url: str
    total: int | None = None
    tag: str | None = None

    @staticmethod
    def note(partial: Path) -> Path:
        """Return where the version of a file that has come in part is noted."""
        return partial.with_name(f"{partial.name}.json")

    @classmethod
    def read(cls, partial: Path) -> Version | None:
        """Return the version of a file that has come in part, or None."""
        try:
            found = cls(**json.loads(cls.note(partial).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        whole = isinstance(found.total, int) and isinstance(found.tag, str)
        return found if whole and partial.exists() else None

    def write(self, partial: Path) -> None:
        """Note the version, if it can be recognised."""
        # Without a note, a download that is killed begins anew.
        with contextlib.suppress(OSError):
            if self.tag is None or self.total is None:
                self.note(partial).unlink(missing_ok=True)
            else:
                self.note(partial).write_text(json.dumps(asdict(self)))


class Transfer:
    """The download of one address into one file, over as many connections as it takes."""

    def __init__(self, version: Version, path: Path, policy: Policy, progress: bool) -> None:
        self.url, self.path, self.policy = version.url, path, policy
        self.total, self.tag = version.total, version.tag
        self.bar = tqdm(
            desc=self.url.rpartition("/")[2], unit="B", unit_scale=True, disable=not progress
        )

    def run(self) -> None:
        """Download all of it; raise `Refused` if the host does not give it."""
        with self.bar, open(self.path, "wb" if self.tag is None else "ab") as file:
            failures, best = 0, file.tell()
            self.bar.reset(self.total)
            self.bar.update(best)
            if best and best == self.total:
                return
            while True:
                try:
                    came = self.connect(file)
                    if came and self.total in (None, file.tell()):
                        return
                    reason = f"{file.tell()} of {self.total} bytes came"
                    if not came:
                        reason = "the host sent another part than was asked for"
                except urllib.error.HTTPError as error:
                    reason = f"status {error.code}"
                    if error.code == 416:
                        self.restart(file)
                    elif error.code < 500 and error.code not in (408, 425, 429):
                        raise Refused(reason) from None
                except BROKEN as error:
                    reason = str(getattr(error, "reason", error)) or type(error).__name__
                # Only what never came before is progress: else a host that keeps beginning anew
                # would be asked forever.
                failures = 1 if file.tell() > best else failures + 1
                best = max(best, file.tell())
                if failures >= self.policy.attempts:
                    raise Refused(f"{reason}, after {failures} attempts")
                self.policy.wait(failures)

    def connect(self, file) -> bool:
        """Ask for what is missing and write it; return whether the answer was of use."""
        have = file.tell()
        headers = {"Accept-Encoding": "identity", "User-Agent": "trqam_fast"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.tag is not None:
                headers["If-Range"] = self.tag
        request = urllib.request.Request(self.url, headers=headers)
        with urllib.request.urlopen(request, timeout=self.policy.timeout) as response:
            if have and not self.continues(response, have):
                # The file has changed or the host sends all of it.
                self.restart(file)
                if response.status == 206:
                    return False
            if not file.tell():
                length = response.headers.get("Content-Length")
                self.total = int(length) if length and length.isdigit() else None
                tag = response.headers.get("ETag")
                # A weak tag does not vouch for the same bytes.
                strong = tag is not None and not tag.startswith("W/")
                self.tag = tag if strong else response.headers.get("Last-Modified")
                self.bar.reset(self.total)
                Version(self.url, self.total, self.tag).write(self.path)
            while block := response.read(BLOCK):
                try:
                    file.write(block)
                except OSError as error:
                    raise RunError(f"cannot write {self.path.parent}: {error}") from None
                self.bar.update(len(block))
        return True

    def continues(self, response: http.client.HTTPResponse, have: int) -> bool:
        """Return whether an answer goes on where the file ends, in the same version."""
        tag = response.headers.get("ETag")
        if response.status != 206 or (self.tag and self.tag.startswith('"') and tag != self.tag):
            return False
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        return span.startswith(f"bytes {have}-") and total == str(self.total)

    def restart(self, file) -> None:
        """Forget what came so far."""
        file.seek(0)
        file.truncate()
        self.total = self.tag = None
