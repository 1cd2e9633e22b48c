"""Nothing that a store says goes to another host in the clear, unless that was asked for."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from blockstream.errors import UsageError
from blockstream.stores.s3 import is_bare, s3_objects

SEEN: list[dict[str, str]] = []


class Server(BaseHTTPRequestHandler):
    """Takes whatever is put."""

    protocol_version = "HTTP/1.1"  # which asks first

    def do_PUT(self) -> None:
        SEEN.append({name.lower(): value for name, value in self.headers.items()})
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server by a name that is not known to be this host's."""
    SEEN.clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    server = ThreadingHTTPServer(("127.0.0.2", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.2:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("source", ["argument", "environment", "configuration", "service"])
def test_plain_http_to_another_host_is_refused_wherever_it_was_said(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    argument = ""
    config = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    match source:
        case "argument":
            argument = elsewhere
        case "environment":
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", elsewhere)
        case "configuration":
            config.write_text(f"[default]\nendpoint_url = {elsewhere}\n")
        case "service":
            config.write_text(
                f"[default]\nservices = here\n[services here]\ns3 =\n  endpoint_url = {elsewhere}\n"
            )
    with (
        closing(s3_objects("s3://bucket/x", argument)) as objects,
        pytest.raises(UsageError, match=r"and not https: .* --allow-http takes it"),
    ):
        objects.put("a", b"content")
    assert SEEN == []
    with closing(s3_objects("s3://bucket/x", argument, allow_http=True)) as objects:
        objects.put("a", b"content")
    (headers,) = SEEN
    # What TLS does not protect, the signature does.
    assert headers["x-amz-content-sha256"] == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://s3.example.com", False),
        ("http://s3.example.com:9000", True),
        ("http://localhost:9000", False),
        ("http://127.0.0.1:9000", False),
        ("http://[::1]:9000", False),
        ("http://127.0.0.1.example.com", True),
        ("HTTP://s3.example.com", True),
    ],
)
def test_what_leaves_this_host_in_the_clear_is_known(url: str, bare: bool) -> None:
    assert is_bare(url) is bare
