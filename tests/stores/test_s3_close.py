"""A bucket that is closed keeps nobody waiting."""

import socket
import threading
from contextlib import closing

import pytest

from blockstream.errors import StoreError
from blockstream.stores.s3 import S3Objects

pytestmark = pytest.mark.slow


def test_who_waits_for_an_answer_hears_that_it_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that a stopped command left behind waited for ever, and so did its end."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as mute:
        objects = S3Objects("bucket", "", f"http://127.0.0.1:{mute.getsockname()[1]}")

        def wait() -> None:
            with pytest.raises(StoreError) as caught:
                objects.info("key")
            said.append(str(caught.value))

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        line, _ = mute.accept()
        with closing(line):
            objects.close()
            waiting.join(30)
    assert said == ["s3://bucket was closed meanwhile"]
    with pytest.raises(StoreError, match="closed meanwhile"):
        objects.info("key")
