"""Nothing that a store says goes to another host in the clear, unless that was asked for."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blockstream.errors import AuthenticationError, UsageError
from blockstream.stores.s3 import s3_objects
from blockstream.stores.s3_client import is_bare

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


@pytest.mark.slow
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


def _client(objects: Any) -> Any:
    """Return the client that a store would ask with."""
    return objects.run(objects._connected())


@pytest.mark.parametrize(
    ("profile", "environment", "wanted"),
    [
        ("", {}, ("path", False, "when_required", "when_required", 6)),
        ("s3 =\n  addressing_style = virtual\n", {}, ("virtual", False, None, None, 6)),
        ("s3 =\n  payload_signing_enabled = true\n", {}, ("path", True, None, None, 6)),
        ("max_attempts = 2\nretry_mode = adaptive\n", {}, ("path", False, None, None, 2)),
        (
            "request_checksum_calculation = when_supported\n",
            {},
            (None, None, "when_supported", None, 6),
        ),
        (
            "",
            {"AWS_RESPONSE_CHECKSUM_VALIDATION": "when_supported"},
            (None, None, None, "when_supported", 6),
        ),
        ("", {"AWS_MAX_ATTEMPTS": "1"}, ("path", False, None, None, 1)),
    ],
)
def test_what_the_user_has_configured_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    environment: dict[str, str],
    wanted: tuple[object, ...],
) -> None:
    (tmp_path / "config").write_text(
        f"[profile backups]\nregion = eu-x\nendpoint_url = https://s3.example.com\n{profile}"
    )
    (tmp_path / "credentials").write_text(
        "[backups]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    known = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    for name, value in {name: str(tmp_path / file) for name, file in known.items()}.items():
        monkeypatch.setenv(name, value)
    for name, value in ({"AWS_PROFILE": "backups"} | environment).items():
        monkeypatch.setenv(name, value)
    with closing(s3_objects("s3://bucket/x")) as objects:
        meta = _client(objects).meta
        attempts = objects.attempts
    config = meta.config
    said = (
        config.s3["addressing_style"],
        config.s3["payload_signing_enabled"],
        config.request_checksum_calculation,
        config.response_checksum_validation,
        attempts,
    )
    # In the configuration it is a word; botocore reads it so.
    found = [each == "true" if each in {"true", "false"} else each for each in said]
    assert (meta.endpoint_url, meta.region_name) == ("https://s3.example.com", "eu-x")
    for have, want in zip(found, wanted, strict=True):
        assert want is None or have == want, found


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("credential_process = /nowhere/program", "No such file"),
        ("credential_process = /bin/false", "custom-process"),
        ("credential_process = /bin/echo no JSON", "Expecting value"),
        ("credential_process = /bin/echo {}", "Version"),
        ("sso_session = here\nsso_account_id = 1\nsso_role_name = r", "SSO"),
        ("role_arn = arn:aws:iam::1:role/r\nsource_profile = nobody", "nobody"),
        (None, "backups"),
        ("", "there are none"),
    ],
)
def test_credentials_that_cannot_be_had_are_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str | None, said: str
) -> None:
    """Some were a bug of ours, with a traceback; others a server that cannot be reached."""
    text = "" if profile is None else f"[profile backups]\n{profile}\n"
    session = "[sso-session here]\nsso_start_url = https://x.example\nsso_region = us-east-1\n"
    (tmp_path / "config").write_text(session + text)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "backups")
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        closing(s3_objects("s3://bucket/x", "http://127.0.0.1:9")) as objects,
        pytest.raises(AuthenticationError, match=said),
    ):
        objects.put("a", b"content")
