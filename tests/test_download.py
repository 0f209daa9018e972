"""Fetching, against a server on this machine that breaks off, lies, or does as it should."""

import errno
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from afa_jax.download import fetch
from afa_jax.errors import UserError

CONTENT = bytes(range(256)) * 4000
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server's settings: what it sends, and after how many bytes it breaks off, request by request."""
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("AFA_JAX_MIRROR", raising=False)
    behaviour = {"content": CONTENT, "breaks": [], "status": None, "statuses": [], "length": True, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            behaviour["asked"].append(wanted)
            status = behaviour["statuses"].pop(0) if behaviour["statuses"] else behaviour["status"]
            if status == "close":
                self.close_connection = True
                return
            if status:
                self.send_error(status)
                return
            start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
            body = behaviour["content"][start:]
            self.send_response(206 if wanted else 200)
            if behaviour["length"]:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: behaviour["breaks"].pop(0)] if behaviour["breaks"] else body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        behaviour["url"] = f"http://127.0.0.1:{http.server_port}/models/{NAME}"
        yield behaviour
        http.shutdown()
        thread.join()


def left(tmp_path):
    return sorted(f.name for f in (tmp_path / "weights").iterdir() if not f.name.startswith("."))


def test_fetched_once_and_whole(server, tmp_path):
    path = fetch(server["url"])
    assert path.read_bytes() == CONTENT and left(tmp_path) == [NAME]
    assert fetch(server["url"]) == path and len(server["asked"]) == 1


def test_a_server_that_breaks_off_is_asked_for_the_rest(server, tmp_path):
    server["breaks"] = [1000, 5000]
    assert fetch(server["url"]).read_bytes() == CONTENT
    assert server["asked"] == [None, "bytes=1000-", "bytes=6000-"] and left(tmp_path) == [NAME]


def test_one_that_keeps_breaking_off_is_resumed_by_the_next_command(server, tmp_path):
    server["breaks"] = [1000, 1000, 1000]
    with pytest.raises(UserError, match="broke off at 3,000 of 1,024,000 bytes; the same command goes on from there"):
        fetch(server["url"])
    assert left(tmp_path) == [f"{NAME}.part"]
    assert fetch(server["url"]).read_bytes() == CONTENT
    assert server["asked"][-1] == "bytes=3000-"


@pytest.mark.parametrize(
    ("content", "match"), [(b"x" * 500, "its sha256 begins"), (b"<!DOCTYPE html><html>", "is a web page")]
)
def test_a_wrong_file_is_refused_and_removed(server, tmp_path, content, match):
    server["content"] = content
    with pytest.raises(UserError, match=f"{match}.*; it has been removed"):
        fetch(server["url"])
    assert left(tmp_path) == []


def test_a_server_that_refuses_and_none_at_all(server, tmp_path):
    server["status"] = 404
    with pytest.raises(UserError, match=r"answers 404 .* place it in .*weights by hand or name a mirror"):
        fetch(server["url"])
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(f"http://127.0.0.1:1/{NAME}")
    assert left(tmp_path) == []


@pytest.mark.parametrize("digest", [hashlib.sha256(CONTENT).hexdigest(), "f" * 64])
def test_a_digest_beside_the_address_is_held(server, tmp_path, digest):
    """For files, such as Places365's, whose names promise nothing."""
    url = server["url"].replace(NAME, "net.pth.tar") + f"#sha256={digest}"
    if digest == "f" * 64:
        with pytest.raises(UserError, match=r"its sha256 begins .*, not ffffffff"):
            fetch(url)
        assert left(tmp_path) == []
    else:
        assert fetch(url).read_bytes() == CONTENT and left(tmp_path) == ["net.pth.tar"]


def test_that_nothing_was_checked_is_said_once(server, capsys):
    url = server["url"].replace(NAME, "net.pth.tar")
    fetch(url), fetch(url)
    assert capsys.readouterr().err == "net.pth.tar: its publisher gives no checksum, so it was not checked.\n"


def test_a_connection_that_is_closed_before_an_answer_is_tried_again_and_loses_nothing(server, tmp_path):
    server["breaks"], server["statuses"] = [1000], [None, "close", 503]
    with pytest.raises(UserError, match=r"broke off at 1,000 bytes, the server answers 503 .* goes on from there"):
        fetch(server["url"])
    assert left(tmp_path) == [f"{NAME}.part"]
    assert fetch(server["url"]).read_bytes() == CONTENT
    assert server["asked"] == [None, "bytes=1000-", "bytes=1000-", "bytes=1000-"]


def test_a_file_of_unknown_length_is_taken_only_with_a_checksum(server, tmp_path):
    server["length"] = False
    assert fetch(server["url"]).read_bytes() == CONTENT
    with pytest.raises(UserError, match="does not say how long the file is, and it has no checksum"):
        fetch(server["url"].replace(NAME, "net.pth.tar"))
    assert left(tmp_path) == [NAME]


@pytest.mark.parametrize(
    "url", ["http://host:abc/net.pth", "http://a b/net.pth", "http://127.0.0.1:1/n\u00e9t.pth", "net"]
)
def test_what_is_no_address_is_told(tmp_path, monkeypatch, url):
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("AFA_JAX_MIRROR", raising=False)
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(url)


def test_what_is_in_the_cache_is_checked_and_needs_no_mirror(server, tmp_path, monkeypatch):
    path = fetch(server["url"])
    monkeypatch.setenv("AFA_JAX_MIRROR", str(tmp_path / "empty"))
    assert fetch(server["url"]) == path
    path.write_bytes(CONTENT[:500])
    with pytest.raises(UserError, match=r"is not the published file .*; remove it"):
        fetch(server["url"])


def test_a_full_disk_leaves_nothing_behind(server, tmp_path, monkeypatch):
    """The server's first bytes fit, the others do not."""
    room, whole = [3000], Path.open

    class Disk:
        def __init__(self, file):
            self.file = file

        def write(self, chunk):
            room[0] -= len(chunk)
            if room[0] < 0:
                self.file.write(chunk[: len(chunk) + room[0]])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(chunk)

        def tell(self):
            return self.file.tell()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def limited(path, mode="r", **options):
        file = whole(path, mode, **options)
        return Disk(file) if path.suffix == ".part" and mode != "rb" else file

    monkeypatch.setattr(Path, "open", limited)
    with pytest.raises(UserError, match=r"The disk is full: make room in .*weights or move the cache"):
        fetch(server["url"])
    assert left(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path))
    assert fetch(server["url"]).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"The cache .*weights cannot be written .* move it with AFA_JAX_CACHE"):
        fetch(f"http://127.0.0.1:1/{NAME}")


def test_mirrors(server, tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_MIRROR", server["url"].rsplit("/", 1)[0])
    assert fetch(f"http://127.0.0.1:1/{NAME}").read_bytes() == CONTENT
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "other"))
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("AFA_JAX_MIRROR", str(folder))
    with pytest.raises(UserError, match="has no file"):
        fetch(server["url"])
    (folder / NAME).write_bytes(CONTENT)
    assert fetch(server["url"]) == folder / NAME
