"""Fetching, against a server on this machine that breaks off, lies, or does as it should."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from afa_jax.errors import UserError
from afa_jax.models.download import fetch

CONTENT = bytes(range(256)) * 4000
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server's settings: what it sends, and after how many bytes it breaks off, request by request."""
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("AFA_JAX_MIRROR", raising=False)
    behaviour = {"content": CONTENT, "breaks": [], "status": None, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            behaviour["asked"].append(wanted)
            if behaviour["status"]:
                self.send_error(behaviour["status"])
                return
            start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
            body = behaviour["content"][start:]
            self.send_response(206 if wanted else 200)
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
    with pytest.raises(UserError, match=match):
        fetch(server["url"])
    assert left(tmp_path) == []


def test_a_server_that_refuses_and_none_at_all(server, tmp_path):
    server["status"] = 404
    with pytest.raises(UserError, match=r"answers 404 .* place it in .*weights by hand or name a mirror"):
        fetch(server["url"])
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(f"http://127.0.0.1:1/{NAME}")
    assert left(tmp_path) == []


def test_mirrors(server, tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_MIRROR", server["url"].rsplit("/", 1)[0])
    assert fetch(f"http://127.0.0.1:1/{NAME}").read_bytes() == CONTENT
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("AFA_JAX_MIRROR", str(folder))
    with pytest.raises(UserError, match="has no file"):
        fetch(server["url"])
    (folder / NAME).write_bytes(CONTENT)
    assert fetch(server["url"]) == folder / NAME
