"""Downloads from a server in this process; nothing leaves the machine.

Longer than other files, as all of it needs that server.
"""

import contextlib
import errno
import io
import multiprocessing
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from trqam_fast.cli import run_command
from trqam_fast.damage import Unreadable
from trqam_fast.data import __main__ as command
from trqam_fast.data import download
from trqam_fast.data.download import Patience, fetch, get, plan
from trqam_fast.errors import RunError, UsageError

NAME = "cube-double-play-v0"


def archive_of(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def dataset(seed):
    rows = np.random.default_rng(seed).random((3000, 37))
    return archive_of(observations=rows, actions=[[0.0]], terminals=[True])


@pytest.fixture(scope="module")
def content():
    return dataset(0)


class Server(ThreadingHTTPServer):
    """Serves one content at every address, and fails as told."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.later = None  # what is there after the first request
        self.cuts = []  # bytes after which the next answers end
        self.status = {}  # status by address
        self.length = None  # Content-Length, if it lies
        self.ranges = True
        self.span = None  # Content-Range, if it lies
        self.held = None  # event that a cut answer waits for before its connection ends
        self.pause = 0  # seconds between the bytes of an answer
        self.raw = None  # the whole answer
        self.seen, self.logins = [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802
        with contextlib.suppress(ConnectionError):
            self.answer(self.server)
        self.close_connection = True

    def answer(self, server):
        wanted = self.headers.get("Range")
        server.seen.append((self.path, wanted))
        server.logins.append(self.headers.get("Authorization"))
        if server.later is not None and len(server.seen) > 1:
            server.content = server.later
        if server.raw is not None:
            self.wfile.write(server.raw)
            return
        if (status := server.status.get(self.path, 200)) != 200:
            self.send_error(status)
            return
        start, size = 0, len(server.content)
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", server.span or f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.length != "none":
            self.send_header("Content-Length", str(server.length or len(body)))
        self.end_headers()
        held = server.held
        body = body[: server.cuts.pop(0)] if server.cuts else body
        for part in [body] if not server.pause else (body[i : i + 1] for i in range(len(body))):
            self.wfile.write(part)
            time.sleep(server.pause)
        if held:
            held.wait(20)


@contextlib.contextmanager
def serving(content):
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(content):
    with serving(content) as server:
        yield server


@pytest.fixture
def waits():
    return []


@pytest.fixture
def patience(waits):
    return Patience(attempts=4, timeout=5, slowest=1e-9, sleep=waits.append)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.npz"


@pytest.fixture
def fetched(server, path, patience):
    """Fetches a.npz from the server, or from other addresses, and returns what came."""

    def run(*urls, patience=patience):
        fetch([*urls] or [f"{server.url}/a.npz"], path, patience, progress=False)
        return path.read_bytes()

    return run


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def parts(server):
    """The beginnings that were asked for."""
    return [0 if span is None else int(span[6:-1]) for _, span in server.seen]


def test_train_and_validation_file(server, tmp_path, patience, content, monkeypatch):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", f"{server.url}/official")
    found = get(NAME, tmp_path / "new", patience=patience, progress=False)
    assert found == [tmp_path / "new" / f"{NAME}.npz", tmp_path / "new" / f"{NAME}-val.npz"]
    assert server.seen == [(f"/official/{NAME}{end}.npz", None) for end in ("", "-val")]
    assert all(path.read_bytes() == content for path in found)
    get(NAME, tmp_path / "new", patience=patience, progress=False)
    assert len(server.seen) == 2


def test_a_cut_connection_is_resumed(server, fetched, tmp_path, waits, content):
    server.cuts = [100_000, 1, 200_000]
    assert fetched() == content
    assert parts(server) == [0, 100_000, 100_001, 300_001]
    assert waits == [1, 1, 1]  # each brought something
    assert files(tmp_path) == ["a.npz"]


def test_a_connection_that_stands_still_loses_nothing(server, fetched, waits, content):
    server.cuts, server.held = [250_000] * 3, threading.Event()
    assert fetched(patience=Patience(attempts=2, timeout=0.2, sleep=waits.append)) == content
    server.held.set()
    assert parts(server) == [0, 250_000, 500_000, 750_000] and waits == [1, 1, 1]


@pytest.mark.parametrize("how", ["no ranges", "another file", "foreign range"])
def test_what_cannot_be_resumed_begins_anew(server, fetched, tmp_path, content, how):
    server.cuts = [100_000]
    if how == "no ranges":
        server.ranges = False
    elif how == "another file":
        content = server.later = dataset(1)
    else:
        server.cuts.append(10**9)
        server.span = "bytes 0-99/100"
    assert fetched() == content and files(tmp_path) == ["a.npz"]
    assert parts(server) == [0, 100_000] + [0] * (how != "no ranges")


def test_a_host_that_keeps_cutting_is_given_up(server, fetched, tmp_path, waits):
    server.ranges, server.cuts = False, [1000] * 100
    with pytest.raises(RunError, match=r"1000 of \d+ bytes came, after 4 attempts.*what came is"):
        fetched()
    assert len(server.seen) == 4 and waits == [1, 2, 4]
    assert files(tmp_path) == [".a.npz.partial"]


def test_a_slow_host_is_given_up(server, fetched, tmp_path, waits, content):
    """A byte now and then is neither an answer nor progress; the next host goes on from there."""
    server.pause = 0.01
    with pytest.raises(RunError, match=r"a.npz: \d+ bytes a second came, after 3 attempts"):
        fetched(patience=Patience(attempts=3, timeout=0.3, slowest=1000, sleep=waits.append))
    came = (tmp_path / ".a.npz.partial").stat().st_size
    assert 3 <= came < 200 and waits == [1, 2]
    with serving(content) as fast:
        assert fetched(f"{fast.url}/a.npz") == content
        assert parts(fast) == [came]


@pytest.mark.parametrize("length", [None, "none", 10**18])
def test_more_than_any_file_has(server, fetched, tmp_path, length):
    """Claimed by the host, or only sent."""
    server.length = length
    with pytest.raises(RunError, match="a.npz: the host sends more than 300,000 bytes"):
        fetched(patience=Patience(largest=300_000))
    assert len(server.seen) == 1 and files(tmp_path) == []


def test_a_wrong_length_is_no_whole_file(server, fetched, tmp_path):
    server.length = len(server.content) + 10
    with pytest.raises(RunError, match="after 4 attempts"):
        fetched()
    server.length, server.ranges = 1000, False  # too short: the archive is cut
    with pytest.raises(RunError, match="truncated, damaged or no npz file"):
        fetched()
    assert files(tmp_path) == []


def test_mirrors_are_asked_in_order(server, tmp_path, patience, monkeypatch):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", f"{server.url}/official")
    server.status = {f"/one/{NAME}.npz": 404, f"/one/{NAME}-val.npz": 403}
    mirrors = [f"{server.url}/one/", f"{server.url}/two"]
    get(NAME, tmp_path, mirrors, patience, progress=False)
    assert [path.split("/")[1] for path, _ in server.seen] == ["one", "two", "one", "two"]
    assert files(tmp_path) == [f"{NAME}-val.npz", f"{NAME}.npz"]


def test_what_no_host_has(server, fetched, tmp_path, waits):
    server.status = {"/a.npz": 404, "/b.npz": 503}
    with pytest.raises(RunError) as error:
        fetched(f"{server.url}/a.npz", f"{server.url}/b.npz", "http://127.0.0.1:1/c.npz")
    for reason in ("a.npz: status 404; ", "b.npz: status 503, after 4 attempts; ", "try --mirror",
                   "c.npz: Connection refused, after 4 attempts"):  # fmt: skip
        assert reason in str(error.value)
    assert waits == [1, 2, 4] * 2
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500])
def test_a_status_that_passes_leaves_what_came(server, fetched, content, status):
    server.cuts = [100_000]
    steps = iter([status, 200])
    patience = Patience(sleep=lambda _: server.status.update({"/a.npz": next(steps)}))
    assert fetched(patience=patience) == content
    assert parts(server) == [0, 100_000, 100_000]


def test_a_host_that_falls_silent(fetched, waits, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: done.wait(5))
    with pytest.raises(RunError, match="timed out, after 2 attempts"):
        fetched(patience=Patience(attempts=2, timeout=0.1, sleep=waits.append))
    done.set()


@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ids=["headers", "size of a chunk"],
)
def test_a_host_that_drips_is_given_up(beginning, fetched, waits, monkeypatch):
    """Each byte comes in time, but nothing is whole for ever; nobody waits for it at the end."""
    over = threading.Event()

    def drip(self):
        with contextlib.suppress(ConnectionError):
            self.wfile.write(beginning)
            while not over.wait(0.02):
                self.wfile.write(b"1")

    monkeypatch.setattr(Handler, "do_GET", drip)
    monkeypatch.setattr(download, "PATIENCE", 0.02)
    with pytest.raises(RunError, match=r"a.npz: nothing came for 0\.4 seconds, after 2 attempts"):
        fetched(patience=Patience(attempts=2, timeout=20, sleep=waits.append))
    over.set()


@pytest.mark.parametrize("kind", ["page", "bit", "foreign"])
def test_a_lying_host(server, fetched, tmp_path, content, kind):
    """Status and length are right, the file is not."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    server.content = {
        "page": b"<html>not found</html>", "bit": bytes(changed),
        "foreign": archive_of(weights=[1.0]),
    }[kind]  # fmt: skip
    with pytest.raises(RunError, match="no npz file|checksum|no array 'actions'"):
        fetched()
    assert files(tmp_path) == []
    with serving(content) as honest:
        assert fetched(f"{server.url}/a.npz", f"{honest.url}/a.npz") == content


def test_ten_processes_fetch_once(server, path, content):
    context = multiprocessing.get_context("fork")
    arguments = ([f"{server.url}/a.npz"], path, Patience(), False)
    processes = [context.Process(target=fetch, args=arguments) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 10
    assert len(server.seen) == 1
    assert path.read_bytes() == content and files(path.parent) == ["a.npz"]


@pytest.mark.parametrize("then", ["same", "another file", "another host", "bit"])
def test_a_killed_download_goes_on(server, fetched, path, content, then):
    """All that came is used, at another host too; if it was of another file, it begins anew."""
    url, partial = f"{server.url}/a.npz", path.with_name(".a.npz.partial")
    server.held, server.cuts = threading.Event(), [600_000]
    arguments = ([url], path, Patience(timeout=60), False)
    process = multiprocessing.get_context("fork").Process(target=fetch, args=arguments)
    process.start()
    deadline = time.monotonic() + 20
    while not (partial.exists() and partial.stat().st_size == 600_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    server.held.set()
    server.held = None
    server.seen.clear()
    if then == "another file":
        content = server.content = dataset(1)
    elif then == "another host":
        url = f"{server.url}/mirror/a.npz"
    elif then == "bit":
        partial.write_bytes(partial.read_bytes()[:-1] + b"x")
    assert fetched(url) == content and files(path.parent) == ["a.npz"]
    assert parts(server) == [600_000] + [0] * (then in ("another file", "bit"))


def test_a_download_that_was_killed_at_its_end(server, fetched, tmp_path, content):
    (tmp_path / ".a.npz.partial").write_bytes(content)
    assert fetched() == content
    assert server.seen == [] and files(tmp_path) == ["a.npz"]


def test_an_interrupted_download_is_kept(server, fetched, content):
    server.cuts = [100_000]

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetched(patience=Patience(sleep=interrupt))
    assert fetched() == content and parts(server) == [0, 100_000]


@pytest.mark.parametrize(
    "mirror",
    ["host", "http://[::1", "http://host:99999", "http://host:x", "http://", "http:///x",
     "ftp://host", "http://h ost/x", "user:secret@host", "http://user:secret@h ost",
     "http://user:sec/secret@host:x", "http://\x1b[2Jhost:x"],
)  # fmt: skip
def test_mirrors_that_are_no_address(mirror, tmp_path):
    with pytest.raises(UsageError, match="--mirror .* is no address") as error:
        get(NAME, tmp_path, [mirror])
    assert str(error.value).isprintable() and "secret" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_login_is_used_and_never_printed(server, fetched, path, content, capsys):
    mirror = server.url.replace("//", "//user:secret@") + "/dätä sets"
    assert fetched(f"{mirror}/a.npz?token=secret") == content
    assert server.logins == ["Basic dXNlcjpzZWNyZXQ="]
    assert server.seen[0][0] == "/d%C3%A4t%C3%A4%20sets/a.npz?token=secret"
    path.unlink()
    server.status = {server.seen[0][0]: 404}
    urls = [f"{mirror}/a.npz?token=secret", "http://user:secret@127.0.0.1:1/a.npz?secret"]
    assert run_command(lambda: fetched(*urls)) == 1
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err
    assert f"{server.url}/dätä sets/a.npz: status 404; http://127.0.0.1:1/a.npz: " in printed.err


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 \x1b[2J\x1b[31mowned\r\nwrote /etc/x\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\x1b[2J\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\nContent-Encoding: gzip\r\n\r\n\x1b[2J",
        b"\x00\xff\x1b[2J\r\n",
    ],
)
def test_what_a_host_answers_reaches_no_terminal(server, fetched, raw):
    server.raw = raw
    with pytest.raises(RunError, match="cannot fetch a.npz") as error:
        fetched()
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_file_that_is_cut_off_is_fetched_again(fetched, path, content):
    path.write_bytes(content[:-100])
    assert fetched() == content


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_not_replaced(server, fetched, path, kind, refused):
    path.write_bytes(b"what it is nobody knows")
    with refused(path, kind), pytest.raises(Unreadable, match="a.npz cannot be read"):
        fetched()
    assert server.seen == [] and path.read_bytes() == b"what it is nobody knows"


def test_a_full_disk_is_not_the_hosts_fault(server, fetched, tmp_path, monkeypatch, content):
    """What came is kept, and gone on with once there is room."""

    class Full(io.FileIO):
        def write(self, block):
            if self.tell():
                raise OSError(28, "No space left on device")
            return super().write(block[:100])

    def opened(path, mode, buffering=-1):
        return Full(path, mode.replace("b", "")) if mode == "ab" else open(path, mode, buffering)

    monkeypatch.setattr(download, "open", opened, raising=False)
    with pytest.raises(RunError, match="cannot write to .*No space left.*what came is kept"):
        fetched()
    assert len(server.seen) == 1 and files(tmp_path) == [".a.npz.partial"]
    monkeypatch.undo()
    assert fetched() == content and parts(server) == [0, 100]


def test_files_of_a_large_set(tmp_path):
    files = plan("cube-triple-play-10m-v0", tmp_path)
    assert len(files) == 10
    assert files[3] == (
        "cube-triple-play-100m-v0/cube-triple-play-v0-003.npz",
        tmp_path / "cube-triple-play-10m-v0" / "cube-triple-play-v0-003.npz",
    )
    assert plan("cube-double-play-singletask-task1-v0", tmp_path)[0][0] == f"{NAME}.npz"
    with pytest.raises(UsageError, match="cube-octuple-play-100m-v0"):
        plan("cube-octuple-play-v0", tmp_path)


def test_command(server, tmp_path, capsys):
    words = ["get", NAME, "--dataset-dir", str(tmp_path), "--mirror", f"{server.url}/nothing"]
    server.status = {f"/nothing/{NAME}{part}.npz": 404 for part in ("", "-val")}
    assert command.main([*words, "--mirror", server.url]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"{NAME}.npz"),
        str(tmp_path / f"{NAME}-val.npz"),
    ]
