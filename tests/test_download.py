"""Downloads from a server in this process; nothing leaves the machine."""

import multiprocessing
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from trqam_fast.data import __main__ as command
from trqam_fast.data import download
from trqam_fast.data.download import Policy, Transfer, Version, fetch, get, plan, quoted
from trqam_fast.errors import RunError, UsageError

NAME = "cube-double-play-v0"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / "file.npz"
    rng = np.random.default_rng(0)
    np.savez(path, observations=rng.random((3000, 37)), actions=[[0.0]], terminals=[True])
    return path.read_bytes()


class Server(ThreadingHTTPServer):
    """Serves one content at every address, and fails as told."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = content, '"one"'
        self.cuts = []  # bytes after which the next answers end
        self.status = {}  # status by address
        self.length = None  # Content-Length, if it lies
        self.ranges = True
        self.change_after = None  # requests after which another file is there
        self.span = None  # Content-Range, if it lies
        self.held = None  # event that a cut answer waits for before its connection ends
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802
        server = self.server
        server.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if server.change_after is not None and len(server.seen) > server.change_after:
            server.tag = '"two"'
        status = server.status.get(self.path, 200)
        if status != 200:
            self.send_error(status)
            return
        start = 0
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, server.tag)
        if wanted and server.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            size = len(server.content)
            self.send_header("Content-Range", server.span or f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(server.length or len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        held = server.held
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        if held:
            held.wait(20)
        self.close_connection = True


@pytest.fixture
def server(content):
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def policy(waits):
    return Policy(attempts=4, timeout=5, sleep=waits.append)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_train_and_validation_file(server, tmp_path, policy, content, monkeypatch):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", f"{server.url}/official")
    found = get(NAME, tmp_path / "new", policy=policy, progress=False)
    assert found == [tmp_path / "new" / f"{NAME}.npz", tmp_path / "new" / f"{NAME}-val.npz"]
    assert [path for path, *_ in server.seen] == [
        f"/official/{NAME}.npz",
        f"/official/{NAME}-val.npz",
    ]
    assert all(path.read_bytes() == content for path in found)
    get(NAME, tmp_path / "new", policy=policy, progress=False)
    assert len(server.seen) == 2


def test_a_cut_connection_is_resumed(server, tmp_path, policy, waits, content):
    server.cuts = [100_000, 1, 200_000]
    path = tmp_path / "a.npz"
    fetch([f"{server.url}/a.npz"], path, policy, progress=False)
    assert path.read_bytes() == content
    assert [span for _, span, _ in server.seen] == [
        None, "bytes=100000-", "bytes=100001-", "bytes=300001-",
    ]  # fmt: skip
    assert {tag for _, _, tag in server.seen[1:]} == {'"one"'}
    assert waits == [1, 1, 1]  # each brought something
    assert files(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("how", ["no ranges", "another file", "foreign range"])
def test_what_cannot_be_resumed_begins_anew(server, tmp_path, policy, content, how):
    server.cuts = [100_000]
    if how == "no ranges":
        server.ranges = False
    elif how == "another file":
        server.change_after = 1
    else:
        server.cuts.append(10**9)
        server.span = "bytes 0-99/100"
    path = tmp_path / "a.npz"
    fetch([f"{server.url}/a.npz"], path, policy, progress=False)
    assert path.read_bytes() == content
    assert len(server.seen) == (3 if how == "foreign range" else 2)


def test_a_host_that_keeps_cutting_is_given_up(server, tmp_path, policy, waits):
    server.ranges, server.cuts = False, [1000] * 100
    with pytest.raises(RunError, match=r"1000 of \d+ bytes came, after 4 attempts"):
        fetch([f"{server.url}/a.npz"], tmp_path / "a.npz", policy, progress=False)
    assert len(server.seen) == 4 and waits == [1, 2, 4]
    assert files(tmp_path) == []


def test_a_wrong_length_is_no_whole_file(server, tmp_path, policy):
    server.length = len(server.content) + 10
    with pytest.raises(RunError, match="another part than was asked for, after 4 attempts"):
        fetch([f"{server.url}/a.npz"], tmp_path / "a.npz", policy, progress=False)
    server.length = 1000  # too short: the archive is cut
    with pytest.raises(RunError, match="no npz file"):
        fetch([f"{server.url}/a.npz"], tmp_path / "a.npz", policy, progress=False)
    assert files(tmp_path) == []


def test_mirrors_are_asked_in_order(server, tmp_path, policy, monkeypatch, content):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", f"{server.url}/official")
    server.status = {f"/one/{NAME}.npz": 404, f"/one/{NAME}-val.npz": 403}
    mirrors = [f"{server.url}/one/", f"{server.url}/two"]
    get(NAME, tmp_path, mirrors, policy, progress=False)
    asked = [path.split("/")[1] for path, *_ in server.seen]
    assert asked == ["one", "two", "one", "two"]
    assert files(tmp_path) == [f"{NAME}-val.npz", f"{NAME}.npz"]
    with pytest.raises(UsageError, match="--mirror 'host' is no address"):
        get(NAME, tmp_path, ["host"], policy)


def test_what_no_host_has(server, tmp_path, policy, waits):
    server.status = {"/a.npz": 404, "/b.npz": 503}
    urls = [f"{server.url}/a.npz", f"{server.url}/b.npz"]
    with pytest.raises(RunError, match=r"a.npz: status 404; .*b.npz: status 503, after 4 .*--mir"):
        fetch(urls, tmp_path / "a.npz", policy, progress=False)
    assert waits == [1, 2, 4]
    assert files(tmp_path) == []


def test_no_host_at_all(server, tmp_path, policy):
    server.server_close()
    server.socket.close()
    with pytest.raises(RunError, match=r"refused.*after 4 attempts"):
        fetch(["http://127.0.0.1:1/a.npz"], tmp_path / "a.npz", policy, progress=False)


def test_a_host_that_falls_silent(server, tmp_path, waits, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: done.wait(5))
    policy = Policy(attempts=2, timeout=0.1, sleep=waits.append)
    with pytest.raises(RunError, match="timed out, after 2 attempts"):
        fetch([f"{server.url}/a.npz"], tmp_path / "a.npz", policy, progress=False)
    done.set()


@pytest.mark.parametrize("kind", ["page", "bit", "foreign"])
def test_a_lying_host(server, tmp_path, policy, content, kind, tmp_path_factory):
    """Status and length are right, the file is not."""
    if kind == "page":
        server.content = b"<html>not found</html>"
    elif kind == "bit":
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        server.content = bytes(changed)
    else:
        path = tmp_path_factory.mktemp("foreign") / "foreign.npz"
        np.savez(path, weights=[1.0])
        server.content = path.read_bytes()
    honest = Server(content)
    thread = threading.Thread(target=honest.serve_forever, args=(0.01,))
    thread.start()
    try:
        path = tmp_path / "a.npz"
        with pytest.raises(RunError, match="no npz file|checksum|no array 'actions'"):
            fetch([f"{server.url}/a.npz"], path, policy, progress=False)
        assert files(tmp_path) == []
        fetch([f"{server.url}/a.npz", f"{honest.url}/a.npz"], path, policy, progress=False)
        assert path.read_bytes() == content
    finally:
        honest.shutdown()
        thread.join()
        honest.server_close()


def test_ten_processes_fetch_once(server, tmp_path, content):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "a.npz"
    arguments = ([f"{server.url}/a.npz"], path, Policy(), False)
    processes = [context.Process(target=fetch, args=arguments) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 10
    assert len(server.seen) == 1
    assert path.read_bytes() == content
    assert files(tmp_path) == ["a.npz"]


def killed(server, path, size):
    """Fetch in a process that is killed when `size` bytes are on the disk."""
    server.held = threading.Event()
    server.cuts = [size]
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=fetch, args=([f"{server.url}/a.npz"], path, Policy(timeout=60), False)
    )
    process.start()
    partial = path.with_name(f".{path.name}.partial")
    deadline = time.monotonic() + 20
    while not (partial.exists() and partial.stat().st_size > 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    server.held.set()
    server.held = None
    server.seen.clear()
    return partial.stat().st_size


def test_a_killed_download_goes_on(server, tmp_path, policy, content):
    path = tmp_path / "a.npz"
    have = killed(server, path, 600_000)
    fetch([f"{server.url}/a.npz"], path, policy, progress=False)
    assert server.seen == [("/a.npz", f"bytes={have}-", '"one"')]
    assert path.read_bytes() == content and files(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("how", ["another file", "another host", "no note", "damaged note", "bit"])
def test_a_killed_download_that_cannot_go_on_begins_anew(server, tmp_path, policy, content, how):
    path, url = tmp_path / "a.npz", f"{server.url}/a.npz"
    have = killed(server, path, 600_000)
    partial = tmp_path / ".a.npz.partial"
    note = tmp_path / ".a.npz.partial.json"
    if how == "another file":
        server.tag = '"two"'
    elif how == "another host":
        url = f"{server.url}/mirror/a.npz"
    elif how == "no note":
        note.unlink()
    elif how == "damaged note":
        note.write_text('{"url": 1}')
    else:
        partial.write_bytes(b"x" * have)
    fetch([url], path, policy, progress=False)
    assert path.read_bytes() == content and files(tmp_path) == ["a.npz"]
    if how in ("another host", "no note", "damaged note"):
        assert [span for _, span, _ in server.seen] == [None]


def test_a_download_that_was_killed_at_its_end(server, tmp_path, policy, content):
    partial, url = tmp_path / ".a.npz.partial", f"{server.url}/a.npz"
    partial.write_bytes(content)
    Version(url, len(content), '"one"').write(partial)
    fetch([url], tmp_path / "a.npz", policy, progress=False)
    assert server.seen == [] and files(tmp_path) == ["a.npz"]


def test_an_interrupted_download_is_kept(server, tmp_path, policy, content):
    server.cuts = [100_000]

    def interrupt(_):
        raise KeyboardInterrupt

    path, url = tmp_path / "a.npz", f"{server.url}/a.npz"
    with pytest.raises(KeyboardInterrupt):
        fetch([url], path, Policy(sleep=interrupt), progress=False)
    assert (tmp_path / ".a.npz.partial").stat().st_size == 100_000
    fetch([url], path, policy, progress=False)
    assert server.seen[1][1] == "bytes=100000-" and path.read_bytes() == content


@pytest.mark.parametrize(
    "mirror",
    ["http://[::1", "http://host:99999", "http://host:x", "http://", "http:///x", "ftp://host",
     "http://höst/x", "http://h ost/x"],
)  # fmt: skip
def test_mirrors_that_are_no_address(mirror, tmp_path):
    with pytest.raises(UsageError, match="--mirror .* is no address") as error:
        get(NAME, tmp_path, [mirror])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_path_of_a_mirror_is_quoted(server, tmp_path, policy):
    assert quoted("https://host/a%20b?x=1") == "https://host/a%20b?x=1"
    get(NAME, tmp_path, [f"{server.url}/dätä sets"], policy, progress=False)
    assert server.seen[0][0] == f"/d%C3%A4t%C3%A4%20sets/{NAME}.npz"


def test_a_host_that_sends_one_to_no_address(server, tmp_path, policy, monkeypatch):
    def redirect(self):
        self.send_response(302)
        self.send_header("Location", "http://[::1")
        self.end_headers()

    monkeypatch.setattr(Handler, "do_GET", redirect)
    with pytest.raises(RunError, match="cannot fetch a.npz"):
        fetch([f"{server.url}/a.npz"], tmp_path / "a.npz", policy, progress=False)


def test_a_file_that_is_cut_off_is_fetched_again(server, tmp_path, policy, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content[:-100])
    fetch([f"{server.url}/a.npz"], path, policy, progress=False)
    assert path.read_bytes() == content


def test_a_full_disk_is_not_the_hosts_fault(server, tmp_path, policy, monkeypatch):
    real = open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, block):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "open", lambda *a: Full(real(*a)), raising=False)
    with pytest.raises(RunError, match="cannot write .*No space left"):
        Transfer(Version(f"{server.url}/a.npz"), tmp_path / "a.npz", policy, progress=False).run()
    assert len(server.seen) == 1


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
