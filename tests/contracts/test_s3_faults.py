"""Whatever a bucket's server does to us: what was promised holds, or it is said what does not."""

import itertools
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    RefusedError,
    StoreDamagedError,
    StoreError,
)
from blockstream.repository.repository import Repository
from blockstream.stores import s3, s3_client
from blockstream.stores.s3 import S3Objects, s3_objects
from tests.rotation import share
from tests.s3_proxy import Answer, Fault, Page, Proxy, Rule, proxy
from tests.s3_servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

DATA = os.urandom(20 << 20)
BUSY = Answer(503, "SlowDown")
FAILED = Answer(500, "InternalError")
PASSING = [BUSY, FAILED, Fault.RESET, Fault.LOST_REPLY]
STEPS = ["?uploads", "partNumber=2", "?uploadId"]


@pytest.fixture
def between(localstack: S3Server) -> Iterator[Proxy]:
    with proxy(localstack.url) as made:
        yield made


@pytest.fixture
def objects(
    between: Proxy, localstack: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Objects]:
    for name, value in localstack.environment.items():
        monkeypatch.setenv(name, value)
    with closing(s3_objects(f"s3://contracts/faults/{tmp_path.name}", between.url)) as objects:
        yield objects


def upload(objects: S3Objects, key: str = "big") -> None:
    made = objects.upload(key)
    try:
        for start in range(0, len(DATA), 3 << 20):
            made.write([memoryview(DATA)[start : start + (3 << 20)]])
        made.finish()
    except BlockstreamError:
        made.abort()
        raise


@pytest.mark.parametrize(("word", "fault"), share(list(itertools.product(STEPS, PASSING))))
def test_an_upload_outlives_what_passes(
    objects: S3Objects, between: Proxy, word: str, fault: Fault | Answer
) -> None:
    method = "PUT" if "partNumber" in word else "POST"
    between.rules.append(Rule(method, word, fault, times=2))
    upload(objects)
    assert between.rules[0].seen >= 1
    assert objects.read_whole("big", 1 << 30) == DATA
    assert [info.key for info in objects.listed("", 2)] == ["big"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_new_object_is_ours_although_nobody_heard_it(
    objects: S3Objects, between: Proxy, fault: Fault | Answer
) -> None:
    between.rules.append(Rule("PUT", "point", fault))
    assert objects.put_new("point", b"mine")
    assert not objects.put_new("point", b"theirs")
    assert objects.read_whole("point", 1 << 30) == b"mine"


@pytest.mark.parametrize("fault", [*PASSING, Fault.SHORT_BODY])
def test_reading_goes_on_where_a_body_ended(
    objects: S3Objects, between: Proxy, fault: Fault | Answer
) -> None:
    upload(objects)
    between.rules.append(Rule("GET", "big", fault, times=2))
    assert objects.read("big", 1000, 15 << 20) == DATA[1000 : 1000 + (15 << 20)]
    between.rules.append(Rule("GET", "big", fault))
    assert objects.read_whole("big", 1 << 30) == DATA
    assert between.rules[0].seen == 2


def test_a_line_that_always_breaks_is_no_damage(objects: S3Objects, between: Proxy) -> None:
    upload(objects)
    between.rules.append(Rule("GET", "big", Fault.SHORT_BODY, times=1000))
    with pytest.raises(StoreError, match="does not come whole; run it again") as caught:
        objects.read("big", 1000, 15 << 20)
    assert not isinstance(caught.value, StoreDamagedError)
    between.rules.clear()
    with pytest.raises(StoreDamagedError, match="ends at byte"):
        objects.read("big", len(DATA) - 10, 20)


def test_what_does_not_pass_is_said_and_nothing_is_visible(
    objects: S3Objects, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    between.rules.append(Rule("PUT", "partNumber=2", BUSY, times=1000))
    with pytest.raises(StoreError, match="SlowDown"):
        upload(objects)
    assert list(objects.listed("", 2)) == []
    assert objects.forget_unfinished("big/", 1, 1e12) == 0  # it was given up


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed", "AccessDenied"])
def test_a_refusal_to_let_us_in_is_told_from_a_failure(
    objects: S3Objects, between: Proxy, code: str
) -> None:
    between.rules.append(Rule("GET", "thing", Answer(403, code), times=1000))
    with pytest.raises(AuthenticationError, match=code):
        objects.read_whole("thing", 1 << 30)


def test_a_conflict_is_tried_again(objects: S3Objects, between: Proxy) -> None:
    between.rules.append(Rule("PUT", "point", Answer(409, "ConditionalRequestConflict"), times=2))
    assert objects.put_new("point", b"mine")
    assert between.rules[0].seen == 2


@pytest.mark.parametrize(
    ("word", "fault"),
    share(
        [
            *itertools.product(STEPS, PASSING),
            # S3 has begun to answer before it fails.
            ("partNumber=2", Answer(200, "InternalError")),
        ]
    ),
)
def test_a_copy_outlives_what_passes(
    objects: S3Objects, between: Proxy, word: str, fault: Fault | Answer
) -> None:
    upload(objects)
    method = "PUT" if "partNumber" in word else "POST"
    between.rules.append(Rule(method, word, fault, times=2))
    made = objects.upload("copy")
    made.copy("big", 1, 6 << 20)
    made.copy("big", 7 << 20, 12 << 20)
    made.copy("big", 100, 6 << 20)
    made.finish()
    assert between.rules[0].seen >= 1
    want = DATA[1 : 1 + (6 << 20)] + DATA[7 << 20 : 19 << 20] + DATA[100 : 100 + (6 << 20)]
    assert objects.read_whole("copy", 1 << 30) == want


def test_what_is_copied_does_not_travel(
    objects: S3Objects, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_MOST_COPIED", 12 << 20)
    upload(objects)
    between.requests.clear()
    made = objects.upload("copy")
    made.copy("big", 0, 20 << 20)
    made.write([memoryview(b"tail")])
    made.finish()
    assert not [
        target
        for method, target in between.requests
        if method == "GET" and "big" in target and "list-type" not in target
    ]
    parts = [target for method, target in between.requests if method == "PUT"]
    assert len(parts) == 3  # two that are copied, and the tail
    assert objects.read_whole("copy", 1 << 30) == DATA + b"tail"


def test_short_ranges_that_lie_close_are_one_request(objects: S3Objects, between: Proxy) -> None:
    upload(objects)
    between.requests.clear()
    made = objects.upload("copy")
    for start in range(0, 900_000, 9_000):
        made.copy("big", start, 4_000)
    made.finish()
    assert len([method for method, _ in between.requests if method == "GET"]) == 2  # its size
    want = b"".join(DATA[start : start + 4_000] for start in range(0, 900_000, 9_000))
    assert objects.read_whole("copy", 1 << 30) == want


def test_an_object_of_another_size_than_its_parts_is_not_taken(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server would make that copies less than it was told."""
    upload(objects)
    request = S3Objects.request

    async def short(self: S3Objects, key: str, what: str, **words: Any) -> object:
        words.pop("MpuObjectSize", None)
        if what == "upload_part_copy":
            words["CopySourceRange"] = f"bytes=0-{6 << 20}"
        return await request(self, key, what, **words)

    monkeypatch.setattr(S3Objects, "request", short)
    made = objects.upload("copy")
    made.copy("big", 0, 7 << 20)
    with pytest.raises(StoreError, match="nothing names it"):
        made.finish()


@pytest.mark.parametrize("status", [400, 405, 501, 505])
def test_a_final_answer_is_not_asked_for_again(
    objects: S3Objects, between: Proxy, status: int
) -> None:
    between.rules.append(Rule("GET", "thing", Answer(status, "Whatever"), times=1000))
    with pytest.raises(StoreError, match="Whatever"):
        objects.read_whole("thing", 1 << 30)
    assert between.rules[0].seen == 1


@pytest.mark.parametrize("status", [200, 403, 413, 502])
def test_a_reply_of_somebody_else_is_shown(
    objects: S3Objects, between: Proxy, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A proxy's page was "not well-formed (invalid token): line 1, column 0"."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    page = b"<!DOCTYPE html><html><head><title>x</title></head><body>Blocked\n by the wall</body>"
    between.rules.append(Rule("GET", "list-type", Page(status, page), times=1000))
    with pytest.raises(StoreError, match=rf"HTTP {status}, .*'Blocked by the wall'; what answers"):
        list(objects.listed("", 2))


def test_a_proxy_that_stutters_is_outlived(objects: S3Objects, between: Proxy) -> None:
    objects.put("thing", b"x")
    page = Page(502, b"<html>Bad Gateway</html>")
    between.rules.append(Rule("GET", "list-type", page, times=2))
    assert [info.key for info in objects.listed("")] == ["thing"]


def test_what_is_archived_says_how_to_thaw_it(objects: S3Objects, between: Proxy) -> None:
    between.rules.append(Rule("GET", "thing", Answer(403, "InvalidObjectState"), times=1000))
    with pytest.raises(StoreError, match=r"is archived .* restore-object --bucket contracts"):
        objects.read_whole("thing", 1 << 30)
    assert between.rules[0].seen == 1


CHECKSUMS = ("x-amz-checksum-crc32", "x-amz-checksum-algorithm", "x-amz-mp-object-size")


@pytest.mark.parametrize("name", [*CHECKSUMS, "all"])
def test_a_server_that_knows_no_checksums_gets_none(
    objects: S3Objects, between: Proxy, name: str
) -> None:
    between.unknown = dict.fromkeys(CHECKSUMS if name == "all" else [name], True)
    objects.put("thing", b"x" * 1000)
    upload(objects)
    assert objects.put_new("new", b"mine")
    assert not objects.put_new("new", b"theirs")
    between.requests.clear()
    objects.put("thing", b"y" * 1000)
    assert len(between.requests) == 1, "that was found out once"
    assert objects.read_whole("big", 1 << 30) == DATA
    assert objects.read_whole("thing", 1 << 30) == b"y" * 1000


@pytest.mark.parametrize("says_so", [False, True])
def test_a_server_without_conditional_writes_is_found_out(
    objects: S3Objects, between: Proxy, says_so: bool
) -> None:
    between.unknown = {"if-none-match": says_so}
    with pytest.raises(RefusedError, match="conditional writes"):
        Repository.create(objects)
    assert list(objects.listed("", 2)) == []
    between.unknown = {}
    Repository.create(objects)
